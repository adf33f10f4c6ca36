"""A short race between learning rates before a training: `race` finds the one to start from.

Every candidate trains for a few steps from the model's weights, with everything else fixed. While the best one is the
largest or the smallest of all, the next one beyond it joins. The best three train on. The largest of them whose
validation loss is within `_NEAR` of the lowest wins: the rate falls later in the training, which forgives a large one.
The model is left as it was; the training that follows starts anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from gradtune.tuning.events import Candidate, Race
from gradtune.tuning.judging import first
from gradtune.tuning.streams import Batch, Loaded, Resident
from gradtune.tuning.trials import mean_losses
from gradtune.tuning.tuner import Tuner

_ROOT = 10**0.5  # ratio of two neighbours
# name of the rule -> exponents of ten of the smallest and the largest candidate
_RANGES = {"adam": (-4.0, -1.0), "adamw": (-4.0, -1.0), "rmsprop": (-4.0, -1.0), "lion": (-5.0, -2.0)}
_ELSE = (-3.0, 0.5)
_LOWEST, _HIGHEST = 1e-6, 10.0  # ends of the range where it is extended
_ON = 3  # candidates that train on
_SHARE, _LEAST, _MOST = 60, 6, 100  # steps of a candidate: a share of the training, within limits
_LONGER = 3  # how many times as long the best few train
_NEAR = 0.25
_FLAT = 0.02  # share of the first loss by which at least one candidate has to improve


def candidates(rule: str) -> list[float]:
    """Return the learning rates that race at first: two to a decade over the usual range of a rule.

    Args:
        rule: name of the rule.
    """
    low, high = next((ends for name, ends in _RANGES.items() if rule.split()[-1] == name), _ELSE)
    return [10 ** (low + k / 2) for k in range(round(2 * (high - low)) + 1)]


def lengths(steps: int) -> tuple[int, int]:
    """Return how many steps a candidate trains, and how many the best few do in all.

    Args:
        steps: steps of the training that follows.
    """
    first = min(max(_LEAST, steps // _SHARE), _MOST, max(1, steps // 25))
    return first, _LONGER * first


def race(
    tuner: Tuner, rule: str, train: Resident | Loaded, judged: Sequence[Batch], steps: int, accumulate: int = 1
) -> Race:
    """Let learning rates race, and leave the model as it was.

    Cost: about 0.25 times the `steps` steps, without derivatives of hyperparameters. Memory: weights, buffers and the
    rule's buffers of three candidates, and the batches of a candidate.

    Args:
        tuner: trains the model and moves no hyperparameter.
        rule: name of its rule.
        train: batches of training, of which the first ones are taken, by every candidate the same.
        judged: batches of validation on which the candidates are compared.
        steps: steps of the training that follows.
        accumulate: batches of a step.
    """
    short, long = lengths(steps)
    taken = first(train, long * accumulate, accumulate)
    around, untrained = tuner.note(), mean_losses([tuner], judged)[0]
    rates = candidates(rule)
    with tqdm(desc="probing the learning rate", unit="step", disable=None, leave=False) as bar:
        field = _Field(tuner, taken, judged, bar.update)
        for lr in rates:
            field.run(lr, short)
        while (beyond := field.beyond()) is not None:
            field.run(beyond, short)
        for lr in field.best(_ON):
            field.run(lr, long)
    tuner.load_state_dict(field.begin)
    tuner.bring_back(around)
    every = field.found()
    best = _winner(every, untrained, rates[len(rates) // 2])
    return Race(every, best, sum(c.steps for c in every))


class _Field:
    """The candidates of a race and where they are."""

    def __init__(
        self, tuner: Tuner, taken: Sequence[Batch], judged: Sequence[Batch], tick: Callable[[], object]
    ) -> None:
        self._tuner, self._taken, self._judged, self._tick = tuner, taken, judged, tick
        self.begin = tuner.state_dict()
        self._found: dict[float, tuple[Candidate, dict[str, Any]]] = {}

    def run(self, lr: float, to: int) -> None:
        """Train a candidate until it has taken `to` steps; only the best few keep their weights."""
        tuner = self._tuner
        tuner.load_state_dict(self._found[lr][1] if lr in self._found else self.begin)
        tuner.lr = lr
        for k in range(tuner.steps, to):
            tuner.step(self._taken[k])
            self._tick()
        loss = mean_losses([tuner], self._judged)[0]
        self._found[lr] = Candidate(lr, to, loss if math.isfinite(loss) else math.inf), tuner.state_dict()
        for slow in sorted(self._found, key=lambda r: self._found[r][0].val)[_ON:]:
            self._found[slow] = self._found[slow][0], {}

    def best(self, count: int) -> list[float]:
        """Return the best learning rates so far whose loss is finite, the best one first."""
        order = sorted(self._found, key=lambda r: self._found[r][0].val)
        return [lr for lr in order[:count] if self._found[lr][0].val < math.inf]

    def beyond(self) -> float | None:
        """Return the next learning rate beyond the best one, where that is the last of all on its side."""
        (best,) = self.best(1) or (None,)
        if best is None:
            return None
        low, high = min(self._found), max(self._found)
        if best == high and best * _ROOT < _HIGHEST * 1.01:
            return best * _ROOT
        return best / _ROOT if best == low and best / _ROOT > _LOWEST * 0.99 else None

    def found(self) -> tuple[Candidate, ...]:
        """Return the candidates, the smallest learning rate first."""
        return tuple(self._found[lr][0] for lr in sorted(self._found))


def _winner(every: Sequence[Candidate], untrained: float, middle: float) -> float | None:
    """Return the learning rate that wins: the middle one where none has lowered the loss; None where none is finite."""
    longest = max(c.steps for c in every)
    last = [c for c in every if c.steps == longest]
    lowest = min(c.val for c in last)
    if lowest == math.inf:
        return None
    if untrained - lowest < _FLAT * abs(untrained):
        return middle
    return max(c.lr for c in last if c.val <= lowest + _NEAR * abs(lowest))
