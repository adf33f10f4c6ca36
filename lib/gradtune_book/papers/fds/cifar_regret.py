"""Figures 1, 4, 7 and 8 of the FDS paper: learning rates over time, a momentum and a weight decay for CIFAR-10.

They are found by FDS, by greedy hypergradients, and by black-box searches of the same wide range. "FDS" takes a very
short first training and longer ones after it (Figure 1). "FDS-full" trains for the full length at every outer step,
with fewer learning rates (Figures 4 and 7). "HD" moves hyperparameters online, from zero at first and then again and
again from random values. "Grid" is one training of Appendix F, the measure of regret (Figure 8).

Seconds are the processor's on a CPU. They leave out evaluation, the trainings that tell what an answer is worth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gradtune import methods
from gradtune.errors import unknown
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, SignHalving
from gradtune.recursion.wrapped import Clipped, Kept, Masked
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Method, Run
from gradtune.training.restarts import Progress, Restarts, Task
from gradtune_book import config
from gradtune_book.papers.fds.cifar_account import Account
from gradtune_book.papers.fds.cifar_searches import SEARCHES, black_box
from gradtune_book.papers.fds.cifar_training import (
    DECAY,
    LR,
    MOMENTUM,
    RANGES,
    Bench,
    Config,
    Recipe,
    grid_recipe,
)
from gradtune_book.records import sittings
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.per_run import PerRun

FDS, FULL, HD, GRID = "FDS", "FDS-full", "HD", "Grid"
METHODS = (FDS, *SEARCHES, HD, GRID, FULL)
GRID_VALUES = {
    "grid_lr": (0.05, 0.1, 0.2, 0.4, 0.6),
    "grid_factor": (0.1, 0.2, 0.4),
    "grid_momentum": (0.45, 0.9, 0.99),
    "grid_decay": (2.5e-4, 5e-4, 1e-3),
}
"""The 135 settings of Appendix F."""


@dataclass(frozen=True)
class Sizes:
    """What a scale sets.

    Attributes:
        base: configuration without method and seed.
        seeds: number of seeds of each method but "FDS-full" and the grid.
        grid_every: every how many of the 135 settings of the grid are run.
        grid_repeats: number of trainings of each of these settings.
        full_seeds: number of seeds of "FDS-full".
    """

    base: Config
    seeds: int
    grid_every: int = 1
    grid_repeats: int = 1
    full_seeds: int = 1  # seeds of "FDS-full"


_SMALL = Config(
    "", 0, images=10_000, test_images=2_000, pool=2, net="small", batch=64, validation=500, steps=400, first_steps=8,
    outer_step_steps=80, budget_steps=10_000,
)  # fmt: skip
SIZES = {
    "smoke": Sizes(
        replace(
            _SMALL, data="digits", images=None, test_images=None, pool=1, augment=False, batch=32, validation=100,
            steps=20, first_steps=2, outer_step_steps=4, outer_steps=3, budget_steps=60,
        ), 1, 45,
    ),
    "laptop": Sizes(_SMALL, 8, 1, 3, 3),
    "paper": Sizes(replace(Config("", 0), budget_steps=60 * 9250), 8, 1, 3, 3),
}  # fmt: skip
FULL_WINDOWS = 5  # learning rates of Figure 4


def sized(scale: str, seeds: int | None = None) -> Sizes:
    """Return what a scale sets, with another number of seeds where it is given.

    Args:
        scale: name of the scale.
        seeds: number of seeds of each method, "FDS-full" included, but not of the grid. None: the scale's own.

    Raises:
        GradtuneError: the scale is unknown.
    """
    sizes = SIZES[config.check_scale(scale)]
    return sizes if seeds is None else replace(sizes, seeds=seeds, full_seeds=seeds)


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, method by method: those of Figure 1, the grid, and Figure 4 at last.

    Args:
        sizes: what the scale sets.
        seed: first seed.
    """
    out = []
    for method in METHODS:
        base = replace(sizes.base, method=method)
        if method == GRID:
            out += _grid_configs(sizes, replace(base, budget_steps=0), seed)
            continue
        if method in (FDS, FULL):  # their length is that of their outer steps
            base = replace(base, budget_steps=0, lr_windows=base.lr_windows if method == FDS else FULL_WINDOWS)
        out += [replace(base, seed=seed + k) for k in range(sizes.full_seeds if method == FULL else sizes.seeds)]
    return out


