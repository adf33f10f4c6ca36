"""Small images in classes, as tensors: CIFAR-10, MNIST, SVHN, or two embedded sets, which need no file: scikit-learn's
digits, and the same digits on photographs (`svhn_like`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradhpo import paths
from gradhpo.errors import GradhpoError, unknown

SETS = ("digits", "svhn_like", "cifar10", "mnist", "svhn")
_PLACES = {
    "cifar10": ("cifar-10-batches-py", "cifar10/train"),
    "mnist": ("MNIST/raw/train-images-idx3-ubyte", "MNIST/raw/train-images-idx3-ubyte.gz"),
    "svhn": ("SVHN/train_32x32.mat",),
}
_GET = {
    "cifar10": "run torchvision.datasets.CIFAR10(that folder, download=True) once, put a folder cifar10 with "
    "{train,test}/<class>/ images there,",
    "mnist": "run torchvision.datasets.MNIST(that folder, download=True) once,",
    "svhn": "run torchvision.datasets.SVHN(that folder/SVHN, split, download=True) for the splits train and test once,",
}
_TITLES = {"cifar10": "CIFAR-10", "mnist": "MNIST", "svhn": "SVHN"}


class _Set(NamedTuple):
    """Images in [0, 1] and classes, training and test; the set's name, and how many images it has in all."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    title: str
    total: int


@dataclass(frozen=True)
class Images:
    """Standardised images `x_* [N, channels, size, size]` and class numbers `y_* [N]`; `caption` names the set."""

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    caption: str

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.x_train, self.y_train

    @property
    def val(self) -> tuple[Tensor, Tensor]:
        return self.x_val, self.y_val

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.x_test, self.y_test


def resolve(data: str, real: str = "cifar10", embedded: str = "digits") -> str:
    """The set that a notebook uses: "auto" is `real` where its files are, else `embedded`; "embedded" is `embedded`.
    Raises GradhpoError for an unknown name, and for a real set asked for by name and absent."""
    if data not in (*SETS, "auto", "embedded"):
        raise unknown("set of images", data, [*SETS, "auto", "embedded"])
    if data == "auto":
        return real if _at(real) else embedded
    if data in _PLACES and not _at(data):
        raise GradhpoError(f"{_TITLES[data]} is not in {paths.data_root()}; {_GET[data]} or ask for data='embedded'")
    return embedded if data == "embedded" else data


def load(
    data: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    validation: int | None = None,
    rows: int | None = None,
    test_rows: int | None = None,
) -> Images:
    """A set by `resolve`: its test images are the set's own (the digits: the last 397); of the others a seeded draw of
    `validation` validates (None: a fifth). Pixels are standardised by mean and standard deviation of each channel of
    the training images.

    rows, test_rows: use only so many images, equally many of each class, the first ones of the set. Raises
    GradhpoError for numbers that the set cannot give.
    """
    name = resolve(data)
    found = _READERS[name](rows, test_rows)
    (x, y), (x_test, y_test), caption = found.train, found.test, _caption(found)
    cut = len(x) // 5 if validation is None else validation
    if not 0 <= cut < len(x):
        raise GradhpoError(f"validation = {cut} of {len(x)} images of {name}; expected at least 0 and fewer than all")
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    parts = {"val": order[:cut], "train": order[cut:]}
    mean, std = x[parts["train"]].mean((0, 2, 3), keepdim=True), x[parts["train"]].std((0, 2, 3), keepdim=True)

    def ready(images: Tensor) -> Tensor:
        return ((images - mean) / std).to(device, dtype)

    train, val = ((ready(x[rows]), y[rows].to(device)) for rows in (parts["train"], parts["val"]))
    return Images(*train, *val, ready(x_test), y_test.to(device), caption)


def _caption(found: _Set) -> str:
    train, test = len(found.train[0]), len(found.test[0])
    used = "" if train + test == found.total else f", of which {train} train or validate and {test} test"
    return f"{found.title}, {found.total} images{used}"


def _first(labels: Tensor, rows: int | None, what: str) -> Tensor:
    """Numbers of the first images of each class, `rows` in all, in the order of the set; all for None."""
    if rows is None:
        return torch.arange(len(labels))
    classes = labels.unique()
    each = rows // len(classes)
    if rows % len(classes) or not 1 <= each <= int(torch.bincount(labels)[classes].min()):
        raise GradhpoError(
            f"{rows} images of {what} were asked for; expected a multiple of its {len(classes)} classes, at most "
            f"{int(torch.bincount(labels)[classes].min()) * len(classes)}"
        )
    return torch.cat([torch.nonzero(labels == c)[:each, 0] for c in classes]).sort().values


