"""Where a training ends from a learning rate that nobody has tuned, by every method with its default settings.

Trainings of six small problems (`tasks.small`) start from learning rates a decade apart. Every method has its default
options. Beside them is a grid of fixed learning rates and weight decays for AdamW and for SGD, 25 points each, at the
same number of steps. All start from the same weights and see the same batches.

Methods that need a package of others (`start_trainings.OF_PACKAGES`) have runs where it is installed;
elsewhere only those that are recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gradtune_book.papers.packages import installed, needed
from gradtune_book.papers.together.start_trainings import OF_PACKAGES, STARTED, mean_loss, training
from gradtune_book.records import store
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import small

STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Learning rates at the start."""

GRID = {
    "adamw": ((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (0.0, 1e-3, 1e-2, 1e-1, 1.0)),
    "sgd": ((3e-2, 1e-1, 3e-1, 1.0, 3.0), (0.0, 1e-5, 1e-4, 1e-3, 1e-2)),
}
"""Learning rates and weight decays of the grid, by rule."""

STEPS = {"tables": 600, "images": 300, "convolutions": 300, "words": 250, "attention": 250, "norm": 400}
"""Training steps at the paper's scale."""

_FIRST = ("default", "AdamW", "SGD")
_STARTLESS = ("Prodigy", "DoG", "Bayes")


@dataclass(frozen=True)
class Config:
    """One training of a small problem."""

    method: str  # one of `start_trainings.STARTED` or `OF_PACKAGES`, or "grid"
    seed: int  # draws the initial weights, the order of the batches and dropout
    task: str  # one of `small.TITLES`
    dataset: str  # as `small.resolve` gives it
    steps: int  # training steps
    start: float | None = None  # learning rate at the start; None: the method has none
    rule: str = ""  # of the grid: adamw or sgd
    weight_decay: float | None = None  # of the grid; None: the default
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    data: str  # as `small.resolve` takes it; the paper's scale names its sets, so that records are found everywhere
    tasks: tuple[str, ...]  # names of the problems
    seeds: int  # trainings of each kind
    share: float  # of the steps in `STEPS`
    starts: tuple[float, ...]  # learning rates at the start
    points: int  # learning rates, and weight decays, of a grid


SIZES = {
    "smoke": Sizes("embedded", ("tables", "convolutions"), 1, 0.1, (1e-6, 1e-2, 10.0), 2),
    "laptop": Sizes("auto", tuple(STEPS), 1, 0.5, (1e-6, 1e-3, 1.0), 3),
    "paper": Sizes("real", tuple(STEPS), 3, 1.0, STARTS, 5),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Configurations of the methods that need no package of others: the default, fixed rates and the grid first."""
    started = [*_FIRST, *(m for m in STARTED if m not in _FIRST)]
    out = {method: _of(method, sizes, seed) for method in [*_FIRST, "grid", *started]}
    return [each for group in out.values() for each in group]


def _of(method: str, sizes: Sizes, seed: int) -> list[Config]:
    out = []
    for task in sizes.tasks:
        dataset, steps = small.resolve(task, sizes.data), max(1, round(sizes.share * STEPS[task]))
        for s in range(seed, seed + sizes.seeds):
            if method == "grid":
                out += [Config(method, s, task, dataset, steps, *point) for point in points(sizes.points)]
            else:
                starts = (None,) if method in _STARTLESS else sizes.starts
                out += [Config(method, s, task, dataset, steps, start) for start in starts]
    return out


def points(count: int) -> list[tuple[float, str, float]]:
    """Return learning rate, rule and weight decay of the grid's points.

    Args:
        count: Number of learning rates, and of weight decays, of each rule: those in the middle of `GRID`.
    """
    out = []
    for rule, (rates, decays) in GRID.items():
        at = (len(rates) - count) // 2
        out += [(lr, rule, decay) for lr in rates[at : at + count] for decay in decays[at : at + count]]
    return out


def arranged(scale: str, chosen: list[Config]) -> list[Config]:
    """Return the runs of a scale: those chosen, then those of methods that need a package of others.

    Where its package is not installed, a method has those runs that are recorded: they can be read, and none is asked
    for that could not be computed.
    """
    out = list(chosen)
    for method in OF_PACKAGES:
        every = _of(method, SIZES[scale], 0)
        if not installed(method):
            every = store.among(STUDY.name, scale, method, every)
        out += every
    return out


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute runs one after another.

    Metrics: `val` and `test`, losses over all rows in evaluation mode at the end; `initial_val`, the first before
    training; `final_lr`, the learning rate at the end; and `rewinds`, how often a guard brought the training back.

    Raises:
        GradtuneError: A method, a problem or its data set is unknown, the data set is absent, or the package that a
            method needs is not installed.
    """
    return [_run(c, device) for c in batch]


def _run(c: Config, device: torch.device) -> Result:
    train = training(c.method, c.start, c.rule, c.weight_decay)
    task = small.load(c.task, c.dataset).to(device)
    net, spent = task.net(c.seed).to(device), Stopwatch(device)
    before = mean_loss(task, net, task.val)
    net.train()
    with spent:
        done = train(task, net, c.steps, c.seed)
    metrics: dict[str, float | int | None] = {"val": mean_loss(task, done.model, task.val), "initial_val": before}
    metrics |= {"test": mean_loss(task, done.model, task.test), "final_lr": done.lr, "rewinds": done.rewinds}
    return Result(metrics, dataset=c.dataset, dataset_sha256=task.sha256, packages=needed(c.method), **spent.share(1))


_COSTS = {"default": 2.5, "onepass": 2.0, "diff_through_opt": 2.0, "oho": 5.0, "clip_r": 5.0, "unroll_k": 5.0}
_COSTS |= {"fds": 13.0, "Bayes": 3.0}


def _cost(c: Config) -> float:
    return _COSTS.get(c.method, 1.2) * c.steps / STEPS[c.task]


STUDY = Study("starts", Config, SIZES, configs, run, chunk=1, cost=_cost, arranged=arranged)
