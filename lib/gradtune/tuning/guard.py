"""What watches over a training: `Guard` brings one back that diverges, `Best` keeps the best weights of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradtune.tuning.events import Event
from gradtune.tuning.info import Info
from gradtune.tuning.streams import Batch
from gradtune.tuning.trials import mean_losses
from gradtune.tuning.tuner import Tuner

FACTOR = 10.0
"""How many times as large as at the start a loss may be before the training counts as diverged."""
FALL = 0.3
"""What the learning rate is multiplied by when a training is brought back."""
_IN_A_ROW = 3  # losses above the limit: one may be a hard batch
_OFTEN = 50  # good weights to a training
_LOOKS = 15  # at the validation loss in a training


class Guard:
    """Brings a training back that diverges.

    It has diverged where a loss is not finite, or where three losses in a row are more than `FACTOR` times as large as
    the loss at the start. Then the last good weights, buffers and hyperparameters come back, and all learning rates are
    `FALL` times what they were. Steps that were lost are not taken again: the training goes on at the step and the
    batch that are next.

    Weights are good where the mean of the losses after them is at most twice that at the start. They are looked at 50
    times in a training; where the last ones are not good, the training ends with the last that were.

    Cost: none but reading the loss, on a GPU 50 times in a training. Memory: weights, buffers and the rule's buffers
    twice more.

    Args:
        tuner: trains the model.
        steps: steps of the training.
        judged: batches of validation that say, beside the first training batch, how large a loss is at the start.
    """

    def __init__(self, tuner: Tuner, steps: int, judged: Sequence[Batch] = ()) -> None:
        self._tuner, self._pace = tuner, max(1, min(steps // _OFTEN, 100))
        self._judged = judged
        self._waits = tuner.raw.device.type != "cpu"
        self.begin()

    def begin(self) -> None:
        """Begin a training from the weights that the model has."""
        before = mean_losses([self._tuner], self._judged)[0] if self._judged else 0.0
        self._before = before if math.isfinite(before) else 0.0
        self._first: float | None = None
        self._losses: deque[Tensor | float] = deque(maxlen=max(self._pace, _IN_A_ROW))
        self._good, self._since = self._tuner.state_dict(), self._tuner.steps
        self._later: tuple[dict[str, Any], int] | None = None

    def look(self, info: Info, batch: Batch) -> Event | None:
        """Look at a step; bring the training back where it has diverged.

        Args:
            info: what the step has done.
            batch: its batch, or the first of its batches.

        Returns:
            What has been done; None where nothing had to be.
        """
        self._losses.append(info.train if self._waits else float(info.train))
        pace = self._tuner.steps % self._pace == 0
        if self._waits and not pace:
            return None
        recent = [float(loss) for loss in self._losses]
        if self._first is None and math.isfinite(recent[0]):
            self._first = max(recent[0], self._before, key=abs)
        bad = next((x for x in recent if not math.isfinite(x)), None)
        limit, last = self._above(FACTOR), recent[-_IN_A_ROW:]
        if bad is None and len(last) == _IN_A_ROW and min(last) > limit > 0:
            bad = recent[-1]
        if bad is not None:
            return self._back(bad, batch)
        if pace and self._calm(recent):
            if self._later is not None:
                self._good, self._since = self._later
            self._later = self._tuner.state_dict(), self._tuner.steps
        return None

    def end(self) -> Event | None:
        """Bring the last good weights back at the end of a training whose weights are not good."""
        recent = [float(loss) for loss in self._losses]
        if not recent or self._calm(recent):
            return None
        restored(self._tuner, self._good)
        return Event(self._tuner.steps, "rewound", recent[-1], self._tuner.lr, self._since)

    def _above(self, factor: float) -> float:
        """Return the loss that is `factor` times as large as that at the start, where this is positive."""
        first = self._first or 0.0
        return first + (factor - 1) * abs(first)

    def _calm(self, recent: list[float]) -> bool:
        return sum(recent) / len(recent) <= self._above(2.0)

    def _back(self, loss: float, batch: Batch) -> Event:
        tuner, now = self._tuner, self._tuner.steps
        self._losses.clear()
        self._later = None
        restored(tuner, self._good)
        spoilt = not math.isfinite(loss) and not bool(tuner.training_loss(batch).isfinite())
        if not spoilt:
            tuner.scale_lr(FALL)
            self._good = tuner.state_dict()  # the next fall begins where this one has ended
        return Event(now, "bad batch" if spoilt else "rewound", loss, tuner.lr, self._since)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, which `load` takes back."""
        first = math.nan if self._first is None else self._first
        kept = {"good": self._good, "since": self._since, "later": list(self._later or ()), "first": first}
        return kept | {"losses": [float(loss) for loss in self._losses]}

    def load(self, state: dict[str, Any]) -> None:
        self._good, self._since = state["good"], state["since"]
        self._later = (state["later"][0], state["later"][1]) if state["later"] else None
        self._first = None if math.isnan(state["first"]) else state["first"]
        self._losses.clear()
        self._losses.extend(state["losses"])


class Best:
    """Keeps the weights and buffers of the step at which the validation loss was lowest.

    The loss is looked at 15 times in a training, each time on the same batches.

    Cost: 15 forward passes of these batches. Memory: weights, buffers and the rule's buffers once more.

    Args:
        tuner: trains the model.
        judged: the batches of validation.
        steps: steps of the training.
    """

    def __init__(self, tuner: Tuner, judged: Sequence[Batch], steps: int) -> None:
        self._tuner, self._judged, self._pace, self._steps = tuner, judged, max(1, steps // _LOOKS), steps
        self.begin()

    def begin(self) -> None:
        """Begin a training."""
        self._loss, self._since = math.inf, 0
        self._kept: dict[str, Any] | None = None

    def look(self) -> None:
        """Look at the validation loss, if it is time, and keep the weights where it is the lowest so far."""
        done = self._tuner.steps
        if done % self._pace and done != self._steps:
            return
        loss = mean_losses([self._tuner], self._judged)[0]
        if loss <= self._loss:
            self._loss, self._since, self._kept = loss, done, self._tuner.state_dict()

    def back(self) -> Event | None:
        """Bring back the weights that were best, at the end of a training."""
        if self._kept is None or self._since == self._tuner.steps:
            return None
        now = self._tuner.steps
        restored(self._tuner, self._kept)
        return Event(now, "kept", self._loss, self._tuner.lr, self._since)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, which `load` takes back."""
        return {"loss": self._loss, "since": self._since, "kept": self._kept or {}}

    def load(self, state: dict[str, Any]) -> None:
        self._loss, self._since, self._kept = state["loss"], state["since"], state["kept"] or None


def restored(tuner: Tuner, state: dict[str, Any]) -> None:
    """Bring back weights, buffers and hyperparameters from a state of the tuner; its steps go on from where they are.

    Estimators forget the steps that they would look back on.
    """
    factor = tuner.factor.value
    with torch.no_grad():
        tuner.load_state_dict({**state, "t": tuner.steps, "past": [], "held": []})
    tuner.factor.value = factor
