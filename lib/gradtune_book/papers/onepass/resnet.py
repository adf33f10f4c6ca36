"""The CIFAR-10 columns of Tables 2 and 8 of the OnePass paper, for a GPU: ResNet-18, tuned in one pass.

Images are not augmented, 100 make a batch, and a training takes 72 epochs (Section 4.2). Batch norm takes the batch's
own statistics in both losses; the test's are estimated from training batches (`tasks.per_run`). A tenth of the training
images validates, drawn by the run's seed; the paper does not say how many do. Methods without validation train on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradtune.nets.modules import batch_statistics, batched
from gradtune.nets.wide_resnet import residual
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import sgd
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Run
from gradtune_book.papers.onepass.image_training import summed_up
from gradtune_book.papers.onepass.uci_training import SETTINGS, declared, draw, setting
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.images import Images, load
from gradtune_book.tasks.per_run import PerRun, split
from gradtune_book.tasks.resnet18 import resnet18

METHODS = tuple(name for name in SETTINGS if name != "Random-xLR")
"""The rows of Table 2 but for those that a search makes of many trainings."""

_READINGS, _STATISTICS = 20, 20  # readings of a training; batches that give the test's statistics


@dataclass(frozen=True)
class Config:
    """One training of a residual net from random initial hyperparameters."""

    method: str  # one of METHODS
    seed: int  # draws the weights, the validation images, the batches and the initial hyperparameters
    data: str = "cifar10"  # or digits
    rows: int | None = None  # images to train and validate on; None: all
    test_rows: int | None = None  # images of the test; None: all
    validation: int = 5000  # images that validate
    net: str = "resnet18"  # or "residual", a small one
    batch: int = 100
    steps: int = 32_400  # 72 epochs of 45,000 images
    every: int = 10  # training steps between two hyperparameter updates
    look_back: int = 5  # steps looked back on
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and the initialisations of each method."""

    runs: int
    data: str = "cifar10"
    rows: int | None = None
    test_rows: int | None = None
    validation: int = 5000
    net: str = "resnet18"
    batch: int = 100
    steps: int = 32_400


SIZES = {
    "smoke": Sizes(1, "digits", None, None, 280, "residual", 50, 20),
    "laptop": Sizes(3, "cifar10", 10_000, 2000, 1000, "residual", 100, 400),
    "paper": Sizes(50),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: one initialisation of every method after the other.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    common = {n: v for n, v in vars(sizes).items() if n != "runs"}
    return [Config(m, seed + k, **common) for k in range(sizes.runs) for m in METHODS]


@lru_cache(maxsize=1)
def _images(data: str, device: torch.device, rows: int | None, test_rows: int | None) -> Images:
    return load(data, torch.float32, device, 0, rows, test_rows)


def problem(c: Config, device: torch.device) -> PerRun:
    """Return the training of one net; a method without validation trains on all images."""
    images = _images(c.data, device, c.rows, c.test_rows)
    count, channels = len(images.y_train), images.x_train.shape[1]

    def rows(seed: int) -> tuple[Tensor, Tensor]:
        train, val = split(count, c.validation, device)(seed)
        return (torch.cat([train, val]) if setting(c.method).merged else train), val

    net = resnet18 if c.net == "resnet18" else partial(residual, channels=channels)
    return PerRun(net, images, rows, [c.seed], c.batch, c.batch, one_batch=True)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute one training after the other.

    Metrics: initial values (`uci_training.Start.metrics`), final `test_ce` (cross-entropy) and `test_error` (share of
    errors), `best_ce` and `best_error` (lowest at any reading), and `diverged`. Series: `ce_curve` and `error_curve`,
    before the first step and some 20 times after it.

    Args:
        batch: Configurations.
        device: Where to compute.

    Raises:
        GradtuneError: The method or the data set is unknown, or the data set is absent.
    """
    return [_one(c, device) for c in batch]


def _one(c: Config, device: torch.device) -> Result:
    its, task, start = setting(c.method), problem(c, device), draw([c.seed])
    w, spent, sitting = task.init(), Stopwatch(device), sittings.current()
    hypers = Hypers(declared(its, start, w), task.layout.sizes)
    loop = Loop(task, sgd(), hypers, its.make(c.look_back, c.every))
    run, stride = loop.start(w), c.every * max(1, c.steps // c.every // _READINGS)
    read: list[tuple[float, float]] = []

    def watch(now: Run) -> None:
        nonlocal run
        run = now
        if run.t % stride == 0 or run.t == c.steps:
            with spent.paused():
                read.append(tested(task, run.state.w))
        sitting.tick(spent)

    with sitting.part("training", lambda: _state(run, read, spent)) as earlier:
        if earlier is not None:
            run, read = saved_runs.restored(loop, run, earlier["run"]), [*earlier["read"]]
            spent.go_on(earlier["spent"])
        else:
            read.append(tested(task, w))
        with spent:
            loop.advance(run, c.steps - run.t, watch, c.every)
    return _result(task, start.metrics(0), np.array(read), spent)


def _state(run: Run, read: list[tuple[float, float]], spent: Stopwatch) -> dict[str, Any]:
    return {"run": saved_runs.state(run), "read": read, "spent": spent.state()}


def _result(task: PerRun, start: dict[str, Any], read: np.ndarray, spent: Stopwatch) -> Result:
    metrics, series = summed_up(*np.where(np.isfinite(read), read, np.nan).T)
    name, digest = task.images.name, task.images.sha256
    return Result(start | metrics, series, dataset=name, dataset_sha256=digest, **spent.share(1))


@torch.no_grad()
def tested(task: PerRun, w: Tensor, chunk: int = 1000) -> tuple[float, float]:
    """Return cross-entropy and share of errors of a net `w [1, D]` on the test images, in evaluation mode.

    Statistics of batch norm are estimated afresh on training images.
    """
    x, y = task.images.test
    rows = task.train_rows[0]
    parts = rows.split(max(50, min(500, len(rows) // _STATISTICS)))[:_STATISTICS]
    buffers = batch_statistics(task.module, w, [task.images.x_train[part] for part in parts if len(part) > 1])
    losses = [batched(task.module, f) for f in (cross_entropy, _error)]
    found = [0.0, 0.0]
    for a, b in zip(x.split(chunk), y.split(chunk), strict=True):
        for k, loss in enumerate(losses):
            found[k] += float(loss(w, a, b, mode="eval", buffers=buffers)) * len(b) / len(y)
    return found[0], found[1]


def _error(output: Tensor, y: Tensor) -> Tensor:
    return (output.argmax(-1) != y).to(output.dtype).mean()


def _cost(c: Config) -> float:
    return c.steps * {"Random": 1.0, "Baydin": 1.0}.get(c.method, 2.0) / 1000


STUDY = Study("onepass_resnet", Config, SIZES, configs, run, chunk=1, cost=_cost)
