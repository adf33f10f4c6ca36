"""Figure 4 of the OHO paper at its own size, for a GPU: ResNet-18 on CIFAR-10 with global and with layerwise OHO.

The training is that of `layerwise`, whose figure at reduced size a CPU can draw. One set of hyperparameters comes
first, then a few neighbouring layers a set, and one set for each of the 62 parameter tensors last: a set costs two
Hessian products a step and two copies of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradtune_book.papers.oho import layerwise
from gradtune_book.papers.oho.layerwise import RESNET
from gradtune_book.papers.oho.training import OHO, Config, seeds_of
from gradtune_book.records.study import Study


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    base: Config  # without method and seed
    sets: tuple[int, ...]  # numbers of sets, in the order in which they are run
    starts: tuple[float, ...]  # initial learning rates
    seeds: int  # of each of them


_SMALL = replace(
    RESNET, rows=10_000, test_rows=2000, validation=1000, net="residual", augment=False, outer_batch=100, epochs=3,
    readings=5,
)  # fmt: skip
_DIGITS = replace(_SMALL, data="digits", rows=None, test_rows=None, validation=280, batch=280, epochs=2, readings=1)
SIZES = {
    "smoke": Sizes(_DIGITS, (1,), (0.1,), 1),
    "laptop": Sizes(_SMALL, (1, 2, 4), (0.1, 0.15, 0.2), 1),
    "paper": Sizes(replace(RESNET, readings=4), (1, 2, 6, 62), (0.1, 0.15, 0.2), 1),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: few sets first, each number of sets from all learning rates.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    base = replace(sizes.base, method=OHO)
    seeds = seeds_of(sizes.seeds, seed)
    return [replace(base, seed=s, order=o, sets=k, lr=lr) for k in sizes.sets for lr in sizes.starts for s, o in seeds]


def _cost(c: Config) -> float:
    return c.epochs * (2 + 2 * c.sets) / 40


STUDY = Study("oho_resnet", Config, SIZES, configs, layerwise.run, chunk=1, cost=_cost)
