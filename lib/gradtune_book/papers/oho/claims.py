"""What the OHO paper claims about its Figures 2 to 10, as data.

A claim on CIFAR-10 that the text makes there alone is put to the test on MNIST, which its setting says. The paper
prints no table; the one number that it prints is the length of a training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from gradtune_book import paths
from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimate, Estimates, Missing, joined, measured, printed, remembered
from gradtune_book.claims.judging import Comparison, Finding
from gradtune_book.papers.oho import dynamics, layerwise, performance, tables
from gradtune_book.papers.oho.schedules import STEP, WAYS
from gradtune_book.papers.oho.tables import (
    BACK,
    GLOBAL,
    LAYERWISE,
    LOSS,
    RATE,
    SECONDS,
    SPREAD,
    SWING,
    TRAININGS,
)  # fmt: skip
from gradtune_book.papers.oho.training import TARGET
from gradtune_book.records import store

PERFORMANCE, SETS, DYNAMICS = "oho_performance", "oho_layerwise", "oho_dynamics"
"""The chapters."""


# --- Figures 2 and 3 --------------------------------------------------------------------------------------------------


def performance_estimates(scale: str) -> Estimates:
    """Read Figures 2 and 3 off the records: draws are paired, since all rows start from the same ones."""
    frame = store.load(performance.STUDY, scale)
    if frame.empty:
        return Estimates()
    one = tables.trainings(frame)
    out = measured(one, "row", (LOSS, SPREAD, SECONDS, RATE), instance="seed")
    bayes = measured(tables.searches(frame), "row", (TRAININGS,))
    good = {row: (int((runs[LOSS] <= TARGET).sum()), len(runs)) for row, runs in one.groupby("row")}
    return replace(joined(out, bayes), paired=True, counts=good)


def performance_printed() -> Estimates:
    """Return the one number that Section 6.1 prints, in trainings without OHO."""
    (ratio,) = pd.read_csv(paths.published_root() / "oho_cost.csv")["value"]
    return printed(pd.DataFrame({SECONDS: {"Fixed": 1.0, GLOBAL: float(ratio)}}))


_MLP = Setting(
    "paper", "MNIST, 4-layer net", remembered(lambda: performance_estimates("paper")), performance_printed
)  # fmt: skip
_CNN = Setting(
    "laptop", "MNIST in part, a narrow convolutional net", remembered(lambda: performance_estimates("laptop")),
    performance_printed,
)  # fmt: skip
_NOT_RUN = Setting("paper", "CIFAR-10, ResNet-18", Estimates)


def _single_run(t: Estimates) -> Finding:
    return Finding((judging.share(t.count(GLOBAL), 0.5, f"trainings with OHO at {TARGET} or below"),))


def _several(t: Estimates) -> Finding:
    found = []
    for way in WAYS:
        good, n = t.count(way)
        found.append(judging.share((n - good, n), 0.5, f"random trainings of {way} above {TARGET}"))
    return Finding(tuple(found))


def _several_by_bayes(t: Estimates) -> Finding:
    what = f"Bayesian optimisation of {{}}, {TRAININGS} − 1"
    return Finding(tuple(judging.above_limit(t.at(way, TRAININGS), 1.0, what.format(way)) for way in WAYS))


def _twelve(t: Estimates) -> Finding:
    plain, ours = t.at("Fixed", SECONDS), t.at(GLOBAL, SECONDS)
    return Finding(
        (
            judging.below(plain, ours, "seconds of Fixed − a sixth of those of OHO", False, 1 / 6),
            judging.below(ours, plain, "seconds of OHO − 24 times those of Fixed", False, 24),
        )
    )


def _faster(t: Estimates) -> Finding:
    return judging.all_below(t, WAYS, (GLOBAL,), RATE)


def _better(t: Estimates) -> Finding:
    return judging.all_below(t, (GLOBAL,), WAYS, LOSS)


def _narrower(t: Estimates) -> Finding:
    return judging.all_below(t, (GLOBAL,), WAYS, SPREAD)


def _layers_better(t: Estimates) -> Finding:
    return judging.all_below(t, (LAYERWISE,), (GLOBAL,), LOSS)


# --- Figures 4 and 5 --------------------------------------------------------------------------------------------------


def sets_estimates() -> Estimates:
    """Read Figures 4 and 5 off the records, over seeds."""
    frame = store.load(layerwise.STUDY, "paper")
    if frame.empty:
        return Estimates()
    five = tables.of_figure_5(frame)
    out = [
        measured(five.assign(row=[f"k = {k}" for k in five["sets"]]), "row", (LOSS, SPREAD, SECONDS), instance="seed")
    ]
    four, apart = tables.of_figure_4(frame), tables.clustering(frame)
    out += [measured(four, "row", (LOSS,), instance="seed")] if len(four) else []
    out += [measured(apart, "row", ("apart",), instance="seed")] if len(apart) else []
    return joined(*out)


_SETS = (Setting("paper", "MNIST, 4-layer net", remembered(sets_estimates)),)
_MNIST_SETS = layerwise.SIZES["paper"]


def _all(rows: Sequence[str], wanted: int, what: str) -> Sequence[str]:
    """Return rows that a claim is about, all of which have to be recorded.

    Raises:
        Missing: some are not.
    """
    if len(rows) < wanted:
        raise Missing(f"{what}: {len(rows)} of {wanted} recorded")
    return rows


def _trend(prefix: str, numbers: Sequence[float], column: str, falling: bool, what: str) -> Check:
    """Check a trend over the rows `<prefix><number>`, all of which have to be recorded."""

    def check(t: Estimates) -> Finding:
        found = [(k, t.at(f"{prefix}{k:g}", column)) for k in sorted(numbers)]
        pairs = [(k, v) for k, e in found for v in e.values if math.isfinite(v)]
        return Finding((judging.trend([k for k, _ in pairs], [v for _, v in pairs], falling, f"{what}, {column}"),))

    return check


def _layers_below_global(t: Estimates) -> Finding:
    rows = _all([r for r in t.rows(LOSS) if r.startswith(f"{GLOBAL}, ")], len(_MNIST_SETS.starts), "initial rates")
    starts = [r.removeprefix(GLOBAL) for r in rows]
    pairs = [(t.at(LAYERWISE + s, LOSS), t.at(GLOBAL + s, LOSS), s.removeprefix(", ")) for s in starts]
    what = "layerwise − global from {}, " + LOSS
    return Finding(tuple(judging.below(a, b, what.format(s), t.paired) for a, b, s in pairs))


def _cluster(t: Estimates) -> Finding:
    return judging.all_below(t, ("starts",), ("layers",), "apart")


# --- Figures 6 to 10 --------------------------------------------------------------------------------------------------

CALM = "runs whose norm of the influence does not explode"
_PART = dynamics.SIZES["laptop"]
_NEVER = 1e6  # stands for no reset among the intervals, more steps than a training has


def dynamics_estimates(scale: str) -> Estimates:
    """Read Figures 6 to 10 off the records, over seeds."""
    frame = store.load(dynamics.STUDY, scale)
    if frame.empty:
        return Estimates()
    out = []
    for name in (dynamics.RATE_RESET, dynamics.DECAY_RESET):
        found = tables.resets(frame, name)
        if len(found):
            kinds = [f"{name} in epoch {at}, {after}" for at, after in zip(found["at"], found["after"])]
            out.append(measured(found.assign(row=kinds), "row", (BACK, LOSS, SWING), instance="seed"))
    outer = tables.outer_data(frame)
    out.append(measured(outer, "row", (LOSS, "final learning rate", "final weight decay"), instance="seed"))
    every = tables.intervals(frame)
    if len(every):
        rows = [f"interval {min(k, _NEVER):g}" for k in every["interval"]]
        out.append(measured(every.assign(row=rows), "row", (LOSS, SPREAD), instance="seed"))
        out.append(measured(every, "row", (LOSS,), instance="seed"))
    found = tables.correlations(frame)
    columns = ("first size", "last size", "first deviation", "last deviation")
    if len(found):
        growth = tables.norms(frame)
        growth = growth[growth["part"] == dynamics.NORMS]
        out.append(measured(found, "row", columns, instance="seed"))
        out.append(measured(growth.assign(row=[f"from {lr:g}" for lr in growth["lr"]]), "row", ("early", "late")))
    return replace(joined(*out), paired=True, counts=_norm_counts(frame))


def _norm_counts(frame: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Count runs by whether norms explode: at small and large meta rates, and at that of Figure 10."""
    norms = tables.norms(frame)
    if norms.empty:
        return {}
    bad = norms["lr explodes"] | norms["decay explodes"]
    large, ten = norms["meta_rate"] > 1e-4, norms["part"] == dynamics.NORMS
    out = {"calm": (~bad)[ten]}
    if set(norms["meta_rate"]) >= {*_PART.meta_rates, _PART.meta_rate}:
        out |= {"small calm": (~bad)[~large], "large exploded": bad[large]}
        out |= {f"from {lr:g}": bad[large & (norms["lr"] == lr)] for lr in norms["lr"].unique()}
    jacobian = norms.loc[ten, "jacobian explodes"].dropna()
    out["jacobian calm"] = jacobian == 0
    return {name: (int(x.sum()), len(x)) for name, x in out.items() if len(x)}


