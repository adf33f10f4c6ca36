"""Table 2 and Appendix B.1 of the Clip paper: the weight decay of a four-layer net on MNIST, tuned while it trains.

The paper leaves batch sizes, learning rate, its decay, the outer rate c, warm-up and bounds open; they are the defaults
of `Config`. A batch of runs is one method with one seed from all initial weight decays: they share initial weights and
minibatches.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gradhpo import environment, methods
from gradhpo.errors import unknown
from gradhpo.estimators.forward import Forward
from gradhpo.hypers import Hyper, Hypers
from gradhpo.outer import SGD, Exponentiated, Outer
from gradhpo.records import Result
from gradhpo.rules import sgd
from gradhpo.studies import Study
from gradhpo.tasks.classification import Classification
from gradhpo.tasks.images import load
from gradhpo.train import Loop, Method, Run

FIXED, GTGV = "Fixed", "Unroll1-gTgV"
METHODS = (FIXED, GTGV, "Unroll1", "Unroll5", "Unroll10", "Clip5", "Clip10", "Clip20")
PANELS = (1, 3, 5, 15, 40, 80)
"""The dynamics are drawn after these numbers of eightieths of the training (Appendix B.1: thousands of 80K steps)."""

_SEGMENTS, _CURVE, _SAMPLE = 80, 40, 20  # readings of all losses, points of a series, steps between samples of |y|


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
    outer_rate: float = 0.1  # c: a hyperparameter step is c times the learning rate times the hypergradient
    warm_up: int = 0  # steps before the first hyperparameter step
    low: float = 1e-8  # bounds of the weight decay
    high: float = 1.0
    coordinate: Literal["decay", "log decay"] = "decay"  # whose sensitivity y is; the steps are on log decay in both
    dtype: Literal["float32", "float64"] = "float32"
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    data: str
    steps: int
    seeds: int
    starts: int = 6  # initial weight decays, equally spaced in log between 1e-6 and 1e-1
    width: int = 100
    batch_size: int = 100


SIZES = {
    "smoke": Sizes("digits", 800, 1, width=32, batch_size=40),
    "laptop": Sizes("mnist", 8_000, 1),
    "paper": Sizes("mnist", 80_000, 3),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Seed by seed all methods, each from all initial values."""
    starts = np.logspace(-6, -1, sizes.starts).round(12).tolist()
    common = {"steps": sizes.steps, "data": sizes.data, "width": sizes.width}
    common |= {"batch_size": sizes.batch_size, "val_batch_size": sizes.batch_size}
    seeds = range(seed, seed + sizes.seeds)
    return [Config(m, s, decay, **common) for s in seeds for m in METHODS for decay in starts]


def runs(scale: str) -> list[Config]:
    """The runs of a scale."""
    return configs(SIZES[scale])


def method(c: Config) -> Method:
    """The method of a configuration.

    The weight decay is a hyperparameter of the update rule, which for plain gradient descent is the penalty of half its
    product with |w|^2. Unroll1-gTgV is Unroll1 with the learning rate taken out of the sensitivity, hence out of the
    step once; its outer rate is c times the initial learning rate, so that both start with equal steps.
    """
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    if c.method == FIXED:
        return methods.fixed()
    if c.method == GTGV:
        return Method(Forward(reset_every=1), _outer(c, c.outer_rate * c.lr, None), warm_up=c.warm_up)
    outer = _outer(c, c.outer_rate, "lr")
    number = int(c.method.lstrip("UnrollClip"))
    if c.method.startswith("Clip"):
        return Method(Forward(radius=float(number)), outer, warm_up=c.warm_up)
    return Method(Forward(reset_every=number), outer, every=number, warm_up=c.warm_up)


def _outer(c: Config, rate: float, times: str | None) -> Outer:
    return SGD(rate, times) if c.coordinate == "log decay" else Exponentiated(rate, times)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """A batch of runs of one method with one seed.

    Metrics: val (cross entropy at the end), best_val and best_step (lowest of 80 readings on all validation images),
    test and best_test, test_error and best_test_error (at the end and at that step), train, decay_end, decay_best (in
    force there), clipped (share of the sampled steps, ClipR), diverged. Series: val_curve and decay_path (40 points,
    the first after a fortieth of the training); length and clip_share (|y| and clipped steps, means over a fortieth);
    panel_train, panel_val, panel_decay after the steps of `PANELS`.
    """
    c = batch[0]
    images = load(c.data, getattr(torch, c.dtype), device, val_share=0.25)
    problem = Classification(images, [c.width] * 3, c.batch_size, c.val_batch_size, c.seed)
    return _Training(problem, c, [b.decay for b in batch]).results()


