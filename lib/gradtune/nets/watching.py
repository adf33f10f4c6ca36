"""What the Python code of a forward pass reads beside its inputs, and whether it is still what it was.

A step can be replayed without its Python code only where that code would do the same again. `watched` takes a call and
follows which code it runs. `Watched` then holds all that this code can read by a name that it uses: attributes of
modules and of other objects, variables around functions, globals, the contents of lists and dicts, hooks. Comparing it
costs a few microseconds. What cannot be followed (generators, files, clocks, arrays of numpy) is refused with a reason.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_torch

_TRUSTED = {"torch", "gradtune"}
_PLAIN = {"abc", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses", "enum", "functools"} | {
    *("inspect", "itertools", "math", "numbers", "operator", "types", "typing", "warnings", "weakref", "_operator"),
    *("_functools", "_collections", "_collections_abc", "__future__"),
}
_OTHERS = sys.stdlib_module_names | {"numpy"}
_ACTS = {"print", "open", "input", "exec", "eval", "compile"}
_READS = {"item", "tolist", "numpy", "__array__", "data_ptr", "untyped_storage", "storage"}
_ATOMS = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    type(Ellipsis),
    range,
    slice,
    Enum,
    np.generic,
    np.dtype,
    ref,
)
_CONTAINERS = (list, dict, set, deque)
_MOST = 4096
_ABSENT = object()
_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_GLOBAL_HOOKS = [v for n, v in vars(of_torch).items() if n.startswith("_global_") and isinstance(v, dict)]


class Code:
    """The Python code that a call has run, but for that of torch and of this library.

    Attributes:
        names: the names of attributes and globals that torch's code uses for it.
        own: those that the code itself uses.
        variables: for each piece of code the globals that it has.
        refused: why it cannot be followed; empty if it can.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.own: set[str] = set()
        self._known: set[CodeType] = set()
        self.variables: dict[CodeType, dict[str, Any]] = {}
        self.refused = ""

    def refuse(self, why: str) -> None:
        self.refused = self.refused or why

    def seen(self, frame: FrameType, event: str, arg: Any) -> None:
        """Take note of a call; a function for `sys.setprofile`."""
        if event not in ("call", "c_call"):
            return
        home, code = _home(frame), frame.f_code
        if event == "c_call":
            if home not in _TRUSTED | _PLAIN and arg.__name__ in _ACTS | _READS:
                self.refuse(f"{code.co_qualname} calls {arg.__name__}()")
        elif code in self._known:
            return
        elif home in _TRUSTED | _PLAIN:
            self._known.add(code)
            if code.co_name in _READS and home == "torch":
                self.refuse(f"{code.co_name}() reads the numbers in a tensor")
            if code.co_argcount and isinstance(frame.f_locals.get(code.co_varnames[0]), nn.Module):
                self.names |= set(code.co_names)
        elif home in _OTHERS:
            if frame.f_back is not None and _home(frame.f_back) not in _TRUSTED | _PLAIN | _OTHERS:
                self.refuse(f"{code.co_qualname} of {home} is called")
        else:
            self._known.add(code)
            self.variables[code] = frame.f_globals
            self.own |= names_of(code)


def _home(frame: FrameType) -> str:
    """Return the package that a piece of code belongs to."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def names_of(code: CodeType) -> set[str]:
    """Return the names that a piece of code uses, those in its text and those of code inside it included."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, str) and constant.isidentifier():
            found.add(constant)
        elif isinstance(constant, CodeType):
            found |= names_of(constant)
    return found


@contextmanager
def following(code: Code) -> Iterator[None]:
    """Context: `code` takes note of all that is run. Cost: calls take several times as long.

    No garbage is collected meanwhile, as other packages have functions that are called then.
    """
    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(code.seen)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()


