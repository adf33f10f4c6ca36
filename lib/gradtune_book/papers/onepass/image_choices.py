"""What the OnePass paper leaves open on Fashion-MNIST, measured: WD+LR+M and Random with one choice changed at a time.

Every run has a partner, the run of `image_horizon` at the same scale, of the same method, length and seed: it has the
same initial weights and hyperparameters. Random does not validate, so that only pixels and the split are changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from gradtune_book.notebooks import stats
from gradtune_book.papers.onepass import image_horizon, image_training
from gradtune_book.papers.onepass.image_training import Config as Training
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import fashion
from gradtune_book.tasks.classification import Classification

USUAL, TUNED, RANDOM = "as in this book", "WD+LR+M", "Random"
PIXELS, SHARES = "pixels from 0 to 1", "60, 20 and 20 % of all images"


@dataclass(frozen=True)
class Config(Training):
    """One training with one choice changed."""

    choice: str = USUAL  # name of what is changed
    val_batch: int | None = None  # validation images that an update sees; None: as many as a step
    standardised: bool = True  # pixels; otherwise from 0 to 1


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    dataset: str  # as `fashion.resolve` takes it
    runs: int  # initialisations of each choice
    steps: int  # training steps
    more: int  # validation images of an update where there are more


SIZES = {
    "smoke": Sizes("digits", 3, 80, 150),
    "laptop": Sizes("auto", 10, 2000, 500),
    "paper": Sizes("real", 50, 10_000, 500),
}


def changes(c: Config, more: int) -> list[Config]:
    """Return a configuration with each choice changed that concerns its method.

    Args:
        c: A configuration with the choices of this book.
        more: Validation images of an update where there are more.
    """
    larger = [replace(c, choice=f"{more} validation images an update", val_batch=more)] if c.method != RANDOM else []
    return [*larger, replace(c, choice=PIXELS, standardised=False), replace(c, choice=SHARES)]


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, choice by choice.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    name, seeds = fashion.resolve(sizes.dataset), range(seed, seed + sizes.runs)
    usual = [Config(method, 0, name, sizes.steps) for method in (TUNED, RANDOM)]
    return [replace(each, seed=s) for c in usual for each in changes(c, sizes.more) for s in seeds]


def problem(c: Config, device: torch.device, merged: bool) -> Classification:
    """Return the problem of a configuration, as `image_training.problem` does, with its choice.

    Args:
        c: The configuration.
        device: Device of the images.
        merged: Whether the validation images are training images.
    """
    shares = fashion.SHARES if c.choice == SHARES else None
    return image_training.problem(c, device, merged, val_batch=c.val_batch, standardised=c.standardised, shares=shares)


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that agree in all but their seeds, as `image_horizon.run` does.

    Args:
        batch: The configurations.
        device: Where to compute.
    """
    return image_horizon.run(batch, device, problem)


def effects(changed: pd.DataFrame, usual: pd.DataFrame) -> pd.DataFrame:
    """Return final test cross-entropies of each choice beside those of the same seeds.

    Args:
        changed: Runs of this study.
        usual: Runs of `image_horizon` of the same scale.

    Returns:
        A row per method and choice: runs, mean and median with bootstrap standard errors, the lowest, and the mean
        difference from the partner with its standard error, over pairs that are both finite.
    """
    keys = ["method", "seed", "dataset", "steps"]
    partners = usual.merge(changed[keys].drop_duplicates(), on=keys) if len(usual) else usual
    rows, every = (
        {},
        pd.concat([partners.assign(choice=USUAL), changed]).sort_values("method", ascending=False, kind="stable"),
    )
    for (method, choice), runs in every.groupby(["method", "choice"], sort=False):
        both = runs.merge(partners[[*keys, "test_ce"]], on=keys, suffixes=("", " of the partner"))
        gain = (both["test_ce"] - both["test_ce of the partner"]).dropna()
        ce = runs["test_ce"].to_numpy(dtype=float)
        rows[method, choice] = {
            "runs": len(runs),
            "mean": stats.plus_minus(float(np.nanmean(ce)), stats.bootstrap_error(ce, np.nanmean), 3),
            "median": stats.plus_minus(float(np.nanmedian(ce)), stats.bootstrap_error(ce, np.nanmedian), 3),
            "best": f"{np.nanmin(ce):.3f}",
            "difference": "–" if choice == USUAL else stats.mean_plus_minus(gain, 3),
        }
    return pd.DataFrame(rows).T.rename_axis(["method", "choice"])


STUDY = Study("image_choices", Config, SIZES, configs, run, chunk=10, cost=image_horizon.STUDY.cost)
