"""Steps of a user's module that are taken again in order, from checkpoints: `problems.Replayable`."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from gradtune.nets.single import Single
from gradtune.nets.surroundings import Noted
from gradtune.tuning.batches import Batch
from gradtune.tuning.window import Seen, Window


class Held(NamedTuple):
    """What a step saw.

    Attributes:
        batches: the batches of the step, whose gradients are averaged.
        buffers: the module's buffers before the step, by name.
        lr_factor: what the step multiplies the learning rate by.
        noted: what else the module and the loss had before the step, see `Surroundings`; None where no estimator looks
            back.
    """

    batches: list[Batch]
    buffers: dict[str, Tensor | None]
    lr_factor: float = 1.0
    noted: Noted | None = None


class TakenAgain:
    """What a problem says of its steps where they are taken again in order."""

    single: Single
    held: dict[int, Held]
    window: Window | None

    def mark(self, t: int, keep: bool) -> Seen:
        """Return what step `t` sees of the model beside the weights; see `problems.Replayable`."""
        assert self.window is not None
        if t in self.window.marks:
            return self.window.marks[t]
        seen = Seen(self.held[t].buffers, self.held[t].noted)
        if keep:
            self.window.marks[t] = seen
        return seen

    def place(self, t: int, seen: Seen) -> None:
        """Let the next gradient of step `t` see this; see `problems.Replayable`."""
        assert self.window is not None
        self.held = {t: Held(self.window.batches(t), seen.buffers, self.window.factor(t), seen.noted)}
        self.window.placed, self.window.found = t, []

    def left(self) -> Seen:
        """Return what the step after that one sees; see `problems.Replayable`."""
        assert self.window is not None
        self.window.placed = -1
        return Seen(*self.window.found[0])

    def packed(self, seen: Seen) -> dict[str, Any]:
        """Return what a file can hold of what a step saw."""
        return {"buffers": seen.buffers, "noted": seen.noted and self.single.around.saved(seen.noted)}

    def unpacked(self, packed: dict[str, Any]) -> Seen:
        """Return what `packed` was given."""
        noted = packed["noted"]
        return Seen(packed["buffers"], None if noted is None else self.single.around.loaded(noted))

    def forget(self) -> None:
        """Forget all steps that could be taken again."""
        if self.window is not None:
            self.window.forget()

    def _saved_window(self, window: Window) -> list[dict[str, Any]]:
        marks = [{"t": t, "seen": self.packed(seen)} for t, seen in window.marks.items()]
        return [{"steps": window.state(), "marks": marks}]

    def _load_window(self, window: Window, saved: list[dict[str, Any]]) -> None:
        window.load(saved[0]["steps"] if saved else [])
        for mark in saved[0]["marks"] if saved else []:
            window.marks[mark["t"]] = self.unpacked(mark["seen"])
