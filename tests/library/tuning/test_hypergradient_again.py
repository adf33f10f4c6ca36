"""`hypergradient` tries the second derivative of a model and a loss once, and again where the model has other parts."""

from __future__ import annotations

import gc
import weakref
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


# -- calls in a row share a tuner --------------------------------------------------------------------------------------


class Normed(nn.Module):
    """Batch norm, dropout, a frozen part, and a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 1))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(self.frozen(x))


def draw(seed: int, rows: int = 8) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=rng), torch.randn(rows, 1, generator=rng)


def state_of(model: nn.Module) -> list[Any]:
    tensors = [*model.parameters(), *model.buffers()]
    return [(x.data_ptr(), x._version, x.detach().clone()) for x in tensors]


def same(a: list[Any], b: list[Any]) -> bool:
    return all(p[0] == q[0] and torch.equal(p[2], q[2]) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["exact", "onepass", "oho"])
def test_replayed_calls_give_the_bits_of_calls_of_their_own(rule: str, method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.1), nn.Linear(4, 1))
    seen = []
    for k in range(8):
        batches, lr = [draw(10 * k + j) for j in range(3)], 0.1 + 0.01 * k
        given: Any = (model, mse_loss, batches, draw(k + 500))
        options: Any = {"hypers": {"lr": lr, "weight_decay": 1e-3}, "rule": rule, "method": method}
        found = gradtune.hypergradient(*given, **options, replay=True)
        alone = gradtune.hypergradient(model, mse_loss, batches, draw(k + 500), **options, replay=False)
        # the call of its own in between is for the same model and does not disturb what is kept
        again = gradtune.hypergradient(*given, **options, replay=True)
        assert found[:3] == alone[:3] == again[:3] and found.cost[:2] == alone.cost[:2] == again.cost[:2]
        seen.append(again.replay)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01)
    assert seen[-1] == "on"


def test_the_model_is_brought_back() -> None:
    torch.manual_seed(0)
    model = Normed()
    before = state_of(model)
    for _ in range(6):
        gradtune.hypergradient(model, mse_loss, [draw(0)] * 2, draw(1), hypers={"lr": 0.1}, replay=None)
        assert same(before, state_of(model)) and model.calls == 0
    with pytest.raises(GradtuneError):
        gradtune.hypergradient(model, mse_loss, [draw(0), (torch.zeros(3, 7), torch.zeros(3))], draw(1), hypers={})
    assert same(before, state_of(model)) and model.calls == 0


def test_what_changes_between_two_calls_is_seen() -> None:
    torch.manual_seed(0)
    model: Any = Normed()
    rate = {"lr": 0.1}

    def both() -> float:
        kept = gradtune.hypergradient(model, mse_loss, [draw(0)] * 2, draw(1), hypers=rate, replay=True)
        alone = gradtune.hypergradient(model, mse_loss, [draw(0)] * 2, draw(1), hypers=rate, replay=False)
        assert kept[:3] == alone[:3]
        return kept.values["lr"]

    changes: list[Any] = [
        lambda: None,
        lambda: setattr(model.body[3], "p", 0.5),
        lambda: model.frozen.weight.mul_(2),
        lambda: setattr(model.frozen, "weight", nn.Parameter(torch.eye(3), requires_grad=False)),
        lambda: model.body[1].running_mean.add_(1),
        lambda: setattr(model.body[0], "weight", nn.Parameter(torch.ones(6, 3))),
        lambda: model.load_state_dict({n: 0.5 * x for n, x in model.state_dict().items()}, assign=True),
        lambda: model.body[4].bias.requires_grad_(False),
        lambda: model.body[1].eval(),
        lambda: model.body.append(nn.Linear(1, 1)),
        lambda: rate.update(lr=0.2),
        lambda: rate.update(weight_decay=0.1),
        lambda: model.double(),
    ]
    values = [both()]
    for change in changes:
        for _ in range(4):
            both()
        with torch.no_grad():
            change()
        if model.frozen.weight.dtype == torch.float64:
            return
        values.append(both())
    assert len(set(values)) >= len(values) - 2


def test_a_loss_that_reads_the_parameters_sees_those_of_the_steps() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 1, bias=False).double()
    model = nn.Sequential(linear)
    (x, y), (xv, yv) = ((a.double(), b.double()) for a, b in (draw(0), draw(1)))

    def loss(out: Tensor, y: Tensor) -> Tensor:
        return mse_loss(out, y) + 0.3 * linear.weight.square().sum()

    found = gradtune.hypergradient(
        model, loss, [(x, y)] * 3, (xv, yv), hypers={"lr": 0.1}, val_loss=lambda out, y: mse_loss(out, y)
    )
    lr, w = torch.tensor(0.1, dtype=torch.float64, requires_grad=True), linear.weight.detach().requires_grad_()
    for _ in range(3):
        value = mse_loss(x @ w.T, y) + 0.3 * w.square().sum()
        w = w - lr * torch.autograd.grad(value, w, create_graph=True)[0]
    wanted = torch.autograd.grad(mse_loss(xv @ w.T, yv), lr)[0]
    assert found.natural["lr"] == pytest.approx(float(wanted), rel=1e-10)


def test_one_call_keeps_no_model_alive() -> None:
    model = nn.Linear(3, 1)
    gradtune.hypergradient(model, mse_loss, [draw(0)], draw(1), hypers={"lr": 0.1})
    there = weakref.ref(model)
    del model
    gc.collect()
    assert there() is None
