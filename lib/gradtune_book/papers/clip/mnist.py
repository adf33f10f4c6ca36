"""Table 2 and Appendix B.1 of the Clip paper: the weight decay of a four-layer net on MNIST, tuned while it trains.

The paper leaves batch sizes, learning rate, its decay, the outer rate c, warm-up and bounds open. The defaults of
`Config` are our choices. Runs side by side are one method with one seed from several initial weight decays. They share
initial weights and minibatches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, Exponentiated, Outer
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Run
from gradtune_book.papers.clip import training as clip_training
from gradtune_book.papers.clip.training import FIXED, GTGV, METHODS, Schedule, Trained, in_force
from gradtune_book.papers.series import short
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.classification import Classification, fully_connected
from gradtune_book.tasks.images import load

PANELS = (1, 3, 5, 15, 40, 80)
"""The dynamics are drawn after these numbers of eightieths of the training (Appendix B.1: thousands of 80K steps)."""

_PARTS, _CURVE, _SAMPLE = 80, 40, 20  # falls of the learning rate, points of a series, steps between samples of |y|


@dataclass(frozen=True)
class Config:
    """One training of the net 784-100-100-100-10 with one initial weight decay."""

    method: str  # one of METHODS
    seed: int  # draws the initial weights and the minibatches; the same for all methods
    decay: float  # initial weight decay; the only one of "Fixed"
    steps: int = 80_000  # training steps
    data: str = "mnist"  # or digits
    width: int = 100  # units of each of the three hidden layers
    batch_size: int = 100  # training images of a step
    val_batch_size: int = 100  # validation images of a hypergradient
    lr: float = 0.1  # learning rate at the start
    lr_decay: float = 0.95  # its factor after every eightieth of the training
    outer_rate: float = 1.0  # c: a step of log decay is c times the learning rate times the hypergradient
    unrolled_factor: float = 10.0  # of c for UnrollK: its sensitivity starts at a length near 1, that of ClipR at r
    warm_up: int = 0  # steps before the first hyperparameter step
    low: float = 1e-8  # bounds of the weight decay
    high: float = 1.0
    coordinate: Literal["decay", "log decay"] = "decay"  # whose sensitivity y is; the steps are on log decay in both
    dtype: Literal["float32", "float64"] = "float32"
    version: int = 1


VARIATIONS: dict[str, dict[str, Any]] = {
    "as chosen": {},
    "c / 10": {"outer_rate": 0.1},
    "3 c": {"outer_rate": 3.0},
    "half the learning rate": {"lr": 0.05},
    "half the batch": {"batch_size": 50},
    "a tenth of the training as warm-up": {"warm_up": 1600},
    "log decay": {"coordinate": "log decay"},
    "log decay, 100 c": {"coordinate": "log decay", "outer_rate": 100.0},
}
"""Settings that the paper leaves open, changed one at a time at laptop scale."""

VARIED = ("Unroll10", "Clip10")


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and which runs there are."""

    data: str
    steps: int
    seeds: int  # number of seeds
    starts: int = 6  # initial weight decays, equally spaced in log between 1e-6 and 1e-1
    width: int = 100
    batch_size: int = 100
    lr_decay: float = Config.lr_decay  # after every eightieth of the training


