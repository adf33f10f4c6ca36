"""What torch checks of its optimisers together with schedulers, averages, scalers, clipping and hooks of autograd."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.optimizer import Optimizer
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from gradtune.errors import GradtuneWarning
from gradtune.optim import MetaOptimize
from library.optim.checks import check
from library.optim.small import backward, gradient, net, relative, train, weights

around = partial(check, "with other tools")
Make = Callable[[Optimizer], Any]


def rates(make: Make, learn: float, tensor: bool = False, **arguments: Any) -> tuple[list[float], list[float]]:
    """The learning rate after every move of the scheduler, and the factors by which the optimiser moved it itself."""
    model, ends, moves = net(), [], []
    lr = torch.tensor(0.01, dtype=torch.float64) if tensor else 0.01
    optimizer = MetaOptimize(model.parameters(), lr, meta_step_size=learn, **arguments)
    scheduler = make(optimizer)
    for t in range(8):
        before = float(optimizer.param_groups[0]["lr"])
        train(model, optimizer, 1, t)
        moves.append(float(optimizer.param_groups[0]["lr"]) / before)
        scheduler.step(*[1.0] * isinstance(scheduler, schedulers.ReduceLROnPlateau))
        ends.append(float(optimizer.param_groups[0]["lr"]))
    return ends, moves


def schedule(make: Make) -> list[float]:
    """The learning rate after every move of the scheduler, with an optimiser of torch."""
    model, ends = net(), []
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    scheduler = make(optimizer)
    for t in range(8):
        train(model, optimizer, 1, t)
        scheduler.step(*[1.0] * isinstance(scheduler, schedulers.ReduceLROnPlateau))
        ends.append(optimizer.param_groups[0]["lr"])
    return ends


FORMS: tuple[dict[str, Any], ...] = ({}, {"groups": "tensor"}, {"tensor": True})
COMPOSING: dict[str, Make] = {
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5], 0.5),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.5, 3),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.5, total_iters=6),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 12),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 12),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=2, factor=0.5),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.LinearLR(o, 0.5, total_iters=4), schedulers.ExponentialLR(o, 0.9)]
    ),
}


@around(f"schedulers that multiply the learning rate compose with what is learned: {', '.join(COMPOSING)}")
def _composing() -> None:
    """The rate is the scheduler's times all factors of the optimiser, and there is no warning."""
    for k, make in enumerate(COMPOSING.values()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            both, moves = rates(make, 0.01, **FORMS[k % 3])
        assert relative(both, np.array(schedule(make)) * np.cumprod(moves)) < 1e-12 and np.ptp(moves) > 0.009


UNDOING: dict[str, Make] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda t: 0.9**t),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.001, 0.01),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.02, 10),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4),
    "SWALR": lambda o: SWALR(o, 0.05, anneal_epochs=2),
}


@around(f"schedulers that set the learning rate undo what is learned, with a warning: {', '.join(UNDOING)}")
def _undoing() -> None:
    """Once."""
    for name, make in UNDOING.items():
        with pytest.warns(GradtuneWarning) as heard:
            both, _ = rates(make, 1e-3)
        ours = [each for each in heard if "MetaOptimize" in str(each.message)]
        assert len(ours) == 1 and str(ours[0].message).startswith(f"{name} sets the learning rate and undoes what")
        assert relative(both, schedule(make)) < 1e-12


@around("a scheduler that comes later is noticed too")
def _later() -> None:
    model = net()
    optimizer = MetaOptimize(model.parameters(), 0.01)
    first = schedulers.ExponentialLR(optimizer, 0.9)
    for t in range(3):
        train(model, optimizer, 1, t)
        first.step()
    second = SWALR(optimizer, 0.05)
    with pytest.warns(GradtuneWarning, match="SWALR sets the learning rate"):
        for t in range(3):
            train(model, optimizer, 1, t)
            second.step()


@around("SequentialLR takes over from one scheduler to the next")
def _sequential() -> None:
    """It sets the first values of the second; from there on both count."""

    def make(o: Optimizer) -> Any:
        parts: list[Any] = [schedulers.ConstantLR(o, 0.5, 2), schedulers.ExponentialLR(o, 0.9)]
        return schedulers.SequentialLR(o, parts, milestones=[3])

    (both, moves), alone = rates(make, 0.01), schedule(make)
    assert both[-1] / both[2] == pytest.approx(alone[-1] / alone[2] * math.prod(moves[3:]))


