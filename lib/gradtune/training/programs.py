"""Functions made of a record: the operations of a step as straight lines of Python, without autograd.

What does not depend on anything handed over is computed at once, repeated parts are shared, what nobody needs is left
out. The arithmetic that remains is that of the record, operation by operation, and gives the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradtune.training.recording import Key, Op, Recorder, Slot, Source, Var, storage, variables

Carried = list[Any]

_LARGE = 1024  # entries from which memory is used again
_POINTWISE = {"add", "sub", "mul", "div", "neg", "sqrt", "abs", "exp", "log", "maximum", "minimum", "sigmoid", "tanh"}
_WHOLE = {"mm", "addmm", "cat"}


class Program:
    """The steps of a record, to be taken again on other tensors.

    Args:
        recorder: the record. It is not kept, but for tensors that no input changes.

    Attributes:
        inputs: for each step, the slots of the tensors that it takes, in order.
        sources: for each step, what the generators that it takes follow from.
        outside: tensors of others that the program reads as they are.
    """

    def __init__(self, recorder: Recorder) -> None:
        segments = [list(s.ops) for s in recorder.segments]
        outputs = [list(s.outputs) for s in recorder.segments]
        segments, outputs = _shared(segments, outputs, recorder)
        segments = _needed(segments, outputs)
        self.sources = [list(s.sources) for s in recorder.segments]
        used = {v.number for ops in segments for op in ops for v in variables((op.args, op.kwargs))}
        used |= {v.number for each in outputs for v in each}
        slots = [{v.number: slot for slot, v in s.inputs.items() if v.number in used} for s in recorder.segments]
        self.inputs: list[list[Slot]] = [list(s.values()) for s in slots]
        self.outside = [recorder.values[n] for n in recorder.outside if n not in recorder.fresh]
        constant = {n: recorder.values[n] for n in used if not recorder.varying[n]}
        constant |= {n: recorder.values[n] for n in recorder.outside if n in used}
        self._steps = _compiled(segments, outputs, [list(s) for s in slots], self.sources, constant, recorder)

    def __len__(self) -> int:
        return len(self._steps)

    def step(
        self, k: int, inputs: Sequence[Tensor], sources: Sequence[torch.Generator], carried: Carried
    ) -> tuple[list[Tensor], Carried]:
        """Take step number `k`.

        Args:
            k: number of the step in the record.
            inputs: tensors for `self.inputs[k]`.
            sources: generators for `self.sources[k]`.
            carried: what the step before has returned beside its outputs; nothing for the first.

        Returns:
            What the step leaves, in the order in which it was declared, and what the next step needs.
        """
        with torch.no_grad():
            return self._steps[k](inputs, sources, carried)


def signature(recorder: Recorder) -> Hashable:
    """Return what two records of the same steps have in common: all but the numbers in tensors handed over.

    Tensors of others are told apart by identity: they have to live as long as the signature.
    """
    lines: list[Any] = []
    for s in recorder.segments:
        lines.append((repr(s.inputs), repr(s.sources), repr(s.outputs)))
        lines += [(op.function, repr(op.args), repr(op.kwargs), repr(op.results)) for op in s.ops]
    constants = tuple(_bits(recorder.values[n]) for n in sorted(recorder.fresh))
    outside = tuple(id(recorder.values[n]) for n in recorder.outside)
    return tuple(lines), constants, outside


def _bits(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, tuple(x.shape), bytes(x.detach().cpu().contiguous().flatten().view(torch.uint8).tolist())


def _renamed(x: Any, names: dict[int, Var]) -> Any:
    if isinstance(x, Var):
        return names.get(x.number, x)
    if isinstance(x, Source):
        return x
    if isinstance(x, dict):
        return {n: _renamed(y, names) for n, y in x.items()}
    return type(x)(_renamed(y, names) for y in x) if type(x) in (tuple, list) else x


def _shared(
    segments: list[list[Op]], outputs: list[list[Var]], recorder: Recorder
) -> tuple[list[list[Op]], list[list[Var]]]:
    """Leave out what gives a constant or what an operation before has given."""
    first: dict[Any, Any] = {}
    names: dict[int, Var] = {}
    kept: list[list[Op]] = []
    for ops in segments:
        own: list[Op] = []
        for op in ops:
            op = op._replace(args=_renamed(op.args, names), kwargs=_renamed(op.kwargs, names))
            pure = not op.writes and "Source(" not in repr((op.args, op.kwargs)) and not _touched(op, recorder)
            results = variables(op.results)
            if pure and results and not any(recorder.varying[v.number] for v in results):
                continue
            key = (op.function, repr(op.args), repr(op.kwargs))
            if pure and key in first:
                names |= {v.number: w for v, w in zip(results, variables(first[key]), strict=True)}
                continue
            if pure:
                first[key] = op.results
            own.append(op)
        kept.append(own)
    return kept, [_renamed(each, names) for each in outputs]


def _touched(op: Op, recorder: Recorder) -> bool:
    """Return whether an operation reads or gives memory that is written to at some time."""
    numbers = [v.number for v in variables((op.args, op.kwargs, op.results))]
    return any(storage(recorder.values[n]) in recorder.written for n in numbers)


def _needed(segments: list[list[Op]], outputs: list[list[Var]]) -> list[list[Op]]:
    """Leave out what no output depends on. Writing counts as needed."""
    wanted: set[int] = set()
    kept: list[list[Op]] = []
    for ops, out in zip(reversed(segments), reversed(outputs), strict=True):
        wanted |= {v.number for v in out}
        own = []
        for op in reversed(ops):
            if op.writes or any(v.number in wanted for v in variables(op.results)):
                wanted |= {v.number for v in variables((op.args, op.kwargs))}
                own.append(op)
        kept.append(own[::-1])
    return kept[::-1]


def _compiled(
    segments: list[list[Op]],
    outputs: list[list[Var]],
    slots: list[list[int]],
    sources: list[list[Key]],
    constant: dict[int, Tensor],
    recorder: Recorder,
) -> list[Callable[..., tuple[list[Tensor], Carried]]]:
    """Return a function for each step."""
    code = _Code(constant, recorder)
    reads = [
        {v.number for op in ops for v in variables((op.args, op.kwargs))} | {v.number for v in out}
        for ops, out in zip(segments, outputs, strict=True)
    ]
    steps, source = [], 0
    carried: list[int] = []
    for k, (ops, out) in enumerate(zip(segments, outputs, strict=True)):
        later: set[int] = set().union(*reads[k + 1 :])
        code.begin(slots[k], [source + j for j in range(len(sources[k]))], carried)
        given = {v.number for op in ops for v in variables(op.results)} | set(slots[k]) | set(carried)
        carried = sorted(n for n in given if n in later)
        stays = {v.number for v in out} | set(carried)
        last = [[n for n in numbers if n not in stays and n not in constant] for numbers in _last_uses(ops)]
        into = _places(ops, last, recorder)
        later_filled = set(into.values())
        for j, op in enumerate(ops):
            code.add(op, [n for n in last[j] if n not in later_filled], into.get(j))
        steps.append(code.end([v.number for v in out], carried))
        source += len(sources[k])
    return steps


def _last_uses(ops: list[Op]) -> list[list[int]]:
    """Return for each operation the tensors that no later one needs."""
    seen: set[int] = set()
    found: list[list[int]] = []
    for op in reversed(ops):
        numbers = dict.fromkeys(v.number for v in variables((op.args, op.kwargs, op.results)))
        found.append([n for n in numbers if n not in seen])
        seen |= set(numbers)
    return found[::-1]


def _places(ops: list[Op], last: list[list[int]], recorder: Recorder) -> dict[int, int]:
    """Return for operations by their place the dead tensor whose memory their result may have."""
    own = Counter(storage(x) for x in recorder.values)
    made = {v.number for op in ops for v in variables(op.results)}

    def form(n: int) -> Any:
        x = recorder.values[n]
        alone = n in made and own[storage(x)] == 1 and storage(x) not in recorder.written and x.numel() >= _LARGE
        return (x.shape, x.stride(), x.dtype, x.device) if alone else None

    dead: dict[Any, list[int]] = {}
    into: dict[int, int] = {}
    for j, op in enumerate(ops):
        name, result = op.function._schema.name.removeprefix("aten::"), op.results
        dying = [n for n in last[j] if isinstance(result, Var) and n != result.number and form(n) is not None]
        if isinstance(result, Var) and result.number not in last[j] and (mine := form(result.number)) is not None:
            if name in _POINTWISE and (here := [n for n in dying if form(n) == mine]):
                into[j] = here[0]
                dying.remove(here[0])
            elif name in _POINTWISE | _WHOLE and dead.get(mine):
                into[j] = dead[mine].pop()
        for n in dying:
            dead.setdefault(form(n), []).append(n)
    return into


class _Code:
    """Lines of Python for the steps of a record."""

    def __init__(self, constant: dict[int, Tensor], recorder: Recorder) -> None:
        self._values: dict[str, Any] = {f"v{n}": x for n, x in constant.items()}
        self._names: dict[int, str] = {}
        self._recorder, self._lines = recorder, list[str]()
        self._quick: dict[Any, Any] = {}

    def begin(self, inputs: list[int], sources: list[int], carried: list[int]) -> None:
        self._lines = ["def step(inputs, sources, carried):"]
        for names, given in (
            ([f"v{n}" for n in inputs], "inputs"),
            ([f"g{n}" for n in sources], "sources"),
            ([f"v{n}" for n in carried], "carried"),
        ):
            if names:
                self._lines.append(f" {', '.join(names)}, = {given}")

    def add(self, op: Op, done: list[int], into: int | None) -> None:
        args = [self._text(x) for x in op.args] + [f"{n}={self._text(x)}" for n, x in op.kwargs.items()]
        function = self._callable(op, into is not None)
        if into is not None and function is not op.function._op:
            args.append(f"out=v{into}")
        call = f"{self._constant(function)}({', '.join(args)})"
        results = _target(op.results)
        self._lines.append(f" {results} = {call}" if results else f" {call}")
        if done:
            self._lines.append(f" {' = '.join(f'v{n}' for n in done)} = None")

    def end(self, outputs: list[int], carried: list[int]) -> Callable[..., Any]:
        out, rest = (", ".join(f"v{n}" for n in numbers) for numbers in (outputs, carried))
        self._lines.append(f" return [{out}], [{rest}]")
        exec("\n".join(self._lines), self._values)
        step: Callable[..., Any] = self._values.pop("step")
        return step

    def _constant(self, x: Any) -> str:
        name = self._names.get(id(x))
        if name is None:
            name = self._names[id(x)] = f"c{len(self._names)}"
            self._values[name] = x
        return name

    def _text(self, x: Any) -> str:
        if isinstance(x, Var):
            return f"v{x.number}"
        if isinstance(x, Source):
            return f"g{x.number}"
        if isinstance(x, list):
            return f"[{', '.join(map(self._text, x))}]"
        if isinstance(x, tuple):
            return f"({''.join(self._text(y) + ',' for y in x)})"
        if x is None or isinstance(x, (bool, int)) or (isinstance(x, float) and x - x == 0):
            return repr(x) if type(x) in (bool, int, float, type(None)) else self._constant(x)
        return self._constant(x)

    def _callable(self, op: Op, filling: bool) -> Any:
        """Return what calls an operation with the least overhead, tried on the tensors of the record."""
        plain = op.function._op
        if op.writes or "Source(" in repr((op.args, op.kwargs)):
            return plain
        form = op.function, repr(_map(op.args, lambda v: "x")), tuple(op.kwargs), filling
        if form not in self._quick:
            found = (f for f in _candidates(op.function) if self._agrees(f, plain, op, filling))
            self._quick[form] = next(found, plain)
        return self._quick[form]

    def _agrees(self, f: Any, plain: Any, op: Op, filling: bool) -> bool:
        args, kwargs = (_map(x, lambda v: self._recorder.values[v.number].detach()) for x in (op.args, op.kwargs))
        try:
            with torch.no_grad():
                wanted = plain(*args, **kwargs)
                return _equal(f(*args, **kwargs, **({"out": torch.empty_like(wanted)} if filling else {})), wanted)
        except (TypeError, RuntimeError, ValueError):
            return False


def _map(x: Any, f: Callable[[Var], Any]) -> Any:
    if isinstance(x, Var):
        return f(x)
    if isinstance(x, dict):
        return {n: _map(y, f) for n, y in x.items()}
    return type(x)(_map(y, f) for y in x) if type(x) in (tuple, list) else x


def _candidates(function: Any) -> list[Any]:
    name = function._schema.name
    if not name.startswith("aten::"):
        return []
    places = (torch, torch._C._nn, torch.Tensor)
    found = [getattr(place, name.removeprefix("aten::"), None) for place in places]
    return [f for f in found if type(f).__name__ in ("builtin_function_or_method", "method_descriptor")]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()) and same_bits(a, b)
    both = isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b)
    return both and all(_equal(x, y) for x, y in zip(a, b, strict=True))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same type, shape and numbers, to the bit; NaN equals NaN."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.numel() == 0:
        return True
    a, b = (x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


def alike(a: Tensor, b: Tensor) -> bool:
    """Return whether a replayed result is that of an eager step: the same bits on a CPU, elsewhere close numbers.

    On a GPU some kernels add in an order that differs from call to call. Numbers count as close up to a thousandth, and
    to a hundred-thousandth of the largest one.
    """
    if a.device.type == "cpu" or not a.is_floating_point() or (a.dtype, a.shape) != (b.dtype, b.shape):
        return same_bits(a, b)
    if same_bits(a, b) or not a.numel():
        return True
    largest = float(b.detach().abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(a.detach(), b.detach(), rtol=1e-3, atol=1e-5 * largest, equal_nan=True)


def _target(results: Any) -> str:
    """Return the left side of an assignment; empty if there is nothing to assign."""
    if isinstance(results, Var):
        return f"v{results.number}"
    if isinstance(results, tuple) and any(isinstance(r, (Var, tuple)) for r in results):
        return "".join(
            f"({_target(r)}), " if isinstance(r, tuple) else f"{_target(r) or '_'}, " for r in results
        ).rstrip()
    return ""
