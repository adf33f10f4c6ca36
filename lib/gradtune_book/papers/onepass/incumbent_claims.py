"""What the OnePass paper claims about its Figure 11, the best test loss found so far over time, as data.

The figure draws the lowest loss of all runs of a method. A minimum of 200 runs says little about one of them, so that
the claim on speed is also put to the test on the median run.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Claim, Setting
from gradtune_book.claims.estimates import Estimate, Estimates, Missing, median_of, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.notebooks import stats
from gradtune_book.papers.onepass import uci_claims, uci_figures, uci_onepass, uci_tables
from gradtune_book.papers.onepass.uci_claims import NOTEBOOK, OURS
from gradtune_book.papers.onepass.uci_onepass import BAYES
from gradtune_book.papers.onepass.uci_tables import NAMES

_END, _MEASURES = "at the end", {"lowest": "lowest loss of all runs", "median": "median run"}


def _estimate(runs: pd.DataFrame, seconds: float, measure: str) -> Estimate:
    """Estimate the lowest loss so far of a method's runs after some seconds of training each."""
    x = uci_figures.incumbents(runs, np.array([seconds]))
    if not np.isfinite(x).any():
        raise Missing(f"no training of {runs['method'].iloc[0]} has ended by then")
    if measure == "median":
        return median_of(x[:, 0])
    low, error = uci_figures.lowest(x, axis=0), stats.bootstrap_band(x, uci_figures.lowest)
    return Estimate(float(low[0]), float(error[0]), int(np.isfinite(x).sum()))


def of_set(dataset: str, measure: str) -> Estimates:
    """Read one set's curves of Figure 11 off the records.

    The rows are methods. The columns are `at the end` of a method's own runs and, for Bayesian optimisation too, the
    time at which the runs of each OnePass method end, under that method's name.
    """
    frame = uci_claims.recorded()
    here = dict(uci_figures.by_method(frame, dataset)) if len(frame) else {}
    cells = {(m, _END): _estimate(runs, runs["cpu_s"].max(), measure) for m, runs in here.items()}
    for method in OURS:
        if {method, BAYES} <= here.keys():
            seconds = here[method]["cpu_s"].max()
            cells |= {(m, method): _estimate(here[m], seconds, measure) for m in (method, BAYES)}
    return Estimates(cells)


def printed(dataset: str) -> Estimates:
    """Return the lowest losses at the end as printed, the column "best" of Table 6."""
    best = uci_tables.published("onepass_table6.csv").loc[dataset, "best"]
    rows = pd.concat([uci_tables.published("onepass_table1.csv").loc[dataset, "best"], best])
    return Estimates({(str(m), _END): Estimate(float(v)) for m, v in rows.items()})


def _ends_lower(t: Estimates) -> Finding:
    bayes = t.at(BAYES, _END)
    return Finding(tuple(judging.below(bayes, t.at(m, _END), f"{BAYES} − {m}, {_END}") for m in OURS))


def _sooner(t: Estimates) -> Finding:
    pairs = [(t.at(m, m), t.at(BAYES, m), f"{m} − {BAYES}, when the runs of {m} end") for m in OURS]
    return Finding(tuple(judging.below(*pair) for pair in pairs))


def _setting(dataset: str, measure: str) -> Setting:
    words = f"{NAMES[dataset]}, {_MEASURES[measure]}"
    theirs = partial(printed, dataset) if measure == "lowest" else None
    return Setting("paper", words, remembered(partial(of_set, dataset, measure)), theirs)


_ITEMS = ("Figure 11",)
CLAIMS = (
    Claim(
        "onepass-11-bayes",
        "OnePass",
        "Appendix B.5",
        _ITEMS,
        "Bayesian optimisation, with its greater computation, ends with a lower loss than OnePass",
        "order",
        _ends_lower,
        NOTEBOOK,
        tuple(_setting(name, "lowest") for name in ("energy", "power")),
        note="Kin8nm is left out, where Table 6 of the paper says otherwise",
    ),
    Claim(
        "onepass-11-sooner",
        "OnePass",
        "Appendix B.5",
        _ITEMS,
        "OnePass reaches good losses much faster than Bayesian optimisation: when its runs end, the searches have "
        "found none as low",
        "order",
        _sooner,
        NOTEBOOK,
        tuple(_setting(name, measure) for measure in _MEASURES for name in uci_onepass.TABLE_SETS),
        note="the figure draws the lowest loss of all runs; the median run is our measure; seconds of one core",
    ),
)
