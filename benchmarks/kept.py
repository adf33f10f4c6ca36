"""Measurements as run records: one line a row and measurement in `data/records/step_cost/paper/ROW.jsonl`.

A line says, as every record does, where, when and with which versions it was computed (`gradtune_book.records.store.line`). A row
measured again gets the next number as its `seed`; the last line of a device counts.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from gradtune_book import paths
from gradtune_book.records import environment, jsonl, store
from gradtune_book.records.jsonl import Line

from benchmarks.rows import Row
from benchmarks.timing import Timing

STUDY, SCALE = "step_cost", "paper"


@dataclass(frozen=True)
class StepCost:
    """Identity of one measurement of one row."""

    method: str  # the row's name
    seed: int  # number of the measurement, counted from 0
    repeats: int
    device: str  # cpu: CPU time, cuda: wall time with synchronisation
    threads: int = 1
    version: int = 1


def metrics(timing: Timing) -> dict[str, float | int | None]:
    """Ratio (median over the repeats), its quartiles, and median milliseconds a step of both sides."""
    low, _, high = statistics.quantiles(timing.ratios, n=4) if len(timing.ratios) > 1 else timing.ratios * 3
    base, method = (1e3 * statistics.median(side) for side in (timing.base, timing.method))
    return {"ratio": timing.ratio, "low": low, "high": high, "base_ms": base, "method_ms": method}


def line(row: Row, timing: Timing, device: torch.device, seed: int = 0) -> Line:
    """The record of one measurement."""
    cfg = StepCost(row.name, seed, len(timing.base), device.type)
    result = store.Result(
        metrics(timing),
        {"ratios": [*timing.ratios]},
        wall_s=sum(timing.base) + sum(timing.method),
        dataset="generated inputs",
    )
    return store.line(STUDY, SCALE, cfg, result, environment.describe(device), 1, None)


def keep(row: Row, timing: Timing, device: torch.device, root: Path | None = None) -> Path:
    """Append a measurement to the records and return their file."""
    file = store.path(STUDY, SCALE, row.name, root)
    jsonl.append(file, [line(row, timing, device, seed=len(jsonl.read(file)))])
    return file


def load(device: str = "cpu", root: Path | None = None) -> pd.DataFrame:
    """The last measurement of every row on a kind of device, indexed by the row's name; empty when there is none. The
    column `machine` names the processor."""
    frame = store.load(STUDY, SCALE, root=root)
    if frame.empty:
        return frame
    files = {store.path(STUDY, SCALE, name, root) for name in frame["method"]}
    machine = {each["key"]: each["device"] for file in files for each in jsonl.read(file)}
    frame = frame.assign(machine=frame["key"].map(machine))
    return frame[frame["device"] == device].sort_values("seed").groupby("method").tail(1).set_index("method")


def published() -> pd.Series:
    """Cost of the published program by row, measured in the same way."""
    return pd.read_csv(paths.published_root() / "step_cost.csv").set_index("row")["value"]
