"""Small streams of losses for the framework of MetaOptimize, in float64: a noisy quadratic and a drifting linear model.

Both have a new loss at every step, the same for every method, and a known diagonal of the Hessian.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gradtune.errors import unknown

NAMES = ("quadratic", "stream")


@dataclass(frozen=True)
class Quadratics:
    """R runs of `f_t(w) = 1/2 (w - c_t)' H (w - c_t)` with a diagonal H: at each step the minimum is another.

    Attributes:
        h: Diagonal of H, `[R, D]`.
        c: Minima `[R, T, D]`, noise around one point.
        stationary: False, as the losses depend on t.
    """

    h: Tensor
    c: Tensor
    stationary: ClassVar[bool] = False

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        d = w - self.c[:, t]
        return 0.5 * (self.h * d * d).sum(-1)

    val_loss = train_loss

    def curvature_diagonal(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.h


@dataclass(frozen=True)
class LinearModels:
    """R runs of `f_t(w) = 1/2 (a_t' w - b_t)^2`: linear regression on a row at a time.

    Attributes:
        a: Rows `[R, T, D]`.
        b: Targets `[R, T]`.
        stationary: False, as the losses depend on t.
    """

    a: Tensor
    b: Tensor
    stationary: ClassVar[bool] = False

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return 0.5 * ((w * self.a[:, t]).sum(-1) - self.b[:, t]) ** 2

    val_loss = train_loss

    def curvature_diagonal(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.a[:, t] ** 2


def draw(
    name: str, seeds: Sequence[int], steps: int, dim: int = 10, device: torch.device | None = None
) -> tuple[Quadratics | LinearModels, Tensor]:
    """Return a stream of R runs and their initial weights `[R, D]`; a run depends on its own seed alone.

    The quadratic has a curvature between 0.1 and 1 in each direction, minima with a deviation of 0.5 around one point,
    and starts at a distance of about the root of D from it. The linear model is that of Sutton (1992): normal inputs of
    which the first half matter, with weights 1 or -1. Every 20 steps one of these changes its sign. It starts at 0.

    Args:
        name: "quadratic" or "stream".
        seeds: Seed of each run.
        steps: Length T of the stream.
        dim: Number D of weights, at least 2.
        device: Where the tensors are; None for the CPU.

    Raises:
        GradtuneError: The name is unknown.
    """
    if name not in NAMES:
        raise unknown("stream of losses", name, NAMES)
    drawn = [(_quadratic if name == "quadratic" else _linear)(np.random.default_rng(s), steps, dim) for s in seeds]
    first, second, w = (torch.from_numpy(np.stack(each)).to(device) for each in zip(*drawn, strict=True))
    return (Quadratics if name == "quadratic" else LinearModels)(first, second), w


def _quadratic(random: np.random.Generator, steps: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    h = 10 ** random.uniform(-1, 0, size=dim)
    around = random.normal(size=dim)
    return h, around + 0.5 * random.normal(size=(steps, dim)), around + random.normal(size=dim)


def _linear(random: np.random.Generator, steps: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, true = random.normal(size=(steps, dim)), np.zeros((steps, dim))
    weights = np.concatenate([random.choice([-1.0, 1.0], size=dim // 2), np.zeros(dim - dim // 2)])
    for t in range(steps):
        if t and t % 20 == 0:
            weights[random.integers(dim // 2)] *= -1
        true[t] = weights
    return a, (a * true).sum(1), np.zeros(dim)
