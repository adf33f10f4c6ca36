"""One-pass training of any net by the settings of Section 4 of the OnePass paper, which the studies of nets share.

It has what the studies of Section 4.2 need beside their task: a trainer that any of the methods drives, readings of the
test data that survive a kill, the best of three trainings, and steps of all methods in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gradtune.nets.layout import Layout
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.problems import Problem
from gradtune.recursion.rules import Rule
from gradtune.search import Training
from gradtune.search.trainable import Members
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Run
from gradtune_book.papers.onepass.uci_training import SETTINGS, declared, draw, setting
from gradtune_book.records import sittings
from gradtune_book.records.environment import Seconds, Stopwatch
from gradtune_book.records.store import Result

TIMES = "times"
"""What studies call steps of all methods in turns."""

THIRDS = 10_000
"""Trainings of a 3-batched run start from other draws than the Random runs: from seeds of at least this."""

_WARM, _TURNS = 50, 10  # steps that are not counted; turns of each method


class Task(Problem, Protocol):
    """Losses whose weights have a layout."""

    layout: Layout


@dataclass(frozen=True)
class Plan:
    """How long a training is and how it is tuned."""

    method: str  # a key of `uci_training.SETTINGS`
    steps: int  # training steps
    every: int = 10  # training steps between two hyperparameter updates
    look_back: int = 5  # steps looked back on
    readings: int = 20  # of the nets, after the first and at least; fewer where there are fewer updates

    @property
    def between(self) -> int:
        """Training steps between two readings, whole update intervals."""
        return self.every * max(1, self.steps // self.every // self.readings)


class Trainer:
    """Training of R nets by one method: the one-pass loop, or plain training whose learning rate is stepped.

    Args:
        plan: The method and its length.
        task: The losses.
        rule: The update rule.
        w: Initial weights `[R, D]`.
        seeds: Seed of each run, which draws its initial hyperparameters.

    Attributes:
        task: The losses.
        start: What the runs start from.
    """

    def __init__(self, plan: Plan, task: Task, rule: Rule, w: Tensor, seeds: Sequence[int]) -> None:
        its = setting(plan.method)
        self.plan, self.task, self.start = plan, task, draw(seeds)
        hypers, sizes = declared(its, self.start, w), task.layout.sizes
        self._loop = Loop(task, rule, Hypers(hypers, sizes), its.make(plan.look_back, plan.every))
        self._stepped = Training(task, rule, hypers, sizes, lambda _: w, plan.steps, every=plan.every)
        if plan.method == "Random-xLR":
            self._members = self._stepped.start(self.start.recipes(), seeds)
        else:
            self._members = Members(self._loop.start(w), None)

    @property
    def run(self) -> Run:
        """The runs as they are."""
        return self._members.run

    def advance(self, steps: int) -> Run:
        """Take more training steps, and return the runs."""
        if self._members.factor is not None:
            self._members = self._stepped.advance(self._members, steps)
        else:
            self._members = Members(self._loop.advance(self.run, steps), None)
        return self.run

    def state(self) -> dict[str, Any]:
        """Return what `go_on` takes."""
        return {"run": saved_runs.state(self.run), "task": sittings.remembered(self.task)}

    def go_on(self, earlier: Mapping[str, Any]) -> None:
        """Go on from an earlier state of runs that were started in the same way."""
        sittings.remind(self.task, earlier["task"])
        self._members = self._members._replace(run=saved_runs.restored(self._loop, self.run, earlier["run"]))


def train(t: Trainer, name: str, read: Callable[[Tensor], list[Any]], spent: Stopwatch) -> list[list[Any]]:
    """Train to the end, and read the nets before the first step and at least `plan.readings` times after it.

    Args:
        t: The trainer, before its first step.
        name: Name of the training among those of its batch, for its checkpoint.
        read: Reads the weights `[R, D]`, into numbers that a checkpoint can hold.
        spent: Seconds of training; reading does not count.

    Returns:
        What `read` gave each time.
    """
    sitting, every = sittings.current(), t.plan.every
    found: list[list[Any]] = []

    def state() -> dict[str, Any]:
        return {"trainer": t.state(), "read": found, "spent": spent.state()}

    with sitting.part(name, state) as earlier:
        if earlier is None:
            found.append(read(t.run.state.w))
        else:
            t.go_on(earlier["trainer"])
            found = [*earlier["read"]]
            spent.go_on(earlier["spent"])
        while t.run.t < t.plan.steps:
            until = min(t.plan.steps, (t.run.t // t.plan.between + 1) * t.plan.between)
            with spent:
                t.advance(min(5 * every, until - t.run.t))
            if t.run.t == until:
                found.append(read(t.run.state.w))
            sitting.tick()
    return found


def seeds_of_thirds(seeds: Sequence[int], trials: int) -> list[list[int]]:
    """Return the seeds of the trainings that 3-batched runs choose from, a list for each of their trainings."""
    return [[THIRDS + trials * seed + j for seed in seeds] for j in range(trials)]


def best(trained: Sequence[Result], by: str) -> Result:
    """Return the training of the lowest metric, with the seconds of all.

    Args:
        trained: The trainings of one 3-batched run.
        by: Name of the metric. A training without a value is chosen only if none has one.
    """
    values = [r.metrics[by] for r in trained]
    chosen = trained[int(np.argmin([np.inf if v is None or np.isnan(float(v)) else float(v) for v in values]))]
    cpu = sum(r.cpu_s or 0.0 for r in trained)
    return replace(chosen, cpu_s=cpu, wall_s=sum(r.wall_s or 0.0 for r in trained))


def times(
    make: Callable[[str], Trainer], steps: int, every: int, device: torch.device
) -> tuple[dict[str, Any], Seconds]:
    """Take steps of all methods in turns, so that their seconds can be compared whatever else the machine does.

    Args:
        make: Gives the trainer of a method, of one net.
        steps: Steps of each method, beside those that are not counted.
        every: Steps between two hyperparameter updates; a turn has no fewer.
        device: Where to compute.

    Returns:
        Milliseconds of a step by the processor, `ms_<method>`, and all seconds.
    """
    trainers = {m: make(m) for m in SETTINGS}
    spent = {m: Stopwatch(device) for m in trainers}
    for t in trainers.values():
        t.advance(_WARM)
    turn = max(every, steps // _TURNS)
    for _ in range(0, steps, turn):
        for m, t in trainers.items():
            with spent[m]:
                t.advance(turn)
    taken = turn * len(range(0, steps, turn))
    total = {n: sum(s.share(1)[n] for s in spent.values()) for n in ("cpu_s", "wall_s")}
    metrics = {f"ms_{m}": 1e3 * s.cpu_s / taken for m, s in spent.items()}
    return metrics, Seconds(cpu_s=total["cpu_s"], wall_s=total["wall_s"])
