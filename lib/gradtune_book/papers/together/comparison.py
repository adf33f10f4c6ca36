"""Every way to train on every problem, at equal cost and from the same starts.

A problem has a budget: the processor time of `BUDGETS` steps of plain training by AdamW. A way whose step costs c plain
ones trains for 1 / c as many steps (`steps_for`), so that all take the same time; a search shares the budget among its
trainings. This is the view "equal time". In the view "equal steps" every way takes as many steps as the budget has.

Runs of the same seed start from the same weights, see batches of the same order and, where they start from a learning
rate, have the same one: drawn at random between 1e-6 and 10 (`start_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from gradtune_book.papers.packages import PACKAGES, installed
from gradtune_book.papers.together import ways
from gradtune_book.papers.together.start_trainings import mean_loss
from gradtune_book.papers.together.ways import Trial, Tunes
from gradtune_book.records import store
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import problems

BUDGETS = {
    "energy": 3000,
    "kin8nm": 3000,
    "mnist": 2000,
    "fashion": 2000,
    "lenet": 500,
    "digits": 600,
    "residual": 250,
    "words": 1200,
    "stream": 2000,
}
"""Plain training steps that a problem's budget is worth, at the paper's scale."""

LOWEST, HIGHEST = 1e-6, 10.0
"""Learning rates between which starts are drawn."""

BLOCK = 5
"""Seeds whose starts share out the range, one in each fifth of its logarithm."""

GRID = {
    "AdamW": ((1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (0.0, 1e-2, 1e-1)),
    "SGD": ((3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), (0.0, 1e-4, 1e-3)),
}
"""Learning rates and weight decays of fixed trainings, with momentum 0.9 for SGD: the reference of each problem."""

FACTORS = (0.1, 10.0)
"""Multiples of a method's outer rate that make its small tuned grid, beside 1."""

GRID_WAY = "fixed"
SEARCHED = ("onepass", "oho", "clip_r", "unroll_k", "diff_through_opt", "metaoptimize_hf", "MetaOptimize", "hd")
"""Ways whose outer rate has a tuned grid."""


@dataclass(frozen=True)
class Config:
    """One training, or one search."""

    method: str  # one of `ways.WAYS`, or "fixed"
    seed: int  # draws the initial weights, the order of the batches, dropout and the start
    problem: str  # one of `problems.TITLES`
    dataset: str  # as `problems.resolve` gives it
    steps: int  # training steps, of all trainings together
    budget: int  # plain training steps that the budget is worth
    tunes: Tunes = ""  # what is tuned
    start: float | None = None  # learning rate at the start; None: the way has none
    factor: float = 1.0  # multiple of the method's outer rate
    rule: Literal["", "AdamW", "SGD"] = ""  # of "fixed"
    weight_decay: float | None = None  # of "fixed"
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    data: str  # as `problems.resolve` takes it; the paper's scale names its sets, so that records are found everywhere
    problems: tuple[str, ...]
    ways: tuple[str, ...]
    seeds: int  # of each way on each problem
    share: float  # of the steps in `BUDGETS`
    points: int  # learning rates of the reference, of each rule
    reference_seeds: int
    more: tuple[str, ...]  # problems on which more is tuned than usual, and outer rates are searched


_FEW = ("recipe", "onepass", "oho", "hd", "MetaOptimize", "random", "AdamW", "AdamW-1e-3")
SIZES = {
    "smoke": Sizes("embedded", ("energy", "digits"), _FEW, 2, 0.02, 2, 1, ()),
    "laptop": Sizes("auto", tuple(BUDGETS), tuple(ways.WAYS), 2, 0.3, 4, 1, ("mnist",)),
    "paper": Sizes("real", tuple(BUDGETS), tuple(ways.WAYS), 5, 1.0, 6, 2, ("energy", "mnist", "digits")),
}


