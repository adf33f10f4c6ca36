"""Small problems for tests: a tanh net with every kind of hyperparameter, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.recursion.rules import adam, adamw, clipped, lion, norm_clipped, rmsprop, sgd

START = {"lr": 0.05, "momentum": 0.8, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1, "l2": 0.05}
RULES = {
    "sgd": sgd(momentum=False),
    "momentum": sgd(),
    "nesterov": sgd(nesterov=True),
    "adam": adam(),
    "adamw": adamw(),
    "rmsprop": rmsprop(),
    "decoupled rmsprop": rmsprop(decoupled=True),
    "lion": lion(),
    "clipped adamw": clipped(adamw(), 0.3),
    "norm-clipped momentum": norm_clipped(sgd(), 0.5),
}
"""Where hyperparameters start, and rules that read them, each with a form of its own."""


class Net:
    """3-4-1 tanh net on 12 random rows in batches of 4 (or on all of them: `stationary`), with an optional loss
    hyperparameter `l2`."""

    def __init__(self, stationary: bool = False, val_uses_l2: bool = False) -> None:
        rng = torch.Generator().manual_seed(0)
        self.x, self.y = (torch.randn(12, k, generator=rng, dtype=torch.float64) for k in (3, 1))
        self.val = tuple(torch.randn(7, k, generator=rng, dtype=torch.float64) for k in (3, 1))
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.layout, self.loss = Layout.of(module), batched(module, mse_loss)
        self.stationary, self.val_uses_l2 = stationary, val_uses_l2

    def init(self, runs: int, seed: int = 0) -> Tensor:
        return 0.6 * torch.randn(
            runs, sum(self.layout.sizes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        rows = slice(None) if self.stationary else slice(4 * (t % 3), 4 * (t % 3) + 4)
        return self.loss(w, self.x[rows], self.y[rows]) + self._penalty(w, lam)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.loss(w, *self.val) + (self._penalty(w, lam) if self.val_uses_l2 else 0.0)

    @staticmethod
    def _penalty(w: Tensor, lam: Mapping[str, Tensor]) -> Tensor | float:
        return 0.5 * (lam["l2"] * w * w).sum(-1) if "l2" in lam else 0.0
