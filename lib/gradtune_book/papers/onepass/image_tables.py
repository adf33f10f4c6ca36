"""What the chapter on Fashion-MNIST and its claims read off the runs of the study `image_onepass`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from gradtune_book.notebooks import plots
from gradtune_book.papers.onepass import image_horizon, image_onepass, uci_figures, uci_tables
from gradtune_book.papers.onepass.image_onepass import TIMES
from gradtune_book.papers.onepass.uci_onepass import BAYES, THREE
from gradtune_book.papers.onepass.uci_tables import TITLES
from gradtune_book.papers.onepass.uci_training import SETTINGS
from gradtune_book.records import store

CE, ERROR, MS, RATIO = "cross-entropy", "error", "milliseconds a step", "in steps of Random"
WITHOUT, WITH = "without batch normalisation", "with batch normalisation"
"""Halves of Table 9, by their names in the file of published numbers."""

TRAININGS = {THREE: 3, BAYES: 30}
"""Trainings of a run where it is not one."""


def joined(frame: pd.DataFrame, horizon: pd.DataFrame) -> pd.DataFrame:
    """Return trainings and searches with those of `image_horizon` that start from the same draws.

    Args:
        frame: Runs of `image_onepass`.
        horizon: Runs of `image_horizon` of the same scale.
    """
    own = frame[frame["method"] != TIMES] if len(frame) else frame
    if horizon.empty:
        return own
    length = image_onepass.SIZES["paper"].steps
    same = horizon[(horizon["steps"] == length) & horizon["method"].isin(image_horizon.SHORT)]
    return pd.concat([same.assign(batch_norm=False, trials=1), own], ignore_index=True)


def of_horizons() -> pd.DataFrame:
    """Return the recorded runs of `image_horizon` at the paper's size, on all sets."""
    return store.load(image_horizon.STUDY.name, "paper")


def recorded() -> pd.DataFrame:
    """Return the recorded trainings and searches at the paper's size."""
    return joined(store.load(image_onepass.STUDY.name, "paper"), of_horizons())


def one_pass(frame: pd.DataFrame) -> pd.DataFrame:
    """Return single trainings without batch norm: no searches, no times."""
    own = plain(frame)
    return own[~own["method"].isin((BAYES, TIMES))] if len(own) else own


def plain(frame: pd.DataFrame, dataset: str = "fashion") -> pd.DataFrame:
    """Return the runs on a set without batch norm."""
    return frame[(frame["dataset"] == dataset) & ~frame["batch_norm"].astype(bool)] if len(frame) else frame


def times(frame: pd.DataFrame) -> pd.DataFrame:
    """Return milliseconds of a step and their ratio to plain training, a row for each method and repetition.

    Args:
        frame: Runs of `image_onepass`.
    """
    if frame.empty or TIMES not in set(frame["method"]):
        return pd.DataFrame(columns=["method", "seed", MS, RATIO])
    rows = []
    for _, each in frame[frame["method"] == TIMES].iterrows():
        rows += [(m, each["seed"], each[f"ms_{m}"], each[f"ms_{m}"] / each["ms_Random"]) for m in SETTINGS]
    return pd.DataFrame(rows, columns=["method", "seed", MS, RATIO])


def times_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return medians of `times` over repetitions, with the lowest and highest ratio."""
    groups = times(frame).groupby("method", sort=False)
    out = groups[[MS, RATIO]].median().assign(lowest=groups[RATIO].min(), highest=groups[RATIO].max())
    return out.assign(repetitions=groups.size()).rename(index=TITLES).rename_axis("method")


def beside(frame: pd.DataFrame, measure: str, *files: str) -> pd.DataFrame:
    """Return one measure's table as text, ours beside the paper's.

    Args:
        frame: Runs on one set.
        measure: `CE` or `ERROR`.
        *files: The paper's tables; none leaves ours alone.
    """
    theirs = pd.concat([uci_tables.published(f) for f in files]) if files else image_horizon.summary(frame).iloc[:0]
    theirs = theirs.rename(index={"Fashion-MNIST": measure}, level="dataset")
    return uci_tables.beside(image_horizon.summary(frame), theirs[~theirs.index.duplicated()], measure)


def normalised(frame: pd.DataFrame) -> pd.DataFrame:
    """Return Table 9, ours and the paper's: cross-entropies without batch norm and with it."""
    theirs, parts = uci_tables.published("onepass_table9.csv"), []
    for half, norm, more in ((WITHOUT, False, ""), (WITH, True, ", batch norm")):
        here = frame[frame["batch_norm"].astype(bool) == norm] if len(frame) else frame
        if len(here):
            ours = uci_tables.summary(here.assign(dataset=half), loss="test_ce")
            table = uci_tables.beside(ours, theirs, half)
            parts.append(table.set_axis([f"{method}{more}" for method in table.index]))
    return pd.concat(parts) if parts else pd.DataFrame()