@around("OneCycleLR turns the momentum of the base")
def _momentum() -> None:
    for base in ("adamw", "lion"):
        model = net()
        optimizer = MetaOptimize(model.parameters(), 0.01, base)
        scheduler = schedulers.OneCycleLR(optimizer, 0.02, total_steps=10)
        train(model, optimizer, 1)
        scheduler.step()
        assert 0.85 < optimizer.param_groups[0]["betas"][0] < 0.95 != optimizer.param_groups[0]["betas"][0]
        with pytest.warns(GradtuneWarning, match="OneCycleLR sets"):
            train(model, optimizer, 1)


@around("a scheduler and its optimiser go on from their saved states")
def _resumed() -> None:
    def make() -> tuple[Any, Any, Any]:
        model = net()
        optimizer = MetaOptimize(model.parameters(), 0.01, meta="adam")
        return model, optimizer, schedulers.StepLR(optimizer, 2, 0.5)

    def go(model: Any, optimizer: Any, scheduler: Any, first: int) -> None:
        for t in range(first, first + 3):
            train(model, optimizer, 1, t)
            scheduler.step()

    whole, again = make(), make()
    go(*whole, 0)
    for mine, its in zip(again, [copy.deepcopy(each.state_dict()) for each in whole]):
        mine.load_state_dict(its)
    for three in (whole, again):
        go(*three, 3)
    assert torch.equal(weights(whole[0]), weights(again[0])) and whole[1].lr == again[1].lr


@around("AveragedModel, of equal and of exponential weights, and update_bn")
def _averages() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = MetaOptimize(model.parameters(), 0.01)
    plain, moving = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    ends = []
    for t in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=torch.Generator().manual_seed(t))).square().mean().backward()
        optimizer.step()
        plain.update_parameters(model)
        moving.update_parameters(model)
        ends.append(weights(model))
    update_bn([torch.randn(8, 3)], plain)
    assert relative(weights(plain), sum(ends) / 3) < 1e-5
    assert relative(weights(moving), (ends[0] / 2 + ends[1] / 2) / 2 + ends[2] / 2) < 1e-5


@around("GradScaler scales, unscales, and skips a step of infinite gradients")
def _scaler() -> None:
    model = net(torch.float32)
    optimizer, scaler = MetaOptimize(model.parameters(), 0.01), torch.amp.GradScaler("cpu", init_scale=4.0)
    for infinite in (False, True):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 3)).square().sum()).backward()
        if infinite:
            gradient(model.first.bias)[0] = math.inf
        before, lr = weights(model), optimizer.lr
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weights(model), before) == infinite
    assert optimizer.lr == lr and scaler.get_scale() == 2.0


@around("autocast")
def _autocast() -> None:
    model = net(torch.float32)
    optimizer = MetaOptimize(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.ones(2, 3)).float().square().sum()
        loss.backward()
        optimizer.step()
    assert weights(model).isfinite().all() and optimizer.state[model.first.weight]["trace"].dtype == torch.float32


@around("gradients that are clipped by norm or by value")
def _clipped() -> None:
    for clip in (partial(nn.utils.clip_grad_norm_, max_norm=0.1), partial(nn.utils.clip_grad_value_, clip_value=0.01)):
        model = net()
        optimizer = MetaOptimize(model.parameters(), 0.01, "sgd")
        before = weights(model)
        backward(model)
        clip(model.parameters())
        optimizer.step()
        assert 0 < float((weights(model) - before).norm()) <= 0.01 * 0.1 * 1.001


@around("gradients that are summed over several batches")
def _accumulated() -> None:
    a, b = net(), net()
    for t in range(4):
        backward(a, t)
    for p in b.parameters():
        p.grad = sum(torch.autograd.grad(backward_of(b, t), p)[0] for t in range(4))  # type: ignore[assignment]
    for model in (a, b):
        MetaOptimize(model.parameters(), 0.01).step()
    assert relative(weights(a), weights(b)) < 1e-12


def backward_of(model: Any, seed: int) -> torch.Tensor:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).double()
    return nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())


@around("one optimiser a parameter, in hooks of the backward pass")
def _in_backward() -> None:
    """As with `groups="tensor"`, where no learning rate depends on another tensor."""
    a, b = net(), net()
    each = {p: MetaOptimize([p], 0.01, meta="adam") for p in a.parameters()}

    def hook(p: torch.Tensor) -> None:
        each[p].step()  # type: ignore[index]
        each[p].zero_grad()  # type: ignore[index]

    for p in a.parameters():
        p.register_post_accumulate_grad_hook(hook)
    for t in range(4):
        backward(a, t)
    train(b, MetaOptimize(b.parameters(), 0.01, meta="adam", groups="tensor"), 4)
    assert relative(weights(a), weights(b)) < 1e-12 and all(p.grad is None for p in a.parameters())