_SMALL = (Setting("laptop", "MNIST, 5,000 training images", remembered(lambda: dynamics_estimates("laptop"))),)


def _resets(name: str, after: str, t: Estimates, column: str) -> list[tuple[str, Estimate]]:
    rows = [r for r in t.rows(LOSS) if r.startswith(name) and r.endswith(f", {after}")]
    moved = t.rows(column)  # the others were reset to where they were
    return [(r, t.at(r, column)) for r in _all(rows, len(_PART.resets), name) if r in moved]


def _comes_back(name: str) -> Check:
    def check(t: Estimates) -> Finding:
        found = _resets(name, "OHO", t, BACK)
        return Finding(tuple(judging.below_limit(e, 0.5, f"{r}, {BACK} − 0.5") for r, e in found))

    return check


def _moving_below_fixed(name: str, column: str) -> Check:
    def check(t: Estimates) -> Finding:
        found = []
        for row, moving in _resets(name, "OHO", t, column):
            fixed = t.at(row.replace(", OHO", ", fixed"), column)
            found.append(judging.below(moving, fixed, f"{row} − fixed, {column}", t.paired))
        return Finding(tuple(found))

    return check


def _outer_row(kind: str, number: int = 0) -> str:
    return f"{tables.OUTER_ROWS[kind]}, {_PART.outer_batches[number]}"


