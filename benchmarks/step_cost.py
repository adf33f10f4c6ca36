"""Cost of one step of each method relative to a plain step of the same model, like compared with like.

What a user calls (`gradtune.Tuner`, `gradtune.hypergradient`, `gradtune.optim`) is compared with a bare loop of torch,
and a loop of a study, which replays its operations, with plain training that is replayed in the same way. It is the CPU
time of this process with one thread, both sides in turns, median over the repeats::

    python benchmarks/step_cost.py [--rows NAME ...] [--repeats 10] [--record] [--quick] [--growth] [--device cuda]

Everything is recorded anew by `--growth --record`, which also writes what a step costs into the README.
`--record` keeps every measurement in `data/records/step_cost`. `--growth` also measures how cost grows with the number
of columns, the width of the net and the number of runs. On CUDA it is wall time with synchronisation, and many runs at
once are timed too (`at_once`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch
from tqdm import tqdm

from benchmarks import kept, report
from benchmarks.peers import Absent
from benchmarks.rows import GROWTH, PEERS, ROWS, Row
from benchmarks.timing import Timing, interleaved
from gradtune.errors import GradtuneError, at_least, unknown
from gradtune_book import paths
from gradtune_book.records import environment

ALL = (*ROWS, *PEERS, *GROWTH)


def chosen(names: Sequence[str] | None, growth: bool) -> list[Row]:
    """Return the rows of some names.

    Args:
        names: Names of rows. None or an empty list stands for all rows with a goal.
        growth: Add the growth series to all rows with a goal.

    Raises:
        GradtuneError: A name is unknown.
    """
    by_name = {row.name: row for row in ALL}
    for name in names or ():
        if name not in by_name:
            raise unknown("row", name, by_name)
    return [by_name[n] for n in names] if names else [*ROWS, *PEERS, *(GROWTH if growth else ())]


def measure(
    rows: Sequence[Row], repeats: int, device: torch.device, quick: bool = False, record: bool = False
) -> tuple[dict[str, Timing], list[str]]:
    """Measure rows one after the other.

    Args:
        rows: The rows.
        repeats: How often each side is timed, at least once.
        device: Where they are computed.
        quick: Take fewer steps a repeat and a small batch for WRN, and do not look at goals.
        record: Keep every measurement in the records.

    Returns:
        Timings by `Row.key`, and sentences on rows that were skipped or that miss their goal.

    Raises:
        GradtuneError: `repeats` is below 1.
    """
    at_least(1, repeats=repeats)
    found: dict[str, Timing] = {}
    notes: list[str] = []
    todo = [(row, way, make) for row in rows for way, make in row.ways.items()]
    for row, way, make in tqdm(todo, disable=None, desc="rows"):
        try:
            pair = make(device, quick)
        except Absent as absent:
            notes.append(f"{row.name}: skipped, {absent}")
            continue
        timing = found[row.key(way)] = interleaved(pair, repeats, device)
        if record:
            kept.keep(row, way, timing, device)
        if way == row.judged and row.goal is not None and timing.ratio > row.goal and not quick:
            notes.append(report.why(row, timing.ratio, pair.method))
    return found, notes


def write_quote(readme: Path) -> None:
    """Write what a step costs, as it is recorded, into the README."""
    text = readme.read_text(encoding="utf-8")
    quote = report.quote(ROWS, kept.load().to_dict("index"))
    readme.write_text(report.quoted(text, quote), encoding="utf-8")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", nargs="+", metavar="NAME", help=f"among {', '.join(r.name for r in ALL)}")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="few steps a repeat and a small batch for WRN")
    parser.add_argument("--growth", action="store_true", help="also how cost grows")
    parser.add_argument("--record", action="store_true", help="keep the measurements in data/records/step_cost")
    arguments = parser.parse_args(argv)
    if arguments.quick and arguments.record:
        parser.error("--quick is no measurement to keep; leave out --quick or --record")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and return the exit status.

    Args:
        argv: Arguments of the command line. None takes them from `sys.argv`.
    """
    arguments = _arguments(argv)
    try:
        device, rows = environment.device(arguments.device), chosen(arguments.rows, arguments.growth)
        found, notes = measure(rows, arguments.repeats, device, arguments.quick, arguments.record)
    except GradtuneError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    if arguments.record and device.type == "cpu":
        write_quote(paths.ROOT / "README.md")
    clock = "wall time" if device.type == "cuda" else "CPU time, 1 thread"
    print(f"{environment.describe(device)}, {clock}, {arguments.repeats} repeats{', quick' * arguments.quick}")
    print("in a study: in replayed plain steps (FDS: bare ones); through tune: in bare steps; median (quartiles)\n")
    with pd.option_context("display.width", 240, "display.max_colwidth", 80, "display.max_columns", None):
        print(report.table(rows, {n: kept.metrics(t) for n, t in found.items()}))
    print("", *notes, sep="\n")
    if device.type == "cuda":
        from benchmarks import at_once

        at_once.main(device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
