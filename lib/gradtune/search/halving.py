"""Searches that stop poor trials early: ASHA, Hyperband, BOHB.

Survivors train on; no step is taken twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count, islice, takewhile
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from gradtune.errors import GradtuneError, at_least
from gradtune.search.asking import Asker, asking
from gradtune.search.ledger import Cohort, Ledger, ending
from gradtune.search.space import Space

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Asha:
    """Successive halving in its asynchronous form (Li et al. 2020; OnePass, Appendix B.8.2).

    Configurations are random. A trial is evaluated at the ages `min_steps`, `min_steps reduction`,
    `min_steps reduction^2`, ... and at its full length, but not at an age from which fewer than `min_steps` steps are
    left: stopping there would save next to nothing. It is stopped unless it is in the best `1 / reduction` of the
    trials that reached that age so far. This is decided at once (the stopping form): the first trials, with nobody to
    compare with, may train to their end, and stopped ones never resume. The pruner is optuna's SuccessiveHalvingPruner.

    Cost: plain training.

    Attributes:
        min_steps: age at the first rung. None takes a full trial's steps divided by `reduction^3`, rounded down and at
            least 1, and makes at most four rungs.
        reduction: factor between the ages of two rungs.
        group: number of full-length trials of which one is kept, 1.
    """

    min_steps: int | None = None
    reduction: int = 3
    group: ClassVar[int] = 1

    def __post_init__(self) -> None:
        at_least(2, reduction=self.reduction)
        at_least(1, min_steps=1 if self.min_steps is None else self.min_steps)

    def first(self, full: int) -> int:
        """Return the age in steps at the first rung.

        Args:
            full: steps of a full trial.

        Raises:
            GradtuneError: `min_steps` is more than `full`.
        """
        first = max(1, full // self.reduction**3) if self.min_steps is None else self.min_steps
        if first > full:
            raise GradtuneError(
                f"min_steps = {first} is more than the {full} steps of a full trial; expected at most that"
            )
        return first

    def rungs(self, full: int) -> list[int]:
        """Return the ages at which a trial is evaluated: the first rung times powers of the reduction, then `full`.

        A power from which fewer steps are left than the first rung has is left out.
        """
        first = self.first(full)
        powers = islice((first * self.reduction**k for k in count()), 3 if self.min_steps is None else None)
        ages = takewhile(lambda age: age < full, powers)
        return [*(age for age in ages if age == first or full - age >= first), full]

    def run(self, ledger: Ledger, space: Space) -> str:
        full = ledger.trainable.steps
        rungs, seed = self.rungs(full), ledger.seed
        with asking(space, seed, lambda o: self.sampler(o, seed), lambda o: self.pruner(o, full)) as asker:
            while ledger.left:
                cohort, goal = climb(ledger, asker, rungs)
        return ending(cohort, goal)

    def sampler(self, optuna: ModuleType, seed: int) -> Any:
        return optuna.samplers.RandomSampler(seed=seed)

    def pruner(self, optuna: ModuleType, full: int) -> Any:
        return optuna.pruners.SuccessiveHalvingPruner(self.first(full), self.reduction)


@dataclass(frozen=True)
class Hyperband(Asha):
    """Hyperband (Li et al. 2018) by optuna's HyperbandPruner: `Asha` in several brackets.

    Brackets differ in the age of their first rung, so that a slow starter is not lost. A trial's bracket is drawn in
    Hyperband's proportions. Within a bracket trials are compared asynchronously, as in `Asha`.

    Attributes:
        min_steps: as in `Asha`, for the bracket that stops earliest.
        reduction: as in `Asha`.
        group: as in `Asha`.
    """

    def pruner(self, optuna: ModuleType, full: int) -> Any:
        return optuna.pruners.HyperbandPruner(self.first(full), full, self.reduction)


@dataclass(frozen=True)
class Bohb(Hyperband):
    """BOHB-style search (Falkner et al. 2018): `Hyperband` whose configurations come from a Parzen estimator.

    The tree-structured estimator models all dimensions jointly (optuna's TPESampler, multivariate), with a model for
    each bracket. BOHB proper models the highest rung with enough trials; here trials stopped earlier rank behind those
    stopped later.

    Attributes:
        min_steps: as in `Hyperband`.
        reduction: as in `Hyperband`.
        startup: random trials of a bracket before its model is used.
        group: as in `Hyperband`.
    """

    startup: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, startup=self.startup)

    def sampler(self, optuna: ModuleType, seed: int) -> Any:
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=self.startup)


def climb(ledger: Ledger, asker: Asker, rungs: list[int]) -> tuple[Cohort, int]:
    """Train one trial from rung to rung until it is stopped, finished, or the budget is spent.

    Args:
        ledger: the accounts of the search.
        asker: gives the configuration, and says whether the trial goes on.
        rungs: ages in steps at which the trial is evaluated.

    Returns:
        The trial, and the age that it was to reach.
    """
    trial, config = asker.ask()
    cohort = ledger.start([config])
    for goal in rungs:
        if not ledger.left:
            break
        (loss,) = ledger.train(cohort, min(goal - cohort.steps, ledger.left))
        if cohort.steps < goal or _stops(asker, trial, loss, goal, last=goal == rungs[-1]):
            break
    return cohort, goal


def _stops(asker: Asker, trial: optuna.Trial, loss: float, age: int, last: bool) -> bool:
    """Tell the study the loss at a rung, and return whether the trial ends there.

    A diverged trial ends, and counts as the worst of its rung.
    """
    diverged = not math.isfinite(loss)
    trial.report(math.inf if diverged else loss, age)
    poor = trial.should_prune()
    if last and not diverged:
        asker.complete(trial, loss)
    elif poor or diverged:
        asker.pruned(trial)
    return last or poor or diverged
