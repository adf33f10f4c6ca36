"""Six small problems of different kinds, each an ordinary module, a loss and three parts of data.

They train for a few hundred steps within a second or two, so that many trainings from many starts can be compared. A
module has no other preparation for hypergradients than any module of a user's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from gradtune.errors import GradtuneError, unknown
from gradtune_book.data import datasets, image_sets, text
from gradtune_book.tasks import images, uci

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Small:
    """One problem with its data, in float32.

    Attributes:
        name: Name of the problem, a key of `TASKS`.
        dataset: Name of the data set.
        caption: Data and net, for captions.
        sha256: Digest of what was read, "" for a generated set.
        train: Inputs and targets that train.
        val: Inputs and targets that validate.
        test: Inputs and targets of the test.
        make: Returns a new module.
        loss: Function of output and targets that returns their mean loss.
        batch: Rows of a batch; None for all rows.
    """

    name: str
    dataset: str
    caption: str
    sha256: str
    train: Pair
    val: Pair
    test: Pair
    make: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    batch: int | None

    def data(self, steps: int, seed: int) -> Any:
        """Return what `gradtune.tune` takes as training data for a training of `steps` steps."""
        return self.train

    def net(self, seed: int) -> nn.Module:
        """Return a module whose initial weights are drawn from `seed`; torch's own state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def to(self, device: torch.device) -> Small:
        """Return the same problem with its data on a device."""
        train, val, test = ((x.to(device), y.to(device)) for x, y in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)


