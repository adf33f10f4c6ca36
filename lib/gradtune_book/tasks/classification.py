"""Images in classes by R nets, trained on minibatches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradtune.nets.draws import number
from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.nets.stacked import StackedMLP
from gradtune.recursion.problems import Problem
from gradtune.tuning.streams import Batch, Resident
from gradtune_book.tasks.images import Images


class Nets(Protocol):
    """R nets with one layout of their weights `w [R, D]`.

    Attributes:
        layout: Where each parameter lies in the weights of a net.
    """

    layout: Layout

    def fresh(self) -> nn.Module:
        """One net with newly drawn weights."""
        ...

    def __call__(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross entropies `[R]`, differentiable."""
        ...

    def measured(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross entropies and shares of errors, `[R]` each, without derivatives."""
        ...


class Modules:
    """`Nets` of any module, under `vmap`.

    Args:
        make: Gives one net with newly drawn weights.
        like: Tensor with the type and the device of the inputs.
        shared_batch: Whether all runs see the same x and y. With False x and y have a leading dimension R, but not in
            `measured`.

    Attributes:
        fresh: The argument `make`.
        module: The net that all runs share.
        layout: Where each parameter lies in the weights of a net.
    """

    def __init__(self, make: Callable[[], nn.Module], like: Tensor, shared_batch: bool = True) -> None:
        self.fresh = make
        self.module = make().to(like)
        self._loss = batched(self.module, cross_entropy, shared_batch=shared_batch)
        self._measured = batched(self.module, cross_entropy), batched(self.module, _error)
        self.layout = self._loss.layout

    def __call__(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._loss(w, x, y)

    @torch.no_grad()
    def measured(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, error = (f(w, x, y, mode="eval") for f in self._measured)
        return loss, error


def _error(output: Tensor, y: Tensor) -> Tensor:
    return (output.argmax(-1) != y).to(output.dtype).mean()


class Batches(Protocol):
    """Batches by number, as `tuning.streams` gives them."""

    def at(self, k: int) -> Batch: ...


class Classification:
    """Cross entropies `[R]` (nats) of R nets on batch t of `train` and of `val`.

    The losses have no penalty: weight decay belongs to the update rule, which for plain gradient descent is the same.
    The initialisation is torch's default.

    Args:
        images: The set, whole; `evaluate` goes through it.
        nets: The R nets.
        train: Batches of the training loss.
        val: Batches of the validation loss.
        rows: Number of images that are evaluated at once.

    Attributes:
        layout: The layout of `nets`.
        stationary: False, as the losses depend on t.
    """

    stationary = False

    def __init__(self, images: Images, nets: Nets, train: Batches, val: Batches, rows: int = 2500) -> None:
        self.images, self.nets, self.train, self.val, self.rows = images, nets, train, val, rows
        self.layout = nets.layout

    def init(self, seeds: Sequence[int]) -> Tensor:
        """Initial weights `[R, D]`, one row a seed; drawn on the CPU in float32 and then cast."""
        rows = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                rows.append(self.layout.flatten(dict(self.nets.fresh().named_parameters())))
        return torch.stack(rows).to(self.images.x_train)

    def batch(self, t: int) -> tuple[Tensor, ...]:
        """Images and classes that the losses of step t read: of the training batch and, if it changes, of the other."""
        return (*self.train.at(t), *self.val.at(t))

    def on(self, batch: tuple[Tensor, ...]) -> Problem:
        """The losses on the tensors of `batch`, whatever t."""
        return OnBatch(self, batch)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.nets(w, *self.train.at(t))

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.nets(w, *self.val.at(t))

    @torch.no_grad()
    def evaluate(self, w: Tensor, part: str) -> tuple[Tensor, Tensor]:
        """Mean cross entropy and share of errors, `[R]` each, on all images of a part: "train", "val" or "test"."""
        x, y = getattr(self.images, part)
        loss, error = w.new_zeros(len(w)), w.new_zeros(len(w))
        for pixels, classes in zip(x.split(self.rows), y.split(self.rows), strict=True):
            here = self.nets.measured(w, pixels, classes)
            share = len(classes) / len(y)
            loss, error = loss + share * here[0], error + share * here[1]
        return loss, error


@dataclass(frozen=True)
class OnBatch:
    """The losses of a `Classification` on one batch.

    Attributes:
        task: Whose losses they are.
        batch: As `task.batch` gives it; where it holds the training batch alone, the validation loss is that of `task`.
        stationary: True, as the losses do not depend on t.
    """

    task: Classification
    batch: tuple[Tensor, ...]
    stationary: ClassVar[bool] = True

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.task.nets(w, *self.batch[:2])

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.task.nets(w, *self.batch[2:]) if self.batch[2:] else self.task.val_loss(w, lam, t)


def fully_connected(
    images: Images, hidden: Sequence[int], batch_size: int, val_batch_size: int, seed: int, stacked: bool = True
) -> Classification:
    """ReLU nets pixels - hidden - classes on minibatches that all runs share (Clip paper, Section 4.2).

    Batch t of the training images, and of the validation images, is a function of (seed, t): each epoch goes through a
    new order.

    Args:
        images: The set.
        hidden: Widths of the hidden layers.
        batch_size: Number of images of a training batch.
        val_batch_size: Number of images of a validation batch.
        seed: Seed of the order.
        stacked: Use `StackedMLP` in place of the module under `vmap`. They differ by rounding.
    """
    images = images.flat()
    net = StackedMLP([images.x_train.shape[1], *hidden, int(images.y_train.max()) + 1])
    train = Resident(*images.train, batch_size, number(seed, 1), "the training images")
    val = Resident(*images.val, val_batch_size, number(seed, 2), "the validation images")
    return Classification(images, net if stacked else Modules(net.fresh, images.x_train), train, val)
