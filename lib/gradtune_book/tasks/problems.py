"""The nine problems on which all methods are compared at equal cost, in the form of `small.Small`.

They differ in what makes methods differ: regression and classes, dense layers and convolutions, batch norm, dropout,
text, and a stream whose classes are renumbered on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from gradtune.nets import plain
from gradtune_book.data import datasets, text
from gradtune_book.tasks import images, small, uci
from gradtune_book.tasks.residual import Residual
from gradtune_book.tasks.small import Small

TITLES = {
    "energy": "Energy, one hidden layer",
    "kin8nm": "Kin8nm, one hidden layer",
    "mnist": "MNIST, two hidden layers",
    "fashion": "Fashion-MNIST, two hidden layers",
    "lenet": "Fashion-MNIST, LeNet",
    "digits": "digits, convolutions with batch norm and dropout",
    "residual": "CIFAR-10, a small residual net",
    "words": "Penn Treebank, the next word",
    "stream": "Fashion-MNIST, classes renumbered five times",
}
"""The problems by name, and what they are on their real sets."""

STREAM = "stream"
"""The problem whose data change on the way, so that no validation rows stand for what comes next."""

SETS = {
    "energy": ("energy", "diabetes"),
    "kin8nm": ("kin8nm", "friedman"),
    "mnist": ("mnist", "digits"),
    "fashion": ("fashion", "digits"),
    "lenet": ("fashion", "digits"),
    "digits": ("digits", "digits"),
    "residual": ("cifar10", "digits"),
    "words": ("ptb", "markov"),
    "stream": ("fashion", "digits"),
}
"""The real set of each problem, and the one that needs no file."""

_ROWS = 64  # of a batch
PARTS = 6
"""Parts of the stream. Each has a numbering of its classes of its own."""


@dataclass(frozen=True)
class Stream(Small):
    """Images whose classes are renumbered at the start of each of `PARTS` parts of a training.

    `train` has the numbers of the set; `val` and `test` have those of the last part. So the losses at the end say how
    well a net has learned the last numbering after all the others.
    """

    def data(self, steps: int, seed: int) -> Any:
        """Return the batches of a training, `steps` of them; a shorter training has shorter parts."""
        x, y = self.train
        order = np.random.default_rng([seed, 31])
        out = []
        for t in range(steps):
            rows = torch.from_numpy(order.integers(len(x), size=_ROWS)).to(x.device)
            out.append((x[rows], numbering(t * PARTS // steps).to(y.device)[y[rows]]))
        return out


def numbering(part: int) -> torch.Tensor:
    """Return the new number of each of ten classes in a part of the stream, `[10]`; the first part has the old ones."""
    return torch.from_numpy(np.random.default_rng([part, 32]).permutation(10) if part else np.arange(10))


def convolutional(size: int) -> nn.Module:
    """Return a net of two convolutions with batch norm and dropout before the linear layer, for grey images.

    Args:
        size: Pixels of a side of an image.
    """
    first = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * (size // 4) ** 2, 10))


def _net(name: str, size: int, channels: int) -> nn.Module:
    if name in ("mnist", "fashion", STREAM):
        return nn.Sequential(nn.Flatten(), plain.mlp([channels * size * size, 64, 64, 10], nn.ReLU))
    if name == "lenet" and size >= 16:
        return plain.lenet(size, channels)
    if name == "residual" and channels == 3:
        return Residual(channels)
    return convolutional(size)


def _regression(name: str, dataset: str) -> Small:
    table = uci.load(dataset, dtype=torch.float32, train_share=0.7)
    features = table.x_train.shape[1]
    parts = (table.x_train, table.y_train), (table.x_val, table.y_val), (table.x_test, table.y_test)
    make = lambda: plain.mlp([features, 50, 1], nn.ReLU)  # noqa: E731
    return Small(name, dataset, datasets.caption(dataset), table.sha256, *parts, make, mse_loss, _ROWS)


def _classes(name: str, dataset: str) -> Small:
    few: dict[str, Any] = {} if dataset == "digits" else {"rows": 6000, "test_rows": 2000, "validation": 1000}
    if name == "residual" and dataset != "digits":
        few = {"rows": 5000, "test_rows": 1000, "validation": 1000}
    found = images.load(dataset, **few)
    channels, size = found.x_train.shape[1], found.x_train.shape[-1]
    make = lambda: _net(name, size, channels)  # noqa: E731
    first = name, dataset, found.caption, found.sha256, found.train
    if name != STREAM:
        return Small(*first, found.val, found.test, make, cross_entropy, _ROWS)
    last = numbering(PARTS - 1)
    val, test = ((x, last[y]) for x, y in (found.val, found.test))
    return Stream(*first, val, test, make, cross_entropy, None)


def _words(dataset: str, context: int = 6) -> Small:
    found = text.load(dataset, *((500, 40_000, 4_000) if dataset == "ptb" else (200, 6_000, 1_500)))
    train, val, test = (small.windows(tokens, context) for tokens in (found.train, found.val, found.test))
    make = lambda: small.Words(found.vocabulary, context)  # noqa: E731
    return Small("words", found.name, found.caption, found.sha256, train, val, test, make, cross_entropy, 128)


def resolve(name: str, data: str) -> str:
    """Return the name of the data set that a problem uses.

    Args:
        name: Name of the problem, a key of `TITLES`.
        data: "real", "embedded" or "auto", as in `small.resolve`.

    Raises:
        GradtuneError: The problem or the choice is unknown.
    """
    return small.chosen(name, data, SETS)


@lru_cache(maxsize=len(TITLES))
def load(name: str, dataset: str) -> Small:
    """Return a problem with its data.

    Args:
        name: Name of the problem, a key of `TITLES`.
        dataset: Name of its data set, as `resolve` gives it.

    Raises:
        GradtuneError: The problem is unknown, the set is none of its own, or its files are absent or damaged.
    """
    small.check(name, dataset, SETS)
    if name == "words":
        return _words(dataset)
    return (_regression if name in ("energy", "kin8nm") else _classes)(name, dataset)