class Words(nn.Module):
    """The vectors of the words before, side by side, a hidden layer, and a number for each word that may follow.

    Args:
        vocabulary: Number of words.
        context: Number of words that are seen.
        width: Length of a word's vector.
        hidden: Width of the hidden layer.
    """

    def __init__(self, vocabulary: int, context: int, width: int = 16, hidden: int = 32):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(context * width, hidden)
        self.next = nn.Linear(hidden, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.next(self.hidden(self.words(x).flatten(1)).tanh())
        return out


class Patches(nn.Module):
    """A transformer's encoder of one layer on the patches of an image, and a linear layer on their mean.

    Args:
        size: Pixels of a side of an image.
        side: Patches along a side.
        width: Length of a patch's vector.
    """

    def __init__(self, size: int, side: int = 4, width: int = 16):
        super().__init__()
        self.side, self.pixels = side, size // side
        self.embedded = nn.Linear(self.pixels**2, width)
        self.places = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.encoder = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.classes = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        k, p = self.side, self.pixels
        cut = x.view(-1, k, p, k, p).transpose(2, 3).reshape(-1, k * k, p * p)
        out: Tensor = self.classes(self.encoder(self.embedded(cut) + self.places).mean(1))
        return out


def convolutional(size: int) -> nn.Module:
    """Return two convolutions with pooling and one linear layer, for grey images with `size` pixels a side."""
    first = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(12 * (size // 4) ** 2, 10))


def normed(features: int, width: int = 48) -> nn.Module:
    """Return a net for regression of two hidden layers, each with batch norm and dropout."""
    layers: list[nn.Module] = []
    for inputs in (features, width):
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1)]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _layers(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def windows(tokens: Tensor, context: int) -> Pair:
    """Return the words before each word of a text `[N, context]`, and the words `[N]`."""
    rows = tokens.unfold(0, context + 1, 1)
    return rows[:, :context].contiguous(), rows[:, context].contiguous()


def _tables(dataset: str) -> Small:
    """A net with one hidden layer on a table, all rows at each step."""
    return _regression("tables", dataset, lambda features: _layers(features, 50, 1), None, "one hidden layer")


def _norm(dataset: str) -> Small:
    """A net with batch norm and dropout on a table."""
    return _regression("norm", dataset, normed, 64, "batch norm and dropout")


def _regression(name: str, dataset: str, make: Callable[[int], nn.Module], batch: int | None, what: str) -> Small:
    table = uci.load(dataset, dtype=torch.float32, train_share=0.7)
    features = table.x_train.shape[1]
    parts = (table.x_train, table.y_train), (table.x_val, table.y_val), (table.x_test, table.y_test)
    caption = f"{datasets.caption(dataset)}, {what}"
    return Small(name, dataset, caption, table.sha256, *parts, lambda: make(features), mse_loss, batch)


def _images(dataset: str) -> Small:
    """A net with two hidden layers on few images."""
    return _classes("images", dataset, lambda size: nn.Sequential(nn.Flatten(), _layers(size * size, 64, 64, 10)), 100)


def _convolutions(dataset: str) -> Small:
    """A small convolutional net."""
    return _classes("convolutions", dataset, convolutional, 64)


def _attention(dataset: str) -> Small:
    """A transformer's encoder on the patches of images."""
    return _classes("attention", dataset, Patches, 64)


def _classes(name: str, dataset: str, make: Callable[[int], nn.Module], batch: int) -> Small:
    few = {} if dataset == "digits" else {"rows": 3000, "test_rows": 1000, "validation": 1000}
    found = images.load(dataset, **few)  # type: ignore[arg-type]
    size = found.x_train.shape[-1]
    caption = f"{found.caption}, {TITLES[name]}"
    parts = found.train, found.val, found.test
    return Small(name, dataset, caption, found.sha256, *parts, lambda: make(size), cross_entropy, batch)


def _words(dataset: str, context: int = 6) -> Small:
    """The next word of a text from the six before it."""
    sizes = (500, 20_000, 3_000) if dataset == "ptb" else (200, 6_000, 1_500)
    found = text.load(dataset, *sizes)
    train, val, test = (windows(tokens, context) for tokens in (found.train, found.val, found.test))
    make = lambda: Words(found.vocabulary, context)  # noqa: E731
    caption = f"{found.caption}, {TITLES['words']}"
    return Small("words", found.name, caption, found.sha256, train, val, test, make, cross_entropy, 128)


TITLES = {
    "tables": "one hidden layer on a table",
    "images": "two hidden layers on images",
    "convolutions": "convolutions on images",
    "words": "word vectors and a hidden layer",
    "attention": "attention on images",
    "norm": "batch norm and dropout on a table",
}
"""The problems by name, and what they are."""

_MAKE = {
    "tables": _tables,
    "images": _images,
    "convolutions": _convolutions,
    "words": _words,
    "attention": _attention,
    "norm": _norm,
}
_SETS = {
    "tables": ("energy", "diabetes"),
    "images": ("mnist", "digits"),
    "convolutions": ("digits", "digits"),
    "words": ("ptb", "markov"),
    "attention": ("fashion", "digits"),
    "norm": ("concrete", "friedman"),
}


def resolve(name: str, data: str) -> str:
    """Return the name of the data set that a problem uses.

    Args:
        name: Name of the problem, a key of `TITLES`.
        data: "real" is the real set, present or not; "embedded" is one that needs no file; "auto" is the real set where
            it is present, else the embedded one.

    Raises:
        GradtuneError: The problem or the choice is unknown.
    """
    return chosen(name, data, _SETS)


def chosen(name: str, data: str, sets: Mapping[str, tuple[str, str]]) -> str:
    """Return the name of the data set that a problem uses, as `resolve`, of any table of problems.

    Args:
        name: Name of the problem, a key of `sets`.
        data: As in `resolve`.
        sets: The real set of each problem, and the one that needs no file.

    Raises:
        GradtuneError: The problem or the choice is unknown.
    """
    if name not in sets:
        raise unknown("small problem", name, sets)
    if data not in ("auto", "embedded", "real"):
        raise unknown("choice of data", data, ["auto", "embedded", "real"])
    real, embedded = sets[name]
    if data != "auto":
        return real if data == "real" else embedded
    if real == "ptb":
        return text.resolve("auto")
    kind = images if real in image_sets.TITLES else datasets
    return kind.resolve("auto", real, embedded)


def check(name: str, dataset: str, sets: Mapping[str, tuple[str, str]]) -> None:
    """Check that a problem can train on a data set.

    Raises:
        GradtuneError: The problem is unknown, or the set is none of its own.
    """
    if name not in sets:
        raise unknown("small problem", name, sets)
    if dataset not in sets[name]:
        raise GradtuneError(f"{name} trains on {' or '.join(dict.fromkeys(sets[name]))}, not on {dataset!r}")


@lru_cache(maxsize=len(TITLES))
def load(name: str, dataset: str) -> Small:
    """Return a problem with its data.

    Args:
        name: Name of the problem, a key of `TITLES`.
        dataset: Name of its data set, as `resolve` gives it.

    Raises:
        GradtuneError: The problem is unknown, the set is none of its own, or its files are absent or damaged.
    """
    check(name, dataset, _SETS)
    return _MAKE[name](dataset)
