"""A stream of ten-class tasks, one after the other, for continual training (MetaOptimize, Section 7.2).

The paper cuts CIFAR-100 into ten tasks of ten classes. Where CIFAR-100 is absent, a task is one of three sets of ten
classes, MNIST, Fashion-MNIST and CIFAR-10 in turn, each with images that no other task has. From the second round on
the classes of a set are numbered anew, by a permutation that belongs to the task. The digits, which need no file, make
tasks in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from gradtune.errors import GradtuneError, unknown
from gradtune_book.data import image_sets
from gradtune_book.data.image_sets import Rows

CLASSES = 10
MIXED = ("mnist", "fashion", "cifar10")
"""The sets that the tasks of "mixed" take in turn."""

TITLES = {
    "cifar100": "CIFAR-100, ten classes a task",
    "mixed": "MNIST, Fashion-MNIST and CIFAR-10 in turn, classes renumbered, in place of CIFAR-100",
    "digits": "scikit-learn's digits, classes renumbered, in place of CIFAR-100",
}
"""What captions call each stream."""

_TEST_DIGITS = 397


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: Set of images that it is made of.
        x: Images that train, `[N, channels, size, size]`, standardised.
        y: Their classes `[N]`, from 0 to 9.
        x_test: Test images.
        y_test: Their classes.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@dataclass(frozen=True)
class Tasks:
    """Tasks in the order in which they come.

    Attributes:
        name: Name of the stream, a key of `TITLES`.
        tasks: The tasks.
        sha256: Digest of what was read, "" where a set has none.
    """

    name: str
    tasks: tuple[Task, ...]
    sha256: str

    @property
    def caption(self) -> str:
        """Name and size, for captions."""
        return f"{TITLES[self.name]}, {len(self.tasks)} tasks of {len(self.tasks[0].y)} images"

    @property
    def shape(self) -> tuple[int, int]:
        """Channels and pixels of a side of an image."""
        return self.tasks[0].x.shape[1], self.tasks[0].x.shape[2]


def resolve(data: str) -> str:
    """Return the name of the stream that a study uses.

    Args:
        data: "auto" is "cifar100" where it is present, else "mixed" where all its sets are, else "digits". "embedded"
            is "digits". Anything else is the stream of that name.

    Raises:
        GradtuneError: `data` is an unknown name, or a set that it needs is absent.
    """
    if data == "auto":
        if image_sets.present("cifar100"):
            return "cifar100"
        return "mixed" if all(map(image_sets.present, MIXED)) else "digits"
    data = "digits" if data == "embedded" else data
    if data not in TITLES:
        raise unknown("stream of tasks", data, [*TITLES, "auto", "embedded"])
    for name in MIXED if data == "mixed" else (data,):
        image_sets.need(name)
    return data


@lru_cache(maxsize=2)
def load(name: str, count: int, images: int, test_images: int, size: int) -> Tasks:
    """Return the tasks of a stream.

    Images of 28 x 28 are padded to 32 x 32, grey ones get three equal channels, and all are averaged over squares of
    pixels down to `size`. The digits keep one channel of 8 x 8. Pixels are standardised by one mean and one deviation
    of all images that train.

    Args:
        name: Name of the stream, a key of `TITLES`.
        count: Number of tasks.
        images: Number of images that train in each task, a multiple of 10.
        test_images: Number of its test images, a multiple of 10; of the digits all are taken.
        size: Pixels of a side; a divisor of 32, or 8 for the digits.

    Raises:
        GradtuneError: The stream is unknown, its files are absent or damaged, or it cannot give so many images, tasks
            or pixels.
    """
    resolve(name)
    if (name == "digits" and size != 8) or size < 4 or 32 % size:
        raise GradtuneError(f"{name} was asked for with {size} pixels a side; expected 8 of the digits, else 8, 16, 32")
    sets = {"mixed": MIXED, "digits": ("digits",), "cifar100": ("cifar100",)}[name]
    rounds = -(-count // (len(sets) if name != "cifar100" else count))
    read = {each: _read(each, images, test_images, rounds, size) for each in sets}
    make = _of_classes if name == "cifar100" else _renumbered
    tasks = [make(sets[k % len(sets)], read[sets[k % len(sets)]], k, k // len(sets), rounds) for k in range(count)]
    mean, std = _statistics([task.x for task in tasks])
    ready = tuple(
        Task(t.name, ((t.x - mean) / std).float(), t.y, ((t.x_test - mean) / std).float(), t.y_test) for t in tasks
    )
    return Tasks(name, ready, "".join(found[2] for found in read.values()) if len(read) == 1 else "")


def _read(name: str, images: int, test_images: int, rounds: int, size: int) -> tuple[Rows, Rows, str]:
    if name == "digits":
        found = image_sets.read(name, _TEST_DIGITS, rows=images * rounds)
    else:
        many = CLASSES if name == "cifar100" else rounds
        tests = test_images * CLASSES if name == "cifar100" else test_images
        found = image_sets.read(name, rows=images * many, test_rows=tests)
    train, test = ((_small(x / found.top, size), y) for x, y in (found.train, found.test))
    return train, test, found.sha256


def _small(x: Tensor, size: int) -> Tensor:
    if x.shape[-1] == 8:
        return x.double()
    edge = (32 - x.shape[-1]) // 2
    wide = pad(x.double(), (edge,) * 4).expand(-1, 3, -1, -1)
    return avg_pool2d(wide, 32 // size)


def _renumbered(name: str, found: tuple[Rows, Rows, str], number: int, turn: int, rounds: int) -> Task:
    """Take every `rounds`-th image of each class; from the second turn on the classes have other numbers."""
    (x, y), (x_test, y_test), _ = found
    new = torch.arange(CLASSES)
    if turn:
        new = torch.from_numpy(np.random.RandomState(1000 + number).permutation(CLASSES))
    of_classes = [torch.nonzero(y == c)[turn::rounds, 0] for c in range(CLASSES)]
    rows = torch.cat(of_classes).sort().values
    return Task(name, x[rows], new[y[rows]], x_test, new[y_test])


def _of_classes(name: str, found: tuple[Rows, Rows, str], number: int, turn: int, rounds: int) -> Task:
    """Take the classes from `10 number` on."""
    low = CLASSES * number
    if low >= 100:
        raise GradtuneError(f"CIFAR-100 gives ten tasks of ten classes; task {number + 1} was asked for")
    (x, y), (x_test, y_test), _ = found
    train, test = ((part >= low) & (part < low + CLASSES) for part in (y, y_test))
    return Task(name, x[train], y[train] - low, x_test[test], y_test[test] - low)


def _statistics(parts: list[Tensor]) -> tuple[float, float]:
    x = torch.cat([each.flatten() for each in parts])
    return float(x.mean()), float(x.std())


def order(seed: int, task: int, images: int) -> Tensor:
    """Return the order in which a seed sees the images of a task, image numbers `[images]`."""
    return torch.from_numpy(np.random.default_rng([seed, task]).permutation(images))


def net(channels: int, size: int, width: int, seed: int) -> nn.Sequential:
    """Return two convolutions with pooling and one linear layer of ten outputs, which all tasks share.

    Args:
        channels: Channels of an image.
        size: Pixels of a side, a multiple of 4.
        width: Channels after the first convolution; the second gives twice as many.
        seed: Draws the weights; torch's own state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        second = nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(2 * width * (size // 4) ** 2, CLASSES))


def blocks(module: nn.Sequential) -> list[list[nn.Parameter]]:
    """Return the parameters of the convolutions, and those of the last layer."""
    return [list(module[:-1].parameters()), list(module[-1].parameters())]
