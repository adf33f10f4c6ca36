"""What computes chunks: the interface of an engine, and the one that computes in this process.

`workers` runs this one in several processes; `cluster` has one that hands chunks to Ray.
"""

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from gradtune.errors import GradtuneError
from gradtune_book import config
from gradtune_book.records import environment, gpu, jsonl, sittings, store
from gradtune_book.records.chunks import Chunk, Job
from gradtune_book.records.study import Study

Results = Generator[tuple[Chunk, list[jsonl.Line]], None, None]
"""Chunks with their records."""


@dataclass
class Pace:
    """Whether another chunk may start: whether one as long as the slowest so far would end in time.

    Attributes:
        deadline: As in `Job`.
        slowest: Seconds of the slowest chunk so far.
    """

    deadline: float | None
    slowest: float = 0.0

    def allows(self) -> bool:
        """Tell whether another chunk may start now."""
        return self.deadline is None or time.monotonic() + self.slowest < self.deadline

    def took(self, start: float) -> None:
        """Note that a chunk has ended which began at this reading of `time.monotonic()`."""
        self.slowest = max(self.slowest, time.monotonic() - start)


class Engine(Protocol):
    """What computes chunks."""

    def check(self, device: str) -> None:
        """Raise a GradtuneError where the engine cannot have this device."""

    def results(self, job: Job, chunks: Iterator[Chunk], pace: Pace) -> Results:
        """Compute chunks and yield the records of each (`compute`), in whatever order they end.

        Args:
            job: The job that they belong to.
            chunks: Chunks to compute. One that is taken from here is claimed, and should start at once.
            pace: Is told how long chunks take. What is taken and does not start while it allows is given up.
        """


class Here:
    """The engine that computes one chunk after the other in this process."""

    def check(self, device: str) -> None:
        environment.device(device)

    def results(self, job: Job, chunks: Iterator[Chunk], pace: Pace) -> Results:
        device = environment.device(job.device)
        for chunk in chunks:
            start = time.monotonic()
            lines = compute(job.study, job.scale, chunk, device, kept=True)
            pace.took(start)
            yield chunk, lines


HERE = Here()


def compute(study: Study, scale: str, chunk: Chunk, device: torch.device, kept: bool = False) -> list[jsonl.Line]:
    """Run one chunk and return its records, in the order of its configurations.

    An error of the study's own function gets a note that names the study, the scale and the runs.

    Args:
        study: The study.
        scale: One of `config.SCALES`.
        chunk: The runs.
        device: Where they are computed.
        kept: Go on from the state that an earlier, unfinished call left on file, and leave one (`sittings`).

    Raises:
        GradtuneError: The study gave another number of results than there are runs, or a result is refused by
            `store.line`.
    """
    environment.commit()  # asked before the run: this is the code that computes it
    environment.reset_peak(device)
    try:
        sitting = sittings.sitting(study.name, scale, chunk.keys, device) if kept else contextlib.nullcontext()
        with environment.as_recorded(device), sitting:
            gpu_used = gpu.described(device)
            results = study.run(chunk.configs, device)
    except Exception as error:
        error.add_note(f"in study {study.name!r}, scale {scale!r}, runs {[config.to_dict(c) for c in chunk.configs]}")
        raise
    if len(results) != len(chunk.configs):
        raise GradtuneError(f"study {study.name!r} gave {len(results)} results for {len(chunk.configs)} runs")
    where, peak = environment.describe(device), environment.peak_mb(device)
    runs = zip(chunk.configs, results)
    return [store.line(study.name, scale, cfg, result, where, len(results), peak, gpu_used) for cfg, result in runs]