def _chosen(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], rows: int | None, test_rows: int | None, title: str
) -> _Set:
    """A set from bytes, with the rows wanted."""
    first, last = _first(train[1], rows, title), _first(test[1], test_rows, f"the test part of {title}")
    parts = [(x[k].float() / 255, y[k]) for (x, y), k in ((train, first), (test, last))]
    return _Set(parts[0], parts[1], title, len(train[1]) + len(test[1]))


def _digits(rows: int | None, test_rows: int | None) -> _Set:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels / 16).reshape(-1, 1, 8, 8), torch.from_numpy(classes).long()
    train, test = _first(y[:1400], rows, "the digits"), 1400 + _first(y[1400:], test_rows, "the digits' test images")
    return _Set((x[train], y[train]), (x[test], y[test]), "scikit-learn's digits (embedded stand-in)", len(x))


def _svhn_like(rows: int | None, test_rows: int | None) -> _Set:
    from gradhpo.tasks import svhn_like

    title, parts = "svhn_like: scikit-learn's digits on its photographs (embedded stand-in for SVHN)", []
    for part, count in (("train", rows), ("test", test_rows)):
        labels = svhn_like.labels(part)
        wanted = _first(labels, count, f"svhn_like, part {part}")
        parts.append((svhn_like.images(part, wanted).float() / 255, labels[wanted]))
    return _Set(parts[0], parts[1], title, sum(svhn_like.COUNTS.values()))


def _at(name: str) -> Path | None:
    """Where a real set lies: as torchvision lays it out, or (CIFAR-10) as images by class."""
    places = (paths.data_root() / place for place in _PLACES[name])
    return next((each for each in places if each.exists()), None)


def _cifar(rows: int | None, test_rows: int | None) -> _Set:
    place = _at("cifar10")
    assert place is not None
    if place.name == "train":
        first, second = _folder(place, rows), _folder(place.with_name("test"), test_rows)
        return _Set(first[1], second[1], "CIFAR-10 from image files", first[0] + second[0])
    found = [_torchvision(place.parent, train) for train in (True, False)]
    return _chosen(found[0], found[1], rows, test_rows, "CIFAR-10")


def _torchvision(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    try:
        found = CIFAR10(str(root), train=train)
    except RuntimeError as error:  # torchvision's own words for a wrong checksum
        raise GradhpoError(
            f"the files in {root / 'cifar-10-batches-py'} are damaged or incomplete; remove them and run "
            "torchvision.datasets.CIFAR10(that folder, download=True)"
        ) from error
    return torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets)


def _folder(place: Path, rows: int | None) -> tuple[int, tuple[Tensor, Tensor]]:
    """How many images there are, and those wanted, with their classes."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    try:
        found = ImageFolder(str(place))
        labels = torch.tensor(found.targets)
        wanted = _first(labels, rows, str(place))
        x = torch.stack([pil_to_tensor(found[int(k)][0]) for k in wanted])
        return len(labels), (x.float() / 255, labels[wanted])
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:120]
        raise GradhpoError(f"{place} is no folder of equally large images in class folders ({reason})") from error


def _mnist(rows: int | None, test_rows: int | None) -> _Set:
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import extract_archive

    place = _at("mnist")
    assert place is not None
    with TemporaryDirectory() as folder:
        root = paths.data_root()
        try:
            if place.suffix == ".gz":  # unpacked elsewhere: the data root may be read-only
                root = Path(folder)
                (root / "MNIST" / "raw").mkdir(parents=True)
                for archive in place.parent.glob("*-ubyte.gz"):
                    extract_archive(str(archive), str(root / "MNIST" / "raw"))
            found = [MNIST(str(root), train=train) for train in (True, False)]
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise GradhpoError(
                f"the files in {place.parent} are damaged or incomplete ({str(error)[:80]}); remove them and run "
                "torchvision.datasets.MNIST(the data root, download=True)"
            ) from error
    train, test = ((each.data[:, None], each.targets) for each in found)
    return _chosen(train, test, rows, test_rows, "MNIST")


def _svhn(rows: int | None, test_rows: int | None) -> _Set:
    from torchvision.datasets import SVHN

    root = paths.data_root() / "SVHN"
    try:
        found = [SVHN(str(root), split) for split in ("train", "test")]
    except (RuntimeError, OSError) as error:
        raise GradhpoError(
            f"the files in {root} are damaged or incomplete; remove them and run torchvision.datasets.SVHN(that "
            "folder, split, download=True) for the splits train and test"
        ) from error
    train, test = ((torch.from_numpy(each.data), torch.from_numpy(each.labels).long()) for each in found)
    return _chosen(train, test, rows, test_rows, "SVHN")


_READERS: dict[str, Callable[[int | None, int | None], _Set]] = {
    "digits": _digits,
    "svhn_like": _svhn_like,
    "cifar10": _cifar,
    "mnist": _mnist,
    "svhn": _svhn,
}
