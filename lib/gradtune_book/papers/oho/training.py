"""One training of the OHO paper's experiments: net, images, hyperparameters, and what is read off while it goes on.

The studies `oho_performance`, `oho_layerwise` and `oho_dynamics` share it. What the text leaves open is a field of
`Config`. Two fields follow from the text where it does not say them:

* An epoch of MNIST has 100 updates (Section 6.5), which on 50,000 images is a batch of 500.
* The 4-layer net has 6 "layers" and ResNet-18 has 62 (Section 6.2). These are their numbers of parameter tensors if the
  input counts as a layer: 784-128-128-10. So a layer of Section 6.2 is a parameter tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradtune import methods
from gradtune.errors import unknown
from gradtune.nets.draws import number
from gradtune.nets.wide_resnet import residual
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Method, Run
from gradtune.tuning.streams import Batch, Resident
from gradtune_book.papers.oho import measures, schedules
from gradtune_book.papers.series import finite, short
from gradtune_book.records import sittings
from gradtune_book.records.environment import Seconds, Stopwatch
from gradtune_book.tasks.classification import Batches, Classification, Modules, fully_connected
from gradtune_book.tasks.images import Images, load
from gradtune_book.tasks.per_run import moved
from gradtune_book.tasks.resnet18 import resnet18

LR, DECAY = "lr", "weight_decay"
OHO, SPLIT = "OHO", "OHO-split"
"""The recursion for each set of hyperparameters, and one influence shared out as the published program does."""

RULE = sgd(momentum=False)
"""The update of the weights: gradient descent with weight decay (Section 4)."""

TARGET = 0.3
"""The test loss that Section 6.1 asks for."""

_OUTER, _MOVED = 3, 4  # what a seed is used for, beside the uses of `fully_connected`
_TICK = 10  # steps between two moments at which a training may be saved
_TRAIN_ROWS = 5000  # training images of which the training loss at the end is the mean


@dataclass(frozen=True)
class Config:
    """One training. Runs that agree in all but the seed see the same batches."""

    method: str  # how the hyperparameters move
    seed: int  # draws the initial weights
    order: int = 0  # draws the order of the batches
    data: str = "mnist"  # mnist, cifar10 or digits
    rows: int | None = None  # images to train and validate on; None: all
    test_rows: int | None = None  # images of the test; None: all
    validation: int = 10_000  # images that validate
    net: Literal["mlp", "cnn", "residual", "resnet18"] = "mlp"
    layers: int = 4  # of units in an mlp or cnn, input and output counted
    width: int = 128  # units or kernels of each layer
    augment: bool = False  # random crop and flip
    batch: int = 500  # images of a training step
    outer: Literal["validation", "training"] = "validation"  # images of the outer loss
    outer_batch: int = 100  # images of a hypergradient
    epochs: int = 10
    readings: int = 2  # of an epoch
    lr: float = 1e-3  # initial learning rate
    decay: float = 0.0  # initial weight decay
    sets: int = 1  # sets of hyperparameters: 1 is global, one a parameter tensor is layerwise
    meta_rate: float = 5e-6
    reset_every: int | None = None  # steps after which the influence is set to 0; None: never
    version: int = 1


@lru_cache(maxsize=2)
def _images(data: str, device: torch.device, validation: int, rows: int | None, test_rows: int | None) -> Images:
    return load(data, torch.float32, device, validation, rows, test_rows)


class Moved:
    """Batches whose images are moved and mirrored at random.

    Args:
        batches: The batches.
        seed: Seed of the moves; those of a batch are a function of (seed, number of the batch).
    """

    def __init__(self, batches: Batches, seed: int) -> None:
        self.batches, self.seed = batches, seed

    def at(self, k: int) -> Batch:
        x, y = self.batches.at(k)
        return moved(x, number(self.seed, k)), y


class OnTheirOwn(Modules):
    """`Modules` whose batch norm takes the statistics of the images at hand, in evaluation too."""

    @torch.no_grad()
    def measured(self, w: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, error = (f(w, x, y) for f in self._measured)
        return loss, error


class Bench:
    """The net, the images and the batches of a configuration.

    Args:
        c: The configuration.
        device: Where to compute.

    Attributes:
        c: The configuration.
        device: Where to compute.
        images: The images.
        task: The losses.
        per_epoch: Steps of an epoch.
        steps: Steps of the training.
    """

    def __init__(self, c: Config, device: torch.device) -> None:
        self.c, self.device = c, device
        self.images = self._load()
        self.task = _task(c, self.images)
        self.per_epoch = (len(self.images.y_train) // c.batch) or 1
        self.steps = c.epochs * self.per_epoch

    def _load(self) -> Images:
        return _images(self.c.data, self.device, self.c.validation, self.c.rows, self.c.test_rows)

    def groups(self) -> str | tuple[int, ...]:
        """Return the granularity of `sets` groups of neighbouring parameter tensors."""
        count = len(self.task.layout.sizes)
        return "global" if self.c.sets == 1 else tuple(k * self.c.sets // count for k in range(count))

    def hypers(self, tuned: bool, lr: float | Tensor | None = None, decay: float | Tensor | None = None) -> Hypers:
        """Return learning rate and weight decay, neither below 0; by default they start as the configuration says."""
        values = {LR: self.c.lr if lr is None else lr, DECAY: self.c.decay if decay is None else decay}
        each = [Hyper(n, v, granularity=self.groups(), bounds=(0.0, math.inf), tuned=tuned) for n, v in values.items()]
        return Hypers(each, self.task.layout.sizes)

    def loop(self, hypers: Hypers) -> Loop:
        """Return plain gradient descent with the configuration's method, or with none where nothing is tuned."""
        return Loop(self.task, RULE, hypers, self.method() if hypers.tuned else methods.fixed())

    def method(self) -> Method:
        """Return OHO as the configuration has it.

        Raises:
            GradtuneError: The method is neither `OHO` nor `SPLIT`.
        """
        forms = {OHO: "exact", SPLIT: "split"}
        if self.c.method not in forms:
            raise unknown("method", self.c.method, forms)
        return methods.oho(self.c.meta_rate, self.c.reset_every, forms[self.c.method])

    def ends(self) -> list[int]:
        """Return the numbers of steps after which a training is read: `readings` times an epoch."""
        count = min(self.c.readings, self.per_epoch)
        return [
            e * self.per_epoch + (k + 1) * self.per_epoch // count for e in range(self.c.epochs) for k in range(count)
        ]

    def read(self, loop: Loop, run: Run) -> dict[str, Tensor]:
        """Return what a run is at a moment, `[R]` by name.

        It is the test loss (`test_curve`) and, where hyperparameters are tuned, those of each set (`lr_0`, ...,
        `decay_0`, ...) and the squared norms of the influence (`norm_lr`, `norm_decay`).
        """
        out = {"test_curve": self.task.evaluate(run.state.w, "test")[0]}
        if not loop.hypers.tuned:
            return out
        for name, values in loop.hypers.natural(run.raw).items():
            out |= {f"{_SHORT[name]}_{k}": values[:, k] for k in range(values.shape[1])}
        if run.memory and run.memory.w.shape[1] == loop.hypers.columns:
            out |= {f"norm_{_SHORT[n]}": x for n, x in measures.influence(loop.hypers, run.memory.w).items()}
        return out

    def at_end(self, w: Tensor) -> dict[str, np.ndarray]:
        """Return losses and errors at the end `[R]`, and 1 where a run has diverged."""
        (val, val_error), (test, test_error) = (self.task.evaluate(w, part) for part in ("val", "test"))
        x, y = self.task.images.train
        train = self.task.nets.measured(w, x[:_TRAIN_ROWS], y[:_TRAIN_ROWS])[0]
        found = {"test": test, "test_error": test_error, "val": val, "val_error": val_error, "train": train}
        return {n: finite(v) for n, v in found.items()} | {"diverged": np.isnan(finite(test)).astype(int)}


