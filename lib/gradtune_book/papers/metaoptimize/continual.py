"""Figures 3, 4, 7 and 8 of the MetaOptimize paper: ten tasks one after the other, one pass, an image a step.

Each image is predicted, and then trained on; nothing tells the optimiser that a task has ended. "AdamW" has a fixed
step size, from the paper's grid. "MetaOptimize" is (AdamW, Adam), Hessian-free, with one step size or with one for the
convolutions and one for the last layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from gradtune import optim
from gradtune.errors import unknown
from gradtune.recursion.outer import Adam
from gradtune_book.papers.metaoptimize import training
from gradtune_book.papers.series import short
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import continual
from gradtune_book.tasks.continual import Tasks

FIXED, SCALAR, BLOCKS, UNDISCOUNTED, PACKAGE = (
    *("AdamW", "MetaOptimize, scalar", "MetaOptimize, 2 blocks"),
    *("MetaOptimize, scalar, gamma 1", "MetaOptimize, scalar, package's form"),
)
ADAPTED = (SCALAR, BLOCKS, UNDISCOUNTED, PACKAGE)
METHODS = (FIXED, *ADAPTED)
GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""The fixed step sizes that the paper searches (Appendix C)."""

READINGS = 20
"""Readings of the step sizes in each task."""


@dataclass(frozen=True)
class Config:
    """One pass through the stream. The defaults are the paper's Table 3."""

    method: str  # one of METHODS
    seed: int  # draws the weights and the order of the images within each task
    data: str = "mixed"  # cifar100, mixed or digits
    tasks: int = 10
    images: int = 5000  # training images of a task
    test_images: int = 1000  # test images of a task
    size: int = 32  # pixels of a side of an image
    width: int = 16  # channels of the first convolution; the second has twice as many
    lr: float = 1e-4  # step size, that at the start where it is adapted
    meta_step: float = 1e-3  # of the meta rule, Adam with betas (0.9, 0.999)
    gamma: float = 0.999
    weight_decay: float = 0.1
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, and how many seeds there are."""

    data: str  # a key of `continual.TITLES`
    seeds: int
    images: int
    test_images: int
    size: int
    width: int
    shorter: int = 1  # the paper's 50,000 steps over those of this stream
    grid: tuple[float, ...] = GRID
    best: float = 1e-4  # the grid's best step size, from which adaptation starts too where it is not 1e-4


SIZES = {
    "smoke": Sizes("digits", 1, 30, 390, 8, 4, 100, (1e-4, 1e-3)),
    "laptop": Sizes("mixed", 5, 1000, 500, 16, 8, 5, best=1e-3),
    "paper": Sizes("mixed", 5, 5000, 1000, 32, 16),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: the adapted ones, then those of the grid, on the same streams.

    On a shorter stream there are adapted runs with the paper's settings, and others with a meta step and a horizon
    `1 / (1 - gamma)` that are the same share of the stream as the paper's (`share`). In the paper's Table 3 adaptation
    starts from the step size that is the best fixed one; where another one is best, there are runs from that too.

    Args:
        sizes: what the scale sets.
        seed: first seed; the others follow on.
    """
    size = {n: getattr(sizes, n) for n in ("images", "test_images", "size", "width")}
    size["data"] = sizes.data
    if sizes.data == "digits":
        size["size"] = 8
        size["images"] = min(sizes.images, 130)
    seeds = range(seed, seed + sizes.seeds)
    out = [Config(m, s, gamma=1.0 if m == UNDISCOUNTED else 0.999, **size) for m in ADAPTED for s in seeds]
    if sizes.shorter > 1:
        scaled = share(sizes.shorter)
        out += [Config(m, s, **scaled, **size) for m in (SCALAR, BLOCKS) for s in seeds]
    if sizes.best != Config.lr:
        out += [Config(m, s, lr=sizes.best, **size) for m in (SCALAR, BLOCKS) for s in seeds]
    return out + [Config(FIXED, s, lr=lr, **size) for lr in sizes.grid for s in seeds]


def share(shorter: int) -> dict[str, Any]:
    """Return the meta step and the discount that are to a stream so many times shorter what the paper's are to its own.

    A meta step of 1e-3 moves the logarithm of a step size by 50 at most in 50,000 steps; the horizon of the discount
    0.999 is a fiftieth of them.
    """
    return {"meta_step": 1e-3 * shorter, "gamma": max(0.9, 1 - 1e-3 * shorter)}


