"""The benchmark of long horizons: its rows give one number, meet the formulas, and are kept and read again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gradtune_book.records import store
from tools import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks import long_horizons


def test_the_rows_differentiate_the_same_and_meet_the_formulas() -> None:
    found = {row.method: long_horizons.measured(replace(row, steps=20, repeats=1)) for row in long_horizons.ROWS}
    assert len({metrics["hypergradient_lr"] for metrics in found.values()}) == 1
    for name, metrics in found.items():
        assert metrics["ratio"] > 1 and metrics["tensors_mb"] > 0, name
        assert (metrics["replayed"], metrics["states"]) == (metrics["formula_replayed"], metrics["formula_states"])
        assert metrics["gradients"] == {"graph": 21, "state": 40}.get(name, 41 + metrics["replayed"])
        assert (metrics["states"] > 0) == name.startswith("tree")


def test_measurements_are_kept_and_read(tmp_path: Path) -> None:
    row = replace(long_horizons.ROWS[-1], steps=20, repeats=1)
    metrics = {"ratio": 2.0, "base_s": 1.0, "method_s": 2.0, "replayed": 3}
    for _ in range(2):
        long_horizons.keep(row, metrics, tmp_path)
    long_horizons.keep(replace(row, steps=30), metrics, tmp_path)
    frame = store.load(long_horizons.STUDY, long_horizons.SCALE, root=tmp_path)
    assert {*zip(frame["steps"], frame["seed"], frame["replayed"], strict=True)} == {(20, 0, 3), (20, 1, 3), (30, 0, 3)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--rows", "trees"], "unknown row 'trees'"), (["--steps", "0"], "steps[0] = 0"), (["--repeats", "0"], "repeats")],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert long_horizons.main(arguments) != 0
    assert message in capsys.readouterr().err


def test_a_quick_measurement_is_not_kept() -> None:
    with pytest.raises(SystemExit):
        long_horizons.main(["--quick", "--record"])
