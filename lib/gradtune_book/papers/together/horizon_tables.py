"""Tables and figures of the chapter on long horizons: stores and formulas, memory of a step, and its four studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradtune.estimators.tree import revolve_cost, tree_cost
from gradtune_book.notebooks import plots
from gradtune_book.notebooks.stats import mean_error
from gradtune_book.papers import sharing
from gradtune_book.papers.series import whole
from gradtune_book.papers.together import cleaning, long_horizons, long_schedules, long_sharing
from gradtune_book.tasks import small

STORES = {
    "graph": "all graphs",
    "state": "all states",
    "tree-2": "tree, k = 2",
    "tree-8": "tree, k = 8",
    "tree-8-disk": "tree, k = 8, on disk",
}
"""Stores of reverse mode by their names in the benchmark."""

_MARKS = "osD^v"


# -- stores ------------------------------------------------------------------------------------------------------------


def stores(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what each store costs: time over plain training, memory, and counts beside their formulas.

    Args:
        frame: The records of `benchmarks/long_horizons.py`.
    """
    last = frame.sort_values("seed").groupby(["steps", "method"]).tail(1)
    rows = last.assign(store=last["method"].map(STORES), place=last["method"].map(list(STORES).index))
    rows = rows.sort_values(["steps", "place"]).set_index(["steps", "store"])
    counts = ["replayed", "formula_replayed", "revolve_replayed", "states", "formula_states"]
    whole_numbers = rows[counts].fillna(0).astype(int)
    out = pd.DataFrame({"time": rows["ratio"], "tensors, MB": rows["tensors_mb"], "process, MB": rows["resident_mb"]})
    words = ["taken again", "formula", "fewest possible", "states", "their formula"]
    return out.join(whole_numbers.set_axis(words, axis=1).astype(str).where(rows["branching"] > 0, "–"))


def draw_stores(frame: pd.DataFrame) -> Figure:
    """Draw memory and time over the length of a training, a curve a store."""
    fig, axes = plots.panels(2, width=4.6)
    for k, (name, title) in enumerate(STORES.items()):
        runs = frame[frame["method"] == name].groupby("steps")[["tensors_mb", "ratio"]].last()
        for ax, column in zip(axes, ("tensors_mb", "ratio")):
            ax.plot(runs.index, runs[column], marker=_MARKS[k], label=title)
    for ax, word in zip(axes, ("memory in tensors, MB", "time, plain trainings")):
        ax.set(xscale="log", yscale="log" if "memory" in word else "linear", xlabel="steps T", ylabel=word)
    axes[1].legend(fontsize="small")
    axes[1].set_ylim(bottom=0)
    return fig


def formulas(
    steps: Sequence[int] = (100, 1000, 10_000, 100_000), branchings: Sequence[int] = (2, 8, 32)
) -> pd.DataFrame:
    """Return what trees cost by their formulas: gradients a step with the training's own, states, and the bounds."""
    rows = {}
    for k in branchings:
        for t in steps:
            cost, depth = tree_cost(t, k), np.log(t) / np.log(k)
            rows[k, t] = {
                "gradients a step": 1 + cost.replayed / t,
                "1 + log_k T": 1 + depth,
                "states": float(cost.states),
                "k log_k T": k * depth,
                "fewest gradients": 1 + revolve_cost(t, cost.states) / t,
            }
    return pd.DataFrame(rows).T.rename_axis(["k", "T"])


# -- memory of a step --------------------------------------------------------------------------------------------------


