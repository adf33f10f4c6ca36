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
    """`call()` takes `steps` training steps; what it needs is made before."""

    call: Callable[[], object]
    steps: int


@dataclass(frozen=True)
class Pair:
    """A method and what it is compared with."""

    base: Work
    method: Work


@dataclass(frozen=True)
class Timing:
    """Seconds a step, one entry a repeat: of what is compared with, and of the method."""

    base: list[float]
    method: list[float]

    @property
    def ratios(self) -> list[float]:
        return [m / b for b, m in zip(self.base, self.method, strict=True)]

    @property
    def ratio(self) -> float:
        """Median over the repeats of the ratio within a repeat, which a machine that slows down leaves alone."""
        return statistics.median(self.ratios)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(work: Work, device: torch.device) -> float:
    """Seconds a step of one call: CPU time of this process, or on CUDA wall time with synchronisation."""
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
    """Time both in turns, `repeats` times each, after one call of each that does not count; the order alternates."""
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
    """The `count` operators with the largest own share of the CPU time of one call, largest first."""
    with one_thread(), profile(activities=[ProfilerActivity.CPU]) as seen:
        work.call()
    events: list[FunctionEventAvg] = list(seen.key_averages())
    total = sum(e.self_cpu_time_total for e in events) or 1.0
    largest = sorted(events, key=lambda e: -e.self_cpu_time_total)[:count]
    return [(str(e.key), e.self_cpu_time_total / total) for e in largest]
