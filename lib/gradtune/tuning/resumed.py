"""A search on file: every evaluation, the best weights, and the trials in training, so that a search goes on later.

A search draws its configurations and decides by losses alone, and its trials are functions of configuration and data.
So the same search, told the losses that are on file, asks for the same trials without training any of them; from the
last loss on file it trains, from the states of the trials that were in training then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradtune.errors import GradtuneError
from gradtune.search import Configuration
from gradtune.search.ledger import Cohort, Ledger
from gradtune.training import checkpoints
from gradtune.tuning import fingerprint
from gradtune.tuning import schedule as schedules
from gradtune.tuning.trials import State, Trial, Trials, cloned

_TIMES = "training_seconds", "sampler_seconds"  # the columns in which two sittings differ


@dataclass
class Members:
    """Trials in training, perhaps behind.

    Attributes:
        trials: the trials.
        behind: steps that they have not taken, as the losses after these are on file.
    """

    trials: list[Trial]
    behind: int = 0


class Resumed:
    """`Trials` whose evaluations are kept on file. It is a `search.Copyable`.

    Cost: after each evaluation, the states of the trials in training are copied; at most every `pause` seconds they
    and that of the best trial are written. Memory: these copies.

    Args:
        trials: what is trained.
        file: where the search is kept; made at the first save.
        pause: least time in seconds between two saves.
        of: what the search is of, as text by topic.

    Attributes:
        best: configuration and state of the best trial, as `Trials.restore` takes them, or None.
        ledger: the accounts of the search, given before it starts.

    Raises:
        GradtuneError: the file is no whole checkpoint of a search, or one of another search; says what differs.
    """

    def __init__(self, trials: Trials, file: Path, pause: float, of: Mapping[str, str]) -> None:
        self.inner, self.file, self.pause, self.of = trials, file, pause, dict(of)
        self.best: tuple[Configuration, State] | None = None
        self.ledger: Ledger | None = None
        self._losses: list[list[float]] = []
        self._at = 0  # evaluations so far
        self._rows: list[dict[str, Any]] = []
        self._live: list[State] = []
        self._fresh = False  # whether the last loss was computed
        self._saved = time.monotonic()
        if file.exists():
            self._load()

    @property
    def steps(self) -> int:
        return self.inner.steps

    @property
    def _told(self) -> bool:
        """Whether the next loss is on file."""
        return self._at < len(self._losses)

    # -- a search.Copyable ---------------------------------------------------------------------------------------------

    def start(self, configs: Sequence[Mapping[str, float]], seeds: Sequence[int]) -> Members:
        self._save()
        return Members(self.inner.start(configs, seeds))

    def advance(self, members: Members, steps: int) -> Members:
        if self._told:
            members.behind += steps
            return members
        self._save()
        self._catch_up(members)
        return Members(self.inner.advance(members.trials, steps))

    def val_loss(self, members: Members) -> list[float]:
        self._fresh = not self._told
        if self._fresh:
            self._catch_up(members)
            losses = [float(x) for x in self.inner.val_loss(members.trials)]
            self._live = [cloned(_state(trial)) for trial in members.trials]
            self._losses.append(losses)
        self._at += 1
        return list(self._losses[self._at - 1])

    def select(self, members: Members, rows: Sequence[int], configs: Sequence[Mapping[str, float]]) -> Members:
        if not self._told:
            self._save()
            self._catch_up(members)
        return Members(self.inner.select(members.trials, rows, configs), members.behind)

    def _catch_up(self, members: Members) -> None:
        """Put trials that are behind where they were when the file was saved."""
        if not members.behind:
            return
        if len(self._live) != len(members.trials):
            raise self._another_way()
        with checkpoints.expected(self.file):
            for trial, state in zip(members.trials, self._live, strict=True):
                if state["config"] != dict(trial.config) or state["tuner"]["t"] != members.behind:
                    raise self._another_way()
                trial.tuner.load_state_dict(cloned(state["tuner"]))
                trial.train.load(state["train"])
                if trial.schedule is not None:
                    schedules.load(trial.schedule, state["schedule"])
        members.behind = 0

    # -- the best trial ------------------------------------------------------------------------------------------------

    def keep(self, cohort: Cohort, m: int) -> None:
        """Note the state of a trial whose evaluation is the best so far; that of one on file is on file."""
        if self._fresh:
            self.best = dict(cohort.configs[m]), cloned(cohort.state.trials[m].tuner.state_dict())

    # -- the file ------------------------------------------------------------------------------------------------------

    def close(self, rows: list[dict[str, Any]], best: Configuration | None) -> None:
        """Save the search as it ended, and put the times of earlier sittings into its rows.

        Args:
            rows: every evaluation, as the ledger lists them.
            best: configuration of the best one.

        Raises:
            GradtuneError: the evaluations on file are not those of this search, or the file cannot be written.
        """
        self._agree(rows)
        if best != (None if self.best is None else self.best[0]):
            raise self._another_way()
        self._add_times(rows)
        self._write(rows)

    def _agree(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows that are not those on file."""
        for here, there in zip(rows, self._rows, strict=False):
            for name in there.keys() - _TIMES:
                nan = here.get(name) != here.get(name) and there[name] != there[name]
                if not nan and here.get(name) != there[name]:
                    raise self._another_way()

    def _add_times(self, rows: Sequence[dict[str, Any]]) -> None:
        told = min(len(self._rows), len(rows))
        for name in _TIMES:
            before = self._rows[told - 1][name] - rows[told - 1][name] if told else 0.0
            for k, row in enumerate(rows):
                row[name] = self._rows[k][name] if k < told else row[name] + before

    def _save(self) -> None:
        """Write the file where that is due; what is on file already is not written again."""
        if self._fresh and time.monotonic() - self._saved >= self.pause:
            rows = [dict(row) for row in (self.ledger.rows if self.ledger is not None else [])]
            self._agree(rows)
            self._add_times(rows)
            self._write(rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if self._told:
            return  # it was interrupted while it was told what the file holds
        best = [] if self.best is None else list(self.best)
        state = {"search": dict(self.of), "losses": self._losses, "rows": rows, "live": self._live, "best": best}
        checkpoints.save(state, self.file)
        self._saved = time.monotonic()

    def _load(self) -> None:
        like = next(iter(self.inner.model.parameters())).device
        state = checkpoints.load(self.file, like, "search", "gradtune.tune_by_search")
        with checkpoints.expected(self.file):
            for topic, own in self.of.items():
                if state["search"][topic] != own:
                    raise GradtuneError(
                        f"{self.file} was saved with other {topic} ({state['search'][topic]}) than given ({own}); give "
                        "the same, choose another path, or remove the file"
                    )
            self._losses = [[float(x) for x in each] for each in state["losses"]]
            self._rows, self._live = [dict(row) for row in state["rows"]], list(state["live"])
            self.best = (dict(state["best"][0]), state["best"][1]) if state["best"] else None
            if any(not isinstance(row[name], float) for row in self._rows for name in (*_TIMES, "val_loss")):
                raise TypeError("rows")

    def _another_way(self) -> GradtuneError:
        return GradtuneError(
            f"the search does not go the way of the one in {self.file}, though it is given the same: another version "
            "of optuna or torch may draw or round differently; remove the file to start anew"
        )


def _state(trial: Trial) -> State:
    return {
        "config": dict(trial.config),
        "tuner": trial.tuner.state_dict(),
        "train": trial.train.state(),
        "schedule": {} if trial.schedule is None else schedules.state(trial.schedule),
    }


def topics(trials: Trials, method: str, budget: int, seed: int, options: Mapping[str, Any]) -> dict[str, str]:
    """Return what a search is of, as text by topic.

    Args:
        trials: what is trained.
        method: name of the search.
        budget: training steps of all trials together.
        seed: seed of the search.
        options: options of the search.
    """
    others = {n: v for n, v in trials.arguments.items() if n not in ("val_loss", "scaler", "rule")}
    rule = trials.arguments.get("rule")
    return {
        "data": f"training data {fingerprint.of_data(trials.train)}, validation data {fingerprint.of_data(trials.val)}",
        "model": f"{type(trials.model).__name__} ({fingerprint.of_model(trials.model)})",
        "initial weights": fingerprint.of_tensors(trials.model.state_dict()),
        "loss": fingerprint.of_function(trials.loss),
        "validation loss": fingerprint.of_function(trials.arguments.get("val_loss")),
        "schedule": fingerprint.of_function(trials.schedule),
        "search": f"{method} {dict(sorted(options.items()))}, {budget} steps in all, seed {seed}",
        "space": str({n: (d.low, d.high, d.transform) for n, d in trials.space.items()}),
        "settings": f"{trials.steps} steps a trial, rule {getattr(rule, 'name', rule)}, {dict(sorted(others.items()))}",
    }
