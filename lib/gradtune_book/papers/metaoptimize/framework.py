"""Sections 3 to 6 of the MetaOptimize paper on two small streams: the views, the approximations, the discount.

A run trains with one step size that MetaOptimize moves, from the full matrix G_t ("full"), without Q ("2x2"), without
how the weights move the meta-parameters either ("L", eq. 15 and 16), or without Hessians ("Hessian-free", Algorithm 3).
The method "views" measures how far the forward and the backward view end apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtune import methods
from gradtune.errors import unknown
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, Adam, Outer
from gradtune.recursion.rules import Rule, adamw, rmsprop, sgd
from gradtune.training.loop import Loop
from gradtune.training.metaoptimize import LEVELS, MetaOptimize
from gradtune_book.papers.metaoptimize import views
from gradtune_book.papers.series import finite, short
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import streams

VIEWS, FREE = "views", "Hessian-free"
METHODS = (VIEWS, *LEVELS, FREE)
RULES: dict[str, Rule] = {
    "SGD": sgd(momentum=False, weight_decay=False),
    "RMSprop": rmsprop(weight_decay=False),
    "AdamW": adamw(),
}
META = {"SGD": SGD, "Adam": Adam}
FIXED = {"alpha": 0.99, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}
"""What the base updates read beside the step size; no weight decay, so that the base is the normalised gradient."""

START = {"quadratic": {"SGD": 0.01, "RMSprop": 0.003, "AdamW": 0.003}}
START["stream"] = START["quadratic"]
"""Step sizes at the start: an order of magnitude below a good fixed one."""

ETAS = (0.1, 0.03, 0.01, 0.003, 0.001)
"""Meta step sizes at which the views are compared."""


@dataclass(frozen=True)
class Config:
    """One run on a stream."""

    method: str  # one of METHODS
    seed: int  # draws the stream and the weights
    problem: str = "stream"  # quadratic or stream
    base: str = "SGD"  # SGD, RMSprop or AdamW
    meta: str = "SGD"  # SGD or Adam
    meta_step: float = 0.01  # of the meta rule
    gamma: float = 1.0  # discount
    steps: int = 300
    dim: int = 10  # weights
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    seeds: int  # streams of each kind
    steps: int  # training steps
    views: int  # streams on which the two views are compared
    view_steps: int  # their training steps
    gammas: tuple[float, ...] = (0.0, 0.5, 0.9, 0.99, 0.999, 1.0)


SIZES = {"smoke": Sizes(4, 60, 2, 8), "laptop": Sizes(20, 400, 10, 16), "paper": Sizes(100, 2000, 20, 24)}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: the views, the four matrices with three bases, and the discounts.

    The discount is varied without Hessians, where 0 is defined too, and with Hessians ("L", whose gamma is positive).

    Args:
        sizes: what the scale sets.
        seed: first seed; the others follow on.
    """
    seeds, out = range(seed, seed + sizes.seeds), []
    for problem in streams.NAMES:
        out += [
            Config(VIEWS, s, problem, gamma=0.9, steps=sizes.view_steps, dim=4) for s in range(seed, seed + sizes.views)
        ]
        for base in RULES:
            for method in (*LEVELS, FREE):
                out += [Config(method, s, problem, base, "Adam", 0.02, 1.0, sizes.steps) for s in seeds]
        for base, method in (("SGD", "L"), ("AdamW", FREE)):
            for gamma in sizes.gammas:
                if gamma < 1 and (gamma or method == FREE):
                    out += [Config(method, s, problem, base, "Adam", 0.02, gamma, sizes.steps) for s in seeds]
    return out


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that agree in all but their seeds.

    Metrics: `loss`, the mean loss over the run, each before its step; `late_loss`, that over its second half;
    `final_lr`. Series: `log_lr`, the logarithm of the step size after 50 moments.

    Of "views": `order`, the power of the meta step size with which the views come together, and `gap_0`, ..., their
    distances at the meta step sizes `ETAS`.

    Args:
        batch: configurations that differ in `seed` only.
        device: where to compute; "views", a few numbers in float64, are computed on the CPU.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a method or a problem is unknown.
    """
    c = batch[0]
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    if c.method == VIEWS:
        return [_views(each) for each in batch]
    problem, w = streams.draw(c.problem, [b.seed for b in batch], c.steps, c.dim, device)
    watch, spent = _Watch(problem), Stopwatch(device)
    with spent:
        _train(c, problem, w, watch)
    losses, rates = (finite(torch.stack(each, 1)) for each in (watch.losses, watch.log_lr))
    results = []
    for k in range(len(batch)):
        metrics: dict[str, float | int | None] = {"loss": float(losses[k].mean())}
        metrics |= {"late_loss": float(losses[k, c.steps // 2 :].mean()), "final_lr": math.exp(rates[k, -1])}
        results.append(Result(metrics, {"log_lr": short(rates[k], 7)}, dataset=c.problem, **spent.share(len(batch))))
    return results


def _views(c: Config) -> Result:
    problem, w = streams.draw(c.problem, [c.seed], c.steps, c.dim)
    gaps = [views.gap(problem, w, math.log(0.05), eta, c.steps, c.gamma) for eta in ETAS]
    metrics: dict[str, float | int | None] = {"order": views.order(ETAS, gaps)}
    metrics |= {f"gap_{k}": gap for k, gap in enumerate(gaps)}
    return Result(metrics, dataset=c.problem)


class _Watch:
    """Losses before each step, and logarithms of the step sizes after it."""

    def __init__(self, problem: streams.Quadratics | streams.LinearModels) -> None:
        self.problem = problem
        self.losses: list[Tensor] = []
        self.log_lr: list[Tensor] = []

    def before(self, w: Tensor, t: int) -> None:
        self.losses.append(self.problem.train_loss(w, {}, t).detach())


def hypers(c: Config) -> Hypers:
    """Return the step size, which is tuned, and what else the base update reads."""
    rule = RULES[c.base]
    fixed = [Hyper(n, FIXED[n], tuned=False) for n in rule.hypers if n != "lr"]
    return Hypers([Hyper("lr", START[c.problem][c.base], "log"), *fixed], [c.dim])


def outer(c: Config) -> Outer:
    """Return the meta rule."""
    made: Outer = META[c.meta](c.meta_step)
    return made


def _train(c: Config, problem: streams.Quadratics | streams.LinearModels, w: Tensor, watch: _Watch) -> None:
    """Take all steps of R runs."""
    if c.method == FREE:
        loop = Loop(problem, RULES[c.base], hypers(c), methods.metaoptimize_hf(outer(c), c.gamma))
        run = loop.start(w)
        for t in range(c.steps):
            watch.before(run.state.w, t)
            run = loop.advance(run, 1)
            watch.log_lr.append(run.raw[:, 0])
        return
    framework = MetaOptimize(problem, RULES[c.base], hypers(c), outer(c), c.gamma, c.method)
    full = framework.start(w)
    for t in range(c.steps):
        watch.before(full.base.w, t)
        full = framework.advance(full, 1)
        watch.log_lr.append(full.meta.raw[:, 0])


def _cost(c: Config) -> float:
    return {"full": 6.0, "2x2": 3.0, "L": 2.0, VIEWS: 20.0}.get(c.method, 1.0)


STUDY = Study("metaoptimize_framework", Config, SIZES, configs, run, chunk=100, cost=_cost)
