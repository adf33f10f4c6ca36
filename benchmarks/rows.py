"""The rows of the table, each with its goal, and the series that show how cost grows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim import SGD, AdamW

from benchmarks import peers
from benchmarks.subjects import Subject, classifier, looped, plain, regression, sampled
from benchmarks.timing import Pair, Work
from gradtune import methods
from gradtune.nets.plain import lenet, mlp
from gradtune.nets.wide_resnet import wrn
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Method


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Name by which the row is asked for and recorded.
        title: Name that the table shows.
        make: `make(device, quick)` prepares both sides. With `quick` a repeat has fewer steps or a smaller batch.
        goal: Largest ratio that is good enough. None for a row of a growth series.
        against: What the cost is relative to.
        series: Name of the growth series, "" for a row with a goal.
        x: Position in the growth series.
    """

    name: str
    title: str
    make: Callable[[torch.device, bool], Pair]
    goal: float | None = None
    against: str = "torch.optim step"
    series: str = ""
    x: int = 0


# --- OHO and FDS ------------------------------------------------------------------------------------------------------


def _oho(device: torch.device, quick: bool, width: int = 128) -> Pair:
    net = classifier(mlp([784, width, width, width, 10]), [784], 100, device)
    steps = 3 if quick else 30
    hypers = net.hypers([Hyper("lr", 1e-3), Hyper("weight_decay", 1e-4)])
    base = plain(net, steps, SGD, lr=1e-3, weight_decay=1e-4)
    return Pair(base, looped(net, steps, sgd(momentum=False), hypers, methods.oho(), trace=True))


def _schedule(windows: int, tuned: bool) -> list[Hyper]:
    """Declare the hyperparameters of FDS: `windows` learning rates, one momentum and one weight decay, tuned or not."""
    return [
        Hyper("lr", 0.01, windows=windows),
        Hyper("momentum", 0.9, tuned=tuned),
        Hyper("weight_decay", 5e-4, tuned=tuned),
    ]


