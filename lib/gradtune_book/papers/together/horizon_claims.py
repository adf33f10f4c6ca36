"""What two works say of long horizons, and what this book found, as claims.

REPLAY (Engstrom et al. 2025) is none of the five papers, so that its statement on memory and time stands among this
book's own, with its place. FDS's statement on reverse mode and the bound of its Theorem 4.1 are judged at lengths that
it did not take.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradtune_book.claims import judging
from gradtune_book.claims.claim import Check, Claim, Kind, Setting, Source
from gradtune_book.claims.estimates import Estimates, mean_of, remembered
from gradtune_book.claims.inventory import OWN
from gradtune_book.claims.judging import Finding
from gradtune_book.papers import sharing
from gradtune_book.papers.together import cleaning, horizon_tables, long_horizons, long_schedules, long_sharing
from gradtune_book.records import store

NOTEBOOK = "long_horizons"
_SCALE = "laptop"
_STATES, _TAKEN = "trees whose states stay below k log_k T", "trees that take a step at most log_k T times again"
_COUNTS = "measurements in which the counts are those of the formulas"
_GROWS = "memory at T over T of stored states"
_BOUND = "windows whose error is below the bound"
_SMOOTH = "smooth nets whose finite step of 0.001 agrees to 1 %"
_ROUGH = "nets of ReLUs whose finite step of 0.001 agrees to 1 %"


def stores_estimates() -> Estimates:
    """Read the counts of the trees, and how memory grows with T, off the records of `benchmarks/long_horizons.py`."""
    frame = store.load("horizon_cost", "paper")
    if frame.empty:
        return Estimates()
    trees = frame[frame["branching"] > 0]
    depth = np.log(trees["steps"]) / np.log(trees["branching"])
    right = (trees["replayed"] == trees["formula_replayed"]) & (trees["states"] == trees["formula_states"])
    counts = {
        _STATES: (int((trees["states"] <= trees["branching"] * np.ceil(depth)).sum()), len(trees)),
        _TAKEN: (int((trees["replayed"] <= np.ceil(depth) * trees["steps"]).sum()), len(trees)),
        _COUNTS: (int(right.sum()), len(trees)),
    }
    states = frame[frame["method"] == "state"].groupby("steps")["tensors_mb"].last()
    each = states / states.index
    return Estimates({("state", _GROWS): mean_of(each / each.iloc[-1])}, counts=counts)


def sharing_estimates() -> Estimates:
    """Read off `long_sharing` how many window lengths keep the theorem's bound, and the error of seven windows."""
    frame = store.load(long_sharing.STUDY, _SCALE)
    if frame.empty:
        return Estimates()
    below = total = 0
    cells = {}
    for steps, g in horizon_tables.noises(frame).items():
        noise = sharing.measured(g)
        for n in {*np.geomspace(1, steps, 12).astype(int).tolist()}:
            error = sharing.squared_error(g, noise.mu, n)
            below += error <= sharing.bound(noise.variance, noise.epsilon, noise.c, n) * (1 + 1e-9)
            total += 1
        each = ((g - noise.mu) ** 2).mean(1), ((sharing.shared(g, 7) - noise.mu) ** 2).mean(1)
        cells[f"T = {steps}", "per step"], cells[f"T = {steps}", "seven windows"] = mean_of(each[0]), mean_of(each[1])
    return Estimates(cells, paired=True, counts={_BOUND: (int(below), total)} if total else {})


def smoothness_estimates() -> Estimates:
    """Count the exact hypergradients of `long_horizons` with which a small finite step agrees."""
    frame = store.load(long_horizons.STUDY, _SCALE)
    if frame.empty:
        return Estimates()
    agrees = (long_horizons.smoothness(frame)[1e-3] - 1).abs() < 0.01
    parts = {
        words: agrees[agrees.index.get_level_values("units") == u]
        for words, u in ((_SMOOTH, "smooth"), (_ROUGH, "relu"))
    }
    return Estimates(counts={words: (int(part.sum()), len(part)) for words, part in parts.items()})


def schedule_estimates() -> Estimates:
    """Read the memory of per-step schedules off `long_schedules`."""
    frame = store.load(long_schedules.STUDY, _SCALE)
    runs = frame[frame["method"] == long_schedules.PER_STEP] if len(frame) else frame
    return Estimates(counts={_LITTLE: (int((runs["memory_mb"] < 200).sum()), len(runs))} if len(runs) else {})