def _validation_below_training(t: Estimates) -> Finding:
    return judging.all_below(t, (_outer_row("validation"),), (_outer_row("training"),), LOSS)


def _stops_early(t: Estimates) -> Finding:
    val, train = _outer_row("validation"), _outer_row("training")
    decay, rate, start = "final weight decay", "final learning rate", _PART.base.lr
    return Finding(
        (
            *judging.all_below(t, (train,), (val,), decay).comparisons,
            judging.below_limit(t.at(val, rate), start, f"{val}, {rate} − the initial one"),
        )
    )


def _larger_is_better(t: Estimates) -> Finding:
    return judging.falls(t, [_outer_row("validation", k) for k in range(len(_PART.outer_batches))], LOSS)


def _on_par_with_step(t: Estimates) -> Finding:
    ours, step = t.at(_outer_row("validation"), LOSS), t.at(STEP, LOSS)
    return Finding(
        (judging.near(ours, step, 0.1 * step.value, f"{_outer_row('validation')} − {STEP}, {LOSS}", t.paired),)
    )


def _never_is_best(t: Estimates) -> Finding:
    return judging.all_below(t, ("never",), [f"every {k}" for k in _PART.intervals], LOSS)


def _counts(least: float, *names: tuple[str, str]) -> Check:
    return lambda t: Finding(tuple(judging.share(t.count(name), least, what) for name, what in names))


