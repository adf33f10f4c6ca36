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
    own = own[own["usual"]] if case.tunes is None else own[own["tunes"] == case.tunes]
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
        clear = second["share"] < first["low"]
        rows.append(
            {
                "case": case.words,
                "take": str(best.index[0]) + ("" if clear else " (not clear)"),
                "near": _share(first),
                "runner-up": str(best.index[1]),
                "its": _share(second),
                "ways": str(len(best)),
            }
        )
    return pd.DataFrame(rows).fillna("").set_index("case")


def nowhere(runs: pd.DataFrame) -> list[str]:
    """Return the titles of ways that end near the reference in less than a tenth of their runs, surely.

    Args:
        runs: What `comparison_tables.scored` gave.
    """
    every = ranked(runs, CASES[1])
    return list(every.index[every["high"] < 0.1])


def _share(row: pd.Series) -> str:
    return f"{100 * row['share']:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
