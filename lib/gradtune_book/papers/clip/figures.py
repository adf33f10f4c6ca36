"""Figures of the chapters on Tables 2 and 3 of the Clip paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from gradtune_book.notebooks import plots
from gradtune_book.papers.clip.training import FIXED

TRAIN, VAL = {"color": "0.55", "marker": "s"}, {"color": "black", "marker": "o"}
"""Styles of training and validation losses in the dynamics."""


def draw_dynamics(
    frame: pd.DataFrame, methods: Sequence[str], steps: Sequence[int], hyper: str, label: str, log: bool = True
) -> Figure:
    """Draw Appendix B: the losses of every run against the hyperparameter in force.

    There is a row per method and a column per number of steps. Grey squares are training losses, black dots validation
    losses, in nats. Methods without runs are left out.

    Args:
        frame: runs with the series `panel_train`, `panel_val` and `panel_<hyper>`.
        methods: methods from top to bottom.
        steps: numbers of training steps from left to right, one for each point of these series.
        hyper: name of the hyperparameter in `panel_<hyper>`.
        label: label of its axis.
        log: whether its axis is logarithmic. That of the losses is in any case.

    Returns:
        The figure. Where no method has runs it says so.
    """
    methods = [m for m in methods if (frame["method"] == m).any()]
    if not methods:
        return _nothing()
    fig = plt.figure(figsize=(10, 2 * len(methods) + 0.9), layout="constrained")
    axes = fig.subplots(len(methods), len(steps), sharex=True, sharey=True, squeeze=False)
    for row, method in zip(axes, methods):
        runs = frame[frame["method"] == method]
        for k, ax in enumerate(row):
            for column, style in (("panel_train", TRAIN), ("panel_val", VAL)):
                points = [(h[k], v[k]) for h, v in zip(runs[f"panel_{hyper}"], runs[column]) if k < len(v)]
                ax.plot(*zip(*points), **style, linestyle="", markersize=4)
        row[0].set_ylabel(f"{method}\nloss (nats)", fontsize="small")
    for ax, step in zip(axes[0], steps):
        ax.set_title(f"{step:,} steps", fontsize="small")
    for ax in axes.flat:
        _losses_up(ax, log)
    fig.supxlabel(f"{label} (log scale)" if log else label, fontsize="small")
    fig.legend(axes[0][0].lines[:2], ["training loss", "validation loss"], loc="outside upper center", ncols=2)
    return fig


def _nothing() -> Figure:
    """A figure that says that there is nothing to draw."""
    fig = plt.figure(figsize=(10, 0.6))
    fig.text(0.5, 0.5, "none of these methods is recorded yet", ha="center", va="center")
    return fig


def _losses_up(ax: Axes, log_x: bool) -> None:
    """Set up the axes of a small panel with losses."""
    ax.set_xscale("log" if log_x else "linear")
    _log_y(ax)
    ax.tick_params(which="both", labelsize="x-small")
    if not log_x:
        ax.xaxis.set_major_locator(MaxNLocator(3))


def _log_y(ax: Axes) -> None:
    """Make the y axis logarithmic with plain numbers, also where it spans less than a power of ten."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))


def panel_table(frame: pd.DataFrame, methods: Sequence[str], steps: Sequence[int], hyper: str) -> pd.DataFrame:
    """Return what the panels of `draw_dynamics` show, as medians over the runs of a method.

    Args:
        frame: runs with the series `panel_train`, `panel_val` and `panel_<hyper>`.
        methods: methods in order. Those without runs are left out.
        steps: numbers of training steps, one for each point of these series.
        hyper: name of the hyperparameter.

    Returns:
        A row per method and number of steps. The columns are `train` and `val`, losses in nats, and the value of the
        hyperparameter under its name.
    """
    names, rows = ["train", "val", hyper], {}
    for method in methods:
        runs = frame[frame["method"] == method]
        for k, step in enumerate(steps if len(runs) else ()):
            rows[method, step] = [np.nanmedian([v[k] for v in runs[f"panel_{name}"]]) for name in names]
    index = pd.MultiIndex.from_tuples(list(rows), names=["method", "step"])
    return pd.DataFrame(list(rows.values()), index=index, columns=names)


