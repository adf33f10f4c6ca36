"""Section 7.5 of the MetaOptimize paper: which meta step serves for how many steps, which discount, and which form.

A net with one hidden layer classifies digits. Every training is read at several numbers of steps, as a training that
ended there: nothing in it depends on its end. "AdamW" has a fixed step size, "MetaOptimize" is (AdamW, Lion), the pair
of the paper's Table 1, without Hessians and with one step size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradtune.errors import unknown
from gradtune.optim.settings import DEFAULT
from gradtune_book.papers.metaoptimize import training
from gradtune_book.papers.series import short
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import images
from gradtune_book.tasks.images import Images

FIXED, ADAPTED = "AdamW", "MetaOptimize"
METHODS = (FIXED, ADAPTED)
GRID = (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-1)
META_STEPS = (1e-4, 1e-3, 3e-3, 7e-3, 1e-2, 2e-2, 5e-2, 7e-2, 1e-1, 2e-1)
CHECKED = (1e-3, 7e-3, 2e-2, 7e-2, 1e-1)
"""Meta steps on the second set: the paper's, the default, and those nearest to `optim.settings.meta_step`."""

STARTS = (1e-6, 1e-4, 1e-2)
GAMMAS = (0.9, 0.99, 0.999)
READ = (100, 300, 1000, 3000, 10_000)
"""Numbers of steps at which a training is read."""


@dataclass(frozen=True)
class Config:
    """One training."""

    method: str  # AdamW or MetaOptimize
    seed: int  # draws the weights and the batches
    data: str = "mnist"  # mnist, fashion or digits
    lr: float = 1e-4  # step size, that at the start where it is adapted
    meta_step: float = 0.0  # of the meta rule Lion
    gamma: float = 1.0
    form: str = "ours"  # ours, or package
    steps: int = 10_000
    batch: int = 20
    hidden: int = 32
    version: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    data: str  # mnist or digits
    seeds: int
    steps: int
    meta_steps: tuple[float, ...] = META_STEPS
    starts: tuple[float, ...] = STARTS
    grid: tuple[float, ...] = GRID
    second: str | None = "fashion"  # a set that the rule for the meta step was not chosen on


SIZES = {
    "smoke": Sizes("digits", 1, 300, (1e-3, 2e-2), (1e-4,), (1e-3, 1e-2), None),
    "laptop": Sizes("mnist", 3, 3000),
    "paper": Sizes("mnist", 5, 30_000),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: meta steps by starts, the fixed step sizes, discounts, and the package's form.

    On the second set there are `CHECKED` and the fixed step sizes alone.

    Args:
        sizes: what the scale sets.
        seed: first seed; the others follow on.
    """
    data, seeds = sizes.data, range(seed, seed + sizes.seeds)
    middle = 1e-4 if 1e-4 in sizes.starts else sizes.starts[0]
    steps = [(lr, eta, 1.0, "ours") for eta in sizes.meta_steps for lr in sizes.starts]
    settings = steps + [(middle, DEFAULT, gamma, "ours") for gamma in GAMMAS]
    settings += [(lr, DEFAULT, 1.0, "package") for lr in sizes.starts]
    out = [Config(ADAPTED, s, data, *each, steps=sizes.steps) for each in settings for s in seeds]
    if sizes.second is not None:
        checked = [each for each in steps if each[1] in CHECKED]
        out += [Config(ADAPTED, s, sizes.second, *each, steps=sizes.steps) for each in checked for s in seeds]
    sets = [name for name in (data, sizes.second) if name is not None]
    return out + [Config(FIXED, s, d, lr, steps=sizes.steps) for d in sets for lr in sizes.grid for s in seeds]


def read_at(steps: int) -> list[int]:
    """Return the numbers of steps at which a training of this length is read, its end among them."""
    return sorted({n for n in READ if n < steps} | {steps})


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute trainings one after another.

    Metrics: `val_N`, the cross-entropy of 10,000 (of the digits: 280) validation images after N steps, for each N of
    `read_at`, and `lr_N`, the step size then. Series: `lr_curve`, the step size at 50 moments.

    Args:
        batch: configurations.
        device: where to compute.

    Returns:
        A result per configuration, in order.

    Raises:
        GradtuneError: a method or the data set is unknown, or the data set is absent.
    """
    return [_one(c, device) for c in batch]


def _one(c: Config, device: torch.device) -> Result:
    if c.method not in METHODS:
        raise unknown("method", c.method, METHODS)
    found = _images(c.data, device)
    net = _net(found.x_train.shape[1], c.hidden, c.seed).to(device)
    meta = "none" if c.method == FIXED else "Lion"
    optimizer = training.adapted([list(net.parameters())], "AdamW", meta, c.lr, c.meta_step, c.gamma, c.form)
    random, spent, reads = np.random.default_rng([c.seed, 1]), Stopwatch(device), read_at(c.steps)
    metrics: dict[str, float | int | None] = {}
    rates, every = list[float](), max(1, c.steps // 50)
    step, read = 0, lambda: {"step": step, "metrics": metrics, "rates": rates}
    with training.saved(net, optimizer, None, random, spent, read) as earlier, spent:
        if earlier is not None:
            step, metrics, rates = earlier["step"], earlier["metrics"], earlier["rates"]
        for t in range(step + 1, c.steps + 1):
            rows = torch.from_numpy(random.integers(len(found.y_train), size=c.batch)).to(device)
            optimizer.zero_grad()
            cross_entropy(net(found.x_train[rows]), found.y_train[rows]).backward()
            optimizer.step()
            if t % every == 0:
                rates.append(float(optimizer.param_groups[0]["lr"]))
            if t in reads:
                with spent.paused():
                    metrics[f"val_{t}"] = training.mean_loss(net, cross_entropy, found.x_val, found.y_val, 2000)
                metrics[f"lr_{t}"] = float(optimizer.param_groups[0]["lr"])
            step = t
            sittings.current().tick(spent)
    series = {"lr_curve": short(np.array(rates), 3)}
    return Result(metrics, series, dataset=found.caption, dataset_sha256=found.sha256, **spent.share(1))


@lru_cache(maxsize=1)
def _images(data: str, device: torch.device) -> Images:
    return images.load(data, device=device, validation=0.2 if data == "digits" else 10_000).flat()


def _net(inputs: int, hidden: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10))


STUDY = Study("metaoptimize_sensitivity", Config, SIZES, configs, run, chunk=1)
