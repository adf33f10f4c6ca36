"""Unconstrained coordinates of a hyperparameter.

A transform has `natural = forward(raw)`, `raw = inverse(natural)` and `slope = d natural / d raw`. The slope is the
chain factor between a derivative in natural units and one in raw coordinates. It is used in one place only
(`hypers.Values`), so that it is applied exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LN10 = math.log(10.0)


@dataclass(frozen=True)
class Transform:
    """One coordinate change, whose three functions act elementwise.

    Attributes:
        name: "identity", "log10", "log" or "sigmoid".
        forward: natural value of a raw coordinate.
        inverse: raw coordinate of a natural value.
        slope: derivative of `forward` at a raw coordinate.
        low: lower bound of the natural values that it can express.
        high: upper bound of the natural values that it can express.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    low: float = -math.inf
    high: float = math.inf


# functions of the module, not lambdas: a transform can be pickled
def _same(x: Tensor) -> Tensor:
    return x


def _power_of_ten(raw: Tensor) -> Tensor:
    return 10.0**raw


def _power_of_ten_slope(raw: Tensor) -> Tensor:
    return _LN10 * 10.0**raw


def _sigmoid_slope(raw: Tensor) -> Tensor:
    s = torch.sigmoid(raw)
    return s * (1 - s)


IDENTITY = Transform("identity", _same, _same, torch.ones_like)
LOG10 = Transform("log10", _power_of_ten, torch.log10, _power_of_ten_slope, low=0.0)
LOG = Transform("log", torch.exp, torch.log, torch.exp, low=0.0)
SIGMOID = Transform("sigmoid", torch.sigmoid, torch.logit, _sigmoid_slope, low=0.0, high=1.0)

TRANSFORMS = {t.name: t for t in (IDENTITY, LOG10, LOG, SIGMOID)}
