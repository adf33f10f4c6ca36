"""What is read off the runs of the study `starts`: ratios to the grid, costs and the figure.

The ratio of a run is its final validation loss over the lowest of the grids' runs of the same problem and seed, one of
the two grids of 25 points each. A run that has ended in NaN has an infinite ratio, so that medians count it.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gradtune_book.notebooks import plots

NEAR = 1.5
"""Largest ratio that counts as near the grid's best."""

TITLES = {
    "default": "Default",
    "onepass": "OnePass",
    "diff_through_opt": "Diff-through-Opt",
    "oho": "OHO",
    "clip_r": "ClipR",
    "unroll_k": "Unroll5",
    "hd": "HD",
    "baydin": "Baydin",
    "metaoptimize_hf": "MetaOptimize, SGD",
    "MetaOptimize": "MetaOptimize",
    "fds": "FDS",
    "AdamW": "AdamW",
    "SGD": "SGD",
    "ScheduleFree": "ScheduleFree",
    "Prodigy": "Prodigy",
    "DoG": "DoG",
    "Bayes": "Bayes",
}
"""Methods as records name them, in the order of tables, and their names in the book."""

PLAIN = "AdamW"
"""The method whose training is the unit of cost."""


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of all methods but the grid, with the column `ratio`, and `nan` for those that ended in NaN.

    Runs of a problem and seed whose grids are not recorded in full are left out.

    Args:
        frame: The runs, from `store.load` or `papers.run_now`.
    """
    keys = ["task", "seed"]
    grid = frame[frame["method"] == "grid"].groupby(keys)["val"].agg(best="min", points="size").reset_index()
    grid = grid[grid["points"] == grid["points"].max()]
    out = frame[frame["method"] != "grid"].merge(grid[[*keys, "best"]], on=keys)
    ratio = (out["val"] / out["best"]).fillna(np.inf)
    return out.assign(ratio=ratio, nan=out["val"].isna()).drop(columns="best")


def by_start(runs: pd.DataFrame, task: str | None = None) -> pd.DataFrame:
    """Return the median ratio of each method from each start, methods in rows.

    Of several problems, it is the median over problems and seeds.

    Args:
        runs: What `ratios` gave.
        task: Name of a problem; None for all.
    """
    chosen = runs if task is None else runs[runs["task"] == task]
    table = chosen.dropna(subset="start").groupby(["method", "start"])["ratio"].median().unstack()
    return _named(table)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method: how often it ends near the grid's best, how far off it is, and what it costs.

    The columns are `n`, runs; `different`, how many of them did not end as another start of the same problem and seed;
    `near`, how many have a ratio of at most `NEAR`; `share`, the same in per cent; `NaN`, how many ended in NaN;
    `median`, `5 %` and `95 %`, quantiles of the ratio; `cost`, the time of a training in those of a plain one (median
    over problems of the ratio of medians), and `cheapest` and `dearest`, its range over problems.

    Args:
        runs: What `ratios` gave.
    """
    groups = runs.groupby("method")
    different = runs.drop_duplicates(["method", "task", "seed", "ratio"]).groupby("method").size()
    table = pd.DataFrame({"n": groups.size(), "different": different})
    table["near"] = groups["ratio"].agg(lambda r: int((r <= NEAR).sum()))
    table["share"] = 100 * table["near"] / table["n"]
    table["NaN"] = groups["nan"].sum()
    table["median"] = groups["ratio"].median()
    for name, share in (("5 %", 0.05), ("95 %", 0.95)):
        table[name] = groups["ratio"].agg(lambda r, q=share: np.quantile(r, q, method="nearest"))
    return _named(table.join(costs(runs)))


def costs(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what a training of each method costs in trainings by `PLAIN`: median, lowest and highest over problems.

    The times are seconds of the processor. Each is the median over starts and seeds of one problem.

    Args:
        runs: What `ratios` gave.
    """
    seconds = runs.groupby(["task", "method"])["cpu_s"].median().unstack()
    if PLAIN not in seconds:
        return pd.DataFrame(index=seconds.columns, columns=["cost", "cheapest", "dearest"], dtype=float)
    ratio = seconds.div(seconds[PLAIN], axis=0)
    return pd.DataFrame({"cost": ratio.median(), "cheapest": ratio.min(), "dearest": ratio.max()})


def by_task(runs: pd.DataFrame) -> pd.DataFrame:
    """Return how many runs of each method end near the grid's best, problems in columns.

    Args:
        runs: What `ratios` gave.
    """
    near = (runs["ratio"] <= NEAR).groupby([runs["method"], runs["task"]], sort=False).sum()
    return _named(near.unstack())


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of `TITLES`, and under the book's names."""
    return table.reindex([m for m in TITLES if m in table.index]).rename(index=TITLES)


def draw(runs: pd.DataFrame, titles: dict[str, str], methods: Sequence[str] | None = None) -> Figure:
    """Draw the median ratio over the start, a panel for each problem and a curve for each method.

    Infinite medians, of runs that ended in NaN, are not drawn; those above 30 are drawn at 30.

    Args:
        runs: What `ratios` gave.
        titles: Titles of the problems that are drawn, by name.
        methods: Names of the methods as records have them; None for all that have a start.
    """
    tasks = [t for t in titles if t in set(runs["task"])]
    rows = -(-len(tasks) // 3)
    columns = min(3, len(tasks))
    size = 3.6 * columns, 3.1 * rows + 0.9
    fig, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for ax in axes.flat[len(tasks) :]:
        ax.set_visible(False)
    for ax, task in zip(axes.flat, tasks):
        for method, curve in by_start(runs, task).replace(np.inf, np.nan).clip(upper=30).iterrows():
            if methods is None or method in [TITLES[m] for m in methods]:
                front = {"linewidth": 2.6, "zorder": 4} if method == TITLES["default"] else {"linewidth": 1.3}
                ax.plot(curve, **plots.method_style(str(method)), markersize=5, label=method, **front)
        ax.axhline(NEAR, color="0.3", linestyle=":", linewidth=1.2)
        ax.set(title=titles[task], xscale="log", yscale="log", xlabel="initial learning rate (log scale)")
    for ax in axes[:, 0]:
        ax.set_ylabel("ratio to the grid (log scale)")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=2 * columns - 1, fontsize="small")
    return fig


def draw_weights(usual: ArrayLike, learned: ArrayLike) -> Figure:
    """Draw weights of classes as multiples of their mean: those inverse to the number of images, and learned ones.

    Args:
        usual: Weights `[C]` inverse to the number of images.
        learned: Learned weights `[S, C]`, a row a seed.
    """
    bars, points = np.asarray(usual, dtype=float), np.asarray(learned, dtype=float)
    fig, (ax,) = plots.panels(1, width=6.0, height=3.4)
    ax.plot(bars / bars.mean(), "k_", markersize=18, label="inverse to the number")
    for k, each in enumerate(points):
        ax.plot(each / each.mean(), "o", color="C0", alpha=0.7, label=None if k else "learned")
    ax.set(xlabel="class", ylabel="weight / mean weight (log scale)", yscale="log")
    ax.set_xticks(range(len(bars)))
    plots.label_logarithms(ax)
    ax.legend()
    return fig
