"""A short race between learning rates before a training: `probe` returns the one to start from.

Every candidate trains for a few steps from the model's weights, with everything else fixed. The best three train on.
The smallest whose validation loss is within 15 % of the lowest wins. The model is left as it was; the training that
follows starts anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from gradtune.tuning.events import Candidate, Race
from gradtune.tuning.judging import first, mean_loss
from gradtune.tuning.streams import Batch, Loaded, Resident
from gradtune.tuning.tuner import Tuner

_HALVES = 2  # candidates to a decade
# name of the rule -> exponents of ten of the smallest and the largest candidate
_RANGES = {"adam": (-4.0, -1.0), "adamw": (-4.0, -1.0), "rmsprop": (-4.0, -1.0), "lion": (-5.0, -2.0)}
_ELSE = (-3.0, 0.5)
_ON = 3  # candidates that train on
_SHARE, _LEAST, _MOST = 50, 8, 100  # steps of a candidate: a share of the training, within limits
_LONGER = 3  # how many times as long the best few train
_NEAR = 0.15  # of the lowest loss: a race is short, which favours large rates
_ALIKE = 1.3  # ratio of two rates that are one candidate


def candidates(rule: str, start: float) -> list[float]:
    """Return the learning rates that race: two to a decade over the usual range of a rule, and the start.

    Args:
        rule: name of the rule.
        start: the learning rate that was given; it is left out where another candidate is within a factor of 1.3.
    """
    low, high = next((ends for name, ends in _RANGES.items() if rule.split()[-1] == name), _ELSE)
    usual = [10 ** (low + k / _HALVES) for k in range(round((high - low) * _HALVES) + 1)]
    apart = start > 0 and all(abs(math.log(start / rate)) > math.log(_ALIKE) for rate in usual)
    return sorted([*usual, *[start] * apart])


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

    Cost: about 0.3 times the `steps` steps, without derivatives of hyperparameters; of 250 steps 0.45 times. Memory:
    weights, buffers and the rule's buffers of three candidates, and the batches of a candidate.

    Args:
        tuner: trains the model and moves no hyperparameter.
        rule: name of its rule.
        train: batches of training, of which the first ones are taken, by every candidate the same.
        judged: batches of validation on which the candidates are compared.
        steps: steps of the training that follows.
        accumulate: batches of a step.
    """
    short, long = lengths(steps)
    begin, around = tuner.state_dict(), tuner.note()
    start, taken = tuner.lr, first(train, long * accumulate, accumulate)
    found: dict[float, tuple[Candidate, dict[str, Any]]] = {}
    rates = candidates(rule, start)
    with tqdm(total=len(rates) * short + _ON * (long - short), unit="step", disable=None, leave=False) as bar:
        bar.set_description("probing the learning rate")

        def on(lr: float, state: dict[str, Any], to: int) -> None:
            tuner.load_state_dict(state)
            tuner.scale_lr(lr / tuner.lr)
            for k in range(tuner.steps, to):
                tuner.step(taken[k])
                bar.update()
            loss = mean_loss(tuner, judged)
            found[lr] = Candidate(lr, to, loss if math.isfinite(loss) else math.inf), tuner.state_dict()

        for lr in rates:
            on(lr, begin, short)
            for slow in sorted(found, key=lambda r: found[r][0].val)[_ON:]:
                found[slow] = found[slow][0], {}  # its weights are not needed any more
        for lr in sorted(found, key=lambda r: found[r][0].val)[:_ON]:
            if found[lr][0].val < math.inf:
                on(lr, found[lr][1], long)
    tuner.load_state_dict(begin)
    tuner.bring_back(around)
    done = sum(c.steps for c, _ in found.values())
    return _result(found, start, done)


def _result(found: dict[float, tuple[Candidate, dict[str, Any]]], start: float, done: int) -> Race:
    every = tuple(found[lr][0] for lr in sorted(found))
    longest = max(c.steps for c in every)
    last = [c for c in every if c.steps == longest]
    lowest = min(c.val for c in last)
    lr = next(c.lr for c in last if c.val <= lowest + _NEAR * abs(lowest)) if lowest < math.inf else None
    return Race(every, lr, 1.0 if lr is None else lr / start, done)
