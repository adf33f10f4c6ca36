"""What this book says of its library's cost and default, and what two papers say of cost, as data.

Statements of this book stand beside the papers' in the chapters and on the page of verdicts. They are about no figure
or table, and count among no paper's verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimate, Estimates, Missing, mean_of, median_of, remembered
from gradtune_book.claims.inventory import OWN
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.together import start_tables, starts
from gradtune_book.papers.together.start_tables import NEAR, PLAIN, TITLES
from gradtune_book.papers.together.start_trainings import STARTED
from gradtune_book.records import store

# --- the cost of a step -----------------------------------------------------------------------------------------------

GOALS = {
    "fixed hyperparameters": {"fixed-sgd": 1.1, "fixed-adamw": 1.1},
    "methods of one gradient (HD, Baydin, Hessian-free MetaOptimize)": {
        **{"hd-tune": 1.2, "baydin-mlp-tune": 1.2, "metaoptimize-hf-tune": 1.2, "baydin-tune": 1.8},
    },
    "OnePass and Diff-through-Opt": {
        **{"onepass-mlp-tune": 2.1, "diff-through-opt-mlp-tune": 2.4, "onepass-tune": 1.3},
        **{"onepass-hdlr-tune": 2.5, "diff-through-opt-tune": 1.4},
    },
    "exact forward mode (OHO, FDS)": {
        **{"oho-tune": 5.0, "fds-1": 2.3, "fds-5": 5.0, "fds-10": 8.0, "fds-50": 35.0, "fds-wrn": 30.0},
    },
    "MetaOptimize as an optimiser": {
        **{"metaoptimize": 1.12, "metaoptimize-alone": 1.4},
        **{"metaoptimize-fused": 1.1, "metaoptimize-alone-fused": 1.5},
    },
    "whole hypergradients beside other libraries": {
        **{"peer-sgd-by-hand": 1.0, "peer-sgd-higher": 0.6, "peer-adam-torchopt": 0.7, "peer-hypertorch": 0.9},
    },
}
"""Largest cost that is good enough, by kind of row and by measurement; the goals of `benchmarks/rows.py`."""

COST, EACH = "plain steps", "plain steps a column"
_FEW, _MANY = "few columns", "many columns"
_REPEATS = "n counts repeats on one machine"


def step_costs() -> Estimates:
    """Read the cost of a step off the records: by measurement, the median over the repeats of the last one."""
    frame = store.load("step_cost", "paper")
    if frame.empty:
        return Estimates()
    last = frame[frame["device"] == "cpu"].sort_values("seed").groupby("method").tail(1)
    return Estimates({(name, COST): median_of(r) for name, r in zip(last["method"], last["ratios"])})


def column_costs(columns: Mapping[str, float]) -> Estimates:
    """Return what a column adds among few and among many.

    Args:
        columns: Columns in use by measurement, in four sizes: two of few columns, and two of many.
    """
    (a, m), (b, n), (c, o), (d, p) = columns.items()
    at = {name: step_costs().at(name, COST) for name in columns}
    return Estimates({(_FEW, EACH): _slope(at[a], at[b], n - m), (_MANY, EACH): _slope(at[c], at[d], p - o)})


def _slope(low: Estimate, high: Estimate, columns: float) -> Estimate:
    count = min(len(low.values), len(high.values))
    return median_of(np.subtract(high.values[:count], low.values[:count]) / columns)


def _costs_at_most(limits: dict[str, float], t: Estimates) -> Finding:
    what = f"{{}} − {{:g}}, {COST}"
    return Finding(tuple(judging.below_limit(t.at(k, COST), x, what.format(k, x)) for k, x in limits.items()))


def _adds_alike(t: Estimates) -> Finding:
    few, many = t.at(_FEW, EACH), t.at(_MANY, EACH)
    return Finding((judging.near(few, many, 0.25, f"{_FEW} − {_MANY}, {EACH}"),))


def _on(data: str, source: partial[Estimates] | None = None) -> tuple[Setting, ...]:
    return (Setting("one step on a CPU", data, remembered(source or step_costs)),)


def _of_cost(
    name: str,
    place: str,
    statement: str,
    check: Check,
    settings: tuple[Setting, ...],
    paper: str = OWN,
    kind: Kind = "ratio",
    note: str = "",
) -> Claim:
    note = f"{note}; {_REPEATS}" if note else _REPEATS
    return Claim(f"cost-{name}", paper, place, (), statement, kind, check, "step_cost", settings, note=note)


_WINDOWS = {"fds-1": 1, "fds-5": 3, "fds-10": 5.5, "fds-50": 25.5}  # of n windows (n + 1) / 2 are in use on average
_LINEAR = (
    *_on("LeNet, 1 to 50 windows", partial(column_costs, _WINDOWS)),
    *_on("an MLP, 1 to 16 columns", partial(column_costs, {f"columns-{n}": n for n in (1, 4, 8, 16)})),
)
_PAPERS_COST = (
    _of_cost(
        "linear",
        "Section 6",
        "time grows linearly with the number of hyperparameters: a column adds as much among many as among few",
        _adds_alike,
        _LINEAR,
        "FDS",
        "shape",
        "within a quarter of a plain step",
    ),
    _of_cost(
        "two",
        "Section 4.3",
        "tuning in one pass costs less than two plain trainings",
        partial(_costs_at_most, {"onepass-mlp-tune": 2.0}),
        _on("an MLP of three hidden layers in the place of the paper's on Fashion-MNIST"),
        "OnePass",
    ),
    _of_cost(
        "three",
        "Abstract",
        "tuning in one pass takes no more than three times as long as training",
        partial(_costs_at_most, {"onepass-tune": 3.0}),
        _on("the paper's net for UCI Energy"),
        "OnePass",
        note='the abstract says "only 2–3x", for nets up to ResNet-18',
    ),
)
_GOALS_MET = tuple(
    _of_cost(
        f"goal-{k}",
        "Goal of this book",
        f"{kind}: a step costs at most its goal",
        partial(_costs_at_most, limits),
        _on("generated inputs"),
    )
    for k, (kind, limits) in enumerate(GOALS.items())
)

# --- the default call -------------------------------------------------------------------------------------------------

DEFAULT, SHARE, RATIO, TIME = "Default", "share of trainings near", "ratio to the grid", "plain trainings"
_NEAR, _FINITE = f"trainings with a ratio of at most {NEAR:g}", "trainings that end in a number"
_INSTANCE = ["task", "seed"]


def start_estimates() -> Estimates:
    """Read the study `starts` off the records: what each method reaches from its starts, by problem and seed.

    The default trains in the same way from every start, so that its trainings count once for a problem and seed. Of
    another method the share of its starts that end near stands for a problem and seed.
    """
    frame = store.load(starts.STUDY, "paper")
    return estimates_of(start_tables.ratios(frame)) if len(frame) else Estimates()


def estimates_of(runs: pd.DataFrame) -> Estimates:
    """Return the estimates of `start_estimates` from runs with ratios.

    Args:
        runs: What `start_tables.ratios` gave.
    """
    ours = runs[runs["method"] == "default"]
    if ours.empty:
        return Estimates()
    own = ours.drop_duplicates([*_INSTANCE, "ratio"])
    cells = {(DEFAULT, RATIO): median_of(own["ratio"])}
    near = (runs["ratio"] <= NEAR).astype(float).groupby([runs["method"], *(runs[k] for k in _INSTANCE)]).mean()
    whole = {m: len(group) for m, group in near.groupby(level=0) if len(group) == len(near["default"])}
    cells |= {(TITLES[m], SHARE): mean_of(near[m].sort_index()) for m in whole}
    times = _times(runs)
    if len(times):
        cells[DEFAULT, TIME] = median_of(times)
    counts = {_NEAR: int((own["ratio"] <= NEAR).sum()), _FINITE: int((~own["nan"]).sum())}
    return Estimates(cells, paired=True, counts={name: (k, len(own)) for name, k in counts.items()})


def _times(runs: pd.DataFrame) -> pd.Series:
    seconds = runs.groupby(["method", "task"])["cpu_s"].median()
    if PLAIN not in seconds:
        return pd.Series(dtype=float)
    return (seconds["default"] / seconds[PLAIN]).dropna()


def _rivals(t: Estimates) -> Iterable[str]:
    """Return the methods of one training, all of which must be there, and those of other packages that are."""
    needed = [TITLES[m] for m in STARTED if m not in ("default", "fds")]
    if missing := [m for m in needed if m not in t.rows(SHARE)]:
        raise Missing(f"not recorded in full: {', '.join(missing)}")
    return [m for m in t.rows(SHARE) if m not in (DEFAULT, TITLES["fds"], TITLES["Bayes"])]


def _of_default(name: str, statement: str, check: Check, kind: Kind = "order", note: str = "") -> Claim:
    return Claim(
        f"default-{name}",
        OWN,
        "Goal of this book",
        (),
        statement,
        kind,
        check,
        "your_own_model",
        (Setting("a few hundred steps", "six small problems, three seeds each", remembered(start_estimates)),),
        note=note,
    )


_DEFAULT = (
    _of_default(
        "near",
        f"nine in ten trainings by the default end within {NEAR:g} times the grid's best",
        lambda t: Finding((judging.share(t.count(_NEAR), 0.9, _NEAR),)),
        "count",
        "a problem and seed counts once, as the default trains in the same way from every start",
    ),
    _of_default(
        "finite",
        "no training by the default ends in NaN",
        lambda t: Finding((judging.share(t.count(_FINITE), 1, _FINITE),)),
        "count",
    ),
    _of_default(
        "median",
        f"its median ratio to the grid's best is below {NEAR:g}",
        lambda t: Finding((judging.below_limit(t.at(DEFAULT, RATIO), NEAR, f"{DEFAULT} − {NEAR:g}, {RATIO}"),)),
    ),
    _of_default(
        "others",
        f"from starts between a millionth and 10, no other method of one training ends within {NEAR:g} times as often",
        lambda t: judging.all_below(t, _rivals(t), [DEFAULT], SHARE),
        note="compared by problem and seed",
    ),
    _of_default(
        "time",
        "a training by the default takes at most three times as long as a plain one",
        lambda t: Finding((judging.below_limit(t.at(DEFAULT, TIME), 3.0, f"{DEFAULT} − 3, {TIME}"),)),
        "ratio",
        "the median over problems",
    ),
)

CLAIMS = (*_PAPERS_COST, *_GOALS_MET, *_DEFAULT)
