"""The figures of the chapters on the OnePass paper's UCI experiments, and the tables that are printed with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradtune_book.notebooks import plots, stats
from gradtune_book.papers.onepass.uci_tables import NAMES, TITLES, UNITS, of_losses

LOSS = "test MSE"


def grid(count: int, columns: int = 4, width: float = 3.4, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    """Make `count` panels in rows of at most `columns`; the legend goes below with `legend`.

    Args:
        count: Number of panels.
        columns: Most panels in a row.
        width: Width of a panel in inches; a figure of few panels is at least 7 inches wide.
        height: Height of a panel in inches.

    Returns:
        The figure and its panels, row by row.
    """
    rows, across = -(-count // columns), min(count, columns)
    width = max(width, 7.0 / across)
    fig, axes = plots.plt.subplots(
        rows, across, figsize=(width * across, height * rows + 1.1), layout="constrained", squeeze=False
    )
    flat = list(axes.flat)
    for ax in flat[count:]:
        ax.set_axis_off()
    return fig, flat[:count]


Draw = Callable[[Axes, pd.DataFrame, str], None]


def sheet(draw: Draw, frame: pd.DataFrame, sets: Sequence[str] | None = None) -> Figure:
    """Draw one panel a set and a legend below; without any run, a panel that says so.

    Args:
        draw: Draws the panel of one set.
        frame: The runs.
        sets: The sets to draw, of which those without runs are left out; by default all that have runs.
    """
    names = present(frame) if sets is None else [name for name in sets if name in present(frame)]
    fig, axes = grid(max(1, len(names)))
    for ax, name in zip(axes, names):
        draw(ax, frame, name)
    if names:
        legend(fig, axes)
    else:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, "no run is recorded yet", ha="center")
    return fig


def tables(read: Callable[[pd.DataFrame, str], pd.DataFrame], frame: pd.DataFrame, losses: bool = True) -> pd.DataFrame:
    """The tables of all sets that have runs, one below the other.

    Args:
        read: Makes the table of one set.
        frame: The runs.
        losses: Whether the tables have losses; the set's name then says the factor they are printed with.
    """
    found = {of_losses(name) if losses else NAMES[name]: read(frame, name) for name in present(frame)}
    return (
        pd.concat(found, names=["data"]) if found else pd.DataFrame(index=pd.Index([], name="no run is recorded yet"))
    )


def legend(fig: Figure, axes: Iterable[Axes]) -> None:
    """Draw one legend for all panels below them, in as many columns as fit."""
    found = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels())}
    columns = max(2, int(fig.get_figwidth() / 2.2))
    fig.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize="small")


def present(frame: pd.DataFrame) -> list[str]:
    """The frame's sets, in the order of `NAMES`."""
    return [name for name in NAMES if len(frame) and name in set(frame["dataset"])]


def by_method(frame: pd.DataFrame, dataset: str) -> list[tuple[str, pd.DataFrame]]:
    """A set's runs by method, in the order of the tables."""
    here = dict(list(frame[frame["dataset"] == dataset].groupby("method", sort=False)))
    return [(m, here[m]) for m in TITLES if m in here]


def curves(runs: pd.DataFrame, column: str = "test_curve") -> np.ndarray:
    """A series of every run as `[N, K]`, NaN where a run has diverged, in the units of `UNITS`."""
    rows = [[np.nan if v is None else v for v in row] for row in runs[column]]
    return np.array(rows, dtype=float) * UNITS.get(str(runs["dataset"].iloc[0]), 1.0)


def steps_of(runs: pd.DataFrame, points: int) -> np.ndarray:
    """Training steps at which a series of `points` points was read, `[points]`.

    They are evenly spaced in one training. Of a run of several trainings they are the steps taken up to the end of
    each.
    """
    if "trainings" in runs and runs["trainings"].iloc[0] > 1:
        return float(runs["steps"].iloc[0]) * np.arange(1, points + 1)
    return np.linspace(0, float(runs["steps"].iloc[0]), points).round()


# --- Figure 8: medians over the steps ---------------------------------------------------------------------------------


def draw_evolution(ax: Axes, frame: pd.DataFrame, dataset: str, column: str = "test_curve", loss: str = LOSS) -> None:
    """Draw the median loss of the runs that are finite against the training step, with its bootstrap standard error.

    Args:
        ax: The panel.
        frame: The runs.
        dataset: The set.
        column: Name of the series that is drawn.
        loss: What the vertical axis calls the loss.
    """
    for method, runs in by_method(frame, dataset):
        if column not in runs or not isinstance(runs[column].iloc[0], list):
            continue
        x = curves(runs, column)
        step, middle, error = steps_of(runs, x.shape[1]), stats.nanmedian(x), stats.bootstrap_band(x, stats.nanmedian)
        style = plots.method_style(method)
        ax.plot(step, middle, **style, markevery=0.2, markersize=5, label=TITLES[method])
        low = np.maximum(middle - error, middle / 10)  # the axis is logarithmic
        ax.fill_between(step, low, middle + error, color=style["color"], alpha=0.2, linewidth=0)
    ax.set(title=of_losses(dataset), xlabel="training step", ylabel=f"median {loss}", yscale="log")
    plots.label_logarithms(ax)


