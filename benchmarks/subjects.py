"""What is timed: a net on one batch, trained plainly by `torch.optim`, by a `Loop` of the library, or by `Tuner`.

Inputs are generated in the shape of the dataset that a row names: what a step costs hardly depends on their values.
Fetching a batch is left out on both sides.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from benchmarks.timing import Work
from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Loop, Method, Run
from gradtune.tuning.tuner import Tuner

Batch = tuple[Tensor, Tensor]
_SETTLED = 500  # steps after which a tuner that decides about replay is timed as it is


class Subject:
    """A net, its loss, a training batch and a validation batch: a `step.Problem` for any number of runs.

    The arguments are attributes of the same names.

    Args:
        net: The net.
        loss: `loss(output, y)`, the mean over a batch.
        train: Inputs and targets of the training batch.
        val: Inputs and targets of the validation batch.
        stationary: Whether the losses are declared independent of the step number, as those on all rows are.

    Attributes:
        layout: Where each parameter lies in the flat weights.
    """

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], train: Batch, val: Batch, stationary: bool) -> None:
        self.net, self.loss, self.train, self.val, self.stationary = net, loss, train, val, stationary
        self.layout, self._loss = Layout.of(net), batched(net, loss)

    def init(self, runs: int = 1) -> Tensor:
        """Return the net's own initial weights for every run, `[R, D]`."""
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
    """Make a classifier with cross entropy, on random inputs and labels.

    Args:
        net: The net.
        shape: Shape of one input.
        batch: Number of inputs in the training batch, and as many in the validation batch.
        device: Where the net and the batches lie.
        classes: Number of classes.
    """
    rng = torch.Generator().manual_seed(0)

    def draw() -> Batch:
        x = torch.rand(batch, *shape, generator=rng)
        return x.to(device), torch.randint(classes, (batch,), generator=rng).to(device)

    return Subject(net.to(device), cross_entropy, draw(), draw(), stationary=False)


def regression(net: nn.Module, rows: tuple[int, int], features: int, device: torch.device) -> Subject:
    """Make a regression with mean squared error, on all training rows at once.

    The targets can be learnt: on noise a tuned weight decay would shrink the weights to denormal numbers, on which
    processors are slow.

    Args:
        net: The net, with one output.
        rows: Number of training rows and of validation rows.
        features: Number of features of a row.
        device: Where the net and the rows lie.
    """
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(features, 1, generator=rng)

    def draw(n: int) -> Batch:
        x = torch.randn(n, features, generator=rng)
        return x.to(device), ((x @ direction).tanh() + 0.1 * torch.randn(n, 1, generator=rng)).to(device)

    return Subject(net.to(device), mse_loss, draw(rows[0]), draw(rows[1]), stationary=True)


def plain(subject: Subject, steps: int, make: Callable[..., torch.optim.Optimizer], **options: object) -> Work:
    """Prepare the bare training loop: `zero_grad`, loss, `backward`, `step`.

    Args:
        subject: What is trained. The loop has a copy of its net.
        steps: Training steps of one call.
        make: Makes the optimiser from the parameters.
        **options: Further arguments of `make`.
    """
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
    """Prepare a one-pass loop that goes on where the last call left it.

    Args:
        subject: What is trained.
        steps: Training steps of one call.
        rule: Update rule of the weights.
        hypers: The hyperparameters.
        method: The hypergradient method.
        trace: Whether the loop records its operations once and replays them.
        runs: Number of runs side by side.
    """
    loop = Loop(subject, rule, hypers, method, trace=trace)
    kept: list[Run] = [loop.start(subject.init(runs))]

    def call() -> None:
        kept[0] = loop.advance(kept[0], steps)

    return Work(call, steps)


def tuned(subject: Subject, steps: int, **arguments: Any) -> Work:
    """Prepare what a user calls: `Tuner.step`, once a training step, from its steady state on.

    A tuner that can replay its operations is asked to do so as soon as possible, and is stepped until it has decided.

    Args:
        subject: What is trained. The tuner has a copy of its net.
        steps: Training steps of one call.
        **arguments: Arguments of `Tuner` beyond model and loss.
    """
    if "replay" in inspect.signature(Tuner).parameters:
        arguments = {"replay": True, **arguments}
    tuner = Tuner(copy.deepcopy(subject.net), subject.loss, **arguments)

    def call() -> None:
        for _ in range(steps):
            tuner.step(subject.train, subject.val if tuner.needs_val else None)

    call()
    while tuner.steps < _SETTLED and not str(getattr(tuner, "replay", "on")).startswith(("on", "off")):
        call()
    return Work(call, steps)


def sampled(subject: Subject, times: Sequence[int], rule: Rule, hypers: Hypers, method: Method) -> Work:
    """Prepare a training that every call starts anew, with one step at each of some times.

    Args:
        subject: What is trained.
        times: Numbers of the steps that are taken.
        rule: Update rule of the weights.
        hypers: The hyperparameters.
        method: The hypergradient method.
    """
    loop = Loop(subject, rule, hypers, method)
    start = loop.start(subject.init())

    def call() -> None:
        run = start
        for t in times:
            run = loop.advance(run._replace(t=t), 1)

    return Work(call, len(times))
