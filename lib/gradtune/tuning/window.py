"""What the steps between two outer updates saw, for a method that takes them again in order from a few checkpoints.

Batches are kept by reference, or asked for again where their source can give them a second time; buffers and the rest
of what a model keeps are kept at checkpoints alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from gradtune.nets.surroundings import Noted
from gradtune.tuning.batches import Batch

Source = Callable[[int], list[Batch]]


class Seen(NamedTuple):
    """What a step sees of a model beside the weights.

    Attributes:
        buffers: the module's buffers before the step, by name.
        noted: what else the module and the loss had, see `Surroundings`.
    """

    buffers: dict[str, Tensor | None]
    noted: Noted | None


class Window:
    """The steps since the last outer update.

    Args:
        keep: how many steps an estimator looks back.

    Attributes:
        marks: what steps with a checkpoint saw, by step.
        source: returns the batches of a step again; None where they have to be kept.
        placed: the step that is taken again now; -1 for none.
        found: what the step that is taken again has left, at most once for each part of it.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._given: dict[int, tuple[list[Batch] | None, float]] = {}
        self.marks: dict[int, Seen] = {}
        self.source: Source | None = None
        self.placed, self.found = -1, list[Any]()

    def give(self, t: int, batches: list[Batch], lr_factor: float) -> None:
        """Note what step `t` is given."""
        self._given.pop(t, None)  # a step that is tried again
        if self.source is None or lr_factor != 1.0:
            self._given[t] = (batches if self.source is None else None, lr_factor)
        while self._given and next(iter(self._given)) <= t - self._keep:
            del self._given[next(iter(self._given))]

    def batches(self, t: int) -> list[Batch]:
        """Return the batches of step `t`."""
        kept = self._given[t][0] if t in self._given else None
        if kept is None:
            assert self.source is not None
            return self.source(t)
        return kept

    def factor(self, t: int) -> float:
        """Return what step `t` multiplied the learning rate by; 1 where nobody has said otherwise."""
        return self._given[t][1] if t in self._given else 1.0

    def forget(self) -> None:
        """Forget all steps."""
        self._given.clear()
        self.marks.clear()
        self.placed, self.found = -1, []

    def state(self) -> list[dict[str, Any]]:
        """Return the steps for a checkpoint, without `marks`."""
        return [{"t": t, "batches": batches, "lr_factor": factor} for t, (batches, factor) in self._given.items()]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Take over what `state` returned."""
        self.forget()
        self._given = {each["t"]: (each["batches"], each["lr_factor"]) for each in state}
