"""What is read off the runs of the study `together`: ratios to the best fixed setting, failures, profiles, costs.

The reference of a problem is the fixed training of lowest mean validation loss, of both rules' grids. A run's ratio is
its test loss at the end over the reference's mean test loss. A run fails where its loss has ended in NaN, or not below
that before training; its ratio is then infinite, so that medians count it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from scipy.stats import binomtest

from gradtune_book.notebooks import plots
from gradtune_book.papers.together import comparison, ways
from gradtune_book.tasks import problems

View = Literal["equal time", "equal steps"]

NEAR = 1.5
"""Largest ratio that counts as near the reference."""

_DRAWN = 10.0  # largest ratio that figures tell apart


def reference(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the best fixed setting of each problem: rule, learning rate, weight decay, and mean losses.

    Problems whose grid is not recorded for all seeds of a problem are left out.

    Args:
        frame: The runs, from `store.load` or `papers.run_now`.
    """
    fixed = frame[frame["method"] == comparison.GRID_WAY]
    point = ["problem", "rule", "start", "weight_decay"]
    means = fixed.groupby(point, as_index=False).agg(n=("val", "size"), val=("val", "mean"), test=("test", "mean"))
    means = means.dropna(subset="val")
    best = means.loc[means.groupby("problem")["val"].idxmin()] if len(means) else means
    return best.set_index("problem").reindex([p for p in problems.TITLES if p in set(best["problem"])])


