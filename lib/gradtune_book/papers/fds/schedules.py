"""Figure 3 of the FDS paper: a LeNet's learning rate schedule over one epoch, learned from zero.

A run takes `outer_steps` outer steps, each a training from new weights, on new validation rows. Each window of steps
has a value of the learning rate. "greedy" and "non-greedy" have one per step: the former updates it online by the
horizon 1, the latter has exact hypergradients. "FDS" has about ten, and exact hypergradients. The schedule of the
highest validation accuracy is kept (early stopping), and tested by training with it once more. "cosine" is a schedule
off the shelf, tested in the same way.

All exact hypergradients come by reverse mode here, whose cost does not grow with the number of windows. The forward
mode of FDS gives the same numbers in constant memory (a test compares them, `carried` measures the memory).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradtune import methods
from gradtune.errors import unknown
from gradtune.estimators.reverse import Reverse
from gradtune.nets.draws import number
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.recursion.wrapped import Clipped, Masked
from gradtune.training.loop import Loop, Method
from gradtune.training.restarts import Progress, Restarts, Task
from gradtune_book.papers.fds.common import EMBEDDED, lenet_for, pictures, schedule
from gradtune_book.papers.series import pieces
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.per_run import PerRun, split

NON_GREEDY, GREEDY, FDS, COSINE, TUNED = "non-greedy", "greedy", "FDS", "cosine", "cosine, tuned"
METHODS = (GREEDY, NON_GREEDY, FDS, COSINE, TUNED)
UNLEARNED = (COSINE, TUNED)
"""Schedules that take no outer step."""

COSINE_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""First learning rates of which "cosine, tuned" keeps the one of highest validation accuracy, a training each."""

_TEST = 10**6  # number of the training that tests a schedule: other weights and rows than in any outer step


@dataclass(frozen=True)
class Config:
    """One schedule, learned and tested."""

    method: str  # one of `METHODS`
    seed: int  # draws weights, rows and batches of all trainings
    data: str = "mnist"  # mnist, svhn, svhn_like or digits
    images: int | None = None  # use so many images, equally many of a class; None: all
    steps: int = 460  # T: one epoch
    batch: int = 128  # images of a training batch
    windows: int = 10  # learning rates of FDS
    outer_steps: int = 50  # trainings that learn
    outer_lr: float = 0.1  # step on the mean hypergradient of a window (Algorithm 1); MNIST takes a smaller one
    limit: float = 3.0  # hypergradients are clipped here, up and down
    momentum: float = 0.0  # the text names none; with 0.9 the first outer step ends all learning
    validation: int = 1000  # images, redrawn at every outer step
    cosine_lr: float = 0.1  # first learning rate of the cosine schedule
    dtype: Literal["float32", "float64"] = "float32"
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and which runs there are."""

    sets: tuple[str, ...]  # values of `Config.data`
    seeds: int  # seeds of each set and method
    steps: int  # T
    batch: int
    windows: int
    outer_steps: int
    validation: int
    images: int | None = None
    dtype: Literal["float32", "float64"] = "float32"
    more_outer_lr: tuple[float, ...] = ()  # further outer learning rates, beside those of `OUTER_LR`


SIZES = {
    "smoke": Sizes((EMBEDDED,), 1, 20, 32, 4, 4, 100, 800, "float64"),  # the same numbers on all processors
    "laptop": Sizes(("mnist", EMBEDDED), 3, 150, 64, 10, 25, 500, 10_000, more_outer_lr=(0.03,)),
    "paper": Sizes(("mnist", EMBEDDED), 3, 460, 128, 10, 50, 1000, more_outer_lr=(0.03,)),
}


OUTER_LR = {"mnist": 0.03}
"""Outer learning rates other than Algorithm 1's 0.1, by set.

With 0.1, trainings on MNIST diverge after the second outer step.
"""


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, set by set and method by method, with the set's own outer learning rate first.

    Args:
        sizes: what the scale sets.
        seed: first seed.
    """
    size = {n: getattr(sizes, n) for n in ("steps", "batch", "windows", "outer_steps", "validation", "images", "dtype")}
    out = []
    for data in sizes.sets:
        first = outer_lr_of(data)
        for lr in dict.fromkeys((first, *sizes.more_outer_lr)):
            methods_here = [m for m in METHODS if m not in UNLEARNED or lr == first]
            each = [(m, k) for m in methods_here for k in range(sizes.seeds)]
            out += [Config(m, seed + k, data=data, outer_lr=lr, **size) for m, k in each]
    return out


