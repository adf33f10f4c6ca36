"""Steps of one kind, recorded while they are taken and then taken again as straight lists of tensor operations.

A kind is all that decides which operations a step makes: whether an outer update belongs to it, the shapes of its
batches, whether a schedule scales the learning rate. A method that looks back on steps needs what they have computed,
so those steps are one record, which is entered and left step by step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradtune.nets import draws
from gradtune.nets.buffers import Values as Buffered
from gradtune.nets.buffers import copied
from gradtune.nets.watching import Code, Watched, following
from gradtune.recursion.hypers import Values
from gradtune.recursion.step import State, Step
from gradtune.training.graphs import Graphs
from gradtune.training.loop import Loop, Run
from gradtune.training.programs import Carried, Program, alike, signature
from gradtune.training.recording import Recorder
from gradtune.tuning.streams import Batch
from gradtune.tuning.supervised import Supervised

_ATTEMPTS = 3
PLAIN: tuple[type, ...] = (Tensor,)
"""Types of tensors that a record can be told."""


class Given(NamedTuple):
    """What a step is given.

    Attributes:
        batches: its training batches.
        val: its validation batch; None where it needs none.
        factor: what it multiplies the learning rate by.
    """

    batches: list[Batch]
    val: Batch | None
    factor: float


class Refusal(Exception):
    """A replay would be wrong; the message says why."""


class _Left(NamedTuple):
    """What a recorded step leaves beside a run.

    Attributes:
        calls: gradients that it has computed.
        buffers: names of the buffers.
        others: those of them in whose place it has put another tensor.
        like: the memory of the estimator and the outer rule's state after it.
    """

    calls: int
    buffers: tuple[str, ...]
    others: frozenset[str]
    like: tuple[Any, Any]


class Recorded:
    """Steps in a row of one kind.

    Call `record`, `check` or `replay` for each of them, as `stage` says at the first.

    Args:
        loop: the loop that takes the steps.
        problem: the losses.
        length: number of steps in a row.

    Attributes:
        length: number of steps in a row.
        watched: what the Python code of the steps reads; None before the first record.
        uses: how often the steps were taken again.
    """

    def __init__(self, loop: Loop, problem: Supervised, length: int) -> None:
        self._loop, self._problem, self.length = loop, problem, length
        self._known = loop.method.estimator is None or loop.method.every > 1
        self._code, self._recorder = Code(), Recorder()
        self._last: tuple[Hashable, list[Tensor]] | None = None
        self._attempts = 0
        self._program: Program | None = None
        self._graphs: Graphs | None = None
        self._left: list[_Left] = []
        self._carried: Carried = []
        self._of_val: Hashable = None
        self.watched: Watched | None = None
        self.uses = 0

    @property
    def stage(self) -> str:
        """What is to be done with the next steps: "record" until two records agree, then "check" or "replay"."""
        if self._program is None:
            return "record"
        return "check" if self.uses & (self.uses - 1) == 0 else "replay"  # 0, 1, 2, 4, 8, ...

    def takes(self, k: int, given: Given) -> bool:
        """Return whether the validation batch of step `k` has the shape that it had."""
        return k < self.length - 1 or shape_of(given.val) == self._of_val

    # -- recording -----------------------------------------------------------------------------------------------------

    def record(self, k: int, run: Run, recent: deque[Step], given: Given) -> Run:
        """Take step `k` and record it.

        Args:
            k: number of the step among those in a row.
            run: where to go on.
            recent: as `Loop.step` has it.
            given: what the step is given.

        Returns:
            The run after the step. `judge` says whether its record is of use.
        """
        problem, t = self._problem, run.t
        if k == 0:
            self._recorder, self._code, self._left = Recorder(), Code(), []
        self._of_val = shape_of(given.val)
        recorder = self._recorder
        given = Given(_apart(given.batches), _apart(given.val), given.factor)
        problem.give(t, given.batches, given.val, given.factor)
        values, factor = self._values(run), self._factor(run, given)
        before = problem.single.buffers.read()
        flat = self._flat(run, given, factor, values)
        batch: list[Tensor] = []
        tensors_in(given[:2], batch)
        numbered, first = list(enumerate(flat)), len(flat) - len(batch)
        recorder.begin(numbered[:first], numbered[first:], [b for b in before.values() if b is not None])
        calls, problem.factor = problem.calls, factor
        try:
            with following(self._code) if self.watched is None else nullcontext(), self._told(t), recorder:
                run = self._loop.step(run, recent, values)
        finally:
            problem.factor = None
        after = problem.single.buffers.read()
        if list(before) != list(after) or any((before[n] is None) != (after[n] is None) for n in before):
            recorder.refuse("registers or removes a buffer")
        names = tuple(n for n, b in after.items() if b is not None)
        others = frozenset(n for n in names if after[n] is not before.get(n))
        self._left.append(
            _Left(problem.calls - calls, names, others, filled((run.memory, run.outer), repeat(torch.empty(0))))
        )
        recorder.end(self._outcome(run, given))
        return run

    def judge(self) -> None:
        """Compare the record with the one before, after the last of the steps; two that agree make a program.

        Raises:
            Refusal: the steps cannot be replayed.
        """
        recorder, single = self._recorder, self._problem.single
        self._recorder = Recorder()
        if recorder.refused:
            raise Refusal(f"a step {recorder.refused}")
        if self.watched is None:
            self.watched = Watched(self._code, single.parts, [*single.functions, self._loop.rule.update])
            if self.watched.refused:
                raise Refusal(self.watched.refused)
        elif found := self.watched.changed():
            raise Refusal(f"{found} in a step, which a replay would leave out")
        record, before = signature(recorder), self._last
        self._last, self._attempts = (record, [recorder.values[n] for n in recorder.outside]), self._attempts + 1
        if before is not None and before[0] == record:
            self._program, self._last = Program(recorder), None
            if single.own[0].device.type == "cuda":
                self._graphs = Graphs(self._program)
        elif self._attempts == _ATTEMPTS:
            raise Refusal("a step makes other operations each time")

    def _values(self, run: Run) -> Values:
        """Return the hyperparameters in force; what is derived from them is computed in the step itself."""
        values = self._loop.hypers.at(run.raw, run.fixed, run.t)
        if self._known:
            values.__dict__["lam"] = self._loop.values_of(run).lam
        return values

    def _factor(self, run: Run, given: Given) -> Tensor | None:
        return None if given.factor == 1.0 else torch.full((), given.factor, dtype=run.raw.dtype, device=run.raw.device)

    @contextmanager
    def _told(self, t: int) -> Iterator[None]:
        """Context: generators of random numbers are noted by how they follow from the number of the step."""
        count = len(self._problem.held[t].batches)
        recorder = self._recorder

        def tell(generator: torch.Generator, device: torch.device, key: tuple[int, ...]) -> None:
            recorder.made(generator, (device, key[0], key[-1] - t * count, count))

        with draws.told(tell):
            yield

    # -- what goes in and comes out ------------------------------------------------------------------------------------

    def _flat(
        self, run: Run, given: Given, factor: Tensor | None, values: Values | None, buffers: Buffered | None = None
    ) -> list[Tensor]:
        """Return all tensors that a step is given, always in the same order; by default with the module's buffers."""
        problem, single = self._problem, self._problem.single
        flat = [run.state.w, *run.state.buf.values(), run.raw, *run.fixed.values()]
        tensors_in((run.memory, run.outer), flat)
        if self._known:
            flat += (self._loop.values_of(run) if values is None else values).lam.values()
        flat += single.own if self.length == 1 else [p.detach() for p in single.own]
        held = problem.held[run.t].buffers
        if held:
            buffers = single.buffers.read() if buffers is None else buffers
            flat += [b.detach() for b in buffers.values() if b is not None]
            flat += [b for b in held.values() if b is not None]
        if factor is not None:
            flat.append(factor)
        tensors_in(given.batches, flat)
        tensors_in(given.val, flat)
        return flat

    def _outcome(self, run: Run, given: Given) -> list[Tensor]:
        """Return all tensors that a step leaves, in the order in which `_run` reads them."""
        problem = self._problem
        flat = [run.state.w, *run.state.buf.values(), run.raw]
        tensors_in((run.memory, run.outer), flat)
        assert problem.seen is not None
        flat.append(problem.seen)
        if given.val is not None:
            assert problem.seen_val is not None
            flat.append(problem.seen_val)
        return flat + [b for b in problem.single.buffers.read().values() if b is not None]

    def _taken(self, k: int, run: Run, flat: list[Tensor]) -> list[Tensor]:
        """Take step `k` on the tensors of `_flat`; the module is left alone, but for buffers among these."""
        assert self._program is not None
        program = self._program
        inputs = [flat[n] for n in program.inputs[k]]
        keys = [(seed, run.t * n + j) for _, seed, j, n in program.sources[k]]
        if self._graphs is not None and self.uses:
            found = self._graphs.step(k, inputs, keys)
            if found is not None:
                return found
        made = [draws.generator(source[0], *key) for source, key in zip(program.sources[k], keys, strict=True)]
        carried = self._carried if self._graphs is None or not k else self._graphs.carried or self._carried
        found, self._carried = program.step(k, inputs, made, carried)
        return found

    # -- taking the steps again ----------------------------------------------------------------------------------------

    def check(self, k: int, run: Run, recent: deque[Step], given: Given) -> tuple[Run, bool]:
        """Take step `k` eagerly, and again as it was recorded.

        Returns:
            The run after the eager step, and whether both gave the same bits.
        """
        problem = self._problem
        problem.give(run.t, given.batches, given.val, given.factor)
        buffers = copied(problem.single.buffers.read())
        found = self._taken(k, run, self._flat(run, given, self._factor(run, given), None, buffers))
        run = self._loop.step(run, recent)
        wanted = self._outcome(run, given)
        return run, all(alike(a, b) for a, b in zip(found, wanted, strict=True))

    def replay(self, k: int, run: Run, given: Given) -> Run:
        """Take step `k` as it was recorded.

        Returns:
            The run after it.
        """
        problem, left, keep = self._problem, self._left[k], self._loop.method.keep
        problem.give(run.t, given.batches, given.val, given.factor, unchanged=True)
        found = iter(self._taken(k, run, self._flat(run, given, self._factor(run, given), None)))
        state = State(next(found), {n: next(found) for n in run.state.buf})
        raw = next(found)
        memory, outer = filled(left.like, found)
        problem.taken(next(found), None if given.val is None else next(found), left.calls)
        self._put(left, found)
        t = run.t + 1
        past = (*run.past, run.state)[-keep:] if keep and t % self._loop.method.every else ()
        return Run(t, state, raw, run.fixed, memory, outer, past)

    def _put(self, left: _Left, found: Iterator[Tensor]) -> None:
        """Put the buffers after a step in place."""
        if not left.buffers:
            return
        buffers = self._problem.single.buffers
        own, new = buffers.read(), dict[str, Tensor | None]()
        for name, value in zip(left.buffers, found, strict=True):
            b = own[name]
            if name in left.others:
                new[name] = value
            elif b is not None and b.data_ptr() != value.data_ptr():
                b.data = value
        if new:
            buffers.write(own | new)

    def outside(self) -> list[int]:
        """Return what grows when tensors of others that the steps read are written to."""
        return [x._version for x in self._program.outside] if self._program is not None else []


