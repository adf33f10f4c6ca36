"""What the OnePass paper claims about Fashion-MNIST (Section 4.2, Appendices B.5 and B.6), as data."""

from __future__ import annotations

from functools import partial

import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimates, measured, median_of, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.onepass import image_onepass, image_tables, uci_claims, uci_tables
from gradtune_book.papers.onepass.image_tables import RATIO, WITH, WITHOUT
from gradtune_book.papers.onepass.uci_claims import MEAN, MEDIAN, OURS
from gradtune_book.papers.onepass.uci_onepass import BAYES, THREE
from gradtune_book.records import store

NOTEBOOK = "onepass_fashion"
SCALAR = ("WD+LR", "WD+LR+M")
FIXED = ("Random", "Random-xLR", THREE, "Lorraine")
_ON, _DATA = ", with batch norm", "Fashion-MNIST"

_runs = remembered(image_tables.recorded)


def losses(measure: str) -> Estimates:
    """Read Tables 2, 7 and 8 off the records: averages of `test_ce` or `test_error`."""
    return uci_claims.averages(image_tables.plain(_runs()), f"test_{measure}")


def normalised() -> Estimates:
    """Read Table 9 off the records; the rows with batch norm end in words."""
    frame = _runs()
    here = frame[(frame["dataset"] == "fashion") & (frame["method"] != BAYES)] if len(frame) else frame
    if here.empty:
        return Estimates()
    rows = [m + _ON * bool(b) for m, b in zip(here["method"], here["batch_norm"])]
    return uci_claims.averages(here.assign(row=rows), "test_ce", "row")


def seconds() -> Estimates:
    """Read Figure 14 off the records: the time of a step over that of plain training."""
    return measured(image_tables.times(store.load(image_onepass.STUDY, "paper")), "method", [RATIO], median_of)


def printed(*numbers: int) -> Estimates:
    """Return the columns on Fashion-MNIST of Tables 2, 7 and 8 as printed."""
    tables = pd.concat([uci_tables.published(f"onepass_table{n}.csv").loc[_DATA] for n in numbers])
    tables = tables[~tables.index.duplicated()]
    return uci_claims.printed_averages(tables, lambda method: 32 if method == BAYES else 100)


def printed_normalised() -> Estimates:
    """Return Table 9 as printed."""
    table = uci_tables.published("onepass_table9.csv")
    halves = [table.loc[WITHOUT], table.loc[WITH].rename(index=lambda m: m + _ON)]
    return uci_claims.printed_averages(pd.concat(halves), lambda method: 100)


_LOSS = Setting("paper", _DATA, remembered(partial(losses, "ce")), partial(printed, 2), ("Table 2", "Figure 12"))
_ERRORS = Setting(
    "paper", f"{_DATA}, errors", remembered(partial(losses, "error")), partial(printed, 8), ("Table 8", "Figure 13")
)
_BAYES = Setting("paper", _DATA, _LOSS.ours, partial(printed, 2, 7), ("Table 7", "Figure 5"))
_NORM = Setting("paper", _DATA, remembered(normalised), printed_normalised, ("Table 9", "Figure 15"))
_TIME = Setting("paper", _DATA, remembered(seconds), None, ("Figure 14", "Figure 5"))


def _below(first: tuple[str, ...], second: tuple[str, ...]) -> Check:
    return lambda t: judging.all_below(t, first, second, MEAN, MEDIAN)


def _vicinity(t: Estimates) -> Finding:
    found = []
    for c in (MEAN, MEDIAN):
        best = t.at(BAYES, c)
        found += [judging.near(t.at(m, c), best, 0.1 * best.value, f"{m} − {BAYES}, {c}") for m in SCALAR]
    return Finding(tuple(found))


def _changed(methods: tuple[str, ...], better: bool, t: Estimates) -> Finding:
    found = []
    for c in (MEAN, MEDIAN):
        for m in methods:
            off, on = t.at(m, c), t.at(m + _ON, c)
            first, second = (on, off) if better else (off, on)
            found.append(judging.below(first, second, f"{m}: {'with' if better else 'without'} − other, {c}"))
    return Finding(tuple(found))


