"""Sets of small images as they are distributed: where each lies, whether it is intact, its pixels and its classes.

The one place that reads images; how they are split and standardised is for `tasks.images` and `tasks.fashion`. MNIST,
Fashion-MNIST and CIFAR-10 lie below the data root as torchvision puts them and are read by torchvision; nothing is
downloaded here.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from gradhpo import data as datasets
from gradhpo import download, paths
from gradhpo.errors import GradhpoError, unknown

TITLES = {
    "digits": "scikit-learn's digits (embedded stand-in)",
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
"""Names of the sets, and what captions call them."""

_IDX = {"mnist": ("MNIST", "MNIST/raw"), "fashion": ("FashionMNIST", "FashionMNIST/raw")}  # torchvision's class, folder
_PARTS = {"train": "train", "test": "t10k"}

Rows = tuple[Tensor, Tensor]


class ImageSet(NamedTuple):
    """Pixels `[N, channels, size, size]` from 0 to `top` and classes `[N]`, of training and test images; the set's
    caption, and the SHA-256 of what was read ("" for CIFAR-10, whose files torchvision verifies)."""

    train: Rows
    test: Rows
    top: int
    caption: str
    sha256: str


def present(name: str) -> bool:
    """Whether the files of a set are there; the digits need none."""
    if name not in TITLES:
        raise unknown("set of images", name, TITLES)
    if name in _IDX:
        return _idx_file(name, "train-images-idx3-ubyte") is not None
    return name == "digits" or _cifar_at() is not None


def need(name: str) -> str:
    """The name itself, or GradhpoError that says how to get the set where its files are absent."""
    if not present(name):
        places = "point GRADHPO_DATA at a folder that has it, or ask for data='embedded'"
        raise GradhpoError(f"{TITLES[name]} is not in {paths.data_root()}; {_how(name)} once with a network, {places}")
    return name


def chosen(data: str, *real: str, sets: tuple[str, ...] = tuple(TITLES)) -> str:
    """The set that a study uses: "auto" is the first of `real` that is present, else the digits, "embedded" the digits,
    and anything else the set of that name, one of `sets`. Raises GradhpoError for an unknown name, and for a set asked
    for by name and absent."""
    if data == "auto":
        return next((name for name in real if present(name)), "digits")
    if data not in (*sets, "embedded"):
        raise unknown("set of images", data, [*sets, "auto", "embedded"])
    return need("digits" if data == "embedded" else data)


def read(name: str, test_digits: int = 397) -> ImageSet:
    """A set. test_digits: how many of the digits, the last ones, are for the test; they have no test part of their own.
    Raises GradhpoError for files that are absent, truncated, altered or in another format."""
    need(name)
    if name == "digits":
        return _digits(test_digits)
    return _cifar() if name == "cifar10" else _idx(name)


def _how(name: str) -> str:
    """How to get a set, in words."""
    if name in datasets.DATASETS:
        return f"run `gradhpo data fetch {name}`"
    where = f"{str(paths.data_root())!r}, download=True"
    if name == "cifar10":
        return f"run torchvision.datasets.CIFAR10({where}) or put images in cifar10/{{train,test}}/<class>/ there"
    return f"run torchvision.datasets.{_IDX[name][0]}({where})"


def _caption(name: str, train: Rows, test: Rows) -> str:
    return f"{TITLES[name]}, {len(train[1]) + len(test[1])} images"


# --- scikit-learn's digits --------------------------------------------------------------------------------------------


def _digits(test: int) -> ImageSet:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    digest = download.digest(pixels.astype("<f8").tobytes() + classes.astype("<i8").tobytes())
    x, y = torch.from_numpy(pixels).reshape(-1, 1, 8, 8), torch.from_numpy(classes).long()
    parts = (x[:-test], y[:-test]), (x[-test:], y[-test:])
    return ImageSet(*parts, 16, _caption("digits", *parts), digest)


# --- MNIST and Fashion-MNIST ------------------------------------------------------------------------------------------


def _idx(name: str) -> ImageSet:
    parts, digests = [], []
    for part in _PARTS.values():
        images, labels = (_idx_read(name, f"{part}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
        parts.append((images[0][:, None], labels[0].long()))
        digests += [images[1], labels[1]]
    digest = download.digest("\n".join(digests).encode())
    return ImageSet(parts[0], parts[1], 255, _caption(name, parts[0], parts[1]), digest)


def _idx_file(name: str, stem: str) -> Path | None:
    """A file as torchvision leaves it, or else compressed, as it is distributed."""
    folder = paths.data_root() / _IDX[name][1]
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _idx_read(name: str, stem: str) -> tuple[Tensor, str]:
    """Numbers of one file, and the digest of its plain content. The file is unpacked elsewhere: the data root may be
    read-only."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    path = _idx_file(name, stem)
    if path is None:
        raise GradhpoError(f"{stem} is missing in {paths.data_root() / _IDX[name][1]}; {_how(name)} to get it again")
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
        raise GradhpoError(f"{path} is truncated or no IDX file ({reason}); {_how(name)} to get it again") from error


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------


def _cifar_at() -> Path | None:
    """Folder of CIFAR-10: as torchvision lays it out, or as images by class."""
    root = paths.data_root()
    places = (root / "cifar-10-batches-py", root / "cifar10" / "train")
    return next((each for each in places if each.is_dir()), None)


def _cifar() -> ImageSet:
    place = _cifar_at()
    assert place is not None
    if place.name == "train":
        parts = [_folder(place), _folder(place.with_name("test"))]
        caption = f"CIFAR-10 from image files, {len(parts[0][0]) + len(parts[1][0])} images"
    else:
        parts = [_torchvision(place.parent, train) for train in (True, False)]
        caption = _caption("cifar10", parts[0], parts[1])
    return ImageSet(parts[0], parts[1], 255, caption, "")


def _torchvision(root: Path, train: bool) -> Rows:
    from torchvision.datasets import CIFAR10

    try:
        found = CIFAR10(str(root), train=train)
    except RuntimeError as error:  # torchvision's own words for a wrong checksum
        raise GradhpoError(
            f"the files in {root / 'cifar-10-batches-py'} are damaged or incomplete; remove them and {_how('cifar10')}"
        ) from error
    return torch.from_numpy(found.data).permute(0, 3, 1, 2), torch.tensor(found.targets)


def _folder(place: Path) -> Rows:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    try:
        rows = [(pil_to_tensor(image), label) for image, label in ImageFolder(str(place))]
        return torch.stack([x for x, _ in rows]), torch.tensor([y for _, y in rows])
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:120]
        raise GradhpoError(f"{place} is no folder of equally large images in class folders ({reason})") from error
