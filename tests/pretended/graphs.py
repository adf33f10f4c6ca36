"""CUDA graphs on the pretended device .

A capture notes the operations on the device with the memory that they read and write, as CUDA does. A replay takes them
again on that memory: Python code is not run a second time, and what a capture does not see is not there. As on CUDA,

    while a graph is captured nothing is computed: what an operation of the capture has given is NaN (or -1) until the
    replay, and what it has written to in place is as it was;
    a sync in a capture is an error, and so is a random number of a generator that was not registered;
    a replay is one launch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pretended.log import identity, leaves, log


class CaptureError(RuntimeError):
    """What CUDA says of an operation that a capture cannot hold."""


class Graph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._ops: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._generators: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._kept: list[Tensor] = []
        self._memory: set[int] = set()
        self._states: list[tuple[Any, Tensor]] = []
        self.captured = False

    def register_generator_state(self, generator: Any) -> None:
        self._generators.add(identity(generator))

    def pool(self) -> tuple[int, int]:
        return 0, 0

    def reset(self) -> None:
        self._ops.clear()

    def forbid(self, what: str) -> None:
        raise CaptureError(f"CUDA error: operation not permitted when stream is capturing ({what})")

    def noted(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation of the capture for the shapes of its results, and note it."""
        flat = leaves((args, kwargs))
        for x in flat:
            if isinstance(x, torch.Generator):
                if identity(x) not in self._generators:
                    raise CaptureError("Attempt to increase offset for a CUDA generator not in capture mode.")
                self._states.append((x, x.get_state()))
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for x in leaves(value):
                    self._before.setdefault(id(x), (x, x.clone()))
        with torch.no_grad():
            out = func(*args, **kwargs)
        given = {id(x) for x in flat}
        results = [x for x in leaves(out) if isinstance(x, Tensor)]
        read = [x for x in flat if isinstance(x, Tensor)]
        self._kept += [*read, *results]  # an address stays what it was
        self._memory |= {x.untyped_storage().data_ptr() for x in read}
        fresh = [x for x in results if id(x) not in given and x.untyped_storage().data_ptr() not in self._memory]
        if fresh or func._schema.is_mutable:
            self._ops.append((func, args, kwargs, fresh))
        return out

    def begin(self) -> None:
        self._ops, self._before, self._states = [], {}, []
        self._kept, self._memory = [], set()

    def end(self) -> None:
        """End the capture: nothing was computed."""
        for generator, state in reversed(self._states):
            generator.set_state(state)
        for _, _, _, fresh in self._ops:
            for x in fresh:
                x.fill_(float("nan") if x.is_floating_point() else 1 if x.dtype is torch.bool else -1)
        for x, value in self._before.values():
            x.copy_(value)
        self._before, self.captured = {}, True

    def replay(self) -> None:
        if not self.captured:
            raise CaptureError("Called CUDAGraph::replay without a preceding successful capture.")
        log().kernel("graph")
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            for func, args, kwargs, fresh in self._ops:
                found = leaves(func(*args, **kwargs))
                # operations of the capture never resize, so results lie as they lay
                wanted = [x for x in found if isinstance(x, Tensor)]
                targets = iter(fresh)
                given = {id(x) for x in leaves((args, kwargs))}
                for x, target in zip((x for x in wanted if id(x) not in given), targets, strict=False):
                    target.copy_(x)


class Stream:
    """`torch.cuda.Stream`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, other: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass


def graphs(own: Any) -> dict[str, Any]:
    """What of `torch.cuda` has to do with graphs, by name."""

    @contextlib.contextmanager
    def graph(made: Graph, *args: Any, **kwargs: Any) -> Iterator[None]:
        own.sync("torch.cuda.graph")  # its beginning waits for the device
        made.begin()
        own.capture = made
        try:
            yield
        finally:
            own.capture = None
            with _disable_current_modes():
                made.end()

    @contextlib.contextmanager
    def stream(which: Any) -> Iterator[None]:
        yield

    return {
        **{"CUDAGraph": Graph, "graph": graph, "Stream": Stream, "stream": stream, "current_stream": Stream},
        **{"graph_pool_handle": lambda: (0, 0), "is_current_stream_capturing": lambda: own.capture is not None},
    }
