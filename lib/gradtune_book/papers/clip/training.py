"""One training of the Clip paper's experiments on networks: its methods, its learning rate, and what is read off it.

The studies `clip_mnist` and `clip_ptb` share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtune import methods
from gradtune.errors import unknown
from gradtune.estimators.forward import Forward
from gradtune.recursion.outer import Outer
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.papers.series import finite
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch

FIXED, GTGV = "Fixed", "Unroll1-gTgV"
METHODS = (FIXED, GTGV, "Unroll1", "Unroll5", "Unroll10", "Clip5", "Clip10", "Clip20")
"""The rows of Tables 2 and 3."""

_PARTS = 40  # of the training, for |y| and the share of clipped steps
_CLIPPED = 1 - 1e-5  # of the radius: longer sensitivities have been projected


def method(name: str, outer: Callable[[bool], Outer], warm_up: int = 0, product: float | str | None = None) -> Method:
    """Return one of `METHODS`.

    Unroll1-gTgV is Unroll1 with the learning rate taken out of the sensitivity. This is the same as an outer rate that
    lacks the learning rate once, so that one estimator serves both.

    Args:
        name: name of the method.
        outer: returns its outer rule. The argument is True for a rate that follows the learning rate, False for
            Unroll1-gTgV.
        warm_up: number of training steps before outer updates begin.
        product: how Hessian products are taken, as in `Forward`.

    Raises:
        GradtuneError: the name is unknown.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    if name == FIXED:
        return methods.fixed()
    if name == GTGV:
        return Method(Forward(reset_every=1, product=product), outer(False), warm_up=warm_up)
    kind, number = re.fullmatch(r"(Clip|Unroll)(\d+)", name).groups()  # type: ignore[union-attr]
    if kind == "Clip":
        return Method(Forward(radius=float(number), product=product), outer(True), warm_up=warm_up)
    return Method(Forward(reset_every=int(number), product=product), outer(True), int(number), warm_up)


@dataclass(frozen=True)
class Schedule:
    """Learning rates of a training, and when it is read.

    Attributes:
        steps: number of training steps.
        lr: learning rate at the start.
        decay: its factor after every `every` steps.
        every: number of steps between two falls of the learning rate.
        panels: further numbers of steps after which everything is read.
    """

    steps: int
    lr: float
    decay: float
    every: int
    panels: Sequence[int] = ()

    @property
    def ends(self) -> list[int]:
        """Numbers of steps after which everything is read.

        They are those at which the learning rate falls, the panels, and the end.
        """
        falls = range(self.every, self.steps, self.every)
        return sorted({*falls, *(p for p in self.panels if 0 < p < self.steps), self.steps})

    def at(self, t: int) -> float:
        """Return the learning rate of step t."""
        return self.lr * self.decay ** (t // self.every)


@dataclass(frozen=True)
class Trained:
    """R trained runs.

    Attributes:
        ends: numbers of steps `[K]` after which `table` was read.
        table: readings `[R, K]` by name, NaN where they are not finite.
        lengths: sampled `|y|` after the projection, `[R, n]`, with n = 0 for fixed hyperparameters.
        radius: radius of ClipR; None for other methods.
        cpu_s: seconds of training that the processor computed, per run (on CUDA as `wall_s`).
        wall_s: seconds of training, per run.
    """

    ends: np.ndarray
    table: dict[str, np.ndarray]
    lengths: np.ndarray
    radius: float | None
    cpu_s: float
    wall_s: float

    def best(self) -> np.ndarray:
        """Return the index `[R]` of each run's reading with the lowest "val"."""
        return np.where(np.isnan(self.table["val"]), np.inf, self.table["val"]).argmin(1)

    def clipped(self, k: int) -> float:
        """Return the share of the sampled steps at which the sensitivity of run k was clipped; NaN without a radius."""
        return np.nan if self.radius is None else float((self.lengths[k] >= _CLIPPED * self.radius).mean())

    def sensitivity(self, k: int) -> dict[str, np.ndarray]:
        """Return the sensitivity of run k over up to 40 equal parts of the training.

        The series are "length", the mean `|y|`, and with a radius "clip_share", the share of clipped steps. There are
        none for fixed hyperparameters.
        """
        if not self.lengths.shape[1]:
            return {}
        parts = np.array_split(self.lengths[k], min(_PARTS, self.lengths.shape[1]))
        out = {"length": np.array([p.mean() for p in parts])}
        if self.radius is not None:
            out["clip_share"] = np.array([(p >= _CLIPPED * self.radius).mean() for p in parts])
        return out


def train(loop: Loop, w: Tensor, schedule: Schedule, read: Callable[[Run], dict[str, Tensor]], sample: int) -> Trained:
    """Train runs and read them at `schedule.ends`.

    The learning rate is the hyperparameter "lr", which must be fixed. Readings cost no training time.

    Args:
        loop: the training.
        w: initial weights `[R, D]`.
        schedule: learning rates, and when the runs are read.
        read: returns the readings `[R]` by name; among them "val" for `Trained.best`.
        sample: number of steps between two samples of `|y|`.
    """
    run, lengths = loop.start(w), list[Tensor]()
    readings: list[dict[str, Tensor]] = []
    sitting, spent = sittings.current(), Stopwatch(w.device)

    def watch(now: Run) -> None:
        nonlocal run
        if now.memory:
            lengths.append(now.memory.w[:, 0].norm(dim=-1))
        run = now
        sitting.tick(spent)

    def state() -> dict[str, Any]:
        kept = {"run": saved_runs.state(run), "readings": readings, "lengths": lengths, "spent": spent.state()}
        return kept | {"problem": sittings.remembered(loop.problem)}

    with sitting.part("training", state) as earlier:
        if earlier is not None:
            run = saved_runs.restored(loop, run, earlier["run"])
            sittings.remind(loop.problem, earlier["problem"])
            readings = [{n: x.to(w.device) for n, x in each.items()} for each in earlier["readings"]]
            lengths = [x.to(w.device) for x in earlier["lengths"]]
            spent.go_on(earlier["spent"])
        for end in schedule.ends[len(readings) :]:
            lr = torch.full_like(run.fixed["lr"], schedule.at(run.t))
            run = run._replace(fixed=run.fixed | {"lr": lr})
            with spent:
                run = loop.advance(run, end - run.t, watch, sample)
            readings.append(read(run))
    radius = getattr(loop.method.estimator, "radius", None)
    taken = finite(torch.stack(lengths, dim=1)) if lengths else np.empty((len(w), 0))
    table = {n: finite(torch.stack([r[n] for r in readings], dim=1)) for n in readings[0]}
    return Trained(np.array(schedule.ends), table, taken, radius, **spent.share(len(w)))


def in_force(loop: Loop, run: Run, name: str) -> Tensor:
    """Return the value `[R]` of a global hyperparameter, tuned or not, in natural units."""
    tuned = loop.hypers.natural(run.raw)
    return (tuned[name] if name in tuned else run.fixed[name][:, 0])[:, 0]
