"""What tables and figures of the FDS studies share: recorded runs, claims that may lack a run, lines and legends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradtune_book.notebooks import plots


def whole(frame: pd.DataFrame, name: str) -> np.ndarray:
    """The series that `pieces` cut, `[runs, T]`, a row a run of the frame."""
    columns = sorted((c for c in frame if c.startswith(f"{name}_")), key=lambda c: int(c.rpartition("_")[2]))
    used = [c for c in columns if frame[c].map(np.ndim).eq(1).all()]
    return np.array([np.concatenate([row[c] for c in used]) for _, row in frame.iterrows()], dtype=float)


def line(method: str) -> dict[str, Any]:
    """The method's colour and dash, without the marker: these figures draw curves over many steps."""
    return {k: v for k, v in plots.method_style(method).items() if k != "marker"}


def legend(fig: Figure, columns: int = 6) -> None:
    """One legend for all panels, below them, where it hides no curve; a label that several have appears once."""
    pairs = [zip(*ax.get_legend_handles_labels()) for ax in fig.axes]
    entries = {label: handle for panel in pairs for handle, label in panel}
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize="small")


def mean_of(frame: pd.DataFrame, metric: str, **fields: object) -> float:
    """Mean of a metric over the runs with these fields; NaN where there are none."""
    if not len(frame):
        return math.nan
    chosen = np.logical_and.reduce([frame[name] == value for name, value in fields.items()])
    return float(frame.loc[chosen, metric].mean())


def less(a: float, b: float) -> bool | None:
    """Whether a < b; None where one of them is NaN, as the mean of runs that are not recorded is."""
    return None if math.isnan(a) or math.isnan(b) else bool(a < b)
