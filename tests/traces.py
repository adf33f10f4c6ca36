"""Models and learning rates for the tests of MetaOptimize, its traces and its full form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.recursion.hypers import Granularity, Hyper, Hypers
from gradtune.recursion.rules import Rule, sgd

START = {"lr": 0.05, "momentum": 0.8, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}
PLAIN = sgd(momentum=False, weight_decay=False)


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def rates(
    rule: Rule, problem: Any, granularity: Granularity = "global", transform: str = "log", **values: Any
) -> Hypers:
    """A tuned learning rate beside the rule's other hyperparameters, all at `START` where `values` says nothing."""
    return Hypers(
        [
            Hyper(
                n,
                (START | values)[n],
                transform if n == "lr" else "identity",
                granularity if n == "lr" else "global",
                tuned=n == "lr",
            )
            for n in rule.hypers
        ],
        problem.layout.sizes,
    )


class Classifier:
    """10-16-16-3 tanh net on the stored batches."""

    stationary = False

    def __init__(self, z: dict[str, np.ndarray]) -> None:
        self.x, self.y, self.rows = (torch.tensor(z[n]) for n in ("X", "Y", "batch_idx"))
        net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.layout, self.loss = Layout.of(net), batched(net, cross_entropy)
        self.w = torch.cat([torch.tensor(z[n]).reshape(-1) for n in ("W1", "b1", "W2", "b2", "W3", "b3")])[None]

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.loss(w, self.x[self.rows[t]], self.y[self.rows[t]])

    val_loss = train_loss


def gradient_at(problem: Any, w: Tensor, t: int) -> Tensor:
    leaf = w.detach().clone().requires_grad_()
    return torch.autograd.grad(problem.train_loss(leaf, {}, t).sum(), leaf)[0]


class LinearModel:
    """1/2 (a_t'w - b_t)^2 on a stream of rows; the diagonal of its Hessian is a_t^2."""

    stationary = False

    def __init__(self, a: Tensor) -> None:
        self.a = a
        self.b = torch.randn(len(a), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        self.layout = Layout.of(nn.Linear(a.shape[1], 1, bias=False))

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return 0.5 * (w @ self.a[t] - self.b[t]) ** 2

    val_loss = train_loss

    def curvature_diagonal(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return (self.a[t] ** 2).expand_as(w)


def stream() -> Tensor:
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
