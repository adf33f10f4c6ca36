"""The pictures of the chapters on the OHO paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradtune_book.notebooks import plots
from gradtune_book.papers.oho import dynamics, tables
from gradtune_book.papers.oho.tables import CHANCE, GLOBAL, LAYERWISE, LOSS, REACHED, SECONDS, TRAININGS
from gradtune_book.papers.oho.training import TARGET

_COLOURS = sns.color_palette("colorblind")
_DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1))]


def overview() -> Figure:
    """Draw Figure 1 anew: weights and hyperparameters of three steps, and the influence that joins them."""
    fig, ax = plt.subplots(figsize=(8.6, 3.6))
    ax.set(xlim=(-0.6, 5.5), ylim=(-0.7, 2.7))
    ax.axis("off")
    heights = {"φ": 2.0, "Γ": 1.0, "θ": 0.0}
    for k, end in enumerate(("τ", "τ+1", "τ+2")):
        for name, y in heights.items():
            ax.text(2.2 * k, y, f"${_GREEK[name]}_{{{_TEX[end]}}}$", **_BOX)
        if k < 2:
            _arrows(ax, 2.2 * k)
    for y, text in ((2.0, "hyperparameters"), (1.0, "influence"), (0.0, "weights")):
        ax.text(4.85, y, text, va="center", fontsize=10, color="0.35")
    return fig


_GREEK = {"φ": r"\varphi", "Γ": r"\Gamma", "θ": r"\theta"}
_TEX = {"τ": r"\tau", "τ+1": r"\tau+1", "τ+2": r"\tau+2"}
_BOX: dict[str, Any] = {
    "ha": "center", "va": "center", "fontsize": 14, "bbox": {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "0.3"},
}  # fmt: skip


def _arrows(ax: Axes, x: float) -> None:
    """Draw what leads from one step to the next."""
    right = x + 2.2
    along = [((x, y), (right, y), _COLOURS[y]) for y in range(3)]
    across = [((x, 2), (right, 0), _COLOURS[0]), ((x, 0), (right, 1), _COLOURS[1])]
    for begin, end, colour in (*along, *across, ((right, 1), (right, 2), _COLOURS[2])):
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 17, "shrinkB": 17}
        ax.annotate("", xy=end, xytext=begin, arrowprops=arrow)
    ax.text(x + 1.1, -0.3, r"training batch $B_\tau$" if x == 0 else r"$B_{\tau+1}$", ha="center", fontsize=9)
    ax.text(x + 1.1, 2.2, r"validation gradient $g_V$" if x == 0 else r"$g_V$", ha="center", fontsize=9)


# --- Figures 2 and 3 --------------------------------------------------------------------------------------------------


def draw_cost(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw Figure 2: trainings (left) and processor's seconds (right) until a test loss of 0.3.

    Of random search the expected number, one over the share of good trainings; a way without a good one has no bar.
    """
    table, bayes = tables.performance(frame), tables.searches(frame)
    rows = [r for r in table.index if r != LAYERWISE]
    share = table.loc[rows, REACHED].replace(0, np.nan)
    counts = {"random search, or OHO": 1 / share, "Bayesian optimisation": bayes.groupby("row")[TRAININGS].mean()}
    for ax, unit in zip(axes, (pd.Series(1.0, rows), table.loc[rows, SECONDS])):
        for k, (name, count) in enumerate(counts.items()):
            values = (count.reindex(rows) * unit).to_numpy(dtype=float)
            ax.barh(np.arange(len(rows)) + 0.2 - 0.4 * k, values, 0.38, color=_COLOURS[k], label=name, hatch="/" * k)
        ax.set(yticks=range(len(rows)), yticklabels=rows)
        ax.invert_yaxis()
    axes[0].set(xlabel=f"trainings until a test loss of {TARGET}")
    axes[1].set(xlabel=f"processor's seconds until a test loss of {TARGET}")
    axes[0].legend(fontsize=8)


