"""The loop of `tune`: batches, rows of the history, warnings and checkpoints around a tuner's steps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.recursion.hypers import Hypers
from gradtune.training import checkpoints
from gradtune.tuning import fingerprint
from gradtune.tuning import schedule as schedules
from gradtune.tuning.events import Event, Race
from gradtune.tuning.guard import Best, Guard
from gradtune.tuning.history import History, Row
from gradtune.tuning.info import Info
from gradtune.tuning.streams import Loaded, Resident
from gradtune.tuning.tuner import Tuner

Callback = Callable[[Info], "bool | None"]

_OF_STEPS = ("schedule", "interval between rows", "number of steps")  # what may follow from the number of steps
_PARTS_OF_A_FORM = ("train", "val", "history", "happenings", "initial", "initial_state", "schedule", "guard", "best")


@dataclass
class Training:
    """The loop of `tune` and all that it keeps.

    `done` counts steps over all trainings, `updates` the outer updates on validation data, and `stopped` says whether a
    callback ended the training.
    """

    tuner: Tuner
    train: Resident | Loaded
    val: Resident | Loaded | None
    steps: int
    restarts: int
    every: int
    accumulate: int = 1
    make_schedule: schedules.Schedule | None = None
    file: Path | None = None
    pause: float = 0.0
    guard: Guard | None = None
    best: Best | None = None
    done: int = 0
    updates: int = 0
    stopped: bool = False
    history: History = field(init=False)

    def __post_init__(self) -> None:
        how = self.tuner.method
        tuned = how.estimator is not None and how.outer_loss == "validation"
        self.history = History(self.tuner.hypers, self.tuner.names, tuned_on_val=tuned)
        self.initial = [x.clone() for x in self._model()] if self.restarts else []
        self._initial_state = self.tuner.surroundings() if self.restarts else {}
        self._saved = time.monotonic()
        self._told: set[str] = set()
        self._topics: dict[str, str] = {}
        self.schedule = self._scheduled()
        if isinstance(self.train, Resident):  # any batch can be asked for at any time
            self.tuner.recall(lambda t: self._batch(self.done - self.done % self.steps + t))

    def _scheduled(self) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Return the scheduler of a training, from its beginning."""
        self.tuner.factor.value = 1.0
        return None if self.make_schedule is None else schedules.made(self.make_schedule, self.tuner.factor)

    @property
    def _total(self) -> int:
        """Steps over all trainings."""
        return self.steps * (1 + self.restarts)

    def _model(self) -> list[Tensor]:
        """Return all that a restart sets back: parameters, and buffers that no checkpoint of torch holds too."""
        model = self.tuner.model
        return [*model.parameters(), *model.buffers()]

    def run(self, callbacks: Sequence[Callback]) -> None:
        total, info = self._total, None
        with tqdm(total=total, initial=self.done, unit="step", disable=None) as bar:
            while self.done < total and not self.stopped:
                info = self._step()
                bar.update()
                if self.done % self.every == 0 or self.done == total:
                    if self.done == total and self._back_at_the_end():
                        info = replace(info, val=None)  # the row is that of the weights that came back
                    self.history.add(self._row(info))
                    self._tell(info)
                    self._save(force=False)
                    answers = [callback(info) for callback in callbacks]  # all are called
                    self.stopped = any(answer is True for answer in answers)
        if info is not None and self.done < total and self._back_at_the_end():
            self.history.amend(self._row(replace(info, val=None)))
        self._save(force=True)

    def _back_at_the_end(self) -> bool:
        """Bring back the weights with which the training ends, where they are not the last; return whether they do."""
        event = self.best.back() if self.best is not None else None
        if event is not None:
            self.history.events.append(event)
        elif self.guard is not None and (event := self.guard.end()):
            self._tell_of(event)
        return event is not None

    def _step(self) -> Info:
        """Take one step of the tuner, with its batches."""
        if self.tuner.steps == self.steps:
            with torch.no_grad():
                for tensor, value in zip(self._model(), self.initial, strict=True):
                    tensor.copy_(value)
            self.tuner.surround(self._initial_state)
            self.tuner.restart()
            self.schedule = self._scheduled()
            for watch in (self.guard, self.best):
                if watch is not None:
                    watch.begin()
        needs_val = self.tuner.needs_val
        val_batch = self.val.at(self.updates) if needs_val and self.val is not None else None
        batch = self._batch(self.done)
        info = self.tuner.step(batch, val_batch)
        if self.schedule is not None:
            self.schedule.step()
        self.done, self.updates = self.done + 1, self.updates + needs_val
        info = replace(info, step=self.done)
        if self.guard is not None and (event := self.guard.look(info, batch if self.accumulate == 1 else batch[0])):
            self._tell_of(event)
        if self.best is not None:
            self.best.look()
        return info

    def _batch(self, done: int) -> Any:
        """Return what step number `done` over all trainings is given."""
        first, count = done * self.accumulate, self.accumulate
        return self.train.at(first) if count == 1 else [self.train.at(first + k) for k in range(count)]

    def _tell_of(self, event: Event) -> None:
        """Note that a training was brought back, and say so the first time."""
        self.history.events.append(event._replace(step=self.done, since=event.since + self.done - event.step))
        if event.kind in self._told:
            return
        self._told.add(event.kind)
        ended = f"the training loss is {event.loss:g} at step {self.done}: "
        if event.kind == "bad batch":
            _warn(
                f"{ended}the loss of its batch is not finite at weights that were good before; they have come back, "
                "and training goes on; look for a bad value in the training data (history.events has every case)"
            )
        else:
            _warn(
                f"{ended}the training has diverged; the weights of step {event.since} have come back with the "
                f"learning rate {event.lr:.3g}, and training goes on (history.events has every case)"
            )

    def _tell(self, info: Info) -> None:
        """Say once that updates were skipped, or that the training has diverged; on a GPU only at the end."""
        if info.train.device.type != "cpu" and self.done < self._total:
            return
        self.history.skipped = self.tuner.skipped
        if self.history.skipped and "skipped" not in self._told:
            self._told.add("skipped")
            _warn(
                f"by step {self.done}, {self.history.skipped} update(s) of the hyperparameters had a hypergradient "
                "that is not finite and were skipped; look at the validation data (history.skipped counts them to the "
                "end)"
            )
        self._tell_of_a_stop()
        if self.guard is None and not bool(info.train.isfinite()) and "diverged" not in self._told:
            self._told.add("diverged")
            _warn(
                f"the training loss is {float(info.train):g} at step {self.done}: the training has diverged; start "
                "with a smaller learning rate, or look for a bad value in the training data"
            )

    def _tell_of_a_stop(self) -> None:
        """Say once that the learning rate has fallen to the end of its range, where no weight moves any more."""
        if "stopped" in self._told or "lr" not in self.tuner.hypers.tuned or self.tuner.method.outer is None:
            return
        low, high = self.tuner.hypers.blocks["lr"].hyper.bounds
        low = max(0.0, low)
        if low < high and self.tuner.lr <= low * (1 + 1e-3):
            self._told.add("stopped")
            _warn(
                f"by step {self.done} the learning rate has fallen to {low:g}, the end of its range, and the weights "
                "move no more; give the method a smaller rate in options, or take another"
            )

    def _row(self, info: Info) -> Row:
        val = info.val
        if val is None and self.val is not None:
            val = self.tuner.evaluate(self.val.at(self.updates))
        nan = torch.full_like(info.train, float("nan"))
        return Row(self.done, info.train, nan if val is None else val, self.tuner.raw)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _described(self) -> dict[str, str]:
        """Return what this training is of, as text by topic; it is asked for before the first step."""
        how, arguments = fingerprint.of_function, self.tuner._arguments
        return {
            "data": f"training data {fingerprint.of_data(self.train)}, validation data {fingerprint.of_data(self.val)}",
            "model": f"{self.tuner.configuration['model']} ({fingerprint.of_model(self.tuner.model)})",
            "loss": how(arguments["loss"]),
            "validation loss": how(arguments["val_loss"]),
            "watch": f"guard {self.guard is not None}, best {self.best is not None}",
            "schedule": how(self.make_schedule),
            "interval between rows": str(self.every),
            "number of steps": str(self.steps),
        }

    def _compare(self, saved: dict[str, str]) -> None:
        """Refuse a training of something else; one of another length may have another schedule and interval.

        Raises:
            GradtuneError: a topic differs; names the first.
        """
        resized = saved["number of steps"] != str(self.steps)
        for topic, own in self._topics.items():
            if saved[topic] != own and not (resized and topic in _OF_STEPS):
                raise GradtuneError(
                    f"{self.file} was saved with other {topic} ({saved[topic]}) than given ({own}); give the same, "
                    "choose another path, or remove the file"
                )

    def _save(self, force: bool) -> None:
        if self.file is None or not (force or time.monotonic() - self._saved >= self.pause):
            return
        checkpoints.save(self._state(), self.file)
        self._saved = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "tuner": self.tuner.state_dict(),
            "of": self._topics,
            "train": self.train.state(),
            "val": self.val.state() if self.val is not None else {},
            "history": self.history.state(),
            "happenings": self.history.happenings(),
            "initial": self.initial,
            "initial_state": self._initial_state,
            "schedule": {} if self.schedule is None else schedules.state(self.schedule),
            "guard": {} if self.guard is None else self.guard.state(),
            "best": {} if self.best is None else self.best.state(),
            "counts": [self.done, self.updates, int(self.stopped)],
        }

    def _check_counts(self, state: dict[str, Any]) -> None:
        done, updates, _ = state["counts"]
        if not 0 <= state["tuner"]["t"] <= done or not 0 <= updates <= done or done > self._total:
            raise GradtuneError(
                f"{self.file} was saved at step {state['tuner']['t']} of a training, {done} in all, and the training "
                f"has {self._total} here; ask for as many, choose another path, or remove the file"
            )

    def _check_restarts(self, initial: list[Tensor]) -> None:
        if len(initial) != len(self.initial):
            raise GradtuneError(
                f"{self.file} was saved {'with' if initial else 'without'} restarts, and restarts is "
                f"{self.restarts} here; use the same, or start anew with another path"
            )

    def _check_form(self, state: dict[str, Any]) -> None:
        """Refuse a state whose parts are not those of this training.

        Raises:
            TypeError: parts are missing or of other types or shapes.
        """
        own = self._state()
        for name in _PARTS_OF_A_FORM:
            if _form(state[name]) != _form(own[name]):
                raise TypeError(name)
        there, here = state["tuner"], own["tuner"]
        alike = there["configuration"] == here["configuration"]  # where not, the tuner says what differs
        if alike and _form(there["tensors"]) != _form(here["tensors"]):
            raise TypeError("tensors")

    def resume(self) -> None:
        """Note what the training is of, and go on from the file, if there is one.

        Raises:
            GradtuneError: the file is no whole checkpoint, or one of another training; says what differs.
        """
        self._topics = self._described()
        if self.file is None or not self.file.exists():
            return
        state = checkpoints.load(self.file, self.tuner.raw.device)
        with checkpoints.expected(self.file):
            self._check_counts(state)
            self._compare(state["of"])
            self._check_restarts(state["initial"])
            self._check_form(state)
            self._take_over(state)

    def _take_over(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            GradtuneError: it is that of a tuner of another configuration.
        """
        try:
            self.tuner.load_state_dict(state["tuner"])
        except GradtuneError as error:
            raise GradtuneError(f"{self.file}: {error}") from None
        self.train.load(state["train"])
        if self.val is not None:
            self.val.load(state["val"])
        self.history.load(state["history"])
        self.history.load_happenings(state["happenings"])
        self.initial, self._initial_state = state["initial"], state["initial_state"]
        for watch, name in ((self.guard, "guard"), (self.best, "best")):
            if watch is not None:
                watch.load(state[name])
        if self.schedule is not None:
            schedules.load(self.schedule, state["schedule"])
        self.done, self.updates, stopped = state["counts"]
        self.stopped = bool(stopped)


def _form(value: Any) -> Any:
    """Return what of a part is compared: names of a dict, shapes of tensors in a list, types of all else."""
    if isinstance(value, dict):
        return dict.fromkeys(value)
    if isinstance(value, list):
        return [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in value]
    return type(value).__name__


def race_in(file: Path) -> Race | None:
    """Return the race before the training that a checkpoint holds; None where there was none."""
    history = History(Hypers([], []), [])
    state = checkpoints.load(file, torch.device("cpu"))
    with checkpoints.expected(file):
        history.load_happenings(state["happenings"])
    return history.race


def _warn(text: str) -> None:
    warnings.warn(text, GradtuneWarning, stacklevel=6)