def scored(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of all ways with the columns `ratio`, `failed`, `usual`, `kind` and `title`.

    `usual` says that a run tunes what its way usually tunes, at the way's own outer rate.

    Args:
        frame: The runs, from `store.load` or `papers.run_now`.
    """
    runs = frame[frame["method"] != comparison.GRID_WAY].copy()
    base = reference(frame)["test"]
    runs = runs[runs["problem"].isin(base.index)]
    runs["failed"] = ~(runs["val"] < runs["initial_val"])
    runs["ratio"] = (runs["test"] / runs["problem"].map(base)).where(~runs["failed"], np.inf).fillna(np.inf)
    known = {name: ways.get(name) for name in runs["method"].unique()}
    runs["usual"] = (runs["tunes"] == runs["method"].map({n: w.tunes for n, w in known.items()})) & (
        runs["factor"] == 1
    )
    runs["kind"] = runs["method"].map({n: w.kind for n, w in known.items()})
    runs["title"] = runs["method"].map({n: w.title for n, w in known.items()})
    return runs


def seen(runs: pd.DataFrame, view: View) -> pd.DataFrame:
    """Return the usual runs of a view.

    Args:
        runs: What `scored` gave.
        view: "equal time" or "equal steps", which has no searches: they share out the budget in any case.
    """
    if view == "equal steps":
        runs = runs[np.array([ways.get(m).kind != "search" for m in runs["method"]], dtype=bool)]
    fits = [
        c.steps == (comparison.steps_for(c.method, c.problem, c.tunes, c.budget) if view == "equal time" else c.budget)
        for c in runs.itertuples()
    ]
    return runs[runs["usual"] & np.array(fits, dtype=bool)]


def matrix(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the median ratio of each way on each problem, ways in rows, with their median over all runs last.

    Args:
        runs: What `seen` gave.
    """
    table = runs.groupby(["title", "problem"])["ratio"].median().unstack()
    table = table.reindex(columns=[p for p in problems.TITLES if p in table])
    return _ordered(table.assign(all=runs.groupby("title")["ratio"].median()))


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a way: n, runs near the reference with a 95 % interval, failures, quartiles of the ratio, time.

    `near` is the share of runs with a ratio of at most `NEAR` in per cent, between `low` and `high` (Wilson's interval,
    as if runs were independent). `time` is the processor time of a run over that which the budget stands for, the
    median of both AdamW runs and problems.

    Args:
        runs: What `seen` gave.
    """
    groups = runs.groupby("title")
    table = pd.DataFrame({"n": groups.size()})
    good = groups["ratio"].agg(lambda r: int((r <= NEAR).sum()))
    spans = [binomtest(int(k), int(n)).proportion_ci(method="wilson") for k, n in zip(good, table["n"])]
    table["near"] = 100 * good / table["n"]
    table["low"], table["high"] = [100 * s.low for s in spans], [100 * s.high for s in spans]
    table["failed"] = groups["failed"].sum()
    for name, share in (("25 %", 0.25), ("median", 0.5), ("75 %", 0.75)):
        table[name] = groups["ratio"].agg(lambda r, q=share: np.quantile(r, q, method="nearest"))
    return _ordered(table.join(times(runs)))


def times(runs: pd.DataFrame) -> pd.Series:
    """Return the processor time of the runs of each way over that of plain training by AdamW on the same problem.

    Args:
        runs: What `seen` gave.
    """
    plain = runs[runs["method"] == "AdamW-1e-3"].groupby("problem")["cpu_s"].median()
    share = runs["cpu_s"] / runs["problem"].map(plain)
    return share.groupby(runs["title"]).median().rename("time")


def by_start(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the median ratio of each way from each start, over all problems; ways without a start are left out.

    Args:
        runs: What `seen` gave.
    """
    started = runs.dropna(subset="start")
    return _ordered(started.groupby(["title", "start"])["ratio"].median().unstack())


def spread(runs: pd.DataFrame) -> pd.DataFrame:
    """Return how far the start matters: the largest over the smallest ratio of a way's runs on a problem, the median.

    `problems` counts those on which the way has at least two runs; `failed somewhere` those on which one has failed.

    Args:
        runs: What `seen` gave.
    """
    groups = runs.groupby(["title", "problem"])["ratio"]
    several = groups.size() > 1
    table = pd.DataFrame({"spread": (groups.max() / groups.min())[several], "failed": groups.max()[several] == np.inf})
    table["spread"] = table["spread"].fillna(np.inf)
    out = table.groupby("title").agg(
        problems=("spread", "size"), spread=("spread", "median"), failed_somewhere=("failed", "sum")
    )
    return _ordered(out.rename(columns={"failed_somewhere": "failed somewhere"}))


def tuned_outside(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the median ratio of ways with outer rates of 0.1, 1 and 10 times their own, at equal time.

    `tuned` takes, on each problem, the rate whose median validation loss is lowest: three times the cost of a row.

    Args:
        runs: What `scored` gave.
    """
    chosen = runs[runs["method"].isin(comparison.SEARCHED) & (runs["tunes"] == runs["method"].map(_tunes(runs)))]
    planned = [comparison.steps_for(c.method, c.problem, c.tunes, c.budget) == c.steps for c in chosen.itertuples()]
    chosen = chosen[np.array(planned, dtype=bool)]
    whole = chosen.groupby(["title", "problem"])["factor"].transform("nunique") == 1 + len(comparison.FACTORS)
    chosen = chosen[whole]
    if chosen.empty:
        return pd.DataFrame()
    val = chosen.assign(val=chosen["val"].where(~chosen["failed"], np.inf))
    medians = val.groupby(["title", "problem", "factor"]).agg(val=("val", "median"), ratio=("ratio", "median"))
    best = medians.loc[medians.groupby(["title", "problem"])["val"].idxmin()]["ratio"].groupby("title").median()
    return _ordered(chosen.groupby(["title", "factor"])["ratio"].median().unstack().assign(tuned=best))


def by_tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the median ratio of each way by what it tunes, at its own outer rate and equal time.

    Args:
        runs: What `scored` gave.
    """
    own = runs[(runs["factor"] == 1) & (runs["kind"] == "gradients")]
    planned = [comparison.steps_for(c.method, c.problem, c.tunes, c.budget) == c.steps for c in own.itertuples()]
    own = own[np.array(planned, dtype=bool)]
    several = own.groupby("title")["tunes"].transform("nunique") > 1
    more = own[several & own["problem"].isin(own[~own["usual"]]["problem"].unique())]
    return _ordered(more.groupby(["title", "tunes"])["ratio"].median().unstack()) if len(more) else pd.DataFrame()


def _tunes(runs: pd.DataFrame) -> dict[str, str]:
    return {name: ways.get(name).tunes for name in runs["method"].unique()}


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    titles = [way.title for way in ways.WAYS.values() if way.title in table.index]
    return table.reindex(titles).rename_axis("way")


# --- figures ----------------------------------------------------------------------------------------------------------


def draw_matrix(runs: pd.DataFrame) -> Figure:
    """Draw the median ratio of each way on each problem as a map; a cross where it is infinite.

    Args:
        runs: What `seen` gave.
    """
    table = matrix(runs)
    fig, ax = plt.subplots(figsize=(8.2, 0.27 * len(table) + 1.9), layout="constrained")
    values = table.clip(lower=1 / _DRAWN, upper=_DRAWN).to_numpy(dtype=float)
    image = ax.imshow(values, norm=LogNorm(1 / _DRAWN, _DRAWN), cmap="RdBu_r", aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy(dtype=float)):
        text = "" if np.isnan(value) else "×" if np.isinf(value) else f"{value:.2g}" if value < 100 else ">99"
        strong = np.isinf(value) or abs(np.log10(max(value, 1e-9))) > 0.6
        ax.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if strong else "0.15")
    ax.set_xticks(range(table.shape[1]), list(table.columns), rotation=30, ha="right")
    ax.set_yticks(range(len(table)), list(table.index), fontsize=9)
    ax.grid(visible=False)
    fig.colorbar(image, ax=ax, label="test loss over the best fixed setting's (log scale)", fraction=0.05)
    return fig


def _styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a line for each title: its dash says the kind, its colour and marker are its own."""
    dashes = {"gradients": "-", "search": "--", "optimiser": ":"}
    marks = "os^Dv<>Pphd*"
    return {
        title: {"color": f"C{k % 10}", "linestyle": dashes[ways.kind_of(title)], "marker": marks[k % len(marks)]}
        for k, title in enumerate(names)
    }


def draw_profile(runs: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Draw the share of runs whose ratio is at most some factor (Dolan and Moré 2002), a curve a way.

    Args:
        runs: What `seen` gave.
        names: Titles of the ways that are drawn.
    """
    fig, (ax,) = plots.panels(1, width=8.0, height=4.6)
    factors, styles = np.geomspace(0.7, 20, 200), _styles(names)
    for title in names:
        ratios = runs.loc[runs["title"] == title, "ratio"].to_numpy()
        if len(ratios):
            share = (ratios[:, None] <= factors).mean(0)
            ax.plot(factors, 100 * share, **(styles[title] | {"marker": ""}), label=title)
    ax.axvline(1, color="0.3", linestyle=":", linewidth=1.2)
    ax.set(xscale="log", xlabel="factor of the best fixed setting's test loss (log scale)", ylabel="share of runs, %")
    ax.set_ylim(0, 102)
    plots.label_logarithms(ax)
    ax.legend(fontsize="small", loc="lower right", ncols=2)
    return fig


def draw_starts(runs: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Draw the median ratio over the start for ways that have one.

    Args:
        runs: What `seen` gave.
        names: Titles of the ways that are drawn.
    """
    fig, (ax,) = plots.panels(1, width=8.0, height=4.6)
    table, styles = by_start(runs), _styles(names)
    for title in [n for n in names if n in table.index]:
        curve = table.loc[title].replace(np.inf, np.nan).clip(upper=_DRAWN)
        ax.plot(curve, **styles[title], markersize=5, label=title)
    ax.axhline(NEAR, color="0.3", linestyle=":", linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlabel="initial learning rate (log scale)", ylabel="median ratio (log scale)")
    ax.legend(fontsize="small", ncols=4, loc="lower left", bbox_to_anchor=(0, 1.01))
    return fig


def draw_costs(runs: pd.DataFrame) -> Figure:
    """Draw the median ratio over the processor time, a point a way, at equal steps.

    Args:
        runs: What `seen` gave of "equal steps".
    """
    table = summary(runs)
    fig, (ax,) = plots.panels(1, width=8.0, height=4.6)
    colours = {"gradients": "C0", "optimiser": "C2"}
    places: dict[str, tuple[float, float]] = {}
    for kind, colour in colours.items():
        titles = [t for t in table.index if ways.kind_of(t) == kind]
        part = table.loc[titles].replace(np.inf, np.nan).dropna(subset=["median", "time"])
        ax.scatter(part["time"], part["median"].clip(upper=_DRAWN), color=colour, label=kind, zorder=3)
        places |= {str(t): (row["time"], min(row["median"], _DRAWN)) for t, row in part.iterrows()}
    ax.axhline(1, color="0.3", linestyle=":", linewidth=1.2)
    ax.set(xscale="log", yscale="log", xlabel="processor time over AdamW's (log scale)", ylabel="ratio (log scale)")
    plots.label_logarithms(ax)
    ax.legend(fontsize="small")
    plots.label_points(ax, places)
    return fig
