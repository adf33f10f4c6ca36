"""Figures 5, 9 and 10 of the MetaOptimize paper: ResNet-18 on ImageNet.

Every scale needs the images (`tasks.imagenet`). The paper does not print its number of steps: here they are 300,000,
about 60 epochs, of which the schedule's rise (`training.WARM_UP`) takes the paper's 10,000.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from gradtune.errors import unknown
from gradtune_book.papers.metaoptimize import cifar, others, training
from gradtune_book.papers.metaoptimize.others import OF_PACKAGES, Steps
from gradtune_book.papers.metaoptimize.training import BLOCKS, COSINE, FIXED, SCALAR, with_packages
from gradtune_book.papers.packages import needed
from gradtune_book.papers.series import short
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import residual
from gradtune_book.tasks.imagenet import ImageNet

PAIRS = (("AdamW", "Lion"), ("Lion", "Lion"), ("SGDm", "Lion"))
"""Base updates and meta rules of Table 4. The first two have block-wise step sizes too (Figure 10)."""

BASES = ("AdamW", "Lion")
"""Base updates with fixed step sizes."""

_MANY = 64  # images of a batch from which on processes of their own read them


@dataclass(frozen=True)
class Config:
    """One training."""

    method: str  # fixed, warm-up and cosine, MetaOptimize, scalar or blocks, or a method of a package
    seed: int  # draws the weights, the order of the images and what is cut out of them
    base: str = "AdamW"  # AdamW, Lion or SGDm
    meta: str = "none"  # Lion where the step size is adapted
    lr: float = 1e-3  # step size: fixed, at the start, or the highest of the schedule
    meta_step: float = 0.0
    size: int = 224  # pixels of a side
    batch: int = 256
    steps: int = 300_000
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets: the fields of `Config` that have the same names, seeds, and which runs there are."""

    seeds: int
    size: int
    batch: int
    steps: int
    meta_step: float
    grid: tuple[float, ...] = cifar.GRID
    peaks: tuple[float, ...] = (1e-5, 1e-4, 1e-3)


SIZES = {
    "smoke": Sizes(1, 32, 4, 4, 0.1, (1e-3,), (1e-3,)),
    "laptop": Sizes(1, 64, 64, 2000, 0.01, (1e-4, 1e-3, 1e-2), (1e-3,)),
    "paper": Sizes(3, 224, 256, 300_000, 1e-3),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale that need no package of others.

    Args:
        sizes: what the scale sets.
        seed: first seed; the others follow on.
    """
    size = {n: getattr(sizes, n) for n in ("size", "batch", "steps")}
    seeds, out = range(seed, seed + sizes.seeds), []
    for base, meta in PAIRS:
        for method in (SCALAR, BLOCKS) if base in BASES else (SCALAR,):
            out += [Config(method, s, base, meta, cifar.STARTS[base], sizes.meta_step, **size) for s in seeds]
    for base in BASES:
        out += [Config(FIXED, s, base, lr=lr, **size) for lr in sizes.grid for s in seeds]
    return out + [Config(COSINE, s, lr=lr, **size) for lr in sizes.peaks for s in seeds]


def arranged(scale: str, chosen: list[Config]) -> list[Config]:
    """Return the runs of a scale: those chosen, then those of packages that are installed, or that are recorded."""
    return with_packages(STUDY.name, scale, chosen)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute trainings one after another.

    Metrics: `late_loss` and `late_accuracy`, means of the training loss and top-1 accuracy over the last tenth of the
    steps, each before its step; `test_accuracy`, top-1 on the validation images at the end; `final_lr`, the geometric
    mean of the step sizes at the end. Series: `loss_curve` and `accuracy_curve`, in 50 means; `test_curve`, the
    accuracy on the validation images after each tenth of the steps; `lr_curve`.

    Args:
        batch: configurations.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a name is unknown, the images are absent or fewer than a batch, or a package is not installed.
    """
    return [_one(c, device) for c in batch]


def optimiser(c: Config, net: nn.Module) -> tuple[Steps, Callable[[], None] | None]:
    """Return the optimiser of a configuration, and what else is to be called after each step.

    Raises:
        GradtuneError: a name is unknown, or a package is not installed.
    """
    if c.method in OF_PACKAGES:
        return others.of_a_package(c.method, net), None
    if c.method not in (FIXED, COSINE, SCALAR, BLOCKS):
        raise unknown("method", c.method, [FIXED, COSINE, SCALAR, BLOCKS, *OF_PACKAGES])
    blocks = residual.six_blocks(net) if c.method == BLOCKS else [list(net.parameters())]
    if c.method == COSINE:
        return training.scheduled(blocks[0], c.lr, c.steps)
    return training.adapted(blocks, c.base, c.meta, c.lr, c.meta_step), None


def network(classes: int, seed: int) -> nn.Module:
    """Return torchvision's ResNet-18 with new weights; torch's own random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return resnet18(num_classes=classes)


def _one(c: Config, device: torch.device) -> Result:
    train, val = ImageNet("train", c.size), ImageNet("val", c.size)
    net = network(len(train.classes), c.seed).to(device)
    (optimizer, after), spent = optimiser(c, net), Stopwatch(device)
    losses, hits, rates, tests = torch.zeros(c.steps), torch.zeros(c.steps), [], []
    with spent:
        for t, (x, y) in enumerate(_drawn(train, c)):
            x, y = x.to(device), y.to(device)
            rates.append(training.geometric_mean(optimizer))
            optimizer.zero_grad()
            out = net(x)
            loss = cross_entropy(out, y)
            others.backward(loss, optimizer)
            optimizer.step()
            if after is not None:
                after()
            losses[t], hits[t] = loss.detach(), (out.detach().argmax(1) == y).float().mean()
            if (t + 1) % max(1, c.steps // 10) == 0:
                with spent.paused(), others.at_rest(optimizer):
                    tests.append(_accuracy(net, val, c.batch, device))
    optimizer.zero_grad()  # a graph that gdtuo's gradients hold would outlive them
    metrics, series = cifar.curves(losses, hits, rates)
    metrics["test_accuracy"], series["test_curve"] = tests[-1], short(torch.tensor(tests).numpy())
    caption = f"ImageNet, {len(train)} training images of {len(train.classes)} classes"
    return Result(
        metrics, series, dataset=caption, dataset_sha256=train.sha256(), packages=needed(c.method), **spent.share(1)
    )


def _workers(batch: int) -> int:
    return min(16, os.cpu_count() or 1) if batch >= _MANY else 0


def _drawn(train: ImageNet, c: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield as many batches as there are steps, epoch after epoch."""
    left, epoch = c.steps, 0
    while left:
        for batch in train.batches(c.batch, 1000 * c.seed + epoch, _workers(c.batch)):
            yield batch
            left -= 1
            if not left:
                return
        epoch += 1


def _accuracy(net: nn.Module, part: ImageNet, batch: int, device: torch.device) -> float:
    """Return the share of a part's images that a net classifies right, in evaluation mode; it trains on afterwards."""
    net.eval()
    with torch.no_grad():
        right = sum(
            int((net(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in part.batches(batch, workers=_workers(batch))
        )
    net.train()
    return right / len(part)


STUDY = Study("metaoptimize_imagenet", Config, SIZES, configs, run, chunk=1, arranged=arranged)
