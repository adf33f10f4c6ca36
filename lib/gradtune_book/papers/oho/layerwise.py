"""Figures 4 and 5 of the OHO paper: one set of hyperparameters, one for each layer, and what lies between.

A set is a learning rate and a weight decay for a group of neighbouring layers, where a layer is a parameter tensor
(`training`). Runs of equal order share the batches, and the seeds draw the initial weights: "different random
initializations" (Section 6.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gradtune_book.papers.oho.training import OHO, SPLIT, Bench, Config, blocks_of, seeds_of, train
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    base: Config  # without method and seed
    sets: tuple[int, ...]  # numbers of sets of Figure 5, 1 first and one a layer last
    seeds: int  # of each number of sets
    starts: tuple[float, ...]  # initial learning rates of Figure 4
    start_seeds: int  # of each of them, global and layerwise, and of the split form


_MNIST = Config("", 0)
_DIGITS = Config(
    "", 0, data="digits", validation=280, batch=56, outer_batch=56, width=32, epochs=6, lr=0.05, meta_rate=2e-4
)
_CIFAR = Config(
    "", 0, data="cifar10", rows=10_000, test_rows=2000, validation=1000, net="residual", batch=100, outer_batch=100,
    epochs=3, readings=5, lr=0.01,
)  # fmt: skip
_PART = replace(_CIFAR, rows=3000, batch=50)
SIZES = {
    "smoke": Sizes(_DIGITS, (1, 2, 3, 6), 3, (0.1, 0.2), 1),
    "laptop": Sizes(_PART, (1, 4), 3, (0.1, 0.2), 3),
    "paper": Sizes(_MNIST, (1, 2, 3, 6), 10, (0.1, 0.15, 0.2), 3),
}
RESNET = replace(
    _CIFAR, rows=None, test_rows=None, validation=5000, net="resnet18", augment=True, outer_batch=1000, epochs=300,
    readings=1, lr=0.1,
)  # fmt: skip
"""The paper's own training of Figure 4, for a GPU: CIFAR-10, ResNet-18 with 62 parameter tensors, 300 epochs."""


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: Figure 5, a few seeds at a time, then Figure 4, then the split form.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    base, most = replace(sizes.base, method=OHO), sizes.sets[-1]
    out = [
        replace(base, seed=s, order=o, sets=k)
        for block in blocks_of(sizes.seeds, seed)
        for k in sizes.sets
        for s, o in block
    ]
    few = seeds_of(sizes.start_seeds, seed)
    out += [replace(base, seed=s, order=o, sets=k, lr=lr) for k in (1, most) for lr in sizes.starts for s, o in few]
    return out + [replace(base, method=SPLIT, seed=s, order=o, sets=most) for s, o in few]


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that differ in their seeds.

    The metrics are those of `training.Bench.at_end`; the series those of `training.Bench.read`, and `steps`, after
    which they were read.

    Args:
        batch: The configurations.
        device: Where to compute.
    """
    bench = Bench(batch[0], device)
    loop = bench.loop(bench.hypers(tuned=True))
    trained = train(bench, loop, bench.task.init([c.seed for c in batch]))
    end, images = bench.at_end(trained.w), bench.images
    return [
        Result(
            {n: v[k] for n, v in end.items()},
            trained.series(k),
            dataset=images.name,
            dataset_sha256=images.sha256,
            **trained.seconds,
        )
        for k in range(len(batch))
    ]


def _cost(c: Config) -> float:
    return c.epochs * (2 + 2 * (c.sets if c.method == OHO else 1)) / 40


STUDY = Study("oho_layerwise", Config, SIZES, configs, run, chunk=5, cost=_cost)