def _grid_configs(sizes: Sizes, base: Config, seed: int) -> list[Config]:
    settings = list(itertools.product(*GRID_VALUES.values()))[:: sizes.grid_every]
    each = [config.replace(base, **dict(zip(GRID_VALUES, values))) for values in settings]
    return [replace(c, seed=seed + k) for c in each for k in range(sizes.grid_repeats)]


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute one run after the other.

    The metrics are:

    * `accuracy`: test accuracy, what the final answer is worth;
    * `training_steps` and `hypergradient_steps`: steps spent on finding it, and those among them that carried
      hypergradients;
    * `seconds`: time spent on finding it, and `evaluation_seconds`, which are not in it;
    * `answers`: how often the answer changed, which for FDS is the number of outer steps.

    The series have a value each time the answer changed:

    * `at_steps`, `at_seconds` and `at_accuracy`: cost until then, and what the answer is worth;
    * `answer_lr_0`, ..., `answer_momentum` and `answer_weight_decay`: the answers themselves;
    * `hypergradient_lr_0`, ...: raw hypergradients divided by the horizon, of FDS only.

    Args:
        batch: configurations.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a method is unknown.
    """
    return [answered(Bench(c, device)) for c in batch]


def answered(bench: Bench) -> Result:
    """Compute the run of a bench's configuration; what it records is described at `run`.

    Args:
        bench: trainings of the configuration.

    Raises:
        GradtuneError: the method is unknown.
    """
    c, account = bench.c, Account(bench.device)
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    how: Callable[[Bench, Account], None] = {FDS: _fds, FULL: _fds, HD: _hd, GRID: _grid}.get(c.method, black_box)
    with sittings.current().part("account", account.state) as earlier:
        if earlier is not None:
            account.go_on(earlier)
        how(bench, account)
    account.pause()
    wall = account.wall_s
    metrics: dict[str, float | int | None] = {
        "accuracy": account.answers[-1].accuracy,
        "training_steps": account.training_steps,
        "hypergradient_steps": account.hypergradient_steps,
        "seconds": account.seconds,
        "evaluation_seconds": account.evaluation_seconds,
        "answers": len(account.answers),
    }
    return Result(metrics, account.series(), wall, bench.given.caption, bench.given.sha256, cpu_s=account.seconds)


# --- FDS --------------------------------------------------------------------------------------------------------------


def _declared(windows: int) -> list[Hyper]:
    """Return all hyperparameters, declared from zero."""
    return [Hyper(LR, 0.0, windows=windows), Hyper(MOMENTUM, 0.0), Hyper(DECAY, 0.0)]


def _recipe(raw: Tensor) -> Recipe:
    """Return the recipe of raw coordinates `[P]`: learning rates, momentum, weight decay, all as they are."""
    return Recipe.of(raw.tolist())


def fds_search(bench: Bench, tasks: dict[int, PerRun]) -> Restarts:
    """Return FDS as a search that can be stopped anywhere (Algorithm 2).

    Args:
        bench: trainings of the configuration.
        tasks: filled with the task of the current outer step, by its number.
    """
    c = bench.c
    first = [bench.gamma[LR]] * c.lr_windows + [bench.gamma[MOMENTUM], bench.gamma[DECAY]]
    gamma = torch.tensor(first, device=bench.device)
    outer = Kept(Masked(SignHalving(gamma)))

    def make(k: int) -> Task:
        tasks.clear()
        tasks[k] = bench.task([bench.seed(k)])
        return Task(tasks[k], tasks[k].init(), tasks[k].layout.sizes)

    full = c.method == FULL
    horizons = [c.steps if full else c.first_steps if k == 0 else c.outer_step_steps for k in range(c.outer_steps)]
    return Restarts(
        make, bench.rule, _declared(c.lr_windows), lambda steps: methods.fds(steps, outer, c.product_limit), horizons
    )


def _fds(bench: Bench, account: Account) -> None:
    found, sitting = fds_search(bench, {}), sittings.current()
    progress = found.start()

    def tick(now: Progress) -> None:
        nonlocal progress
        progress = now
        sitting.tick()

    def watch(progress: Progress) -> None:
        horizon = found.horizons[progress.number]
        account.training_steps = account.hypergradient_steps = sum(found.horizons[: progress.number + 1])
        recipe = _recipe(progress.run.raw[0])
        per_step = progress.run.outer.hypergradient[0] / horizon  # the mean over a window is windows times this
        account.answer(recipe, lambda: bench.worth(recipe), per_step.tolist())

    with sitting.part("search", lambda: found.state(progress)) as earlier:
        progress = progress if earlier is None else found.restored(earlier)
        if found.complete(progress) and len(account.answers) == progress.number:  # stopped while it was evaluated
            watch(progress)
        found.advance(progress, watch=watch, tick=tick)


# --- greedy -----------------------------------------------------------------------------------------------------------


def _hd(bench: Bench, account: Account) -> None:
    """Train online, from zero and then from random hyperparameters, until the budget is spent.

    The training of highest validation accuracy is the answer. It is worth the test accuracy of its own net, as it has
    no recipe that could be trained again.
    """
    c, best, trial = bench.c, -math.inf, 0
    with sittings.current().part("trials", lambda: {"trial": trial, "best": best}) as earlier:
        if earlier is not None:
            trial, best = earlier["trial"], earlier["best"]
        while account.training_steps < c.budget_steps:
            steps = min(c.steps, c.budget_steps - account.training_steps)
            task, run = online(bench, _hd_start(c.seed, trial), steps, trial)
            account.training_steps += steps
            account.hypergradient_steps += steps
            accuracy = float(task.val_accuracies(run.state.w)) if run.state.w.isfinite().all() else 0.0
            if accuracy > best:
                best, w, recipe = accuracy, run.state.w, _recipe(run.raw[0])
                account.answer(recipe, lambda task=task, w=w: bench.accuracy(task, w)[0])  # type: ignore[misc]
            trial += 1


def _hd_start(seed: int, trial: int) -> dict[str, float]:
    rng = np.random.default_rng([seed, trial])
    drawn = {n: float(rng.uniform(*RANGES[n])) for n in (LR, MOMENTUM, DECAY)}
    return drawn if trial else dict.fromkeys(RANGES, 0.0)


def online(bench: Bench, start: dict[str, float], steps: int, trial: int) -> tuple[PerRun, Run]:
    """Train with greedy hypergradients of all three hyperparameters at every step (Appendix C).

    The horizon is 1, with a validation batch per step. Hypergradients are clipped at 1, and the outer rule is SGD of
    rate 0.2.

    Args:
        bench: trainings of the configuration.
        start: initial value of each hyperparameter by name.
        steps: number of training steps.
        trial: number of the training, from which it has its seed.

    Returns:
        The task, and the training at its end.
    """
    task = bench.task([bench.seed(trial)], one_batch=True)
    method = Method(Reverse(1), Masked(Clipped(SGD(0.2), 1.0)))
    loop = Loop(task, bench.rule, Hypers([Hyper(n, v) for n, v in start.items()], task.layout.sizes), method)
    run, sitting = loop.start(task.init()), sittings.current()

    def watch(now: Run) -> None:
        nonlocal run
        run = now
        sitting.tick()

    with sitting.part("trial", lambda: saved_runs.state(run)) as earlier:
        run = run if earlier is None else saved_runs.restored(loop, run, earlier)
        return task, loop.advance(run, steps - run.t, watch, 10)


def _grid(bench: Bench, account: Account) -> None:
    recipe = grid_recipe(bench.c)
    account.training_steps = bench.c.steps
    account.answer(recipe, lambda: bench.worth(recipe))


def _cost(c: Config) -> float:
    """Return the cost in training steps, where a hypergradient step counts as two for each column in use."""
    if c.method == GRID:
        return float(c.steps)
    if c.method in SEARCHES:
        return c.budget_steps + 5.0 * c.steps
    if c.method == HD:
        return 2.5 * c.budget_steps
    length = c.steps if c.method == FULL else c.outer_step_steps
    return c.outer_steps * (length * (1.5 + 2 * (c.lr_windows / 2 + 2.5)) + c.steps)


STUDY = Study("fds_cifar_regret", Config, SIZES, configs, run, chunk=1, cost=_cost)