def _plateau(t: Estimates) -> Finding:
    rows = _all([r for r in t.rows("late") if r.startswith("from ")], len(_PART.starts), "Figure 10")
    what = "{}, growth of log10 of the norm, late − early"
    return Finding(tuple(judging.below(t.at(r, "late"), t.at(r, "early"), what.format(r)) for r in rows))


def _decorrelates(t: Estimates) -> Finding:
    rows = _all([r for r in t.rows("last size") if r.startswith("from ")], len(_PART.starts), "Figure 10")
    found: list[Comparison] = []
    for r in rows:
        found.append(judging.below(t.at(r, "last size"), t.at(r, "first size"), f"{r}, last − first size", t.paired))
        found.append(judging.below_limit(t.at(r, "last size"), 0.1, f"{r}, size of the last mean − 0.1"))
        deviations = t.at(r, "last deviation"), t.at(r, "first deviation")
        found.append(judging.below(*deviations, f"{r}, last − first deviation", t.paired))
    return Finding(tuple(found))


# --- the claims -------------------------------------------------------------------------------------------------------

Settings = tuple[Setting, ...]


def _maker(notebook: str, place: str) -> Callable[..., Claim]:
    def make(
        name: str, figure: int, statement: str, kind: Kind, check: Check, settings: Settings, note: str = ""
    ) -> Claim:  # fmt: skip
        items = (f"Figure {figure}",)
        return Claim(f"oho-{figure}-{name}", "OHO", place, items, statement, kind, check, notebook, settings, note=note)

    return make


