"""Searches whose every trial is trained to its end: random, random xLR, 3-batched, grid, Bayesian optimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from gradtune.errors import at_least
from gradtune.search.asking import Asker, Builder, asking
from gradtune.search.ledger import Ledger, ending
from gradtune.search.space import Dimension, Space
from gradtune.search.trainable import MULTIPLIER


@dataclass(frozen=True)
class Random:
    """Random search (Bergstra & Bengio 2012; Random in OnePass, Section 4), uniform in raw coordinates.

    Cost: plain training, and no overhead to speak of.

    Attributes:
        batch: trials trained side by side as runs `[R, D]`: the same trials, faster.
        group: number of full-length trials of which one is kept, 1.
    """

    batch: int = 1
    group: ClassVar[int] = 1

    def __post_init__(self) -> None:
        at_least(1, batch=self.batch)

    def run(self, ledger: Ledger, space: Space) -> str:
        with asking(space, ledger.seed, lambda optuna: optuna.samplers.RandomSampler(seed=ledger.seed)) as asker:
            return independent(ledger, asker, self.batch)


@dataclass(frozen=True)
class RandomXLR(Random):
    """Random xLR (OnePass, Section 4): `Random` with one more dimension, `lr_multiplier`.

    The trainable multiplies the learning rate by it after every 10 steps (`Training.every`).

    Attributes:
        batch: as in `Random`.
        group: as in `Random`.
        low: lowest value of `lr_multiplier`.
        high: highest value of `lr_multiplier`.
    """

    low: float = 0.95
    high: float = 1.01

    def run(self, ledger: Ledger, space: Space) -> str:
        return super().run(ledger, Space({**space, MULTIPLIER: Dimension(self.low, self.high)}))


@dataclass(frozen=True)
class ThreeBatched(Random):
    """Random (3-batched) (OnePass, Section 4): the trials of `Random`, of which one of every three is kept.

    It is the one of lowest validation loss (`Result.to_frame`, column `kept`). Three diverged trials keep none.

    Attributes:
        batch: as in `Random`.
        group: number of full-length trials of which one is kept, 3.
    """

    group: ClassVar[int] = 3


@dataclass(frozen=True)
class Grid(Random):
    """Grid search in an order shuffled by the seed; it ends when all points are trained.

    Attributes:
        batch: as in `Random`.
        group: as in `Random`.
        points: values per dimension, evenly spaced in raw coordinates, ends included. A space of P dimensions has
            `points^P` trials.
    """

    points: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(2, points=self.points)

    def run(self, ledger: Ledger, space: Space) -> str:
        values = {n: d.grid(self.points) for n, d in space.items()}
        sampler: Builder = lambda optuna: optuna.samplers.GridSampler(values, seed=ledger.seed)  # noqa: E731
        with asking(space, ledger.seed, sampler) as asker:
            return independent(ledger, asker, self.batch, self.points ** len(space))


@dataclass(frozen=True)
class Bayes:
    """Bayesian optimisation by optuna's GPSampler (Snoek et al. 2012; OnePass, Appendix B.5, uses another program).

    The model is a Gaussian process (Matern 5/2, one length scale per dimension), the acquisition log expected
    improvement. The model sees `asinh(1000 loss / worst)`: a logarithmic scale over the three decades below `worst` and
    a linear one around 0, for losses of any sign. A Gaussian process of the plain loss sees little but where training
    diverges.

    Cost: plain training, and the fits of the model; the fit to n trials costs `n^3`.

    Attributes:
        startup: random trials before the first model (5 in OnePass).
        worst: losses above it, and diverged trials, count as this number for the model (OnePass, Appendix B.1, takes
            150). None stands for the first trial's validation loss before training.
        group: number of full-length trials of which one is kept, 1.
    """

    startup: int = 5
    worst: float | None = None
    group: ClassVar[int] = 1

    def __post_init__(self) -> None:
        at_least(1, startup=self.startup)

    def run(self, ledger: Ledger, space: Space) -> str:
        full, worst = ledger.trainable.steps, self.worst
        with asking(space, ledger.seed, self.sampler(ledger.seed)) as asker:
            while ledger.left:
                trial, config = asker.ask()
                cohort = ledger.start([config])
                worst = ledger.untrained_loss(cohort) if worst is None else worst
                (loss,) = ledger.train(cohort, min(full, ledger.left))
                asker.complete(trial, height(loss, worst))
        return ending(cohort, full)

    def sampler(self, seed: int) -> Builder:
        """Return the function that makes the sampler of one seed, which asks for the configurations."""
        return lambda optuna: optuna.samplers.GPSampler(
            seed=seed, n_startup_trials=self.startup, warn_independent_sampling=False
        )


def height(loss: float, worst: float) -> float:
    """Return what the Gaussian process sees of a loss, see `Bayes`."""
    worst = worst if math.isfinite(worst) else 1.0
    loss = min(loss, worst) if math.isfinite(loss) else worst
    return math.asinh(1000 * loss / (abs(worst) or 1.0))


def independent(ledger: Ledger, asker: Asker, batch: int, trials: float = math.inf) -> str:
    """Train up to `trials` full-length trials.

    The study is told no loss, as its sampler would not look at it.

    Args:
        ledger: the accounts of the search.
        asker: gives the configurations.
        batch: trials trained side by side.
        trials: most trials that are started.

    Returns:
        How the search ended.
    """
    full = ledger.trainable.steps
    while ledger.left and ledger.started < trials:
        runs = int(max(1, min(batch, ledger.left // full, trials - ledger.started)))
        cohort = ledger.start([asker.ask()[1] for _ in range(runs)])
        ledger.train(cohort, min(full, ledger.left))
    return ending(cohort, full) + (f"; all {trials} points of the grid are visited" * (ledger.started == trials))
