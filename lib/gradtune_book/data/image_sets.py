"""Sets of small images as they are distributed: where each lies, whether it is intact, its pixels and its classes.

This is the one place that reads images. How they are split and standardised is for `tasks.images` and `tasks.fashion`.
MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 lie below the data root as torchvision puts them, SVHN in the folder `SVHN`
there. They are read by torchvision. CIFAR-10 may also be a folder of image files by class. Nothing is downloaded here.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune_book import paths
from gradtune_book.data import datasets, download

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

_IDX = {"mnist": ("MNIST", "MNIST/raw"), "fashion": ("FashionMNIST", "FashionMNIST/raw")}  # torchvision's class, folder
_PARTS = {"train": "train", "test": "t10k"}
_EMBEDDED = ("digits", "svhn_like")

Rows = tuple[Tensor, Tensor]


class ImageSet(NamedTuple):
    """Pixels and classes of a set's training and test images.

    Attributes:
        train: Training images, pixels `[N, channels, size, size]` from 0 to `top` and classes `[N]`.
        test: Test images, in the same form.
        top: Largest value that a pixel can have.
        caption: Name and size of the set, for captions.
        sha256: SHA-256 of what was read. It is "" for CIFAR-10, CIFAR-100 and SVHN, whose files torchvision verifies,
            for CIFAR-10 as image files, which have no known checksum, and for `svhn_like`, whose photographs may differ
            in the last bit from one decoder to another.
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
    if name in _IDX:
        return _idx_file(name, "train-images-idx3-ubyte") is not None
    if name == "svhn":
        return (paths.data_root() / "SVHN" / "train_32x32.mat").is_file()
    if name == "cifar100":
        return (paths.data_root() / "cifar-100-python").is_dir()
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
        data: "auto" is the first of `real` that is present, else `embedded`. "embedded" is the set `embedded`. Anything
            else is the set of that name.
        *real: Sets that "auto" looks for, the first choice first.
        sets: Names that `data` may be.
        embedded: Stand-in that needs no file.

    Raises:
        GradtuneError: `data` is an unknown name, or names a set that is absent.
    """
    if data == "auto":
        return next((name for name in real if present(name)), embedded)
    if data not in (*sets, "embedded"):
        raise unknown("set of images", data, [*sets, "auto", "embedded"])
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
    return f"run torchvision.datasets.{_IDX[name][0]}({where})"


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
    parts, digests = [], []
    for part in _PARTS.values():
        images, labels = (_idx_read(name, f"{part}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
        parts.append((images[0][:, None], labels[0].long()))
        digests += [images[1], labels[1]]
    digest = download.digest("\n".join(digests).encode())
    return _whole(name, parts[0], parts[1], digest)


def _idx_file(name: str, stem: str) -> Path | None:
    """A file as torchvision leaves it, or else compressed, as it is distributed."""
    folder = paths.data_root() / _IDX[name][1]
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _idx_read(name: str, stem: str) -> tuple[Tensor, str]:
    """Numbers of one file, and the digest of its plain content.

    The file is unpacked elsewhere: the data root may be read-only.
    """
    from torchvision.datasets.mnist import read_image_file, read_label_file

    path = _idx_file(name, stem)
    if path is None:
        raise GradtuneError(f"{stem} is missing in {paths.data_root() / _IDX[name][1]}; {_how(name)} to get it again")
    known = f"{_IDX[name][1]}/{path.name}" if f"{_IDX[name][1]}/{path.name}" in datasets.checksums() else None
    raw = datasets.content(name, known) if known else path.read_bytes()
    try:
        with TemporaryDirectory() as folder:
            plain = Path(folder) / stem
            plain.write_bytes(gzip.decompress(raw) if path.suffix == ".gz" else raw)
            found = (read_image_file if "images" in stem else read_label_file)(str(plain))
            return found, download.digest(plain.read_bytes())
    except (OSError, EOFError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        reason = str(error).split("\n")[0][:80] or type(error).__name__
        raise GradtuneError(f"{path} is truncated or no IDX file ({reason}); {_how(name)} to get it again") from error


# --- CIFAR-10 and CIFAR-100 -------------------------------------------------------------------------------------------


def _cifar_at() -> Path | None:
    """Folder of CIFAR-10: as torchvision lays it out, or as images by class."""
    root = paths.data_root()
    places = (root / "cifar-10-batches-py", root / "cifar10" / "train")
    return next((each for each in places if each.is_dir()), None)


def _cifar(name: str) -> ImageSet:
    parts = [_torchvision(name, train) for train in (True, False)]
    return _whole(name, parts[0], parts[1], "")


def _cifar_files(place: Path, rows: int | None, test_rows: int | None) -> ImageSet:
    """Read only the files that are wanted."""
    (all_train, train), (all_test, test) = _folder(place, rows), _folder(place.with_name("test"), test_rows)
    return ImageSet(train, test, 255, _caption("CIFAR-10 from image files", all_train + all_test, train, test), "")


def _torchvision(name: str, train: bool) -> Rows:
    from torchvision.datasets import CIFAR10, CIFAR100

    root, kind = paths.data_root(), CIFAR100 if name == "cifar100" else CIFAR10
    try:
        found = kind(str(root), train=train)
    except RuntimeError as error:  # torchvision's own words for a wrong checksum
        raise GradtuneError(
            f"the files in {root / kind.base_folder} are damaged or incomplete; remove them and {_how(name)}"
        ) from error
    return torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets)


def _folder(place: Path, count: int | None) -> tuple[int, Rows]:
    """How many images there are, and those wanted, with their classes."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    try:
        found = ImageFolder(str(place))
        labels = torch.tensor(found.targets)
        wanted = first(labels, count, str(place))
        return len(labels), (torch.stack([pil_to_tensor(found[k][0]) for k in wanted.tolist()]), labels[wanted])
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:120]
        raise GradtuneError(f"{place} is no folder of equally large images in class folders ({reason})") from error


# --- SVHN -------------------------------------------------------------------------------------------------------------


def _svhn(name: str) -> ImageSet:
    from torchvision.datasets import SVHN

    root = paths.data_root() / "SVHN"
    try:
        found = [SVHN(str(root), split) for split in ("train", "test")]
    except (RuntimeError, OSError) as error:
        raise GradtuneError(f"the files in {root} are damaged or incomplete; remove them and {_how(name)}") from error
    parts = [(torch.from_numpy(each.data), torch.from_numpy(each.labels).long()) for each in found]
    return _whole(name, parts[0], parts[1], "")


_READERS: dict[str, Callable[[str], ImageSet]] = {"mnist": _idx, "fashion": _idx, "svhn": _svhn}
_READERS |= {"cifar10": _cifar, "cifar100": _cifar}
