"""What happens to a training beside its steps: events, and the race of learning rates before it."""

from __future__ import annotations

from typing import NamedTuple


class Event(NamedTuple):
    """What happened to a training at a step.

    Attributes:
        step: steps taken.
        kind: "rewound" where the training had diverged, and the last good weights came back with a lower learning rate;
            "bad batch" where the loss of a batch is not finite at good weights, which came back as they were; "kept"
            where the training ended with the weights of an earlier step, whose validation loss was lower.
        loss: the loss that was the reason; for "kept", the validation loss.
        lr: the learning rate from there on.
        since: the step whose weights came back.
    """

    step: int
    kind: str
    loss: float
    lr: float
    since: int


class Candidate(NamedTuple):
    """What a learning rate came to in a race.

    Attributes:
        lr: the learning rate; where there are several, their geometric mean.
        steps: training steps taken.
        val: validation loss after them; infinite where it is not finite.
    """

    lr: float
    steps: int
    val: float


class Race(NamedTuple):
    """A race between learning rates.

    Attributes:
        candidates: the candidates, the slowest learning rate first.
        best: the learning rate that won; None where the loss of every candidate was not finite.
        steps: training steps of all candidates together.
    """

    candidates: tuple[Candidate, ...]
    best: float | None
    steps: int
