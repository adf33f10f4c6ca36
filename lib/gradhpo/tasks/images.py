"""Small images in classes, as tensors: CIFAR-10, or scikit-learn's digits, which need no file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradhpo import paths
from gradhpo.errors import GradhpoError, unknown

SETS = ("digits", "cifar10")


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


def resolve(data: str) -> str:
    """The set that a notebook uses: "embedded" is the digits, "auto" CIFAR-10 where its files are, else the digits.
    Raises GradhpoError for an unknown name, and for CIFAR-10 asked for by name and absent."""
    if data not in (*SETS, "auto", "embedded"):
        raise unknown("set of images", data, [*SETS, "auto", "embedded"])
    if data == "auto":
        return "cifar10" if _cifar_at() else "digits"
    if data == "cifar10" and not _cifar_at():
        raise GradhpoError(
            f"CIFAR-10 is not in {paths.data_root()}; run torchvision.datasets.CIFAR10(that folder, download=True) "
            "once, put a folder cifar10 with {train,test}/<class>/ images there, or ask for data='embedded'"
        )
    return "digits" if data == "embedded" else data


def load(data: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Images:
    """A set by `resolve`: its test images are the set's own (the digits: the last 397), a seeded draw of a fifth of the
    others validates. Pixels are standardised by mean and standard deviation of each channel of the training images."""
    name = resolve(data)
    x, y, x_test, y_test, caption = _digits() if name == "digits" else _cifar()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    cut = len(x) // 5
    parts = {"val": order[:cut], "train": order[cut:]}
    mean, std = x[parts["train"]].mean((0, 2, 3), keepdim=True), x[parts["train"]].std((0, 2, 3), keepdim=True)

    def ready(images: Tensor) -> Tensor:
        return ((images - mean) / std).to(device, dtype)

    train, val = ((ready(x[rows]), y[rows].to(device)) for rows in (parts["train"], parts["val"]))
    return Images(*train, *val, ready(x_test), y_test.to(device), caption)


def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor, str]:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels / 16).reshape(-1, 1, 8, 8), torch.from_numpy(classes).long()
    return x[:1400], y[:1400], x[1400:], y[1400:], "scikit-learn's digits (embedded stand-in), 1797 images"


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
