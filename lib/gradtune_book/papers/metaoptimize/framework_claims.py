"""What the MetaOptimize paper claims about its framework (Sections 3 to 6), as data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimates, joined, measured, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.metaoptimize import framework, tables
from gradtune_book.records import store

CLOSE = 0.025
"""Two losses are close where they differ by less than this share of the second."""


def close(t: Estimates, first: str, second: str, column: str) -> judging.Comparison:
    """Ask whether two rows are close."""
    a, b = t.at(first, column), t.at(second, column)
    return judging.near(a, b, CLOSE * abs(b.value), f"{first} − {second}, {column}", t.paired)


def above(rows: Sequence[str], other: str, column: str, t: Estimates) -> Finding:
    """Ask whether each of the rows lies above another one."""
    found = [judging.below(t.at(other, column), t.at(r, column), f"{other} − {r}, {column}", t.paired) for r in rows]
    return Finding(tuple(found))


LOSS, ORDER, GAP = "mean loss", "order", "relative gap of the loss"
NEAR_TWO = 0.1
"""How near 2 the order of each stream has to be."""


def framework_estimates(problem: str) -> Estimates:
    """Read the runs on one of the streams: losses by base and matrix, their gaps, and the order of the views."""
    frame = store.load(framework.STUDY, "laptop")
    runs = tables.trained(frame, problem)
    if runs.empty:
        return Estimates()
    losses = measured(runs.rename(columns={"loss": LOSS}), "row", [LOSS], instance="seed")
    free = runs[runs["method"] == framework.FREE].set_index(["base", "seed"])["loss"]
    full = runs[runs["method"] == "full"].set_index(["base", "seed"])["loss"]
    gaps = (free / full - 1).abs().rename(GAP).reset_index()
    views = frame[(frame["method"] == framework.VIEWS) & (frame["problem"] == problem)]
    counts = {ORDER: (int(views["order"].sub(2).abs().lt(NEAR_TWO).sum()), len(views))}
    return joined(losses, measured(gaps, "base", [GAP], instance="seed"), Estimates(paired=True, counts=counts))


_STREAMS = tuple(
    Setting("laptop", words, remembered(partial(framework_estimates, name)))
    for name, words in (("quadratic", "noisy quadratic"), ("stream", "drifting linear regression"))
)


def _second_order(t: Estimates) -> Finding:
    return Finding((judging.share(t.count(ORDER), 1, f"streams on which the order is within {NEAR_TWO:g} of 2"),))


def _no_worse(first: str, second: str, t: Estimates) -> Finding:
    found = []
    for base in framework.RULES:
        a, b = (t.at(f"{base}, {level}", LOSS) for level in (first, second))
        found.append(judging.below(a, b, f"{base}: {first} − {1 + CLOSE:g} × {second}, {LOSS}", t.paired, 1 + CLOSE))
    return Finding(tuple(found))


def _better_when_normalised(t: Estimates) -> Finding:
    plain = t.at("SGD", GAP)
    normalised = ("RMSprop", "AdamW")
    return Finding(tuple(judging.below(t.at(b, GAP), plain, f"{b} − SGD, {GAP}", t.paired) for b in normalised))


def _of_framework(name: str, place: str, statement: str, kind: Kind, check: Check, note: str = "") -> Claim:
    claim = f"metaoptimize-framework-{name}"
    return Claim(
        claim, "MetaOptimize", place, (), statement, kind, check, "metaoptimize_framework", _STREAMS, note=note
    )


_WITHIN = "a mean loss no more than 2.5 per cent above, for SGD, RMSprop and AdamW each"

FRAMEWORK = (
    _of_framework(
        "views",
        "Section 3",
        "as the meta step goes to 0, the forward and the backward view end arbitrarily close, with its square",
        "shape",
        _second_order,
    ),
    _of_framework(
        "2x2",
        "Section 5",
        "leaving Q out (2x2) often has a negligible impact on performance",
        "order",
        partial(_no_worse, "2x2", "full"),
        _WITHIN,
    ),
    _of_framework(
        "l",
        "Section 5",
        "the L-approximation often matches the performance of the 2x2 approximation",
        "order",
        partial(_no_worse, "L", "2x2"),
        _WITHIN,
    ),
    _of_framework(
        "free",
        "Section 6",
        "the Hessian-free approximation is a good approximation",
        "order",
        partial(_no_worse, framework.FREE, "full"),
        _WITHIN,
    ),
    _of_framework(
        "normalised",
        "Section 6",
        "it is so especially with base updates that normalise the gradient, such as RMSprop and Adam",
        "order",
        _better_when_normalised,
        "measured by the gap to the full matrix's loss, in comparison with SGD",
    ),
)
