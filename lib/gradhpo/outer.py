"""Outer rules: how a hypergradient moves the raw coordinates. Every run `[R, P]` keeps its own state; a NaN stays in
its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gradhpo.errors import GradhpoError


class Outer(Protocol):
    """An outer rule: `init` gives its state, `update` the new raw coordinates and state."""

    def init(self, raw: Tensor) -> Any: ...

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, Any]: ...


def _check(lr: float) -> None:
    if not lr >= 0:
        raise GradhpoError(f"the outer learning rate is {lr}; expected a number >= 0")


@dataclass(frozen=True)
class SGD:
    """raw <- raw - lr hypergradient; with `times`, the rate is lr times the hyperparameter of that name (ClipR: c
    times the learning rate). No state."""

    lr: float
    times: str | None = None

    def __post_init__(self) -> None:
        _check(self.lr)

    def init(self, raw: Tensor) -> tuple[()]:
        return ()

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: tuple[()], lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, tuple[()]]:
        rate = self.lr if self.times is None else self.lr * lam[self.times]
        return raw - rate * hypergradient, state


class AdamState(NamedTuple):
    """First and second moments `[R, P]` and the number of updates, a tensor of no dimensions."""

    mean: Tensor
    square: Tensor
    updates: Tensor


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) with bias correction, as in `torch.optim.Adam`; OnePass uses lr 0.05 and the defaults.
    State: 2 P a run."""

    lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self.lr)

    def init(self, raw: Tensor) -> AdamState:
        return AdamState(torch.zeros_like(raw), torch.zeros_like(raw), raw.new_zeros(()))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: AdamState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, AdamState]:
        b1, b2 = self.betas
        count = state.updates + 1
        mean = b1 * state.mean + (1 - b1) * hypergradient
        square = b2 * state.square + (1 - b2) * hypergradient**2
        step = (mean / (1 - b1**count)) / ((square / (1 - b2**count)).sqrt() + self.eps)
        return raw - self.lr * step, AdamState(mean, square, count)