def _fds_lenet(windows: int, device: torch.device, quick: bool) -> Pair:
    """Prepare ten (quick: two) evenly spaced steps of a training of 250.

    On average `(windows + 1) / 2` columns are in use. The one outer update in 250 steps, less than half a per cent of
    the cost, is left out.
    """
    net, count = classifier(lenet(), [1, 28, 28], 128, device), 2 if quick else 10
    hypers = net.hypers(_schedule(windows, False), 250)
    times = [(2 * k + 1) * 125 // count for k in range(count)]
    base = plain(net, count, SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Pair(base, sampled(net, times, sgd(), hypers, methods.fds(250)))


def _fds_wrn(device: torch.device, quick: bool) -> Pair:
    """Prepare the dearest step, in the last of seven windows, when all 7 + 1 + 1 columns are in use."""
    net = classifier(wrn(), [3, 32, 32], 8 if quick else 256, device)
    hypers = net.hypers(_schedule(7, True), 7)
    base = plain(net, 1, SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
    return Pair(base, sampled(net, [6], sgd(), hypers, methods.fds(7)))


# --- OnePass ----------------------------------------------------------------------------------------------------------


def _energy(device: torch.device) -> Subject:
    return regression(mlp([8, 50, 1]), (614, 78), 8, device)


def _three(per_weight: bool = False) -> list[Hyper]:
    return [
        Hyper("lr", 0.01, "log10", "weight" if per_weight else "global", bounds=(1e-10, 1.0)),
        Hyper("weight_decay", 1e-4, "log10"),
        Hyper("momentum", 0.5, "sigmoid"),
    ]


def _only_lr() -> list[Hyper]:
    return [Hyper("lr", 1e-3, "log10"), Hyper("weight_decay", 1e-4, tuned=False), Hyper("momentum", 0.5, tuned=False)]


def _uci(hypers: Callable[[], list[Hyper]], method: Callable[[], Method], device: torch.device, quick: bool) -> Pair:
    net, steps = _energy(device), 20 if quick else 400
    base = plain(net, steps, SGD, lr=0.01, momentum=0.5, weight_decay=1e-4)
    return Pair(base, looped(net, steps, sgd(), net.hypers(hypers()), method(), trace=True))


# --- MetaOptimize -----------------------------------------------------------------------------------------------------


def _metaoptimize(alone: bool, device: torch.device, quick: bool) -> Pair:
    """Prepare the MLP 784-768-512-10 (1,001,738 weights), batch 128; `alone` leaves the gradient out of a step."""
    if importlib.util.find_spec("gradtune.optim.metaoptimize") is None:
        raise peers.Absent("gradtune.optim.metaoptimize is not there")
    from gradtune.optim.metaoptimize import MetaOptimize

    net = classifier(mlp([784, 768, 512, 10]), [784], 128, device)
    work, steps = _update if alone else plain, 3 if quick else 30
    base = work(net, steps, AdamW, lr=1e-3, foreach=True)
    return Pair(base, work(net, steps, MetaOptimize, lr=1e-3, base="adamw", meta="lion"))


def _update(subject: Subject, steps: int, make: Callable[..., torch.optim.Optimizer], **options: object) -> Work:
    """Prepare `optimiser.step()` alone, on gradients that stay."""
    params = [p.detach().clone().requires_grad_() for p in subject.net.parameters()]
    rng = torch.Generator().manual_seed(1)
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng).to(p)
    optimiser = make(params, **options)

    def call() -> None:
        for _ in range(steps):
            optimiser.step()

    return Work(call, steps)


# --- how cost grows ---------------------------------------------------------------------------------------------------


def _columns(count: int, device: torch.device, quick: bool) -> Pair:
    """Prepare forward mode over `count` windows of the learning rate, all columns in use.

    The net is the MLP 784-128x3-10, with batches of 100.
    """
    net, steps = classifier(mlp([784, 128, 128, 128, 10]), [784], 100, device), 2 if quick else 10
    hypers = [Hyper("lr", 1e-3, windows=count), Hyper("weight_decay", 1e-4, tuned=False)]
    base = plain(net, steps, SGD, lr=1e-3, weight_decay=1e-4)
    times = [count - 1] * steps  # the last window: every column is in use
    return Pair(base, sampled(net, times, sgd(momentum=False), net.hypers(hypers, count), methods.fds(10**9)))


def _runs(count: int, device: torch.device, quick: bool) -> Pair:
    """Prepare `count` runs of OnePass WD+LR+M side by side, against one plain run."""
    net, steps = _energy(device), 20 if quick else 100
    base = plain(net, steps, SGD, lr=0.01, momentum=0.5, weight_decay=1e-4)
    return Pair(base, looped(net, steps, sgd(), net.hypers(_three()), methods.onepass(), trace=True, runs=count))


def _growth(series: str, x: int, title: str, make: Callable[[torch.device, bool], Pair]) -> Row:
    return Row(f"{series}-{x}", title, make, series=series, x=x)


ROWS = (
    Row("oho", "OHO lr + l2, MLP 784-128x3-10, batch 100", _oho, 5.0),
    *(
        Row(f"fds-{n}", f"FDS, LeNet, batch 128, {n} window{'s' * (n > 1)}", partial(_fds_lenet, n), goal)
        for n, goal in ((1, 2.3), (5, 5.0), (10, 8.0), (50, 35.0))
    ),
    Row("fds-wrn", "FDS, WRN-16-1, batch 256, 7+1+1 columns", _fds_wrn, 30.0),
    Row("onepass", "OnePass WD+LR+M, UCI Energy", partial(_uci, _three, methods.onepass), 2.2),
    Row("onepass-hdlr", "OnePass WD+HDLR+M, UCI Energy", partial(_uci, partial(_three, True), methods.onepass), 2.5),
    Row("diff-through-opt", "Diff-through-Opt (5), UCI Energy", partial(_uci, _three, methods.diff_through_opt), 2.2),
    Row("baydin", "Baydin, UCI Energy", partial(_uci, _only_lr, methods.baydin), 1.8),
    Row(
        *("metaoptimize", "MetaOptimize(AdamW, Lion), 1M weights: step", partial(_metaoptimize, False), 1.12),
        against="foreach AdamW step",
    ),
    Row(
        *("metaoptimize-alone", "MetaOptimize(AdamW, Lion), optimiser alone", partial(_metaoptimize, True), 1.4),
        against="foreach AdamW alone",
    ),
)

PEERS = tuple(
    Row(
        f"peer-{name}",
        f"Diff-through-Opt (5) and {name}",
        partial(peers.pair, name),
        1.0,
        against=name,
    )
    for name in peers.PEERS
)

GROWTH = (
    *(_growth("columns", n, f"forward mode, {n} columns", partial(_columns, n)) for n in (1, 2, 4, 8, 16)),
    *(
        _growth("width", n, f"OHO lr + l2, MLP 784-{n}x3-10", partial(_oho, width=n))
        for n in (16, 32, 64, 128, 256, 512)
    ),
    *(_growth("runs", n, f"OnePass WD+LR+M, {n} runs", partial(_runs, n)) for n in (1, 3, 10, 30, 100)),
)
