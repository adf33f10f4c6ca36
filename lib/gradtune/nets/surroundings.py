"""What a module and a loss keep beside weights and buffers: attributes, lists, generators, frozen weights.

A method that computes a step's loss again, or the loss of a validation batch, must leave none of it changed, and a step
that is computed again must see what it saw. `Surroundings` notes it, puts it in place and brings it back.
"""

from __future__ import annotations

import copy
import functools
import random
from collections import deque
from collections.abc import Iterable, Iterator, MutableMapping
from types import CellType, FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

_OF_TORCH = frozenset(nn.Module().__dict__)
_CONTAINERS = (list, dict, set, deque)
_MOST = 1 << 16  # larger ones are data, which nobody changes
_IMMUTABLE = (bool, int, float, complex, str, bytes, type(None))

Noted = list[dict[str, "Value"]]


class Value(NamedTuple):
    """An attribute as it was.

    Attributes:
        value: what it was bound to.
        content: a copy of what can change inside it: of a list's entries, a tensor's numbers, a generator's state.
    """

    value: Any
    content: Any


class _Cell(MutableMapping[str, Any]):
    """A variable that a function has from around it."""

    def __init__(self, cell: CellType) -> None:
        self._cell = cell

    def __getitem__(self, name: str) -> Any:
        try:
            return self._cell.cell_contents
        except ValueError:
            raise KeyError(name) from None

    def __setitem__(self, name: str, value: Any) -> None:
        self._cell.cell_contents = value

    def __delitem__(self, name: str) -> None:
        del self._cell.cell_contents

    def __iter__(self) -> Iterator[str]:
        return iter(("cell_contents",))

    def __len__(self) -> int:
        return 1


