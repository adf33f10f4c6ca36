"""Learning rates that fall by a rule fixed beforehand: the ways to train that OHO is compared with (Section 6.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradtune.errors import unknown

FIXED, ADAM, STEP, EXP, COSINE = "Fixed", "Adam", "Step", "Exp", "Cosine"
WAYS = (FIXED, ADAM, STEP, EXP, COSINE)
"""The five ways to train, by the names of Figures 2 and 3."""

STEP_FACTOR = 0.1
"""What "Step" multiplies the learning rate by at each fall; the default of torch's `StepLR`."""


def factor(way: str, epoch: int, epochs: int, period: Tensor, gamma: Tensor) -> Tensor:
    """Return what multiplies the initial learning rate of each run in an epoch, `[R]`.

    The factors are those of torch's schedulers, called once an epoch: `StepLR(period, STEP_FACTOR)`,
    `ExponentialLR(gamma)` and `CosineAnnealingLR(epochs)`. "Fixed" and "Adam" have 1.

    Args:
        way: One of `WAYS`.
        epoch: Number of the epoch, counted from 0.
        epochs: Number of all epochs.
        period: Epochs between two falls of "Step", whole numbers `[R]`.
        gamma: Factor `[R]` after each epoch of "Exp".

    Raises:
        GradtuneError: The way is unknown.
    """
    if way not in WAYS:
        raise unknown("way to train", way, WAYS)
    if way == STEP:
        return STEP_FACTOR ** torch.floor(epoch / period)
    if way == EXP:
        return gamma**epoch
    shape = (1 + math.cos(math.pi * epoch / epochs)) / 2 if way == COSINE else 1.0
    return torch.full_like(gamma, shape)