def memory(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the peak of a step's memory in MB, and its time in plain steps: methods and modes by net.

    Args:
        frame: The records of `benchmarks/step_memory.py`.
    """
    last = frame.sort_values("seed").groupby(["method", "mode", "net"]).tail(1)
    plain = last[last["mode"] == ""].set_index("net")["step_ms"]
    ratios = [ms / plain.get(net, np.nan) for ms, net in zip(last["step_ms"], last["net"])]
    texts = [f"{mb:.{0 if mb >= 10 else 1}f} ({ratio:.1f})" for mb, ratio in zip(last["step_mb"], ratios)]
    cells = last.assign(cell=texts)
    table = cells.pivot(index=["method", "mode"], columns="net", values="cell").fillna("–")
    nets = [n for n in ("MLP", "LeNet", "WRN-16-1", "LSTM", "decoder") if n in table]
    methods = ["plain training", "OHO", "OnePass", "Diff-through-Opt, states", "Diff-through-Opt, graphs"]
    order = [(m, mode) for m in methods for mode in ("", "reverse", "forward") if (m, mode) in table.index]
    return table.loc[order, nets]


# -- truncation --------------------------------------------------------------------------------------------------------


def draw_bias(runs: pd.DataFrame) -> Figure:
    """Draw the error of shortcuts over how far they look back: nets in columns, units in rows.

    Args:
        runs: What `long_horizons.bias` gave.
    """
    import matplotlib.pyplot as plt

    tasks = [t for t in long_horizons.TASKS if (runs["task"] == t).any()]
    size = (3.6 * len(tasks), 5.6)
    fig, axes = plt.subplots(2, len(tasks), sharex=True, sharey=True, figsize=size, layout="constrained", squeeze=False)
    for row, units in enumerate(long_horizons.UNITS):
        for column, task in enumerate(tasks):
            ax, here = axes[row, column], runs[(runs["units"] == units) & (runs["task"] == task)]
            for method in ("Diff-through-Opt", "OnePass"):
                groups = here[here["method"] == method].groupby("amount")["error"]
                low, curve, high = (each.clip(1e-3, 1e2) for each in (groups.min(), groups.median(), groups.max()))
                style = plots.method_style(method)
                ax.plot(curve.index, curve, label=method, **style)
                ax.fill_between(curve.index, low, high, alpha=0.25, color=style["color"], linewidth=0)
            ax.axhline(1, color="grey", linewidth=1)
            ax.set(xscale="log", yscale="log")
            ax.set_title(f"{small.TITLES[task]}, {units}", fontsize="small")
    for ax in axes[-1]:
        ax.set_xlabel("steps looked back")
    for ax in axes[:, 0]:
        ax.set_ylabel("relative error")
    axes[0, 0].legend(fontsize="small")
    return fig


def draw_smoothness(frame: pd.DataFrame) -> Figure:
    """Draw finite steps over the derivative, over the length of the step: a panel a kind of units."""
    table = long_horizons.smoothness(frame)
    fig, axes = plots.panels(2, sharex=True)
    for ax, units in zip(axes, long_horizons.UNITS):
        here = table[table.index.get_level_values("units") == units]
        for k, (task, rows) in enumerate(here.groupby(level="task", sort=False)):
            for number, (_, row) in enumerate(rows.iterrows()):
                label = None if number else small.TITLES[task]
                ax.plot(row.index, row, marker=_MARKS[k % 5], color=f"C{k}", label=label, linewidth=1)
        ax.axhline(1, color="grey", linewidth=1)
        ax.set(xscale="log", title=units, xlabel="step length", ylabel="finite step / derivative")
        if units == "relu":
            ax.set_yscale("symlog", linthresh=2)
            ax.margins(y=0.1)
        else:
            ax.set_ylim(0, 2)
    axes[1].legend(fontsize="small")
    return fig


# -- schedules ---------------------------------------------------------------------------------------------------------


def schedules(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what the runs of `long_schedules` gave, a row a run."""
    names = {
        "test_accuracy": "kept, %",
        "last_test_accuracy": "last, %",
        "best_outer_step": "kept at outer step",
        "diverged": "diverged",
        "memory_mb": "memory, MB",
        "state_mb": "a state, MB",
        "states": "states",
        "replayed": "taken again",
    }
    rows = frame.set_index(["method", "seed"])
    out = rows[[n for n in names if n in rows]].astype(float).rename(columns=names)
    out[[n for n in out if n.endswith("%")]] *= 100
    if "memory, MB" in out:
        stored = (rows["steps"] * out["a state, MB"]).where(out["states"].notna() if "states" in out else True)
        out.insert(out.columns.get_loc("memory, MB") + 1, "all states, MB", stored)
    return out


def draw_schedules(frame: pd.DataFrame) -> Figure:
    """Draw the last schedules, a band of one deviation for steps that share no rate, and accuracy by outer step."""
    fig, axes = plots.panels(2, width=4.8)
    for method in long_schedules.METHODS:
        for number, (_, run) in enumerate(frame[frame["method"] == method].iterrows()):
            style = {k: v for k, v in _style(method).items() if k != "marker"}
            part = pd.DataFrame([run]).dropna(axis=1, how="all")
            mean, spread = whole(part, "schedule")[0], whole(part, "spread")[0]
            x = np.linspace(0, run["steps"], len(mean))
            axes[0].plot(x, mean, label=None if number else method, **{**style, "linewidth": 1})
            if method == long_schedules.PER_STEP:
                axes[0].fill_between(x, mean - spread, mean + spread, alpha=0.25, color=style["color"])
            if method != long_schedules.COSINE:
                axes[1].plot(
                    range(len(run["val_curve"])),
                    100 * np.array(run["val_curve"], float),
                    label=method,
                    **_style(method),
                )
    axes[0].set(xlabel="step", ylabel="learning rate")
    axes[1].set(xlabel="outer step", ylabel="validation accuracy, %")
    axes[1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].legend(fontsize="small")
    return fig


def _style(method: str) -> dict[str, Any]:
    return plots.method_style({"per step": "Per step", "one rate": "Fixed", "cosine": "best fixed"}.get(method, method))


# -- sharing -----------------------------------------------------------------------------------------------------------


def noises(frame: pd.DataFrame) -> dict[int, np.ndarray]:
    """Return the hypergradients `[S, T]` of the noise by length T; trainings that are not finite are left out."""
    found = {}
    for steps, runs in frame[frame["method"] == long_sharing.NOISE].groupby("steps"):
        g = whole(runs.dropna(axis=1, how="all"), "hypergradient")
        g = g[np.isfinite(g).all(1)]
        if len(g) > 1:
            found[int(steps)] = g
    return found


def sharing_numbers(frame: pd.DataFrame, windows: int = 7) -> pd.DataFrame:
    """Return the quantities of Theorem 4.1 and what sharing does to the error, a column a length.

    Args:
        frame: pd.DataFrame of `long_sharing`.
        windows: Windows of FDS.
    """
    rows = {}
    for steps, g in noises(frame).items():
        noise = sharing.measured(g)
        errors = {n: sharing.squared_error(g, noise.mu, n) for n in (steps, windows, 1)}
        correlation = np.corrcoef(g.T)
        rows[f"T = {steps}"] = {
            "trainings": float(len(g)),
            "mean over deviation": float(np.abs(noise.mu).mean() / np.sqrt(noise.variance).mean()),
            "mean correlation of two steps": float(correlation[np.triu_indices(steps, 1)].mean()),
            "largest |correlation|": noise.c,
            "error per step (MSE at W = 1)": errors[steps],
            f"{windows} windows over per step": errors[windows] / errors[steps],
            "one window over per step": errors[1] / errors[steps],
            f"bound at {windows} windows over per step": sharing.bound(noise.variance, noise.epsilon, noise.c, windows)
            / errors[steps],
            "the same, were steps uncorrelated": sharing.bound(noise.variance, noise.epsilon, 0.0, windows)
            / errors[steps],
        }
    return pd.DataFrame(rows).rename_axis("quantity")


def draw_sharing(frame: pd.DataFrame) -> Figure:
    """Draw the error over the window's length by length of training, and the mean hypergradient of each step."""
    fig, axes = plots.panels(2, width=4.6)
    for k, (steps, g) in enumerate(noises(frame).items()):
        noise = sharing.measured(g)
        counts = np.unique(np.geomspace(1, steps, 20).astype(int))
        errors = np.array([sharing.squared_error(g, noise.mu, n) for n in counts]) / noise.variance.mean()
        axes[0].plot(steps / counts, errors, marker=_MARKS[k % 5], label=f"T = {steps}")
        x = (np.arange(steps) + 0.5) / steps
        line = axes[1].plot(x, noise.mu * steps, label=f"T = {steps}")[0]
        width = np.sqrt(noise.variance) * steps
        axes[1].fill_between(x, noise.mu * steps - width, noise.mu * steps + width, alpha=0.2, color=line.get_color())
    axes[0].axhline(1, color="grey", linewidth=1)
    axes[0].set(xscale="log", yscale="log", xlabel="steps that share a rate, W", ylabel="squared error / that of W = 1")
    axes[1].set(xlabel="step / T", ylabel="T times the hypergradient of a step")
    axes[0].legend(fontsize="small")
    return fig


def learned(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what the learned schedules gave: methods and outer rates in rows, means over seeds with their errors."""
    own = frame[frame["method"] != long_sharing.NOISE]
    rows = {}
    for (method, lr), runs in own.groupby(["method", "outer_lr"], sort=False):
        loss, error, n, _ = mean_error(runs["test_loss"].astype(float))
        curves = np.array(runs["val_curve"].tolist(), dtype=float)
        rows[method, lr] = {
            "n": str(n),
            "test loss": loss,
            "error": error,
            "test accuracy, %": 100 * float(runs["test_accuracy"].astype(float).mean()),
            "best validation loss": float(np.nanmin(np.nanmean(curves, 0))),
            "diverged": str(int(runs["diverged"].sum())),
        }
    return pd.DataFrame(rows).T.rename_axis(["rates", "outer rate"])


# -- cleaning ----------------------------------------------------------------------------------------------------------


def cleaned(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what the runs of `hyper_cleaning` gave, a row a method: means over seeds, and errors of the accuracy."""
    rows = {}
    for method in [m for m in cleaning.METHODS if (frame["method"] == m).any()]:
        runs = frame[frame["method"] == method]
        value, error, n, _ = mean_error(100 * runs["test_accuracy"].astype(float))
        row: dict[str, Any] = {"n": str(n), "test accuracy, %": value, "error": error}
        names = {"separation": "separation, %", "wrong_kept": "wrong kept, %", "right_dropped": "right dropped, %"}
        row |= {title: 100 * float(runs[name].astype(float).mean()) for name, title in names.items() if name in runs}
        rows[method] = row
    return pd.DataFrame(rows).T.rename_axis("weights")


def draw_cleaned(frame: pd.DataFrame) -> Figure:
    """Draw test accuracies, and the deciles of the weights that rows with right and wrong labels have."""
    fig, axes = plots.panels(2, width=4.8)
    methods = [m for m in cleaning.METHODS if (frame["method"] == m).any()]
    for place, method in enumerate(methods):
        found = 100 * frame[frame["method"] == method]["test_accuracy"].astype(float)
        axes[0].plot(found, [place] * len(found), "o", color=f"C{place}")
        _deciles(axes[1], frame[frame["method"] == method], place)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("test accuracy, %")
    axes[1].set(xlabel="share of rows", ylabel="weight")
    axes[1].plot([], [], "-", color="grey", label="right labels")
    axes[1].plot([], [], "--", color="grey", label="wrong labels")
    axes[1].legend(fontsize="small")
    return fig


def _deciles(ax: Axes, runs: pd.DataFrame, place: int) -> None:
    if "right_weights" not in runs:
        return
    for name, line in (("right_weights", "-"), ("wrong_weights", "--")):
        curves = [row for row in runs[name] if isinstance(row, (list, tuple, np.ndarray))]
        if curves:
            ax.plot(np.linspace(0, 1, 11), np.mean(curves, 0), line, color=f"C{place}", linewidth=1.4)
