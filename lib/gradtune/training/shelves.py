"""Where the checkpoints of a training lie whose steps are taken again (`replayed`): in memory or in a folder."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.recursion.problems import Replayable
from gradtune.recursion.states import State
from gradtune.recursion.step import Problem
from gradtune.training import checkpoints

_LAST, _BACK = "last.pt", "back.pt"
_PAUSE = 2.0  # seconds between two notes of how far the way back has come


class Anchor(NamedTuple):
    """A state that a tree keeps, as a run carries it along.

    Attributes:
        t: number of the step that it is before, a tensor without dimensions.
        state: the state in a list, which the way back empties when it is done with it; one without entries where the
            state lies on disk.
    """

    t: Tensor
    state: list[State]


class Before(NamedTuple):
    """What a step starts from.

    Attributes:
        state: weights and buffers of the rule.
        seen: what the problem keeps beside them; None where it keeps nothing.
    """

    state: State
    seen: Any = None


class Shelf(Protocol):
    """Where checkpoints lie."""

    def put(self, t: int, before: Before, length: int) -> None:
        """Keep what the step number `t` starts from, the first of a part of `length` steps."""
        ...

    def get(self, t: int) -> Before: ...

    def drop(self, t: int) -> None: ...

    def progress(self) -> tuple[int, State, Tensor] | None:
        """Return how far an earlier way back has come: the next step's number plus 1, cotangent and sum."""
        ...

    def note(self, end: int, cot: State, total: Tensor) -> None: ...


class InMemory:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self._kept: dict[int, Before] = {}
        self._boxes: dict[int, list[State]] = {}

    def put(self, t: int, before: Before, length: int) -> None:
        self._kept[t] = before

    def empties(self, anchor: Anchor) -> None:
        """Empty the list of an anchor when its state is dropped."""
        self._boxes[int(anchor.t)] = anchor.state

    def has(self, t: int) -> bool:
        return t in self._kept

    def get(self, t: int) -> Before:
        return self._kept[t]

    def drop(self, t: int) -> None:
        self._kept.pop(t, None)
        self._boxes.pop(t, []).clear()

    def progress(self) -> tuple[int, State, Tensor] | None:
        return None

    def note(self, end: int, cot: State, total: Tensor) -> None:
        pass


class OnDisk:
    """Checkpoints in a folder, each a file with its digest that is written whole or not at all.

    Those before parts of a single step, k - 1 at most, stay in memory, as each would be read right after it is written.
    In a folder of the caller's, the state before the last step stays to the end: an interrupted way back begins there.

    Args:
        folder: the folder; None for a temporary one, which goes with this object.
        problem: packs what it keeps beside weights.

    Attributes:
        device: where tensors shall be that are read.
        last: the last step of the training; -1 before the way back.

    Raises:
        GradtuneError: a file cannot be written or read.
    """

    def __init__(self, folder: str | Path | None, problem: Problem) -> None:
        self.own = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="gradtune-tree-")) if folder is None else Path(folder)
        if self.own:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._problem = problem if isinstance(problem, Replayable) else None
        self._short, self._of, self._noted, self.last = InMemory(), "", 0.0, -1
        self.device = torch.device("cpu")

    # -- whose checkpoints these are -----------------------------------------------------------------------------------

    def begin(self, of: str, device: torch.device, anew: bool) -> None:
        """Begin a training, or go on with what is there of the same one.

        Args:
            of: text that tells trainings apart.
            device: where tensors shall be that are read.
            anew: whether to remove what is there of the same one.

        Raises:
            GradtuneError: the folder holds checkpoints of another training.
        """
        self.device, about = device, self.folder / "about.pt"
        found = checkpoints.load(about, self.device, "tree", "a tree")["tree"] if about.exists() else None
        if found is not None and found not in (of, self._of):
            raise GradtuneError(
                f"{self.folder} holds checkpoints of another training (other weights, hyperparameters or number of "
                "steps); choose another folder, or empty it"
            )
        if found != of or anew:
            self.clear()
            checkpoints.save({"tree": of}, about)
        self._of = of

    def _own(self) -> str:
        """Return what tells the training apart; that of the folder where it has begun elsewhere."""
        about = self.folder / "about.pt"
        if not self._of and about.exists():
            self._of = checkpoints.load(about, self.device, "tree", "a tree")["tree"]
        return self._of

    def clear(self) -> None:
        """Remove all files of a training."""
        named = [self._file(t) for t in self.times()] + [self.folder / name for name in (_LAST, _BACK, "about.pt")]
        for file in [*named, *self.folder.glob(".*.part")]:
            file.unlink(missing_ok=True)
        self._short = InMemory()

    def times(self) -> list[int]:
        """Return the steps whose states are there, in order; the one before the last step is there again."""
        if (last := self.folder / _LAST).exists():
            last.replace(self._file(checkpoints.load(last, self.device, "of", "a tree")["t"]))
        return sorted(int(file.stem.partition("-")[2]) for file in self.folder.glob("state-*.pt"))

    # -- states --------------------------------------------------------------------------------------------------------

    def put(self, t: int, before: Before, length: int) -> None:
        if length == 1:
            self._short.put(t, before, 1)
            return
        seen = None if self._problem is None else self._problem.packed(before.seen)
        content = {"of": self._own(), "t": t, "w": before.state.w, "buf": before.state.buf, "seen": seen}
        checkpoints.save(content, self._file(t))

    def get(self, t: int) -> Before:
        if self._short.has(t):
            return self._short.get(t)
        found = checkpoints.load(self._file(t), self.device, "of", "a tree")
        if found["of"] != self._own():
            raise GradtuneError(f"{self._file(t)} is of another training; choose another folder, or empty it")
        with checkpoints.expected(self._file(t)):
            seen = None if self._problem is None else self._problem.unpacked(found["seen"])
            return Before(State(found["w"], found["buf"]), seen)

    def drop(self, t: int) -> None:
        self._short.drop(t)
        if t == self.last and not self.own and self._file(t).exists():
            self._file(t).replace(self.folder / _LAST)
        self._file(t).unlink(missing_ok=True)

    def _file(self, t: int) -> Path:
        return self.folder / f"state-{t}.pt"

    # -- the way back --------------------------------------------------------------------------------------------------

    def progress(self) -> tuple[int, State, Tensor] | None:
        file = self.folder / _BACK
        if not file.exists():
            return None
        found = checkpoints.load(file, self.device, "of", "a tree")
        if found["of"] != self._own():
            return None
        return found["end"], State(found["w"], found["buf"]), found["total"]

    def note(self, end: int, cot: State, total: Tensor) -> None:
        if self.own or time.monotonic() - self._noted < _PAUSE:
            return
        content = {"of": self._own(), "end": end, "w": cot.w, "buf": cot.buf, "total": total}
        checkpoints.save(content, self.folder / _BACK)
        self._noted = time.monotonic()
