"""Tables and figures of the study `fds_schedules`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradtune_book.notebooks import plots
from gradtune_book.notebooks.stats import mean_plus_minus
from gradtune_book.papers.fds.schedules import COSINE, FDS, GREEDY, METHODS, NON_GREEDY, TUNED, UNLEARNED, outer_lr_of
from gradtune_book.papers.fds.tables import legend, line
from gradtune_book.papers.series import whole


def by_step(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with those of further outer learning rates as sets of their own.

    Such a set has a name like "mnist, outer step 0.01", and the cosine schedules of its images, which take no outer
    step.
    """
    if not len(frame):
        return frame
    parts = []
    for data, part in frame.groupby("data", sort=False):
        first = outer_lr_of(str(data))
        cosine = part[part["method"].isin(UNLEARNED)]
        for lr in dict.fromkeys((first, *part["outer_lr"])):
            mine = pd.concat([part[(part["outer_lr"] == lr) & ~part["method"].isin(UNLEARNED)], cosine])
            parts.append(mine.assign(data=data if lr == first else f"{data}, outer step {lr:g}"))
    return pd.concat(parts, ignore_index=True)


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what each method found.

    Args:
        frame: runs, maybe by `by_step`.

    Returns:
        A row per set and method: test accuracy in per cent of the schedule kept and of the last one, the outer step at
        which it was kept, mean learning rate of the schedule kept, mean absolute difference of its neighbouring
        learning rates, outer steps that diverged (of all seeds), and number of seeds.
    """
    rows = {}
    for data, part in frame.groupby("data", sort=False):
        for method in METHODS:
            runs = part[part["method"] == method]
            if len(runs):
                rows[data, method] = _row(runs)
    return pd.DataFrame(rows).T.rename_axis(["data", "method"])


def _row(runs: pd.DataFrame) -> dict[str, str | int]:
    rates, unlearned = whole(runs, "schedule"), runs["method"].iloc[0] in UNLEARNED
    return {
        "test accuracy %": mean_plus_minus(100 * runs["test_accuracy"]),
        "of the last %": "–" if unlearned else mean_plus_minus(100 * runs["last_test_accuracy"]),
        "kept at": "–" if unlearned else f"{runs['best_outer_step'].mean():.0f}",
        "mean rate": f"{rates.mean():.3f}",
        "step to step": f"{_roughness(rates):.3f}",
        "diverged": int(runs["diverged"].sum()),
        "n": len(runs),
    }


def _roughness(rates: np.ndarray) -> float:
    """Return the mean absolute difference of neighbouring learning rates."""
    return float(np.abs(np.diff(rates, axis=1)).mean()) if rates.shape[1] > 1 else 0.0


def rates_at(frame: pd.DataFrame, data: str, points: int = 6, which: str = "schedule") -> pd.DataFrame:
    """Return the mean learning rate over the seeds in equal parts of the training.

    Args:
        frame: runs.
        data: name of the set.
        points: number of parts.
        which: "schedule" for the schedules kept, "last_schedule" for the last ones; of a cosine always the one kept.

    Returns:
        A row per part and a column per method.
    """
    columns = {}
    for method, runs in frame[frame["data"] == data].groupby("method", sort=False):
        rates = whole(runs, _of(str(method), which)).mean(0)
        columns[method] = np.repeat(rates, points).reshape(points, len(rates)).mean(axis=1)
    parts = [f"{k / points:.0%} to {(k + 1) / points:.0%}" for k in range(points)]
    return pd.DataFrame(columns, index=pd.Index(parts, name="part of the training"))


def _of(method: str, which: str) -> str:
    """Return which schedule of a method is meant: the last learning rate that a tuned cosine tries is no result."""
    return "schedule" if method in UNLEARNED else which


_STYLES = {m: line(m) for m in (GREEDY, NON_GREEDY, FDS)} | {
    COSINE: {"color": "black", "linestyle": ":"},
    TUNED: {"color": "0.4", "linestyle": "-."},
}


def draw(axes: Sequence[Axes], frame: pd.DataFrame, which: str = "schedule") -> None:
    """Draw learning rates over the training: every seed thin, the mean bold.

    Args:
        axes: one axes per set.
        frame: runs.
        which: "schedule" or "last_schedule", as for `rates_at`.
    """
    for ax, data in zip(axes, frame["data"].unique()):
        for method in (NON_GREEDY, GREEDY, FDS, *UNLEARNED):
            runs = frame[(frame["data"] == data) & (frame["method"] == method)]
            if not len(runs):
                continue
            rates = whole(runs, _of(method, which))
            edges = np.linspace(0, runs["steps"].iloc[0], rates.shape[1] + 1)
            style = _STYLES[method]
            for each in rates if len(rates) > 1 else []:
                ax.stairs(each, edges, baseline=None, linewidth=0.4, alpha=0.5, **style)
            width = 0.9 if method == NON_GREEDY else 1.8
            ax.stairs(rates.mean(0), edges, baseline=None, linewidth=width, label=method, **style)
        ax.set(xlabel="training step", ylabel="learning rate", title=str(data))


def draw_progress(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw the validation accuracy of each outer step's training, mean over the seeds.

    Args:
        axes: one axes per set.
        frame: runs.
    """
    for ax, data in zip(axes, frame["data"].unique()):
        for method in (GREEDY, NON_GREEDY, FDS):
            runs = frame[(frame["data"] == data) & (frame["method"] == method)]
            if len(runs):
                mean = np.array(runs["val_curve"].tolist(), dtype=float).mean(0)
                ax.plot(range(1, len(mean) + 1), 100 * mean, label=method, **_STYLES[method])
        ax.set(xlabel="outer step", ylabel="validation accuracy [%]", title=str(data))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def figure_three(frame: pd.DataFrame) -> Figure:
    """Draw Figure 3: the schedules kept, a panel for each set."""
    sets = frame["data"].unique()
    fig, axes = plots.panels(len(sets), width=3.8, height=3.6)
    draw(axes, frame)
    legend(fig)
    return fig


def figure_live(frame: pd.DataFrame) -> Figure:
    """Draw the last schedules of one set, and the validation accuracy on the way to them."""
    fig, axes = plots.panels(2, width=4.2, height=3.4)
    draw(axes[:1], frame, "last_schedule")
    draw_progress(axes[1:], frame)
    legend(fig)
    return fig
