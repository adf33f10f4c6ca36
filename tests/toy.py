"""A training problem of two weights whose validation loss over (lr, weight decay) is known in closed form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gradtune.recursion.hypers import Hyper
from gradtune.recursion.rules import sgd
from gradtune.search import Dimension, Space, Training

STEPS = 81
DECAY = 0.1  # the best weight decay
CURVATURE, TARGET = (torch.tensor(x, dtype=torch.float64) for x in ([1.0, 0.2], [2.0, 2.0]))
WANTED = CURVATURE * TARGET / (CURVATURE + DECAY)
SPACE = Space({"lr": Dimension(1e-4, 10.0, "log10"), "weight_decay": Dimension(1e-5, 1.0, "log10")})


class Toy:
    """L_T = 1/2 sum h (w - a)^2 and L_V = 1/2 sum h (w - b)^2, from w = 0 by gradient descent with weight decay.

    b is the minimiser of L_T with weight decay 0.1: the best configurations are that one and any learning rate large
    enough to arrive in time and small enough to stay, 2 / 1.1 at most.
    """

    stationary = True

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int = 0) -> Tensor:
        return 0.5 * (CURVATURE * (w - TARGET) ** 2).sum(-1)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int = 0) -> Tensor:
        return 0.5 * (CURVATURE * (w - WANTED) ** 2).sum(-1)


def training(steps: int = STEPS, *, trace: bool = False) -> Training:
    hypers = [Hyper("lr", 0.1, "log10"), Hyper("weight_decay", 0.1, "log10")]
    return Training(Toy(), sgd(momentum=False), hypers, [2], zeros, steps, trace=trace)


def zeros(seeds: Sequence[int]) -> Tensor:
    return torch.zeros(len(seeds), 2, dtype=torch.float64)


def closed_form(
    lr: np.ndarray | float, decay: np.ndarray | float, steps: int = STEPS, factor: float = 1.0
) -> np.ndarray:
    """Validation loss after `steps` steps: w = h a / (h + decay) (1 - prod_t (1 - lr_t (h + decay))) for each weight,
    with lr_t = lr factor^floor(t / 10)."""
    loss = np.zeros(np.broadcast(lr, decay).shape)
    with np.errstate(over="ignore", invalid="ignore"):
        for h, a, b in zip(CURVATURE.tolist(), TARGET.tolist(), WANTED.tolist(), strict=True):
            left = 1.0
            for begin in range(0, steps, 10):
                left = left * (1 - lr * factor ** (begin // 10) * (h + decay)) ** min(10, steps - begin)
            loss += 0.5 * h * (h * a / (h + decay) * (1 - left) - b) ** 2
    return loss


def surface(points: int = 401) -> np.ndarray:
    """The loss on a fine even grid of the space, in raw coordinates."""
    lr, decay = (10 ** np.linspace(*SPACE[n].raw_range, points) for n in SPACE)
    return closed_form(lr[None, :], decay[:, None])


LOSSES = surface()
UNTRAINED = float(closed_form(0.0, 0.0))
GOOD = float(LOSSES.min() + 0.003 * (UNTRAINED - LOSSES.min()))
# Losses below are the optimum region: within 0.3 % of the way from the best loss to the untrained one.
