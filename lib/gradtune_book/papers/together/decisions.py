"""Which way to take in which case, as the records of the study `together` have it.

A case is a set of ways that it allows and of problems that it is about. The way to take is the one with the largest
share of runs near the best fixed setting (`comparison_tables.NEAR`), at equal processor time; of equal ones, the one of
lower median ratio. So the table says nothing that the records do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from gradtune_book.papers.together import comparison, ways
from gradtune_book.papers.together.comparison_tables import NEAR
from gradtune_book.papers.together.ways import Way
from gradtune_book.tasks import problems


@dataclass(frozen=True)
class Case:
    """One case of the table.

    Attributes:
        words: The case in words.
        allows: Whether it allows a way, by name.
        tunes: What is tuned; None for what each way usually tunes.
        problem: The problem that it is about; None for all but the stream.
    """

    words: str
    allows: Callable[[str, Way], bool]
    tunes: str | None = None
    problem: str | None = None


_COLUMNS = ("oho", "unroll_k", "clip_r", "greedy", "fds", "per_step")  # a column or a state for each value or step
_WHOLE = ("fds", "per_step")  # a training, then an update by its exact hypergradient

CASES = (
    Case("a usual rate may be good enough", lambda name, way: way.kind == "optimiser" and not way.starts),
    Case("nothing is known of the rate", lambda name, way: True),
    Case("the same, without validation data", lambda name, way: not way.validates),
    Case("a rate is given, and may be far off", lambda name, way: way.kind == "gradients" and way.starts),
    Case("the same, in little memory", lambda name, way: way.kind == "gradients" and name not in _COLUMNS),
    Case("the whole training counts, exact to its end", lambda name, way: name in _WHOLE),
    Case("one number to search for, many trainings", lambda name, way: way.kind == "search"),
    Case("momentum is tuned too", lambda name, way: True, "rate, decay and momentum"),
    Case("a rate for each tensor", lambda name, way: True, "rates by tensor"),
    Case("a hyperparameter of the loss (smoothing)", lambda name, way: True, "smoothing"),
    Case("the data change on the way", lambda name, way: True, None, problems.STREAM),
)
"""The cases, in the order of the table."""


def chosen(runs: pd.DataFrame, case: Case) -> pd.DataFrame:
    """Return the runs that a case is decided by: at equal processor time, at each way's own outer rate.

    Args:
        runs: What `comparison_tables.scored` gave.
        case: The case.
    """
    own = runs[runs["factor"] == 1]
    own = own[own["problem"] == case.problem] if case.problem else own[own["problem"] != problems.STREAM]
    if case.tunes is None:
        own = own[own["usual"]]
    else:  # what is not tuned usually is recorded on a few problems
        own = own[(own["tunes"] == case.tunes) & own["problem"].isin(comparison.SIZES["paper"].more)]
    allowed = {name for name in own["method"].unique() if case.allows(name, ways.get(name))}
    own = own[own["method"].isin(allowed)]
    planned = [comparison.steps_for(c.method, c.problem, c.tunes, c.budget) == c.steps for c in own.itertuples()]
    return own[np.array(planned, dtype=bool)]


def ranked(runs: pd.DataFrame, case: Case) -> pd.DataFrame:
    """Return the ways of a case from the best on: runs, how many are near the reference, 95 % interval, median ratio.

    A way counts only where it was run on every problem on which another way of the case was.

    Args:
        runs: What `comparison_tables.scored` gave.
        case: The case.
    """
    own = chosen(runs, case)
    everywhere = own.groupby("title")["problem"].nunique()
    own = own[own["title"].isin(everywhere[everywhere == own["problem"].nunique()].index)]
    groups = own.groupby("title")["ratio"]
    out = pd.DataFrame({"n": groups.size(), "near": groups.agg(lambda r: int((r <= NEAR).sum()))})
    out["median"] = groups.median()
    spans = [binomtest(int(k), int(n)).proportion_ci(method="wilson") for k, n in zip(out["near"], out["n"])]
    out["low"], out["high"] = [s.low for s in spans], [s.high for s in spans]
    out["share"] = out["near"] / out["n"]
    return out.sort_values(["share", "median"], ascending=[False, True])


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the decision table: case, way to take with its numbers, and the runner-up.

    Where a way that the case does not allow, as it usually tunes, is surely better on the same problems (its interval
    lies above that of the best), the answer is "none of these", and the way's name.

    Args:
        runs: What `comparison_tables.scored` gave.
    """
    rows = []
    for case in CASES:
        best = ranked(runs, case)
        if len(best) < 2:
            rows.append({"case": case.words, "take": "not recorded"})
            continue
        first, second = best.iloc[0], best.iloc[1]
        take = str(best.index[0]) + ("" if second["share"] < first["low"] else " (not clear)")
        other = _better(runs, case, first["high"])
        rows.append(
            {
                "case": case.words,
                "take": f"none of these: {other}" if other else take,
                "best of them": str(best.index[0]),
                "near": _share(first),
                "runner-up": str(best.index[1]),
                "its": _share(second),
                "ways": str(len(best)),
            }
        )
    return pd.DataFrame(rows).fillna("").set_index("case")


def _better(runs: pd.DataFrame, case: Case, high: float) -> str:
    """Return the best of all ways, as they usually tune, on the problems of a case, or "" if it is not above `high`."""
    usual = runs[runs["problem"].isin(chosen(runs, case)["problem"].unique())]
    best = ranked(usual, Case("", lambda name, way: True, None, case.problem))
    return str(best.index[0]) if len(best) and best["low"].iloc[0] > high else ""


def over_start(runs: pd.DataFrame) -> pd.DataFrame:
    """Return how often each way by gradients ends better than the same rule whose rate stays where it started.

    Pairs have the same problem, seed, initial weights and start, and the same time or steps, as the view of the runs
    has it. A pair counts as better where the way's test loss is below 0.99 of the other's, as worse where it is above
    1.01 of it; of two failed runs neither is.

    Args:
        runs: What `comparison_tables.seen` gave.

    Returns:
        A row per way: its rule, pairs, per cent better and worse, and `helps`: "yes" where a sign test of better
        against worse says so at 5 %, "no" where it says the opposite, else "not clear".
    """
    rows = {}
    alone = runs.set_index(["problem", "seed"])
    for name, way in ((n, w) for n, w in ways.WAYS.items() if w.kind == "gradients" and w.starts):
        own, fixed = (alone[alone["method"] == n]["ratio"] for n in (name, way.rule))
        pairs = pd.concat([own, fixed], axis=1, keys=["own", "fixed"]).dropna()
        if pairs.empty:
            continue
        better = int((pairs["own"] < 0.99 * pairs["fixed"]).sum())
        worse = int((pairs["own"] > 1.01 * pairs["fixed"]).sum())
        sure = better + worse > 0 and binomtest(better, better + worse).pvalue < 0.05
        rows[way.title] = {
            "rule": way.rule,
            "pairs": len(pairs),
            "better, %": 100 * better / len(pairs),
            "worse, %": 100 * worse / len(pairs),
            "helps": ("yes" if better > worse else "no") if sure else "not clear",
        }
    return pd.DataFrame(rows).T.rename_axis("way")


def _share(row: pd.Series) -> str:
    return f"{100 * row['share']:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
