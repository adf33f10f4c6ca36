"""What the FDS paper leaves open for Figure 2, measured: hypergradients with one choice changed at a time.

A run differs from the run of `fds_sharing_mse` at the same scale with the same seed in one choice: the momentum, for
which the text gives no value; the number of validation images, 2,000 in the published program; or that program's clip
of the gradient's entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch

from gradtune.recursion.rules import clipped
from gradtune_book.papers import sharing
from gradtune_book.papers.fds import sharing_mse, sharing_tables
from gradtune_book.papers.fds.choices import USUAL
from gradtune_book.papers.fds.sharing_mse import FIGURE_2_LR, NON_GREEDY, RULE, Sizes
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study

CLIP, LIMIT = "gradients clipped at 1", 1.0


@dataclass(frozen=True)
class Config(sharing_mse.Config):
    """One training: a configuration of `fds_sharing_mse`, and the choice that it or its fields make."""

    choice: str = USUAL  # name of what is changed


SIZES = {
    "smoke": replace(sharing_mse.SIZES["smoke"], seeds=2),
    "laptop": replace(sharing_mse.SIZES["laptop"], seeds=8),
    "paper": replace(sharing_mse.SIZES["paper"], seeds=30),
}


def changes(c: Config) -> list[Config]:
    """Return a configuration with each choice changed.

    Args:
        c: a configuration with the choices of this book.
    """
    return [
        replace(c, choice="no momentum", momentum=0.0),
        replace(c, choice="twice the validation images", validation=2 * c.validation),
        replace(c, choice=CLIP),
    ]


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of trainings; metrics and series are those of `sharing_mse.run`.

    Args:
        batch: configurations that differ in `seed` only.
        device: where to compute.
    """
    return sharing_mse.run(batch, device, clipped(RULE, LIMIT) if batch[0].choice == CLIP else RULE)


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: exact hypergradients at Figure 2's learning rate, choice by choice.

    Args:
        sizes: what the scale sets.
        seed: first seed.
    """
    usual = [c for c in sharing_mse.configs(sizes, seed) if c.method == NON_GREEDY and c.lr == FIGURE_2_LR]
    each = [changes(Config(**asdict(c))) for c in usual]
    return [c for same in zip(*each, strict=True) for c in same]


def beside(changed: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return what each choice does to the quantities of Theorem 4.1 and to the gain by sharing.

    Args:
        changed: runs of this study.
        chosen: runs of `fds_sharing_mse` of the same scale; those of the same seeds are taken.

    Returns:
        A row per choice: trainings, mean correlation of two steps, the window of the lowest squared error, and the
        error there over that at one step.
    """
    usual = chosen[(chosen["method"] == NON_GREEDY) & (chosen["lr"] == FIGURE_2_LR)] if len(chosen) else chosen
    usual = usual[usual["seed"].isin(changed["seed"])].assign(choice=USUAL) if len(usual) else usual
    rows = {}
    for choice, runs in pd.concat([usual, changed]).groupby("choice", sort=False):
        for sample in sharing_tables.samples(runs, runs["data"].iloc[0]):  # none of fewer than two seeds
            error = sharing_tables.curves(sample)["non-greedy"]
            rows[choice] = {
                "trainings": len(sample.exact),
                "mean |c|": sharing.mean_correlation(sample.exact),
                "best W": float(error.idxmin()),
                "MSE there over W = 1": float(error.min() / error.iloc[0]),
            }
    return pd.DataFrame(rows, dtype=float).T.rename_axis("choice")


STUDY = Study("fds_sharing_choices", Config, SIZES, configs, run, chunk=1)
