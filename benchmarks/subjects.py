"""What is timed: a net on one batch, trained plainly by `torch.optim` or by a `Loop` of the library.

Inputs are generated in the shape of the data set that a row names: what a step costs hardly depends on their values.
Fetching a batch is left out on both sides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Loop, Method, Run
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.timing import Work

Batch = tuple[Tensor, Tensor]


class Subject:
    """A net, its loss, a training batch and a validation batch; a `core.Problem` for any number of runs."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], train: Batch, val: Batch, stationary: bool) -> None:
        self.net, self.loss, self.train, self.val, self.stationary = net, loss, train, val, stationary
        self.layout, self._loss = Layout.of(net), batched(net, loss)

    def init(self, runs: int = 1) -> Tensor:
        """The net's own initial weights for every run, `[R, D]`."""
        return self.layout.flatten(dict(self.net.named_parameters())).expand(runs, -1).clone()

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self._loss(w, *self.train)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self._loss(w, *self.val)

    def batch(self, t: int) -> tuple[Tensor, ...]:
        return *self.train, *self.val

    def on(self, batch: tuple[Tensor, ...]) -> Subject:
        other = copy.copy(self)
        other.train, other.val = batch[:2], batch[2:]  # type: ignore[assignment]
        return other

    def hypers(self, hypers: Sequence[Hyper], horizon: int | None = None) -> Hypers:
        return Hypers(hypers, self.layout.sizes, horizon)


def classifier(net: nn.Module, shape: Sequence[int], batch: int, device: torch.device, classes: int = 10) -> Subject:
    """`net` on images or vectors of a shape, cross entropy; a validation batch of the same size."""
    rng = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        x = torch.rand(batch, *shape, generator=rng)
        return x.to(device), torch.randint(classes, (batch,), generator=rng).to(device)

    return Subject(net.to(device), cross_entropy, draw(), draw(), stationary=False)


def regression(net: nn.Module, rows: tuple[int, int], features: int, device: torch.device) -> Subject:
    """`net` on all training rows at once, mean squared error; rows: of training and validation.

    The targets can be learnt: on noise a tuned weight decay would shrink the weights to denormal numbers, on which
    processors are slow.
    """
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(features, 1, generator=rng)

    def draw(n: int) -> Batch:
        x = torch.randn(n, features, generator=rng)
        return x.to(device), ((x @ direction).tanh() + 0.1 * torch.randn(n, 1, generator=rng)).to(device)

    return Subject(net.to(device), mse_loss, draw(rows[0]), draw(rows[1]), stationary=True)


def plain(subject: Subject, steps: int, make: Callable[..., torch.optim.Optimizer], **options: object) -> Work:
    """The bare training loop: zero_grad, loss, backward, step."""
    net, (x, y) = copy.deepcopy(subject.net), subject.train
    optimiser = make(net.parameters(), **options)

    def call() -> None:
        for _ in range(steps):
            optimiser.zero_grad()
            subject.loss(net(x), y).backward()
            optimiser.step()

    return Work(call, steps)


def looped(
    subject: Subject, steps: int, rule: Rule, hypers: Hypers, method: Method, trace: bool = False, runs: int = 1
) -> Work:
    """A one-pass loop that goes on where the last call left it."""
    loop = Loop(subject, rule, hypers, method, trace=trace)
    kept: list[Run] = [loop.start(subject.init(runs))]

    def call() -> None:
        kept[0] = loop.advance(kept[0], steps)

    return Work(call, steps)


def sampled(subject: Subject, times: Sequence[int], rule: Rule, hypers: Hypers, method: Method) -> Work:
    """A restarted training, one step at each of the `times`."""
    loop = Loop(subject, rule, hypers, method)
    start = loop.start(subject.init())

    def call() -> None:
        run = start
        for t in times:
            run = loop.advance(run._replace(t=t), 1)

    return Work(call, len(times))
