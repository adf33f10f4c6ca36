"""What the OHO paper leaves open on MNIST, changed one at a time: where trainings start, how long they are, and pixels.

The trainings are those of the study `oho_performance`: the same nets, batches and draws of their initial values, so
that each stands beside its own training of that study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch

from gradtune.search import Dimension
from gradtune_book.papers.oho import performance
from gradtune_book.papers.oho.performance import RANGES
from gradtune_book.papers.oho.schedules import COSINE, FIXED
from gradtune_book.papers.oho.tables import LOSS, RATIO, REACHED, SECONDS, trainings
from gradtune_book.papers.oho.training import DECAY, LR, OHO, Bench, blocks_of
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks.images import Images, load

AS_CHOSEN = "as chosen"
WIDER = 10.0
"""By this factor both ends of both ranges move where they are wider."""

ROWS = (OHO, FIXED, COSINE)
"""The ways to train that are compared."""


@dataclass(frozen=True)
class Config(performance.Config):
    """One training from hyperparameters drawn by its seed."""

    choice: str = AS_CHOSEN  # name of what is changed
    standardised: bool = True  # pixels; otherwise from 0 to 1
    wider: float = 1.0  # factor at both ends of the ranges of learning rate and weight decay


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    base: Config  # without method and seed
    draws: int  # of each way to train


def _from(base: performance.Config) -> Config:
    return Config(**asdict(base))


SIZES = {
    "smoke": Sizes(_from(performance.SIZES["smoke"].base), 2),
    "laptop": Sizes(_from(performance.SIZES["laptop"].base), 5),
    "paper": Sizes(_from(performance.SIZES["paper"].base), 10),
}


def variations(base: Config) -> list[Config]:
    """Return the trainings with one choice changed each."""
    return [
        replace(base, choice="twice the epochs", epochs=2 * base.epochs),
        replace(base, choice="pixels from 0 to 1", standardised=False),
        replace(base, choice=f"ranges wider by {WIDER:g} at each end", wider=WIDER),
    ]


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, a few seeds of all variations at a time.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    kinds = [replace(c, method=m) for c in variations(sizes.base) for m in ROWS]
    return [replace(c, seed=s, order=o) for block in blocks_of(sizes.draws, seed) for c in kinds for s, o in block]


class WithPixels(Bench):
    """The bench of a training whose pixels are as its configuration says."""

    def _load(self) -> Images:
        c = self.c
        standardised = not isinstance(c, Config) or c.standardised
        return load(c.data, torch.float32, self.device, c.validation, c.rows, c.test_rows, standardised)


def drawn(c: Config) -> dict[str, float]:
    """Return the hyperparameters that a training starts from.

    The draw of `performance.drawn` is stretched: what lay at a share of the logarithmic range lies at the same share
    of the wider one.
    """

    def stretched(name: str, value: float) -> float:
        share = math.log(value / RANGES[name].low) / math.log(RANGES[name].high / RANGES[name].low)
        wide = Dimension(RANGES[name].low / c.wider, RANGES[name].high * c.wider, "log10")
        return wide.low * (wide.high / wide.low) ** share

    recipe = performance.drawn(c)
    return recipe | {n: stretched(n, recipe[n]) for n in (LR, DECAY) if c.wider != 1}


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that differ in their seeds; metrics and series are those of `performance.run`.

    Args:
        batch: The configurations.
        device: Where to compute.
    """
    return performance.trainings(batch, WithPixels(batch[0], device), [drawn(c) for c in batch])


def beside(changed: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return losses and lengths of each variation beside the trainings that it changes.

    Args:
        changed: Runs of this study.
        chosen: Runs of the study `oho_performance` of the same scale.

    Returns:
        A row for each variation and way to train: trainings, mean test loss with its standard error, share at 0.3 or
        below, and the processor's time of a training over that of one with a fixed learning rate.
    """
    if changed.empty:
        return changed
    parts = [trainings(changed)]
    if len(chosen):
        same = trainings(chosen[chosen["seed"].isin(changed["seed"]) & (chosen["sets"] == 1)])
        parts.insert(0, same[same["method"].isin(ROWS)].assign(choice=AS_CHOSEN))
    groups = pd.concat(parts).groupby(["choice", "row"], sort=False)
    out = groups[LOSS].agg(["count", "mean", "sem"]).set_axis(["trainings", LOSS, "error"], axis=1)
    out[REACHED], seconds = groups[REACHED].mean(), groups[SECONDS].mean()
    out[RATIO] = [s / seconds.get((choice, FIXED), math.nan) for (choice, _), s in seconds.items()]
    return out.rename_axis(["changed", None])


STUDY = Study("oho_choices", Config, SIZES, configs, run, chunk=performance.STUDY.chunk, cost=performance.STUDY.cost)
