"""Sharing over windows against a value for every step, over ten epochs: what it loses or saves when noise is measured.

FDS shares a learning rate over a window of steps because a step's own hypergradient is noisy (Theorem 4.1, which
assumes Gaussian noise, a bounded drift of the mean and one bound on all correlations). Forward mode could not check
that at length: it carries a column a rate. With reverse mode through a tree of states every step's hypergradient of a
long training is exact, and both sides can be measured:

* "noise": the hypergradients of all steps at a fixed learning rate, from many weights, rows and orders, for trainings
  of one, three and ten epochs. `sharing` gives their squared errors by window and the theorem's bound on them.
* "per step", "FDS" and "one rate": learning rates that are learned over outer steps of Algorithm 1, each moving along
  the mean hypergradient of its window, with as many windows as steps, with seven, and with one. In expectation all move
  alike where the mean does not drift within a window, so that what differs is noise and drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gradtune.errors import unknown
from gradtune.estimators.reverse import Reverse
from gradtune.nets.draws import number
from gradtune.nets.plain import mlp
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.recursion.wrapped import Kept, Masked
from gradtune.training.loop import Loop, Method
from gradtune.training.restarts import Progress, Restarts, Task
from gradtune_book.papers.series import pieces
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import images
from gradtune_book.tasks.per_run import PerRun, split

NOISE, PER_STEP, FDS, ONE = "noise", "per step", "FDS", "one rate"
METHODS = (NOISE, PER_STEP, FDS, ONE)
_TEST = 10**6  # numbers of the trainings that test a schedule


@dataclass(frozen=True)
class Config:
    """The hypergradients of one training, or one schedule, learned and tested."""

    method: str  # one of `METHODS`
    seed: int  # draws weights, rows and batches
    data: str = "mnist"
    images: int = 5500  # images that train and validate, equally many of a class
    hidden: int = 32  # units of the hidden layer
    steps: int = 500  # T
    batch: int = 100
    validation: int = 500  # images, redrawn for every training
    lr: float = 0.05  # learning rate of the noise, and the first one of what is learned
    windows: int = 7  # learning rates of FDS
    outer_steps: int = 12  # trainings that learn
    outer_lr: float = 1.0  # step on the mean hypergradient of a window
    tests: int = 8  # trainings that test a schedule
    branching: int = 23  # k of the tree
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and which runs there are."""

    data: str
    images: int
    hidden: int
    batch: int
    validation: int
    epochs: tuple[int, ...]  # lengths of the noise; schedules are learned at the last
    noises: int  # trainings of each length
    seeds: int  # schedules of each method
    outer_lrs: tuple[float, ...]  # values of `Config.outer_lr`; the schedules of one rate take the first
    outer_steps: int
    tests: int
    branching: int