def timed(frame: pd.DataFrame, every: pd.DataFrame) -> pd.DataFrame:
    """Return the runs for Figure 11: with their lowest loss so far, and seconds that can be compared.

    A run's seconds are its steps times the median milliseconds of its method's step, which were measured in turns.

    Args:
        frame: Runs without batch norm on one set.
        every: Runs of `image_onepass`, with its times.
    """
    ms = times(every).groupby("method")[MS].median()
    if frame.empty or ms.empty:
        return frame.iloc[:0]
    ms = pd.concat([ms, pd.Series({m: n * ms["Random"] for m, n in TRAININGS.items()})])

    def lowest(row: pd.Series) -> list[float] | float:
        if not isinstance(row["ce_curve"], list):
            return np.nan
        return np.fmin.accumulate([np.nan if v is None else v for v in row["ce_curve"]]).tolist()

    seconds = frame["method"].map(ms) * frame["steps"] / 1e3
    curves = pd.Series([lowest(row) for _, row in frame.iterrows()], index=frame.index, dtype=object)
    return frame.assign(cpu_s=seconds, incumbent_curve=curves)


def draw_times(ax: Axes, frame: pd.DataFrame) -> None:
    """Draw the ratios of Figures 5a and 14: a dot a repetition, dashed twice the time of plain training."""
    found = times(frame)
    names = [m for m in TITLES if m in set(found["method"])]
    for k, name in enumerate(names):
        style = plots.method_style(name)
        x = found.loc[found["method"] == name, RATIO]
        ax.plot(x, [k] * len(x), linestyle="", marker=style.get("marker", "o"), color=style["color"], markersize=6)
    ax.axvline(2.0, color="0.4", linestyle="--", linewidth=1)
    ax.set_yticks(range(len(names)), [TITLES[n] for n in names])
    ax.set(xlabel="processor's time of a step, plain training = 1", xlim=(0, None))
    ax.invert_yaxis()


def draw_distributions(axes: Sequence[Axes], frame: pd.DataFrame, dataset: str) -> None:
    """Draw Figures 12a and 13a: distributions of final cross-entropies (left) and of errors (right)."""
    uci_figures.draw_cdf(axes[0], frame, dataset, "test_ce", "test cross-entropy")
    uci_figures.draw_cdf(axes[1], frame, dataset, "test_error", "share of test errors")


def draw_normalised(axes: Sequence[Axes], frame: pd.DataFrame, dataset: str) -> None:
    """Draw Figure 15: distributions of final cross-entropies without batch norm (left) and with it (right)."""
    for ax, norm in zip(axes, (False, True)):
        here = frame[frame["batch_norm"].astype(bool) == norm] if len(frame) else frame
        uci_figures.draw_cdf(
            ax, here[here["method"] != BAYES] if len(here) else here, dataset, "test_ce", "test cross-entropy"
        )
        ax.set_title(WITH if norm else WITHOUT)


def draw_evolution(axes: Sequence[Axes], frame: pd.DataFrame, dataset: str, every: pd.DataFrame) -> None:
    """Draw Figures 5b and 5c: the median cross-entropy over steps (left), the lowest over seconds (right)."""
    uci_figures.draw_evolution(axes[0], frame, dataset, "ce_curve", "test cross-entropy")
    found = timed(frame, every)
    if len(found):
        uci_figures.draw_incumbents(axes[1], found, dataset, "test cross-entropy")


def gap_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return by how much batch norm changes mean and median cross-entropies, in per cent, a row for each method."""
    rows = {}
    for method in [m for m in TITLES if len(frame) and m in set(frame["method"]) and m != BAYES]:
        here = frame[frame["method"] == method]
        off, on = (here.loc[here["batch_norm"].astype(bool) == b, "test_ce"].dropna() for b in (False, True))
        if len(off) and len(on):
            change = {
                f"{n}, change (%)": 100 * (f(on) / f(off) - 1) for n, f in (("mean", np.mean), ("median", np.median))
            }
            rows[TITLES[method]] = {"runs without": len(off), "runs with": len(on), **change}
    return uci_figures.rounded(pd.DataFrame.from_dict(rows, orient="index").rename_axis("method"))
