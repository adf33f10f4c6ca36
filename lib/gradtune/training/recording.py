"""The tensor operations of some steps in a row, noted while the steps are taken.

`Recorder` is a context in which every operation of torch that computes is noted, those of the backward passes included.
It changes nothing: the steps taken inside are steps like others, a few times slower. `programs` makes functions of what
was noted.

Tensors are told apart by identity and, where a tensor has been given other memory (`p.data = ...`), by the memory that
they have. A tensor that is neither an input nor computed inside is noted as it is, and counts as an input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_SAME = (_aten.detach.default, _aten.alias.default)
# their results do not depend on the numbers in their arguments
_CONSTANT = {_aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default} | {
    *(_aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default)
}
_READS = (_aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default)
_SHAPES = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
# their running statistics are written to, which their schemas do not say
_NORMS = {_aten.native_batch_norm.default: 5, _aten.cudnn_batch_norm.default: 5, _aten.miopen_batch_norm.default: 5}

Slot = int
Key = tuple[torch.device, int, int, int]


class Var(NamedTuple):
    """A tensor of a record, by its number."""

    number: int


class Source(NamedTuple):
    """A generator of random numbers of a record, by its number among those declared."""

    number: int


class Op(NamedTuple):
    """An operation.

    Attributes:
        function: what was called.
        args: its arguments, with tensors as `Var`.
        kwargs: those by name.
        results: the tensors that it returned, nested as it returned them; None for one that was there before.
        writes: whether it writes into an argument.
    """

    function: Any
    args: Any
    kwargs: Any
    results: Any
    writes: bool


@dataclass
class Segment:
    """One step of a record.

    Attributes:
        inputs: the tensors that were handed over at its beginning, by slot.
        sources: the generators that were made in it, as what their numbers follow from.
        ops: the operations in their order.
        outputs: what the step leaves, in the order in which it was declared.
    """

    inputs: dict[Slot, Var] = field(default_factory=dict)
    sources: list[Key] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    outputs: list[Var] = field(default_factory=list)


class Recorder(TorchDispatchMode):
    """A record of steps in a row.

    For each step, call `begin`, take it inside the context, then call `end`.

    Cost: about 20 microseconds an operation. Memory: all tensors of these steps, until the recorder is dropped.

    Attributes:
        segments: what was noted, a segment a step.
        values: the tensors, by number.
        outside: numbers of the tensors that were neither handed over nor computed.
        fresh: those of them that were made from numbers inside (`torch.tensor(2.0)`).
        varying: for each number, whether the tensor depends on anything handed over or found.
        written: the memory that was written to.
        refused: why a replay would be wrong, in words that follow "the step"; empty if nothing speaks against it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.segments: list[Segment] = []
        self.values: list[Tensor] = []
        self.outside: list[int] = []
        self.fresh: set[int] = set()
        self.varying: list[bool] = []
        self.written: set[int] = set()
        self.refused = ""
        self._by_id: dict[int, tuple[Var, int]] = {}
        self._by_memory: dict[Any, Var] = {}
        self._by_memory_of: set[int] = set()
        self._views: dict[Any, Var] = {}
        self._roots: list[int] = []
        self._kept_alive: list[Any] = []
        self._memory: set[int] = set()
        self._open: set[int] = set()
        self._closed: set[int] = set()
        self._sources: dict[int, Source] = {}

    # -- a step --------------------------------------------------------------------------------------------------------

    def begin(
        self, inputs: Sequence[tuple[Slot, Tensor]], batch: Sequence[tuple[Slot, Tensor]], writable: Sequence[Tensor]
    ) -> None:
        """Begin a step.

        Args:
            inputs: what the step is handed over, by slot. A tensor that an earlier step of the record has left is known
                already and is no input.
            batch: the tensors of its batches, by slot. They may share memory with those of another step, from which
                they are told apart by identity.
            writable: tensors among the inputs that the step may write to, such as buffers.
        """
        segment = Segment()
        self.segments.append(segment)
        self._open |= {storage(t) for t in writable}
        for slot, tensor in inputs:
            known = self._known(tensor)
            if known is None:
                known = segment.inputs[slot] = self._bind(tensor, True)
                self.values[known.number] = tensor.detach()  # the tensor may be given other memory
                if storage(tensor) not in self._open:
                    self._closed.add(storage(tensor))
        for slot, tensor in batch:
            segment.inputs[slot] = self._bind(tensor, True, known_by_memory=False)
            self._closed.add(storage(tensor))

    def made(self, generator: torch.Generator, key: Key) -> None:
        """Note a generator that was made in the step, and what its numbers follow from."""
        sources = self.segments[-1].sources
        self._sources[_identity(generator)] = Source(sum(len(s.sources) for s in self.segments))
        self._kept_alive.append(generator)
        sources.append(key)

    def end(self, outputs: Sequence[Tensor]) -> None:
        """End a step.

        Args:
            outputs: all that the step leaves.
        """
        self.segments[-1].outputs = [self._var(x) for x in outputs]

    def refuse(self, why: str) -> None:
        """Note why a replay would be wrong; the first reason counts."""
        self.refused = self.refused or why

    # -- operations ----------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self.refuse(f"calls {func}, which is no operation of its own")
            return func(*args, **kwargs)
        if func is _aten.lift_fresh.default and self._known(args[0]) is None:
            self.fresh.add(self._bind(args[0], False).number)
        refs, named = self._refs(args), self._refs(kwargs)
        self._judge(func, args, kwargs, refs, named)
        found = func(*args, **kwargs)
        if func in _SAME:
            self._bind_to(found, refs[0])
            return found
        writes = func._schema.is_mutable or (func in _NORMS and bool(args[_NORMS[func]]))
        if writes:
            self._note_writing(func, args, kwargs)
        varying = any(self.varying[v.number] for v in variables((refs, named))) or bool(_sources((refs, named)))
        varying = varying and func not in _CONSTANT
        root = self._roots[refs[0].number] if func.is_view and isinstance(refs[0], Var) else None
        if isinstance(found, Tensor) and root is not None and has_memory(found):
            before = self._views.get((root, _key(found)))
            if before is not None:
                self._bind_to(found, before)  # another view of the same has given it
                return found
        known = {id(x) for x in _tensors((args, tuple(kwargs.values())))}
        results = _map(found, lambda x: None if id(x) in known else self._bind(x, varying, root))
        if isinstance(found, (Tensor, tuple, list)):
            self.segments[-1].ops.append(Op(func, refs, named, results, writes))
        return found

    def _judge(self, func: Any, args: Any, kwargs: Any, refs: Any, named: Any) -> None:
        """Note what speaks against a replay of an operation."""
        name = func._schema.name.removeprefix("aten::")
        varying = any(self.varying[v.number] for v in variables((refs, named)))
        if func in _READS and varying:
            self.refuse("reads the number in a tensor (.item(), float(), bool() or an if), which a replay cannot")
        elif any(tag in func.tags for tag in _SHAPES) and func not in _READS and varying:
            self.refuse(f"calls {name}, whose result has a shape that depends on numbers")
        elif (
            torch.Tag.nondeterministic_seeded in func.tags
            and not _sources((refs, named))
            and not _draws_nothing(func, args, kwargs)
        ):
            self.refuse(f"draws random numbers by {name}, which follow from no seed that can be handed over")

    def _note_writing(self, func: Any, args: Any, kwargs: Any) -> None:
        if func in _NORMS:
            targets = [x for x in args[3:5] if isinstance(x, Tensor)]
        else:
            given = zip(func._schema.arguments, args, strict=False)
            targets = [x for a, x in given if a.alias_info is not None and a.alias_info.is_write]
            targets += [
                kwargs[a.name]
                for a in func._schema.arguments
                if a.name in kwargs and a.alias_info is not None and a.alias_info.is_write
            ]
        for x in _tensors(tuple(targets)):
            place = storage(x)
            self.written.add(place)
            for number, value in enumerate(self.values):
                self.varying[number] = self.varying[number] or storage(value) == place
            if place in self._closed and place not in self._open:
                self.refuse("writes into a tensor that is neither a buffer nor its own, such as a weight")

    # -- tensors -------------------------------------------------------------------------------------------------------

    def _refs(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self._var(x)
        if isinstance(x, (tuple, list)):
            return type(x)(self._refs(y) for y in x) if not hasattr(x, "_fields") else tuple(map(self._refs, x))
        if isinstance(x, dict):
            return {n: self._refs(y) for n, y in x.items()}
        if isinstance(x, torch.Generator):
            if _identity(x) not in self._sources:
                self.refuse("draws random numbers from a generator of its own, which moves on from step to step")
                return None
            return self._sources[_identity(x)]
        return x

    def _known(self, x: Tensor) -> Var | None:
        found = self._by_id.get(id(x))
        if found is not None and found[1] == _place(x):
            return found[0]
        return self._by_memory.get(_key(x)) if has_memory(x) else None

    def _var(self, x: Tensor) -> Var:
        var = self._known(x)
        if var is None:
            if has_memory(x) and storage(x) in self._memory:
                self.refuse("looks at the memory of weights, buffers or batches past torch")
            var = self._bind(x, True)
            self.outside.append(var.number)
            self._closed.add(storage(x))
        return var

    def _bind(self, x: Tensor, varying: bool, root: int | None = None, known_by_memory: bool = True) -> Var:
        """Give a tensor a number; `root` is that of the tensor of which it is a view."""
        var = Var(len(self.values))
        if root is None or not has_memory(x) or storage(x) != storage(self.values[root]):
            root = var.number
            if known_by_memory:
                self._by_memory_of.add(root)
        self._roots.append(root)
        self.values.append(x)
        self.varying.append(varying)
        if x.layout != torch.strided:
            self.refuse("computes with sparse tensors")
        self._bind_to(x, var)
        return var

    def _bind_to(self, x: Tensor, var: Var) -> None:
        self._kept_alive.append(x)
        self._by_id[id(x)] = var, _place(x)
        if has_memory(x):
            root = self._roots[var.number]
            self._views.setdefault((root, _key(x)), var)
            if root in self._by_memory_of:
                self._by_memory[_key(x)] = var
            self._memory.add(storage(x))


def _identity(generator: torch.Generator) -> int:
    """Return what tells generators apart; torch wraps one in several objects of Python."""
    found: int = generator._cdata  # type: ignore[attr-defined]
    return found


def has_memory(x: Tensor) -> bool:
    """Return whether a tensor has memory of the usual kind, unlike sparse ones and zeros that are never written."""
    return x.layout == torch.strided and x.numel() > 0 and not x._is_zerotensor()


def storage(x: Tensor) -> int:
    """Return what is the same for tensors that share memory."""
    return x.untyped_storage().data_ptr() if has_memory(x) else -id(x)


def _place(x: Tensor) -> int:
    return x.data_ptr() if has_memory(x) else id(x)


def _key(x: Tensor) -> Any:
    return x.data_ptr(), x.shape, x.stride(), x.dtype


def _draws_nothing(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether a random operation draws nothing with these arguments: attention or dropout without dropout."""
    given = {a.name: x for a, x in zip(func._schema.arguments, args, strict=False)} | kwargs
    if "dropout_p" in given or any(a.name == "dropout_p" for a in func._schema.arguments):
        return not given.get("dropout_p", 0.0)
    return False


def _map(x: Any, f: Callable[[Tensor], Any]) -> Any:
    if isinstance(x, Tensor):
        return f(x)
    return tuple(_map(y, f) for y in x) if isinstance(x, (tuple, list)) else None


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    return [t for y in x for t in _tensors(y)] if isinstance(x, (tuple, list)) else []


def variables(x: Any) -> list[Var]:
    """Return the tensors in nested arguments or results."""
    if isinstance(x, Var):
        return [x]
    x = tuple(x.values()) if isinstance(x, dict) else x
    return [v for y in x for v in variables(y)] if isinstance(x, (tuple, list)) else []


def _sources(x: Any) -> list[Source]:
    if isinstance(x, Source):
        return [x]
    x = tuple(x.values()) if isinstance(x, dict) else x
    return [v for y in x for v in _sources(y)] if isinstance(x, (tuple, list)) else []
