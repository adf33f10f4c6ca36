"""What the FDS paper leaves open for Figure 1, measured: FDS on CIFAR-10 with one choice changed at a time.

Every run has a partner, the run of FDS in the study `fds_cifar_regret` at the same scale with the same seed: it has the
same images and the same seeds of its trainings. The page "What the papers leave out" describes the choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from gradtune.nets.wide_resnet import residual
from gradtune_book.notebooks.stats import mean_plus_minus
from gradtune_book.papers.fds import cifar_regret
from gradtune_book.papers.fds.cifar_regret import FDS, Sizes
from gradtune_book.papers.fds.cifar_training import DECAY, GAMMA, MOMENTUM, Bench
from gradtune_book.papers.fds.cifar_training import Config as Training
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study

USUAL = "as in this book"
NETS = {"half the channels": (4, 8, 16), "twice the channels": (16, 32, 64)}
"""Channels of the groups of the small net where they are changed; they are 8, 16 and 32."""

_SEEDS = 3  # of each choice at the most; Figure 1 has more


@dataclass(frozen=True)
class Config(Training):
    """One run of FDS: a configuration of `fds_cifar_regret` with one choice changed."""

    choice: str = USUAL  # name of what is changed
    momentum_step: float = GAMMA[MOMENTUM]  # first step of the sign rule for the momentum
    decay_step: float = GAMMA[DECAY]  # the same for the weight decay
    fixed_rows: bool = False  # the same validation rows at every outer step
    weights: Literal["xavier", "he"] = "xavier"  # initial weights, normal


SIZES = {name: replace(s, seeds=min(s.seeds, _SEEDS)) for name, s in cifar_regret.SIZES.items()}


def changes(c: Config) -> list[Config]:
    """Return a configuration with each choice changed.

    Where all starts from 0, momentum and weight decay have no hypergradient at the first outer step. A rule for which
    the sign after none is another sign halves both first steps.

    Args:
        c: a configuration with the choices of this book.
    """
    return [
        replace(c, choice="momentum's first step 0.1", momentum_step=0.1),
        replace(c, choice="momentum's first step 0.3", momentum_step=0.3),
        replace(
            c,
            choice="a sign after none halves the step",
            momentum_step=GAMMA[MOMENTUM] / 2,
            decay_step=GAMMA[DECAY] / 2,
        ),
        replace(c, choice="the same validation images at every outer step", fixed_rows=True),
        replace(c, choice="initial weights by He's rule", weights="he"),
        *(replace(c, choice=net) for net in NETS if c.net == "small"),
    ]


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale, seed by seed.

    Args:
        sizes: what the scale sets.
        seed: first seed.
    """
    usual = [c for c in cifar_regret.configs(sizes, seed) if c.method == FDS]
    return [changed for c in usual for changed in changes(Config(**asdict(c)))]


class Changed(Bench):
    """The bench of a configuration whose choices are as it says."""

    def __init__(self, c: Config, device: torch.device) -> None:
        super().__init__(c, device)
        self.gamma = GAMMA | {MOMENTUM: c.momentum_step, DECAY: c.decay_step}
        self.fixed_rows, self._weights, self._widths = c.fixed_rows, c.weights, NETS.get(c.choice)

    def net(self) -> nn.Sequential:
        if self._widths:
            return residual(self._widths, channels=self.given.x_train.shape[1])
        net = super().net()
        for layer in net.modules() if self._weights == "he" else ():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return net


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute one run after the other; metrics and series are those of `cifar_regret.run`.

    Args:
        batch: configurations.
        device: where to compute.
    """
    return [cifar_regret.answered(Changed(c, device)) for c in batch]


def beside(changed: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return what each choice changes.

    Args:
        changed: runs of this study.
        chosen: runs of `fds_cifar_regret` of the same scale.

    Returns:
        A row per choice: seeds, test accuracy of the last answer in per cent, its difference from the partner's seed by
        seed, both mean ± standard error, and the momentum of the last answer.
    """
    usual = chosen[chosen["method"] == FDS].assign(choice=USUAL) if len(chosen) else chosen
    rows = {}
    for choice, runs in pd.concat([usual, changed]).groupby("choice", sort=False):
        both = runs.merge(usual[["seed", "accuracy"]], on="seed", suffixes=("", " of the partner"))
        gain = 100 * (both["accuracy"] - both["accuracy of the partner"])
        momenta = [np.array(each, float)[-1] for each in runs["answer_momentum"]]
        rows[choice] = {
            "seeds": len(runs),
            "test accuracy, %": mean_plus_minus(100 * runs["accuracy"]),
            "difference": "–" if choice == USUAL else mean_plus_minus(gain),
            "momentum in the end": mean_plus_minus(momenta, 2),
        }
    return pd.DataFrame(rows).T.rename_axis("choice")


def zeros(frame: pd.DataFrame) -> tuple[int, int]:
    """Return how many hypergradients of FDS are exactly 0 after the first outer step, and how many there are.

    Args:
        frame: runs of `fds_cifar_regret`.
    """
    names = [n for n in frame if str(n).startswith("hypergradient_") and n != "hypergradient_steps"]
    every = frame.loc[frame["method"] == FDS, names].to_numpy().ravel()
    values = np.concatenate([np.array(each, float)[1:] for each in every if isinstance(each, list)])
    return int((values == 0).sum()), values.size


STUDY = Study("fds_choices", Config, SIZES, configs, run, chunk=1, cost=cifar_regret.STUDY.cost)
