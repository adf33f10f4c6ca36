"""The figures and tables of the five papers, one a row, from `data/inventory.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from gradtune_book import paths

PAPERS = {"OHO": 2021, "Clip": 2018, "FDS": 2021, "MetaOptimize": 2025, "OnePass": 2022}
"""Short names of the papers, in the book's order, with the year."""

OWN = "this book"
"""What a claim of the book's own has in the place of a paper. It is about no item, and counts among no paper's."""


@dataclass(frozen=True)
class Item:
    """A figure or table of a paper.

    Attributes:
        paper: Short name of the paper.
        item: Name of the figure or table, such as "Table 1".
        result: Whether it shows a result; False for schematics, settings, hardware and licences.
        shows: What it shows.
        setting: On what, in the paper.
        chapter: The notebook that recomputes it, "" where none does.
        ours: At which size and on what it is recomputed, "" where it is not.
        needs: What a run at the paper's size needs.
    """

    paper: str
    item: str
    result: bool
    shows: str
    setting: str
    chapter: str
    ours: str
    needs: str


def items() -> list[Item]:
    """Read the inventory."""
    with (paths.ROOT / "data" / "inventory.csv").open(encoding="utf-8", newline="") as file:
        return [Item(**{**row, "result": row["result"] == "yes"}) for row in csv.DictReader(file)]  # type: ignore[arg-type]
