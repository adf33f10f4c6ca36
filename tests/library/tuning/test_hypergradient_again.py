"""`hypergradient` tries the second derivative of a model and a loss once, and again where the model has other parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import gradtune
from gradtune.errors import GradtuneError
from gradtune.nets import curvature_check


class _Silent(torch.autograd.Function):
    """The square, whose gradient has a second derivative that is silently zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2 * ctx.saved_tensors[0].detach()


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Silent.apply(x)


def value(model: nn.Module) -> float:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=rng), torch.randn(8, 1, generator=rng)
    found = gradtune.hypergradient(model, mse_loss, [(x, y)] * 3, (x, y), hypers={"lr": 0.1})
    return found.values["lr"]


def test_the_second_derivative_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, check = [], curvature_check.check

    def counted(*given: Any) -> None:
        calls.append(given)
        check(*given)

    monkeypatch.setattr(curvature_check, "check", counted)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    assert value(model) == value(model) and len(calls) == 1
    value(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    assert len(calls) == 2


def test_other_parts_are_tried_again() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    value(model)
    model[1] = Squared()
    with pytest.raises(GradtuneError, match="_Silent"):
        value(model)
