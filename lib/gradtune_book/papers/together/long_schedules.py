"""FDS's Figure 3 at ten times the length: a learning rate for each of thousands of steps, exact, in little memory.

A LeNet is trained on MNIST for T steps, again and again from new weights and on new validation rows, and after each
training all learning rates move along their exact hypergradients (FDS, Algorithm 1). "per step" has a rate for each
step ("non-greedy, unshared" in the paper), "FDS" one for each of a few windows; "cosine" is a schedule off the shelf.
FDS, Section 3, says that reverse mode does not scale: it stores all states. Here it takes steps again from a tree of
few states (`Reverse(T, "tree")`), to the bits that storing all would give.

What it takes in memory is measured in a process of its own: how far its resident set rises, while it learns, above
where it stood with everything imported and all images read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune.estimators.reverse import Reverse
from gradtune.estimators.tree import TreeCost
from gradtune.nets.draws import number
from gradtune.nets.plain import lenet, xavier
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.recursion.wrapped import Clipped, Masked
from gradtune.training.loop import Loop, Method
from gradtune.training.restarts import Progress, Restarts, Task
from gradtune_book.papers.series import pieces
from gradtune_book.records import environment
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import images
from gradtune_book.tasks.per_run import PerRun, split

PER_STEP, FDS, COSINE = "per step", "FDS", "cosine"
METHODS = (PER_STEP, FDS, COSINE)
_TEST = 10**6  # number of the training that tests a schedule: other weights and rows than in any outer step
_CUTS = 250  # entries of a schedule that a record keeps


@dataclass(frozen=True)
class Config:
    """One schedule, learned and tested."""

    method: str  # one of `METHODS`
    seed: int  # draws weights, rows and batches of all trainings
    data: str = "mnist"
    images: int | None = None  # use so many images, equally many of a class; None: all
    steps: int = 5000  # T
    batch: int = 16  # images of a training batch
    windows: int = 10  # learning rates of FDS
    outer_steps: int = 4  # trainings that learn
    outer_lr: float = 0.03  # step on the mean hypergradient of a window, as for Figure 3 on MNIST
    limit: float = 3.0  # hypergradients are clipped here, up and down
    validation: int = 1000  # images, redrawn at every outer step
    branching: int = 71  # k of the tree: two levels for 5,000 steps
    own_process: bool = True  # learn in a process of its own, and measure its memory
    cosine_lr: float = 0.1  # first learning rate of the cosine schedule
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and which runs there are."""

    data: str
    images: int | None
    seeds: int
    steps: int
    batch: int
    windows: int
    outer_steps: int
    validation: int
    branching: int
    own_process: bool