def draw_distribution(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw Figure 3: final test losses over initial learning rates and weight decays, with their medians."""
    one = tables.trainings(frame)
    rows = [r for r in tables.ROWS if r in set(one["row"])]
    for k, row in enumerate(rows):
        values = one.loc[one["row"] == row, LOSS].to_numpy()
        places = k + np.linspace(-0.22, 0.22, len(values))
        ax.plot(places, values, "o", ms=4, color=_COLOURS[k % 10], alpha=0.75)
        ax.plot([k - 0.33, k + 0.33], [np.median(values)] * 2, color="0.15", lw=2)
    ax.axhline(CHANCE, color="0.5", ls=":", lw=1)
    ax.axhline(TARGET, color="0.5", ls="--", lw=1)
    ax.set(yscale="log", ylabel="test loss at the end (log scale)", xticks=range(len(rows)))
    ax.set_xticklabels([r.replace(", ", ",\n") for r in rows])


# --- Figures 4 and 5 --------------------------------------------------------------------------------------------------


def draw_starts(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw Figure 4: test losses of global and layerwise OHO (left), learning rates by layer (right), one seed."""
    one = tables.of_figure_4(frame)
    starts = sorted(one["lr"].unique())
    for kind, colour in ((GLOBAL, _COLOURS[4]), (LAYERWISE, _COLOURS[2])):
        for lr, dash in zip(starts, _DASHES):
            runs = one[(one["kind"] == kind) & (one["lr"] == lr)]
            _mean_curve(axes[0], runs, "test_curve", color=colour, ls=dash, label=f"{kind}, from {lr:g}")
    layers = one[(one["kind"] == LAYERWISE) & (one["seed"] == one["seed"].min())]
    for _, run in layers.iterrows():
        dash = _DASHES[starts.index(run["lr"])]
        for k in range(run["sets"]):
            label = f"layer {k + 1}" if run["lr"] == starts[0] else None
            axes[1].plot(run["steps"], _numbers(run[f"lr_{k}"]), color=_COLOURS[k], ls=dash, lw=1.3, label=label)
    axes[0].set(xlabel="training step", ylabel="test loss (log scale)", yscale="log")
    axes[1].set(xlabel="training step", ylabel="learning rate (log scale)", yscale="log")
    for ax in axes:
        ax.legend(fontsize=7)
        plots.label_logarithms(ax)


def draw_sets(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw Figure 5: test loss (left) and seconds of a training (right) by the number of sets."""
    one = tables.of_figure_5(frame)
    for ax, column, label in zip(axes, (LOSS, SECONDS), ("test loss at the end", "processor's seconds of a training")):
        groups = one.groupby("sets")[column]
        ax.plot(one["sets"], one[column], "o", ms=4, color=_COLOURS[0], alpha=0.5)
        ax.errorbar(groups.mean().index, groups.mean(), groups.std(), color="0.15", capsize=4, lw=1.5)
        ax.set(xlabel="sets of hyperparameters k", ylabel=label, xticks=sorted(one["sets"].unique()))


# --- Figures 6 to 10 --------------------------------------------------------------------------------------------------


def draw_resets(axes: Sequence[Axes], frame: pd.DataFrame, name: str) -> None:
    """Draw half of Figure 6: the hyperparameter that is reset (left) and test losses (right), one seed."""
    curve, label = ("lr_0", "learning rate") if name == dynamics.RATE_RESET else ("decay_0", "weight decay")
    one, alone = tables.part(frame, name), tables.part(frame, dynamics.ALONE)
    one = one[one["seed"] == one["seed"].min()]
    alone = alone[alone["seed"] == alone["seed"].min()]
    for _, run in alone.iterrows():
        axes[0].plot(run["steps"], _numbers(run[curve]), color="0.3", lw=2.2, label="left alone")
    for k, at in enumerate(sorted(one["at"].unique())):
        for after, dash in (("OHO", "-"), ("fixed", (0, (5, 2)))):
            for _, run in one[(one["at"] == at) & (one["after"] == after)].iterrows():
                label_of = f"epoch {at}, then {after}"
                axes[1].plot(run["steps"], _numbers(run["test_curve"]), color=_COLOURS[k], ls=dash, label=label_of)
                if after == "OHO":
                    axes[0].plot(run["steps"], _numbers(run[curve]), color=_COLOURS[k], label=f"reset in epoch {at}")
    axes[0].set(xlabel="training step", ylabel=label)
    axes[1].set(xlabel="training step", ylabel="test loss (log scale)", yscale="log")
    for ax in axes:
        ax.legend(fontsize=7)
    plots.label_logarithms(axes[1])


def draw_outer(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw Figure 7: test losses over training by outer data, means over seeds."""
    one = tables.outer_data(frame)
    for k, (row, runs) in enumerate(one.groupby("row", sort=False)):
        _mean_curve(ax, runs, "test_curve", color=_COLOURS[k], ls=_DASHES[k % 5], label=str(row))
    ax.set(xlabel="training step", ylabel="test loss (log scale)", yscale="log")
    ax.legend(fontsize=8)
    plots.label_logarithms(ax)


def draw_intervals(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw Figure 8: test losses by the interval of the resets, a dot a seed, means with standard deviations."""
    one = tables.intervals(frame)
    rows = list(dict.fromkeys(one.sort_values("interval")["row"]))
    for k, row in enumerate(rows):
        values = one.loc[one["row"] == row, LOSS]
        ax.plot([k] * len(values), values, "o", ms=4, color=_COLOURS[0], alpha=0.5)
        ax.errorbar(k, values.mean(), values.std(), color="0.15", marker="_", ms=14, capsize=4)
    ax.set(xticks=range(len(rows)), xticklabels=rows, xlabel="steps between two resets", ylabel="test loss at the end")


def draw_norms(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw Figure 9: the squared norm of the influence of the learning rate, a panel for each initial rate."""
    one = tables.norms(frame)
    for ax, (lr, runs) in zip(axes, one.groupby("lr")):
        for k, (meta, each) in enumerate(runs.groupby("meta_rate")):
            for n, (_, run) in enumerate(each.iterrows()):
                label = f"meta rate {meta:g}" if n == 0 else None
                ax.plot(run["steps"], _numbers(run["norm_lr"]), color=_COLOURS[k], ls=_DASHES[k], lw=1.2, label=label)
        ax.set(title=f"from {lr:g}", xlabel="training step", yscale="log")
    axes[0].set(ylabel="squared norm of dθ/dα (log scale)")
    axes[-1].legend(fontsize=7)


def draw_stability(axes: Sequence[Axes], frame: pd.DataFrame) -> None:
    """Draw Figure 10: norms of the influence (A), of a step's Jacobian (B), correlation of gradients (C)."""
    one = tables.part(frame, dynamics.NORMS)
    for k, (lr, runs) in enumerate(one.groupby("lr")):
        style = {"color": _COLOURS[k], "ls": _DASHES[k], "label": f"from {lr:g}"}
        for ax, column in zip(axes, ("norm_lr", "jacobian")):
            _mean_curve(ax, runs, column, **style)
        mean, deviation = (
            np.nanmean([_numbers(v) for v in runs[c]], 0) for c in ("correlation", "correlation_deviation")
        )
        windows = np.arange(1, len(mean) + 1)
        axes[2].plot(windows, mean, **style)
        axes[2].fill_between(windows, mean - deviation, mean + deviation, color=_COLOURS[k], alpha=0.15)
    labels = ("squared norm of dθ/dα (log scale)", "squared norm of the Jacobian (log scale)", "correlation")
    for ax, label in zip(axes, labels):
        ax.set(xlabel="training step", ylabel=label)
    for ax in axes[:2]:
        ax.set(yscale="log")
    axes[2].set(xlabel="window of 100 updates")
    axes[0].legend(fontsize=8)


def _mean_curve(ax: Axes, runs: pd.DataFrame, column: str, **style: object) -> None:
    """Draw the mean over runs of a curve; where a run has no number it does not count."""
    values = np.array([_numbers(v) for v in runs[column]])
    if len(values):
        known = np.isfinite(values).sum(0)
        mean = np.where(known > 0, np.nansum(values, 0) / np.maximum(known, 1), np.nan)
        ax.plot(runs["steps"].iloc[0], mean, **style)  # type: ignore[arg-type]


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array(values, dtype=float)