SIZES = {
    "smoke": Sizes("digits", 700, 16, 50, 100, (1, 4), 6, 1, (1.0,), 4, 2, 7),
    "laptop": Sizes("mnist", 5500, 32, 100, 500, (1, 3, 10), 24, 3, (1.0, 0.3, 3.0), 8, 8, 23),
    "paper": Sizes("mnist", 60_000, 64, 100, 5000, (1, 3, 10), 100, 10, (1.0, 0.1, 0.3, 3.0), 50, 16, 74),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the noise at each length, then the schedules.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    own = ("epochs", "noises", "seeds", "outer_lrs")
    same = {n: v for n, v in asdict(sizes).items() if n not in own}
    lengths = [e * ((sizes.images - sizes.validation) // sizes.batch) for e in sizes.epochs]
    noise = [Config(NOISE, seed + k, steps=n, **same) for n in lengths for k in range(sizes.noises)]
    ways = [(m, lr) for m in METHODS[1:] for lr in (sizes.outer_lrs if m != ONE else sizes.outer_lrs[:1])]
    last = lengths[-1]
    return noise + [Config(m, seed + k, steps=last, outer_lr=lr, **same) for m, lr in ways for k in range(sizes.seeds)]


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute trainings of one method side by side.

    Metrics of the noise: `val_loss` at the end. Series: `hypergradient_0`, ..., those of all steps, in pieces of 50.
    Metrics of a schedule: `test_loss` and `test_accuracy`, means over `tests` trainings with the last schedule that
    differ in weights, rows and order from all before, and `diverged`, how many of these did. Series: `val_curve`, the
    validation loss after each outer step's training; `schedule_0`, ..., the last schedule in pieces.

    Raises:
        GradtuneError: The method is unknown.
    """
    c, seeds = batch[0], [b.seed for b in batch]
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    given = images.load(c.data, torch.float32, device, 0, c.images).flat()
    return _noise(c, seeds, given) if c.method == NOISE else _schedules(c, seeds, given)


def training(c: Config, seeds: Sequence[int], given: images.Images) -> PerRun:
    """Return trainings of these seeds side by side: weights, rows and order of each are functions of its seed.

    Args:
        c: Configuration, whatever its seed.
        seeds: Seed of each training.
        given: The images, flat.
    """
    rows = split(len(given.y_train), c.validation, given.x_train.device)
    sizes = (given.x_train.shape[1], c.hidden, int(given.y_train.max()) + 1)
    return PerRun(lambda: mlp(sizes, torch.nn.Tanh), given, rows, seeds, c.batch, c.validation)


def _rates(c: Config, windows: int) -> list[Hyper]:
    return [Hyper("lr", c.lr, windows=windows), Hyper("momentum", 0.0, tuned=False)]


def _noise(c: Config, seeds: Sequence[int], given: images.Images) -> list[Result]:
    task = training(c, seeds, given)
    method = Method(Reverse(c.steps, "tree", c.branching), Kept(SGD(0.0)), every=c.steps)
    loop = Loop(task, sgd(weight_decay=False), Hypers(_rates(c, c.steps), task.layout.sizes, c.steps), method)
    with Stopwatch(given.x_train.device) as spent:
        run = loop.advance(loop.start(task.init()), c.steps)
    with torch.no_grad():
        losses = task.val_loss(run.state.w, {}, c.steps)
    found = run.outer.hypergradient
    return [
        Result({"val_loss": float(loss)}, pieces("hypergradient", g.tolist()), **spent.share(len(seeds)),
               dataset=given.caption, dataset_sha256=given.sha256)
        for loss, g in zip(losses, found, strict=True)
    ]  # fmt: skip


def _schedules(c: Config, seeds: Sequence[int], given: images.Images) -> list[Result]:
    windows = {PER_STEP: c.steps, FDS: c.windows, ONE: 1}[c.method]
    tasks: dict[int, PerRun] = {}
    curve: list[Tensor] = []

    def make(k: int) -> Task:
        tasks.clear()
        tasks[k] = training(c, [number(seed, k) for seed in seeds], given)
        return Task(tasks[k], tasks[k].init(), tasks[k].layout.sizes)

    def watch(progress: Progress) -> None:
        with torch.no_grad():
            curve.append(tasks[progress.number].val_loss(progress.run.state.w, {}, c.steps))

    def method(steps: int) -> Method:
        return Method(Reverse(steps, "tree", c.branching), Masked(SGD(c.outer_lr * windows / steps)), every=steps)

    search = Restarts(make, sgd(weight_decay=False), _rates(c, windows), method, [c.steps] * c.outer_steps)
    with Stopwatch(given.x_train.device) as spent:
        raw = search.advance(search.start(), watch=watch).run.raw
    losses = torch.stack(curve, 1).double()
    out = []
    for k, seed in enumerate(seeds):
        metrics = _tested(c, seed, raw[k], given)
        series = {"val_curve": losses[k].tolist()} | pieces("schedule", raw[k].tolist())
        shared = spent.share(len(seeds))
        out.append(Result(metrics, series, **shared, dataset=given.caption, dataset_sha256=given.sha256))
    return out


def _tested(c: Config, seed: int, rates: Tensor, given: images.Images) -> dict[str, float | int | None]:
    """Train anew with a schedule, several times, and return means over the test images."""
    task = training(c, [number(seed, _TEST, k) for k in range(c.tests)], given)
    declared = [Hyper("lr", rates, windows=len(rates), tuned=False), Hyper("momentum", 0.0, tuned=False)]
    loop = Loop(task, sgd(weight_decay=False), Hypers(declared, task.layout.sizes, c.steps), Method())
    w = loop.advance(loop.start(task.init()), c.steps).state.w
    fine = w.isfinite().all(1)
    x, y = given.test
    with torch.no_grad():
        losses = torch.stack([torch.nn.functional.cross_entropy(_logits(task, row, x), y) for row in w[fine]])
    return {
        "test_loss": float(losses.mean()) if len(losses) else None,
        "test_accuracy": float(task.accuracies(w[fine], x, y).mean()) if len(losses) else None,
        "diverged": int((~fine).sum()),
    }


def _logits(task: PerRun, w: Tensor, x: Tensor) -> Tensor:
    found: Tensor = torch.func.functional_call(task.module, task.layout.split(w), (x,))
    return found


def _chunk(c: Config) -> int:
    return 8 if c.method == NOISE else 3


def _cost(c: Config) -> float:
    return float(c.steps) if c.method == NOISE else float(c.steps * (c.outer_steps + 0.3 * c.tests))


STUDY = Study("long_sharing", Config, SIZES, configs, run, chunk=_chunk, cost=_cost)
