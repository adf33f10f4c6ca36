"""The accounts of a search: training steps and wall seconds spent, every evaluation, the best one so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from gradtune import extras
from gradtune.errors import GradtuneError
from gradtune.search.space import Configuration
from gradtune.search.trainable import Trainable

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "trial",
    "steps",
    "total_steps",
    "training_seconds",
    "sampler_seconds",
    "val_loss",
    "copied_from",
    "incumbent",
    "incumbent_loss",
)


@dataclass(frozen=True)
class Result:
    """What a search did.

    Attributes:
        method: name of the method.
        seed: seed of the search.
        rows: every evaluation, a dict each, with the columns of `to_frame` but for `kept`.
        trial_steps: training steps of a full-length trial.
        budget_steps: training steps that the search was given.
        spent_steps: training steps that it spent.
        best: configuration of the evaluation of lowest validation loss, natural units; None when every trial diverged.
        best_loss: the loss of that evaluation; NaN when every trial diverged.
        stopped: why the search ended.
        group: number of full-length trials of which one is kept: 3 for Random (3-batched), else 1.
    """

    method: str
    seed: int
    rows: list[dict[str, Any]]
    trial_steps: int
    budget_steps: int
    spent_steps: int
    best: Configuration | None
    best_loss: float
    stopped: str
    group: int = 1

    def to_frame(self) -> pd.DataFrame:
        """Return every evaluation as a table, a row each.

        The columns are:

        * `trial`: number of the trial;
        * a column per dimension: the trial's configuration, natural units;
        * `steps`: steps of the trial so far;
        * `total_steps`: steps of the whole search so far; trials trained side by side share one number, as all their
          steps are spent when the first is evaluated;
        * `training_seconds`: wall seconds of training and validation so far, the recording of traced steps included;
        * `sampler_seconds`: wall seconds of everything else so far;
        * `val_loss`: validation loss;
        * `copied_from`: trial whose weights replaced this one's before the last steps (PBT only);
        * `incumbent`: trial of the lowest loss so far;
        * `incumbent_loss`: the lowest loss so far;
        * `kept`: whether the method hands the evaluation on. It does so with the last evaluation of a full-length trial
          that did not diverge; with groups of three, only with the lowest loss of every three full-length trials.

        Raises:
            GradtuneError: pandas is not installed.
        """
        pandas = extras.needed("pandas", "search", "the table of a search")
        frame: pd.DataFrame = pandas.DataFrame(self.rows)
        for name in ("copied_from", "incumbent"):
            frame[name] = frame[name].astype("Int64")
        frame["kept"] = _kept(frame, self.trial_steps, self.group)
        return frame


def _kept(frame: pd.DataFrame, trial_steps: int, group: int) -> pd.Series:
    finished = frame[frame["steps"] == trial_steps]
    size = finished.groupby(finished["trial"] // group)["trial"].transform("size")
    loss = finished.loc[size == group, "val_loss"]
    loss = loss[np.isfinite(loss)]
    best = loss.groupby(finished.loc[loss.index, "trial"] // group).idxmin()
    return frame.index.to_series().isin(best.to_numpy())


@dataclass
class Cohort:
    """Trials in training side by side.

    Attributes:
        trials: their numbers.
        configs: their configurations, natural units.
        state: the trainable's own state of them.
        steps: their common age in steps.
        copied_from: for each trial the one that it was copied from since its last evaluation, or None.
    """

    trials: list[int]
    configs: list[Configuration]
    state: Any
    steps: int = 0
    copied_from: list[int | None] = field(init=False)

    def __post_init__(self) -> None:
        self.copied_from = [None] * len(self.trials)


class Ledger:
    """Accounts that train cohorts and charge every training step of every run to one budget, which is never exceeded.

    Args:
        trainable: what is trained.
        budget_steps: training steps that may be spent.
        seed: seed of the search.

    Attributes:
        trainable: what is trained.
        budget: training steps that may be spent.
        seed: seed of the search.
        rows: every evaluation, a dict each.
        spent: training steps that are spent.
        started: trials that are started.
        best: configuration of the lowest validation loss so far, natural units; None before the first finite loss.
        best_trial: number of its trial, or None.
        best_loss: its loss, or infinity.
        bar: the progress bar of spent steps. A trainable may move it while it trains.
        on_best: called with a cohort and the row of a trial in it whose evaluation is the best so far; None for no
            call.
    """

    def __init__(self, trainable: Trainable, budget_steps: int, seed: int) -> None:
        self.trainable, self.budget, self.seed = trainable, budget_steps, seed
        self.rows: list[dict[str, Any]] = []
        self.spent, self.started = 0, 0
        self.best: Configuration | None = None
        self.best_trial: int | None = None
        self.best_loss = math.inf
        self._training, self._begin = 0.0, time.perf_counter()
        self.bar = tqdm(total=budget_steps, disable=None, unit="step", unit_scale=True)
        self.on_best: Callable[[Cohort, int], None] | None = None

    @property
    def left(self) -> int:
        """Training steps that may still be spent."""
        return self.budget - self.spent

    def start(self, configs: Sequence[Configuration]) -> Cohort:
        """Start new trials, numbered on; costs no training step."""
        trials = list(range(self.started, self.started + len(configs)))
        self.started += len(configs)
        begin = time.perf_counter()
        state = self.trainable.start(configs, [trial_seed(self.seed, t) for t in trials])
        self._training += time.perf_counter() - begin
        return Cohort(trials, list(configs), state)

    def untrained_loss(self, cohort: Cohort) -> float:
        """Return the validation loss of the first trial of a cohort as it is.

        This evaluation costs no step and is not listed.
        """
        begin = time.perf_counter()
        (loss, *_) = self.trainable.val_loss(cohort.state)
        self._training += time.perf_counter() - begin
        return loss

    def train(self, cohort: Cohort, steps: int) -> list[float]:
        """Advance a cohort, and list an evaluation for each of its trials.

        Args:
            cohort: the trials, which are changed in place.
            steps: training steps of each trial, at least 1; those of all trials together may be at most `left`.

        Returns:
            The validation loss of each trial.

        Raises:
            GradtuneError: the trainable does not give one validation loss per run.
        """
        cost = steps * len(cohort.trials)
        assert 0 < cost <= self.left, "a search may not spend more than its budget"
        begin = time.perf_counter()
        cohort.state = self.trainable.advance(cohort.state, steps)
        losses = [float(x) for x in self.trainable.val_loss(cohort.state)]
        self._training += time.perf_counter() - begin
        if len(losses) != len(cohort.trials):
            raise GradtuneError(
                f"val_loss gave {len(losses)} numbers for {len(cohort.trials)} runs; expected one a run, never a mean"
            )
        cohort.steps += steps
        self.spent += cost
        self.bar.update(self.spent - self.bar.n)
        self._list(cohort, losses)
        return losses

    def _list(self, cohort: Cohort, losses: Sequence[float]) -> None:
        elapsed = time.perf_counter() - self._begin
        for m, (trial, config, parent, loss) in enumerate(
            zip(cohort.trials, cohort.configs, cohort.copied_from, losses, strict=True)
        ):
            if math.isfinite(loss) and loss < self.best_loss:
                if self.on_best is not None:
                    self.on_best(cohort, m)
                self.best, self.best_trial, self.best_loss = config, trial, loss
            row: dict[str, Any] = {"trial": trial, **config, "steps": cohort.steps, "total_steps": self.spent}
            row |= {"training_seconds": self._training, "sampler_seconds": elapsed - self._training, "val_loss": loss}
            row |= {"copied_from": parent, "incumbent": self.best_trial}
            self.rows.append(row | {"incumbent_loss": self.best_loss if self.best else math.nan})
        cohort.copied_from = [None] * len(cohort.trials)  # a copy is listed once

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def result(self, method: str, ending: str, group: int) -> Result:
        """Return the result of the search.

        Args:
            method: name of the method.
            ending: what the last trial was doing when the budget was spent, or what ended the search before.
            group: number of full-length trials of which one is kept.
        """
        stopped = f"{self.spent} of {self.budget} training steps are spent; {ending}"
        loss = self.best_loss if self.best else math.nan
        return Result(
            method,
            self.seed,
            self.rows,
            self.trainable.steps,
            self.budget,
            self.spent,
            self.best,
            loss,
            stopped,
            group,
        )


def ending(cohort: Cohort, planned: int) -> str:
    """Say how the budget left the last cohort.

    Args:
        cohort: the last cohort.
        planned: the age in steps at which its trials were to be evaluated next.
    """
    if cohort.steps == planned:
        return "no trial was cut"
    return f"the last trial was cut after {cohort.steps} of {planned} steps"


def trial_seed(seed: int, trial: int) -> int:
    """Return the seed of a trial's weights and batches: it differs between trials and is the same for every method."""
    return int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])