def _unchanged(t: Estimates) -> Finding:
    found = []
    for c in (MEAN, MEDIAN):
        for m in SCALAR:
            off = t.at(m, c)
            found.append(judging.near(t.at(m + _ON, c), off, 0.1 * off.value, f"{m}: with − without, {c}"))
    return Finding(tuple(found))


def twice(methods: tuple[str, ...], t: Estimates) -> Finding:
    """Ask whether a step of each method costs less than two of plain training."""
    return Finding(tuple(judging.below_limit(t.at(m, RATIO), 2.0, f"{m} − 2, time of a step") for m in methods))


def jump(t: Estimates) -> Finding:
    """Ask whether a learning rate for each weight costs a fifth more than one for all."""
    scalar, wide = t.at("WD+LR+M", RATIO), t.at("WD+HDLR+M", RATIO)
    return Finding((judging.below(scalar, wide, "WD+LR+M − WD+HDLR+M / 1.2, time of a step", factor=1 / 1.2),))


def _claim(
    name: str,
    place: str,
    statement: str,
    check: Check,
    settings: tuple[Setting, ...],
    kind: Kind = "order",
    note: str = "",
) -> Claim:
    return Claim(f"onepass-2-{name}", "OnePass", place, (), statement, kind, check, NOTEBOOK, settings, note=note)


_TUNING = ("Lorraine", "Baydin", *OURS, "Diff-through-Opt")
CLAIMS = (
    _claim(
        "lower",
        "Section 4.2",
        "on Fashion-MNIST OnePass averages better than Random, its variants and Lorraine",
        _below(OURS, FIXED),
        (_LOSS, _ERRORS),
    ),
    _claim(
        "baydin",
        "Section 4.2",
        "on Fashion-MNIST WD+LR and WD+LR+M average better than Baydin",
        _below(SCALAR, ("Baydin",)),
        (_LOSS, _ERRORS),
    ),
    _claim(
        "exact",
        "Section 4.2",
        "on Fashion-MNIST Diff-through-Opt fails to beat WD+LR and WD+LR+M: they average better",
        _below(SCALAR, ("Diff-through-Opt",)),
        (_LOSS, _ERRORS),
    ),
    _claim(
        "bayes",
        "Appendix B.5",
        "on Fashion-MNIST the averages of OnePass fall short of Bayesian optimisation",
        _below((BAYES,), OURS),
        (_BAYES,),
        note="another program for Bayesian optimisation than the paper's",
    ),
    _claim(
        "vicinity",
        "Appendix B.5",
        "on Fashion-MNIST WD+LR and WD+LR+M are in the vicinity of Bayesian optimisation",
        _vicinity,
        (_BAYES,),
        "equality",
        "vicinity: averages within a tenth",
    ),
    _claim(
        "norm-ours",
        "Appendix B.6.2",
        "OnePass benefits slightly from the absence of batch normalisation",
        partial(_changed, OURS, False),
        (_NORM,),
    ),
    _claim(
        "norm-others",
        "Appendix B.6.2",
        "the other algorithms benefit slightly from batch normalisation",
        partial(_changed, (*FIXED, "Baydin"), True),
        (_NORM,),
        note="without Diff-through-Opt, of which the paper's own numbers say otherwise",
    ),
    _claim(
        "norm-small",
        "Appendix B.6.2",
        "batch normalisation does not substantially improve or hinder WD+LR and WD+LR+M",
        _unchanged,
        (_NORM,),
        "equality",
        "substantially: by a tenth of the average",
    ),
    _claim(
        "time",
        "Section 4.3",
        "on Fashion-MNIST every method that tunes costs less than two trainings with fixed hyperparameters",
        partial(twice, _TUNING),
        (_TIME,),
        "ratio",
        "steps of one net, taken in turns on a processor, not on the paper's GPU",
    ),
    _claim(
        "jump",
        "Appendix B.6.1",
        "a learning rate for each weight makes a prominent jump in runtime",
        jump,
        (_TIME,),
        "ratio",
        "prominent: by a fifth of WD+LR+M's time",
    ),
)