def optimiser(c: Config, blocks: Sequence[Sequence[nn.Parameter]]) -> Optimizer:
    """Return the optimiser of a configuration for the blocks of a net.

    Raises:
        GradtuneError: the method is unknown.
    """
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    groups = [{"params": list(block)} for block in blocks]
    if c.method == FIXED:
        return torch.optim.AdamW(groups, c.lr, weight_decay=c.weight_decay)
    return optim.MetaOptimize(
        groups,
        c.lr,
        "adamw",
        Adam(c.meta_step),
        gamma=c.gamma,
        groups="blockwise" if c.method == BLOCKS else "scalar",
        weight_decay=c.weight_decay,
        form="package" if c.method == PACKAGE else "ours",
    )


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute passes one after another.

    Metrics: `cumulative`, the share of all images of the stream that were predicted right before they were trained on;
    `test_accuracy`, the mean over tasks of the accuracy on a task's test images at its end; `final_lr_0` and
    `final_lr_1`, the step sizes of the convolutions and of the last layer at the end.

    Series: `cumulative_curve`, the same share up to 50 moments, evenly spaced; `online_curve`, the share within each
    task; `test_curve`, the test accuracy at the end of each task; `lr_0_0`, `lr_0_1`, ... and `lr_1_0`, ...: the step
    sizes at the start of each task and `READINGS` times within it, in one series for two tasks.

    Args:
        batch: configurations.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a method or the stream is unknown, or its files are absent.
    """
    return [_pass(c, device) for c in batch]


@dataclass
class _Seen:
    """What is read off a pass: hits of single images, step sizes by block, and test accuracies by task.

    Of the task under way these are the number of its images so far, and the hits among them.
    """

    hits: list[Tensor] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    tests: list[float] = field(default_factory=list)
    images: int = 0
    now: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


def _pass(c: Config, device: torch.device) -> Result:
    stream = continual.load(c.data, c.tasks, c.images, c.test_images, c.size)
    net = continual.net(stream.shape[0], stream.shape[1], c.width, c.seed).to(device)
    optimizer, seen, spent = optimiser(c, continual.blocks(net)), _Seen(), Stopwatch(device)
    with training.saved(net, optimizer, None, None, spent, lambda: dict(vars(seen))) as earlier:
        if earlier is not None:
            seen = _Seen(**earlier)
        for number, task in enumerate(stream.tasks[len(seen.tests) :], start=len(seen.tests)):
            rows = continual.order(c.seed, number, len(task.y))
            x, y = task.x[rows].to(device), task.y[rows].to(device)
            with spent:
                _train(net, optimizer, x, y, seen, spent)
            with torch.no_grad():
                hit = net(task.x_test.to(device)).argmax(1).cpu() == task.y_test
            seen.tests.append(float(hit.double().mean()))
    return _result(seen, stream, spent)


def _train(net: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, seen: _Seen, spent: Stopwatch) -> None:
    """Predict and train on one image after the other, from the place where `seen` stopped."""
    hits, every = torch.zeros(len(y), dtype=torch.bool, device=y.device), max(1, len(y) // READINGS)
    hits[: seen.images] = seen.now[: seen.images].to(y.device)
    for k in range(seen.images, len(y)):
        if k % every == 0 and k < every * READINGS:
            seen.rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.zero_grad()
        out = net(x[k : k + 1])
        cross_entropy(out, y[k : k + 1]).backward()
        optimizer.step()
        hits[k] = out.detach().argmax() == y[k]
        seen.images, seen.now = k + 1, hits
        sittings.current().tick(spent)
    seen.hits.append(hits.cpu())
    seen.images = 0


def _result(seen: _Seen, stream: Tasks, spent: Stopwatch) -> Result:
    hits = torch.cat(seen.hits).double().numpy()
    share = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    at = np.linspace(0, len(hits), 51).round().astype(int)[1:] - 1
    metrics: dict[str, float | int | None] = {"cumulative": share[-1], "test_accuracy": float(np.mean(seen.tests))}
    series = {
        "cumulative_curve": short(share[at]),
        "online_curve": short(np.array([float(h.double().mean()) for h in seen.hits])),
        "test_curve": short(np.array(seen.tests)),
    }
    for block, rates in enumerate(np.array(seen.rates).T):
        metrics[f"final_lr_{block}"] = float(rates[-1])
        for piece in range(math.ceil(len(rates) / (2 * READINGS))):
            series[f"lr_{block}_{piece}"] = short(rates[2 * READINGS * piece : 2 * READINGS * (piece + 1)], 3)
    return Result(metrics, series, dataset=stream.caption, dataset_sha256=stream.sha256, **spent.share(1))


STUDY = Study("metaoptimize_continual", Config, SIZES, configs, run, chunk=1)
