"""Bayesian optimisation, several repetitions side by side (OnePass, Appendix B.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from gradtune.recursion.rules import sgd
from gradtune.search import Bayes, Configuration, Dimension, Space, Training
from gradtune.search.asking import asking, import_optuna
from gradtune.search.full_length import height
from gradtune.search.ledger import trial_seed
from gradtune.search.trainable import Members
from gradtune_book.papers.onepass.uci_training import (
    DECAY,
    LR,
    MOMENTUM,
    RANGES,
    SETTINGS,
    Config,
    declared,
    regression,
)
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch
from gradtune_book.tasks.uci import TableRegression

SPACE = Space(
    {
        LR: Dimension(10 ** RANGES[LR][0], 10 ** RANGES[LR][1], "log10"),
        DECAY: Dimension(10 ** RANGES[DECAY][0], 10 ** RANGES[DECAY][1], "log10"),
        MOMENTUM: Dimension(*RANGES[MOMENTUM]),
    }
)


@dataclass
class Repetition:
    """One search, with an entry for each of its trials.

    Attributes:
        configs: Configurations.
        val: Final validation losses.
        test: Final test losses.
    """

    configs: list[Configuration] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Searched:
    """R searches and what they took.

    Attributes:
        repetitions: The searches; losses are in the target's unit squared.
        cpu_s: Seconds of training of each search that the processor computed (`environment.busy_seconds`).
        wall_s: Seconds of training of each search by the clock.
        task: The regression problem.
    """

    repetitions: list[Repetition]
    cpu_s: float
    wall_s: float
    task: TableRegression


@lru_cache(maxsize=2)
def _training(c: Config, runs: int, device: torch.device, trace: bool) -> tuple[TableRegression, Training]:
    task = regression(c, device, merged=False)
    hypers = declared(SETTINGS["Random"])
    training = Training(task, sgd(), hypers, task.layout.sizes, task.init, c.steps, trace, c.every)
    if trace:  # recorded now, so that it does not count as training
        training.advance(training.start(SPACE.corners()[:1] * runs, range(runs)), c.every)
    return task, training


def search(
    c: Config, seeds: Sequence[int], trials: int, device: torch.device, options: Bayes | None = None
) -> Searched:
    """Run `search.search("bayes", ...)` for R seeds at once: the same searches, faster.

    Training rows train and validation rows compare configurations, as in Appendix B.5.

    Args:
        c: Configuration of the trainings, but for seed and method.
        seeds: Seed of each search.
        trials: Number of trainings of each search.
        device: Where to train.
        options: Options of the search; `Bayes()` by default.

    Raises:
        GradtuneError: optuna is not installed, or the configuration's dtype or form of the loss is unknown.
    """
    task, training = _training(c, len(seeds), device, c.steps >= 1000)
    spent, unit = Stopwatch(device), task.table.y_std**2

    def test(members: Members) -> list[float]:
        return task.test_mse(members.run.state.w).tolist()

    found = side_by_side(training, seeds, trials, spent, test, options or Bayes())
    for repetition in found:
        repetition.val = [loss * unit for loss in repetition.val]
    return Searched(found, task=task, **spent.share(len(seeds)))


def side_by_side(
    training: Training,
    seeds: Sequence[int],
    trials: int,
    spent: Stopwatch,
    test: Callable[[Members], list[float]],
    options: Bayes,
) -> list[Repetition]:
    """Search with R seeds at once.

    In each round every repetition asks for its next configuration, and all of them are trained as one stack. The
    repetitions do not see one another. A search that was stopped goes on after its last round on file: a sampler that
    is told the same losses draws the same configurations.

    Args:
        training: What is trained.
        seeds: Seed of each search.
        trials: Number of trainings of each search.
        spent: Counts training and validation.
        test: Returns the test losses of trained runs.
        options: Options of the search.

    Raises:
        GradtuneError: optuna is not installed.
    """
    import_optuna()
    found, sitting = [Repetition() for _ in seeds], sittings.current()
    worst: list[float] = [] if options.worst is None else [options.worst] * len(seeds)

    def state() -> dict[str, Any]:
        told = {"val": [r.val for r in found], "test": [r.test for r in found]}
        return {**told, "worst": worst, "spent": spent.state()}

    with ExitStack() as stack:
        earlier = stack.enter_context(sitting.part(f"searches from seed {seeds[0]}", state))
        done = len(earlier["val"][0]) if earlier else 0
        if earlier:
            worst = list(earlier["worst"])
            spent.go_on(earlier["spent"])
        askers = [stack.enter_context(asking(SPACE, seed, options.sampler(seed))) for seed in seeds]
        for k in range(trials):
            asked = [asker.ask() for asker in askers]
            if k < done:
                losses, tests = ([each[k] for each in earlier[part]] for part in ("val", "test"))
            else:
                members = training.start([config for _, config in asked], [trial_seed(seed, k) for seed in seeds])
                worst = worst or training.val_loss(members)
                with spent:
                    members = training.advance(members, training.steps)
                    losses = training.val_loss(members)
                tests = test(members)
            for r, (asker, (trial, config)) in enumerate(zip(askers, asked, strict=True)):
                asker.complete(trial, height(losses[r], worst[r]))
                found[r].configs.append(config)
                found[r].val.append(losses[r])
                found[r].test.append(tests[r])
            if k >= done:
                sitting.tick()
    return found
