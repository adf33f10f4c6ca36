"""Tables and figures of the study `fds_sharing_mse`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradtune_book.notebooks import plots
from gradtune_book.papers import sharing
from gradtune_book.papers.fds import tables
from gradtune_book.papers.fds.sharing_mse import FIGURE_2_LR, GREEDY, NON_GREEDY
from gradtune_book.papers.series import whole
from gradtune_book.paths import published_root

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Hypergradients of one setting.

    Attributes:
        name: name of the setting.
        exact: exact hypergradients `[S, T]`.
        greedy: greedy hypergradients `[S, T]`, maybe of fewer seeds; None where they are not computed.
    """

    name: str
    exact: Array
    greedy: Array | None

    @property
    def noise(self) -> sharing.Noise:
        return sharing.measured(self.exact)


def samples(frame: pd.DataFrame, data: str) -> list[Sample]:
    """Return the settings computed on a set: Figure 2's first, the smaller learning rate of Figure 6 after it.

    Seeds without a finite hypergradient at every step are left out of a sample. A setting with fewer than two exact
    seeds is left out.

    Args:
        frame: runs of `fds_sharing_mse`.
        data: name of the set.
    """
    found = []
    for lr, runs in sorted(frame[frame["data"] == data].groupby("lr"), key=lambda pair: -pair[0]):
        parts = {m: _finite(whole(g, "hypergradient")) for m, g in runs.groupby("method")}
        if NON_GREEDY in parts and len(parts[NON_GREEDY]) > 1:
            figure = "Figure 2" if np.isclose(lr, FIGURE_2_LR) else "Figure 6"
            name = f"{figure}: learning rate from {lr:g}"
            greedy = parts.get(GREEDY)
            found.append(Sample(name, parts[NON_GREEDY], greedy if greedy is not None and len(greedy) else None))
    return found


def _finite(g: Array) -> Array:
    return g[np.isfinite(g).all(axis=1)]


def curves(sample: Sample, points: int = 40) -> pd.DataFrame:
    """Return the mean squared errors against the mean exact hypergradient by window length.

    Args:
        sample: the setting.
        points: number of window lengths.

    Returns:
        A row per number n of windows, indexed by `W = T / n`. The columns are `non-greedy` and `greedy`, the errors of
        both kinds of hypergradients; `bound`, that of Theorem 4.1; and `with mean c`, which puts the mean correlation
        in place of the largest one: no bound, but its shape without the pessimism.
    """
    noise, steps = sample.noise, sample.exact.shape[1]
    mean_c = sharing.mean_correlation(sample.exact)
    rows = []
    for n in sharing.counts(steps, points):
        row = {"W": steps / n, "non-greedy": sharing.squared_error(sample.exact, noise.mu, n)}
        if sample.greedy is not None:
            row["greedy"] = sharing.squared_error(sample.greedy, noise.mu, n)
        row["bound"] = sharing.bound(noise.variance, noise.epsilon, noise.c, n)
        row["with mean c"] = sharing.bound(noise.variance, noise.epsilon, mean_c, n)
        rows.append(row)
    return pd.DataFrame(rows).set_index("W")


def errors(found: Sequence[Sample], points: int = 8) -> pd.DataFrame:
    """Return `curves` at a few windows for each setting, with windows as text: a table for a page.

    Args:
        found: settings, by `samples`.
        points: number of window lengths.
    """
    parts = {sample.name: curves(sample, points).rename(index="{:.3g}".format) for sample in found}
    return pd.concat(parts, names=["setting", "W"])


def numbers(found: Sequence[Sample]) -> pd.DataFrame:
    """Return the theorem's quantities and what sharing achieves, a column per setting.

    "drift of halves" is epsilon of the mean over half of the seeds, averaged over 20 draws. Where it is much larger
    than epsilon, epsilon is noise of the mean.

    Args:
        found: settings, by `samples`.
    """
    rows = {}
    for sample in found:
        noise, table = sample.noise, curves(sample)
        best = float(table["non-greedy"].idxmin())
        rows[sample.name] = {
            "seeds": len(sample.exact),
            "epsilon": noise.epsilon,
            "drift of halves": _halved(sample.exact),
            "largest c": noise.c,
            "mean |c|": sharing.mean_correlation(sample.exact),
            "MSE at W = 1": float(table["non-greedy"].iloc[0]),
            "best W": best,
            "MSE at best W": float(table["non-greedy"].min()),
            "best W of the bound": float(table["bound"].idxmin()),
        }
        if sample.greedy is not None:
            rows[sample.name]["greedy MSE at W = 1"] = float(table["greedy"].iloc[0])
            rows[sample.name]["greedy MSE, least"] = float(table["greedy"].min())
    return pd.DataFrame(rows, dtype=float).rename_axis("quantity")


