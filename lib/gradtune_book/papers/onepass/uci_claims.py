"""What the OnePass paper claims about its Tables 1 and 6 and Figures 8 to 11, as data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimate, Estimates, joined, mean_of, measured, median_of, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.onepass import uci_onepass, uci_tables
from gradtune_book.papers.onepass.uci_tables import NAMES, UNITS
from gradtune_book.records import store

NOTEBOOK = "onepass_uci_tables"
MEAN, MEDIAN, SPREAD, SECONDS, DIVERGED = "mean", "median", "spread", "seconds", "share diverged"
OURS = ("WD+LR", "WD+LR+M", "WD+HDLR+M")
RUNS = {"Bayes": 32}
"""Runs behind a row of the paper's tables where they are not 200."""


def averages(frame: pd.DataFrame, loss: str = "test_mse", row: str = "method") -> Estimates:
    """Estimate mean and median of final losses, and how far they spread: the mean distance from the median.

    Args:
        frame: The runs. Those that diverged do not count, as in the paper's averages.
        loss: Column of the final loss.
        row: Column that names the rows.
    """
    if frame.empty:
        return Estimates()
    middle = frame.groupby(row)[loss].transform("median")
    out = frame.assign(**{MEAN: frame[loss], MEDIAN: frame[loss], SPREAD: (frame[loss] - middle).abs()})
    return joined(measured(out, row, [MEAN, SPREAD]), measured(out, row, [MEDIAN], median_of))


def of_set(dataset: str) -> Estimates:
    """Read one set's runs off the records."""
    frame = recorded()
    here = frame[frame["dataset"] == dataset] if len(frame) else frame
    if here.empty:
        return Estimates()
    losses = here.assign(test_mse=here["test_mse"] * UNITS.get(dataset, 1.0))
    seconds = here.assign(**{SECONDS: here["cpu_s"]})
    return joined(averages(losses), measured(seconds, "method", [SECONDS], median_of))


@remembered
def recorded() -> pd.DataFrame:
    """Return the recorded runs of the chapter's tables."""
    return uci_onepass.main_runs(store.load(uci_onepass.STUDY, "paper"))


def printed_averages(table: pd.DataFrame, runs: Callable[[str], int]) -> Estimates:
    """Return averages as printed, with their printed errors; the spread is the standard deviation that these imply.

    Args:
        table: Result of `uci_tables.published`, the rows of one set by method.
        runs: Function from a method to its number of runs in the paper.
    """
    cells = {}
    for method, row in table.iterrows():
        name, n = str(method), runs(str(method))
        cells[name, MEAN] = Estimate(row["mean"], row["mean_error"], n)
        cells[name, MEDIAN] = Estimate(row["median"], row["median_error"], n, statistic="median")
        cells[name, SPREAD] = Estimate(row["mean_error"] * n**0.5)
    return Estimates(cells)


def printed_set(dataset: str) -> Estimates:
    """Return Tables 1 and 6 as printed for one set."""
    both = pd.concat([uci_tables.published(f"onepass_table{n}.csv") for n in (1, 6)])
    return printed_averages(both.loc[dataset], lambda method: RUNS.get(method, 200))


def across_sets() -> Estimates:
    """Read the medians of all sets off the records, a row for each set and a column for each method."""
    frame = recorded()
    if frame.empty:
        return Estimates()
    cells = {}
    for (dataset, method), runs in frame.groupby(["dataset", "method"], sort=False):
        if runs["test_mse"].notna().any():
            losses = runs["test_mse"] * UNITS.get(str(dataset), 1.0)
            cells[NAMES[str(dataset)], str(method)] = median_of(losses)
    lost = frame.groupby("method", sort=False)["test_mse"]
    cells |= {(DIVERGED, str(method)): mean_of(np.isnan(x).astype(float)) for method, x in lost}
    return Estimates(cells)


def printed_sets() -> Estimates:
    """Return the medians of Table 1 as printed, a row for each set and a column for each method."""
    sets = {name: printed_set(name) for name in uci_onepass.TABLE_SETS}
    return Estimates(
        {(NAMES[s], m): c for s, t in sets.items() for (m, column), c in t.cells.items() if column == MEDIAN}
    )


_CURVES = ("Figure 8", "Figure 9")
TABLE_SETS = tuple(
    Setting("paper", NAMES[s], remembered(partial(of_set, s)), partial(printed_set, s), ("Table 1", *_CURVES))
    for s in uci_onepass.TABLE_SETS
)
OTHER_SETS = tuple(
    Setting("paper", NAMES[s], remembered(partial(of_set, s)), None, _CURVES) for s in uci_onepass.OTHER_SETS
)
WITH_BAYES = tuple(Setting(s.scale, s.data, s.ours, s.paper, ("Table 6",)) for s in TABLE_SETS)
TIMED = tuple(Setting(s.scale, s.data, s.ours) for s in TABLE_SETS)
ALL_SETS = (Setting("paper", "eight sets", remembered(across_sets), printed_sets, _CURVES),)


