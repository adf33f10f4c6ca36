"""The adjoints of SGD and Adam, written out.

Reverse mode pulls a cotangent c of the state after a step back to the state before it, to the gradient and to the
hyperparameters. Automatic differentiation of a rule gives the same in two to four times the passes over memory, and
keeps a graph of the rule for it. Every function here is the adjoint of a `rules.Descent`, step by step backwards; a
test compares it with automatic differentiation in double precision.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Buffers = dict[str, Tensor]
Lam = Mapping[str, Tensor]


class Taken(NamedTuple):
    """A step `w - lr d` that has been taken.

    Attributes:
        w: the weights before it, `[R, D]`.
        buf: the buffers before it, by name.
        g: the gradient.
        lam: the hyperparameters in force, `[R, 1 or D]` by name.
        d: its direction.
        new: the buffers after it.
    """

    w: Tensor
    buf: Buffers
    g: Tensor
    lam: Lam
    d: Tensor
    new: Buffers


class Pulled(NamedTuple):
    """Cotangents of what a step reads.

    Attributes:
        w: that of the weights, at a fixed gradient.
        buf: those of the buffers.
        g: that of the gradient.
        lam: those of the tuned hyperparameters.
    """

    w: Tensor
    buf: Buffers
    g: Tensor
    lam: Buffers


def sgd(
    x: Taken, c: Tensor, c_buf: Buffers, tuned: Collection[str], *, momentum: bool, weight_decay: bool, nesterov: bool
) -> Pulled:
    """Return the adjoint of `rules.sgd`.

    Args:
        x: the step.
        c: cotangent of the weights after it.
        c_buf: cotangents of the buffers after it.
        tuned: names of the hyperparameters whose cotangents are asked for.
        momentum: as in `rules.sgd`.
        weight_decay: as in `rules.sgd`.
        nesterov: as in `rules.sgd`.
    """
    c_d = c * -x.lam["lr"]
    found = {"lr": -_share(x.lam["lr"], c, x.d)} if "lr" in tuned else {}
    before: Buffers = {}
    if momentum:
        c_v = c_buf["v"] + (c_d * x.lam["momentum"] if nesterov else c_d)
        if "momentum" in tuned:
            found["momentum"] = _share(x.lam["momentum"], c_v, x.buf["v"])
            if nesterov:
                found["momentum"] = found["momentum"] + _share(x.lam["momentum"], c_d, x.new["v"])
        before = {"v": c_v * x.lam["momentum"]}
        c_d = c_v + c_d if nesterov else c_v
    return _decayed(x, c, c_d, tuned, found, before, c_d) if weight_decay else Pulled(c, before, c_d, found)


def adam(
    x: Taken, c: Tensor, c_buf: Buffers, tuned: Collection[str], *, weight_decay: bool, decoupled: bool, eps: float
) -> Pulled:
    """Return the adjoint of `rules.adam`, or with `decoupled` that of `rules.adamw`.

    The counter of steps counts as a constant: no hyperparameter moves it. An entry whose second moment is 0 has the
    derivative 0 by it, as in `rules.root`.

    Args:
        x: the step.
        c: cotangent of the weights after it.
        c_buf: cotangents of the buffers after it.
        tuned: names of the hyperparameters whose cotangents are asked for.
        weight_decay: whether there is a decay.
        decoupled: whether it stays outside the normalisation.
        eps: as in `rules.adam`.
    """
    lam, b1, b2, k = x.lam, x.lam["beta1"], x.lam["beta2"], x.new["steps"]
    rest1, rest2 = 1 - b1**k, 1 - b2**k
    root = (x.new["v"] / rest2).sqrt()
    below = (root + eps) * rest1
    c_d = c * -lam["lr"]
    found = {"lr": -_share(lam["lr"], c, x.d)} if "lr" in tuned else {}
    c_hat = c_d / below
    c_root = c_hat * x.new["m"] / (below * (-1 / rest1))  # root + eps is below / rest1
    c_m = c_buf["m"] + c_hat
    apart = root.clamp(min=torch.finfo(root.dtype).tiny) * (2 * rest2)  # 0 / tiny where the root is 0
    c_v = torch.addcdiv(c_buf["v"], c_root * root.sign(), apart)
    inner = x.g if decoupled or not weight_decay else torch.addcmul(x.g, lam["weight_decay"], x.w)
    if "beta1" in tuned:
        slope = k * b1 ** (k - 1) / rest1
        found["beta1"] = _share(b1, c_m, x.buf["m"] - inner) + _share(b1, c_hat * slope, x.new["m"])
    if "beta2" in tuned:
        slope = k * b2 ** (k - 1) / (2 * rest2)
        found["beta2"] = _share(b2, c_v, x.buf["v"] - inner * inner) + _share(b2, c_root * slope, root)
    before = {"m": c_m * b1, "v": c_v * b2, "steps": c_buf["steps"]}
    c_g = torch.addcmul(c_m * (1 - b1), c_v * (2 * (1 - b2)), inner)
    return (
        _decayed(x, c, c_d if decoupled else c_g, tuned, found, before, c_g)
        if weight_decay
        else Pulled(c, before, c_g, found)
    )


def _decayed(
    x: Taken, c: Tensor, c_decay: Tensor, tuned: Collection[str], found: Buffers, before: Buffers, c_g: Tensor
) -> Pulled:
    """Add what goes through `weight_decay w`, whose cotangent is `c_decay`."""
    if "weight_decay" in tuned:
        found["weight_decay"] = _share(x.lam["weight_decay"], c_decay, x.w)
    return Pulled(c + c_decay * x.lam["weight_decay"], before, c_g, found)


def _share(lam: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the cotangent of a hyperparameter from the products by weight: one of each run, or one a weight."""
    return (a * b).sum(-1, keepdim=True) if lam.shape[-1] == 1 else a * b
