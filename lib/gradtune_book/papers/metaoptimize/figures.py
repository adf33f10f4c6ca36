"""The figures of MetaOptimize's chapters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradtune.optim.settings import REACH
from gradtune_book.notebooks import plots
from gradtune_book.papers.metaoptimize import continual, framework, sensitivity, tables
from gradtune_book.papers.metaoptimize.tables import BEST
from gradtune_book.papers.metaoptimize.training import BLOCKS, SCALAR

PROBLEMS = {"quadratic": "noisy quadratic", "stream": "drifting linear regression"}


def _band(
    ax: Axes, x: Sequence[float] | np.ndarray, curves: Sequence[Sequence[float]], style: Mapping, label: str
) -> None:
    """Draw the mean of curves, and a band of one standard error where there are two or more."""
    values = np.array(list(curves), dtype=float)
    mean, line = values.mean(axis=0), dict(style) | {"markevery": max(1, values.shape[1] // 8), "markersize": 5}
    ax.plot(x, mean, **line, label=label)
    if len(values) > 1:
        error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
        ax.fill_between(x, mean - error, mean + error, color=style["color"], alpha=0.15, linewidth=0)


# --- framework --------------------------------------------------------------------------------------------------------


def draw_views(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw how far the two views end apart, by meta step: a line a stream, and the slope of a square."""
    runs = frame[frame["method"] == framework.VIEWS]
    gaps = [f"gap_{k}" for k in range(len(framework.ETAS))]
    for (problem, title), name in zip(PROBLEMS.items(), ("full", "2x2"), strict=True):
        style = plots.method_style(name)
        for k, (_, run) in enumerate(runs[runs["problem"] == problem].iterrows()):
            ax.loglog(framework.ETAS, run[gaps], **style, alpha=0.6, label=title if k == 0 else None)
    guide = np.array(framework.ETAS)
    ax.loglog(guide, 1e-3 * guide**2 / guide.max() ** 2, color="black", linewidth=1, label="square of the meta step")
    ax.set(xlabel=r"meta step $\eta$", ylabel=r"distance of the final $\beta$")
    ax.legend()


