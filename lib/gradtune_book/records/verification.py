"""Re-run recorded runs drawn at random and compare: does this code on this machine still give what is recorded?"""

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from gradtune.errors import GradtuneError

from gradtune_book import config
from gradtune_book.records import environment, jsonl, store
from gradtune_book.records.recorder import Chunk, compute, cut
from gradtune_book.records.study import Study

TOLERANCE = 1e-6
"""Largest relative difference of a metric that counts as the same; processors differ in the last digits."""


class Comparison(NamedTuple):
    """One re-run: the metric that differs most from its recorded value, relatively."""

    method: str
    seed: int
    key: str
    metric: str
    recorded: float | None
    again: float | None
    difference: float
    elsewhere: str = ""
    """What differs between there and here that a number may depend on: device, versions, runs computed together."""

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
    """Re-run `count` recorded runs drawn at random (all of them if there are fewer) and compare their metrics.

    A run is computed within its chunk, as it was recorded. Nothing is written.

    Args:
        study: from `gradtune_book.papers.get`.
        scale: one of `config.SCALES`.
        device: "cpu", "cuda" or "cuda:N"; other devices than the recorded one need not agree to `TOLERANCE`.
        count: how many runs.
        draw: source of randomness, fresh at every call by default.

    Raises:
        GradtuneError: bad arguments, or nothing is recorded.
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
    files = {store.path(study.name, scale, chunk.configs[0].method) for chunk in chunks}
    return jsonl.by_key(line for file in files for line in jsonl.read(file) if line["key"] in current)


def _compare(recorded: jsonl.Line, again: jsonl.Line) -> Comparison:
    old, new = recorded["metrics"], again["metrics"]
    names = [*old, *(name for name in new if name not in old)]
    worst = max(names, key=lambda name: _difference(old, new, name), default="")
    difference = _difference(old, new, worst) if names else 0.0
    cfg = recorded["config"]
    elsewhere = " and ".join(name for name in ("device", "versions", "batch") if recorded[name] != again[name])
    values = worst, old.get(worst), new.get(worst), difference
    return Comparison(cfg["method"], cfg["seed"], recorded["key"], *values, elsewhere)


def _difference(old: dict[str, Any], new: dict[str, Any], name: str) -> float:
    """Return |a - b| / max(|a|, |b|); a NaN (null) equals a NaN, and nothing equals an absent metric."""
    if name not in old or name not in new:
        return math.inf
    a, b = old[name], new[name]
    if a == b:
        return 0.0
    return math.inf if a is None or b is None else abs(a - b) / max(abs(a), abs(b))


def _text(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.9g}"
