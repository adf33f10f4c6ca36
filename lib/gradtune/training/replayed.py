"""Reverse mode in memory that does not grow with the training: steps taken again from a tree of checkpoints.

`Replays` keeps the states that the tree wants while a training runs; `Trail` then visits its steps from the last to the
first. A step that is taken again has to give the weights that it gave in the training, to the bit: it is a function of
the state before it, of what the model keeps beside weights (`problems.Replayable`) and of the step's number. This is
checked wherever steps that were taken again meet a state that was kept before.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from gradtune.errors import GradtuneError
from gradtune.estimators.reverse import Reverse
from gradtune.estimators.tree import TreeCost, edge, starts
from gradtune.recursion.problems import Replayable
from gradtune.recursion.states import State
from gradtune.recursion.step import Problem, Step
from gradtune.training.programs import same_bits
from gradtune.training.shelves import Anchor, Before, InMemory, OnDisk, Shelf

Make = Callable[[int, State, bool], Step]
Take = Callable[[int, Before, bool], "tuple[Step, Any]"]


class Trail(Sequence[Step]):
    """The steps of a training, to be visited from the last to the first by `reversed`, once.

    A step comes with a graph over its gradient, but for the first one where nothing goes through it.

    Args:
        shelf: where the checkpoints lie; they are dropped on the way.
        times: the steps whose states are kept, in order; the first of them is the first of the trail.
        end: number of steps up to the end.
        final: the state at the end.
        take: takes step number t from what it starts from, with or without a graph over its gradient, and returns it
            with what the problem keeps after it.
        branching: k of the tree.
        all_graphs: whether the first step needs a graph too.

    Attributes:
        final: as given.
        replayed: steps that were taken again without a graph so far.
        states: the largest number of states kept at once so far.

    Raises:
        GradtuneError: `reversed` meets a step that gave other weights in the training.
    """

    def __init__(
        self,
        shelf: Shelf,
        times: Sequence[int],
        end: int,
        final: State,
        take: Take,
        branching: int,
        all_graphs: bool,
    ) -> None:
        self._all_graphs, self._apart = all_graphs, False  # whether steps with a graph differ from those without
        self._derived: set[int] = set()  # steps that lead to the next kept state, as it was made by taking them again
        self._shelf, self._times, self._end, self._take, self._k = shelf, list(times), end, take, branching
        self.final, self.replayed, self.states = final, 0, len(self._times)
        self._first, self._all = self._times[0], end

    def __len__(self) -> int:
        return self._end - self._first

    def __getitem__(self, k: Any) -> Any:
        raise TypeError("the steps of a trail are visited by reversed(trail)")

    @property
    def cost(self) -> TreeCost:
        """What the way back has cost so far."""
        return TreeCost(self.replayed, self.states)

    def progress(self) -> tuple[State, Tensor] | None:
        """Return cotangent and sum of an earlier, interrupted way back; the steps that it has done are left out."""
        found = self._shelf.progress()
        if found is None:
            return None
        self._end = found[0]
        for t in self._times[bisect_left(self._times, self._end) :]:
            self._shelf.drop(t)
        self._times = self._times[: bisect_left(self._times, self._end)]
        return found[1:]

    def note(self, cot: State, total: Tensor) -> None:
        """Note the cotangent of the state before the last step that was visited, and the sum of the shares."""
        self._shelf.note(self._end, cot, total)

    def __reversed__(self) -> Iterator[Step]:
        after = self.final if self._end == self._all else None
        while self._end > self._first:
            t = self._times[-1]
            if self._end - t > 1:
                self._cut(t, self._end - t)
                continue
            before = self._shelf.get(t)
            step = self._checked(t, before, None if t in self._derived else after)
            self._derived.discard(t)
            self._times.pop()
            self._shelf.drop(t)
            self._end, after = t, before.state
            yield step

    def _checked(self, t: int, before: Before, after: State | None) -> Step:
        """Return step number `t` with its graph, after a check that it leads to a state; None checks nothing."""
        graph = self._all_graphs or t > self._first
        if after is not None and self._apart and not self._agrees(t, before, after):
            raise self._other(t)
        step, _ = self._take(t, before, graph)
        if after is None or self._apart or _same(step.next, after):
            return step
        self._apart = True
        if not self._agrees(t, before, after):
            raise self._other(t)
        return self._take(t, before, graph)[0]  # the problem is at this step again

    def _other(self, t: int) -> GradtuneError:
        return GradtuneError(
            f"step {t}, taken again, does not give the weights that it gave in the training: weights or hyperparameters"
            " were changed between two steps, a batch is another, or the device does not compute the same bits twice "
            "(torch.use_deterministic_algorithms(True) makes it); use store='state'"
        )

    def _cut(self, t: int, steps: int) -> None:
        """Keep the states before the parts of some steps, by taking them again up to the last part."""
        first, inner = self._shelf.get(t), starts(steps, self._k)
        before, ends = first, [*inner[1:], steps]
        for place in range(inner[-1]):
            step, seen = self._take(t + place, before, False)
            before = Before(step.next, seen)
            self.replayed += 1
            if place + 1 in inner:
                number = inner.index(place + 1)
                if place in inner:
                    self._derived.add(t + place)
                self._times.append(t + place + 1)
                self._shelf.put(t + place + 1, before, ends[number] - inner[number])
        self.states = max(self.states, len(self._times))

    def _agrees(self, t: int, before: Before, after: State) -> bool:
        """Return whether step number `t` leads to a state when it is taken as in the training.

        A gradient without its graph may differ in the last bit, and the next step's forward pass may have written into
        the weights that it was given (`max_norm`).
        """
        step, seen = self._take(t, before, False)
        if not _same(step.next, after) and t + 1 < self._all:
            self._take(t + 1, Before(step.next, seen), False)
        return _same(step.next, after)


def _same(a: State, b: State) -> bool:
    return same_bits(a.w, b.w) and all(same_bits(x, b.buf[n]) for n, x in a.buf.items())


class Replays:
    """The checkpoints of a training whose steps are taken again.

    Args:
        problem: the losses.
        how: reverse mode over a tree.
        every: training steps between two outer updates.

    Attributes:
        steps: steps that reverse mode goes back from an outer update.
    """

    def __init__(self, problem: Problem, how: Reverse, every: int) -> None:
        self._problem, self._every, self._branching = problem, every, how.branching
        self.steps = min(how.horizon, every)
        self._edge = frozenset(edge(self.steps, how.branching))
        self._disk = OnDisk(how.folder, problem) if how.on == "disk" else None
        self._trail: Trail | None = None

    @property
    def cost(self) -> TreeCost | None:
        """What the last way back has cost; None before the first."""
        return None if self._trail is None else self._trail.cost

    def form(self, state: State) -> Anchor:
        """Return an anchor as a run carries it along, with a state like this one."""
        return Anchor(torch.zeros((), dtype=torch.int64), [state] if self._disk is None else [])

    def _position(self, t: int) -> int:
        """Return the place of a step among those that reverse mode goes back to; negative where it is none of them."""
        return t % self._every - (self._every - self.steps)

    def before(self, t: int, state: State, raw: Tensor, past: Sequence[Any]) -> tuple[Any, ...]:
        """Keep the state before step number `t`, where the tree wants it; return all that are kept.

        Args:
            t: number of the step.
            state: the state before it.
            raw: the hyperparameters in force.
            past: the states that are kept, as `Anchor`.
        """
        place = self._position(t)
        if place < 0 or (past and (place not in self._edge or int(past[-1].t) == t)):
            return tuple(past)
        seen = self._problem.mark(t, self._disk is None) if isinstance(self._problem, Replayable) else None
        if self._disk is None:
            return (*past, Anchor(torch.tensor(t), [state]))
        if not past:
            self._disk.begin(self._described(t, state, raw), state.w.device, anew=True)
        self._disk.put(t, Before(state, seen), self.steps)
        return (*past, Anchor(torch.tensor(t), []))

    def _described(self, t: int, state: State, raw: Tensor) -> str:
        digest = hashlib.sha256(f"{t} {self.steps} {self._branching} ".encode())
        for x in (*tree_flatten(state)[0], raw):
            digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def resumed(self, t: int, state: State, raw: Tensor) -> tuple[int, Before, tuple[Any, ...]] | None:
        """Return where a training that was interrupted goes on, from its folder: step, state and kept states.

        Args:
            t: number of the next step.
            state: the state before it.
            raw: the hyperparameters in force.

        Returns:
            The step to go on with, what it starts from, and the states that are kept; None where the folder has none
            of this training.

        Raises:
            GradtuneError: the folder holds checkpoints of another training, or a file is damaged.
        """
        if self._disk is None or self._disk.own or self._position(t):
            return None
        self._disk.begin(self._described(t, state, raw), state.w.device, anew=False)
        times = self._disk.times()
        if not times or times[0] != t:
            return None
        return times[-1], self._disk.get(times[-1]), tuple(Anchor(torch.tensor(k), []) for k in times)

    def trail(
        self, past: Sequence[Any], end: int, final: State, make: Make, all_graphs: bool, keep: bool = False
    ) -> Trail:
        """Return the steps since the first state that is kept.

        Args:
            past: the states that are kept.
            end: number of the next step.
            final: the state before it.
            make: takes a step from a state, with or without a graph over its gradient.
            all_graphs: whether something goes through the gradient of the first step.
            keep: whether the states of `past` stay there.

        Raises:
            GradtuneError: an earlier way back has emptied them.
        """
        problem = self._problem if isinstance(self._problem, Replayable) else None
        shelf: Shelf = self._shelf(past, problem, keep) if self._disk is None else self._disk
        if self._disk is not None:
            self._disk.last, self._disk.device = end - 1, final.w.device

        def take(t: int, before: Before, curvature: bool) -> tuple[Step, Any]:
            if problem is None:
                return make(t, before.state, curvature), None
            problem.place(t, before.seen)
            step = make(t, before.state, curvature)
            return step, problem.left()

        times = [int(a.t) for a in past]
        self._trail = Trail(shelf, times, end, final, take, self._branching, all_graphs)
        return self._trail

    def _shelf(self, past: Sequence[Any], problem: Replayable | None, keep: bool) -> InMemory:
        shelf = InMemory()
        for anchor in past:
            if not anchor.state:
                raise GradtuneError(
                    "the states that reverse mode over a tree needs are gone, as an earlier way back was interrupted; "
                    "start the training again, or load a saved state"
                )
            t = int(anchor.t)
            shelf.put(t, Before(anchor.state[0], None if problem is None else problem.mark(t, True)), 1)
            if not keep:
                shelf.empties(anchor)
        return shelf

    def end(self) -> None:
        """Forget what the steps up to here need."""
        if self._disk is not None:
            self._disk.clear()
        if isinstance(self._problem, Replayable):
            self._problem.forget()
