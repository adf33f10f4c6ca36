"""Sets of small images as they are distributed: where each lies, whether it is intact, its pixels and its classes.

This is the one place that reads images. How they are split and standardised is for `tasks.images` and `tasks.fashion`.
MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 lie below the data root as torchvision puts them, SVHN in the folder `SVHN`
there. All are verified: MNIST and Fashion-MNIST by the digest of what their files hold (`idx`), the others by
torchvision. CIFAR-10 may also be a folder of image files by class (`image_files`). Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune_book import paths
from gradtune_book.data import datasets, download, idx, image_files

TITLES = {
    "digits": "scikit-learn's digits (embedded stand-in)",
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "svhn_like": "svhn_like: scikit-learn's digits on its photographs (embedded stand-in for SVHN)",
}
"""Names of the sets, and what captions call them."""

_CLASSES = {"mnist": "MNIST", "fashion": "FashionMNIST"}  # of torchvision
_EMBEDDED = ("digits", "svhn_like")

Rows = tuple[Tensor, Tensor]


class ImageSet(NamedTuple):
    """Pixels and classes of a set's training and test images.

    Attributes:
        train: Training images, pixels `[N, channels, size, size]` from 0 to `top` and classes `[N]`.
        test: Test images, in the same form.
        top: Largest value that a pixel can have.
        caption: Name and size of the set, for captions.
        sha256: SHA-256 of what was read. It is "" for `svhn_like`, whose photographs may differ in the last bit from
            one decoder to another.
    """

    train: Rows
    test: Rows
    top: int
    caption: str
    sha256: str


def present(name: str) -> bool:
    """Return whether the files of a set are there; the embedded ones need none.

    Only one file of the set (of CIFAR-10: its folder) is looked for, and nothing is read.

    Raises:
        GradtuneError: There is no such set.
    """
    if name not in TITLES:
        raise unknown("set of images", name, TITLES)
    if name in idx.FOLDERS:
        return idx.find(name) is not None
    if name == "svhn":
        return (paths.data_root() / "SVHN" / "train_32x32.mat").is_file()
    if name == "cifar100":
        return _filled(paths.data_root() / "cifar-100-python")
    return name in _EMBEDDED or _cifar_at() is not None


def need(name: str) -> str:
    """Return the name itself if the set is there.

    Raises:
        GradtuneError: There is no such set, or its files are absent. The error says how to get them.
    """
    if not present(name):
        places = "point GRADTUNE_DATA at a folder that has it, or ask for data='embedded'"
        raise GradtuneError(f"{TITLES[name]} is not in {paths.data_root()}; {_how(name)} once with a network, {places}")
    return name


def chosen(data: str, *real: str, sets: tuple[str, ...] = tuple(TITLES), embedded: str = "digits") -> str:
    """Return the name of the set that a study uses.

    Args:
        data: "auto" is the first of `real` that is present, else `embedded`. "real" is the first of `real`, present or
            not, so that runs recorded on it are found everywhere. "embedded" is the set `embedded`. Anything else is
            the set of that name.
        *real: Sets that "auto" looks for, the first choice first.
        sets: Names that `data` may be.
        embedded: Stand-in that needs no file.

    Raises:
        GradtuneError: `data` is an unknown name, or names a set that is absent.
    """
    if data == "auto":
        return next((name for name in real if present(name)), embedded)
    if data == "real" and real:
        return real[0]
    if data not in (*sets, "embedded"):
        raise unknown("set of images", data, [*sets, "auto", "embedded", *(["real"] if real else [])])
    return need(embedded if data == "embedded" else data)


def read(name: str, test_digits: int = 397, rows: int | None = None, test_rows: int | None = None) -> ImageSet:
    """Read a set, whole or in part.

    Args:
        name: Name of the set, a key of `TITLES`.
        test_digits: Number of digits, the last ones, that are for the test. The digits have no test part of their own.
            The argument has no effect on other sets.
        rows: Number of training images, equally many of each class, the first ones of the set. None gives all.
        test_rows: The same for the test images.

    Raises:
        GradtuneError: The set is unknown. Files are absent, truncated, altered or in another format. `rows` or
            `test_rows` is a number of images that the set cannot give.
    """
    need(name)
    if name == "svhn_like":
        return _svhn_like(rows, test_rows)
    if name == "cifar10" and (place := _cifar_at()) is not None and place.name == "train":
        return _cifar_files(place, rows, test_rows)
    found = _digits(test_digits) if name == "digits" else _READERS[name](name)
    if rows is None and test_rows is None:
        return found
    train = _at(found.train, first(found.train[1], rows, TITLES[name]))
    test = _at(found.test, first(found.test[1], test_rows, f"the test part of {TITLES[name]}"))
    total = len(found.train[1]) + len(found.test[1])
    return found._replace(train=train, test=test, caption=_caption(TITLES[name], total, train, test))


def first(labels: Tensor, count: int | None, what: str) -> Tensor:
    """Return numbers of the first images of each class, `count` in all, in the order of the set.

    Args:
        labels: Classes `[N]` of the set.
        count: Number of images, equally many of each class. None gives all.
        what: Name of the set in the error.

    Returns:
        Image numbers `[count]`, ascending.

    Raises:
        GradtuneError: `count` cannot be made of equally many images of each class.
    """
    if count is None:
        return torch.arange(len(labels))
    classes, least = labels.unique(), int(torch.bincount(labels)[labels.unique()].min())
    each = count // len(classes)
    if count % len(classes) or not 1 <= each <= least:
        raise GradtuneError(
            f"{count} images of {what} were asked for; expected a multiple of its {len(classes)} classes, at most "
            f"{least * len(classes)}"
        )
    return torch.cat([torch.nonzero(labels == c)[:each, 0] for c in classes]).sort().values


def _at(part: Rows, rows: Tensor) -> Rows:
    return part[0][rows], part[1][rows]


def _how(name: str) -> str:
    """How to get a set, in words."""
    if name in datasets.DATASETS:
        return f"run `gradtune data fetch {name}`"
    where = f"{str(paths.data_root())!r}, download=True"
    if name == "cifar10":
        return f"run torchvision.datasets.CIFAR10({where}) or put images in cifar10/{{train,test}}/<class>/ there"
    if name == "cifar100":
        return f"run torchvision.datasets.CIFAR100({where})"
    if name == "svhn":
        folder = str(paths.data_root() / "SVHN")
        return f"run torchvision.datasets.SVHN({folder!r}, split, download=True) for the splits train and test"
    return f"run torchvision.datasets.{_CLASSES[name]}({where})"


def _caption(title: str, total: int, train: Rows, test: Rows) -> str:
    used = len(train[1]), len(test[1])
    part = "" if sum(used) == total else f", of which {used[0]} train or validate and {used[1]} test"
    return f"{title}, {total} images{part}"


def _whole(name: str, train: Rows, test: Rows, sha256: str, top: int = 255) -> ImageSet:
    caption = _caption(TITLES[name], len(train[1]) + len(test[1]), train, test)
    return ImageSet(train, test, top, caption, sha256)


# --- embedded sets ----------------------------------------------------------------------------------------------------


def _digits(test: int) -> ImageSet:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    digest = download.digest(pixels.astype("<f8").tobytes() + classes.astype("<i8").tobytes())
    x, y = torch.from_numpy(pixels).reshape(-1, 1, 8, 8), torch.from_numpy(classes).long()
    parts = (x[:-test], y[:-test]), (x[-test:], y[-test:])
    return _whole("digits", *parts, digest, top=16)


def _svhn_like(rows: int | None, test_rows: int | None) -> ImageSet:
    """Make only the images that are wanted: each takes half a millisecond."""
    from gradtune_book.data import svhn_like

    parts = []
    for part, count in (("train", rows), ("test", test_rows)):
        labels = svhn_like.labels(part)
        wanted = first(labels, count, f"svhn_like, part {part}")
        parts.append((svhn_like.images(part, wanted), labels[wanted]))
    caption = _caption(TITLES["svhn_like"], sum(svhn_like.COUNTS.values()), *parts)
    return ImageSet(parts[0], parts[1], 255, caption, "")


# --- MNIST and Fashion-MNIST ------------------------------------------------------------------------------------------


def _idx(name: str) -> ImageSet:
    train, test, digest = idx.read(name, _how(name))
    return _whole(name, train, test, digest)


# --- CIFAR-10 and CIFAR-100 -------------------------------------------------------------------------------------------


def _cifar_at() -> Path | None:
    """Folder of CIFAR-10: as torchvision lays it out, or as images by class."""
    root = paths.data_root()
    batches, images = root / "cifar-10-batches-py", root / "cifar10" / "train"
    return next((place for place in (batches, images) if _filled(place)), None)


def _filled(folder: Path) -> bool:
    """Whether a folder is there and has something in it; an empty one is what a broken download leaves."""
    return folder.is_dir() and any(folder.iterdir())


def _cifar(name: str) -> ImageSet:
    parts = [_torchvision(name, train) for train in (True, False)]
    return _whole(name, parts[0], parts[1], _digest(*parts))


def _cifar_files(place: Path, rows: int | None, test_rows: int | None) -> ImageSet:
    """Read only the files that are wanted."""
    (all_train, train), (all_test, test) = _folder(place, rows), _folder(place.with_name("test"), test_rows)
    caption = _caption("CIFAR-10 from image files", all_train + all_test, train, test)
    return ImageSet(train, test, 255, caption, _digest(train, test))


def _digest(*parts: Rows) -> str:
    """Digest of the pixels and classes themselves."""
    arrays = [array.contiguous().numpy() for part in parts for array in part]
    shapes = " ".join(f"{array.dtype}{array.shape}" for array in arrays)
    return download.digest(shapes.encode() + b"".join(array.tobytes() for array in arrays))


def _torchvision(name: str, train: bool) -> Rows:
    from torchvision.datasets import CIFAR10, CIFAR100

    root, kind = paths.data_root(), CIFAR100 if name == "cifar100" else CIFAR10
    try:
        found = kind(str(root), train=train)
    except (RuntimeError, OSError) as error:  # a RuntimeError is torchvision's own word for a wrong checksum
        raise GradtuneError(
            f"the files in {root / kind.base_folder} are damaged or incomplete; remove them and {_how(name)}"
        ) from error
    return torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets)


def _folder(place: Path, count: int | None) -> tuple[int, Rows]:
    """How many images there are, and those wanted, with their classes."""
    files, labels = image_files.listed(place)
    wanted = first(labels, count, str(place))
    return len(labels), (torch.stack([image_files.read(files[k]) for k in wanted.tolist()]), labels[wanted])


# --- SVHN -------------------------------------------------------------------------------------------------------------


def _svhn(name: str) -> ImageSet:
    from torchvision.datasets import SVHN

    root = paths.data_root() / "SVHN"
    try:
        found = [SVHN(str(root), split) for split in ("train", "test")]
    except (RuntimeError, OSError) as error:
        raise GradtuneError(f"the files in {root} are damaged or incomplete; remove them and {_how(name)}") from error
    parts = [(torch.from_numpy(each.data), torch.from_numpy(each.labels).long()) for each in found]
    return _whole(name, parts[0], parts[1], _digest(*parts))


_READERS: dict[str, Callable[[str], ImageSet]] = {"mnist": _idx, "fashion": _idx, "svhn": _svhn}
_READERS |= {"cifar10": _cifar, "cifar100": _cifar}
