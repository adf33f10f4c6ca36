"""Figures 2 and 6 of the FDS paper: how noisy the hypergradient of every single step's learning rate is.

A run trains a LeNet for T steps at a fixed schedule and takes the hypergradient of each step's learning rate.
"non-greedy" takes that of the validation loss after the last step, exact, by reverse mode over stored states. "greedy"
takes that of the validation loss after that very step (H = 1). The seed draws the weights and the order of the batches.

How much of the noise goes away when neighbouring steps share one learning rate is computed from the runs
(`sharing_tables.curves`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradtune.errors import unknown
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule, sgd
from gradtune.recursion.wrapped import Kept
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.papers.fds.common import EMBEDDED, lenet_for, pictures, schedule
from gradtune_book.papers.series import pieces
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.per_run import PerRun, split

NON_GREEDY, GREEDY = "non-greedy", "greedy"
METHODS = (NON_GREEDY, GREEDY)


@dataclass(frozen=True)
class Config:
    """One training, and the hypergradients of its learning rates."""

    method: str  # "non-greedy" or "greedy"
    seed: int  # draws the initial weights and the order of the training images
    data: str = "mnist"  # mnist, svhn, svhn_like or digits
    images: int | None = None  # use so many images, equally many of a class; None: all
    steps: int = 250  # T
    batch: int = 128  # images of a training batch
    lr: float = 0.01  # learning rate of the first step
    schedule: str = "cosine"  # or "constant"
    momentum: float = 0.9  # the published program's; the text names none
    validation: int = 1000  # fixed validation images, the same for all seeds
    dtype: Literal["float32", "float64"] = "float32"  # the published program's, or float64
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and which runs there are."""

    sets: tuple[str, ...]  # values of `Config.data`
    seeds: int  # trainings for each method
    steps: int  # T
    batch: int
    validation: int
    images: int | None = None
    dtype: Literal["float32", "float64"] = "float32"
    small_lr: float = 0.001  # our choice for Figure 6, whose setting the text does not give; non-greedy only


SIZES = {
    "smoke": Sizes((EMBEDDED,), 4, 30, 32, 100, 1000, "float64"),  # the same numbers on all processors
    "laptop": Sizes((EMBEDDED,), 16, 250, 128, 1000),
    "paper": Sizes(("mnist",), 100, 250, 128, 1000),
}
FIGURE_2_LR = Config.lr
RULE = sgd(weight_decay=False)


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, set by set: Figure 2 non-greedy, Figure 6, and Figure 2 greedy.

    Args:
        sizes: what the scale sets.
        seed: first seed.
    """
    out = []
    size = {n: getattr(sizes, n) for n in ("steps", "batch", "validation", "images", "dtype")}
    for data in sizes.sets:
        for method, lr in ((NON_GREEDY, FIGURE_2_LR), (NON_GREEDY, sizes.small_lr), (GREEDY, FIGURE_2_LR)):
            out += [Config(method, seed + k, data, lr=lr, **size) for k in range(sizes.seeds)]
    return out


def run(batch: Sequence[Config], device: torch.device, rule: Rule = RULE) -> list[Result]:
    """Compute a batch of trainings of one method.

    The metrics are `val_loss` and `val_accuracy` after the last step. The series `hypergradient_0`, ... are the
    hypergradients of all steps in pieces of 50.

    Args:
        batch: configurations that differ in `seed` only.
        device: where to compute.
        rule: update rule of the trainings.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: the method is unknown.
    """
    c, seeds = batch[0], [b.seed for b in batch]
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    task = trainings(c, seeds, device)
    with Stopwatch(device) as spent:
        g, trained = hypergradients(task, c, rule)
    with torch.no_grad():
        loss = task.val_loss(trained.state.w, {}, c.steps)
    right = task.val_accuracies(trained.state.w)
    return [
        Result(
            {"val_loss": float(loss[k]), "val_accuracy": float(right[k])},
            pieces("hypergradient", g[k].tolist()),
            **spent.share(len(seeds)),
            dataset=task.images.caption,
            dataset_sha256=task.images.sha256,
        )
        for k in range(len(seeds))
    ]


def trainings(c: Config, seeds: Sequence[int], device: torch.device) -> PerRun:
    """Return the trainings of these seeds.

    Nothing is tested, so few test images are read where the training images are limited.

    Args:
        c: configuration, whatever its seed.
        seeds: seed of each training.
        device: where to compute.
    """
    given = pictures(c.data, device, c.images, 10 if c.images else None, getattr(torch, c.dtype))
    rows = split(len(given.y_train), c.validation, device, fixed=True)
    return PerRun(lambda: lenet_for(given), given, rows, seeds, c.batch, c.validation)


def hypergradients(task: PerRun, c: Config, rule: Rule = RULE) -> tuple[Tensor, Run]:
    """Return the hypergradient of every step's learning rate, and the trained runs.

    Cost of "non-greedy": two gradients and a Hessian product per step. Memory: 3 D per step.

    Cost of "greedy": a gradient and a gradient of the validation loss per step. Memory: that of plain training.

    Args:
        task: trainings of R seeds.
        c: configuration, whatever its seed.
        rule: update rule, which reads "lr" and "momentum".

    Returns:
        The hypergradients `[R, T]` and the runs at their end.
    """
    w = task.init()
    rates = schedule(c.schedule, c.lr, c.steps).to(w)
    declared = [Hyper("lr", rates, windows=c.steps), Hyper("momentum", c.momentum, tuned=False)]
    greedy = c.method == GREEDY
    horizon = 1 if greedy else c.steps
    method = Method(Reverse(horizon), Kept(SGD(0.0)), every=horizon)
    loop = Loop(task, rule, Hypers(declared, task.layout.sizes, c.steps), method)
    total = torch.zeros(len(w), c.steps).to(w)

    def watch(run: Run) -> None:
        total.add_(run.outer.hypergradient)

    run = loop.advance(loop.start(w), c.steps, watch, method.every)
    return total, run


def _cost(c: Config) -> float:
    return 2.3 if c.method == GREEDY else 1.0  # measured, with 1000 validation images


STUDY = Study("fds_sharing_mse", Config, SIZES, configs, run, chunk=1, cost=_cost)
