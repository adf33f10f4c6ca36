"""The first batches of a stream, taken aside, and the validation loss over them: what candidates are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from gradtune.tuning.batches import rows
from gradtune.tuning.streams import Batch, Loaded, Resident
from gradtune.tuning.tuner import Tuner

_LEAST, _STEPS = 4, 75


def ends(feed: Resident | Loaded) -> bool:
    """Return whether the batches come from an iterator, which cannot start again."""
    return isinstance(getattr(feed, "loader", None), Iterator)


def first(feed: Resident | Loaded, count: int, together: int = 1) -> list[Batch]:
    """Return the first batches of a stream that does not end; it does not notice.

    Args:
        feed: the stream.
        count: number of batches.
        together: batches of a step; above 1, they come in lists of as many.
    """
    stream = feed.again()
    each = [stream.at(k) for k in range(count)]
    return each if together == 1 else [each[k : k + together] for k in range(0, count, together)]


def sample(val: Resident | Loaded, steps: int) -> list[Batch]:
    """Return the batches of validation that candidates are compared on: all, or some where that costs too much.

    Args:
        val: the batches of validation.
        steps: steps of the training. Some are four batches, or one for 75 steps where these are more; the rest is not
            left out where it is less than a batch.
    """
    enough, length = max(_LEAST, steps // _STEPS), val.steps_per_epoch
    if length is not None and length <= enough:
        return list(val.once())
    return first(val, enough)


def mean_loss(tuner: Tuner, batches: Sequence[Batch]) -> float:
    """Return the validation loss over some batches, in which a batch counts by its rows."""
    counts = [rows(b) for b in batches]
    losses = [tuner.evaluate(b) * n for b, n in zip(batches, counts, strict=True)]
    return float(torch.stack(losses).sum()) / sum(counts)
