"""Update rules: one optimiser step as a pure function of weights, buffers, gradient and hyperparameters.

A rule is written once. Estimators get its tangent and its adjoint by automatic differentiation of `update` alone;
the loss enters
only through the gradient `g`, so the curvature of the loss is never part of a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Buffers = dict[str, Tensor]
Update = Callable[[Tensor, Buffers, Tensor, Mapping[str, Tensor]], tuple[Tensor, Buffers]]


@dataclass(frozen=True)
class Rule:
    """An elementwise optimiser step `(w, buffers, g, lam) -> (w, buffers)` on tensors that broadcast to `[R, D]`.

    `hypers` are the hyperparameters it reads from `lam`; `buffers` the state `[R, D]` it keeps beside the weights and
    `counters` what it keeps once a run, `[R, 1]` (all zero at the start).
    """

    name: str
    hypers: tuple[str, ...]
    buffers: tuple[str, ...]
    update: Update
    counters: tuple[str, ...] = ()


def sgd(*, momentum: bool = True, weight_decay: bool = True, nesterov: bool = False) -> Rule:
    """Stochastic gradient descent as in `torch.optim.SGD` (dampening 0), hyperparameters `lr`, `momentum`,
    `weight_decay`.

    v <- momentum v + g + weight_decay w;  w <- w - lr v   (Nesterov: w <- w - lr (g + weight_decay w + momentum v)).
    Source: FDS, Section 3.3; OnePass, Section 2.4. With `momentum=False` there is no buffer, with
    `weight_decay=False` no decay term.
    """

    def update(w: Tensor, buf: Buffers, g: Tensor, lam: Mapping[str, Tensor]) -> tuple[Tensor, Buffers]:
        d = g + lam["weight_decay"] * w if weight_decay else g
        if not momentum:
            return w - lam["lr"] * d, {}
        v = lam["momentum"] * buf["v"] + d
        step = d + lam["momentum"] * v if nesterov else v
        return w - lam["lr"] * step, {"v": v}

    hypers = ("lr",) + ("momentum",) * momentum + ("weight_decay",) * weight_decay
    return Rule("sgd", hypers, ("v",) if momentum else (), update)
