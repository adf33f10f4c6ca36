"""Ranges of the hyperparameters that a net or a loss reads, and their check, also under `torch.func.vmap`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradtune.errors import GradtuneError


@dataclass(frozen=True)
class Range:
    """An interval in which the natural values of a hyperparameter have a meaning.

    Attributes:
        name: of the hyperparameter, for the error message.
        low: lower end.
        high: upper end.
        low_open: whether the lower end itself is outside.
        high_open: whether the upper end itself is outside.
    """

    name: str
    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __str__(self) -> str:
        return f"{'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"

    def check(self, x: float | Tensor) -> None:
        """Check that no value is outside the interval.

        NaN passes: a diverged run must not stop its neighbours. Tensors on an accelerator are not looked at, because
        reading one would make the processor wait for it.

        Args:
            x: a number or a tensor of any shape.

        Raises:
            GradtuneError: a value is outside.
        """
        if not isinstance(x, Tensor):
            self._look(torch.as_tensor(x, dtype=torch.float64))
        elif x.device.type == "cpu":
            _Look.apply(x.detach(), self)

    def _look(self, x: Tensor) -> None:
        below = x <= self.low if self.low_open else x < self.low
        above = x >= self.high if self.high_open else x > self.high
        bad = below | above
        if bad.any():
            raise GradtuneError(
                f"{self.name} = {float(x[bad][0]):g} is outside {self}; "
                f"give a value inside, and a tuned {self.name} bounds or the transform sigmoid"
            )


class _Look(torch.autograd.Function):
    """Hand the values themselves to `Range`, where `vmap` would hide them; no derivative is ever asked of it."""

    @staticmethod
    def forward(x: Tensor, allowed: Range) -> Tensor:
        allowed._look(x)
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, allowed: Range) -> tuple[Tensor, int]:
        allowed._look(x)
        return x.view_as(x), in_dims[0]
