"""The method table is written once, in `gradtune.methods`: neither a notebook nor a page of the book types it again."""

from __future__ import annotations

import re
from collections.abc import Iterator

import nbformat
import pytest

from gradtune import methods
from tools import ROOT

TABLE = methods.table()
ANSWERS = {text for column in ("sensitivity", "cost") for text in TABLE[column] if len(text) > 12}
"""Cells of the table that say what a method does and costs; short ones, such as "1", stand in other tables too."""


def name(title: str) -> str:
    """A method's name without what its title adds in brackets or after a comma, a slash or a blank."""
    return re.split(r"[ ,/(]", title)[0].lower()


def typed(text: str) -> list[str]:
    """Lines of `text` that repeat the method table: an answer as a cell or a string, or a table of most methods."""
    rows = [line for line in text.splitlines() if line.lstrip().startswith("|")]
    named = {name(title) for title in TABLE["method"]} & {name(row.strip("| `*")) for row in rows}
    listed = rows if len(named) > len(TABLE) / 2 else []
    cells = {line: {part.strip() for part in re.split("[|\"']", line)[1:-1]} for line in text.splitlines()}
    return listed + [line for line, parts in cells.items() if parts & ANSWERS]


def sources() -> Iterator[tuple[str, str]]:
    """Everything a person writes for the book: pages, cells of the notebooks, the README."""
    for page in [ROOT / "README.md", *(ROOT / "book").glob("*.md")]:
        yield page.name, page.read_text(encoding="utf-8")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            yield f"{path.name}, cell {cell.id}", cell.source


def test_nothing_written_by_hand_repeats_the_table() -> None:
    assert {where: found for where, text in sources() if (found := typed(text))} == {}


def test_the_notebook_prints_the_whole_table() -> None:
    cells = nbformat.read(ROOT / "notebooks" / "one_recursion.ipynb", as_version=4).cells
    shown = [c for c in cells if c.cell_type == "code" and "methods.table()" in c.source]
    printed = "".join(str(output.get("data", {})) for cell in shown for output in cell.outputs)
    assert [title for title in TABLE["method"] if title not in printed] == []


@pytest.mark.parametrize("columns", [["method", "sensitivity"], ["method", "cost"], ["method", "paper"]])
def test_a_typed_table_is_found(columns: list[str]) -> None:
    rows = TABLE[columns].itertuples(index=False, name=None)
    assert typed("\n".join(f"| {' | '.join(row)} |" for row in rows))
