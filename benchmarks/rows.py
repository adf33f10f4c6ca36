"""The rows of the table, each with its goal, and the series that show how cost grows."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch.optim import SGD, AdamW

from benchmarks import peers
from benchmarks.subjects import Subject, classifier, looped, plain, regression, sampled, tuned
from benchmarks.timing import Pair, Work
from gradtune import methods
from gradtune.nets.plain import lenet, mlp
from gradtune.nets.wide_resnet import wrn
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Method

Make = Callable[[torch.device, bool], Pair]
WAYS = ("study", "tune")
BARE, REPLAYED = "torch.optim step", "replayed plain step"
EAGER = {"study": BARE}
"""A loop that is not replayed is compared with a bare one."""


@dataclass(frozen=True)
class Row:
    """A line of the table: a method on a model, measured in one or two ways, each against its like.

    Attributes:
        name: Name by which the row is asked for.
        title: Name that the table shows.
        study: `study(device, quick)` prepares both sides of a step as the studies take it. With `quick` a repeat has
            fewer steps or a smaller batch. None: it is not measured so.
        tune: The same for a step as a user takes it, by a public call. None: it is not measured so.
        goal: Largest cost that is good enough: by the public call, or in a study where that alone is measured. None for
            a row of a growth series.
        floor: What the method's gradients, graphs and Hessian products come to, in gradients; None where nobody has
            counted them. A step of a net so small that bookkeeping is most of it may cost less.
        against: What the cost is relative to, by way.
        series: Name of the growth series, "" for a row with a goal.
        x: Position in the growth series.
    """

    name: str
    title: str
    study: Make | None = None
    tune: Make | None = None
    goal: float | None = None
    floor: float | None = None
    against: Mapping[str, str] = field(default_factory=lambda: {"study": REPLAYED, "tune": BARE})
    series: str = ""
    x: int = 0

    @property
    def ways(self) -> dict[str, Make]:
        """The ways in which the row is measured, and what prepares each."""
        return {way: make for way, make in zip(WAYS, (self.study, self.tune), strict=True) if make is not None}

    @property
    def judged(self) -> str:
        """The way that the goal is about: the public call where it is measured."""
        return [*self.ways][-1]

    def key(self, way: str) -> str:
        """Return the name by which a measurement is recorded."""
        return f"{self.name}-tune" if way == "tune" and self.study is not None else self.name


# --- one method in both ways ------------------------------------------------------------------------------------------

Hypers = Callable[[], list[Hyper]]
Net = Callable[[torch.device], Subject]


def _mlp(device: torch.device, width: int = 128) -> Subject:
    return classifier(mlp([784, width, width, width, 10]), [784], 100, device)


def _energy(device: torch.device) -> Subject:
    return regression(mlp([8, 50, 1]), (614, 78), 8, device)


def _steps(net: Net, quick: bool) -> int:
    """Return the steps of a repeat, a multiple of every method's cadence."""
    return 20 if quick else 400 if net is _energy else 60


def _plainly(hypers: Hypers) -> list[Hyper]:
    return [replace(h, tuned=False) for h in hypers()]


def _studied(net: Net, hypers: Hypers, method: Callable[[], Method], device: torch.device, quick: bool) -> Pair:
    """Prepare a replayed loop with a method, against a replayed loop of plain training."""
    subject, steps, rule = net(device), _steps(net, quick), sgd()
    base = looped(subject, steps, rule, subject.hypers(_plainly(hypers)), methods.fixed(), trace=True)
    return Pair(base, looped(subject, steps, rule, subject.hypers(hypers()), method(), trace=True))


def _by_tuner(
    net: Net,
    make: Callable[..., torch.optim.Optimizer],
    options: Mapping[str, float],
    arguments: Mapping[str, Any],
    device: torch.device,
    quick: bool,
) -> Pair:
    """Prepare `Tuner.step` against the bare loop of `torch.optim`."""
    subject, steps = net(device), _steps(net, quick)
    return Pair(plain(subject, steps, make, **options), tuned(subject, steps, **arguments))


_SGD = {"lr": 1e-3, "momentum": 0.5, "weight_decay": 1e-4}
_REST = {"momentum": 0.5, "weight_decay": 1e-4}


