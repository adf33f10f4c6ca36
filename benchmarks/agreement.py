"""Every method of the table on a device against the CPU in float64: same weights, same hyperparameters, up to rounding.

It is the first thing to know of a new device. Nets are small and batches few, so that it takes a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from gradtune.methods import making
from gradtune.methods.table import METHODS as TABLE
from gradtune.nets.modules import batched
from gradtune.nets.plain import LanguageModel
from gradtune.nets.wide_resnet import residual
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule, adamw, sgd
from gradtune.training.loop import Loop, Method
from gradtune.training.metaoptimize import MetaOptimize

STEPS, _EVERY, _RUNS, _BATCHES, _IMAGES = 12, 3, 2, 3, 8
TOLERANCE = 1e-8
"""Largest relative difference that counts as rounding: that of `STEPS` steps in float64."""

METHODS: dict[str, Callable[[], Method]] = {
    "oho": lambda: making.oho(1e-3),
    "unroll1_gtgv": making.unroll1_gtgv,
    "unroll_k": lambda: making.unroll_k(_EVERY),
    "clip_r": lambda: making.clip_r(0.5),
    "fds": lambda: making.fds(_EVERY, SGD(1e-3), product_limit=10.0),
    "per_step": lambda: making.per_step(_EVERY, 1e-3),
    "greedy": lambda: making.greedy(1e-3),
    "hd": lambda: making.hd(1e-3),
    "baydin": making.baydin,
    "onepass": lambda: making.onepass(2, _EVERY),
    "onepass_hdlr": lambda: making.onepass(2, _EVERY),
    "lorraine": lambda: making.lorraine(2, _EVERY),
    "diff_through_opt": lambda: making.diff_through_opt(2, _EVERY),
    "metaoptimize_hf": making.metaoptimize_hf,
    "idbd": lambda: making.idbd(1e-3),
    "fixed": making.fixed,
}
"""How each method of `gradtune.methods.table` is made here, but for MetaOptimize in full and the searches."""

FULL, LINEAR, _PENALTY = "metaoptimize", "linear", "penalty"
_RATE_ALONE = ("hd", "baydin", "metaoptimize_hf", "idbd", "per_step")


class Case(NamedTuple):
    """One comparison: the largest relative difference of weights and of hyperparameters."""

    method: str
    net: str
    rule: str
    weights: float
    hypers: float

    @property
    def good(self) -> bool:
        """Whether both are rounding; a NaN is not."""
        return self.weights <= TOLERANCE and self.hypers <= TOLERANCE


class _Words(nn.Module):
    """An LSTM that predicts words, its logits `[T B, vocabulary]`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = LanguageModel(5, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.net(tokens).flatten(0, 1)
        return out


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def _pixels(*shape: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    def drawn(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.randn(_BATCHES + 1, _IMAGES, *shape, generator=rng, dtype=torch.float64)
        return x, torch.randint(0, 3, (_BATCHES + 1, _IMAGES), generator=rng)

    return drawn


def _numbers(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(_BATCHES + 1, _IMAGES, 6, generator=rng, dtype=torch.float64)
    return x, x.sum(-1, keepdim=True)


def _text(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    words = torch.randint(0, 5, (_BATCHES + 1, 4, 3), generator=rng)
    return words[:, :-1], words[:, 1:].flatten(1)


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], tuple[Tensor, Tensor]]]] = {
    "MLP": (_mlp, _pixels(6)),
    "residual": (lambda: residual(channels=1), _pixels(1, 8, 8)),
    "LSTM": (_Words, _text),
    LINEAR: (lambda: nn.Linear(6, 1, bias=False), _numbers),
}
_ITS_NETS = {"idbd": (LINEAR,), FULL: ("MLP",)}


class _Task:
    """Losses of the runs on batches that change from step to step."""

    stationary = False

    def __init__(self, net: str, device: torch.device) -> None:
        make, data = NETS[net]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = make().double().to(device)
        self.x, self.y = (part.to(device) for part in data(torch.Generator().manual_seed(1)))
        self._loss = batched(module, mse_loss if net == LINEAR else cross_entropy)
        self.layout = self._loss.layout
        flat = self.layout.flatten(dict(module.named_parameters())).detach()
        self.w = torch.stack([flat * (1 + 0.1 * k) for k in range(_RUNS)])

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        penalty = 0.5 * (lam[_PENALTY] * w * w).sum(-1) if _PENALTY in lam else 0.0
        return self._loss(w, self.x[t % _BATCHES], self.y[t % _BATCHES]) + penalty

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self._loss(w, self.x[_BATCHES], self.y[_BATCHES])

    def curvature_diagonal(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return that of the linear model."""
        return (2 * self.x[t % _BATCHES].square().mean(0)).expand_as(w)


def _hypers(method: str, rule: Rule, sizes: list[int]) -> Hypers:
    values = {"lr": ("log10", 0.05), "momentum": ("sigmoid", 0.8), "weight_decay": ("log10", 1e-3)}
    values |= {"beta1": ("sigmoid", 0.9), "beta2": ("sigmoid", 0.99)}
    values |= {_PENALTY: ("log10", 1e-2)}
    alone, wide = method in _RATE_ALONE, method in ("onepass_hdlr", "idbd")
    of_loss = method == "unroll1_gtgv"  # it tunes nothing else

    def made(name: str) -> Hyper:
        transform, value = values[name]
        if name == "lr" and rule.name != "sgd":
            value = 0.01
        spread = "weight" if wide and name == "lr" else "global"
        tuned = name == _PENALTY if of_loss else name == "lr" or not alone
        return Hyper(name, value, transform, spread, tuned=tuned and method != "fixed")

    return Hypers([made(name) for name in (*rule.hypers, *([_PENALTY] if of_loss else []))], sizes)


def _trained(method: str, net: str, rule: Rule, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return weights and raw hyperparameters after `STEPS` steps, on the CPU."""
    task = _Task(net, device)
    hypers = _hypers(method, rule, task.layout.sizes)
    if method == FULL:
        full = MetaOptimize(task, rule, hypers, SGD(1e-3), gamma=0.99)
        end = full.advance(full.start(task.w), STEPS)
        return end.base.w.cpu(), end.meta.raw.cpu()
    loop = Loop(task, rule, hypers, METHODS[method]())
    run = loop.advance(loop.start(task.w), STEPS)
    return run.state.w.cpu(), run.raw.cpu()


def _apart(one: Tensor, other: Tensor) -> float:
    if not one.numel():
        return 0.0
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def compared(device: torch.device, quick: bool = False) -> Iterator[Case]:
    """Train by every method on a device and on the CPU, and compare.

    MetaOptimize in full, which takes third derivatives, is trained on the MLP alone, and IDBD on its linear model.

    Args:
        device: The device.
        quick: Take one net and one rule for each method.

    Yields:
        A case for each method, net and rule.
    """
    cpu = torch.device("cpu")
    for name in [*METHODS, FULL]:
        nets = _ITS_NETS.get(name, ("MLP", "residual", "LSTM"))
        for net, rule in [(each, rule) for each in nets for rule in _rules(name, each)][: 1 if quick else None]:
            here, there = _trained(name, net, rule, device), _trained(name, net, rule, cpu)
            yield Case(name, net, rule.name, *(_apart(a, b) for a, b in zip(here, there, strict=True)))


def _rules(method: str, net: str) -> list[Rule]:
    if method == "idbd":
        return [sgd(momentum=False, weight_decay=False)]
    return [sgd(), adamw()] if net == "MLP" else [sgd()]


def missing() -> list[str]:
    """Return the methods of the table that no case trains, searches apart."""
    return [row.name for row in TABLE if row.name not in (*METHODS, FULL) and row.sensitivity != "none"]