def outer_lr_of(data: str) -> float:
    """Return the outer learning rate of a set's schedules, where none is named."""
    return OUTER_LR.get(data, Config.outer_lr)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute one schedule after the other.

    The metrics are:

    * `test_accuracy`: test accuracy of the schedule kept, where weights that are not finite count as chance;
    * `last_test_accuracy`: that of the last schedule;
    * `best_outer_step`: number of the outer step at which the schedule was kept, counted from 0;
    * `diverged`: how many of the outer steps ended with weights that are not finite.

    The series are:

    * `val_curve`: validation accuracy of each outer step's training;
    * `schedule_0`, ... and `last_schedule_0`, ...: the schedule kept and the last one, a value per window, in pieces of
      50.

    Args:
        batch: configurations.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a method is unknown.
    """
    return [_one(c, device) for c in batch]


def _one(c: Config, device: torch.device) -> Result:
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    trainer = _Trainer(c, device)
    spent = Stopwatch(device)
    if c.method == COSINE:
        learned = _Learned([schedule("cosine", c.cosine_lr, c.steps).to(device)], [])
    else:
        learned = trainer.choose(spent) if c.method == TUNED else trainer.learn(spent)
    best = max(range(len(learned.accuracies)), key=lambda k: learned.accuracies[k], default=0)
    metrics: dict[str, float | int | None] = {
        "test_accuracy": trainer.test(learned.rates[best]),
        "last_test_accuracy": trainer.test(learned.rates[-1]),
        "best_outer_step": best,
        "diverged": learned.diverged,
    }
    series = pieces("schedule", learned.rates[best].tolist()) | pieces("last_schedule", learned.rates[-1].tolist())
    # validation costs an epoch's share of time and belongs to early stopping: it is counted
    series |= {"val_curve": list(learned.accuracies)}
    return Result(metrics, series, spent.wall_s, trainer.given.caption, trainer.given.sha256, cpu_s=spent.cpu_s)


@dataclass
class _Learned:
    """Learning rates `[N]` before each outer step, the validation accuracies they gave, and how many diverged."""

    rates: list[Tensor]
    accuracies: list[float]
    diverged: int = 0


class _Trainer:
    """The trainings of one configuration."""

    def __init__(self, c: Config, device: torch.device) -> None:
        self.c, self.device = c, device
        self.given = pictures(c.data, device, c.images, dtype=getattr(torch, c.dtype))
        self.momentum = Hyper("momentum", c.momentum, tuned=False)
        self.rule = sgd(weight_decay=False)

    def task(self, outer_step: int) -> PerRun:
        """Return a task with new weights, new validation rows and a new order."""
        rows = split(len(self.given.y_train), self.c.validation, self.device)
        seed = number(self.c.seed, outer_step)
        greedy = self.c.method == GREEDY  # a validation batch as large as a training batch, another at every step
        size = self.c.batch if greedy else self.c.validation
        return PerRun(lambda: lenet_for(self.given), self.given, rows, [seed], self.c.batch, size, greedy)

    def learn(self, spent: Stopwatch) -> _Learned:
        """Take all outer steps, from learning rates of zero, while `spent` runs."""
        c = self.c
        windows = c.windows if c.method == FDS else c.steps
        tasks: dict[int, PerRun] = {}

        def make(k: int) -> Task:
            tasks.clear()
            tasks[k] = self.task(k)
            return Task(tasks[k], tasks[k].init(), tasks[k].layout.sizes)

        learned = _Learned([torch.zeros(windows, device=self.device)], [])

        def watch(progress: Progress) -> None:
            w = progress.run.state.w
            learned.accuracies.append(float(tasks[progress.number].val_accuracies(w)))
            learned.diverged += int(not w.isfinite().all())
            learned.rates.append(progress.run.raw[0])

        hypers = [Hyper("lr", 0.0, windows=windows), self.momentum]
        search = Restarts(make, self.rule, hypers, self._method, [c.steps] * c.outer_steps)
        progress, sitting = search.start(), sittings.current()

        def tick(now: Progress) -> None:  # at the end of an outer step: earlier, reverse mode would take steps again
            nonlocal progress
            progress = now
            sitting.tick(spent)

        def state() -> dict[str, Any]:
            return {"search": search.state(progress), "learned": dict(vars(learned)), "spent": spent.state()}

        with sitting.part("learning", state) as earlier:
            if earlier is not None:
                progress, learned = search.restored(earlier["search"]), _Learned(**earlier["learned"])
                learned.rates = [x.to(self.device) for x in learned.rates]
                spent.go_on(earlier["spent"])
                if search.complete(progress):  # saved before it was seen
                    watch(progress)
            with spent:
                search.advance(progress, watch=watch, tick=tick, stride=c.steps)
        learned.rates.pop()  # of the last update nothing is known
        return learned

    def choose(self, spent: Stopwatch) -> _Learned:
        """Train once with each of the cosine schedules, while `spent` runs."""
        learned = _Learned([], [])
        with spent:
            for k, lr in enumerate(COSINE_RATES):
                task, rates = self.task(k), schedule("cosine", lr, self.c.steps).to(self.device)
                w = self._weights(task, rates)
                learned.accuracies.append(float(task.val_accuracies(w)))
                learned.diverged += int(not w.isfinite().all())
                learned.rates.append(rates)
        return learned

    def _method(self, steps: int) -> Method:
        """Return the method: a step is `outer_lr` times the mean hypergradient of a window, clipped."""
        c = self.c
        horizon = 1 if c.method == GREEDY else steps
        length = steps / c.windows if c.method == FDS else 1
        outer = Masked(Clipped(SGD(c.outer_lr / length), c.limit * length))
        return Method(Reverse(horizon), outer, every=horizon)

    def _weights(self, task: PerRun, rates: Tensor) -> Tensor:
        """Return the weights after a training with these learning rates `[N]`."""
        hypers = [Hyper("lr", rates, windows=len(rates), tuned=False), self.momentum]
        loop = Loop(task, self.rule, Hypers(hypers, task.layout.sizes, self.c.steps), Method())
        return loop.advance(loop.start(task.init()), self.c.steps).state.w

    def test(self, rates: Tensor) -> float:
        """Return the test accuracy after a training with these learning rates `[N]`; chance where it diverged."""
        task = self.task(_TEST)
        w = self._weights(task, rates)
        if not w.isfinite().all():
            return 1 / len(self.given.y_test.unique())
        return float(task.accuracies(w, *self.given.test))


def carried(c: Config, lengths: Sequence[int], device: torch.device) -> dict[str, list[float]]:
    """Return the memory that a training carries from step to step, just before its only outer step.

    What a single step needs besides does not depend on its length and is not counted.

    Args:
        c: configuration, with `c.windows` learning rates.
        lengths: lengths T of trainings.
        device: where to compute.

    Returns:
        Megabytes (of `2^20` bytes) for each length, weights included: by FDS's forward mode ("FDS") and by reverse mode
        over stored states ("reverse").
    """
    ways = {FDS: lambda steps: methods.fds(steps, SGD(0.0)), "reverse": lambda steps: methods.per_step(steps, 0.0)}
    return {name: [_megabytes(c, steps, how, device) for steps in lengths] for name, how in ways.items()}


def _megabytes(c: Config, steps: int, how: Callable[[int], Method], device: torch.device) -> float:
    trainer = _Trainer(c, device)
    task = trainer.task(0)
    hypers = [Hyper("lr", 0.0, windows=c.windows), trainer.momentum]
    loop = Loop(task, trainer.rule, Hypers(hypers, task.layout.sizes, steps + 1), how(steps + 1))
    run = loop.advance(loop.start(task.init()), steps)
    stores = (x.untyped_storage() for x in tree_leaves(run) if torch.is_tensor(x))
    held = {store.data_ptr(): store.nbytes() for store in stores}
    return sum(held.values()) / 2**20


def _cost(c: Config) -> float:
    """Return the cost in gradients of a training batch."""
    if c.method in UNLEARNED:
        return 2.0 * c.steps * (len(COSINE_RATES) if c.method == TUNED else 1)
    each = 2.5 if c.method == GREEDY else 5.0
    return each * c.steps * c.outer_steps


STUDY = Study("fds_schedules", Config, SIZES, configs, run, chunk=1, cost=_cost)