def _three(per_weight: bool = False) -> list[Hyper]:
    return [
        Hyper("lr", 0.01, "log10", "weight" if per_weight else "global", bounds=(1e-10, 1.0)),
        Hyper("weight_decay", 1e-4, "log10"),
        Hyper("momentum", 0.5, "sigmoid"),
    ]


def _only_lr(transform: str = "log10") -> list[Hyper]:
    lr = Hyper("lr", 1e-3, transform, bounds=(1e-10, 1.0))
    return [lr, Hyper("weight_decay", 1e-4, tuned=False), Hyper("momentum", 0.5, tuned=False)]


def _both(
    name: str, title: str, net: Net, hypers: Hypers, method: str, goal: float, floor: float, **options: Any
) -> Row:
    """Make the row of a method of the table on SGD with momentum and weight decay."""
    declared = hypers()
    values = {h.name: cast(float, h.value) for h in declared}
    study = partial(_studied, net, hypers, partial(methods.get(method).make, **options))
    arguments = {"hypers": declared, "method": method, "options": options}
    return Row(name, title, study, partial(_by_tuner, net, SGD, values, arguments), goal, floor)


# --- OHO and FDS ------------------------------------------------------------------------------------------------------


def _oho_hypers() -> list[Hyper]:
    return [Hyper("lr", 1e-3, bounds=(0.0, 1.0)), Hyper("weight_decay", 1e-4, bounds=(0.0, 1.0))]


def _oho(device: torch.device, quick: bool, width: int = 128) -> Pair:
    net, rule, steps = _mlp(device, width), sgd(momentum=False), 3 if quick else 30
    base = looped(net, steps, rule, net.hypers(_plainly(_oho_hypers)), methods.fixed(), trace=True)
    return Pair(base, looped(net, steps, rule, net.hypers(_oho_hypers()), methods.oho(), trace=True))


def _oho_tuned(device: torch.device, quick: bool) -> Pair:
    net, steps = _mlp(device), 3 if quick else 30
    base = plain(net, steps, SGD, lr=1e-3, weight_decay=1e-4)
    return Pair(base, tuned(net, steps, rule=sgd(momentum=False), hypers=_oho_hypers(), method="oho"))


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


# --- MetaOptimize -----------------------------------------------------------------------------------------------------


def _metaoptimize(alone: bool, how: str, device: torch.device, quick: bool) -> Pair:
    """Prepare the MLP 784-768-512-10 (1,001,738 weights), batch 128; `alone` leaves the gradient out of a step.

    Args:
        alone: Whether a step is that of the optimiser by itself.
        how: "foreach" or "fused", the implementation of `torch.optim.AdamW` that it is compared with.
        device: Where both are computed.
        quick: Whether a repeat has few steps.
    """
    if importlib.util.find_spec("gradtune.optim.metaoptimize") is None:
        raise peers.Absent("gradtune.optim.metaoptimize is not there")
    from gradtune.optim.metaoptimize import MetaOptimize

    net = classifier(mlp([784, 768, 512, 10]), [784], 128, device)
    work, steps = _update if alone else plain, 3 if quick else 30
    base = work(net, steps, AdamW, lr=1e-3, **{how: True})
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
    net, steps = _mlp(device), 2 if quick else 10
    hypers = [Hyper("lr", 1e-3, windows=count), Hyper("weight_decay", 1e-4, tuned=False)]
    base = plain(net, steps, SGD, lr=1e-3, weight_decay=1e-4)
    times = [count - 1] * steps  # the last window: every column is in use
    return Pair(base, sampled(net, times, sgd(momentum=False), net.hypers(hypers, count), methods.fds(10**9)))


def _runs(count: int, device: torch.device, quick: bool) -> Pair:
    """Prepare `count` runs of OnePass WD+LR+M side by side, against one run of plain training, both replayed."""
    net, steps = _energy(device), 20 if quick else 100
    base = looped(net, steps, sgd(), net.hypers(_plainly(_three)), methods.fixed(), trace=True)
    return Pair(base, looped(net, steps, sgd(), net.hypers(_three()), methods.onepass(), trace=True, runs=count))


def _growth(series: str, x: int, title: str, make: Make, against: str = REPLAYED) -> Row:
    return Row(f"{series}-{x}", title, make, against={"study": against}, series=series, x=x)


# --- the rows ---------------------------------------------------------------------------------------------------------

