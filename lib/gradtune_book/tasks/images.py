"""Small images in classes, split and standardised.

The sets are MNIST, CIFAR-10, Fashion-MNIST, SVHN, and two that need no file: scikit-learn's digits, and the same digits
on photographs (`svhn_like`). `data.image_sets` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune_book.data import image_sets


@dataclass(frozen=True)
class Images:
    """Standardised images and their class numbers.

    Attributes:
        x_train: Training images `[N, channels, size, size]`, or `[N, F]` after `flat`.
        y_train: Their classes `[N]`.
        x_val: Validation images.
        y_val: Their classes.
        x_test: Test images.
        y_test: Their classes.
        caption: Name and size of the set, for captions.
        name: Name of the set.
        sha256: Digest of the set's files, "" where `image_sets.ImageSet` has none.
    """

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
    """Return the name of the set that a notebook uses.

    Args:
        data: "embedded" is the set `embedded`. "auto" is the set `real` where its files are, else `embedded`. "real" is
            the set `real`, present or not. Anything else is the set of that name.
        real: Set that is wanted.
        embedded: Stand-in that needs no file.

    Raises:
        GradtuneError: `data` is an unknown name, or names a set that is absent.
    """
    return image_sets.chosen(data, real, embedded=embedded)


def load(
    data: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    validation: float = 0.2,
    rows: int | None = None,
    test_rows: int | None = None,
    standardised: bool = True,
) -> Images:
    """Load a set, split and standardised.

    The test images are the set's own (of the digits: the last 397). Of the others a seeded draw validates. Pixels are
    standardised by mean and standard deviation of each channel of the training images.

    Args:
        data: Name of the set, as `resolve` takes it with its default sets.
        dtype: Type of the images.
        device: Device of images and classes.
        validation: Images that validate, as a share (a float below 1) or a number.
        rows: Number of images that train or validate, as in `image_sets.read`.
        test_rows: Number of test images, as in `image_sets.read`.
        standardised: False leaves the pixels as they are, from 0 to 1.

    Raises:
        GradtuneError: The set cannot be read (`resolve`, `image_sets.read`), or the draw leaves no image to train on.
    """
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
        return ((images - mean) / std if standardised else images).to(device, dtype)

    train, val = ((ready(x[rows]), y[rows].to(device)) for rows in (parts["train"], parts["val"]))
    return Images(*train, *val, ready(x_test), y_test.to(device), found.caption, name, found.sha256)