class _Training:
    """The training of a batch, with what is read off it."""

    def __init__(self, problem: Classification, c: Config, starts: Sequence[float]) -> None:
        self.problem, self.c, self.radius = problem, c, method(c).estimator
        self.loop = self._loop(starts)
        self.runs = len(starts)
        self.readings: list[dict[str, Tensor]] = []
        self.lengths: list[Tensor] = []

    def _loop(self, starts: Sequence[float]) -> Loop:
        like, c = self.problem.images.x_train, self.c
        transform = "log" if c.coordinate == "log decay" else "identity"
        decay = Hyper(
            "weight_decay",
            torch.tensor(starts).to(like),
            transform,
            bounds=(c.low, c.high),
            tuned=c.method != FIXED,
        )
        hypers = Hypers([Hyper("lr", c.lr, tuned=False), decay], self.problem.layout.sizes)
        return Loop(self.problem, sgd(momentum=False), hypers, method(c))

    def results(self) -> list[Result]:
        c, cpu_s, wall_s = self.c, 0.0, 0.0
        device = self.problem.images.x_train.device
        run = self.loop.start(self.problem.init([c.seed] * self.runs))
        ends = np.unique((np.arange(1, _SEGMENTS + 1) * c.steps / _SEGMENTS).round().astype(int)).tolist()
        for k, end in enumerate(ends):
            lr = torch.full_like(run.fixed["lr"], c.lr * c.lr_decay**k)
            run = run._replace(fixed=run.fixed | {"lr": lr})
            before = environment.busy_seconds(device), time.perf_counter()
            run = self.loop.advance(run, end - run.t, self._watch, _SAMPLE)
            cpu_s += environment.busy_seconds(device) - before[0]
            wall_s += time.perf_counter() - before[1]
            self._read(run, with_train=k + 1 in PANELS)
        return self._summary(ends, cpu_s / self.runs, wall_s / self.runs)

    def _watch(self, run: Run) -> None:
        if run.memory:
            self.lengths.append(run.memory.w[:, 0].norm(dim=-1))

    def _read(self, run: Run, with_train: bool) -> None:
        w, reading = run.state.w, {}
        reading["val"], reading["val_error"] = self.problem.evaluate(w, "val")
        reading["test"], reading["test_error"] = self.problem.evaluate(w, "test")
        reading["train"] = self.problem.evaluate(w, "train")[0] if with_train else torch.full_like(reading["val"], np.nan)
        tuned = self.loop.hypers.natural(run.raw) or {"weight_decay": run.fixed["weight_decay"][:, 0]}
        self.readings.append(reading | {"decay": tuned["weight_decay"][:, 0]})

    def _summary(self, ends: list[int], cpu_s: float, wall_s: float) -> list[Result]:
        table = {n: _finite(torch.stack([r[n] for r in self.readings], dim=1)) for n in self.readings[0]}
        best = np.where(np.isnan(table["val"]), np.inf, table["val"]).argmin(1)
        images = self.problem.images
        out = []
        for k in range(self.runs):
            rows, b = {n: v[k] for n, v in table.items()}, best[k]
            metrics = {n: rows[n][-1] for n in ("val", "val_error", "test", "test_error", "train")}
            metrics |= {f"best_{n}": rows[n][b] for n in ("val", "test", "test_error")}
            metrics |= {"decay_end": rows["decay"][-1], "decay_best": rows["decay"][b], "best_step": ends[b]}
            metrics |= {"diverged": int(np.isnan(rows["val"][-1]))}
            clipped, series = self._sensitivity(k)
            points = slice(1, None, 2) if len(ends) == _SEGMENTS else slice(None)
            series |= {"val_curve": rows["val"][points], "decay_path": rows["decay"][points]}
            at = [p - 1 for p in PANELS if p <= len(ends)]
            series |= {f"panel_{n}": rows[n][at] for n in ("train", "val", "decay")}
            lists = {n: [float(f"{x:.4g}") for x in v] for n, v in series.items()}
            out.append(Result(metrics | {"clipped": clipped}, lists, wall_s, images.name, images.sha256, cpu_s))
        return out

    def _sensitivity(self, k: int) -> tuple[float, dict[str, np.ndarray]]:
        """Share of the sampled steps at which run k was clipped, and lengths and shares in 40 parts of the training."""
        if not self.lengths:
            return np.nan, {}
        radius = getattr(self.loop.method.estimator, "radius", None)
        lengths = torch.stack([x[k] for x in self.lengths]).double().cpu().numpy()
        parts = np.array_split(lengths, _CURVE)
        if radius is None:
            return np.nan, {"length": np.array([p.mean() for p in parts])}
        shares = np.array([(p > radius * (1 - 1e-5)).mean() for p in parts])
        return float((lengths > radius * (1 - 1e-5)).mean()), {
            "length": np.array([p.mean() for p in parts]),
            "clip_share": shares,
        }


def _finite(x: Tensor) -> np.ndarray:
    values = x.double().cpu().numpy()
    return np.where(np.isfinite(values), values, np.nan)


# Seconds of a step relative to plain training, measured on a CPU.
_WEIGHTS = {FIXED: 1.0, GTGV: 2.0, "Unroll1": 2.0, "Unroll5": 2.5, "Unroll10": 2.5}


def _cost(c: Config) -> float:
    return _WEIGHTS.get(c.method, 3.5) * c.steps / 80_000


STUDY = Study(
    name="clip_mnist",
    title="Table 2 and Appendix B.1 of the Clip paper: the weight decay of a four-layer net on MNIST",
    paper="Clip",
    config=Config,
    runs=runs,
    run=run,
    chunk=6,
    cost=_cost,
    varied="decay",
)