def draw_paths(ax: Axes, frame: pd.DataFrame, column: str, steps: int, methods: Sequence[str], label: str) -> None:
    """Draw the mean of a recorded curve over the runs of each method, and their range, against the training step.

    Args:
        ax: axes to draw on.
        frame: runs with the series.
        column: name of the series. Its points are evenly spaced and end with the training.
        steps: number of training steps.
        methods: methods to draw. Those without the series are left out.
        label: label of the y axis.
    """
    for method in methods:
        curves = _curves(frame[frame["method"] == method], column)
        if not len(curves):
            continue
        at = np.linspace(steps / curves.shape[1], steps, curves.shape[1])
        style = plots.method_style(method)
        ax.plot(at, np.nanmean(curves, axis=0), **style, markevery=max(1, len(at) // 6), markersize=5, label=method)
        ax.fill_between(at, curves.min(0), curves.max(0), color=style["color"], alpha=0.12, linewidth=0)
    ax.set(xlabel="training step", ylabel=label)


def _curves(runs: pd.DataFrame, column: str) -> np.ndarray:
    """Return a series as `[runs, points]`; runs that lack it are left out."""
    lists = [v for v in runs.get(column, ()) if isinstance(v, list)]
    return np.array(lists, dtype=float) if lists else np.empty((0, 0))


def draw_sensitivity(axes: Sequence[Axes], frame: pd.DataFrame, steps: int, methods: Sequence[str]) -> None:
    """Draw `|y|` and the share of clipped steps over the training, means over the runs of a method.

    Args:
        axes: axes of `|y|` (left) and of the share of clipped steps (right).
        frame: runs with the series `length` and `clip_share`.
        steps: number of training steps.
        methods: methods to draw. The right panel has those of ClipR only.
    """
    draw_paths(axes[0], frame, "length", steps, methods, r"$|y_t|$ (log scale)")
    axes[0].set_yscale("log")
    clipped = [m for m in methods if m.startswith("Clip")]
    draw_paths(axes[1], frame, "clip_share", steps, clipped, "share of clipped steps")
    axes[1].set_ylim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")


def sensitivity_table(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return `|y|` and the share of clipped steps in the first and the last tenth of the training.

    The values are means over the runs of a method, a row per method. A series that a method does not record gives NaN
    or no column.
    """
    rows = {}
    for method in methods:
        row: dict[str, float] = {}
        for column, name in (("length", "|y|"), ("clip_share", "clipped")):
            curves = _curves(frame[frame["method"] == method], column)
            if len(curves):
                tenth = max(1, curves.shape[1] // 10)
                row |= {
                    f"{name}, first tenth": curves[:, :tenth].mean(),
                    f"{name}, last tenth": curves[:, -tenth:].mean(),
                }
        rows[method] = row
    return pd.DataFrame(rows).T


def draw_table(axes: Sequence[Axes], seeds: pd.DataFrame, paper: pd.DataFrame, label: str) -> None:
    """Draw the loss with and without early stopping: a dot per seed, a cross for the paper's table.

    Args:
        axes: axes with early stopping (left) and without (right).
        seeds: result of `tables.by_seed`.
        paper: result of `tables.published`. Its rows are drawn.
        label: label of the y axis.
    """
    for ax, (column, title) in zip(axes, {"best_val": "with early stopping", "val": "without"}.items()):
        for k, row in enumerate(paper.index):
            name = str(row).split(" ")[0]
            dots = seeds.loc[seeds["row"] == row, column]
            ax.plot([k] * len(dots), dots, **plots.method_style(name) | {"linestyle": "", "alpha": 0.7})
            ax.plot(k, paper.loc[row, column], "kx", markersize=8, markeredgewidth=2)
        ax.set_xticks(range(len(paper)), list(paper.index), rotation=60, ha="right")
        ax.set_title(title)
    axes[0].set_ylabel(label)


def draw_marks(ax: Axes, frame: pd.DataFrame, steps: int, lines: Mapping[str, float], methods: Sequence[str]) -> None:
    """Draw the validation perplexity over the training, a curve per method, with horizontal lines for comparison.

    Args:
        ax: axes to draw on.
        frame: runs of `clip_ptb`.
        steps: number of training steps.
        lines: cross entropies in nats a word by name, drawn as perplexities.
        methods: methods to draw.
    """
    shown = frame.assign(perplexity=[np.exp(v).tolist() for v in frame["val_curve"]])
    draw_paths(ax, shown, "perplexity", steps, methods, "validation perplexity (log scale)")
    for k, (name, loss) in enumerate(lines.items()):
        ax.axhline(np.exp(loss), color="black", linestyle=[":", "--", "-."][k % 3], label=name)
    _log_y(ax)
    ax.legend(fontsize="x-small")


def draw_parting(ax: Axes, frame: pd.DataFrame, steps: int) -> None:
    """Draw training (dashed) and validation perplexity (solid) of the runs with a fixed keep probability.

    Curves are means over the seeds.

    Args:
        ax: axes to draw on.
        frame: runs of `clip_ptb`.
        steps: number of training steps.
    """
    fixed = frame[frame["method"] == FIXED]
    for k, (keep, runs) in enumerate(fixed.groupby("keep")):
        for column, dash in (("train_curve", "--"), ("val_curve", "-")):
            curves = np.exp(_curves(runs, column))
            at = np.linspace(steps / curves.shape[1], steps, curves.shape[1])
            label = f"keep {keep:.2f}" if dash == "-" else None
            marker = "osD^vPX*"[k % 8]
            ax.plot(at, curves.mean(0), color=f"C{k}", linestyle=dash, marker=marker, markevery=8, label=label)
    for part, dash in (("validation", "-"), ("training", "--")):
        ax.plot([], [], color="black", linestyle=dash, label=part)
    ax.set(xlabel="training step", ylabel="perplexity (log scale)")
    _log_y(ax)
    ax.legend(fontsize="small", loc="lower left")