_LITTLE = "trainings of a rate a step that stay below 200 MB"


def cleaning_estimates() -> Estimates:
    """Read test accuracies off `hyper_cleaning`, seed by seed."""
    frame = store.load(cleaning.STUDY, _SCALE)
    if frame.empty:
        return Estimates()
    cells = {}
    for method, runs in frame.groupby("method"):
        cells[str(method), _ERROR] = mean_of(1 - runs.sort_values("seed")["test_accuracy"].astype(float))
    return Estimates(cells, paired=True)


_ERROR = "share of test errors"


def _counted(name: str, least: float) -> Check:
    return lambda t: Finding((judging.share(t.count(name), least, name),))


def _proportional(t: Estimates) -> Finding:
    return Finding((judging.near_limit(t.at("state", _GROWS), 1.0, 0.25, f"{_GROWS}, in that of the longest"),))


def _shared_is_better(t: Estimates) -> Finding:
    rows = t.rows("per step")
    return Finding(
        tuple(
            judging.below(t.at(r, "seven windows"), t.at(r, "per step"), f"{r}: seven windows − per step", True)
            for r in rows
        )
    )


def _claims() -> Iterator[Claim]:
    def claim(
        name: str,
        paper: str,
        place: str,
        statement: str,
        check: Check,
        source: Source,
        data: str,
        kind: Kind = "count",
        sanity: bool = False,
        note: str = "",
    ) -> Claim:
        setting = Setting("paper" if source is stores_estimates else _SCALE, data, remembered(source))
        return Claim(f"horizon-{name}", paper, place, (), statement, kind, check, NOTEBOOK, (setting,), sanity, note)

    replay, mlp = "Engstrom et al. 2025", "an MLP on digits, 100 to 10,000 steps"
    yield claim(
        "states", OWN, replay, "a k-ary tree keeps about k log_k T states", _counted(_STATES, 1), stores_estimates, mlp
    )
    yield claim(
        "time",
        OWN,
        replay,
        "a tree takes no step more than log_k T times again",
        _counted(_TAKEN, 1),
        stores_estimates,
        mlp,
    )
    yield claim(
        "counts",
        OWN,
        "Finding of this book",
        "counts are those of the formulas",
        _counted(_COUNTS, 1),
        stores_estimates,
        mlp,
        sanity=True,
    )
    yield claim(
        "scale", "FDS", "Section 3", "reverse mode stores all states and does not scale: memory is proportional to T",
        _proportional, stores_estimates, mlp, "ratio", note="of stored states; the tree above is reverse mode too",
    )  # fmt: skip
    ten = "MNIST, 5,000 images, one to ten epochs"
    yield claim(
        "bound",
        "FDS",
        "Theorem 4.1",
        "the bound holds over ten epochs",
        _counted(_BOUND, 1),
        sharing_estimates,
        ten,
        sanity=True,
    )
    yield claim(
        "sharing",
        OWN,
        "Finding of this book",
        "seven windows have a smaller squared error than a value a step",
        _shared_is_better,
        sharing_estimates,
        ten,
        "order",
    )
    nets = "three small nets, 1,000 steps"
    yield claim(
        "smooth",
        OWN,
        "Finding of this book",
        "with smooth units a finite step agrees with the hypergradient",
        _counted(_SMOOTH, 1),
        smoothness_estimates,
        nets,
    )
    yield claim(
        "rough", OWN, "Finding of this book", "with ReLUs one does too", _counted(_ROUGH, 1), smoothness_estimates, nets
    )
    yield claim(
        "little",
        OWN,
        "Finding of this book",
        "a rate for each of 5,000 steps of a LeNet is learned in less than 200 MB",
        _counted(_LITTLE, 1),
        schedule_estimates,
        "MNIST",
    )
    yield claim(
        "cleaning", OWN, "Finding of this book", "weights by whole trainings give fewer test errors than by OnePass",
        lambda t: judging.all_below(t, [cleaning.WHOLE], [cleaning.ONEPASS], _ERROR), cleaning_estimates,
        "MNIST, 5,000 rows, 30 % of the labels wrong", "order",
    )  # fmt: skip


CLAIMS = tuple(_claims())