SIZES = {
    "smoke": Sizes("digits", 500, 1, width=32, batch_size=40),
    # The first fifth of the paper's training, at its learning rates: if they fell all the way in so few steps, no net
    # would come to need a penalty.
    "laptop": Sizes("mnist", 16_000, 1, starts=3, lr_decay=round(Config.lr_decay**0.2, 6)),
    "paper": Sizes("mnist", 80_000, 3),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: seed by seed all methods, each from all initial weight decays.

    Args:
        sizes: what the scale sets.
        seed: first seed.
    """
    starts = np.logspace(-6, -1, sizes.starts).round(12).tolist()
    common = {n: getattr(sizes, n) for n in ("steps", "data", "width", "lr_decay", "batch_size")}
    common["val_batch_size"] = sizes.batch_size
    seeds = range(seed, seed + sizes.seeds)
    return [Config(m, s, decay, **common) for s in seeds for m in METHODS for decay in starts]


def arranged(scale: str, chosen: list[Config]) -> list[Config]:
    """Add, at laptop scale, the methods of `VARIED` with all `VARIATIONS` but the first, which changes nothing.

    Args:
        scale: name of the scale.
        chosen: its runs by `configs`.
    """
    if scale != "laptop":
        return chosen
    some = [c for m in VARIED for c in chosen if c.method == m]
    return chosen + [replace(c, **changes) for changes in list(VARIATIONS.values())[1:] for c in some]


def outer(c: Config, scaled: bool) -> Outer:
    """Return the outer rule. It makes its steps on log decay, whichever coordinate the sensitivity has.

    Its rate is c times the learning rate. For Unroll1-gTgV, whose hypergradient lacks the learning rate, it is c times
    the initial one, so that the method starts with the steps of Unroll1. Here c is `outer_rate` for ClipR, and
    `unrolled_factor` times as much for the other methods.

    Args:
        c: configuration.
        scaled: whether the rate follows the learning rate. False is for Unroll1-gTgV.
    """
    rate = c.outer_rate * (1.0 if c.method.startswith("Clip") else c.unrolled_factor)
    rate, times = (rate, "lr") if scaled else (rate * c.lr, None)
    return SGD(rate, times) if c.coordinate == "log decay" else Exponentiated(rate, times)


def schedule(c: Config) -> Schedule:
    """Return the learning rates and the readings of a configuration."""
    panels = [round(p * c.steps / PANELS[-1]) for p in PANELS]
    return Schedule(c.steps, c.lr, c.lr_decay, max(1, c.steps // _PARTS), panels)


def loop(c: Config, problem: Classification, starts: Sequence[float]) -> Loop:
    """Return the training of R runs.

    The weight decay is a hyperparameter of the update rule. For plain gradient descent this is the same as a penalty
    `decay / 2 |w|^2`.

    Args:
        c: configuration of the runs, but for their initial weight decays.
        problem: losses of the net.
        starts: initial weight decay of each run.
    """
    transform = "log" if c.coordinate == "log decay" else "identity"
    values = torch.tensor(starts).to(problem.images.x_train)
    decay = Hyper("weight_decay", values, transform, bounds=(c.low, c.high), tuned=c.method != FIXED)
    hypers = Hypers([Hyper("lr", c.lr, tuned=False), decay], problem.layout.sizes)
    method = clip_training.method(c.method, lambda scaled: outer(c, scaled), c.warm_up)
    return Loop(problem, sgd(momentum=False), hypers, method)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs of one method with one seed.

    The metrics are:

    * `val`, `val_error`, `train`, `test` and `test_error`: cross entropies in nats and shares of errors at the end;
    * `best_val`: lowest of about 80 readings on all validation images, and `best_step`, the step after which it was
      taken;
    * `best_test` and `best_test_error`: test cross entropy and share of errors at that step;
    * `decay_end` and `decay_best`: weight decays in force at the end and at that step;
    * `clipped`: share of the sampled steps at which the sensitivity was clipped (ClipR only);
    * `diverged`: 1 where the cross entropy at the end is not finite, else 0.

    The series are:

    * `val_curve` and `decay_path`: about 40 points, the first after a fortieth of the training;
    * `length` and `clip_share`: `|y|` and the share of clipped steps, means over a fortieth of the training;
    * `panel_train`, `panel_val` and `panel_decay`: values after the steps of `PANELS`.

    Args:
        batch: configurations that differ in `decay` only.
        device: where to compute.

    Returns:
        A result per configuration, in order.
    """
    c = batch[0]
    images = load(c.data, getattr(torch, c.dtype), device, validation=0.25)
    problem = fully_connected(images, [c.width] * 3, c.batch_size, c.val_batch_size, c.seed)
    training, plan = loop(c, problem, [b.decay for b in batch]), schedule(c)
    shown = {*plan.panels}

    def read(now: Run) -> dict[str, Tensor]:
        w = now.state.w
        (val, val_error), (test, test_error) = (problem.evaluate(w, part) for part in ("val", "test"))
        train = problem.evaluate(w, "train")[0] if now.t in shown else torch.full_like(val, np.nan)
        decay = in_force(training, now, "weight_decay")
        return {
            "val": val,
            "val_error": val_error,
            "test": test,
            "test_error": test_error,
            "train": train,
            "decay": decay,
        }

    trained = clip_training.train(training, problem.init([c.seed] * len(batch)), plan, read, _SAMPLE)
    shown_at = [k for k, end in enumerate(trained.ends) if end in shown]
    return [_result(trained, k, shown_at, images.name, images.sha256) for k in range(len(batch))]


def _result(t: Trained, k: int, shown_at: list[int], dataset: str, sha256: str) -> Result:
    rows, best = {n: v[k] for n, v in t.table.items()}, t.best()[k]
    metrics = {n: rows[n][-1] for n in ("val", "val_error", "test", "test_error", "train")}
    metrics |= {f"best_{n}": rows[n][best] for n in ("val", "test", "test_error")}
    metrics |= {"decay_end": rows["decay"][-1], "decay_best": rows["decay"][best], "best_step": int(t.ends[best])}
    metrics |= {"clipped": t.clipped(k), "diverged": int(np.isnan(rows["val"][-1]))}
    series = t.sensitivity(k)
    points = np.arange(len(t.ends) - 1, -1, -max(1, round(len(t.ends) / _CURVE)))[::-1]
    series |= {"val_curve": rows["val"][points], "decay_path": rows["decay"][points]}
    series |= {f"panel_{n}": rows[n][shown_at] for n in ("train", "val", "decay")}
    return Result(metrics, {n: short(v, 5) for n, v in series.items()}, t.wall_s, dataset, sha256, t.cpu_s)


# Seconds of a step relative to plain training, measured on a CPU.
_WEIGHTS = {FIXED: 1.0, GTGV: 2.0, "Unroll1": 2.0, "Unroll5": 2.5, "Unroll10": 2.5}


def _cost(c: Config) -> float:
    return _WEIGHTS.get(c.method, 3.5) * c.steps / 80_000


STUDY = Study("clip_mnist", Config, SIZES, configs, run, chunk=6, cost=_cost, varied="decay", arranged=arranged)
