"""Small images in classes, as tensors: MNIST, CIFAR-10, or scikit-learn's digits, which need no file."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from gradhpo import data as datasets
from gradhpo import paths
from gradhpo.errors import GradhpoError, unknown

SETS = ("digits", "mnist", "cifar10")


@dataclass(frozen=True)
class Images:
    """Standardised images `x_* [N, channels, size, size]` and class numbers `y_* [N]`; `caption` names the set,
    `sha256` its files (only of MNIST, "" else)."""

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    caption: str
    name: str = ""
    sha256: str = ""

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.x_train, self.y_train

    @property
    def val(self) -> tuple[Tensor, Tensor]:
        return self.x_val, self.y_val

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.x_test, self.y_test


def resolve(data: str, real: str = "cifar10") -> str:
    """The set that a notebook uses: "embedded" is the digits, "auto" the set `real` where its files are, else the
    digits. Raises GradhpoError for an unknown name, and for a set asked for by name and absent."""
    if data not in (*SETS, "auto", "embedded"):
        raise unknown("set of images", data, [*SETS, "auto", "embedded"])
    if data == "auto":
        there = datasets.state("mnist") != "missing" if real == "mnist" else _cifar_at()
        return real if there else "digits"
    if data == "mnist":
        return datasets.resolve(data, data, "")
    if data == "cifar10" and not _cifar_at():
        raise GradhpoError(
            f"CIFAR-10 is not in {paths.data_root()}; run torchvision.datasets.CIFAR10(that folder, download=True) "
            "once, put a folder cifar10 with {train,test}/<class>/ images there, or ask for data='embedded'"
        )
    return "digits" if data == "embedded" else data


def load(
    data: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", val_share: float = 0.2
) -> Images:
    """A set by `resolve`: its test images are the set's own (the digits: the last 397), a seeded draw of a share of the
    others validates. Pixels are standardised by mean and standard deviation of each channel of the training images."""
    if not 0 < val_share < 1:
        raise GradhpoError(f"val_share is {val_share}; expected the share of the images that validates, inside (0, 1)")
    name = resolve(data)
    x, y, x_test, y_test, caption = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar}[name]()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    cut = int(len(x) * val_share)
    parts = {"val": order[:cut], "train": order[cut:]}
    mean, std = x[parts["train"]].mean((0, 2, 3), keepdim=True), x[parts["train"]].std((0, 2, 3), keepdim=True)

    def ready(images: Tensor) -> Tensor:
        return ((images - mean) / std).to(device, dtype)

    train, val = ((ready(x[rows]), y[rows].to(device)) for rows in (parts["train"], parts["val"]))
    sha256 = datasets.digest(name) if name == "mnist" else ""
    return Images(*train, *val, ready(x_test), y_test.to(device), caption, name, sha256)


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels / 16).reshape(-1, 1, 8, 8), torch.from_numpy(classes).long()
    return x[:1400], y[:1400], x[1400:], y[1400:], "scikit-learn's digits (embedded stand-in), 1797 images"


def _mnist() -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    """The four files as they are distributed, verified, and unpacked where torchvision reads them."""
    from torchvision.datasets import MNIST

    with TemporaryDirectory() as root:
        raw = Path(root) / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for path in datasets.files("mnist"):
            (raw / Path(path).stem).write_bytes(gzip.decompress(datasets.content("mnist", path)))
        train, test = MNIST(root), MNIST(root, train=False)
    x, x_test = (part.data[:, None] / 255 for part in (train, test))
    return x, train.targets, x_test, test.targets, f"MNIST, {len(x) + len(x_test)} images"


def _cifar_at() -> Path | None:
    """Folder of CIFAR-10: as torchvision lays it out, or as images by class."""
    root = paths.data_root()
    places = (root / "cifar-10-batches-py", root / "cifar10" / "train")
    return next((each for each in places if each.is_dir()), None)


def _cifar() -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    place = _cifar_at()
    assert place is not None
    if place.name == "train":
        parts = [_folder(place), _folder(place.with_name("test"))]
        caption = f"CIFAR-10 from image files, {len(parts[0][0]) + len(parts[1][0])} images"
    else:
        parts, caption = [_torchvision(place.parent, train) for train in (True, False)], "CIFAR-10, 60000 images"
    return *parts[0], *parts[1], caption


def _torchvision(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    try:
        found = CIFAR10(str(root), train=train)
    except RuntimeError as error:  # torchvision's own words for a wrong checksum
        raise GradhpoError(
            f"the files in {root / 'cifar-10-batches-py'} are damaged or incomplete; remove them and run "
            "torchvision.datasets.CIFAR10(that folder, download=True)"
        ) from error
    return torch.from_numpy(found.data).permute(0, 3, 1, 2) / 255, torch.tensor(found.targets)


def _folder(place: Path) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    try:
        rows = [(pil_to_tensor(image), label) for image, label in ImageFolder(str(place))]
        return torch.stack([x for x, _ in rows]) / 255, torch.tensor([y for _, y in rows])
    except (OSError, RuntimeError) as error:
        reason = str(error).split("\n")[0][:120]
        raise GradhpoError(f"{place} is no folder of equally large images in class folders ({reason})") from error
