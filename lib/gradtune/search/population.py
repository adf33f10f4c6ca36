"""Population based training.

It needs no further package, as copying a member is indexing rows of the state `[R, D]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradtune.errors import GradtuneError, at_least
from gradtune.search.ledger import Cohort, Ledger
from gradtune.search.space import Configuration, Space
from gradtune.search.trainable import Copyable


@dataclass(frozen=True)
class Population:
    """Population based training (Jaderberg et al. 2017, Algorithm 1; OnePass, Appendix B.8.2).

    Selection is by truncation, exploration by perturbation (Jaderberg et al. 2017, Section 4.1). `size` members train
    side by side as runs `[R, D]`. After every `interval` steps each of the worst `fraction` takes over weights, buffers
    and configuration of a random one of the best `fraction`. Each of its hyperparameters is then multiplied by a random
    one of `factors` and kept inside the space. A diverged member is always replaced, and never copied. After
    full-length training, or when all members diverged, a new population starts.

    It differs from every other method here in that a trial's configuration changes while it trains. The result is a
    schedule, listed row by row, and the incumbent's configuration alone does not reproduce it.

    Cost: plain training.

    Memory: R times that of a run, and once more while rows are copied.

    Attributes:
        size: members of a population, at least 2.
        interval: steps between two selections; None for a tenth of a full trial (OnePass: 100 of 4000 steps).
        fraction: share of the population that is replaced, and share that is copied from, in (0, 0.5].
        factors: factors of a perturbation.
        resample: probability that a hyperparameter of a replaced member is drawn anew instead of multiplied, in [0, 1].
        group: number of full-length trials of which one is kept, 1.
    """

    size: int = 10
    interval: int | None = None
    fraction: float = 0.2
    factors: tuple[float, float] = (1.2, 0.8)
    resample: float = 0.0
    group: ClassVar[int] = 1

    def __post_init__(self) -> None:
        at_least(2, size=self.size)
        at_least(1, interval=1 if self.interval is None else self.interval)
        if not 0 < self.fraction <= 0.5:
            raise GradtuneError(f"fraction = {self.fraction}; expected more than 0 and at most 0.5 of the population")
        if not 0 <= self.resample <= 1:
            raise GradtuneError(f"resample = {self.resample}; expected a probability from 0 to 1")

    def run(self, ledger: Ledger, space: Space) -> str:
        if not isinstance(ledger.trainable, Copyable):
            raise GradtuneError(
                f"{type(ledger.trainable).__name__} cannot copy its runs; population based training needs the method "
                "select(members, rows, configs) of gradtune.search.Copyable"
            )
        rng = np.random.default_rng(ledger.seed)
        while ledger.left:
            how = self._generation(ledger, ledger.trainable, space, rng)
        return how

    def _generation(self, ledger: Ledger, trainable: Copyable, space: Space, rng: np.random.Generator) -> str:
        """Train one population to full length, the end of the budget or the divergence of all; say how it ended."""
        full, goal = trainable.steps, 0
        interval = self.interval or max(1, full // 10)
        cohort = ledger.start([space.draw(rng) for _ in range(min(self.size, ledger.left))])
        members = len(cohort.trials)
        while ledger.left and cohort.steps < full:
            goal = min(full, goal + interval)
            losses = _train(ledger, trainable, cohort, goal - cohort.steps)
            if ledger.left and goal < full and not self._replace(trainable, cohort, losses, space, rng):
                return "every member of the last population diverged"
        if len(cohort.trials) < members:
            return f"only {len(cohort.trials)} of the last {members} members took step {cohort.steps} of {full}"
        if cohort.steps < full:
            return f"the last population was cut after {cohort.steps} of {full} steps"
        return "no trial was cut"

    def _replace(
        self, trainable: Copyable, cohort: Cohort, losses: list[float], space: Space, rng: np.random.Generator
    ) -> bool:
        """Exploit and explore; return False when no member is left to copy."""
        order = sorted(range(len(losses)), key=lambda m: losses[m] if math.isfinite(losses[m]) else math.inf)
        cut = max(1, int(self.fraction * len(order)))
        best = [m for m in order[:cut] if math.isfinite(losses[m])]
        poor = {*order[len(order) - cut :]} | {m for m in order if not math.isfinite(losses[m])}
        if not best:
            return False
        donors = [int(rng.choice(best)) if m in poor else m for m in range(len(order))]
        cohort.copied_from = [cohort.trials[d] if d != m else None for m, d in enumerate(donors)]
        cohort.configs = [
            self._perturbed(cohort.configs[d], space, rng) if d != m else cohort.configs[m]
            for m, d in enumerate(donors)
        ]
        cohort.state = trainable.select(cohort.state, donors, cohort.configs)
        return True

    def _perturbed(self, config: Configuration, space: Space, rng: np.random.Generator) -> Configuration:
        out = {}
        for n, x in config.items():
            anew = self.resample > 0 and rng.random() < self.resample
            out[n] = Space({n: space[n]}).draw(rng)[n] if anew else space[n].clip(x * float(rng.choice(self.factors)))
        return out


def _train(ledger: Ledger, trainable: Copyable, cohort: Cohort, steps: int) -> list[float]:
    """Train all members for `steps` more steps, and return their losses.

    Where the budget does not reach so far, they train for as many steps as it does, and then the first members alone
    for one step more.
    """
    each = min(steps, ledger.left // len(cohort.trials))
    losses = ledger.train(cohort, each) if each else []
    if each < steps and ledger.left:
        _keep(trainable, cohort, range(ledger.left))
        losses = ledger.train(cohort, 1)
    return losses


def _keep(trainable: Copyable, cohort: Cohort, rows: Sequence[int]) -> None:
    """Keep only these members of a cohort; the others end as they are."""
    cohort.trials, cohort.configs, cohort.copied_from = (
        [cohort.trials[m] for m in rows],
        [cohort.configs[m] for m in rows],
        [cohort.copied_from[m] for m in rows],
    )
    cohort.state = trainable.select(cohort.state, rows, cohort.configs)