class Surroundings:
    """The state of a module's parts and of some functions, beside weights and buffers.

    Args:
        parts: the parts of the module.
        functions: functions, methods or objects that are called, such as losses.
        frozen: parameters that are not trained.

    Attributes:
        moving: whether frozen parameters, or the random numbers of Python and numpy, are known to change in a call;
            then they count as state.
    """

    def __init__(self, parts: Iterable[nn.Module], functions: Iterable[Any], frozen: Iterable[Tensor]) -> None:
        self._tables: list[tuple[MutableMapping[str, Any], bool]] = [(m.__dict__, True) for m in parts]
        seen = {id(table) for table, _ in self._tables}
        self._of_functions: list[int] = []
        for function in functions:
            for table, of_module in _tables(function, set()):
                if id(table) not in seen:
                    seen.add(id(table))
                    if not isinstance(function, nn.Module):
                        self._of_functions.append(len(self._tables))
                    self._tables.append((table, of_module))
        self._frozen, self.moving = list(frozen), False

    def note(self) -> Noted:
        """Return the state as it is now."""
        noted: Noted = []
        for table, of_module in self._tables:
            names = table.keys() - _OF_TORCH if of_module else table.keys()
            noted.append({n: Value(table[n], _content(table[n])) for n in names if n in table})
        if self.moving:
            noted.append({str(k): Value(p, p.detach().clone()) for k, p in enumerate(self._frozen)})
            noted.append({"random": Value(None, (random.getstate(), np.random.get_state()))})  # noqa: NPY002
        return noted

    def bring_back(self, noted: Noted) -> None:
        """Bring everything back to what was noted: bindings, and the contents of what they are bound to."""
        for (table, of_module), values in zip(self._tables, noted, strict=False):
            for name in [n for n in table if n not in values and not (of_module and n in _OF_TORCH)]:
                del table[name]
            for name, (value, content) in values.items():
                if table.get(name, _ABSENT) is not value:
                    table[name] = value
                _fill(value, content)
        self._bring_back_others(noted)

    def put(self, noted: Noted) -> None:
        """Put copies of what was noted in place, for a call whose changes are not to reach it; see `bring_back`."""
        for (table, _), values in zip(self._tables, noted, strict=False):
            for name, (value, content) in values.items():
                own = table.get(name)
                if isinstance(own, torch.Generator) and content is not None:
                    own.set_state(content)
                elif content is not None:
                    table[name] = content.clone() if isinstance(content, Tensor) else copy.copy(content)
                elif isinstance(value, _IMMUTABLE):
                    table[name] = value
        self._bring_back_others(noted)

    def _bring_back_others(self, noted: Noted) -> None:
        for values in noted[len(self._tables) :]:
            for name, (_, content) in values.items():
                if name == "random":
                    random.setstate(content[0])
                    np.random.set_state(content[1])  # noqa: NPY002
                else:
                    self._frozen[int(name)].data = content.clone()

    def saved(self, noted: Noted) -> dict[str, Any]:
        """Return of `noted` what a checkpoint can hold: numbers, text, tensors and containers of them.

        The variables of functions and of objects that are no modules are left out: they are the caller's.
        """
        kept = [{n: _plain(v) for n, v in values.items() if _is_plain(v)} for values in noted]
        for k in self._of_functions:
            kept[k] = {}
        return {"moving": self.moving, "values": kept}

    def loaded(self, saved: dict[str, Any]) -> Noted:
        """Return what `saved` gave, to be put in place."""
        self.moving = self.moving or saved["moving"]
        return [{n: _value(x) for n, x in values.items()} for values in saved["values"]]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors among the attributes and in their lists, by name."""
        for table, of_module in self._tables:
            for name in table.keys() - _OF_TORCH if of_module else list(table):
                value = table.get(name)
                inner = value.values() if isinstance(value, dict) else value if isinstance(value, _CONTAINERS) else ()
                for x in (value, *inner) if len(inner) <= _MOST else (value,):
                    if isinstance(x, Tensor):
                        yield name, x

    def frozen_versions(self) -> list[Any]:
        """Return what differs when somebody has changed a frozen parameter."""
        return [(p._version, p.data_ptr()) for p in self._frozen]


_ABSENT = object()


def _content(value: Any) -> Any:
    """Return a copy of what can change inside a value; None where nothing can, or where it is not followed."""
    if isinstance(value, _CONTAINERS):
        return copy.copy(value) if len(value) <= _MOST else None
    if isinstance(value, Tensor):
        followed = value.is_leaf and not value.requires_grad and not value.is_meta and value.numel() <= _MOST
        return value.detach().clone() if followed else None
    return value.get_state() if isinstance(value, torch.Generator) else None


def _fill(value: Any, content: Any) -> None:
    """Give a value the content that it had."""
    if content is None:
        return
    if isinstance(value, Tensor):
        value.data = content.clone()
    elif isinstance(value, torch.Generator):
        value.set_state(content)
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(content)
    else:
        value.clear()
        value.extend(content)


def _tables(function: Any, seen: set[int]) -> Iterator[tuple[MutableMapping[str, Any], bool]]:
    """Yield the tables of variables that a call of `function` may change, and whether each is that of a module.

    Args:
        function: what is called.
        seen: identities of functions that have been followed; functions may know each other.
    """
    if id(function) in seen:
        return
    seen.add(id(function))
    if isinstance(function, functools.partial):
        yield from _tables(function.func, seen)
    elif isinstance(function, MethodType):
        yield from _tables(function.__self__, seen)
    elif isinstance(function, FunctionType):
        for cell in function.__closure__ or ():
            yield _Cell(cell), False
            if _filled(cell) and isinstance(cell.cell_contents, FunctionType):
                yield from _tables(cell.cell_contents, seen)
    elif isinstance(function, nn.Module):
        for m in function.modules():
            yield m.__dict__, True
            yield m._buffers, False
    elif isinstance(getattr(function, "__dict__", None), dict) and not isinstance(function, type):
        yield function.__dict__, False


def _filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _is_plain(v: Value) -> bool:
    simple = (*_IMMUTABLE, Tensor)
    if isinstance(v.content, (list, deque, set)):
        return all(isinstance(x, simple) for x in v.content)
    if isinstance(v.content, dict):
        return all(isinstance(k, _IMMUTABLE) and isinstance(x, simple) for k, x in v.content.items())
    return v.content is not None or isinstance(v.value, _IMMUTABLE)


def _plain(v: Value) -> Any:
    """Return a value in types that `torch.load(weights_only=True)` reads, with the name of its type."""
    content = v.content
    if content is None:
        return ["as it is", v.value]
    if isinstance(content, (deque, set)):
        return [type(content).__name__, list(content)]
    if isinstance(content, tuple):  # the states of Python's and numpy's generators
        python, (kind, keys, *rest) = content
        return ["random", [python[0], list(python[1]), python[2], kind, torch.from_numpy(keys.astype(np.int64)), *rest]]
    return ["content", dict(content) if isinstance(content, dict) else content]


def _value(saved: list[Any]) -> Value:
    kind, content = saved
    if kind == "as it is":
        return Value(content, None)
    if kind == "random":
        version, numbers, gauss, name, keys, *rest = content
        numpys = (name, keys.numpy().astype(np.uint32), *rest)
        return Value(None, ((version, tuple(numbers), gauss), numpys))
    makers: dict[str, Any] = {"deque": deque, "set": set}
    content = makers[kind](content) if kind in makers else content
    return Value(content, content)
