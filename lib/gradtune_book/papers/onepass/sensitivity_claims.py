"""What the OnePass paper claims about T, i, the error of its hypergradients and the validation share, as data."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimate, Estimates, Missing, mean_of, median_of, remembered
from gradtune_book.claims.judging import Comparison, Finding
from gradtune_book.papers.onepass import uci_claims, uci_sensitivity, uci_tables
from gradtune_book.papers.onepass.uci_claims import MEAN, SPREAD
from gradtune_book.papers.onepass.uci_sensitivity import EXACT, HDLR, RANDOM, SHARES, TUNED, proportion
from gradtune_book.records import store

NOTEBOOK = "onepass_sensitivity"
_ENERGY = "UCI Energy"
_STRONG = 0.3
"""A rank correlation of this size counts as a strong trend."""


_recorded = remembered(lambda: store.load(uci_sensitivity.STUDY, "paper"))

# --- the grid of T and i ----------------------------------------------------------------------------------------------


def grid() -> Estimates:
    """Read Figure 6 off the records: medians by method and look-back (rows) and update interval (columns)."""
    frame = _recorded()
    if not uci_sensitivity.complete(frame, uci_sensitivity.SIZES["paper"]):
        return Estimates()
    cells = {}
    groups = uci_sensitivity.grid_runs(frame).groupby(["method", "look_back", "every"], sort=True)
    for (method, i, every), runs in groups:
        cells[f"{method}, i = {i}", f"T = {every}"] = median_of(runs["test_mse"])
    return Estimates(cells)


def _looks(t: Estimates, method: str, column: str) -> list[str]:
    """The rows of a method that have a number in a column, by look-back."""
    return [row for row in t.rows(column) if row.startswith(f"{method}, ")]


def _columns(t: Estimates) -> list[str]:
    """The columns of the grid; raises `Missing` where it is not recorded in full."""
    if not t.cells:
        raise Missing("the grid of T and i is not recorded in full")
    return list(dict.fromkeys(column for _, column in t.cells))


def _beats_random(t: Estimates) -> Finding:
    pairs = [(row, c) for c in _columns(t) for row in _looks(t, TUNED, c)]
    random = f"{RANDOM}, i = 0"
    return Finding(tuple(judging.below(t.at(r, c), t.at(random, c), f"{r} − {RANDOM}, {c}") for r, c in pairs))


def _falls_with_interval(t: Estimates) -> Finding:
    columns = sorted(_columns(t), key=lambda c: int(c.removeprefix("T = ")))
    found = []
    for row in _looks(t, TUNED, columns[0]):
        points = [(k, v) for k, c in enumerate(columns) for v in t.at(row, c).values if v == v]
        at, losses = [k for k, _ in points], [v for _, v in points]
        found.append(judging.trend(at, losses, True, f"{row}: loss with T"))
    return Finding(tuple(found))


def _common(t: Estimates) -> list[tuple[Estimate, Estimate, Estimate]]:
    """Ours, exact and Random of every cell that both have, but for one term, where both are the same."""
    out = []
    for c in _columns(t):
        for row in _looks(t, EXACT, c):
            i = row.removeprefix(f"{EXACT}, ")
            if i != "i = 1":
                out.append((t.at(f"{TUNED}, {i}", c), t.at(row, c), t.at(f"{RANDOM}, i = 0", c)))
    return out


def _exact_is_better(t: Estimates) -> Finding:
    cells = _common(t)
    lower = sum(exact.value < ours.value for ours, exact, _ in cells)
    return Finding((judging.share((lower, len(cells)), 0.5, "cells in which Diff-through-Opt has the lower median"),))


def _gap_is_smaller(t: Estimates) -> Finding:
    cells = _common(t)
    near = sum(abs(o.value - e.value) < r.value - max(o.value, e.value) for o, e, r in cells)
    return Finding((judging.share((near, len(cells)), 1, "cells in which the gap is the smaller one"),))


def _more_terms_are_worse(t: Estimates) -> Finding:
    pairs = [(a, b, c) for c in _columns(t) for a, b in pairwise(_by_look_back(_looks(t, TUNED, c)))]
    return Finding(tuple(judging.below(t.at(a, c), t.at(b, c), f"{a} − {b}, {c}") for a, b, c in pairs), every=False)


def _by_look_back(rows: list[str]) -> list[str]:
    return sorted(rows, key=lambda row: int(row.rpartition(" ")[2]))


# --- the error of hypergradients --------------------------------------------------------------------------------------


def errors(measure: str) -> Estimates:
    """Read Figure 7 off the records: relative errors by hyperparameter (rows) and look-back (columns)."""
    found = uci_sensitivity.gradient_errors(_recorded())
    return Estimates(
        {(str(h), f"i = {i}"): mean_of(x[measure]) for (h, i), x in found.groupby(["hyperparameter", "i"])}
    )


def _points(t: Estimates, name: str) -> tuple[list[int], list[float]]:
    """Look-backs and errors of the single runs; one term is left out, where the error is 0 by construction."""
    columns = [c for row, c in t.cells if row == name and c != "i = 1"]
    if not columns:
        raise Missing("no error of a hypergradient is recorded")
    points = [(int(c.removeprefix("i = ")), v) for c in columns for v in t.at(name, c).values if v == v]
    return [i for i, _ in points], [v for _, v in points]


def _no_trend(t: Estimates) -> Finding:
    what = "learning rate: rank correlation of the error with i"
    return Finding((judging.no_trend(*_points(t, "lr"), _STRONG, what),))


def _grows(t: Estimates) -> Finding:
    found: Comparison = judging.trend(*_points(t, "weight_decay"), False, "weight decay: error with i")
    return Finding((found,))


def _one_term_is_exact(t: Estimates) -> Finding:
    names = ("lr", "weight_decay")
    return Finding(tuple(judging.near_limit(t.at(n, "i = 1"), 0, 1e-3, f"{n}: error at i = 1") for n in names))


# --- the validation share ---------------------------------------------------------------------------------------------

_FIRST, _SECOND, _LAST = proportion(SHARES[0]), proportion(SHARES[1]), proportion(SHARES[-1])


def shares(method: str) -> Estimates:
    """Read Table 14 off the records for one method, a row for each proportion of rows."""
    usual, frame = uci_claims.recorded(), _recorded()
    parts = []
    if len(usual):
        parts.append(usual[(usual["dataset"] == "energy") & (usual["method"] == method)].assign(share=_FIRST))
    if len(frame):
        other = frame[(frame["train_share"] != SHARES[0]) & (frame["method"] == method)]
        parts.append(other.assign(share=other["train_share"].map(proportion)))
    return uci_claims.averages(pd.concat(parts), row="share") if parts else Estimates()


def printed_shares(method: str) -> Estimates:
    """Return Table 14 as printed for one method."""
    table = uci_tables.published("onepass_table14.csv").xs(method, level="method")
    return uci_claims.printed_averages(table, lambda _: 200)


def _share(name: str, first: str, second: str, column: str, t: Estimates) -> Finding:
    return Finding((judging.below(t.at(first, column), t.at(second, column), f"{name}: {first} − {second}, {column}"),))


# --- the claims -------------------------------------------------------------------------------------------------------

_GRID = (Setting("paper", _ENERGY, remembered(grid)),)
_ERRORS = tuple(
    Setting("paper", f"{_ENERGY}, {words}", remembered(partial(errors, measure)))
    for measure, words in (("published", "error of Adam's first update"), ("honest", "error of the hypergradient"))
)
_TABLE_14 = {
    m: (Setting("paper", f"{_ENERGY}, {m}", remembered(partial(shares, m)), partial(printed_shares, m)),)
    for m in (TUNED, HDLR)
}


def _of_grid(name: str, place: str, statement: str, check: Check, kind: Kind, note: str = "") -> Claim:
    name, items = f"onepass-6-{name}", ("Figure 4", "Figure 6")
    return Claim(name, "OnePass", place, items, statement, kind, check, NOTEBOOK, _GRID, note=note)


def _of_errors(name: str, statement: str, check: Check, kind: Kind, note: str = "", sanity: bool = False) -> Claim:
    settings = _ERRORS[1:] if sanity else _ERRORS
    name, items = f"onepass-7-{name}", ("Figure 7",)
    return Claim(name, "OnePass", "Appendix B.2.2", items, statement, kind, check, NOTEBOOK, settings, sanity, note)


def _of_shares(name: str, statement: str, first: str, second: str, column: str, methods: tuple[str, ...]) -> Claim:
    settings = tuple(s for m in methods for s in _TABLE_14[m])
    check = partial(_share, "final loss", first, second, column)
    name, items = f"onepass-14-{name}", ("Table 14",)
    return Claim(name, "OnePass", "Appendix B.8.1", items, statement, "order", check, NOTEBOOK, settings)


CLAIMS = (
    _of_grid(
        "random", "Section 4.3", "WD+LR+M has a lower median than Random for every T and i", _beats_random, "order"
    ),
    _of_grid("interval", "Section 4.3", "performance improves with larger T", _falls_with_interval, "shape"),
    _of_grid(
        "exact",
        "Appendix B.2.1",
        "Diff-through-Opt achieves greater performance, in most cells",
        _exact_is_better,
        "count",
        "cells with one term left out, where both are the same; cells share their starts",
    ),
    _of_grid(
        "gap",
        "Appendix B.2.1",
        "the gap between WD+LR+M and Diff-through-Opt is smaller than that of both to Random, in every cell",
        _gap_is_smaller,
        "count",
    ),
    _of_grid(
        "terms",
        "Section 4.3",
        "more terms do not always help: for some T a larger i is worse",
        _more_terms_are_worse,
        "shape",
    ),
    _of_errors(
        "rate",
        "the error of the learning rate's hypergradient has no strong trend with i",
        _no_trend,
        "shape",
        f"strong: a rank correlation above {_STRONG:g}; "
        "i = 1 left out, where the error is 0; a run gives several values",
    ),
    _of_errors(
        "decay",
        "the weight decay's hypergradient is better at short look-backs",
        _grows,
        "shape",
        "i = 1 left out, where the error is 0; a run gives several values",
    ),
    _of_errors("one-term", "one term (i = 1) is exact", _one_term_is_exact, "equality", sanity=True),
    _of_shares(
        "larger",
        "a larger share of validation rows (22.5 in place of 10 per cent) improves the mean",
        *(_SECOND, _FIRST, MEAN, (TUNED, HDLR)),
    ),
    _of_shares(
        "largest",
        "WD+LR+M is worse again with 45 per cent of validation rows (mean)",
        *(_SECOND, _LAST, MEAN, (TUNED,)),
    ),
    _of_shares(
        "variance",
        "WD+HDLR+M varies more with 45 per cent of validation rows than with 22.5",
        *(_SECOND, _LAST, SPREAD, (HDLR,)),
    ),
)
