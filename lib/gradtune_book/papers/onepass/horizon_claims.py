"""What the OnePass paper claims about short and long horizons (Appendix B.7), as data."""

from __future__ import annotations

from functools import partial

import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimates, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.onepass import image_horizon, uci_claims, uci_horizon, uci_tables
from gradtune_book.papers.onepass.image_horizon import LONG, MEDIUM
from gradtune_book.papers.onepass.uci_claims import MEAN, MEDIAN
from gradtune_book.papers.onepass.uci_tables import NAMES, SETS, UNITS
from gradtune_book.records import store

NOTEBOOK = "onepass_horizon"
_SHORT = ("WD+LR+M", "Diff-through-Opt")
_STEPS = {LONG: image_horizon.SIZES["paper"].steps, MEDIUM: image_horizon.SIZES["paper"].medium_steps}

_tables = remembered(lambda: store.load(uci_horizon.STUDY, "paper"))
_images = remembered(lambda: store.load(image_horizon.STUDY.name, "paper"))


def truncated(dataset: str) -> Estimates:
    """Read Table 10 off the records for one set."""
    frame = uci_horizon.short_runs(_tables())
    here = frame[frame["dataset"] == dataset] if len(frame) else frame
    return uci_claims.averages(here.assign(test_mse=here["test_mse"] * UNITS.get(dataset, 1.0)) if len(here) else here)


def images(dataset: str, longer: str) -> Estimates:
    """Read Table 11 or 12 off the records for one set of images: cross-entropies."""
    frame = _images()
    here = image_horizon.of_length(frame, _STEPS[longer])
    return uci_claims.averages(here[here["dataset"] == dataset] if len(here) else here, "test_ce")


def whole() -> Estimates:
    """Read Table 13 off the records."""
    frame = uci_horizon.full_runs(_tables(), uci_claims.recorded())
    return uci_claims.averages(frame) if len(frame) else Estimates()


def printed(number: int, dataset: str, runs: int, long_runs: int | None = None) -> Estimates:
    """Return one set's columns of Tables 10 to 13 as printed.

    Args:
        number: Number of the table.
        dataset: The set, as its file calls it in our names, or the measure.
        runs: Runs of each method.
        long_runs: Runs of the longest horizon, where they are others.
    """
    table: pd.DataFrame = uci_tables.published(f"onepass_table{number}.csv").loc[dataset]
    return uci_claims.printed_averages(table, lambda method: long_runs or runs if method == LONG else runs)


_UCI = tuple(
    Setting("paper", f"{NAMES[s]}, 200 steps", remembered(partial(truncated, s)), partial(printed, 10, s, 60))
    for s in SETS.values()
)


def _pictures(longer: str, number: int, runs: int) -> tuple[Setting, ...]:
    theirs = {"fashion": partial(printed, number, "cross-entropy", runs)}
    steps = f"{_STEPS[longer]:,} steps"
    return tuple(
        Setting("paper", f"{NAMES[s]}, {steps}", remembered(partial(images, s, longer)), theirs.get(s))
        for s in ("fashion", "mnist")
    )


_TRUNCATED, _MEDIUM = _pictures(LONG, 11, 60), _pictures(MEDIUM, 12, 100)
_WHOLE = (Setting("paper", "UCI Energy, 4000 steps", remembered(whole), partial(printed, 13, "energy", 200, 36)),)


def _similar(t: Estimates) -> Finding:
    found = []
    for column in (MEAN, MEDIAN):
        for method in _SHORT:
            short = t.at(method, column)
            what = f"{uci_tables.TITLES[LONG]} − {method}, {column}"
            found.append(judging.near(t.at(LONG, column), short, 0.1 * short.value, what))
    return Finding(tuple(found))


def _no_better(t: Estimates) -> Finding:
    """Each short horizon is below the longer one plus a twentieth."""
    pairs = [(m, c) for c in (MEAN, MEDIAN) for m in _SHORT]
    what = f"{{}} − {uci_tables.TITLES[MEDIUM]} / 0.95, {{}}"
    return Finding(
        tuple(judging.below(t.at(m, c), t.at(MEDIUM, c), what.format(m, c), factor=1 / 0.95) for m, c in pairs)
    )


def _much_higher(t: Estimates) -> Finding:
    pairs = [(m, c) for c in (MEAN, MEDIAN) for m in _SHORT]
    what = f"{{}} − half of {uci_tables.TITLES[LONG]}, {{}}"
    return Finding(tuple(judging.below(t.at(m, c), t.at(LONG, c), what.format(m, c), factor=0.5) for m, c in pairs))


def _below(first: tuple[str, ...], second: tuple[str, ...]) -> Check:
    return lambda t: judging.all_below(t, first, second, MEAN, MEDIAN)


def _claim(
    number: int,
    name: str,
    place: str,
    statement: str,
    check: Check,
    settings: tuple[Setting, ...],
    kind: Kind = "order",
    note: str = "",
) -> Claim:
    figure = {10: "Figure 16", 11: "Figure 16", 12: "Figure 17", 13: "Figure 18"}[number]
    name, items = f"onepass-{number}-{name}", (f"Table {number}", figure)
    return Claim(name, "OnePass", place, items, statement, kind, check, NOTEBOOK, settings, note=note)


CLAIMS = (
    _claim(
        10,
        "full",
        "Appendix B.7.1",
        "on UCI and Kin8nm the full horizon averages better than all short-horizon methods and Random",
        _below((LONG,), ("Random", *_SHORT)),
        _UCI,
    ),
    _claim(
        11,
        "similar",
        "Appendix B.7.1",
        "on images the full horizon performs much like the short ones",
        _similar,
        _TRUNCATED,
        "equality",
        "much like: averages within a tenth",
    ),
    _claim(
        12,
        "medium",
        "Appendix B.7.2",
        "on images a medium horizon does not substantially improve on short ones",
        _no_better,
        _MEDIUM,
        note="substantially: by a twentieth",
    ),
    _claim(
        12,
        "short",
        "Appendix B.7.2",
        "on images short horizons perform well: they average better than Random",
        _below(_SHORT, ("Random",)),
        _MEDIUM,
    ),
    _claim(
        13,
        "random",
        "Appendix B.7.3",
        "on UCI Energy the full horizon of 4000 steps averages better than Random and Random (× LR)",
        _below((LONG,), ("Random", "Random-xLR")),
        _WHOLE,
    ),
    _claim(
        13,
        "short",
        "Appendix B.7.3",
        "on UCI Energy the full horizon averages much worse than short horizons with more updates",
        _much_higher,
        _WHOLE,
        "ratio",
        "much worse: at least twice the loss",
    ),
)
