"""What the chapter on ASHA and PBT with OnePass inside, and its claims, read off the study `energy_population`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradtune_book.notebooks import plots, stats
from gradtune_book.papers.onepass import uci_tables
from gradtune_book.papers.onepass.energy_population import ASHA, INSIDE, PBT

ROWS = tuple(f"{m} + {i}" for m in (ASHA, PBT) for i in INSIDE)
"""The searches of Table 15, in its order."""

UNTIL = "seconds until all are as low"
_DASHES: Mapping[str, str] = {ASHA: "-", PBT: "--"}


def searches(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the searches with the name of their row in Table 15."""
    return frame.assign(row=[f"{m} + {i}" for m, i in zip(frame["method"], frame["inside"])]) if len(frame) else frame


def table(frame: pd.DataFrame, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return Table 15's rows of searches: means over searches with standard errors, beside the paper's one search.

    Args:
        frame: Runs of the study.
        published: Result of `uci_tables.published`; None leaves ours alone.
    """
    rows = {}
    for row, group in searches(frame).groupby("row", sort=False) if len(frame) else ():
        cells: dict[str, object] = {"searches": len(group), "trained to the end": group["finished"].mean()}
        for column in ("mean", "median", "best"):
            middle, error, *_ = stats.mean_error(group[column])
            cells[column] = uci_tables.shown(middle, error)
            if published is not None:
                cells[f"{column}, paper"] = uci_tables.shown(*_printed(published, str(row), column))
        rows[row] = cells
    return pd.DataFrame.from_dict(rows, orient="index")


def _printed(published: pd.DataFrame, row: str, column: str) -> tuple[float, float]:
    paper = published.loc["energy"].loc[row.replace("WD+LR+M", "Ours WD+LR+M")]
    return float(paper[column]), float(paper.get(f"{column}_error", math.nan))


def level(frame: pd.DataFrame) -> float:
    """Return the lowest test loss that every search has found, NaN without searches."""
    ends = [run["incumbent_mse"][-1] for _, run in frame.iterrows()]
    return max((e for e in ends if e is not None), default=math.nan)


def until(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the searches with `UNTIL`: after how many seconds each has found a loss as low as `level`."""
    if frame.empty:
        return frame
    found, low = searches(frame), level(frame)

    def reached(run: pd.Series) -> float:
        return next(s for s, x in zip(run["incumbent_s"], run["incumbent_mse"]) if x is not None and x <= low)

    return found.assign(**{UNTIL: [reached(run) for _, run in found.iterrows()]})


def until_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return `UNTIL` and the seconds of a whole search, means over searches with the standard error of the first."""
    groups = until(frame).groupby("row", sort=False)
    out = groups[UNTIL].agg(["count", "mean", "sem"]).set_axis(["searches", UNTIL, "error"], axis=1)
    return out.assign(**{"seconds of a search": groups["cpu_s"].mean()}).rename_axis(None)


def draw(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw Figure 19: the lowest test loss found so far over the processor's seconds, a line a search."""
    seen = set()
    for _, run in searches(frame).iterrows():
        style = plots.method_style(run["inside"]) | {"linestyle": _DASHES[run["method"]], "marker": ""}
        label = {} if run["row"] in seen else {"label": run["row"]}
        seen.add(run["row"])
        values = np.array([np.nan if v is None else v for v in run["incumbent_mse"]], dtype=float)
        ax.step(run["incumbent_s"], values, where="post", linewidth=1, **style, **label)
    ax.set(xlabel="seconds of training and validation", ylabel="lowest test MSE so far", xscale="log", yscale="log")
    plots.label_logarithms(ax)
    ax.legend(fontsize="small")
