"""Tables that every paper's chapters show: claims and their answers, where runs were recorded, tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd


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
