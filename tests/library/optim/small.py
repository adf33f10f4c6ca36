"""A small net, its training, and how far two results are apart: for the tests of `gradtune.optim`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)).to(self.last.weight))


def net(dtype: torch.dtype = torch.float64, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model().to(dtype)


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    """Gradients of a batch of its own."""
    p = next(model.parameters())
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).to(p)
    loss = cross_entropy(model(x), (x[:, 0] > 0).long())
    loss.backward()
    return loss


def gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for t in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, t)
        optimizer.step()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())
