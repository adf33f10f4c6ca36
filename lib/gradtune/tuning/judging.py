"""The first batches of a stream, taken aside: what candidates train on, and what they are compared by."""

from __future__ import annotations

from collections.abc import Iterator

from gradtune.tuning.batches import rows
from gradtune.tuning.streams import Batch, Loaded, Resident

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


def sample(val: Resident | Loaded, steps: int, like: int) -> list[Batch]:
    """Return the batches of validation that candidates are compared on: all, or some where that costs too much.

    Args:
        val: the batches of validation.
        steps: steps of the training.
        like: rows of a training batch. Some are as many rows as in four training batches, or in one for 75 steps where
            these are more.
    """
    enough = like * max(_LEAST, steps // _STEPS)
    one = first(val, 1)
    count, length = max(1, round(enough / rows(one[0]))), val.steps_per_epoch
    return list(val.once()) if length is not None and length <= count else [*one, *first(val, count)[1:]]