_SHORT = {LR: "lr", DECAY: "decay"}


def _task(c: Config, images: Images) -> Classification:
    if c.net == "mlp":
        task = fully_connected(images, [c.width] * (c.layers - 2), c.batch, c.outer_batch, c.order)
    else:
        train = Resident(*images.train, c.batch, number(c.order, 1), "the training images")
        val = Resident(*images.val, c.outer_batch, number(c.order, 2), "the validation images")
        task = Classification(images, OnTheirOwn(lambda: _module(c, images), images.x_train), train, val)
    if c.outer == "training":
        task.val = Resident(*task.images.train, c.outer_batch, number(c.order, _OUTER), "the training images")
    if c.augment:
        task.train = Moved(task.train, number(c.order, _MOVED))
    return task


def _module(c: Config, images: Images) -> nn.Module:
    """Return a net for images `[N, channels, s, s]`; the convolutional one is pooled by 2 after each convolution."""
    _, channels, size, _ = images.x_train.shape
    if c.net == "resnet18":
        return resnet18()
    if c.net == "residual":
        return residual(channels=channels)
    widths = [channels, *[c.width] * (c.layers - 2)]
    convolutions = [
        nn.Sequential(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)) for a, b in pairwise(widths)
    ]
    side = size // 2 ** (c.layers - 2)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(c.width * side * side, 10))


@dataclass(frozen=True)
class Trained:
    """R trained runs.

    Attributes:
        w: Weights `[R, D]` at the end.
        steps: Numbers of steps `[K]` after which the runs were read, 0 first.
        table: Readings `[R, K]` by name, NaN where they are not finite or not read.
        seconds: Seconds of training of a run.
    """

    w: Tensor
    steps: list[int]
    table: dict[str, np.ndarray]
    seconds: Seconds

    def series(self, k: int) -> dict[str, list[float | None]]:
        """Return the readings of run k as they are recorded."""
        return {"steps": [float(s) for s in self.steps], **{n: short(v[k], 5) for n, v in self.table.items()}}


