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
"""How the dynamics show training and validation losses."""


def draw_dynamics(
    frame: pd.DataFrame, methods: Sequence[str], steps: Sequence[int], hyper: str, label: str, log: bool = True
) -> Figure:
    """Appendix B: a row a method and a column a number of steps; every run's training (grey squares) and validation
    loss (black dots) against the hyperparameter in force; methods without runs are left out. Reads panel_train,
    panel_val and panel_<hyper>."""
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
    fig = plt.figure(figsize=(10, 0.6))
    fig.text(0.5, 0.5, "none of these methods is recorded yet", ha="center", va="center")
    return fig


def _losses_up(ax: Axes, log_x: bool) -> None:
    """Axes of a small panel with losses."""
    ax.set_xscale("log" if log_x else "linear")
    _log_y(ax)
    ax.tick_params(which="both", labelsize="x-small")
    if not log_x:
        ax.xaxis.set_major_locator(MaxNLocator(3))


def _log_y(ax: Axes) -> None:
    """A logarithmic axis that may span less than a power of ten, with plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.7)))


def panel_table(frame: pd.DataFrame, methods: Sequence[str], steps: Sequence[int], hyper: str) -> pd.DataFrame:
    """What the panels show, as medians over the runs of a method: training loss, validation loss and hyperparameter
    after each number of steps."""
    names, rows = ["train", "val", hyper], {}
    for method in methods:
        runs = frame[frame["method"] == method]
        for k, step in enumerate(steps if len(runs) else ()):
            rows[method, step] = [np.nanmedian([v[k] for v in runs[f"panel_{name}"]]) for name in names]
    index = pd.MultiIndex.from_tuples(list(rows), names=["method", "step"])
    return pd.DataFrame(list(rows.values()), index=index, columns=names)


def draw_paths(ax: Axes, frame: pd.DataFrame, column: str, steps: int, methods: Sequence[str], label: str) -> None:
    """Mean of a recorded curve over the runs of each method, and the range of the runs, against the training step."""
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
    """`[runs, points]` of a series; runs that lack it are left out."""
    lists = [v for v in runs.get(column, ()) if isinstance(v, list)]
    return np.array(lists, dtype=float) if lists else np.empty((0, 0))


def draw_sensitivity(axes: Sequence[Axes], frame: pd.DataFrame, steps: int, methods: Sequence[str]) -> None:
    """|y| (left) and the share of clipped steps (right) over training, means over the runs of a method."""
    draw_paths(axes[0], frame, "length", steps, methods, r"$|y_t|$ (log scale)")
    axes[0].set_yscale("log")
    clipped = [m for m in methods if m.startswith("Clip")]
    draw_paths(axes[1], frame, "clip_share", steps, clipped, "share of clipped steps")
    axes[1].set_ylim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")


def sensitivity_table(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Means over the runs in the first and last tenth of the training: |y| and the share of clipped steps."""
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
    """Loss with and without early stopping: a dot a seed, a cross for the paper's table."""
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
    """Validation perplexity over training, a curve a method, with cross entropies in `lines` as horizontal lines."""
    shown = frame.assign(perplexity=[np.exp(v).tolist() for v in frame["val_curve"]])
    draw_paths(ax, shown, "perplexity", steps, methods, "validation perplexity (log scale)")
    for k, (name, loss) in enumerate(lines.items()):
        ax.axhline(np.exp(loss), color="black", linestyle=[":", "--", "-."][k % 3], label=name)
    _log_y(ax)
    ax.legend(fontsize="x-small")


def draw_parting(ax: Axes, frame: pd.DataFrame, steps: int) -> None:
    """Training (dashed) and validation perplexity (solid) of the runs with a fixed keep probability, means over
    seeds."""
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
