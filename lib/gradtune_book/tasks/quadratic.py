"""The quadratic toy of the Clip paper (Section 4.1), with closed forms for everything its Table 1 measures.

The losses are::

    L_T(theta, lam) = 1/2 (theta - theta_hat)' H (theta - theta_hat) + lam/2 theta' H theta
    L_V(theta)      = 1/2 (theta - theta_bar)' H (theta - theta_bar)

with diagonal H. The penalty weight lam is a hyperparameter of the loss, called `penalty`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quadratic:
    """R instances of the toy.

    Attributes:
        h: Diagonal of H, `[R, D]`.
        theta_hat: Minimiser `[R, D]` of the training loss without the penalty.
        theta_bar: Minimiser `[R, D]` of the validation loss.
        stationary: True, as the losses do not depend on t.
    """

    h: Tensor
    theta_hat: Tensor
    theta_bar: Tensor
    stationary: ClassVar[bool] = True

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int = 0) -> Tensor:
        d = w - self.theta_hat
        return 0.5 * (self.h * (d * d + lam["penalty"] * (w * w))).sum(-1)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor] | None = None, t: int = 0) -> Tensor:
        d = w - self.theta_bar
        return 0.5 * (self.h * d * d).sum(-1)

    def minimiser(self, lam: Tensor) -> Tensor:
        """Return `theta*(lam) = theta_hat / (1 + lam)`, `[R, D]`, for `lam [R]`: H cancels."""
        return self.theta_hat / (1 + lam[:, None])

    def sensitivity(self, lam: Tensor) -> Tensor:
        """Return `d theta*/d lam = -theta_hat / (1 + lam)^2`, `[R, D]`: the fixed point of y."""
        return -self.theta_hat / (1 + lam[:, None]) ** 2

    def optimal_penalty(self) -> Tensor:
        """Return `lam*`, `[R]`, the minimum of `L_V(theta*(lam))`.

        It is::

            lam* = theta_hat' H (theta_hat - theta_bar) / (theta_hat' H theta_bar)

        The paper's own formula is garbled in the text we have; this one follows from dL_V/dlam = 0.
        """
        top = (self.theta_hat * self.h * (self.theta_hat - self.theta_bar)).sum(-1)
        return top / (self.theta_hat * self.h * self.theta_bar).sum(-1)

    def best_val_loss(self) -> Tensor:
        """Return `L_V(theta*(lam*))`, `[R]`."""
        return self.val_loss(self.minimiser(self.optimal_penalty()))


def sample(
    seeds: list[int], dim: int = 20, spread: float = 0.55, scale: float = 100.0, low: float = 0.2, high: float = 0.4
) -> Quadratic:
    """Draw one instance per seed, with `lam*` in `[low, high]`.

    H ~ U(0, scale), theta_bar ~ N(0, I) and theta_hat = theta_bar + spread N(0, I) are drawn until `lam*` lies there.
    The paper says only that `lam*` lies in `[0.2, 0.4]`; this sampling is the closest to its Table 1 that we found. An
    instance depends on its seed alone.

    Args:
        seeds: One an instance.
        dim: Number D of parameters.
        spread: Standard deviation of theta_hat around theta_bar.
        scale: Upper end of the diagonal of H.
        low: Least `lam*`.
        high: Largest `lam*`.

    Returns:
        The instances, in float64 on the CPU.
    """
    drawn = [_sample_one(s, dim, spread, scale, low, high) for s in seeds]
    h, theta_hat, theta_bar = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    return Quadratic(h, theta_hat, theta_bar)


def _sample_one(
    seed: int, dim: int, spread: float, scale: float, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    while True:
        h = scale * torch.rand(dim, generator=rng, dtype=torch.float64)
        bar = torch.randn(dim, generator=rng, dtype=torch.float64)
        hat = bar + spread * torch.randn(dim, generator=rng, dtype=torch.float64)
        if low <= float((hat * h * (hat - bar)).sum() / (hat * h * bar).sum()) <= high:
            return h, hat, bar
