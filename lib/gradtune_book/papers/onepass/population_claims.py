"""What the OnePass paper claims about ASHA and PBT with OnePass inside (Appendix B.8.2), as data."""

from __future__ import annotations

from functools import partial

import pandas as pd

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimates, joined, measured, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.onepass import energy_population, population_tables, uci_claims, uci_tables
from gradtune_book.papers.onepass.population_tables import ROWS, UNTIL
from gradtune_book.papers.onepass.uci_claims import MEAN, MEDIAN
from gradtune_book.papers.onepass.uci_onepass import ONE_PASS
from gradtune_book.records import store

NOTEBOOK = "onepass_population"
ASHA_RANDOM, ASHA_OURS, PBT_RANDOM, PBT_OURS = ROWS
_SURVIVORS = 28  # trials that the paper's budgets leave of 114,286


@remembered
def losses() -> Estimates:
    """Read Table 15 off the records: of a search mean and median of its trials, and the trainings of Table 1."""
    frame = store.load(energy_population.STUDY, "paper")
    if frame.empty:
        return Estimates()
    found = population_tables.until(frame).rename(columns={"mean": MEAN, "median": MEDIAN})
    return joined(uci_claims.of_set("energy"), measured(found, "row", [MEAN, MEDIAN, UNTIL]))


def printed() -> Estimates:
    """Return Table 15 as printed."""
    table: pd.DataFrame = uci_tables.published("onepass_table15.csv").loc["energy"]
    table = table.rename(index=lambda m: m.replace("Ours WD+LR+M", "WD+LR+M"))
    return uci_claims.printed_averages(table, lambda method: _SURVIVORS if method.startswith("ASHA") else 200)


_TABLE = (Setting("paper", "UCI Energy", losses, printed, ("Table 15",)),)
_TIME = (Setting("paper", "UCI Energy", losses, None, ("Figure 19",)),)


def _below(first: tuple[str, ...], second: tuple[str, ...]) -> Check:
    return lambda t: judging.all_below(t, first, second, MEAN, MEDIAN)


def _sooner(first: str, second: str, factor: float, t: Estimates) -> Finding:
    what = f"{first} − {factor:g} × {second}, {UNTIL}"
    return Finding((judging.below(t.at(first, UNTIL), t.at(second, UNTIL), what, factor=factor),))


def _alike(t: Estimates) -> Finding:
    random = t.at(PBT_RANDOM, UNTIL)
    what = f"{PBT_OURS} − {PBT_RANDOM}, {UNTIL}"
    return Finding((judging.near(t.at(PBT_OURS, UNTIL), random, 0.5 * random.value, what),))


def _claim(
    name: str, statement: str, check: Check, settings: tuple[Setting, ...], kind: Kind = "order", note: str = ""
) -> Claim:
    place = "Appendix B.8.2"
    return Claim(f"onepass-15-{name}", "OnePass", place, (), statement, kind, check, NOTEBOOK, settings, note=note)


CLAIMS = (
    _claim(
        "asha",
        "ASHA with OnePass inside averages better than ASHA with fixed hyperparameters",
        _below((ASHA_OURS,), (ASHA_RANDOM,)),
        _TABLE,
    ),
    _claim(
        "pbt",
        "PBT with OnePass inside averages better than PBT with fixed hyperparameters",
        _below((PBT_OURS,), (PBT_RANDOM,)),
        _TABLE,
    ),
    _claim(
        "over-all",
        "ASHA averages better than all methods of Table 1",
        _below((ASHA_RANDOM, ASHA_OURS), ONE_PASS),
        _TABLE,
    ),
    _claim(
        "faster",
        "OnePass inside lets ASHA reach low losses sooner",
        partial(_sooner, ASHA_OURS, ASHA_RANDOM, 1.0),
        _TIME,
        note="low: the lowest loss that every search has found",
    ),
    _claim(
        "pbt-alike",
        "in PBT it makes little difference to the time",
        _alike,
        _TIME,
        "equality",
        "little: less than half of the time; low as above",
    ),
    _claim(
        "pbt-slower",
        "PBT is substantially slower than ASHA to reach the lowest losses",
        partial(_sooner, ASHA_OURS, PBT_OURS, 0.5),
        _TIME,
        "ratio",
        "substantially: twice; seconds of training alone, without the checkpoints that the paper's program writes",
    ),
)
