"""Measurements as run records: one line a measurement in `data/records/step_cost/paper/ROW.jsonl`.

A line says, as every record does, where, when and with which versions it was computed (`records.store.line`), and what
the cost is relative to (`against`; a bare loop of torch in the lines that do not say so). A row that is measured again
gets the next number as its `seed`. The last line of a device counts, if it is relative to what the row is now.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from benchmarks.rows import BARE, Row
from benchmarks.timing import Timing
from gradtune_book import paths
from gradtune_book.records import environment, gpu, jsonl, store
from gradtune_book.records.jsonl import Line

STUDY, SCALE = "step_cost", "paper"


@dataclass(frozen=True)
class StepCost:
    """Identity of one measurement of one row.

    Attributes:
        method: Name of the measurement, `Row.key`.
        seed: Number of the measurement, counted from 0.
        repeats: Number of repeats.
        device: "cpu" for CPU time, or "cuda" for wall time with synchronisation.
        threads: Number of threads.
        version: Raised by a change of the code that changes the numbers.
        against: What the cost is relative to.
    """

    method: str
    seed: int
    repeats: int
    device: str
    threads: int = 1
    version: int = 1
    against: str = BARE


def metrics(timing: Timing) -> dict[str, float | int | None]:
    """Sum up a timing.

    Returns:
        ratio, its median over the repeats; low and high, its quartiles; base_ms and method_ms, the median milliseconds
        a step of both sides.
    """
    low, _, high = statistics.quantiles(timing.ratios, n=4) if len(timing.ratios) > 1 else timing.ratios * 3
    base, method = (1e3 * statistics.median(side) for side in (timing.base, timing.method))
    return {"ratio": timing.ratio, "low": low, "high": high, "base_ms": base, "method_ms": method}


def line(row: Row, way: str, timing: Timing, device: torch.device, seed: int = 0) -> Line:
    """Make the record of one measurement.

    Args:
        row: The row.
        way: How it was measured, one of `rows.WAYS`.
        timing: What was measured.
        device: Where it was measured.
        seed: Number of the measurement.
    """
    cfg = StepCost(row.key(way), seed, len(timing.base), device.type, against=row.against[way])
    result = store.Result(
        metrics(timing),
        {"ratios": [*timing.ratios]},
        wall_s=sum(timing.base) + sum(timing.method),
        dataset="generated inputs",
    )
    return store.line(STUDY, SCALE, cfg, result, environment.describe(device), 1, None, gpu.described(device))


def keep(row: Row, way: str, timing: Timing, device: torch.device, root: Path | None = None) -> Path:
    """Append a measurement to the records and return their file.

    Args:
        row: The row.
        way: How it was measured, one of `rows.WAYS`.
        timing: What was measured.
        device: Where it was measured.
        root: Root of the records. None stands for `paths.records_root()`.
    """
    file = store.path(STUDY, SCALE, row.key(way), root)
    jsonl.append(file, [line(row, way, timing, device, seed=len(jsonl.read(file)))])
    return file


def load(device: str = "cpu", root: Path | None = None) -> pd.DataFrame:
    """Load the last measurement of every row and way on a kind of device.

    Args:
        device: "cpu" or "cuda".
        root: Root of the records. None stands for `paths.records_root()`.

    Returns:
        What `store.load` gives, indexed by `Row.key`, with the device as people read it in the column `machine`. Empty,
        without this index and column, where no measurement is recorded.
    """
    frame = store.load(STUDY, SCALE, root=root)
    if frame.empty:
        return frame
    files = {store.path(STUDY, SCALE, name, root) for name in frame["method"]}
    machine = {each["key"]: each["device"] for file in files for each in jsonl.read(file)}
    against = frame["against"] if "against" in frame else pd.Series(BARE, frame.index)
    frame = frame.assign(machine=frame["key"].map(machine), against=against.fillna(BARE))
    return frame[frame["device"] == device].sort_values("seed").groupby("method").tail(1).set_index("method")


def published() -> pd.Series:
    """Return the cost of the published program by row, measured in the same way."""
    return pd.read_csv(paths.published_root() / "step_cost.csv").set_index("row")["value"]
