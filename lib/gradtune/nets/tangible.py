"""Operations whose gradient torch cannot differentiate over dual numbers, written out for Hessian products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, mse_loss, silu
from torch.overrides import TorchFunctionMode


class tangible(TorchFunctionMode):
    """Context in which losses and activations whose gradient torch cannot take over dual numbers are written out.

    These are mean squared errors, Huber's loss and SiLU. Values and derivatives are the same but for rounding.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _WRITTEN_OUT.get(func, func)(*args, **(kwargs or {}))


def _mse(input: Tensor, target: Tensor, *rest: Any, **more: Any) -> Tensor:
    if (
        rest
        or more.get("reduction", "mean") != "mean"
        or any(more.get(n) is not None for n in more if n != "reduction")
    ):
        return mse_loss(input, target, *rest, **more)
    return mse_loss(input, target, reduction="none").mean()


def _huber(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    away = (input - target).abs()
    each = torch.where(away <= delta, 0.5 * away * away, delta * (away - 0.5 * delta))
    each = each if weight is None else each * weight
    return each if reduction == "none" else each.sum() if reduction == "sum" else each.mean()


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    return input * input.sigmoid()


_WRITTEN_OUT: dict[Any, Callable[..., Tensor]] = {mse_loss: _mse, huber_loss: _huber, silu: _silu}
