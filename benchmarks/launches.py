"""Kernel launches and waits of a training step on a GPU, counted on the tests' pretended device: no GPU is needed.

    python benchmarks/launches.py [--only TEXT] [--start]

measures every row and writes `launches.json` and the table of `book/devices.md`. `--start` writes the column "at the
start", which the page compares with. The tests fail where a row has more launches or waits than this file says.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "launches.json"
PAGE = ROOT / "book" / "devices.md"
_KINDS = ["study", "Tuner", "loop", "MetaOptimize"]
START, END = "<!-- launches -->", "<!-- end of launches -->"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks import launch_rows  # noqa: E402
from library.devices import cases, front  # noqa: E402  (of the tests)
from pretended import pretended  # noqa: E402

Numbers = tuple[float, float]


def counted(make: Callable[[], Callable[[int], Any]], warm: int, steps: int) -> Numbers:
    """Return launches and waits a step, after `warm` steps."""
    with pretended() as log:
        step = make()
        step(warm)
        log.clear()
        step(steps)
        return log.launches / steps, log.synced / steps


def rows() -> dict[str, Callable[[], Numbers]]:
    """Return what is measured, by name."""
    found: dict[str, Callable[[], Numbers]] = {}
    for case in cases.every():
        make = partial(cases.trained, *case, "cuda")
        found[f"loop: {', '.join(case)}"] = partial(counted, make, cases.STEPS, cases.STEPS)
    for name in front.TUNERS:
        found[f"Tuner: {name}"] = partial(counted, partial(front.tuner, name, "cuda"), front.SETTLED, front.STEPS)
    for pair in front.OPTIMISERS:
        found[f"MetaOptimize: {', '.join(pair)}"] = partial(counted, partial(front.optimiser, *pair, "cuda"), 2, 2)
    for name, row in launch_rows.ROWS.items():
        found[f"study: {name}"] = partial(counted, row.make, row.warm, row.steps)
    return found


def stored() -> dict[str, dict[str, Numbers]]:
    """Return the file: for each row "start" and "now", launches and waits a step."""
    found: dict[str, dict[str, Numbers]] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    return found


def section(table: dict[str, dict[str, Numbers]]) -> str:
    """Return the page's table of the rows that were measured at the start too."""
    lines = [
        "| training | launches a step at the start | now | waits at the start | now |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, row in sorted(table.items(), key=lambda each: _KINDS.index(each[0].partition(":")[0])):
        if "start" in row and "now" in row and _told(name, row):
            (before, waited), (after, waits) = row["start"], row["now"]
            lines.append(f"| {name} | {before:,.1f} | {after:,.1f} | {waited:g} | {waits:g} |")
    return "\n".join(lines)


def _told(name: str, row: dict[str, Numbers]) -> bool:
    return not name.startswith("loop: ") or (", sgd, mlp" in name and row["start"][1] != row["now"][1])


def written(page: str, table: dict[str, dict[str, Numbers]]) -> str:
    """Return the page with the table between its marks."""
    before, rest = page.split(START)
    return f"{before}{START}\n\n{section(table)}\n\n{END}{rest.split(END)[1]}"


def _store(table: dict[str, dict[str, Numbers]]) -> None:
    text = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in table.items())
    TABLE.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Measure rows and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="measure rows whose names hold this text")
    parser.add_argument("--start", action="store_true", help="write the column of the start")
    asked = parser.parse_args(arguments)
    table, column = stored(), "start" if asked.start else "now"
    for name, measure in rows().items():
        if asked.only in name:
            table.setdefault(name, {})[column] = measure()
            print(name, *table[name][column], flush=True)
            _store({n: table[n] for n in rows() if n in table})
    if PAGE.exists():
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), stored()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
