"""Figures 1 and 2 of the MetaOptimize paper: a residual net on CIFAR-10, four pairs of base update and meta rule.

The paper trains ResNet-18. At reduced size the net is a small one of the same form on a part of CIFAR-10, averaged over
squares of 2 x 2 pixels, and the meta step is larger as the training is shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gradtune.errors import unknown
from gradtune_book.papers.metaoptimize import training
from gradtune_book.papers.metaoptimize.training import BLOCKS, COSINE, FIXED, SCALAR
from gradtune_book.papers.series import short
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import images, residual
from gradtune_book.tasks.images import Images

METHODS = (FIXED, COSINE, SCALAR, BLOCKS)
GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
PAIRS = (("AdamW", "Adam"), ("Lion", "Lion"), ("RMSprop", "Adam"), ("SGDm", "Adam"))
"""Base updates and meta rules of Figure 1."""

STARTS = {"AdamW": 1e-5, "Lion": 1e-6, "RMSprop": 1e-5, "SGDm": 1e-4}
"""Step sizes at the start; the exponents of Table 2 are hard to read in the text we have."""

ROBUST = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""Step sizes at the start of Figure 2, for (Lion, Lion)."""


@dataclass(frozen=True)
class Config:
    """One training."""

    method: str  # one of METHODS
    seed: int  # draws the weights and the batches
    base: str = "AdamW"
    meta: str = "none"  # Adam or Lion where the step size is adapted
    lr: float = 1e-3  # step size: fixed, at the start, or the highest of the schedule
    meta_step: float = 0.0
    data: str = "cifar10"  # cifar10 or digits
    rows: int | None = None  # training images, equally many of a class; None: all
    size: int = 32  # pixels of a side
    width: int = 64  # channels of the first stage; 64 is ResNet-18
    batch: int = 100
    steps: int = 50_000
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, seeds, and which runs there are."""

    data: str  # cifar10 or digits
    seeds: int
    rows: int | None
    size: int
    width: int
    batch: int
    steps: int
    meta_step: float
    bases: tuple[str, ...] = ("AdamW", "Lion", "RMSprop", "SGDm")
    grid: tuple[float, ...] = GRID
    robust: tuple[float, ...] = ROBUST
    peaks: tuple[float, ...] = (1e-3, 1e-2, 1e-1)


SIZES = {
    "smoke": Sizes("digits", 1, None, 8, 4, 20, 10, 0.1, ("AdamW",), (1e-3, 1e-2), (1e-4,), (1e-2,)),
    "laptop": Sizes("cifar10", 3, 5000, 16, 4, 32, 200, 0.06),
    "paper": Sizes("cifar10", 3, None, 32, 64, 100, 50_000, 1e-3),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: each pair, scalar and in blocks, the grids, a schedule, and the starts of Lion.

    Args:
        sizes: what the scale sets.
        seed: first seed; the others follow on.
    """
    size = {n: getattr(sizes, n) for n in ("rows", "size", "width", "batch", "steps")}
    size["data"] = sizes.data
    if sizes.data == "digits":
        size |= {"rows": None, "size": 8}
    seeds, out = range(seed, seed + sizes.seeds), []
    for base, meta in PAIRS:
        if base in sizes.bases:
            both = ((m, s) for m in (SCALAR, BLOCKS) for s in seeds)
            out += [Config(m, s, base, meta, STARTS[base], sizes.meta_step, **size) for m, s in both]
            out += [Config(FIXED, s, base, lr=lr, **size) for lr in sizes.grid for s in seeds]
    out += [Config(COSINE, s, lr=lr, **size) for lr in sizes.peaks for s in seeds]
    for lr in sizes.robust:
        if not ("Lion" in sizes.bases and lr == STARTS["Lion"]):
            both = ((m, s) for m in (SCALAR, BLOCKS) for s in seeds)
            out += [Config(m, s, "Lion", "Lion", lr, sizes.meta_step, **size) for m, s in both]
    return out


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute trainings one after another.

    Metrics: `late_loss` and `late_accuracy`, means of the training loss and accuracy over the last tenth of the steps,
    each before its step; `test_accuracy`; `final_lr`, the geometric mean of the step sizes at the end. Series:
    `loss_curve` and `accuracy_curve`, in 50 means; `lr_curve`, the geometric mean of the step sizes at 50 moments.

    Args:
        batch: configurations.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a name is unknown, or the data set is absent.
    """
    return [_one(c, device) for c in batch]


@lru_cache(maxsize=1)
def _images(data: str, rows: int | None, size: int) -> Images:
    return images.load(data, validation=0, rows=rows, test_rows=1000 if rows else None)


def _sized(x: Tensor, size: int) -> Tensor:
    return avg_pool2d(x, x.shape[-1] // size) if x.shape[-1] > size else x


def optimiser(c: Config, net: nn.Module) -> tuple[Optimizer, LambdaLR | None]:
    """Return the optimiser of a configuration, and the schedule of its step size, where it has one.

    Raises:
        GradtuneError: a name is unknown.
    """
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    blocks = residual.six_blocks(net) if c.method == BLOCKS else [list(net.parameters())]
    if c.method == COSINE:
        return training.scheduled(blocks[0], c.lr, c.steps)
    return training.adapted(blocks, c.base, c.meta, c.lr, c.meta_step), None


def _one(c: Config, device: torch.device) -> Result:
    found = _images(c.data, c.rows, c.size)
    x, x_test = (_sized(each, c.size).to(device) for each in (found.x_train, found.x_test))
    y, y_test = found.y_train.to(device), found.y_test.to(device)
    net = residual.net(c.width, x.shape[1], c.seed).to(device)
    (optimizer, after), random, spent = optimiser(c, net), np.random.default_rng([c.seed, 1]), Stopwatch(device)
    losses, hits, rates = torch.zeros(c.steps), torch.zeros(c.steps), list[float]()
    read = lambda: {"losses": losses, "hits": hits, "rates": rates}  # noqa: E731
    with training.saved(net, optimizer, after, random, spent, read) as earlier, spent:
        if earlier is not None:
            losses, hits, rates = earlier["losses"], earlier["hits"], earlier["rates"]
        for t in range(len(rates), c.steps):
            rows = torch.from_numpy(random.integers(len(y), size=c.batch)).to(device)
            rates.append(training.geometric_mean(optimizer))
            optimizer.zero_grad()
            out = net(x[rows])
            loss = cross_entropy(out, y[rows])
            loss.backward()
            optimizer.step()
            if after is not None:
                after.step()
            losses[t], hits[t] = loss.detach(), (out.detach().argmax(1) == y[rows]).float().mean()
            sittings.current().tick(spent)
    error = training.mean_loss(net, lambda o, z: (o.argmax(1) != z).double().mean(), x_test, y_test)
    metrics, series = curves(losses, hits, rates)
    metrics["test_accuracy"] = 1 - error
    return Result(metrics, series, dataset=found.caption, dataset_sha256=found.sha256, **spent.share(1))


Curves = tuple[dict[str, float | int | None], dict[str, list[float | None]]]
"""Metrics and series of a training."""


def curves(losses: Tensor, hits: Tensor, rates: list[float]) -> Curves:
    """Return the metrics and series of `run` that are read off the steps of a training.

    Args:
        losses: training loss before each step, `[T]`.
        hits: training accuracy before each step, `[T]`.
        rates: step size of each step.
    """
    steps = len(rates)
    last, count = max(1, steps // 10), min(50, steps)
    metrics: dict[str, float | int | None] = {"final_lr": rates[-1]}
    metrics |= {"late_loss": float(losses[-last:].mean()), "late_accuracy": float(hits[-last:].mean())}
    at = np.linspace(0, steps - 1, count).round().astype(int)
    series = {"lr_curve": short(np.array(rates)[at], 3)}
    for name, values in (("loss_curve", losses), ("accuracy_curve", hits)):
        means = np.array([part.mean() for part in np.array_split(values.double().numpy(), count)])
        series[name] = short(np.where(np.isfinite(means), means, np.nan))
    return metrics, series


STUDY = Study("metaoptimize_cifar", Config, SIZES, configs, run, chunk=1)
