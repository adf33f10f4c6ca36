"""The CIFAR-10 columns of Tables 2 and 8 of the OnePass paper: a residual net tuned in one pass (Figures 12c and 13b).

The paper's net is ResNet-18; at laptop scale it is a small one. Images are not augmented, 100 make a batch, and a
training takes 72 epochs (Section 4.2). Batch norm takes the batch's own statistics in both losses; the test's are
estimated from training batches (`tasks.per_run`). A tenth of the training images validates, drawn by the run's seed;
the split of 60, 20 and 20 % that Section 4 names would need test images of its own. Methods without validation train on
all images, for as many steps.

The method "times" is no training of the paper: it takes steps of all one-pass methods in turns (Figure 14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradtune.nets.modules import batch_statistics, batched
from gradtune.nets.wide_resnet import residual
from gradtune.recursion.rules import sgd
from gradtune.tuning.streams import Batch
from gradtune_book.papers.onepass import one_pass
from gradtune_book.papers.onepass.image_training import summed_up
from gradtune_book.papers.onepass.one_pass import TIMES, Plan, Trainer
from gradtune_book.papers.onepass.uci_onepass import ONE_PASS, THREE
from gradtune_book.papers.onepass.uci_training import setting
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.images import Images, load
from gradtune_book.tasks.per_run import PerRun, split
from gradtune_book.tasks.resnet18 import resnet18

_STATISTICS, _IN_EACH = 20, 100  # batches that give the test's statistics, and their images


@dataclass(frozen=True)
class Config:
    """One training of a residual net from random initial hyperparameters."""

    method: str  # one of uci_onepass.ONE_PASS, or times
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
    readings: int = 20  # of the test images, after the first
    trials: int = 1  # trainings of a run: 3 of a 3-batched one
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and which runs there are."""

    runs: int  # initialisations of each method
    timings: int  # repetitions of "times"
    timed_steps: int  # steps of each method in one of them
    data: str = "cifar10"
    rows: int | None = None
    test_rows: int | None = None
    validation: int = 5000
    net: str = "resnet18"
    batch: int = 100
    steps: int = 32_400
    readings: int = 20


SIZES = {
    "smoke": Sizes(1, 1, 10, "digits", None, None, 280, "residual", 50, 20),
    "laptop": Sizes(10, 5, 50, "cifar10", 5_000, 2_000, 500, "residual", 25, 1_000, 5),
    "paper": Sizes(50, 3, 200),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: one initialisation of every method after the other, then the times.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    common = {n: v for n, v in vars(sizes).items() if n not in ("runs", "timings", "timed_steps")}
    every = [Config(m, seed, trials=3 if m == THREE else 1, **common) for m in ONE_PASS]
    timed = replace(every[0], method=TIMES, steps=sizes.timed_steps)
    out = [replace(c, seed=seed + k) for k in range(sizes.runs) for c in every]
    return out + [replace(timed, seed=seed + k) for k in range(sizes.timings)]


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


def trainer(c: Config, device: torch.device) -> tuple[PerRun, Trainer]:
    """Return the task of a configuration and its training from the start."""
    task = problem(c, device)
    return task, Trainer(Plan(c.method, c.steps, c.every, c.look_back, c.readings), task, sgd(), task.init(), [c.seed])


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute one training after the other.

    Metrics: initial values (`uci_training.Start.metrics`), final `test_ce` (cross-entropy) and `test_error` (share of
    errors), `val_ce`, `best_ce` and `best_error` (lowest at any reading), and `diverged`. Series: `ce_curve` and
    `error_curve`, before the first step and `readings` times after it. Of a 3-batched run they are those of the
    training of lowest validation loss. The metrics of "times" are `ms_<method>`, the processor's milliseconds a step.

    Args:
        batch: Configurations.
        device: Where to compute.

    Raises:
        GradtuneError: The method or the data set is unknown, or the data set is absent.
    """
    return [_one(c, device) for c in batch]


def _one(c: Config, device: torch.device) -> Result:
    if c.method == TIMES:
        return _times(c, device)
    if c.method == THREE:
        plain, thirds = replace(c, method="Random"), one_pass.seeds_of_thirds([c.seed], c.trials)
        return one_pass.best([_one(replace(plain, seed=seed), device) for (seed,) in thirds], "val_ce")
    task, t = trainer(c, device)
    (x, y), rows, spent = task.images.train, task.val_rows[0], Stopwatch(device)
    read = np.array(
        one_pass.train(t, f"training from seed {c.seed}", lambda w: [*tested(task, w, task.images.test)], spent)
    )
    metrics, series = summed_up(*np.where(np.isfinite(read), read, np.nan).T)
    metrics = t.start.metrics(0) | metrics | {"val_ce": tested(task, t.run.state.w, (x[rows], y[rows]))[0]}
    name, digest = task.images.name, task.images.sha256
    return Result(metrics, series, dataset=name, dataset_sha256=digest, **spent.share(1))


def _times(c: Config, device: torch.device) -> Result:
    def make(method: str) -> Trainer:
        return trainer(replace(c, method=method), device)[1]

    metrics, seconds = one_pass.times(make, c.steps, c.every, device)
    images = _images(c.data, device, c.rows, c.test_rows)
    return Result(metrics, {}, dataset=images.name, dataset_sha256=images.sha256, **seconds)


@torch.no_grad()
def tested(task: PerRun, w: Tensor, images: Batch, chunk: int = 1000) -> tuple[float, float]:
    """Return cross-entropy and share of errors of a net `w [1, D]` on images, in evaluation mode.

    Statistics of batch norm are estimated afresh on training images.
    """
    x, y = images
    rows = task.train_rows[0]
    parts = rows.split(_IN_EACH)[:_STATISTICS]
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
    factor = 20.0 if c.method == TIMES else 1.0 if "Random" in c.method or c.method == "Baydin" else 2.0
    return c.steps * c.trials * factor / 1000


STUDY = Study("onepass_resnet", Config, SIZES, configs, run, chunk=1, cost=_cost)
