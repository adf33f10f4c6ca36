"""Tables and figures of the study `fds_cifar_regret`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gradtune_book.notebooks import plots
from gradtune_book.notebooks.stats import mean_plus_minus
from gradtune_book.papers.fds.cifar_regret import FDS, FULL, GRID, GRID_VALUES, HD, METHODS, SEARCHES
from gradtune_book.papers.fds.cifar_training import DECAY, LR, MOMENTUM
from gradtune_book.papers.fds.tables import legend, line
from gradtune_book.paths import published_root

Array = NDArray[np.float64]
COMPARED = (FDS, *SEARCHES, HD)
"""The methods of Figure 1."""
GRID_LABELS = ("first learning rate", "its factor", "momentum", "weight decay")
"""The hyperparameters of the grid in words."""


def grid_means(frame: pd.DataFrame) -> pd.Series:
    """Return the test accuracy of each recorded setting of the grid, the mean over its trainings."""
    return frame[frame["method"] == GRID].groupby(list(GRID_VALUES))["accuracy"].mean()


def best_of_grid(frame: pd.DataFrame) -> tuple[float, pd.Series]:
    """Return the test accuracy of the best setting of the grid, the mean over its trainings, and the setting.

    The best of many means is a little too high by the luck of the draw: regret against it errs on the strict side.
    """
    means = grid_means(frame)
    return float(means.max()), pd.Series(dict(zip(GRID_VALUES, means.idxmax())), name="best of the grid")


def grid_summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the best setting of the grid, and how its settings are distributed, in per cent of test accuracy."""
    means, (best, setting) = 100 * grid_means(frame), best_of_grid(frame)
    low, middle, high = means.quantile([0.25, 0.5, 0.75])
    quartiles = {"its accuracy": 100 * best, "lower quartile": low, "median": middle, "upper quartile": high}
    labels = dict(zip(GRID_VALUES, GRID_LABELS))
    return pd.DataFrame({**setting.rename(labels), **quartiles}, index=pd.Index(["best setting"]))