Change = Callable[[Loop, Run], tuple[Loop, Run]]


def train(
    bench: Bench,
    loop: Loop,
    w: Tensor,
    change: Change | None = None,
    each: Callable[[Run], None] | None = None,
    more: Callable[[Loop, Run], dict[str, Tensor]] | None = None,
) -> Trained:
    """Train runs from weights `w [R, D]` and read them as `Bench.ends` says.

    Args:
        bench: Net, images and batches.
        loop: The training.
        w: Initial weights `[R, D]`.
        change: Called before each part of the training, at the latest at the start of every epoch; returns the loop
            and the run to go on with.
        each: Called before the first step and after every one. What it takes counts as training.
        more: Returns further readings `[R]`, by name.
    """
    run, spent, sitting = loop.start(w), Stopwatch(bench.device), sittings.current()
    readings: list[dict[str, Tensor]] = []
    ends = bench.ends()

    def read() -> dict[str, Tensor]:
        return bench.read(loop, run) | (more(loop, run) if more is not None else {})

    def watch(now: Run) -> None:
        nonlocal run
        run = now
        if each is not None:
            each(run)
        sitting.tick(spent)

    def state() -> dict[str, Any]:
        kept = {"run": saved_runs.state(run), "readings": readings, "spent": spent.state()}
        return kept | {"each": sittings.remembered(each)}

    with sitting.part("training", state) as earlier:
        if earlier is not None:
            readings = [{n: x.to(w.device) for n, x in one.items()} for one in earlier["readings"]]
            spent.go_on(earlier["spent"])
            sittings.remind(each, earlier["each"])
            loop, run = _changed(loop, run, change, [0, *ends][: len(readings)])
            run = saved_runs.restored(loop, run, earlier["run"])
        else:
            readings.append(read())
            if each is not None:
                each(run)
        for begin, end in pairwise([0, *ends][len(readings) - 1 :]):
            if change is not None and run.t == begin:
                loop, run = change(loop, run)
            with spent:
                run = loop.advance(run, end - run.t, watch, 1 if each is not None else _TICK)
            readings.append(read())
    names = dict.fromkeys(n for r in readings for n in r)
    missing = torch.full((len(w),), math.nan, device=bench.device)
    table = {n: finite(torch.stack([r.get(n, missing) for r in readings], dim=1)) for n in names}
    return Trained(run.state.w, [0, *ends], table, spent.share(len(w)))


def _changed(loop: Loop, run: Run, change: Change | None, begins: Sequence[int]) -> tuple[Loop, Run]:
    """Return a loop and a run of its form as all changes have left them that came at the steps `begins`."""
    if change is not None:
        for t in begins:
            loop, run = change(loop, run._replace(t=t))
    return loop, run


def falling(way: str, per_epoch: int, epochs: int, lr: Tensor, period: Tensor, gamma: Tensor) -> Change:
    """Return what sets a fixed learning rate at the start of every epoch, by a schedule.

    Args:
        way: One of `schedules.WAYS`.
        per_epoch: Steps of an epoch.
        epochs: Number of all epochs.
        lr: Initial learning rates `[R]`.
        period: As `schedules.factor` takes it.
        gamma: As `schedules.factor` takes it.
    """

    def change(loop: Loop, run: Run) -> tuple[Loop, Run]:
        now = lr * schedules.factor(way, run.t // per_epoch, epochs, period, gamma)
        return loop, run._replace(fixed=run.fixed | {LR: now[:, None, None].expand_as(run.fixed[LR])})

    return change


def placed(loop: Loop, run: Run, name: str, value: float) -> Run:
    """Return a run with one hyperparameter set to a value in all its sets, tuned or not.

    The influence stays as it is: it belongs to the weights, which have not moved.
    """
    if name not in loop.hypers.tuned:
        return run._replace(fixed=run.fixed | {name: torch.full_like(run.fixed[name], value)})
    block, raw = loop.hypers.blocks[name], run.raw.clone()
    here = torch.as_tensor(value).to(raw)
    raw[:, block.offset : block.offset + block.columns] = block.transform.inverse(here)
    return run._replace(raw=raw)


def frozen(loop: Loop, run: Run) -> tuple[Loop, Run]:
    """Return the training with its hyperparameters fixed at their values from now on."""
    return Loop(loop.problem, loop.rule, loop.hypers, methods.fixed()), run._replace(memory=(), outer=())


BLOCK = 5
"""Seeds that share an order of the batches."""


def seeds_of(count: int, first: int = 0) -> list[tuple[int, int]]:
    """Return seeds with the orders of their batches: another order after every `BLOCK` seeds."""
    return [(s, s // BLOCK) for s in range(first, first + count)]


def blocks_of(count: int, first: int = 0) -> list[list[tuple[int, int]]]:
    """Return the same three and two at a time: a recording that is stopped has as many seeds of every kind."""
    return [list(b) for _, b in groupby(seeds_of(count, first), key=lambda pair: (pair[1], pair[0] % BLOCK > 2))]
