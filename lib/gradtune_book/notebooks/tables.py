"""Tables that every paper's chapters show: claims and their answers, where runs were recorded, tables as Markdown."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from gradtune_book.records.store import NOTHING


class Table:
    """A table with a caption, whose numbers have few digits, as a notebook shows it.

    Args:
        frame: The table; or one in Markdown, from `markdown`, whose numbers are text already.
        caption: One sentence or two: what is in the table, in which unit, from which runs.
        digits: Significant digits of the numbers; whole numbers from 1000 on are written in full.
    """

    def __init__(self, frame: pd.DataFrame | str, caption: str, digits: int = 3) -> None:
        self._text = frame if isinstance(frame, str) else ""
        self.frame = pd.DataFrame() if isinstance(frame, str) else frame.map(lambda x: readable(x, digits))
        self.caption = " ".join(caption.split())

    def __repr__(self) -> str:
        return f"{self.caption}\n{self._text or self.frame}"

    def _repr_markdown_(self) -> str | None:
        return f"**Table.** {self.caption}\n\n{self._text}" if self._text else None

    def _repr_html_(self) -> str | None:
        if self._text:
            return None
        text = self.frame.to_html(notebook=True)
        start = text.index(">", text.index("<table")) + 1
        return f"{text[:start]}\n<caption>{html.escape(self.caption)}</caption>{text[start:]}"


def readable(x: Any, digits: int = 3) -> Any:
    """Write a number with few significant digits, a dash where there is none; what is no float stays as it is."""
    if not isinstance(x, float):
        return x
    if math.isnan(x):
        return "\N{EN DASH}"
    return f"{x:.0f}" if 1000 <= abs(x) < 1e7 else f"{x:.{digits}g}"


def markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown, index included, so that its bold cells are shown bold."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    rows = [[str(i), *map(str, row)] for i, row in zip(table.index, table.itertuples(index=False))]
    lines = [head, ["---", *["---:"] * len(table.columns)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def answers(found: Mapping[str, Mapping[str, bool | None]]) -> pd.DataFrame:
    """Make a table of claims in rows and datasets in columns: yes, no, and a dash for what was not run.

    Args:
        found: Whether each claim holds, by dataset and claim; None for what was not run.
    """
    words = {True: "yes", False: "no", None: "–"}
    return pd.DataFrame({d: {k: words[v] for k, v in c.items()} for d, c in found.items()}).rename_axis("claim")


def where(frame: pd.DataFrame) -> pd.DataFrame:
    """Tell where, when and by which commits runs were recorded.

    Args:
        frame: The runs, from `store.load`.

    Returns:
        A column for each combination of device, commit and dirty, which are the first rows. Below are the number of
        runs and the first and last date. Without runs, an empty table whose index says so.
    """
    if frame.empty:
        return pd.DataFrame(index=pd.Index([], name="no run is recorded yet"))
    groups = frame.groupby(["device", "commit", "dirty"], dropna=False)
    return groups.agg(runs=("seed", "size"), first=("date", "min"), last=("date", "max")).reset_index().T


def sources(frame: pd.DataFrame) -> Table | str:
    """Return what `where` tells as a table with a caption, a row a commit; a sentence where no run is recorded.

    Args:
        frame: The runs, from `store.load`.
    """
    if frame.empty:
        return NOTHING
    rows = where(frame).T.assign(commit=lambda t: t["commit"].str[:12]).set_index("commit")
    rows[["first", "last"]] = rows[["first", "last"]].apply(lambda column: column.astype(str).str[:10])
    return Table(rows, "Recorded runs by commit: device, whether files had changed since, runs, and their dates.")
