"""What happens on the pretended device, and what the other modules share."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import torch

CUDA = torch.device("cuda:0")


class MixedDevices(RuntimeError):
    """An operation on tensors of two devices."""


class Log:
    """What happened on the pretended device: launches by name of the operation, syncs by what and where."""

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.syncs: Counter[tuple[str, str]] = Counter()
        self.capture: Any = None  # the graph that is being captured

    def sync(self, what: str) -> None:
        if self.capture is not None:
            self.capture.forbid(what)
        self.syncs[what, _place()] += 1

    def kernel(self, name: str, count: int = 1) -> None:
        if self.capture is None:
            self.kernels[name] += count

    @property
    def launches(self) -> int:
        return sum(self.kernels.values())

    @property
    def synced(self) -> int:
        return sum(self.syncs.values())

    def clear(self) -> None:
        self.kernels.clear()
        self.syncs.clear()


def _place() -> str:
    """The line of the innermost frame in one of the two packages."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/lib/gradtune" in name:
            return f"{name.rpartition('/lib/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "the test"


class State:
    log: ClassVar[Log | None] = None
    generators: ClassVar[dict[int, Any]] = {}


def log() -> Log:
    assert State.log is not None
    return State.log


def identity(generator: Any) -> int:
    """What tells generators apart; torch wraps one in several objects of Python."""
    return int(generator._cdata)


def on_cuda(generator: Any) -> bool:
    """Whether a generator says that it is on the device."""
    return identity(generator) in State.generators


def kind(device: Any) -> str:
    """The type of a device, "cuda" for what says so to C++."""
    if device is None:
        return "cpu"
    if isinstance(device, int):
        return "cuda"
    found = torch.device(device).type
    return "cuda" if found == "meta" else found


def leaves(x: Any) -> list[Any]:
    """What nested arguments of an operation hold; faster than torch's own."""
    if isinstance(x, (tuple, list)):
        return [z for y in x for z in (leaves(y) if isinstance(y, (tuple, list, dict)) else (y,))]
    return leaves(tuple(x.values())) if isinstance(x, dict) else [x]


def mapped(x: Any, f: Callable[[Any], Any]) -> Any:
    if isinstance(x, (tuple, list)):
        return type(x)([mapped(y, f) for y in x]) if not hasattr(x, "_fields") else type(x)(*(mapped(y, f) for y in x))
    return {n: mapped(y, f) for n, y in x.items()} if isinstance(x, dict) else f(x)
