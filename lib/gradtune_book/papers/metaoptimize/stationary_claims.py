"""What the MetaOptimize paper claims about stationary training (Figures 1, 2, Section 7.5) and its cost (Table 1)."""

from __future__ import annotations

from functools import partial

import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimate, Estimates, joined, measured, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.metaoptimize import cifar, overhead, sensitivity, tables
from gradtune_book.papers.metaoptimize.framework_claims import above, close
from gradtune_book.papers.metaoptimize.tables import BEST
from gradtune_book.papers.metaoptimize.training import BLOCKS, SCALAR
from gradtune_book.records import store

ACCURACY = "training accuracy at the end"


def cifar_estimates() -> Estimates:
    """Read Figure 1 off the records."""
    frame = tables.named(tables.pairs(store.load(cifar.STUDY, "laptop")), "late_accuracy", False)
    return measured(frame.rename(columns={"late_accuracy": ACCURACY}), "row", [ACCURACY], instance="seed")


def robust_estimates() -> Estimates:
    """Read Figure 2 off the records: (Lion, Lion) by its start."""
    frame = tables.robust(store.load(cifar.STUDY, "laptop"))
    if frame.empty:
        return Estimates()
    fixed = tables.named(frame[~frame["method"].isin((SCALAR, BLOCKS))], "late_accuracy", False)
    adapted = frame[frame["method"].isin((SCALAR, BLOCKS))]
    adapted = adapted.assign(row=adapted["method"] + " from " + adapted["lr"].map("{:g}".format))
    both = pd.concat([fixed, adapted]).rename(columns={"late_accuracy": ACCURACY})
    return measured(both, "row", [ACCURACY], instance="seed")


_SMALL = "a small residual net on 5,000 images of CIFAR-10"
_CIFAR = (Setting("laptop", _SMALL, remembered(cifar_estimates)),)
_ROBUST = (Setting("laptop", _SMALL, remembered(robust_estimates)),)


def _every_pair(t: Estimates) -> Finding:
    found: list[judging.Comparison] = []
    for base, meta in cifar.PAIRS:
        rows = tuple(f"{m} ({base}, {meta})" for m in (SCALAR, BLOCKS))
        found += above(rows, f"{BEST} {base}", ACCURACY, t).comparisons
    return Finding(tuple(found))


ROBUST = 0.9
"""A start is as good as another where at least this share of the accuracy is reached from it."""


def _from_every_start(t: Estimates) -> Finding:
    found = []
    for lr in cifar.ROBUST:
        for method in (SCALAR, BLOCKS):
            a, b = t.at(f"{method} from {lr:g}", ACCURACY), t.at(f"{BEST} Lion", ACCURACY)
            what = f"{BEST} Lion − {method} from {lr:g} / {ROBUST:g}, {ACCURACY}"
            found.append(judging.below(b, a, what, t.paired, 1 / ROBUST))
    return Finding(tuple(found))


def sensitivity_estimates(steps: int) -> Estimates:
    """Read Section 7.5 off the records after so many steps: losses by meta step and by discount."""
    frame = tables.of_set(store.load(sensitivity.STUDY, "laptop"), "mnist")
    if frame.empty:
        return Estimates()
    gammas = tables.gammas(frame, steps)
    return joined(
        measured(tables.meta_steps(frame, 1e-4, steps), "row", ["loss"], instance="seed"),
        measured(gammas.assign(row=[f"gamma {row}" for row in gammas["row"]]), "row", ["loss"], instance="seed"),
    )


_DIGITS = tuple(
    Setting("laptop", f"a small net on MNIST, {n} steps", remembered(partial(sensitivity_estimates, n)))
    for n in (1000, 3000)
)
NEAR_BEST = 1.25
"""A loss is near the best fixed step's where it exceeds it by less than this factor."""


def _untuned(t: Estimates) -> Finding:
    a, b = t.at("0.001", "loss"), t.at(BEST, "loss")
    return Finding((judging.below(a, b, f"meta step 1e-3 − {NEAR_BEST:g} × {BEST}, loss", t.paired, NEAR_BEST),))


def _insensitive(t: Estimates) -> Finding:
    return Finding((close(t, "gamma 0.999", "gamma 1", "loss"),))


def _degrades(t: Estimates) -> Finding:
    rows = ("gamma 0.9", "gamma 0.99")
    return Finding(
        tuple(judging.below(t.at("gamma 1", "loss"), t.at(r, "loss"), f"gamma 1 − {r}, loss", t.paired) for r in rows)
    )


def _of_stationary(
    name: str,
    place: str,
    items: tuple[str, ...],
    statement: str,
    kind: Kind,
    check: Check,
    settings: tuple[Setting, ...],
    note: str = "",
) -> Claim:
    claim, notebook = f"metaoptimize-stationary-{name}", "metaoptimize_cifar"
    return Claim(claim, "MetaOptimize", place, items, statement, kind, check, notebook, settings, note=note)