def draw_paths(axes: Sequence[Axes], runs: pd.DataFrame, seed: int) -> None:
    """Draw the step size of one stream by matrix, a panel a base update.

    Args:
        axes: an axes for each base.
        runs: result of `tables.trained`.
        seed: number of the stream.
    """
    for ax, (base, of_base) in zip(axes, runs[runs["seed"] == seed].groupby("base", sort=False), strict=False):
        for _, run in of_base.iterrows():
            path = np.exp(run["log_lr"])
            x = np.linspace(1, run["steps"], len(path))
            ax.semilogy(
                x, path, **plots.method_style(run["method"]), markevery=max(1, len(path) // 6), label=run["method"]
            )
        ax.set(xlabel="step", title=str(base))
    axes[0].set_ylabel("step size")
    axes[-1].legend()


def draw_discounts(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw the mean loss against the discount, a panel a stream, with standard errors."""
    for ax, (problem, title) in zip(axes, PROBLEMS.items(), strict=True):
        runs = tables.discounted(frame, problem)
        places = {g: k for k, g in enumerate(sorted(runs["gamma"].unique()))}
        for (row, of_row), name in zip(runs.groupby("row", sort=False), ("L", "Hessian-free"), strict=False):
            of_gamma = of_row.groupby("gamma")["loss"]
            x = [places[g] for g in of_gamma.mean().index]
            ax.errorbar(x, of_gamma.mean(), of_gamma.sem(), **plots.method_style(name), label=row, capsize=3)
        ax.set_xticks(list(places.values()), [f"{g:g}" for g in places])
        ax.set(xlabel=r"discount $\gamma$", title=title)
    axes[0].set_ylabel("mean loss")
    axes[0].legend()


# --- continual --------------------------------------------------------------------------------------------------------


def draw_cumulative(axes: Sequence[Axes], runs: pd.DataFrame) -> None:
    """Draw Figure 3 (left) and Figure 7 (right): cumulative accuracy, and test accuracy at the end of each task."""
    for row in (BEST, continual.SCALAR, continual.BLOCKS):
        chosen, style = runs[runs["row"] == row], plots.method_style(row)
        if chosen.empty:
            continue  # not recorded yet
        label = f"AdamW, {chosen['lr'].iloc[0]:g}" if row == BEST else row
        steps = np.linspace(
            0, chosen["images"].iloc[0] * chosen["tasks"].iloc[0], len(chosen["cumulative_curve"].iloc[0]) + 1
        )
        _band(axes[0], steps[1:], chosen["cumulative_curve"].tolist(), style, label)
        _band(axes[1], range(1, len(chosen["test_curve"].iloc[0]) + 1), chosen["test_curve"].tolist(), style, label)
    axes[0].set(xlabel="step (one image each)", ylabel="cumulative accuracy")
    axes[1].set(xlabel="task", ylabel="test accuracy at its end")
    axes[0].legend()


def draw_rates(axes: Sequence[Axes], runs: pd.DataFrame) -> None:
    """Draw Figures 4 and 8: the step sizes of both blocks over the tasks, geometric means over seeds."""
    chosen = runs[runs["row"] == continual.BLOCKS]
    for ax, block, title in zip(axes, (0, 1), ("convolutions", "last layer"), strict=True):
        logs = np.array([np.log(tables.rates(run, block)).ravel() for _, run in chosen.iterrows()])
        if not len(logs):
            continue  # not recorded yet
        x = np.arange(logs.shape[1]) / continual.READINGS
        style = plots.method_style(continual.BLOCKS) | {"marker": ""}
        ax.plot(x, np.exp(logs.mean(axis=0)), **style)
        for task in range(1, int(x[-1]) + 1):
            ax.axvline(task, color="black", linewidth=0.4)
        ax.set(xlabel="tasks done", title=title, yscale="log")
        plots.label_logarithms(ax)
    axes[0].set_ylabel("step size")


# --- language, cifar, sensitivity -------------------------------------------------------------------------------------


def draw_curves(ax: Axes, frame: pd.DataFrame, rows: Mapping[str, str], curve: str = "loss_curve") -> None:
    """Draw curves over the steps of training, means over seeds with their standard errors.

    Args:
        ax: axes to draw on.
        frame: runs with the column `row`.
        rows: method whose colour a row takes, by row.
        curve: the series.
    """
    for row, method in rows.items():
        chosen = frame[frame["row"] == row]
        if len(chosen):
            values = chosen[curve].tolist()
            x = np.linspace(0, chosen["steps"].iloc[0], len(values[0]) + 1)[1:]
            label = f"{row}, {chosen['lr'].iloc[0]:g}" if row.startswith("best") else row
            _band(ax, x, values, plots.method_style(method), label)
    ax.set(xlabel="step")


def draw_pairs(axes: Sequence[Axes], frame: pd.DataFrame, pairs: Sequence[tuple[str, str]], curve: str) -> None:
    """Draw Figure 1: a panel a pair of base update and meta rule."""
    for ax, (base, meta) in zip(axes, pairs, strict=False):
        rows = {f"{BEST} {base}": BEST, f"{SCALAR} ({base}, {meta})": SCALAR, f"{BLOCKS} ({base}, {meta})": BLOCKS}
        draw_curves(ax, frame, rows, curve)
        ax.set_title(f"({base}, {meta})")
        for text, label in zip(
            ax.legend(fontsize="small").get_texts(), ("best fixed", "scalar", "6 blocks"), strict=False
        ):
            text.set_text(label)


def draw_robust(ax: Axes, frame: pd.DataFrame, column: str) -> None:
    """Draw Figure 2: the accuracy at the end against the step size that is fixed, or that adaptation starts from."""
    for method, title in ((BEST, "Lion, fixed"), (SCALAR, "(Lion, Lion), scalar"), (BLOCKS, "(Lion, Lion), 6 blocks")):
        chosen = frame[frame["method"] == ("fixed" if method == BEST else method)].groupby("lr")[column]
        if len(chosen):
            ax.errorbar(
                chosen.mean().index, chosen.mean(), chosen.sem(), **plots.method_style(method), label=title, capsize=3
            )
    ax.set(xscale="log", xlabel="step size: fixed, or at the start", ylabel="training accuracy at the end")
    ax.legend()


def draw_serving(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw losses over that of the best fixed step size, against meta step times steps: a panel a start.

    The vertical line is where the rule of `gradtune.optim` stands.
    """
    found = tables.serving(frame)
    starts = list(dict.fromkeys(found.index.get_level_values(0)))
    names = ("full", "2x2", "L", "Hessian-free")
    for ax, start in zip(axes, starts, strict=False):
        etas = np.array([float(row) for row in found.loc[start].index])
        for (column, ratios), name in zip(found.loc[start].items(), names, strict=False):
            ax.loglog(etas * int(str(column).split()[0]), ratios, **plots.method_style(name), label=column)
        ax.axhline(1, color="black", linewidth=0.8)
        ax.axvline(REACH, color="black", linewidth=0.8)
        ax.set(xlabel=r"meta step $\times$ steps", title=f"from {start}")
    axes[0].set_ylabel("loss over the best fixed step's")
    axes[-1].legend()


def starts(frame: pd.DataFrame) -> int:
    """Return from how many starts the runs of `sensitivity` adapt: the number of panels of `draw_serving`."""
    return frame.loc[frame["method"] == sensitivity.ADAPTED, "lr"].nunique() if len(frame) else 1
