"""What a training is of, in short text by topic: data, losses, model, schedule. Checkpoints are compared by it.

Text is made of what does not move in a training: the content of tensors by rows, the code and the constants of
functions, the parts of a module and their settings. What a loader yields cannot be known beforehand. Of it the dataset,
the sizes and the functions count.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradtune.tuning.streams import Loaded, Resident

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_DEEPEST = 6  # levels of functions in functions and containers in containers


def of_data(feed: Resident | Loaded | None) -> str:
    """Return text for batches: what they are, and a digest of the rows they are drawn from."""
    if feed is None:
        return "None"
    return f"{feed} ({_short(feed.data if isinstance(feed, Resident) else _loader(feed.loader))})"


def of_function(function: Any) -> str:
    """Return text for a loss or schedule: its name, and a digest of its code and of the constants it uses."""
    if function is None:
        return "None"
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return f"{name.rpartition('.')[2]} ({_short(function)})"


def of_model(model: nn.Module) -> str:
    """Return a digest of a model's parts, their settings and its frozen parameters."""
    return _short((model, [(name, p) for name, p in model.named_parameters() if not p.requires_grad]))


def of_tensors(named: Mapping[str, Any]) -> str:
    """Return a digest of tensors by name, such as a model's state."""
    return _short(dict(named))


def _short(value: Any) -> str:
    total = hashlib.sha256()
    for piece in _pieces(value, _DEEPEST):
        total.update(len(piece).to_bytes(8, "little"))
        total.update(piece)
    return total.hexdigest()[:12]


def _pieces(value: Any, deep: int) -> Iterator[bytes | memoryview]:
    """Yield what a value is made of; what is of no known kind counts by the name of its type."""
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield flat.reshape(-1).view(torch.uint8).numpy().data if flat.numel() else b""
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}".encode()
    elif deep:
        yield _name(value)
        for part in _parts(value):
            yield from _pieces(part, deep - 1)


def _name(value: Any) -> bytes:
    named = value if inspect.isroutine(value) or inspect.isclass(value) else type(value)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', type(value).__name__)}".encode()


def _parts(value: Any) -> Iterator[Any]:
    """Yield the parts of a value that count."""
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, Sequence):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType):
        yield from _function(value)
    elif isinstance(value, CodeType):
        yield from _code(value)
    elif isinstance(value, nn.Module):
        yield from _module(value)
    elif callable(value) and not inspect.isclass(value):
        yield from (getattr(type(value).__call__, "__code__", None), _settings(getattr(value, "__dict__", {})))


def _function(function: FunctionType) -> Iterator[Any]:
    """Code, defaults, and of what is around it the constants and the functions of the same file."""
    code = function.__code__
    written = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_GLOBAL", "STORE_DEREF")}
    yield from (code, function.__defaults__, function.__kwdefaults__)
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    around = {name: _content(cell) for name, cell in cells}
    used = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
    own = {
        n: v for n, v in used.items() if isinstance(v, _PLAIN) or getattr(v, "__module__", "") == function.__module__
    }
    for name, value in sorted({**own, **around}.items()):
        if name not in written and isinstance(value, (*_PLAIN, Tensor, FunctionType, functools.partial, nn.Module)):
            yield (name, value)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _code(code: CodeType) -> Iterator[Any]:
    yield from (code.co_code, code.co_names, code.co_varnames)
    constants = [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in code.co_consts]
    yield from constants[1:] if constants and constants[0] == _text_of(code) else constants


def _text_of(code: CodeType) -> Any:
    """The docstring, which may change."""
    return code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else object()


def _module(module: nn.Module) -> Iterator[Any]:
    """Parts of a module by name: class, settings, code of its forward pass."""
    for name, part in module.named_modules():
        forward = type(part).forward
        ours = isinstance(forward, FunctionType) and not forward.__module__.startswith("torch.")
        yield (name, type(part).__qualname__, part.extra_repr(), forward if ours else None, _settings(vars(part)))


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that are no counters: text, true or false, and numbers with a point."""
    public = {name: value for name, value in attributes.items() if not name.startswith("_") and name != "training"}
    return {name: value for name, value in sorted(public.items()) if isinstance(value, (bool, float, str))}


def _loader(loader: Any) -> list[Any]:
    """What is known of a loader before it is asked for a batch."""
    if isinstance(loader, (list, tuple)):
        return [loader]
    if not isinstance(loader, DataLoader):
        return [type(loader).__qualname__]
    dataset = loader.dataset
    held = {
        n: v for n, v in getattr(dataset, "__dict__", {}).items() if isinstance(v, (Tensor, np.ndarray, tuple, list))
    }
    sizes = loader.batch_size, loader.drop_last, type(loader.sampler).__qualname__
    length = len(dataset) if hasattr(dataset, "__len__") else None
    return [
        type(dataset).__qualname__,
        length,
        sizes,
        loader.collate_fn,
        held,
        _settings(getattr(dataset, "__dict__", {})),
    ]
