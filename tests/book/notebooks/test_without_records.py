"""Every chapter stands where nothing, or one run of each file, is recorded: what is absent is shown as absent.

Of each source notebook those cells are run that read records or what such cells have made, and the cells they need.
The others know of no record; the build runs them.
"""

from __future__ import annotations

import ast
import json
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
from IPython.core.interactiveshell import InteractiveShell

from gradtune_book.records import store
from tools import ROOT

RECORDS = ROOT / "data" / "records"
SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
READS = re.compile(r"\b(records|registry|store|verdicts|kept)\.")


class Cell(NamedTuple):
    """A code cell: its section's heading, its id and source, the names it takes from others and those it makes."""

    heading: str
    name: str
    source: str
    takes: frozenset[str]
    makes: frozenset[str]


def cells(path: Path) -> list[Cell]:
    heading, found = "", []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next((line for line in source.splitlines()[::-1] if line.startswith("## ")), heading)
        elif cell["cell_type"] == "code":
            made: set[str] = set()
            taken: set[str] = set()
            for statement in ast.parse(source).body:
                makes, takes = names(statement)
                taken |= takes - made
                made |= makes
            found.append(Cell(heading, cell["id"], source, frozenset(taken), frozenset(made)))
    return found


def names(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Names that a statement binds, and those it reads."""
    inside = list(ast.walk(statement))
    variables = [node for node in inside if isinstance(node, ast.Name)]
    made = {node.id for node in variables if isinstance(node.ctx, ast.Store)}
    made |= {node.name for node in inside if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    aliases = [a for node in inside if isinstance(node, (ast.Import, ast.ImportFrom)) for a in node.names]
    made |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
    return made, {node.id for node in variables if isinstance(node.ctx, ast.Load)}


def of_records(found: list[Cell]) -> list[Cell]:
    """Cells that read records, or what was made of them before, and all that these need, in order."""
    read: set[str] = set()  # names whose value is made of records
    reading = set()
    for cell in found:
        for statement in ast.parse(cell.source).body:
            makes, takes = names(statement)
            text = "" if isinstance(statement, (ast.Import, ast.ImportFrom)) else ast.unparse(statement)
            of_them = bool(READS.search(text)) or not takes.isdisjoint(read)
            read = read | makes if of_them else read - makes
            if of_them or cell.heading.startswith("## Recorded"):
                reading.add(cell.name)
    chosen: list[Cell] = []
    needed: set[str] = set()
    for cell in reversed(found):
        if cell.name in reading or cell.makes & needed:
            chosen.insert(0, cell)
            needed = (needed - cell.makes) | cell.takes
    return chosen


@pytest.mark.parametrize("runs", [0, 1], ids=["nothing", "one run of each file"])
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_cell_fails_on_few_records(path: Path, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in RECORDS.rglob("*.jsonl") if runs else ():
        few = tmp_path / file.relative_to(RECORDS)
        few.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as lines:
            few.write_bytes(b"".join(islice(lines, runs)))
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path))
    monkeypatch.delenv("GRADTUNE_DATA", raising=False)
    monkeypatch.chdir(path.parent)
    assert bool(store.all_files()) == bool(runs)
    shell = InteractiveShell.instance()
    shell.reset(new_session=True)
    for cell in of_records(cells(path)):
        done = shell.run_cell(cell.source, store_history=False)
        error = done.error_before_exec or done.error_in_exec
        assert error is None, f"cell {cell.name}: {type(error).__name__}: {error}"


def test_the_cells_that_read_records_are_found() -> None:
    """In every chapter at least the table of verdicts; live cells only where a recorded one is compared with."""
    for path in SOURCES:
        found = cells(path)
        chosen = {cell.name for cell in of_records(found)}
        assert {cell.name for cell in found if READS.search(cell.source)} <= chosen
        assert {cell.name for cell in found if cell.heading.startswith("## Recorded")} <= chosen