def _halved(g: Array, draws: int = 20) -> float:
    rng, half = np.random.default_rng(0), max(2, len(g) // 2)
    return float(np.mean([sharing.measured(rng.permutation(g)[:half]).epsilon for _ in range(draws)]))


def per_step(sample: Sample) -> pd.DataFrame:
    """Return mean and standard deviation over the seeds at seven steps, as a table of the left panels."""
    steps = np.linspace(0, sample.exact.shape[1] - 1, 7).round().astype(int)
    columns = {"exact, mean": sample.exact.mean(0), "exact, s.d.": sample.exact.std(0)}
    if sample.greedy is not None:
        columns |= {"greedy, mean": sample.greedy.mean(0), "greedy, s.d.": sample.greedy.std(0)}
    return pd.DataFrame({n: v[steps] for n, v in columns.items()}, index=pd.Index(steps, name="step"))


def published() -> pd.DataFrame:
    """Return what the paper's text says about Figure 2."""
    return pd.read_csv(published_root() / "fds_figure2.csv").set_index("quantity")[["value", "source"]]


def bound_of_the_paper(correlations: Sequence[float] = (0.0, 0.5, 0.9)) -> pd.DataFrame:
    """Return the bound of Theorem 4.1 with the epsilon, variance and T that the text gives for Figure 2.

    Args:
        correlations: values of c, which the text does not give.

    Returns:
        A row per c: the window where the bound is lowest, and the bound there, at one step and at the figure's best W.
    """
    value = published()["value"]
    steps, w = int(value["horizon"]), value["window of the lowest MSE"]
    variance = np.full(steps, value["variance of the hypergradients"])
    epsilon = value["drift of the mean hypergradient"]
    rows = {}
    for c in correlations:
        bounds = {steps / n: sharing.bound(variance, epsilon, c, n) for n in sharing.counts(steps, 200)}
        best = min(bounds, key=lambda k: bounds[k])
        rows[c] = {"best W": best, "bound there": bounds[best], "W = 1": bounds[1.0], f"W = {w:.0f}": bounds[w]}
    return pd.DataFrame(rows).T.rename_axis("c")


# --- Figure 5 ---------------------------------------------------------------------------------------------------------


def profile_errors(steps: int, count: int, epsilon: float, variance: float, c: float, seed: int = 0) -> pd.DataFrame:
    """Return expected mean squared errors of drift profiles by window length, in closed form (Figure 5).

    Args:
        steps: T.
        count: number of profiles. The first drifts most, the second not at all.
        epsilon: largest drift of mu from a step to the next.
        variance: variance of every step.
        c: correlation of any two steps.
        seed: seed of the other profiles.

    Returns:
        A row per window length W. The columns are the numbers of the profiles, from 0, and `bound` (Theorem 4.1).
    """
    mu = sharing.profiles(steps, count, epsilon, seed)
    covariance = sharing.equal_correlation(np.full(steps, variance), c)
    numbers_of_windows = sharing.counts(steps)
    table = {k: [sharing.expected_error(m, covariance, n) for n in numbers_of_windows] for k, m in enumerate(mu)}
    bound = [sharing.bound(np.full(steps, variance), epsilon, c, n) for n in numbers_of_windows]
    index = pd.Index([steps / n for n in numbers_of_windows], name="W")
    return pd.DataFrame(table | {"bound": bound}, index=index)


# --- figures ----------------------------------------------------------------------------------------------------------

_STYLES = {m: tables.line(m) for m in (NON_GREEDY, GREEDY)} | {
    "bound": {"color": "black", "linestyle": ":"},
    "with mean c": {"color": "#949494", "linestyle": (0, (6, 2, 1, 2))},
}


def draw_seeds(ax: Axes, g: Array, mu: Array, title: str) -> None:
    """Draw every seed's hypergradients (thin), their own mean, and the mean exact one (dotted).

    Args:
        ax: axes to draw on.
        g: hypergradients `[S, T]`.
        mu: mean exact hypergradient `[T]`.
        title: "non-greedy" or "greedy".
    """
    ax.plot(g.T, color="#949494", linewidth=0.4, alpha=0.5)
    ax.plot(g.mean(0), color=_STYLES[title]["color"], label=title)
    ax.plot(mu, color="black", linestyle=":", label=r"$\mu$: mean exact")
    low, high = np.quantile(g, [0.005, 0.995])
    room = 0.15 * (high - low)
    ax.set(xlabel="training step", title=title, ylim=(min(low, mu.min()) - room, max(high, mu.max()) + room))
    ax.set_ylabel(r"$dL_V/d\alpha_t$")


def draw_errors(ax: Axes, table: pd.DataFrame) -> None:
    """Draw mean squared errors by window length, both axes logarithmic, and the best window.

    Args:
        ax: axes to draw on.
        table: result of `curves`.
    """
    for name in table:
        ax.plot(table.index, table[name], label=name, **_STYLES[str(name)])
    best = table["non-greedy"].idxmin()
    ax.axvline(best, color=_STYLES[NON_GREEDY]["color"], linewidth=0.8)
    ax.set(xscale="log", yscale="log", title=f"best W = {best:.3g}")
    ax.set(xlabel="window W [steps] (log scale)", ylabel="MSE (log scale)")


def draw_profiles(axes: Sequence[Axes], steps: int, epsilon: float, table: pd.DataFrame, seed: int = 0) -> None:
    """Draw Figure 5: drift profiles, and their expected errors by window; the extremes in colour.

    Args:
        axes: axes of the profiles and of the errors.
        steps: T.
        epsilon: largest drift.
        table: result of `profile_errors` for the same `steps`, `epsilon` and `seed`.
        seed: seed of the profiles.
    """
    count = table.shape[1] - 1
    mu = sharing.profiles(steps, count, epsilon, seed)
    styles = {0: ("#0173b2", "largest drift"), 1: ("#de8f05", "no drift")}  # no methods: colours of their own
    for k in (*range(2, count), 0, 1):
        colour, label = styles.get(k, ("#949494", "random drift" if k == 2 else None))
        width: dict[str, Any] = {"linewidth": 1.8 if k < 2 else 0.7, "zorder": 3 if k < 2 else 1}
        axes[0].plot(mu[k], color=colour, label=label, **width)
        axes[1].plot(table.index, table[k], color=colour, label=label, **width)
    axes[1].plot(table.index, table["bound"], color="black", linestyle=":", zorder=4, label="bound of Theorem 4.1")
    limit = 3 * np.abs(mu[2:]).max()
    axes[0].set(xlabel="step", ylabel=r"$\mu_t$", ylim=(-limit, limit))
    axes[1].set(xscale="log", yscale="log", xlabel="window W [steps] (log scale)", ylabel="expected MSE (log scale)")


def figure_two(sample: Sample) -> Figure:
    """Draw Figure 2: hypergradients of every seed, exact and greedy, and their errors by window."""
    fig, axes = plots.panels(3, width=4.0, height=3.4)
    assert sample.greedy is not None, "Figure 2 has a greedy panel"
    draw_seeds(axes[0], sample.exact, sample.noise.mu, NON_GREEDY)
    draw_seeds(axes[1], sample.greedy, sample.noise.mu, GREEDY)
    draw_errors(axes[2], curves(sample))
    tables.legend(fig)
    return fig


def figure_five(steps: int, epsilon: float, table: pd.DataFrame) -> Figure:
    """Draw Figure 5: drift profiles and their expected errors (`draw_profiles`)."""
    fig, axes = plots.panels(2, width=4.2, height=3.3)
    draw_profiles(axes, steps, epsilon, table)
    tables.legend(fig)
    return fig


def figure_six(sample: Sample) -> Figure:
    """Draw Figure 6: exact hypergradients of every seed, and their errors by window."""
    fig, axes = plots.panels(2, width=4.2, height=3.4)
    draw_seeds(axes[0], sample.exact, sample.noise.mu, NON_GREEDY)
    draw_errors(axes[1], curves(sample))
    tables.legend(fig)
    return fig
