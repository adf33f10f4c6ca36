"""The table of measurements, what explains a missed goal, and the figures of growth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from benchmarks import kept
from benchmarks.rows import GROWTH, Row
from benchmarks.timing import Work, where_time_goes

COLUMNS = ("cost", "goal", "published", "met")


def table(rows: Sequence[Row], found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Make the table of measurements, one line a row.

    Args:
        rows: The rows.
        found: Metrics by name of the row, as `kept.metrics` gives them. A row without is marked "not run".

    Returns:
        The columns are the median cost (and its quartiles), the milliseconds a step (method / base), the goal, the
        published program's cost, and whether the goal is met. The index has the titles of the rows.
    """
    programs = kept.published()
    lines = {}
    for row in rows:
        m, program = found.get(row.name), programs.get(row.name)
        lines[row.title] = {
            "cost": "not run" if m is None else f"{m['ratio']:.2f} ({m['low']:.2f} to {m['high']:.2f})",
            "ms a step": "" if m is None else f"{_ms(m['method_ms'])} / {_ms(m['base_ms'])}",
            "goal": "" if row.goal is None else f"<= {row.goal:g}",
            "published": "" if program is None else f"{program:g}",
            "met": "" if m is None or row.goal is None else "yes" if m["ratio"] <= row.goal else "no",
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("row")


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def why(row: Row, ratio: float, work: Work) -> str:
    """Say in one sentence which operators take the time of a method that misses its goal.

    Args:
        row: The row, which has a goal.
        ratio: Its measured cost.
        work: The method's side of the row. It is run once more.
    """
    shares = ", ".join(f"{name} {share:.0%}" for name, share in where_time_goes(work))
    return f"{row.name}: {ratio:.2f} misses the goal of {row.goal:g}; of the method's time: {shares}"


def growth(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the cost by series and size from metrics by row name; the columns are series, x and ratio."""
    rows = [(r.series, r.x, found[r.name]["ratio"]) for r in GROWTH if r.name in found]
    return pd.DataFrame(rows, columns=["series", "x", "ratio"])


_AXES = {
    "columns": ("sensitivity columns", "MLP 784-128x3-10, forward mode"),
    "width": ("hidden units a layer", "MLP 784-n-n-n-10, OHO lr + l2"),
    "runs": ("runs side by side", "OnePass, UCI Energy"),
}


def draw_growth(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw three panels: cost over the number of columns, the width of the net and the number of runs.

    Args:
        axes: Three axes.
        frame: What `growth` gives.
    """
    for ax, (series, (label, title)) in zip(axes, _AXES.items(), strict=True):
        part = frame[frame["series"] == series]
        ax.plot(part["x"], part["ratio"], "o-")
        ax.set(xscale="log", yscale="log", xlabel=label, ylabel="cost in plain steps", title=title)
        ax.set_xticks(part["x"], [str(x) for x in part["x"]], minor=False)
        ax.minorticks_off()
