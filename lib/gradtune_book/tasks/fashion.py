"""Small grey images as OnePass splits them (Section 4.2), and its one-hidden-layer net on them: Fashion-MNIST, MNIST in
its place, or scikit-learn's digits, which need no file."""

from __future__ import annotations

import numpy as np
import torch
from gradtune.nets.stacked import StackedMLP
from gradtune.tuning.streams import Resident
from torch import Tensor

from gradtune_book.data import image_sets
from gradtune_book.tasks.classification import Classification
from gradtune_book.tasks.images import Images

CAPTIONS = {
    "fashion": "Fashion-MNIST, 70000 images",
    "mnist": "MNIST in place of Fashion-MNIST, 70000 images",
    "digits": "scikit-learn's digits in place of Fashion-MNIST, 1797 images",
}
_VALIDATION = {"fashion": 10_000, "mnist": 10_000, "digits": 300}
_TEST_DIGITS = 300


def resolve(data: str) -> str:
    """The set that is used: "auto" is Fashion-MNIST where it is, else MNIST, else the digits; "embedded" the digits.
    Raises GradtuneError for an unknown name, and for a set asked for by name that is absent."""
    return image_sets.chosen(data, "fashion", "mnist", sets=tuple(CAPTIONS))


def load(name: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Images:
    """A set by name, as `[N, 1, size, size]`. Its test images are the set's own (the digits: the last 300); the last
    10,000 (digits: 300) of the others validate. Pixels are standardised by mean and standard deviation of all training
    and validation pixels."""
    name = resolve(name)
    found = image_sets.read(name, _TEST_DIGITS)
    (x, y), (x_test, y_test) = ((_numbers(pixels), classes.to(device)) for pixels, classes in (found.train, found.test))
    cut = len(x) - _VALIDATION[name]
    mean, std = x.mean(dtype=np.float64), x.std(dtype=np.float64)

    def ready(pixels: np.ndarray) -> Tensor:
        return torch.as_tensor((pixels - mean) / std, dtype=dtype, device=device)

    parts = ready(x[:cut]), y[:cut], ready(x[cut:]), y[cut:], ready(x_test), y_test
    return Images(*parts, CAPTIONS[name], name, found.sha256)


def _numbers(pixels: Tensor) -> np.ndarray:
    return pixels.numpy() if pixels.is_floating_point() else pixels.float().numpy()


def problem(images: Images, hidden: int = 50, batch: int = 50, order_seed: int = 0) -> Classification:
    """Cross-entropy of R nets pixels - hidden - 10 on mini-batches, the same for all runs.

    Batches of training go through an order drawn anew for every epoch from `order_seed`; those of validation through
    its images in order, so that an update sees as many of either kind.
    """
    images = images.flat()
    sizes = [images.x_train.shape[1], hidden, 10]

    def drawn(epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([order_seed, epoch]).permutation(len(images.y_train)))

    def in_turn(epoch: int) -> Tensor:
        return torch.arange(len(images.y_val))

    train = Resident(*images.train, batch, order_seed, "the training images", drawn)
    val = Resident(*images.val, batch, order_seed, "the validation images", in_turn)
    rows = max(len(images.y_test), len(images.y_val))
    return Classification(images, StackedMLP(sizes), train, val, rows)