SIZES = {
    "smoke": Sizes("digits", None, 1, 60, 16, 4, 3, 100, 8, False),
    "laptop": Sizes("mnist", None, 3, 5000, 16, 10, 4, 1000, 71, True),
    "paper": Sizes("mnist", None, 3, 5000, 128, 10, 50, 1000, 71, True),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, method by method.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    same = {n: v for n, v in asdict(sizes).items() if n != "seeds"}
    return [Config(m, s, **same) for m in METHODS for s in range(seed, seed + sizes.seeds)]


class Learned(NamedTuple):
    """What a configuration gave, as JSON can hold it."""

    metrics: dict[str, float | int | None]
    series: dict[str, list[float | None]]
    wall_s: float
    cpu_s: float
    dataset: str
    dataset_sha256: str


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Learn one schedule after the other.

    Metrics: `test_accuracy` of the schedule of the highest validation accuracy, `last_test_accuracy` of the last one,
    `best_outer_step` counted from 0, `diverged` outer steps; `memory_mb` (of 2^20 bytes) by which the process grew,
    None where it was not one of its own; `states` kept at once and `replayed` steps of a training; `state_mb`, the size
    of a state, and `parameters`. Series: `val_curve`, and `schedule_0`, ... and `spread_0`, ...: mean and standard
    deviation of the last schedule over pieces of equally many steps.

    Raises:
        GradtuneError: A method is unknown, or the process has failed.
    """
    found = [_apart(c, device) if c.own_process else learned(c, device) for c in batch]
    return [Result(f.metrics, f.series, f.wall_s, f.dataset, f.dataset_sha256, cpu_s=f.cpu_s) for f in found]


def learned(c: Config, device: torch.device) -> Learned:
    """Learn and test one schedule.

    Raises:
        GradtuneError: The method is unknown.
    """
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    trainer = _Trainer(c, device)
    environment.reset_peak(device)
    base = environment.peak_mb(device)
    with environment.Stopwatch(device) as spent:
        rates = trainer.cosine() if c.method == COSINE else trainer.learn()
        peak = environment.peak_mb(device)
    curve = trainer.accuracies
    best = max(range(len(curve)), key=curve.__getitem__, default=0)
    cost = trainer.cost
    metrics: dict[str, float | int | None] = {
        "test_accuracy": trainer.test(rates[best]),
        "last_test_accuracy": trainer.test(rates[-1]),
        "best_outer_step": best,
        "diverged": trainer.diverged,
        "memory_mb": peak - base if c.own_process and peak is not None and base is not None else None,
        "states": cost.states if cost else None,
        "replayed": cost.replayed if cost else None,
        "state_mb": trainer.parameters * 4 / 2**20,
        "parameters": trainer.parameters,
    }
    last = np.array_split(_stretched(rates[-1], c.steps), min(_CUTS, c.steps))
    series = pieces("schedule", [float(x.mean()) for x in last]) | pieces("spread", [float(x.std()) for x in last])
    return Learned(
        metrics, series | {"val_curve": list(curve)}, **spent.share(1), dataset=trainer.given.caption,
        dataset_sha256=trainer.given.sha256,
    )  # fmt: skip


def _stretched(rates: Tensor, steps: int) -> np.ndarray:
    """Return the learning rate of each step."""
    values: np.ndarray = rates.double().cpu().numpy()
    return values[np.arange(steps) * len(values) // steps]


class _Trainer:
    """The trainings of one configuration."""

    def __init__(self, c: Config, device: torch.device) -> None:
        self.c, self.device, self.diverged = c, device, 0
        self.accuracies: list[float] = []
        self.given = images.load(c.data, torch.float32, device, 0, c.images)
        _, channels, self.size, _ = self.given.x_train.shape
        self.channels = channels
        self.hypers = [Hyper("momentum", 0.0, tuned=False)]
        self.rule = sgd(weight_decay=False)
        self.cost: TreeCost | None = None
        self.parameters = sum(self.task(_TEST).layout.sizes)

    def task(self, outer_step: int) -> PerRun:
        """Return a task with new weights, new validation rows and a new order."""
        c, rows = self.c, split(len(self.given.y_train), self.c.validation, self.device)
        return PerRun(self._net, self.given, rows, [number(c.seed, outer_step)], c.batch, c.validation)

    def _net(self) -> Any:
        if self.size >= 16:
            return xavier(lenet(self.size, self.channels))
        side = self.size * self.size * self.channels
        return xavier(torch.nn.Sequential(torch.nn.Flatten(), *_small(side)))

    def learn(self) -> list[Tensor]:
        """Take all outer steps, from learning rates of zero, and return the rates before each."""
        c = self.c
        windows = c.windows if c.method == FDS else c.steps
        tasks: dict[int, PerRun] = {}

        def make(k: int) -> Task:
            tasks.clear()
            tasks[k] = self.task(k)
            return Task(tasks[k], tasks[k].init(), tasks[k].layout.sizes)

        rates = [torch.zeros(windows, device=self.device)]

        def watch(progress: Progress) -> None:
            w = progress.run.state.w
            self.accuracies.append(float(tasks[progress.number].val_accuracies(w)))
            self.diverged += int(not w.isfinite().all())
            rates.append(progress.run.raw[0])
            replays = search.loop(progress.number).replays
            self.cost = None if replays is None else replays.cost

        declared = [Hyper("lr", 0.0, windows=windows), *self.hypers]
        search = Restarts(make, self.rule, declared, self._method, [c.steps] * c.outer_steps)
        search.advance(search.start(), watch=watch)
        return rates[:-1]  # of the last update nothing is known

    def _method(self, steps: int) -> Method:
        c, length = self.c, self.c.steps / self.c.windows if self.c.method == FDS else 1
        outer = Masked(Clipped(SGD(c.outer_lr / length), c.limit * length))
        return Method(Reverse(steps, "tree", c.branching), outer, every=steps)

    def cosine(self) -> list[Tensor]:
        """Return the cosine schedule alone."""
        turns = torch.pi * torch.arange(self.c.steps, dtype=torch.float64) / self.c.steps
        return [(self.c.cosine_lr * (1 + torch.cos(turns)) / 2).to(self.device)]

    def test(self, rates: Tensor) -> float:
        """Return the test accuracy after a training with these learning rates; chance where it diverged."""
        task = self.task(_TEST)
        declared = [Hyper("lr", rates, windows=len(rates), tuned=False), *self.hypers]
        loop = Loop(task, self.rule, Hypers(declared, task.layout.sizes, self.c.steps), Method())
        w = loop.advance(loop.start(task.init()), self.c.steps).state.w
        return (
            float(task.accuracies(w, *self.given.test)) if w.isfinite().all() else 1 / len(self.given.y_test.unique())
        )


def _small(side: int) -> Sequence[torch.nn.Module]:
    return torch.nn.Linear(side, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)


# -- a process of its own ----------------------------------------------------------------------------------------------

_CALL = "import sys; from gradtune_book.papers.together import long_schedules as s; s.alone(*sys.argv[1:])"


def _apart(c: Config, device: torch.device) -> Learned:
    """Learn a schedule in a process of its own.

    Raises:
        GradtuneError: The process has failed.
    """
    command = [sys.executable, "-c", _CALL, json.dumps(asdict(c)), str(device)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise GradtuneError(f"the process that learns {c.method} has failed with status {done.returncode}; see above")
    return Learned(**json.loads(done.stdout.splitlines()[-1]))


def alone(config: str, device: str) -> None:
    """Learn a schedule in this process and print what came out as JSON.

    Args:
        config: A `Config` as JSON.
        device: Name of the device.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(json.dumps(learned(Config(**json.loads(config)), torch.device(device))._asdict()))


def _cost(c: Config) -> float:
    return 2.0 * c.steps if c.method == COSINE else 4.0 * c.steps * c.outer_steps


STUDY = Study("long_schedules", Config, SIZES, configs, run, chunk=1, cost=_cost)
