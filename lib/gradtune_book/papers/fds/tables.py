"""What tables and figures of the FDS studies share: recorded runs, claims that may lack a run, lines and legends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradtune_book.notebooks import plots


def whole(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Join the series that `common.pieces` cut.

    Args:
        frame: runs.
        name: name of the series.

    Returns:
        The series `[runs, T]`, a row per run of the frame.
    """
    columns = sorted((c for c in frame if c.startswith(f"{name}_")), key=lambda c: int(c.rpartition("_")[2]))
    used = [c for c in columns if frame[c].map(np.ndim).eq(1).all()]
    return np.array([np.concatenate([row[c] for c in used]) for _, row in frame.iterrows()], dtype=float)


def line(method: str) -> dict[str, Any]:
    """Return the method's colour and dash, without the marker: these figures draw curves over many steps."""
    return {k: v for k, v in plots.method_style(method).items() if k != "marker"}


def legend(fig: Figure, columns: int = 6) -> None:
    """Draw one legend for all panels below them, where it hides no curve.

    A label that several panels have appears once.

    Args:
        fig: the figure.
        columns: number of columns of the legend.
    """
    pairs = [zip(*ax.get_legend_handles_labels()) for ax in fig.axes]
    entries = {label: handle for panel in pairs for handle, label in panel}
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize="small")


def mean_of(frame: pd.DataFrame, metric: str, **fields: object) -> float:
    """Return the mean of a metric over the runs with given fields; NaN where there are none.

    Args:
        frame: runs.
        metric: name of the metric.
        **fields: values of fields of the configuration.
    """
    if not len(frame):
        return math.nan
    chosen = np.logical_and.reduce([frame[name] == value for name, value in fields.items()])
    return float(frame.loc[chosen, metric].mean())


def less(a: float, b: float) -> bool | None:
    """Return whether a < b; None where one of them is NaN, as the mean of runs that are not recorded is."""
    return None if math.isnan(a) or math.isnan(b) else bool(a < b)
