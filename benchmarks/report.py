"""The table of measurements, what explains a missed goal, and the figures of growth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks import kept
from benchmarks.rows import BARE, GROWTH, Row
from benchmarks.timing import Work, where_time_goes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = {"study": "in a study", "tune": "through tune"}
"""What the table calls the ways in which a row is measured."""

MARKS = ("<!-- what a step costs: written by benchmarks/step_cost.py --record -->", "<!-- end -->")
"""What the paragraph on cost in the README is between."""


def table(rows: Sequence[Row], found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Make the table of measurements, one line a row.

    Args:
        rows: The rows.
        found: Metrics by `Row.key`, as `kept.metrics` or `kept.load` gives them. A row without is marked "not run".

    Returns:
        The columns are the median cost (and its quartiles) in a study, in steps of plain training that is replayed as a
        study is, and through a public call, in steps of a bare loop of torch; the milliseconds a step (method / base)
        of the way that the goal is about; the floor, the goal and the published program's cost; and whether the goal is
        met. The index has the titles of the rows, with sizes at which no line breaks.
    """
    programs = kept.published()
    lines = {}
    for row in rows:
        of = {way: measured(row, way, found) for way in row.ways}
        judged, program = of[row.judged], programs.get(row.name)
        lines[_whole(row.title)] = {
            **{title: _cost(of[way]) if way in of else "" for way, title in COLUMNS.items()},
            "ms a step": "" if judged is None else f"{_ms(judged['method_ms'])} / {_ms(judged['base_ms'])}",
            "floor": "" if row.floor is None else f"{row.floor:g}",
            "goal": "" if row.goal is None else f"<= {row.goal:g}",
            "published": "" if program is None else f"{program:g}",
            "met": {True: "yes", False: "no", None: ""}[met(row, found)],
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("row")


def _whole(title: str) -> str:
    """Return a title with hyphens between numbers at which no line breaks."""
    return re.sub(r"(?<=\d)-(?=\d)", "\u2011", title)


def measured(row: Row, way: str, found: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the metrics of a row measured in a way; None without a measurement against what it is compared with."""
    metrics = found.get(row.key(way))
    return None if metrics is None or metrics.get("against", row.against[way]) != row.against[way] else metrics


def met(row: Row, found: Mapping[str, Mapping[str, Any]]) -> bool | None:
    """Return whether a row meets its goal; None where it has none, or no measurement of what its goal is about."""
    metrics = measured(row, row.judged, found)
    return None if metrics is None or row.goal is None else bool(metrics["ratio"] <= row.goal)


def _cost(metrics: Mapping[str, Any] | None) -> str:
    return "not run" if metrics is None else f"{metrics['ratio']:.2f} ({metrics['low']:.2f} to {metrics['high']:.2f})"


def quote(rows: Sequence[Row], found: Mapping[str, Mapping[str, Any]]) -> str:
    """Say in one paragraph what a step costs the user, by the rows that are compared with a bare loop of torch."""
    of: dict[str, list[str]] = {}
    for row in rows:
        metrics = None if row.against.get("tune") != BARE else measured(row, "tune", found)
        if metrics is not None:
            method, _, model = row.title.partition(", MLP" if ", MLP" in row.title else ", ")
            of.setdefault(f"MLP{model}" if ", MLP" in row.title else model, []).append(
                f"{method} {metrics['ratio']:.2f}"
            )
    costs = "; ".join(f"{model}: {', '.join(parts)}" for model, parts in of.items())
    return (
        "What a step costs, once steps are replayed as in every long training, in steps of a bare PyTorch loop with "
        f"the same model (CPU time, one thread); trainings of a few seconds are not replayed. {costs}."
    )


def quoted(text: str, quote: str) -> str:
    """Return a text with the paragraph between its two marks replaced."""
    head, _, rest = text.partition(f"{MARKS[0]}\n")
    _, _, tail = rest.partition(f"\n{MARKS[1]}")
    return f"{head}{MARKS[0]}\n{quote}\n{MARKS[1]}{tail}"


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
    rows = [(r.series, r.x, m["ratio"]) for r in GROWTH if (m := measured(r, r.judged, found))]
    return pd.DataFrame(rows, columns=["series", "x", "ratio"])


_AXES = {
    "columns": ("sensitivity columns", "MLP 784-128x3-10, forward mode"),
    "width": ("hidden units a layer", "MLP 784-n-n-n-10, OHO lr + l2"),
    "runs": ("runs side by side", "OnePass, UCI Energy"),
}


_TICKS = [k * 10**e for e in range(4) for k in (1, 2, 5)]


def draw_growth(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw three panels: cost over the number of columns, the width of the net and the number of runs.

    Args:
        axes: Three axes.
        frame: What `growth` gives.
    """
    for ax, (series, (label, title)) in zip(axes, _AXES.items(), strict=True):
        part = frame[frame["series"] == series]
        if part.empty:
            continue  # not recorded yet
        ax.plot(part["x"], part["ratio"], "o-")
        ax.set(xscale="log", yscale="log", title=title)
        ax.set(xlabel=f"{label} (log scale)", ylabel="cost in plain steps (log scale)")
        ax.set_xticks(part["x"], [str(x) for x in part["x"]], minor=False)
        ticks = [y for y in _TICKS if y <= 1.5 * part["ratio"].max()]
        ax.set_yticks(ticks, [str(y) for y in ticks], minor=False)
        ax.set_ylim(1, 1.4 * part["ratio"].max())  # from a plain step: what hardly changes looks so
        ax.minorticks_off()
