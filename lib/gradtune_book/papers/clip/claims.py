"""What the Clip paper claims about its Tables 1, 2 and 3, as data; of its Appendix B.2 see `dynamics_claims`."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimates, joined, measured, printed, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.clip import dynamics_claims, mnist, ptb, quadratic, tables
from gradtune_book.papers.clip.tables import CLIPPED, HEADS, SCALED, UNROLLED
from gradtune_book.papers.clip.training import FIXED, GTGV
from gradtune_book.records import store

EARLY, LATE, STABILITY = HEADS.values()
GAP, DRIFT, CLIP_SHARE = "test − validation", "keep probability, best to end", "share of clipped steps"
SAME_ORDER = 10**0.5
"""Numbers of the same order of magnitude differ by less than this factor."""


# --- Table 1 ----------------------------------------------------------------------------------------------------------

LOSS_1, LOSS_2, FAR_1, FAR_2, CHANGE = (
    *("loss, phase 1", "loss, phase 2", "distance of λ, phase 1", "distance of λ, phase 2"),
    "change of the loss",
)
_SHORT, _LONG, _BALLS = ("Unroll1",), ("Unroll5", "Unroll10"), ("Clip2", "Clip5")


def _phases(frame: pd.DataFrame, reading: str) -> pd.DataFrame:
    """Return the four numbers of Table 1 under one reading of phase 2, and the change of the loss."""
    read = {"excess_1": LOSS_1, f"excess_2_{reading}": LOSS_2, "distance_1": FAR_1, f"distance_2_{reading}": FAR_2}
    out = frame.rename(columns=read)
    return out.assign(**{CHANGE: out[LOSS_2] - out[LOSS_1]})


def quadratic_estimates(reading: str) -> Estimates:
    """Read Table 1 off the records, with phase 2 counted in "steps" or in "updates"."""
    frame = store.load(quadratic.STUDY, "paper")
    if frame.empty:
        return Estimates()
    out = measured(_phases(frame, reading), "method", (LOSS_1, LOSS_2, FAR_1, FAR_2, CHANGE), instance="seed")
    one = frame[frame["method"] == "Clip5"]
    norm, best = one["sensitivity_norm"], one["optimal_penalty"]
    counts = {"y*": (int(norm.between(3, 5).sum()), len(one)), "λ*": (int(best.between(0.2, 0.4).sum()), len(one))}
    return joined(out, Estimates(paired=True, counts=counts))


def quadratic_printed() -> Estimates:
    """Return Table 1 as printed."""
    return printed(_phases(quadratic.published(), "steps")[[LOSS_1, LOSS_2, FAR_1, FAR_2, CHANGE]])


_QUADRATIC = tuple(
    Setting(
        "paper",
        f"the toy with our sampling, phase 2 counted in {unit}",
        remembered(partial(quadratic_estimates, reading)),
        quadratic_printed,
    )
    for reading, unit in (("steps", "training steps"), ("updates", "hyperparameter updates"))
)
_INSTANCES = (Setting("paper", "the toy with our sampling", _QUADRATIC[0].ours),)
_FOUR = (LOSS_1, LOSS_2, FAR_1, FAR_2)


def _found_by_clip5(t: Estimates) -> Finding:
    near = [judging.near_limit(t.at("Clip5", c), 0, 0.005, f"Clip5, {c}") for c in (LOSS_1, LOSS_2)]
    near += [judging.near_limit(t.at("Clip5", c), 0, 0.0005, f"Clip5, {c}") for c in (FAR_1, FAR_2)]
    return Finding(tuple(near))


def _counted(name: str, t: Estimates) -> Finding:
    return Finding((judging.share(t.count(name), 1, f"instances with {name} in that range"),))


# --- Tables 2 and 3 ---------------------------------------------------------------------------------------------------


def with_bests(seeds: pd.DataFrame) -> pd.DataFrame:
    """Add the best row of each group of methods, seed by seed, to the rows of a table.

    Args:
        seeds: Columns `row`, `seed` and those of `tables.HEADS`.

    Returns:
        The same with the rows "best ClipR", "best unrolled", "best online", "best fixed", "best other" and "lead", by
        how much the best ClipR is below the best of the others.
    """
    groups = {"best ClipR": CLIPPED, "best unrolled": (GTGV, *UNROLLED), "best online": (GTGV, *UNROLLED, *CLIPPED)}
    fixed = tuple(row for row in dict.fromkeys(seeds["row"]) if str(row).startswith(FIXED))
    groups |= {"best fixed": fixed, "best other": (GTGV, *UNROLLED, *fixed)}
    columns, parts = list(HEADS), [seeds]
    for name, rows in groups.items():
        if set(rows) <= set(seeds["row"]) and rows:
            best = seeds[seeds["row"].isin(rows)].groupby("seed")[columns].min()
            parts.append(best.reset_index().assign(row=name))
    out = pd.concat(parts)
    ours, others = (out[out["row"] == name].set_index("seed")[columns] for name in ("best ClipR", "best other"))
    return pd.concat([out, (others - ours).dropna().reset_index().assign(row="lead")])


def _measured(seeds: pd.DataFrame, *more: str) -> Estimates:
    if seeds.empty:
        return Estimates()
    return measured(with_bests(seeds).rename(columns=HEADS), "row", [*HEADS.values(), *more], instance="seed")


def table_printed(number: int) -> Estimates:
    """Return Table 2 or 3 as printed, with the best of each group of methods."""
    one = tables.published(number).rename_axis("row").reset_index().assign(seed=0)
    return printed(with_bests(one).set_index("row")[list(HEADS)].rename(columns=HEADS))


def clip_shares(frame: pd.DataFrame) -> Estimates:
    """Return the share of clipped steps in the first and the last tenth of the training, ClipR, over seeds."""
    clipped = frame[frame["method"].isin(CLIPPED)] if len(frame) else frame
    rows = []
    for (method, seed), runs in clipped.groupby(["method", "seed"], sort=False) if len(clipped) else ():
        curves = np.array(runs["clip_share"].tolist(), dtype=float)
        tenth = max(1, curves.shape[1] // 10)
        rows.append((method, seed, curves[:, :tenth].mean(), curves[:, -tenth:].mean()))
    columns = ["method", "seed", "first tenth", "last tenth"]
    return measured(pd.DataFrame(rows, columns=columns), "method", columns[2:], instance="seed")


def mnist_estimates() -> Estimates:
    """Read Table 2 off the records, over seeds."""
    frame = store.load(mnist.STUDY, "paper")
    return joined(_measured(tables.mnist_seeds(frame)), clip_shares(frame))


def ptb_estimates() -> Estimates:
    """Read Table 3 off the records, over seeds."""
    frame = store.load(ptb.STUDY, "laptop")
    if frame.empty:
        return Estimates()
    plain = frame[(frame["method"] != FIXED) & (frame["outer_scale"] == 1)]
    drift = plain.assign(**{DRIFT: plain["keep_end"] - plain["keep_best"]})
    gaps = tables.seed_gaps(frame).rename(columns={"larger": GAP})
    return joined(
        _measured(tables.ptb_seeds(frame)),
        measured(drift, "method", [DRIFT], instance="seed"),
        measured(gaps[gaps["method"] != FIXED], "method", [GAP], instance="seed"),
        clip_shares(plain),
    )


def _below(first: tuple[str, ...], second: tuple[str, ...], *columns: str) -> Check:
    return lambda t: judging.all_below(t, first, second, *columns)


def _most_stable(t: Estimates) -> Finding:
    short = ("Unroll1", "Unroll5")
    return judging.all_below(t, short, (FIXED, GTGV, "Unroll10", *CLIPPED), STABILITY)


def _lead_grows(t: Estimates) -> Finding:
    early, late = t.at("lead", EARLY), t.at("lead", LATE)
    return Finding((judging.below(early, late, "lead with − lead without early stopping", t.paired),))


def _drifts_up(t: Estimates) -> Finding:
    return Finding(tuple(judging.above_limit(t.at(m, DRIFT), 0, f"{m}, {DRIFT}") for m in (GTGV, *UNROLLED)))


def _of_the_order_of_fixed(t: Estimates) -> Finding:
    fixed, rows = t.at("Fixed 0.35", STABILITY), (*CLIPPED, SCALED)
    what = f"{{}} − {SAME_ORDER:.2f} × Fixed 0.35, {STABILITY}"
    return Finding(tuple(judging.below(t.at(r, STABILITY), fixed, what.format(r), t.paired, SAME_ORDER) for r in rows))


def _close_minima(t: Estimates) -> Finding:
    online, fixed = t.at("best online", EARLY), t.at("best fixed", EARLY)
    return Finding((judging.near(online, fixed, 0.025 * fixed.value, "best online − best fixed", t.paired),))


def _no_larger_gap(t: Estimates) -> Finding:
    rows = (GTGV, *UNROLLED, *CLIPPED)
    return Finding(tuple(judging.below_limit(t.at(m, GAP), 0, f"{m} − the grid's best, {GAP}") for m in rows))


def _less_clipping(t: Estimates) -> Finding:
    return judging.rises_between(t, CLIPPED, "last tenth", "first tenth")


# --- the claims -------------------------------------------------------------------------------------------------------


def _of_table_1(name: str, place: str, statement: str, kind: Kind, check: Check, sanity: bool = False) -> Claim:
    settings = _INSTANCES if kind == "count" else _QUADRATIC
    name, items = f"clip-1-{name}", ("Table 1",)
    return Claim(name, "Clip", place, items, statement, kind, check, "clip_quadratic", settings, sanity)


TABLE_1 = (
    _of_table_1(
        "longer",
        "Table 1, caption",
        "longer unrolls have lower losses and more accurate penalties",
        "order",
        lambda t: judging.falls(t, ("Unroll1", "Unroll5", "Unroll10"), *_FOUR),
    ),
    _of_table_1(
        "clipping",
        "Table 1, caption",
        "clipping is better than every unroll",
        "order",
        _below(_BALLS, (*_SHORT, *_LONG), *_FOUR),
    ),
    _of_table_1(
        "stable",
        "Table 1, caption",
        "clipping is more stable: the fall of the learning rate costs it less than Unroll5 and Unroll10",
        "order",
        _below(_BALLS, _LONG, CHANGE),
    ),
    _of_table_1(
        "increase",
        "Section 4.1",
        "the loss of Unroll5 and Unroll10 increases when the learning rate falls",
        "order",
        lambda t: judging.rises_between(t, _LONG, LOSS_1, LOSS_2),
    ),
    _of_table_1(
        "correct",
        "Section 4.1",
        "Clip5 converges to the correct penalty, to the digits printed",
        "equality",
        _found_by_clip5,
    ),
    _of_table_1("norm", "Section 4.1", "the length of y* lies between 3.0 and 5.0", "count", partial(_counted, "y*")),
    _of_table_1("optimum", "Section 4.1", "λ* lies in [0.2, 0.4]", "count", partial(_counted, "λ*"), sanity=True),
)

_MNIST = (Setting("paper", "MNIST", remembered(mnist_estimates), partial(table_printed, 2)),)
_PTB = (
    Setting(
        "laptop",
        "10,000 words of Penn Treebank, a smaller LSTM",
        remembered(ptb_estimates),
        partial(table_printed, 3),
    ),
)


def _of_table_2(name: str, place: str, statement: str, check: Check, note: str = "", about: bool = True) -> Claim:
    items = ("Table 2",) if about else ()
    return Claim(f"clip-2-{name}", "Clip", place, items, statement, "order", check, "clip_mnist", _MNIST, note=note)


_TEN_TIMES = "the constant c of the unrolled methods is ten times that of ClipR, a choice of ours"

TABLE_2 = (
    _of_table_2(
        "clipping",
        "Table 2, caption",
        "clipping gives the best result, with and without early stopping",
        _below(("best ClipR",), ("best other",), EARLY, LATE),
        _TEN_TIMES,
    ),
    _of_table_2(
        "early",
        "Section 4.2",
        "clipping is ahead of the other methods by more where early stopping is not used",
        _lead_grows,
        _TEN_TIMES,
    ),
    _of_table_2("stable", "Table 2, caption", "the small unrolls (Unroll1, Unroll5) are the most stable", _most_stable),
    _of_table_2(
        "grid",
        "Section 4.2",
        "Clip20 performs better than the best fixed weight decay of a grid",
        _below(("Clip20",), (FIXED,), EARLY, LATE),
        "our grid has six points, none of them near the weight decay that the online methods find",
    ),
    _of_table_2(
        "clipped",
        "Section 3.4",
        "the sensitivity is clipped less often as the learning rate falls",
        _less_clipping,
        about=False,
    ),
)


def _of_table_3(
    name: str, place: str, statement: str, check: Check, kind: Kind = "order", note: str = "", about: bool = True
) -> Claim:
    items = ("Table 3",) if about else ()
    return Claim(f"clip-3-{name}", "Clip", place, items, statement, kind, check, "clip_ptb", _PTB, note=note)


_ONE_STEP, _OTHERS = (GTGV, "Unroll1"), ("Unroll5", "Unroll10", *CLIPPED)

TABLE_3 = (
    _of_table_3(
        "one-step",
        "Section 4.3",
        "with early stopping Unroll1-gTgV and Unroll1 are worse than all other methods that tune",
        _below(_OTHERS, _ONE_STEP, EARLY),
    ),
    _of_table_3(
        "unstable",
        "Section 4.3",
        "every unrolled method is less stable than every ClipR, that with two outer rates included",
        _below((*CLIPPED, SCALED), (GTGV, *UNROLLED), STABILITY),
    ),
    _of_table_3(
        "drift",
        "Section 4.3",
        "near convergence the unrolled methods drift to higher keep probabilities",
        _drifts_up,
        "shape",
        "from the best reading to the end",
    ),
    _of_table_3(
        "attenuated",
        "Section 4.3",
        "Unroll1 is more stable than Unroll1-gTgV",
        _below(("Unroll1",), (GTGV,), STABILITY),
    ),
    _of_table_3(
        "longer",
        "Section 4.3",
        "longer unrolls are more stable",
        lambda t: judging.falls(t, UNROLLED, STABILITY),
        "shape",
    ),
    _of_table_3(
        "same-order",
        "Section 4.3",
        "the instability of every ClipR is no more than of the order of that of the fixed keep probability 0.35",
        _of_the_order_of_fixed,
        "ratio",
        "of the same order: within a factor of the root of ten",
    ),
    _of_table_3(
        "ahead",
        "Section 5",
        "the best ClipR performs better than the best unroll, with and without early stopping",
        _below(("best ClipR",), ("best unrolled",), EARLY, LATE),
    ),
    _of_table_3(
        "minima",
        "Section 4.3",
        "the lowest validation loss of the methods that tune is close to that of one-shot search",
        _close_minima,
        "equality",
        "close: within 2.5 per cent",
    ),
    _of_table_3(
        "overfitting",
        "Section 4.3",
        "tuning does not overfit the validation set more: no larger gap to the test set than the grid's best",
        _no_larger_gap,
        note="the paper prints no test loss; the gap is our measure",
    ),
    _of_table_3(
        "clipped",
        "Section 3.4",
        "the sensitivity is clipped less often as the learning rate falls",
        _less_clipping,
        about=False,
    ),
)

CLAIMS = (*TABLE_1, *TABLE_2, *TABLE_3, *dynamics_claims.CLAIMS)
