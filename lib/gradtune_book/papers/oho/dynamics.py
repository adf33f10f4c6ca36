"""Figures 6 to 10 of the OHO paper: how the recursion answers to perturbations, data and its own settings.

The parts of the study, by the field `part`, are:

* `left alone`: OHO from the initial learning rate, against which Figures 6 and 7 are read.
* `decay reset` and `rate reset` (Figure 6): at the start of an epoch one hyperparameter is set to a value. OHO then
  goes on, or the hyperparameters stay fixed from there.
* `outer data` (Figure 7): training images in place of validation images, other sizes of the outer batch, and "Step".
* `influence reset` (Figure 8): the influence is set to 0 every K steps.
* `meta rate` (Figure 9): meta rates and initial learning rates, with the norm of the influence.
* `norms` (Figure 10): the same norm at one meta rate, the norm of a step's Jacobian, and the correlation of gradients.
* `program`: the recursion as the published program has it, with and without its cap, and ours with that cap.
* `choices`: what the text leaves open, changed one at a time (`VARIATIONS`).

At reduced size the net trains on 5,000 images of MNIST, so that it overfits and a weight decay has something to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gradtune import methods
from gradtune.recursion.hypers import Hypers
from gradtune.training.loop import Loop, Run
from gradtune_book.papers.oho import measures, performance, training
from gradtune_book.papers.oho.schedules import STEP
from gradtune_book.papers.oho.training import DECAY, LR, OHO, Bench, Change, Trained, blocks_of, frozen, placed, train
from gradtune_book.papers.published import OhoProgram
from gradtune_book.papers.series import finite, short
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study

ALONE, DECAY_RESET, RATE_RESET, OUTER = "left alone", "decay reset", "rate reset", "outer data"
INFLUENCE, META, NORMS, PROGRAM_PART, CHOICES = "influence reset", "meta rate", "norms", "program", "choices"
CAPPED, PROGRAM, UNCAPPED = "OHO-capped", "program", "program-uncapped"
CAP = 2e-4
"""Cap of the weight decay in the published program, the value of `OhoProgram`."""

WINDOW = 100
"""Updates of a window of correlations (Section 6.5)."""


@dataclass(frozen=True)
class Config(training.Config):
    """One training of a part of the study."""

    part: str = ALONE
    at: int = 0  # epoch at whose start a hyperparameter is set; 0 for none
    name: Literal["lr", "weight_decay"] = "lr"  # which one
    to: float = 0.0  # its new value
    after: Literal["OHO", "fixed"] = "OHO"  # how the hyperparameters go on


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    base: Config  # without method and seed
    seeds: int  # of every kind of training
    resets: tuple[int, ...]  # epochs of Figure 6: 30, 50, 90, 180 and 270 of 300 in the paper
    outer_batches: tuple[int, ...]  # of Figure 7; the first is the base's
    intervals: tuple[int, ...]  # K of Figure 8
    starts: tuple[float, ...]  # initial learning rates of Figures 9 and 10
    meta_rates: tuple[float, ...]  # of Figure 9, beside that of Figure 10, whose runs it shares
    meta_rate: float = 5e-5  # of Figure 10


_PART = Config("", 0, rows=6000, validation=1000, batch=100, epochs=30, readings=1, lr=0.1)
_DIGITS = replace(
    _PART, data="digits", rows=None, validation=280, batch=56, outer_batch=56, width=16, epochs=8, meta_rate=5e-5
)
_MNIST = Config("", 0, epochs=30, readings=1, lr=0.1)
SIZES = {
    "smoke": Sizes(_DIGITS, 1, (4,), (56, 140), (1, 20), (0.1, 0.2), (1e-2,)),
    "laptop": Sizes(_PART, 5, (3, 9, 18), (100, 500, 1000), (1, 10, 100), (1e-3, 1e-2, 0.1), (5e-6, 5e-4, 5e-3)),
    "paper": Sizes(
        _MNIST, 5, (3, 5, 9, 18, 27), (100, 500, 1000), (1, 10, 100, 1000), (1e-3, 1e-2, 0.1), (5e-6, 5e-4, 5e-3)
    ),
}
VARIATIONS: dict[str, dict[str, float]] = {
    "half the batch": {"batch": 0.5},
    "twice the epochs": {"epochs": 2},
    "ten times the meta rate": {"meta_rate": 10.0},
    "a tenth of the initial rate": {"lr": 0.1},
    "one more layer": {"layers": 1.25},
}
"""Fields that the text leaves open or gives twice, with the factor by which each is changed."""

RATE_AFTER = 0.2
"""To this learning rate Figure 6 resets, from an initial one of 0.1."""


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, part by part, first with three seeds.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    base = replace(sizes.base, method=OHO)
    low = replace(base, lr=sizes.starts[1])
    kinds = [base, replace(base, part=OUTER, outer="training")]
    kinds += [replace(low, part=INFLUENCE, reset_every=k) for k in (*sizes.intervals, None)]
    kinds += [replace(base, part=NORMS, lr=lr, meta_rate=sizes.meta_rate) for lr in sizes.starts]
    kinds += _resets(sizes, base, DECAY_RESET, DECAY, 0.0)
    kinds += [replace(base, part=META, lr=lr, meta_rate=m) for m in sizes.meta_rates for lr in sizes.starts]
    kinds += _resets(sizes, base, RATE_RESET, LR, RATE_AFTER)
    kinds += [replace(base, part=OUTER, outer_batch=b) for b in sizes.outer_batches[1:]]
    kinds += [replace(base, part=OUTER, method=STEP)]
    kinds += [replace(base, part=PROGRAM_PART, method=m) for m in (PROGRAM, UNCAPPED, CAPPED)]
    kinds += [varied(base, changes) for changes in VARIATIONS.values()]
    blocks = blocks_of(sizes.seeds, seed)
    return [replace(kind, seed=s, order=o) for block in blocks for kind in kinds for s, o in block]


def varied(base: Config, factors: Mapping[str, float]) -> Config:
    """Return a run of the part `choices`, with fields multiplied by factors; whole numbers stay whole."""
    values = {name: type(getattr(base, name))(getattr(base, name) * factor) for name, factor in factors.items()}
    return replace(base, part=CHOICES, **values)


def _resets(sizes: Sizes, base: Config, part: str, name: Any, to: float) -> list[Config]:
    one = replace(base, part=part, name=name, to=to)
    return [replace(one, at=at, after=after) for at in sizes.resets for after in ("OHO", "fixed")]


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that differ in their seeds.

    The metrics are those of `training.Bench.at_end`; the series those of `training.Bench.read`. The part `norms` adds
    `jacobian`, the squared spectral norm of a step's Jacobian at each reading, and `correlation` and
    `correlation_deviation`, means and standard deviations over windows of `WINDOW` updates.

    Args:
        batch: The configurations.
        device: Where to compute.
    """
    c = batch[0]
    bench = Bench(c, device)
    if c.method in (PROGRAM, UNCAPPED):
        return sittings.one_after_another(batch, lambda each: _as_program(bench, each))
    w, extra = bench.task.init([each.seed for each in batch]), {}
    if c.method == STEP:
        recipe = {LR: c.lr, DECAY: c.decay, performance.PERIOD: -(-c.epochs // 3)}
        loop, fall = performance.loop_of(bench, STEP, [recipe] * len(batch), w)
        trained = train(bench, loop, w, fall)
    elif c.part == NORMS:
        correlations = measures.Correlations(bench.task, WINDOW if bench.steps >= WINDOW else bench.per_epoch)
        trained = train(bench, bench.loop(_hypers(bench)), w, None, correlations, _jacobian(bench))
        found = correlations.windows()
        extra = {"correlation": finite(found["mean"]), "correlation_deviation": finite(found["deviation"])}
    else:
        loop = Loop(bench.task, training.RULE, _hypers(bench), _method(bench))
        trained = train(bench, loop, w, perturbed(bench, c))
    end = bench.at_end(trained.w)
    more = [{n: short(v[k]) for n, v in extra.items()} for k in range(len(batch))]
    return [_result(bench, trained, {n: v[k] for n, v in end.items()}, k, more[k]) for k in range(len(batch))]


def _result(bench: Bench, trained: Trained, end: dict[str, Any], k: int, more: dict[str, Any]) -> Result:
    images = bench.images
    return Result(end, trained.series(k) | more, dataset=images.name, dataset_sha256=images.sha256, **trained.seconds)


def _hypers(bench: Bench) -> Hypers:
    """Return OHO's hyperparameters, the weight decay below its cap where the method says so."""
    given = bench.hypers(tuned=True)
    if bench.c.method != CAPPED:
        return given
    lr = given.blocks[LR].hyper
    return Hypers([lr, replace(given.blocks[DECAY].hyper, bounds=(0.0, CAP))], bench.task.layout.sizes)


def _method(bench: Bench) -> Any:
    return bench.method() if bench.c.method == OHO else methods.oho(bench.c.meta_rate, bench.c.reset_every)


def perturbed(bench: Bench, c: Config) -> Change:
    """Return what sets a hyperparameter at the start of the epoch `c.at`, and fixes all from there if it is to."""

    def change(loop: Loop, run: Run) -> tuple[Loop, Run]:
        if not c.at or run.t != c.at * bench.per_epoch:
            return loop, run
        run = placed(loop, run, c.name, c.to)
        return frozen(loop, run) if c.after == "fixed" else (loop, run)

    return change


def _jacobian(bench: Bench) -> Callable[[Loop, Run], dict[str, Tensor]]:
    def read(loop: Loop, run: Run) -> dict[str, Tensor]:
        lam = loop.values_of(run).lam
        return {"jacobian": measures.jacobian_norm(bench.task, run.state.w, run.t, lam[LR], lam[DECAY])}

    return read


def _as_program(bench: Bench, c: Config) -> Result:
    """Train one net with the published program's recursion."""
    cap = CAP if c.method == PROGRAM else float("inf")
    program, spent = OhoProgram(bench.task, c.lr, c.decay, c.meta_rate, cap), Stopwatch(bench.device)
    w, ends, t, sitting = bench.task.init([c.seed]), bench.ends(), 0, sittings.current()
    rows: list[tuple[float, float, float]] = []

    def state() -> dict[str, Any]:
        return {"t": t, "w": w, "program": program.state(), "rows": rows, "spent": spent.state()}

    with sitting.part("program", state) as earlier:
        if earlier is not None:
            t, w, rows = earlier["t"], earlier["w"].to(w), [*earlier["rows"]]
            program.go_on(earlier["program"], w)
            spent.go_on(earlier["spent"])
        while t <= bench.steps:
            if t in (0, *ends):
                rows.append((float(bench.task.evaluate(w, "test")[0]), program.lr, program.l2))
            if t < bench.steps:
                with spent:
                    w, _, _ = program.step(w, t)
            t += 1
            sitting.tick()
    columns = np.array(rows).T[:, None]
    table = dict(zip(("test_curve", "lr_0", "decay_0"), np.where(np.isfinite(columns), columns, np.nan), strict=True))
    end = {n: v[0] for n, v in bench.at_end(w).items()}
    return _result(bench, Trained(w, [0, *ends], table, spent.share(1)), end, 0, {})


def _cost(c: Config) -> float:
    return c.epochs * (1.0 if c.method == STEP else 4.0) / 40


STUDY = Study("oho_dynamics", Config, SIZES, configs, run, chunk=5, cost=_cost)
