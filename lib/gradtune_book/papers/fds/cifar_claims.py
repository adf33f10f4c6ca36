"""What the FDS paper claims about its Figures 1, 4 and 7, the experiments on CIFAR-10, as data."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimate, Estimates, Missing, joined, mean_of, measured, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.fds import cifar_regret, cifar_tables
from gradtune_book.papers.fds.cifar_regret import FDS, FULL, GRID, HD, SEARCHES
from gradtune_book.records import store

ACCURACY, IN_TIME, HOURS = "test accuracy (%)", "test accuracy (%) in the time of FDS", "hours to zero regret"
_BEST = "best of the grid"
_STAYS = "seeds in which some hypergradient does not shrink"


def cifar_estimates() -> Estimates:
    """Read Figures 1 and 4 off the records, over seeds; the grid's best setting over its trainings."""
    frame = store.load(cifar_regret.STUDY, "laptop")
    if frame.empty:
        return Estimates()
    found = measured(frame[frame["method"] != GRID].assign(**{ACCURACY: 100 * frame["accuracy"]}), "method", [ACCURACY])
    cells: dict[tuple[str, str], Estimate] = {}
    if store.coverage(cifar_regret.STUDY, "laptop").eval("recorded == of").get(GRID, False):
        _, setting = cifar_tables.best_of_grid(frame)
        chosen = np.logical_and.reduce([frame[name] == value for name, value in setting.items()])
        cells[_BEST, ACCURACY] = mean_of(100 * frame.loc[chosen & (frame["method"] == GRID), "accuracy"])
    budget = frame.loc[frame["method"] == FDS, "seconds"].mean()
    for method in (FDS, *SEARCHES):
        runs = frame[frame["method"] == method]
        if len(runs) and np.isfinite(budget):
            worth = cifar_tables.worth_at(runs, [budget if method != FDS else np.inf], "seconds")
            cells[method, IN_TIME] = mean_of(100 * np.nan_to_num(worth[:, 0]))
    return joined(found, Estimates(cells, counts=_unsettled(frame[frame["method"] == FDS])))


def _unsettled(runs: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Count the seeds in which the hypergradient of some hyperparameter does not shrink.

    Its mean size in the second half of the outer steps is no smaller than in the first half. The first outer step,
    which is shorter than the others and starts where nothing is learned, does not count.
    """
    sizes = [cifar_tables.hypergradients(runs.iloc[[k]], FDS).abs().iloc[1:] for k in range(len(runs))]
    halves = [(size.iloc[: len(size) // 2].mean(), size.iloc[len(size) // 2 :].mean()) for size in sizes]
    return {_STAYS: (sum(bool((after >= before).any()) for before, after in halves), len(halves))}


def cifar_printed() -> Estimates:
    """Return what Section 5.4 says in numbers about Figure 1."""
    table = cifar_tables.published()["value"]
    hours = table[[metric == "hours_to_zero_regret" for _, metric in table.index]].dropna()
    return Estimates({(str(method), HOURS): Estimate(float(h)) for (method, _), h in hours.items()})


_CIFAR = (Setting("laptop", "a part of CIFAR-10, a smaller net", remembered(cifar_estimates), cifar_printed),)
_BY_TEST = "our grid's best is chosen by test accuracy, the paper's by validation"


def _zero_regret(method: str, t: Estimates) -> Finding:
    return judging.all_below(t, [_BEST], [method], ACCURACY)


def _matches(t: Estimates) -> Finding:
    ours, best = t.at(FULL, ACCURACY), t.at(_BEST, ACCURACY)
    return Finding((judging.near(ours, best, 1.0, f"{FULL} − {_BEST}, {ACCURACY}"),))


def _sooner(t: Estimates) -> Finding:
    rows = [row for row in t.rows(HOURS) if row != FDS]
    if not rows:
        raise Missing("the searches have about the time of FDS here, and too few trainings to get there")
    what = f"FDS − {{}} / 10, {HOURS}"
    return Finding(tuple(judging.below(t.at(FDS, HOURS), t.at(r, HOURS), what.format(r), factor=0.1) for r in rows))


def _ahead_of_searches(t: Estimates) -> Finding:
    return judging.all_below(t, SEARCHES, [FDS], IN_TIME)


def _five_points(t: Estimates) -> Finding:
    lower = t.at(HD, ACCURACY).moved(5.0)
    return Finding((judging.below(lower, t.at(FDS, ACCURACY), f"{HD} + 5 − FDS, {ACCURACY}"),))


def _of_cifar(
    name: str, place: str, figure: str, statement: str, check: Check, kind: Kind = "order", note: str = ""
) -> Claim:
    name, notebook = f"fds-1-{name}", "fds_cifar_regret"
    return Claim(name, "FDS", place, (figure,), statement, kind, check, notebook, _CIFAR, note=note)


CLAIMS = (
    _of_cifar(
        "zero-regret",
        "Section 5.4",
        "Figure 1",
        "FDS reaches zero regret: it is no worse than the best setting of the grid",
        partial(_zero_regret, FDS),
        note=_BY_TEST,
    ),
    _of_cifar(
        "sooner",
        "Section 5.4",
        "Figure 1",
        "FDS reaches zero regret about twenty times sooner than the next best method",
        _sooner,
        "ratio",
        "at least ten times",
    ),
    _of_cifar(
        "searches",
        "Section 5.4",
        "Figure 1",
        "in the time of FDS no black-box search has as good an answer",
        _ahead_of_searches,
        note="an answer not yet given counts as 0",
    ),
    _of_cifar(
        "greedy",
        "Section 5.4",
        "Figure 1",
        "FDS outperforms online greedy differentiation (HD) by about ten points",
        _five_points,
        "ratio",
        "by at least five",
    ),
    _of_cifar(
        "full-greedy",
        "Section 5.3",
        "Figure 4",
        "what FDS learns in ten full outer steps is more accurate than online greedy differentiation (HD)",
        lambda t: judging.all_below(t, [HD], [FULL], ACCURACY),
    ),
    _of_cifar(
        "match",
        "Figure 4, caption",
        "Figure 4",
        "FDS matches the performance of the best known hyperparameters",
        _matches,
        "equality",
        f"within one point; {_BY_TEST}",
    ),
    _of_cifar(
        "raw",
        "Figure 7, caption",
        "Figure 7",
        "hypergradients fail to always converge to zero when the accuracy stops improving",
        lambda t: Finding((judging.share(t.count(_STAYS), 1, _STAYS),)),
        "count",
        "in every seed some hyperparameter's is no smaller in the second half of the outer steps than in the first; "
        "where they are noise at the end, as they are here, that is likely",
    ),
)