def evolution_table(
    frame: pd.DataFrame, dataset: str, shares: Sequence[float] = (0, 0.1, 0.25, 0.5, 1)
) -> pd.DataFrame:
    """`draw_evolution` of test losses as numbers: medians after some shares of the training, a row for each method."""
    rows = {}
    for method, runs in by_method(frame, dataset):
        if isinstance(runs["test_curve"].iloc[0], list):
            x = curves(runs)
            at = [round(s * (x.shape[1] - 1)) for s in shares]
            step = steps_of(runs, x.shape[1])[at].astype(int)
            rows[TITLES[method]] = dict(zip(step, stats.nanmedian(x)[at]))
    return rounded(pd.DataFrame(rows).T.rename_axis("method").rename_axis("step", axis=1))


def rounded(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """The table with its numbers cut to few significant digits, those that are stable across processors."""
    return table.map(lambda v: float(f"{v:.{digits}g}") if isinstance(v, float) and np.isfinite(v) else v)


# --- Figure 9: distributions of final losses --------------------------------------------------------------------------


def draw_cdf(ax: Axes, frame: pd.DataFrame, dataset: str, column: str = "test_mse", loss: str = LOSS) -> None:
    """Draw the share of all runs, diverged ones included, whose final loss is at most x, against x.

    Args:
        ax: The panel.
        frame: The runs.
        dataset: The set.
        column: Name of the metric that is drawn.
        loss: What the horizontal axis calls the loss.
    """
    for method, runs in by_method(frame, dataset):
        x, share = stats.cdf(runs[column].to_numpy(dtype=float) * UNITS.get(dataset, 1.0))
        style = plots.method_style(method)
        ax.step(x, share, where="post", **style, markevery=max(1, len(x) // 5), markersize=5, label=TITLES[method])
    ax.set(title=of_losses(dataset), xlabel=f"final {loss}", ylabel="share of runs", xscale="log", ylim=(0, 1))
    plots.label_logarithms(ax)


def cdf_table(frame: pd.DataFrame, dataset: str, column: str = "test_mse") -> pd.DataFrame:
    """`draw_cdf` as numbers: quantiles over all runs and the share that is finite, a row for each method.

    Diverged runs count as infinite.
    """
    rows = {}
    for method, runs in by_method(frame, dataset):
        x = np.sort(runs[column].fillna(np.inf).to_numpy(dtype=float)) * UNITS.get(dataset, 1.0)
        quantiles = {f"{q} %": x[min(len(x) - 1, int(np.ceil(q / 100 * len(x))) - 1)] for q in (10, 25, 50, 75, 90)}
        rows[TITLES[method]] = quantiles | {"finite": float(np.isfinite(x).mean())}
    return rounded(pd.DataFrame(rows).T.rename_axis("method"))


# --- Figure 10: learning rates of one initialisation ------------------------------------------------------------------


def chosen(frame: pd.DataFrame, dataset: str, seed: int = 0) -> pd.DataFrame:
    """All methods' runs from one initialisation, drawn by `seed` among those that every method has.

    Methods that record no path of the learning rate do not count and are left out.
    """
    here = frame[frame["dataset"] == dataset]
    here = here[here["lr_path"].map(lambda v: isinstance(v, list))] if "lr_path" in here else here[:0]
    if here.empty:
        return here
    common = set.intersection(*(set(g["seed"]) for _, g in here.groupby("method")))
    if not common:
        return here[:0]
    picked = sorted(common)[int(np.random.default_rng(seed).integers(len(common)))]
    return here[here["seed"] == picked]


def draw_rates(ax: Axes, frame: pd.DataFrame, dataset: str, seed: int = 0) -> None:
    """Draw the learning rate in force against the step, for the runs of `chosen`.

    Of a learning rate per weight this is the mean, with the range shaded.
    """
    for method, runs in by_method(chosen(frame, dataset, seed), dataset):
        path = np.array(runs["lr_path"].iloc[0], dtype=float)
        step, style = steps_of(runs, len(path)), plots.method_style(method)
        ax.plot(step, path, **style, markevery=0.2, markersize=5, label=TITLES[method])
        if isinstance(runs.get("lr_min_path", pd.Series([None])).iloc[0], list):
            low, high = (np.array(runs[f"lr_{end}_path"].iloc[0], dtype=float) for end in ("min", "max"))
            ax.fill_between(step, low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.set(title=NAMES[dataset], xlabel="training step", ylabel="learning rate", yscale="log")


def rates_table(frame: pd.DataFrame, dataset: str, seed: int = 0) -> pd.DataFrame:
    """`draw_rates` as numbers: log10 of the learning rate at start, quarters and end, a row for each method."""
    rows = {}
    for method, runs in by_method(chosen(frame, dataset, seed), dataset):
        path = np.array(runs["lr_path"].iloc[0], dtype=float)
        at = [round(s * (len(path) - 1)) for s in (0, 0.25, 0.5, 0.75, 1)]
        rows[TITLES[method]] = dict(zip(steps_of(runs, len(path))[at].astype(int), np.log10(path[at])))
    return pd.DataFrame(rows).T.round(1).rename_axis("method").rename_axis("step", axis=1)


# --- Figure 11: the best loss so far over time ------------------------------------------------------------------------


def incumbents(runs: pd.DataFrame, times: np.ndarray) -> np.ndarray:
    """Lowest test loss of each run that its search knows at some times, `[N, T]`.

    Of a one-pass run it is the lowest so far; of Bayesian optimisation, that of the training of lowest validation loss.

    Args:
        runs: N runs of one set.
        times: T times in seconds of training (`cpu_s`).

    Returns:
        Losses in the units of `UNITS`; NaN before a run's first.
    """
    unit = UNITS.get(str(runs["dataset"].iloc[0]), 1.0)
    out = np.full((len(runs), len(times)), np.nan)
    for row, (_, run) in enumerate(runs.iterrows()):
        if run["method"] == "Bayes":
            val = np.array([np.inf if v is None else v for v in run["trial_val"]])
            test = np.array([np.nan if v is None else v for v in run["trial_test"]])
            best = np.array([np.argmin(val[: k + 1]) for k in range(len(val))])
            value, at = test[best] * unit, run["cpu_s"] * np.arange(1, len(val) + 1) / len(val)
        else:
            value = np.array([np.nan if v is None else v for v in run["incumbent_curve"]]) * unit
            at = run["cpu_s"] * np.linspace(0, 1, len(value))
        last = np.searchsorted(at, times, side="right") - 1
        out[row] = np.where(last >= 0, value[np.maximum(last, 0)], np.nan)
    return out


def _times(frame: pd.DataFrame, dataset: str) -> np.ndarray:
    longest = frame.loc[frame["dataset"] == dataset, "cpu_s"].max()
    return np.geomspace(longest / 3000, longest, 40)


def draw_incumbents(ax: Axes, frame: pd.DataFrame, dataset: str, loss: str = LOSS) -> None:
    """Draw the lowest test loss that any of a method's runs has found against the seconds that each has trained.

    The band above a curve is the bootstrap standard error of that minimum. A curve ends where its runs end.

    Args:
        ax: The panel.
        frame: The runs.
        dataset: The set.
        loss: What the vertical axis calls the loss.
    """
    times = _times(frame, dataset)
    for method, runs in by_method(frame, dataset):
        here = times[times <= runs["cpu_s"].max() * 1.15]
        x = incumbents(runs, here)
        best, error = lowest(x, axis=0), stats.bootstrap_band(x, lowest)
        style = plots.method_style(method)
        ax.plot(here, best, **style, markevery=0.25, markersize=5, label=TITLES[method])
        ax.fill_between(here, best, best + error, color=style["color"], alpha=0.15, linewidth=0)
    ax.set(
        title=of_losses(dataset),
        xlabel="seconds of training a run",
        ylabel=f"lowest {loss}",
        xscale="log",
        yscale="log",
    )
    plots.label_logarithms(ax)


def lowest(x: np.ndarray, axis: int) -> np.ndarray:
    """Return the minimum along an axis, NaN left out; NaN where there is nothing else."""
    low = np.where(np.isnan(x), np.inf, x).min(axis=axis)
    return np.where(np.isinf(low), np.nan, low)


def incumbents_table(frame: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """`draw_incumbents` as numbers, a row for each method.

    The columns are the mean seconds a run, the lowest test MSE when the method's runs end, and its standard error.
    """
    rows = {}
    for method, runs in by_method(frame, dataset):
        end = np.array([runs["cpu_s"].max()])
        x = incumbents(runs, end)
        error = float(stats.bootstrap_band(x, lowest)[0])
        rows[TITLES[method]] = {"seconds a run": float(runs["cpu_s"].mean()), "lowest": float(lowest(x, 0)[0])}
        rows[TITLES[method]]["standard error"] = error
    return rounded(pd.DataFrame(rows).T.rename_axis("method"))
