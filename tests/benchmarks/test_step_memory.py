"""The benchmark of a step's memory: what the profiler counts, what a row measures, and that it is kept and read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from gradtune_book.papers.together import horizon_tables
from gradtune_book.records import store
from tools import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import step_memory


def test_the_peak_counts_what_lives_at_once() -> None:
    x, left = torch.zeros(100_000), []

    def work() -> None:
        a = x + 1
        b = a + 1
        del a
        left.append(b + 1)
        del b

    most, held = step_memory.peak_bytes(work)
    assert 8e5 <= most < 8.1e5 and 4e5 <= held < 4.1e5


def test_graphs_that_are_kept_cost_memory_and_forward_mode_keeps_none() -> None:
    rows = {r.mode: r for r in step_memory.ROWS if r.net == "decoder" and r.method == "Diff-through-Opt, graphs"}
    found = {mode: step_memory.measured(row) for mode, row in rows.items()}
    plain = step_memory.measured(step_memory.StepMemory(step_memory.PLAIN, "decoder"))
    assert found["reverse"]["step_mb"] > 2 * found["forward"]["step_mb"] > 2 * plain["step_mb"] > 0


def test_measurements_are_kept_and_read(tmp_path: Path) -> None:
    metrics = {"step_mb": 12.34, "held_mb": 1.0, "step_ms": 2.0, "parameters": 10}
    for row in (step_memory.ROWS[0], step_memory.ROWS[1], step_memory.ROWS[1]):
        step_memory.keep(row, metrics, tmp_path)
    frame = store.load(step_memory.STUDY, step_memory.SCALE, root=tmp_path)
    assert sorted(zip(frame["method"], frame["seed"], strict=True)) == [("OHO", 0), ("OHO", 1), ("plain training", 0)]
    assert horizon_tables.memory(frame).loc[("OHO", "reverse"), "MLP"] == "12 (1.0)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--nets", "MPL"], "unknown net 'MPL'; did you mean 'MLP'"), (["--rows", "OHOO"], "did you mean 'OHO'")],
)
def test_mistakes_are_told(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert step_memory.main(arguments) and message in capsys.readouterr().err