STATIONARY = (
    _of_stationary(
        "pairs",
        "Section 7.1",
        ("Figure 1",),
        "in every combination, scalar and in blocks, MetaOptimize outperforms the best fixed step size of its base",
        "order",
        _every_pair,
        _CIFAR,
    ),
    _of_stationary(
        "starts",
        "Section 7.1",
        ("Figure 2",),
        "(Lion, Lion) is robust to its initial step size, even several orders of magnitude below the best fixed one",
        "equality",
        _from_every_start,
        _ROBUST,
        "robust: at least nine tenths of the accuracy that the best fixed step of Lion reaches",
    ),
    _of_stationary(
        "untuned",
        "Section 7.5",
        (),
        "the meta step needs no tuning: 1e-3 works well in stationary supervised learning",
        "ratio",
        _untuned,
        _DIGITS,
        "well: a loss below 1.25 times that of the best fixed step, from a start of 1e-4",
    ),
    _of_stationary(
        "gamma",
        "Section 7.5",
        (),
        "results are hardly sensitive to a discount of 0.999 or more",
        "equality",
        _insensitive,
        _DIGITS,
        "with a meta step of 0.02; hardly: losses within 2.5 per cent",
    ),
    _of_stationary(
        "smaller",
        "Section 7.5",
        (),
        "with smaller discounts (0.9, 0.99) the performance begins to degrade",
        "order",
        _degrades,
        _DIGITS,
        "with a meta step of 0.02",
    ),
)

# --- Table 1 ----------------------------------------------------------------------------------------------------------

TIME, SPACE = "time over AdamW, per cent", "GPU memory over AdamW, per cent"
_OURS = "MetaOptimize (AdamW, Lion)"


def overhead_estimates(net: str, method: str = overhead.METHOD) -> Estimates:
    """Read the time of an iteration over AdamW's fastest form off the records, for one net and kind of comparison."""
    found = tables.costs(store.load(overhead.STUDY, "laptop"), "time", method)
    if found.empty or net not in set(found["net"]):
        return Estimates()
    rows = found[found["net"] == net].rename(columns={overhead.SCALAR: _OURS}).drop(columns="net")
    return measured(rows.melt("seed", var_name="row", value_name=TIME).dropna(), "row", [TIME], instance="seed")


def overhead_printed(problem: str) -> Estimates:
    """Return Table 1 as printed, for one problem."""
    table = tables.published_overhead()
    return Estimates(
        {
            (str(row), column): Estimate(float(value))
            for column, word in ((TIME, "time"), (SPACE, "space"))
            for row, value in table[f"{problem}, {word}"].items()
        }
    )


def _of_overhead(name: str, problem: str, net: str, words: str, limit: int) -> Claim:
    def check(t: Estimates) -> Finding:
        what = f"{_OURS} − {limit}.5 (what rounds to {limit}), {TIME}"
        return Finding((judging.below_limit(t.at(_OURS, TIME), limit + 0.5, what),))

    settings = (
        Setting("laptop", words, remembered(partial(overhead_estimates, net)), partial(overhead_printed, problem)),
    )
    statement = f"an iteration takes at most {limit} per cent longer than one of AdamW ({problem})"
    claim, notebook = f"metaoptimize-overhead-{name}", "metaoptimize_overhead"
    note = "the paper's row is its own program on a GPU"
    return Claim(
        claim, "MetaOptimize", "Table 1", ("Table 1",), statement, "ratio", check, notebook, settings, note=note
    )


def _slower(t: Estimates) -> Finding:
    pairs = [(_OURS, row) for row in ("DoG", "gdtuo")]
    return Finding(tuple(judging.below(t.at(a, TIME), t.at(b, TIME), f"{a} − {b}, {TIME}") for a, b in pairs))


def _faster(t: Estimates) -> Finding:
    pairs = [(row, _OURS) for row in ("mechanic", "Prodigy")]
    return Finding(tuple(judging.below(t.at(a, TIME), t.at(b, TIME), f"{a} − {b}, {TIME}") for a, b in pairs))


def _no_more_memory(t: Estimates) -> Finding:
    return Finding((judging.below_limit(t.at(_OURS, SPACE), 0.5, f"{_OURS} − 0.5 (what rounds to 0), {SPACE}"),))


def _beside(name: str, statement: str, check: Check, note: str) -> Claim:
    setting = Setting(
        *("laptop", _WORDS, remembered(partial(overhead_estimates, "decoder", overhead.OTHERS))),
        partial(overhead_printed, "TinyStories"),
    )
    claim, notebook = f"metaoptimize-overhead-{name}", "metaoptimize_overhead"
    return Claim(
        *(claim, "MetaOptimize", "Table 1", ("Table 1",), statement, "order", check, notebook, (setting,)), note=note
    )


_BY_PACKAGES = "each by the program of its own package, with its defaults; gdtuo is Adam adapted by SGD"
_WORDS = "the paper's decoder on a CPU, one text of 64 words a step"
OVERHEAD = (
    _beside(
        "others",
        "an iteration of DoG and one of gdtuo take longer than one of MetaOptimize (TinyStories)",
        _slower,
        _BY_PACKAGES,
    ),
    _beside(
        "faster",
        "an iteration of mechanic and one of Prodigy are shorter than one of MetaOptimize (TinyStories)",
        _faster,
        _BY_PACKAGES,
    ),
    _beside(
        "memory",
        "MetaOptimize leaves room for batches as large as AdamW's (TinyStories)",
        _no_more_memory,
        "needs a GPU; the numbers that are kept for each weight are counted, and decide nothing",
    ),
    _of_overhead("images", "ImageNet", "ResNet-18", "ResNet-18 on a CPU, two images of 32 x 32 a step", 44),
    _of_overhead("words", "TinyStories", "decoder", _WORDS, 13),
)
