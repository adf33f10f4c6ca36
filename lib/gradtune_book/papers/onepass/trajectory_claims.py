"""What the OnePass paper claims about its Figure 3, as data."""

from __future__ import annotations

from functools import partial

import numpy as np

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting
from gradtune_book.claims.estimates import Estimate, Estimates, mean_of, remembered
from gradtune_book.claims.judging import Finding
from gradtune_book.papers.onepass import uci_trajectories as study
from gradtune_book.papers.onepass.uci_tables import NAMES
from gradtune_book.records import store

NOTEBOOK = "onepass_uci_trajectories"
_MAP, _LOSSES, _LOST = "valley of the map", "log10 loss by learning rate", "diverged"
_LOW, _HIGH = "learning rate below 0.1", "learning rate from 0.1 on"


def of_set(dataset: str) -> Estimates:
    """Read one set's map and trajectories off the records."""
    frame = store.load(study.STUDY, "paper")
    here = frame[frame["dataset"] == dataset] if len(frame) else frame
    if here.empty:
        return Estimates()
    height = study.surface(here)
    lr, decay, loss = study.grid(height)
    low = np.nonzero(loss < loss.min() + 0.1 * (loss.max() - loss.min()))
    cells = {
        (_MAP, "log10 learning rate"): Estimate(float(np.median(lr[low[1]]))),
        (_MAP, "log10 weight decay"): Estimate(float(np.median(decay[low[0]]))),
    }
    fixed = here[here["method"] == study.RANDOM]
    for name, runs in ((_LOW, fixed[fixed["log10_lr"] < -1]), (_HIGH, fixed[fixed["log10_lr"] >= -1])):
        cells[name, _LOST] = mean_of(runs["test_mse"].isna().astype(float))
        kept = runs.dropna(subset="test_mse").sort_values("log10_lr")
        cells[name, _LOSSES] = mean_of(np.log10(kept["test_mse"]))
    moved = study.movement(here, height)
    counts = {"in the valley": study.in_the_valley(moved), "doubled back": study.doubled_back(moved)}
    return Estimates(cells, counts={name: (int(found.sum()), len(found)) for name, found in counts.items()})


SETS = tuple(Setting("paper", NAMES[s], remembered(partial(of_set, s))) for s in ("energy", "yacht"))


def _valley(t: Estimates) -> Finding:
    lr, decay = (t.at(_MAP, f"log10 {name}") for name in ("learning rate", "weight decay"))
    near = judging.near_limit(lr, -1, 0.5, "log10 learning rate less that of 0.1")
    return Finding((near, judging.below_limit(decay, -2, "log10 weight decay less that of 0.01")))


def _counted(name: str, least: float, t: Estimates) -> Finding:
    return Finding((judging.share(t.count(name), least, f"trajectories {name}"),))


def _up_to_a_point(t: Estimates) -> Finding:
    losses = t.at(_LOW, _LOSSES).values
    falls = judging.trend(range(len(losses)), losses, True, f"{_LOW}: loss with the learning rate")
    lost = judging.below(t.at(_LOW, _LOST), t.at(_HIGH, _LOST), f"share of diverged runs, {_LOW} − {_HIGH}")
    return Finding((falls, lost))


def _claim(name: str, place: str, statement: str, kind: Kind, check: Check, note: str = "") -> Claim:
    name, items = f"onepass-3-{name}", ("Figure 3",)
    return Claim(name, "OnePass", place, items, statement, kind, check, NOTEBOOK, SETS, note=note)


CLAIMS = (
    _claim(
        "valley",
        "Figure 3, caption",
        "final performance is high in a valley around a learning rate of 0.1 and below a weight decay of 0.01",
        "shape",
        _valley,
        "the lowest tenth of the map's range, half a decade to either side of 0.1",
    ),
    _claim(
        "rates",
        "Appendix B.1",
        "larger learning rates improve final performance up to a point, then cause instability",
        "shape",
        _up_to_a_point,
    ),
    _claim(
        "converge",
        "Appendix B.1",
        "trajectories generally converge to that valley: more than half of those that stay finite",
        "count",
        partial(_counted, "in the valley", 0.5),
        "within three quarters of a decade of 0.1, on which the count depends",
    ),
    _claim(
        "double-back",
        "Appendix B.1",
        "many trajectories select large weight decays before doubling back: more than a quarter",
        "count",
        partial(_counted, "doubled back", 0.25),
        "half a decade above both ends; the paper gives no count",
    ),
)