def _below(first: tuple[str, ...], second: tuple[str, ...]) -> Check:
    return lambda t: judging.all_below(t, first, second, MEAN, MEDIAN)


def _apart(t: Estimates) -> Finding:
    pairs = [(t.at("Lorraine", c), t.at("Random", c), f"Lorraine − Random, {c}") for c in (MEAN, MEDIAN)]
    return Finding(tuple(judging.apart(*each) for each in pairs))


def _half_the_spread(t: Estimates) -> Finding:
    baydin, random = t.at("Baydin", SPREAD), t.at("Random", SPREAD)
    return Finding((judging.below(baydin, random, "Baydin − half of Random, spread", factor=0.5),))


def _close_to_exact(t: Estimates) -> Finding:
    found = []
    for c in (MEAN, MEDIAN):
        exact = t.at("Diff-through-Opt", c)
        found.append(judging.near(t.at("WD+LR+M", c), exact, 0.1 * exact.value, f"WD+LR+M − Diff-through-Opt, {c}"))
    return Finding(tuple(found))


def _thrice(t: Estimates) -> Finding:
    ours, random = t.at("WD+LR+M", SECONDS), t.at("Random", SECONDS)
    return Finding((judging.below(ours, random, "WD+LR+M − 3 × Random, median seconds", factor=3.0),))


def _on_some(first: str, second: str, t: Estimates) -> Finding:
    sets = [row for row in t.rows(first) if row != DIVERGED]
    what = f"{first} − {second}, median, {{}}"
    return Finding(tuple(judging.below(t.at(s, first), t.at(s, second), what.format(s)) for s in sets), every=False)


def _diverges_more(t: Estimates) -> Finding:
    few, many = t.at(DIVERGED, "WD+LR+M"), t.at(DIVERGED, "WD+HDLR+M")
    return Finding((judging.below(few, many, "WD+LR+M − WD+HDLR+M, share of diverged runs"),))


def _claim(
    name: str,
    place: str,
    statement: str,
    check: Check,
    settings: tuple[Setting, ...] = (*TABLE_SETS, *OTHER_SETS),
    kind: Kind = "order",
    note: str = "",
) -> Claim:
    return Claim(f"onepass-1-{name}", "OnePass", place, (), statement, kind, check, NOTEBOOK, settings, note=note)


CLAIMS = (
    _claim(
        "random-xlr", "Section 4.1", "Random (× LR) averages worse than Random", _below(("Random",), ("Random-xLR",))
    ),
    _claim(
        "three-batched",
        "Section 4.1",
        "Random (3-batched) does not robustly beat WD+LR+M: mean or median is worse",
        lambda t: judging.any_below(t, "WD+LR+M", "Random-3-batched", MEAN, MEDIAN),
    ),
    _claim(
        "lorraine",
        "Section 4.1",
        "Lorraine is indistinguishable from Random",
        _apart,
        kind="equality",
        note="it holds where the runs show no difference",
    ),
    _claim("baydin", "Section 4.1", "Baydin averages better than Random", _below(("Baydin",), ("Random",))),
    _claim(
        "baydin-spread",
        "Section 4.1",
        "Baydin's losses vary much less than Random's",
        _half_the_spread,
        kind="ratio",
        note="much less: by half; the paper's spread follows from its standard errors",
    ),
    _claim(
        "scalar",
        "Section 4.1",
        "WD+LR and WD+LR+M average better than Random, Lorraine and Baydin",
        _below(("WD+LR", "WD+LR+M"), ("Random", "Lorraine", "Baydin")),
    ),
    _claim("momentum", "Section 4.1", "WD+LR+M averages better than WD+LR", _below(("WD+LR+M",), ("WD+LR",))),
    _claim(
        "exact",
        "Section 4.1",
        "WD+LR+M is close to the exact Diff-through-Opt",
        _close_to_exact,
        kind="equality",
        note="close: within a tenth of its averages",
    ),
    _claim(
        "per-weight-better",
        "Section 4.1",
        "learning rates per weight (WD+HDLR+M) are better than WD+LR+M on some sets",
        partial(_on_some, "WD+HDLR+M", "WD+LR+M"),
        ALL_SETS,
    ),
    _claim(
        "per-weight-worse",
        "Section 4.1",
        "learning rates per weight (WD+HDLR+M) are worse than WD+LR+M on other sets",
        partial(_on_some, "WD+LR+M", "WD+HDLR+M"),
        ALL_SETS,
    ),
    _claim(
        "per-weight-diverges",
        "Section 4.1",
        "WD+HDLR+M diverges more often than WD+LR+M",
        _diverges_more,
        ALL_SETS,
        note="the paper prints no numbers",
    ),
    _claim(
        "bayes",
        "Appendix B.5",
        "the averages of OnePass fall short of Bayesian optimisation",
        _below(("Bayes",), OURS),
        WITH_BAYES,
        note="another program for Bayesian optimisation than the paper's",
    ),
    _claim(
        "seconds",
        "Abstract",
        "WD+LR+M takes at most three times as long as plain training",
        _thrice,
        TIMED,
        "ratio",
        "seconds of one processor core, not of the paper's GPU",
    ),
)