class Watched:
    """What some code can read, as it was when this was made.

    Args:
        code: the code.
        parts: the parts of the module.
        functions: functions that are called beside it.

    Attributes:
        refused: why it cannot be watched; empty if it can.
    """

    def __init__(self, code: Code, parts: Iterable[nn.Module], functions: Iterable[Any]) -> None:
        self._names, self._own, size = code.names | code.own, set(code.own), -1
        while size < len(self._names):  # functions that are reached may use further names
            size = len(self._names)
            self._look(code, list(parts), list(functions))
        self._empty = [c for c in self._live if not c]
        self._filled = [(c, c.copy()) for c in self._live if c]
        self._modes = _modes()

    def _look(self, code: Code, parts: list[nn.Module], functions: list[Any]) -> None:
        self.refused = code.refused
        self._all = bool(self._own & {"getattr", "vars", "__dict__", "__getattr__"})
        self._entries: list[tuple[Any, str, Any]] = []
        self._live: list[Any] = list(_GLOBAL_HOOKS)
        self._seen: set[int] = set()
        self._owners: dict[int, str] = {}
        for m in parts:
            self._module(m)
        for f in functions:
            self._visit(f, "the loss")
        for each, variables in code.variables.items():
            self._globals(each, variables)
        self._closures([c for c in code.variables if c.co_freevars])

    def changed(self) -> str:
        """Return what has changed, in words; empty if nothing has."""
        for table, name, value in self._entries:
            now = table.get(name, _ABSENT)
            if now is not value and not (isinstance(now, _ATOMS) and type(now) is type(value) and now == value):
                return f"{name} of {self._owners[id(table)]} has changed"
        if _modes() != self._modes:
            return "a setting of torch has changed"
        if any(self._empty):
            return f"{self._owners.get(id(next(filter(None, self._empty))), 'a table of hooks')} is no longer empty"
        for now, before in self._filled:
            if not _same(now, before):
                return f"the contents of {self._owners.get(id(now), 'a table of hooks')} have changed"
        return ""

    # -- what can be reached -------------------------------------------------------------------------------------------

    def _refuse(self, why: str) -> None:
        self.refused = self.refused or why

    def _entry(self, table: Any, name: str, value: Any, owner: str) -> None:
        self._entries.append((table, name, value))
        self._owners[id(table)] = owner

    def _visit(self, value: Any, what: str) -> None:
        if isinstance(value, _ATOMS) or value is _ABSENT or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if len(self._seen) > 20 * _MOST:
            self._refuse("it reaches too many objects to follow")
        elif isinstance(value, Tensor):
            return  # a record reads it as it is
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, (*_CONTAINERS, tuple, frozenset)):
            self._container(value, what)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, MethodType):
            self._visit(value.__self__, what)
            self._visit(value.__func__, what)
        elif isinstance(value, partial):
            self._visit((value.func, value.args, value.keywords), what)
        elif isinstance(value, ModuleType):
            self._package(value)
        elif isinstance(value, type):
            self._class(value)
        else:
            self._object(value, what)

    def _object(self, value: Any, what: str) -> None:
        home = str(getattr(type(value), "__module__", "")).partition(".")[0]
        if isinstance(value, (BuiltinFunctionType, type(Tensor.add), type(len))):
            own, origin = getattr(value, "__self__", None), getattr(value, "__objclass__", value)
            origin = str(getattr(origin, "__module__", "") or "").partition(".")[0]
            owner = "" if own is None or isinstance(own, ModuleType) else type(own).__module__.partition(".")[0]
            if not {origin, owner} & (_TRUSTED | _PLAIN) or value.__name__ in _ACTS:
                self._refuse(f"{what} is {value.__name__}(), which may give something else each time")
        elif isinstance(value, (torch.Generator, np.ndarray)) or hasattr(value, "__next__"):
            self._refuse(f"{what} is a {type(value).__name__}, whose changes cannot be followed")
        elif home == "torch" and not hasattr(value, "__dict__"):
            return
        elif isinstance(getattr(value, "__dict__", None), dict) and home not in ("numpy", "random", "threading"):
            self._attributes(value.__dict__, type(value).__name__, what)
            self._class(type(value))
        else:
            self._refuse(f"{what} is a {type(value).__name__}, whose changes cannot be followed")

    def _attributes(self, table: Any, owner: str, what: str) -> None:
        for name in list(table) if self._all and len(table) < _MOST else self._names & table.keys():
            self._entry(table, name, table[name], owner)
            self._visit(table[name], f"{name} of {owner}")

    def _class(self, cls: type) -> None:
        for each in cls.__mro__:
            home = each.__module__.partition(".")[0]
            if home in _TRUSTED | _PLAIN or home in sys.stdlib_module_names or id(each) in self._seen:
                continue
            self._seen.add(id(each))
            for name in self._names & each.__dict__.keys():
                value = each.__dict__[name]
                self._entry(_Class(each), name, value, each.__name__)
                self._owners[id(self._entries[-1][0])] = each.__name__
                if not isinstance(value, (property, classmethod, staticmethod)) and not hasattr(value, "__get__"):
                    self._visit(value, f"{name} of {each.__name__}")

    def _module(self, m: nn.Module) -> None:
        self._seen.add(id(m))
        owner, table = type(m).__name__, m.__dict__
        for name, value in list(table.items()):
            if name.endswith("hooks") or name in ("_modules",) or "_hooks_" in name:
                if isinstance(value, _CONTAINERS):
                    self._live.append(value)
                    self._owners[id(value)] = f"{name} of {owner}"
                    for x in value.values() if isinstance(value, dict) else value:
                        self._visit(x, f"a hook of {owner}")
            elif name == "_parameters":
                for n, p in value.items():
                    self._entry(value, n, p, owner)
            elif name not in _OWN and (name in self._names or name == "training" or self._all):
                self._entry(table, name, value, owner)
                self._visit(value, f"{name} of {owner}")
        self._class(type(m))

    def _container(self, value: Any, what: str) -> None:
        if len(value) > _MOST:
            self._refuse(f"{what} is a {type(value).__name__} of {len(value)} entries, too many to follow")
            return
        if isinstance(value, _CONTAINERS):
            self._live.append(value)
            self._owners[id(value)] = what
        for x in list(value.values() if isinstance(value, dict) else value):
            self._visit(x, what)

    def _function(self, f: FunctionType) -> None:
        if str(f.__module__).partition(".")[0] in _TRUSTED | _PLAIN:
            return
        self._names |= names_of(f.__code__)
        self._own |= names_of(f.__code__)
        self._globals(f.__code__, f.__globals__)
        for cell in f.__closure__ or ():
            table = _Cell(cell)
            self._entry(table, "", table.get(""), f.__qualname__)
            self._visit(table.get(""), f"a variable around {f.__qualname__}")
        for x in (*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()):
            self._visit(x, f"a default of {f.__qualname__}")

    def _globals(self, code: CodeType, variables: dict[str, Any]) -> None:
        for name in names_of(code) & variables.keys():
            self._entry(variables, name, variables[name], f"module {variables.get('__name__', '')}")
            self._visit(variables[name], f"the global {name}")

    def _package(self, value: ModuleType) -> None:
        home = value.__name__.partition(".")[0]
        if home in _TRUSTED | _PLAIN:
            return
        if home == "numpy":
            if self._names & {"random", "asarray", "array"}:
                self._refuse("it computes by numpy")
        elif home in sys.stdlib_module_names:
            self._refuse(f"it uses the module {value.__name__}")
        else:
            self._attributes(value.__dict__, value.__name__, value.__name__)

    def _closures(self, codes: list[CodeType]) -> None:
        """Visit the functions that code with variables around it belongs to."""
        known = [c for c in codes if c.co_freevars != ("__class__",)]
        for f in gc.get_referrers(*known) if known else ():
            if isinstance(f, FunctionType):
                self._visit(f, f.__qualname__)


class _Cell:
    """A variable around a function."""

    def __init__(self, cell: Any) -> None:
        self._cell = cell

    def get(self, name: str, default: Any = _ABSENT) -> Any:
        try:
            return self._cell.cell_contents
        except ValueError:
            return default


class _Class:
    """The attributes of a class."""

    def __init__(self, cls: type) -> None:
        self._cls = cls

    def get(self, name: str, default: Any = _ABSENT) -> Any:
        return self._cls.__dict__.get(name, default)


def _same(now: Any, before: Any) -> bool:
    if len(now) != len(before):
        return False
    if isinstance(now, dict):
        return list(now) == list(before) and _same(list(now.values()), list(before.values()))
    if isinstance(now, (set, frozenset)):
        return bool(now == before)
    pairs = zip(now, before, strict=True)
    return all(a is b or (isinstance(a, _ATOMS) and type(a) is type(b) and a == b) for a, b in pairs)


def _modes() -> tuple[Any, ...]:
    """Return the settings of torch that change which operations a call makes."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_anomaly_enabled(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.are_deterministic_algorithms_enabled(),
    )