def start_of(seed: int) -> float:
    """Return the learning rate that runs of a seed start from; `BLOCK` seeds in a row share out the range."""
    drawn = np.random.default_rng([seed // BLOCK, 33])
    places, within = drawn.permutation(BLOCK), drawn.random(BLOCK)
    share = (places[seed % BLOCK] + within[seed % BLOCK]) / BLOCK
    return float(f"{LOWEST * (HIGHEST / LOWEST) ** share:.3g}")


def steps_for(method: str, problem: str, tunes: Tunes, budget: int) -> int:
    """Return how many steps a way takes in the processor time of `budget` plain ones; at least 1."""
    return max(1, round(budget / ways.cost(method, problem, tunes)))


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: equal time first, then the reference, equal steps, more that is tuned, outer rates.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    free = [name for name in sizes.ways if name not in PACKAGES or name == "Bayes"]
    return list(dict.fromkeys(_all(sizes, free, seed, reference=True)))


def _all(sizes: Sizes, names: Sequence[str], seed: int, reference: bool) -> list[Config]:
    seeds = range(seed, seed + sizes.seeds)
    usual = [(n, p, s) for s in seeds for p in sizes.problems for n in names if applies(n, p)]
    out = [_one(sizes, n, p, s) for n, p, s in usual]
    if reference:
        out += [c for p in sizes.problems for c in _reference(sizes, p, seed)]
    out += [_one(sizes, n, p, s, equal_steps=True) for n, p, s in usual if ways.get(n).kind != "search"]
    more = [(n, p, s) for n, p, s in usual if p in sizes.more]
    out += [
        _one(sizes, n, p, s, t)
        for n, p, s in more
        for t in ways.get(n).also
        if t != "smoothing" or p not in ("energy",)
    ]
    return out + [_one(sizes, n, p, s, factor=f) for n, p, s in more if n in SEARCHED for f in FACTORS]


def applies(method: str, problem: str) -> bool:
    """Return whether a way can train a problem: a stream has no validation rows that stand for what comes next."""
    return problem != problems.STREAM or not ways.get(method).validates


def _one(
    sizes: Sizes,
    method: str,
    problem: str,
    seed: int,
    tunes: Tunes | None = None,
    factor: float = 1.0,
    equal_steps: bool = False,
) -> Config:
    way, budget = ways.get(method), max(1, round(sizes.share * BUDGETS[problem]))
    tuned = way.tunes if tunes is None else tunes
    steps = budget if equal_steps else steps_for(method, problem, tuned, budget)
    start = start_of(seed) if way.starts else None
    return Config(method, seed, problem, problems.resolve(problem, sizes.data), steps, budget, tuned, start, factor)


def _reference(sizes: Sizes, problem: str, seed: int) -> list[Config]:
    budget, dataset = max(1, round(sizes.share * BUDGETS[problem])), problems.resolve(problem, sizes.data)
    out = []
    for rule, (rates, decays) in GRID.items():
        first = (len(rates) - sizes.points) // 2
        one = Config(GRID_WAY, seed, problem, dataset, budget, budget, rule=rule)  # type: ignore[arg-type]
        out += [
            replace(one, seed=s, start=lr, weight_decay=d)
            for s in range(seed, seed + sizes.reference_seeds)
            for lr in rates[first : first + sizes.points]
            for d in decays
        ]
    return out


def arranged(scale: str, chosen: list[Config]) -> list[Config]:
    """Return the runs of a scale: those chosen, then those of ways that need a package of others.

    Where its package is not installed, a way has those runs that are recorded: they can be read, and none is asked for
    that could not be computed.
    """
    sizes, out = SIZES[scale], list(chosen)
    for name in (n for n in sizes.ways if n in PACKAGES):
        every = _all(sizes, [name], 0, reference=False)
        if not installed(name):
            every = store.among(STUDY.name, scale, name, every)
        out += every
    return list(dict.fromkeys(out))


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute runs one after another.

    Metrics: `val` and `test`, losses over all rows in evaluation mode at the end; `initial_val`, the first before
    training; `final_lr`, the learning rate at the end; and `rewinds`, how often a guard brought the training back.

    Raises:
        GradtuneError: A way, a problem or its data set is unknown, the data set is absent, or the package that a way
            needs is not installed.
    """
    return [_run(c, device) for c in batch]


def _run(c: Config, device: torch.device) -> Result:
    problem = problems.load(c.problem, c.dataset).to(device)
    train = ways.fixed(c.rule, c.weight_decay or 0.0) if c.method == GRID_WAY else ways.get(c.method).train
    net, spent = problem.net(c.seed).to(device), Stopwatch(device)
    before = mean_loss(problem, net, problem.val)
    net.train()
    with spent:
        done = train(Trial(problem, net, c.steps, c.seed, c.start, c.tunes, c.factor))
    metrics: dict[str, float | int | None] = {"val": mean_loss(problem, done.model, problem.val), "initial_val": before}
    metrics |= {"test": mean_loss(problem, done.model, problem.test), "final_lr": done.lr, "rewinds": done.rewinds}
    return Result(metrics, dataset=c.dataset, dataset_sha256=problem.sha256, **spent.share(1))


def _cost(c: Config) -> float:
    rate = 1.0 if c.method == GRID_WAY else ways.cost(c.method, c.problem, c.tunes)
    return _SECONDS[c.problem] * rate * c.steps / BUDGETS[c.problem]


_SECONDS = dict.fromkeys(BUDGETS, 1.0) | {"residual": 5.0, "lenet": 2.0, "digits": 2.0}

STUDY = Study("together", Config, SIZES, configs, run, chunk=1, cost=_cost, arranged=arranged)
