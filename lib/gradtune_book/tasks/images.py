"""Small images in classes, split and standardised: MNIST, CIFAR-10, Fashion-MNIST, SVHN, or two sets that need no file:
scikit-learn's digits, and the same digits on photographs (`svhn_like`). `tasks.image_sets` reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from gradtune.errors import GradtuneError
from torch import Tensor

from gradtune_book.data import image_sets


@dataclass(frozen=True)
class Images:
    """Standardised images `x_* [N, channels, size, size]` and class numbers `y_* [N]`; `caption` names the set,
    `sha256` is the digest of its files ("" where `image_sets.ImageSet` has none)."""

    x_train: Tensor
    y_train: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    caption: str
    name: str
    sha256: str

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        return self.x_train, self.y_train

    @property
    def val(self) -> tuple[Tensor, Tensor]:
        return self.x_val, self.y_val

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        return self.x_test, self.y_test

    def merged(self) -> Images:
        """The same set with the validation images among the training images."""
        x, y = torch.cat([self.x_train, self.x_val]), torch.cat([self.y_train, self.y_val])
        return replace(self, x_train=x, y_train=y)

    def flat(self) -> Images:
        """The same set with each image as one row of pixels, `x_* [N, F]`."""
        x_train, x_val, x_test = (x.flatten(1) for x in (self.x_train, self.x_val, self.x_test))
        return replace(self, x_train=x_train, x_val=x_val, x_test=x_test)


def resolve(data: str, real: str = "cifar10", embedded: str = "digits") -> str:
    """The set that a notebook uses: "embedded" is the set `embedded`, "auto" the set `real` where its files are, else
    `embedded`. Raises GradtuneError for an unknown name, and for a set asked for by name and absent."""
    return image_sets.chosen(data, real, embedded=embedded)


def load(
    data: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    validation: float = 0.2,
    rows: int | None = None,
    test_rows: int | None = None,
) -> Images:
    """A set by `resolve`: its test images are the set's own (the digits: the last 397); of the others a seeded draw of
    `validation`, a share (a float below 1) or a number of images, validates. Pixels are standardised by mean and
    standard deviation of each channel of the training images. rows, test_rows: as `image_sets.read`. Raises
    GradtuneError for a draw that leaves none to train on."""
    name = resolve(data)
    found = image_sets.read(name, rows=rows, test_rows=test_rows)
    (x, y), (x_test, y_test) = ((pixels / found.top, classes) for pixels, classes in (found.train, found.test))
    cut = int(len(x) * validation) if isinstance(validation, float) else validation
    if not 0 <= cut < len(x):
        raise GradtuneError(
            f"validation = {validation} of {len(x)} images of {name}; expected a share below 1 or fewer than all"
        )
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    parts = {"val": order[:cut], "train": order[cut:]}
    mean, std = x[parts["train"]].mean((0, 2, 3), keepdim=True), x[parts["train"]].std((0, 2, 3), keepdim=True)

    def ready(images: Tensor) -> Tensor:
        return ((images - mean) / std).to(device, dtype)

    train, val = ((ready(x[rows]), y[rows].to(device)) for rows in (parts["train"], parts["val"]))
    return Images(*train, *val, ready(x_test), y_test.to(device), found.caption, name, found.sha256)