def tensors_in(x: Any, found: list[Tensor]) -> None:
    """Append the tensors in nested tuples, lists and dicts to `found`."""
    if isinstance(x, Tensor):
        found.append(x)
    elif isinstance(x, (tuple, list)):
        for y in x:
            tensors_in(y, found)
    elif isinstance(x, dict):
        for y in x.values():
            tensors_in(y, found)


def filled(like: Any, tensors: Iterator[Tensor]) -> Any:
    """Return nested tuples and dicts as `like` has them, with other tensors."""
    if isinstance(like, Tensor):
        return next(tensors)
    if isinstance(like, dict):
        return {n: filled(x, tensors) for n, x in like.items()}
    if isinstance(like, (tuple, list)):
        parts = [filled(x, tensors) for x in like]
        return type(like)(*parts) if hasattr(like, "_fields") else type(like)(parts)
    return like


def shape_of(x: Any) -> Hashable:
    """Return what decides how a batch is computed: its structure, types, shapes and strides, and what is no tensor.

    Raises:
        Refusal: there is something in it that cannot be compared.
    """
    if type(x) in PLAIN and not x.requires_grad and x.layout == torch.strided:
        return x.shape, x.stride(), x.dtype, x.device
    if type(x) in (tuple, list):
        return type(x), *map(shape_of, x)
    if type(x) is dict:
        return "dict", *x, *map(shape_of, x.values())
    if isinstance(x, (bool, int, float, str, bytes, type(None))):
        return type(x), x
    raise Refusal(f"a batch holds a {type(x).__name__}, which is no plain tensor")


def _apart(x: Any) -> Any:
    """Return a batch of tensors of its own on the same memory, so that those of two steps are told apart."""
    if isinstance(x, Tensor):
        return x.detach()
    if type(x) in (tuple, list):
        return type(x)(map(_apart, x))
    return {n: _apart(y) for n, y in x.items()} if type(x) is dict else x