_BOTH = (_MLP, _CNN)
_RANGE = "it depends on the range of the draws, which the text does not give"
_one = _maker(PERFORMANCE, "Section 6.1")
PERFORMANCE_CLAIMS = (
    _one("single", 2, f"OHO usually reaches a test loss of {TARGET} in a single training", "count", _single_run, _BOTH,
         "usually: in more than half of the trainings; " + _RANGE),
    _one("random", 2, "random search needs several trainings, whichever the way to train", "count", _several, _BOTH,
         "several: more than half of the trainings miss it; " + _RANGE),
    _one("bayes", 2, "Bayesian optimisation needs several trainings, whichever the way to train", "count",
         _several_by_bayes, _BOTH, _RANGE),
    _one("twelve", 2, "a training takes about 12 times as long with OHO as without", "ratio", _twelve, _BOTH,
         "about: within a factor of 2; the processor's time of a training"),
    _one("faster", 2, "OHO finds a good solution in less time than random search of any way to train", "order", _faster,
         _BOTH, "good trainings a minute: the share that is good, divided by what a training takes"),
    _one("better", 3, "OHO ends at a lower test loss than every other way to train", "order", _better, _BOTH,
         "a diverged training counts as a guess"),
    _one("variance", 3, "OHO's test losses scatter less over initial hyperparameters", "order", _narrower, _BOTH,
         "scatter: mean distance from the median"),
    _one("layerwise", 3, "layerwise OHO has a lower test loss than global OHO", "order", _layers_better,
         (_MLP, _NOT_RUN), "the text says so of CIFAR-10"),
)  # fmt: skip
_two = _maker(SETS, "Section 6.2")
SETS_CLAIMS = (
    _two("layers", 4, "layerwise OHO has a lower test loss than global OHO from every initial learning rate", "order",
         _layers_below_global, (*_SETS, _NOT_RUN)),
    _two("cluster", 4, "early in training learning rates lie together by layer, wherever they started", "order",
         _cluster, (*_SETS, _NOT_RUN), "half-way, the starts of a layer lie closer together than the layers"),
    _two("loss", 5, "the test loss falls as the number of sets grows", "shape",
         _trend("k = ", _MNIST_SETS.sets, LOSS, True, "number of sets"), _SETS),
    _two("variance", 5, "the variance shrinks as the number of sets grows", "shape",
         _trend("k = ", _MNIST_SETS.sets, SPREAD, True, "number of sets"), _SETS,
         "variance: distance from the median, run by run"),
    _two("time", 5, "the time of a training grows with the number of sets", "shape",
         _trend("k = ", _MNIST_SETS.sets, SECONDS, False, "number of sets"), _SETS),
)  # fmt: skip
_three, _four, _five = (_maker(DYNAMICS, f"Section 6.{k}") for k in (3, 4, 5))
_SOON = "soon: a tenth of the training later less than half of the jump is left"
DYNAMICS_CLAIMS = (
    _three("rate", 6, "a learning rate that was reset is soon back at its value before", "shape",
           _comes_back(dynamics.RATE_RESET), _SMALL, _SOON),
    _three("rate-loss", 6, "with OHO the test loss after a reset of the rate is lower than with fixed hyperparameters",
           "order", _moving_below_fixed(dynamics.RATE_RESET, LOSS), _SMALL),
    _three("decay", 6, "a weight decay that was reset to zero is soon back at its value before", "shape",
           _comes_back(dynamics.DECAY_RESET), _SMALL, _SOON),
    _three("decay-swing", 6, "with OHO the test loss fluctuates less than with fixed hyperparameters", "order",
           _moving_below_fixed(dynamics.DECAY_RESET, SWING), _SMALL, "after a reset of the weight decay"),
    _four("intervals", 8, "the test loss falls as the influence is reset less often", "shape",
          _trend("interval ", (*_PART.intervals, _NEVER), LOSS, True, "interval"), _SMALL),
    _four("variance", 8, "the variance falls as the influence is reset less often", "shape",
          _trend("interval ", (*_PART.intervals, _NEVER), SPREAD, True, "interval"), _SMALL,
          "variance: distance from the median, run by run"),
    _four("never", 8, "without any reset OHO is best", "order", _never_is_best, _SMALL),
    _five("outer", 7, "training images as outer data generalise worse", "order", _validation_below_training, _SMALL),
    _five("early", 7, "with validation images the learning rate shrinks and the weight decay grows", "order",
          _stops_early, _SMALL, "the weight decay is compared with that of training images as outer data"),
    _five("batch", 7, "the larger the outer batch, the lower the test loss", "order", _larger_is_better, _SMALL),
    _five("step", 7, "an outer batch of 100 is on par with the step schedule", "equality", _on_par_with_step, _SMALL,
          "on par: within 10 per cent; our schedule falls after each third of the training and is not tuned"),
    _five("large", 9, "the norm of the influence explodes at meta rates above 0.0001, and not below", "count",
          _counts(0.5, ("large exploded", "runs at large meta rates whose norm explodes"),
                  ("small calm", "runs at small meta rates whose norm does not")), _SMALL),
    _five("starts", 9, "initial learning rates of 0.001 and 0.01 are unstable at large meta rates", "count",
          _counts(0.5, *((f"from {lr:g}", f"runs from {lr:g} whose norm explodes") for lr in (1e-3, 1e-2))), _SMALL),
    _five("rarely", 10, "at a meta rate of 5e-5 the norm of the influence rarely explodes", "count",
          _counts(0.5, ("calm", CALM)), _SMALL),
    _five("plateau", 10, "the norm levels off: it grows less late than early", "shape", _plateau, _SMALL),
    _five("jacobian", 10, "nor does the norm of a step's Jacobian explode", "count",
          _counts(0.5, ("jacobian calm", "runs whose norm of the Jacobian does not explode")), _SMALL),
    _five("correlation", 10, "successive gradients correlate at first and soon no more, with a falling deviation",
          "shape", _decorrelates, _SMALL, "no more: a mean of less than 0.1 in size in the last window"),
)  # fmt: skip
CLAIMS = (*PERFORMANCE_CLAIMS, *SETS_CLAIMS, *DYNAMICS_CLAIMS)
