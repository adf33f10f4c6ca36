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
from gradtune.tuning.judging import mean_loss
from gradtune.tuning.streams import Batch
from gradtune.tuning.tuner import Tuner

FACTOR = 10.0
"""How many times the size of the first loss a loss may lie above it before the training counts as diverged."""
FALL = 0.3
"""What the learning rate is multiplied by when a training is brought back."""
_IN_A_ROW = 3  # losses above the limit: one may be a hard batch
_OFTEN = 50  # good weights to a training
_LOOKS = 25  # at the validation loss in a training


class Guard:
    """Brings a training back that diverges.

    It has diverged where a loss is not finite, or where three losses in a row lie above the first one by more than
    `FACTOR` times its size. Then the last good weights, buffers and hyperparameters come back, and all learning rates
    are `FALL` times what they were. Steps that were lost are not taken again: the training goes on at the step and the
    batch that are next.

    Weights are good where the mean of the last losses is at most twice the first one. They are looked at 50 times in a
    training.

    Cost: none but reading the loss, on a GPU 50 times in a training. Memory: weights, buffers and the rule's buffers
    once more.

    Args:
        tuner: trains the model.
        steps: steps of the training.
    """

    def __init__(self, tuner: Tuner, steps: int) -> None:
        self._tuner, self._pace = tuner, max(1, min(steps // _OFTEN, 100))
        self._waits = tuner.raw.device.type != "cpu"
        self.begin()

    def begin(self) -> None:
        """Begin a training from the weights that the model has."""
        self._first: float | None = None
        self._losses: deque[Tensor] = deque(maxlen=max(self._pace, _IN_A_ROW))
        self._good, self._since = self._tuner.state_dict(), self._tuner.steps

    def look(self, info: Info, batch: Batch) -> Event | None:
        """Look at a step; bring the training back where it has diverged.

        Args:
            info: what the step has done.
            batch: its batch, or the first of its batches.

        Returns:
            What has been done; None where nothing had to be.
        """
        self._losses.append(info.train)
        pace = self._tuner.steps % self._pace == 0
        if self._waits and not pace:
            return None
        recent = [float(loss) for loss in (self._losses if pace else list(self._losses)[-_IN_A_ROW:])]
        if self._first is None:
            self._first = recent[0]
        limit = self._first + (FACTOR - 1) * abs(self._first)
        bad = next((x for x in recent if not math.isfinite(x)), None)
        if bad is None and len(recent) >= _IN_A_ROW and min(recent[-_IN_A_ROW:]) > limit and self._first:
            bad = recent[-1]
        if bad is not None:
            return self._back(bad, batch)
        if pace and sum(recent) / len(recent) <= self._first + abs(self._first):
            self._good, self._since = self._tuner.state_dict(), self._tuner.steps
        return None

    def _back(self, loss: float, batch: Batch) -> Event:
        tuner, now, reached = self._tuner, self._tuner.steps, self._tuner.lr
        self._losses.clear()
        restored(tuner, self._good)
        spoilt = not math.isfinite(loss) and not bool(tuner.training_loss(batch).isfinite())
        if not spoilt:
            wanted = FALL * (min(reached, tuner.lr) if math.isfinite(reached) else tuner.lr)
            if tuner.lr > 0:
                tuner.scale_lr(wanted / tuner.lr)
            self._good = tuner.state_dict()  # the next fall begins where this one has ended
        return Event(now, "bad batch" if spoilt else "rewound", loss, tuner.lr, self._since)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs, which `load` takes back."""
        first = math.nan if self._first is None else self._first
        return {"good": self._good, "since": self._since, "first": first, "losses": list(self._losses)}

    def load(self, state: dict[str, Any]) -> None:
        self._good, self._since = state["good"], state["since"]
        self._first = None if math.isnan(state["first"]) else state["first"]
        self._losses.clear()
        self._losses.extend(state["losses"])


class Best:
    """Keeps the weights and buffers of the step at which the validation loss was lowest.

    The loss is looked at 25 times in a training, each time on the same batches.

    Cost: 25 forward passes of these batches. Memory: weights, buffers and the rule's buffers once more.

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
        loss = mean_loss(self._tuner, self._judged)
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