_MLP = "MLP 784-128x3-10, batch 100"
_ENERGY = "MLP 8-50-1, UCI Energy"
_ADAMW = {"hypers": {"lr": 1e-3}, "fixed": {"beta1": 0.9, "beta2": 0.999, "weight_decay": 1e-2}}

ROWS = (
    Row(
        *("fixed-sgd", f"fixed SGD, {_MLP}"),
        tune=partial(_by_tuner, _mlp, SGD, _SGD, {"hypers": _SGD, "method": "fixed"}),
        goal=1.1,
        floor=1.0,
    ),
    Row(
        *("fixed-adamw", f"fixed AdamW, {_MLP}"),
        tune=partial(_by_tuner, _mlp, AdamW, {"lr": 1e-3}, {"rule": "adamw", "method": "fixed", **_ADAMW}),
        goal=1.1,
        floor=1.0,
    ),
    _both("hd", f"HD, {_MLP}", _mlp, partial(_only_lr, "identity"), "hd", 1.2, 1.05, lr=1e-7),
    _both("baydin-mlp", f"Baydin, {_MLP}", _mlp, _only_lr, "baydin", 1.2, 1.05),
    _both(
        "metaoptimize-hf",
        f"Hessian-free MetaOptimize, {_MLP}",
        _mlp,
        partial(_only_lr, "log"),
        "metaoptimize_hf",
        goal=1.2,
        floor=1.05,
    ),
    _both("onepass-mlp", f"OnePass WD+LR+M, {_MLP}", _mlp, _three, "onepass", 2.1, 1.95),
    _both("diff-through-opt-mlp", f"Diff-through-Opt (5), {_MLP}", _mlp, _three, "diff_through_opt", 2.4, 2.35),
    Row("oho", f"OHO lr + l2, {_MLP}", _oho, _oho_tuned, 5.0, 4.3),
    _both("onepass", f"OnePass WD+LR+M, {_ENERGY}", _energy, _three, "onepass", 1.3, 1.95),
    _both("onepass-hdlr", f"OnePass WD+HDLR+M, {_ENERGY}", _energy, partial(_three, True), "onepass", 2.5, 1.95),
    _both("diff-through-opt", f"Diff-through-Opt (5), {_ENERGY}", _energy, _three, "diff_through_opt", 1.4, 2.35),
    _both("baydin", f"Baydin, {_ENERGY}", _energy, _only_lr, "baydin", 1.8, 1.05),
    *(
        Row(
            f"fds-{n}",
            f"FDS, LeNet, batch 128, {n} window{'s' * (n > 1)}",
            partial(_fds_lenet, n),
            goal=goal,
            against=EAGER,
        )
        for n, goal in ((1, 2.3), (5, 5.0), (10, 8.0), (50, 35.0))
    ),
    Row("fds-wrn", "FDS, WRN-16-1, batch 256, 7+1+1 columns", _fds_wrn, goal=30.0, against=EAGER),
    *(
        Row(
            "metaoptimize" + "-alone" * alone + "-fused" * (how == "fused"),
            f"MetaOptimize(AdamW, Lion), 1M weights, against {how}: {'optimiser alone' if alone else 'step'}",
            tune=partial(_metaoptimize, alone, how),
            goal=goal,
            against={"tune": f"{how} AdamW {'alone' if alone else 'step'}"},
        )
        for alone, how, goal in (
            *((False, "foreach", 1.12), (True, "foreach", 1.4)),
            *((False, "fused", 1.1), (True, "fused", 1.5)),
        )
    ),
)

PEERS = tuple(
    Row(f"peer-{p.name}", p.title, tune=partial(peers.pair, p.name), goal=p.goal, against={"tune": p.against})
    for p in peers.PEERS.values()
)

GROWTH = (
    *(_growth("columns", n, f"forward mode, {n} columns", partial(_columns, n), BARE) for n in (1, 2, 4, 8, 16)),
    *(
        _growth("width", n, f"OHO lr + l2, MLP 784-{n}x3-10", partial(_oho, width=n))
        for n in (16, 32, 64, 128, 256, 512)
    ),
    *(_growth("runs", n, f"OnePass WD+LR+M, {n} runs", partial(_runs, n)) for n in (1, 3, 10, 30, 100)),
)
