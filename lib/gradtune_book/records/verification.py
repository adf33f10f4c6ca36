"""Verification: does this code on this machine still give what is recorded?

Recorded runs are drawn at random, run again and compared.
"""

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from gradtune.errors import GradtuneError
from gradtune_book import config
from gradtune_book.records import environment, jsonl, store
from gradtune_book.records.chunks import Chunk, cut
from gradtune_book.records.engines import compute
from gradtune_book.records.study import Study

_TOOLS = ("python", "torch", "numpy", "compiler")  # of the versions; commits tell the code's own
TOLERANCE = 1e-6
"""Largest relative difference of a metric that counts as the same; processors differ in the last digits."""


class Comparison(NamedTuple):
    """One run computed again: the metric that differs most, relatively, from its recorded value.

    Attributes:
        method: The run's method.
        seed: The run's seed.
        key: The run's key in the records.
        metric: Name of the metric that differs most, "" for a run without metrics.
        recorded: Its recorded value, None for a NaN or where it is absent.
        again: Its value now, None for a NaN or where it is absent.
        difference: Relative difference of the two values; infinite where one is a NaN or absent and the other is not.
        elsewhere: What differs between there and here that a number may depend on, of "device", "batch" (runs computed
            together), "python", "torch", "numpy" and "compiler" (whether C++ or torch has computed the operations that
            have both forms), and between GPUs of what `gpu.described` lists, joined by "and". Empty where nothing does.
    """

    method: str
    seed: int
    key: str
    metric: str
    recorded: float | None
    again: float | None
    difference: float
    elsewhere: str = ""

    @property
    def same(self) -> bool:
        """True when no metric differs by more than `TOLERANCE`."""
        return self.difference <= TOLERANCE

    def sentence(self) -> str:
        """Return the comparison as one line for people."""
        run = f"{self.method} seed {self.seed} ({self.key})"
        if self.difference == 0:
            return f"{run}: identical"
        values = f"recorded {_text(self.recorded)}, now {_text(self.again)}"
        where = f"; recorded with another {self.elsewhere}" if self.elsewhere else ""
        return f"{run}: {self.metric} differs by {self.difference:.1e} ({values}{where})"


def verify(
    study: Study, scale: str, device: str = "cpu", count: int = 1, draw: random.Random | None = None
) -> Iterator[Comparison]:
    """Run recorded runs again, drawn at random, and compare their metrics.

    A run is computed within its chunk, as it was recorded. Nothing is written.

    Args:
        study: The study, from `papers.get`.
        scale: One of `config.SCALES`.
        device: "cpu", "cuda" or "cuda:N". Another device than the recorded one need not agree to `TOLERANCE`.
        count: Number of runs. All recorded runs are compared where there are fewer.
        draw: Source of randomness, a fresh one at every call by default.

    Yields:
        One comparison per drawn run, in the study's order.

    Raises:
        GradtuneError: Bad arguments, or nothing is recorded.
    """
    if count < 1:
        raise GradtuneError(f"at least 1 run must be verified, not {count}")
    where, chunks = environment.device(device), cut(study, config.check_scale(scale))
    lines = _recorded(study, scale, chunks)
    if not lines:
        raise GradtuneError(f"no run of {study.name} is recorded at scale {scale}; run `gradtune record` first")
    drawn = set((draw or random.Random()).sample(sorted(lines), min(count, len(lines))))
    for chunk in chunks:
        if wanted := drawn.intersection(chunk.keys):
            again = jsonl.by_key(compute(study, scale, chunk, where))
            yield from (_compare(lines[key], again[key]) for key in chunk.keys if key in wanted)


def _recorded(study: Study, scale: str, chunks: list[Chunk]) -> dict[str, jsonl.Line]:
    current = {key for chunk in chunks for key in chunk.keys}
    methods = {chunk.configs[0].method for chunk in chunks}
    found = [store.read(study.name, scale, method) for method in methods]
    return {key: line for lines in found for key, line in lines.items() if key in current}


def _compare(recorded: jsonl.Line, again: jsonl.Line) -> Comparison:
    old, new = recorded["metrics"], again["metrics"]
    names = [*old, *(name for name in new if name not in old)]
    worst = max(names, key=lambda name: _difference(old, new, name), default="")
    difference = _difference(old, new, worst) if names else 0.0
    cfg = recorded["config"]
    there, here = recorded["versions"], again["versions"]
    other = [name for name in ("device", "batch") if recorded[name] != again[name]]
    other += [tool for tool in _TOOLS if there.get(tool) != here.get(tool)]
    elsewhere = " and ".join(other + _of_gpus(recorded, again))
    values = worst, old.get(worst), new.get(worst), difference
    return Comparison(cfg["method"], cfg["seed"], recorded["key"], *values, elsewhere)


def _of_gpus(recorded: jsonl.Line, again: jsonl.Line) -> list[str]:
    """Return what differs between two GPUs, none where one is not: the device says so already."""
    if "gpu" not in recorded or "gpu" not in again:
        return []
    there, here = recorded["gpu"], again["gpu"]
    return [name for name in dict.fromkeys([*here, *there]) if there.get(name) != here.get(name)]


def _difference(old: dict[str, Any], new: dict[str, Any], name: str) -> float:
    """Return `|a - b| / max(|a|, |b|)`; a NaN (null) equals a NaN, and nothing equals an absent metric."""
    if name not in old or name not in new:
        return math.inf
    a, b = old[name], new[name]
    if a == b:
        return 0.0
    return math.inf if a is None or b is None else abs(a - b) / max(abs(a), abs(b))


def _text(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.9g}"
