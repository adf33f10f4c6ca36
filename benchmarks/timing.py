"""Two callables timed in turns, and where the time of one of them goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Work:
    """Work that can be timed; what it needs is made before.

    Attributes:
        call: Function without arguments that does the work once.
        steps: Training steps of one call.
    """

    call: Callable[[], object]
    steps: int


@dataclass(frozen=True)
class Pair:
    """A method and what it is compared with.

    Attributes:
        base: What the method is compared with.
        method: The method.
    """

    base: Work
    method: Work


@dataclass(frozen=True)
class Timing:
    """Timing of both sides of a `Pair`.

    Attributes:
        base: Seconds a step of what the method is compared with, one entry a repeat.
        method: Seconds a step of the method, likewise.
    """

    base: list[float]
    method: list[float]

    @property
    def ratios(self) -> list[float]:
        """The method's time relative to the base's, one entry a repeat."""
        return [m / b for b, m in zip(self.base, self.method, strict=True)]

    @property
    def ratio(self) -> float:
        """Median of `ratios`; a machine that slows down changes both sides of a repeat and so leaves it alone."""
        return statistics.median(self.ratios)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread inside the `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(work: Work, device: torch.device) -> float:
    """Time one call and return its seconds a step: CPU time of this process, on CUDA wall time with synchronisation."""
    clock = time.process_time
    if device.type == "cuda":
        clock = time.perf_counter
        torch.cuda.synchronize(device)
    start = clock()
    work.call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (clock() - start) / work.steps


def interleaved(pair: Pair, repeats: int, device: torch.device) -> Timing:
    """Time both sides in turns, in alternating order, after one call of each that does not count.

    Args:
        pair: The two sides.
        repeats: How often each side is timed.
        device: Where they are computed.
    """
    timing = Timing([], [])
    sides = [(pair.base, timing.base), (pair.method, timing.method)]
    with one_thread():
        for work, _ in sides:
            work.call()
        for _ in range(repeats):
            sides.reverse()
            for work, into in sides:
                into.append(seconds(work, device))
    return timing


def where_time_goes(work: Work, count: int = 4) -> list[tuple[str, float]]:
    """Return the operators with the largest own share of the CPU time of one call, largest first.

    Args:
        work: The work. It is called once.
        count: Number of operators.

    Returns:
        Name and share of each, the share between 0 and 1.
    """
    with one_thread(), profile(activities=[ProfilerActivity.CPU]) as seen:
        work.call()
    events: list[FunctionEventAvg] = list(seen.key_averages())
    total = sum(e.self_cpu_time_total for e in events) or 1.0
    largest = sorted(events, key=lambda e: -e.self_cpu_time_total)[:count]
    return [(str(e.key), e.self_cpu_time_total / total) for e in largest]