def grid_by_value(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean test accuracy in per cent of the grid's settings by each value of each hyperparameter."""
    means = (100 * grid_means(frame)).reset_index()
    found = {
        label: means.groupby(name)["accuracy"].agg(["mean", "min", "max"]).rename(index="{:g}".format)
        for name, label in zip(GRID_VALUES, GRID_LABELS)
    }
    return pd.concat(found, names=["hyperparameter", "value"])


def account(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what each method gave and what it cost, a row per method with means over the seeds.

    The columns are the number of runs, test accuracy of the final answer in per cent, training steps and those among
    them that carried hypergradients, seconds spent on finding the answer, milliseconds per training step, and seconds
    of evaluation, which are not in the others. The grid has no time of its own.
    """
    rows = {}
    for method in METHODS:
        runs = frame[frame["method"] == method]
        if len(runs):
            seconds = runs["seconds"].mean()
            rows[method] = {
                "n": len(runs),
                "test accuracy %": mean_plus_minus(100 * runs["accuracy"]),
                "training steps": round(runs["training_steps"].mean()),
                "with hypergradients": round(runs["hypergradient_steps"].mean()),
                "seconds": f"{seconds:.0f}",
                "ms a step": f"{1000 * seconds / runs['training_steps'].mean():.1f}",
                "evaluation s": round(runs["evaluation_seconds"].mean()),
            }
            if method == GRID:
                rows[method] |= {"seconds": "–", "ms a step": "–"}
    return pd.DataFrame(rows).T.rename_axis("method")


def worth_at(runs: pd.DataFrame, places: Sequence[float], axis: str) -> Array:
    """Return what the answers at some places of an axis are worth.

    Args:
        runs: runs with the series `at_accuracy` and `at_<axis>`.
        places: places on the axis.
        axis: "steps" or "seconds".

    Returns:
        Test accuracies `[runs, places]` of the last answer until then, NaN before the first.
    """
    out = np.full((len(runs), len(places)), np.nan)
    for k, (_, run) in enumerate(runs.iterrows()):
        at, value = np.array(run[f"at_{axis}"], dtype=float), np.array(run["at_accuracy"], dtype=float)
        last = np.searchsorted(at, places, side="right") - 1
        out[k] = np.where(last >= 0, value[last.clip(0)], np.nan)
    return out


def within(frame: pd.DataFrame, places: Sequence[float], axis: str = "steps") -> pd.DataFrame:
    """Return the test accuracy in per cent of the answer within so many training steps or seconds.

    Args:
        frame: runs of all methods.
        places: numbers of training steps or seconds.
        axis: "steps" or "seconds".

    Returns:
        A row per method and a column per place: mean ± standard error over the seeds, a dash where some seed has no
        answer yet.
    """
    rows = {}
    for method in COMPARED:
        runs = frame[frame["method"] == method]
        if len(runs):
            values = 100 * worth_at(runs, places, axis)
            rows[method] = ["–" if np.isnan(v).any() else mean_plus_minus(v) for v in values.T]
    return pd.DataFrame(rows, index=[f"{p:.0f}" for p in places]).T.rename_axis(f"method | {axis}")


def to_regret(frame: pd.DataFrame, levels: Sequence[float] = (0.05, 0.0)) -> pd.DataFrame:
    """Return the cost of a first answer within some regrets of the grid's best.

    The first such answer is found by test accuracy, which no method sees, and the next one may fall below the level
    again: the last column counts the seeds whose last answer is there.

    Args:
        frame: runs of all methods and of the grid.
        levels: test accuracies, as shares, that the answer may lack.

    Returns:
        A row per level and method: how many seeds got there, seconds and training steps until then, means over these
        seeds, and how many of them ended there.
    """
    best, _ = best_of_grid(frame)
    rows = {}
    for regret in levels:
        for method in COMPARED:
            runs = frame[frame["method"] == method]
            if runs.empty:
                continue
            first = [_first(run, best - regret) for _, run in runs.iterrows()]
            there = [x for x in first if x is not None]
            seconds, steps = np.mean(there, axis=0) if there else (np.nan, np.nan)
            rows[f"{100 * regret:g} points", method] = {
                "seeds that get there": f"{len(there)} of {len(runs)}",
                "seconds": float(seconds),
                "steps": float(steps),
                "last answer there": f"{int((runs['accuracy'] >= best - regret).sum())} of {len(runs)}",
            }
    return pd.DataFrame(rows).T.rename_axis(["regret", "method"])


def _first(run: pd.Series, level: float) -> tuple[float, float] | None:
    for seconds, steps, accuracy in zip(run["at_seconds"], run["at_steps"], run["at_accuracy"]):
        if accuracy >= level:
            return seconds, steps
    return None


def learned(frame: pd.DataFrame, method: str = FULL) -> pd.DataFrame:
    """Return learned hyperparameters after each outer step and the test accuracy they give in per cent (Figure 4).

    The values are means over the seeds.

    Args:
        frame: runs of the method, and maybe others.
        method: "FDS" or "FDS-full".
    """
    runs = frame[frame["method"] == method]
    names = [c for c in runs if c.startswith("answer_") and runs[c].map(np.ndim).eq(1).all()]
    table = {c.removeprefix("answer_"): np.array(runs[c].tolist(), dtype=float).mean(0) for c in names}
    table["test accuracy %"] = 100 * np.array(runs["at_accuracy"].tolist(), dtype=float).mean(0)
    steps = range(1, len(table["test accuracy %"]) + 1)
    return pd.DataFrame(table, index=pd.Index(steps, name="outer step"))


def hypergradients(frame: pd.DataFrame, method: str = FULL) -> pd.DataFrame:
    """Return the raw hypergradients of each outer step, divided by the horizon (Figure 7), of the first seed.

    Args:
        frame: runs of the method, and maybe others.
        method: "FDS" or "FDS-full".
    """
    run = frame[frame["method"] == method].iloc[0]
    names = [c for c in run.index if c.startswith("hypergradient_") and np.ndim(run[c]) == 1]
    table = {c.removeprefix("hypergradient_"): np.array(run[c], dtype=float) for c in names}
    return pd.DataFrame(table).rename_axis("outer step").set_axis(range(1, len(run[names[0]]) + 1))


def published() -> pd.DataFrame:
    """Return what the paper's text says about Figures 1, 4 and 8."""
    return pd.read_csv(published_root() / "fds_figure1.csv").set_index(["quantity", "metric"])[
        ["value", "unit", "source"]
    ]


# --- figures ----------------------------------------------------------------------------------------------------------

_STYLES = {m: line(m) for m in (FDS, *SEARCHES)} | {HD: line("greedy"), FULL: line(FDS)}
"""HD is the greedy method of Figures 2 and 3."""


_AXES = {"seconds": "time without evaluation [s]", "steps": "training steps"}


def draw_regret(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw Figure 1: regret in test accuracy by seconds and by training steps.

    Every seed is a thin line, the mean a thick one from where all of them have an answer.

    Args:
        axes: two axes, by seconds and by training steps.
        frame: runs of all methods and of the grid.
    """
    best, _ = best_of_grid(frame)
    runs = frame[frame["method"].isin(COMPARED)]
    ends = {"seconds": runs["seconds"].max(), "steps": runs["training_steps"].max()}
    for ax, axis in zip(axes, ends):
        earliest = min(min(x) for x in runs[f"at_{axis}"])
        places = np.geomspace(max(earliest, 1e-3), ends[axis], 300)
        for method in COMPARED:
            mine = runs[runs["method"] == method]
            if len(mine):
                regret = 100 * (best - worth_at(mine, list(places), axis))
                ax.plot(places, regret.T, linewidth=0.4, alpha=0.5, **_STYLES[method])
                ax.plot(places, regret.mean(0), label=method, **_STYLES[method])
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(xscale="log", xlabel=f"{_AXES[axis]} (log scale)")
        ax.set_ylabel("regret [points]")


def draw_learned(axes: Sequence[Axes], frame: pd.DataFrame, method: str = FULL) -> None:
    """Draw Figure 4, means over the seeds: learned hyperparameters by outer step, and what they are worth.

    Args:
        axes: four axes. The first has learning rates over time after each outer step, later ones darker; the others
            have momentum, weight decay and test accuracy by outer step, the last with a line for HD.
        frame: runs of the method, and maybe of HD.
        method: "FDS" or "FDS-full".
    """
    table = learned(frame, method)
    lr = table[[c for c in table if c.startswith(f"{LR}_")]].to_numpy()
    for k, rates in enumerate(lr):
        shade = 0.15 + 0.85 * (k + 1) / len(lr)
        axes[0].stairs(rates, np.linspace(0, 1, lr.shape[1] + 1), baseline=None, alpha=shade, **_STYLES[method])
    axes[0].set(xlabel="part of the training", ylabel="learning rate", title="learning rates")
    for ax, name in zip(axes[1:], (MOMENTUM, DECAY)):
        ax.plot(table.index, table[name], marker="o", markersize=3, **_STYLES[method])
        ax.set(xlabel="outer step", ylabel=name.replace("_", " "), title=name.replace("_", " "))
    axes[3].plot(table.index, table["test accuracy %"], marker="o", markersize=3, label=method, **_STYLES[method])
    axes[3].set(xlabel="outer step", ylabel="test accuracy [%]", title="what they are worth")
    hd = frame[frame["method"] == HD]
    if len(hd):
        axes[3].axhline(100 * hd["accuracy"].mean(), label=HD, **_STYLES[HD])
    for ax in axes[1:4]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_hypergradients(ax: Axes, table: pd.DataFrame) -> None:
    """Draw Figure 7: raw hypergradients by outer step on a symmetric logarithmic axis.

    Args:
        ax: axes to draw on.
        table: result of `hypergradients`.
    """
    for k, name in enumerate(table):
        dash = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2))][k % 4]
        ax.plot(table.index, table[name], linestyle=dash, marker="osD^vPX*<>"[k % 10], markersize=3, label=name)
    largest = float(table.abs().max().max())
    smallest = 10.0 ** np.floor(np.log10(largest) - 4) if largest > 0 else 1.0
    ax.set_yscale(SymmetricalLogScale(ax.yaxis, linthresh=smallest))
    ax.yaxis.get_major_locator().set_params(numticks=9)  # type: ignore[call-arg]
    ax.set(xlabel="outer step", ylabel="hypergradient / horizon\n(symmetric log scale)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def draw_grid(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw Figure 8: test accuracies of the grid's settings, means over their trainings.

    Args:
        axes: five axes: the accuracies by the value of each hyperparameter, and their distribution.
        frame: runs of the grid, and maybe others.
    """
    runs = grid_means(frame).reset_index()
    for ax, name, label in zip(axes, GRID_VALUES, GRID_LABELS):
        values = sorted(runs[name].unique())
        ax.boxplot([100 * runs.loc[runs[name] == v, "accuracy"] for v in values])
        ax.set_xticks(range(1, len(values) + 1), [f"{v:g}" for v in values])
        ax.set(xlabel=label)
    axes[0].set(ylabel="test accuracy [%]")
    axes[4].hist(100 * runs["accuracy"], bins=20, color="#949494")
    axes[4].set(xlabel="test accuracy [%]", ylabel="settings")


def figure_one(frame: pd.DataFrame) -> Figure:
    """Draw Figure 1 (`draw_regret`)."""
    fig, axes = plots.panels(2, width=4.8, height=3.6)
    draw_regret(axes, frame)
    legend(fig)
    return fig


def figure_four(frame: pd.DataFrame, height: float = 3.4) -> Figure:
    """Draw Figure 4 (`draw_learned`)."""
    fig, axes = plots.panels(4, width=3.0, height=height)
    draw_learned(axes, frame)
    legend(fig)
    return fig


def figure_seven(frame: pd.DataFrame, method: str = FDS) -> Figure:
    """Draw Figure 7 (`draw_hypergradients`)."""
    fig, (ax,) = plots.panels(1, width=7.5, height=4.0)
    draw_hypergradients(ax, hypergradients(frame, method))
    legend(fig, 5)
    return fig


def figure_eight(frame: pd.DataFrame) -> Figure:
    """Draw Figure 8 (`draw_grid`)."""
    fig, axes = plots.panels(5, width=2.8, height=3.0)
    draw_grid(axes, frame)
    return fig
