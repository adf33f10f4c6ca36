"""The update rule of one step, where it differs from that of the training.

It does so for weights that the loss does not reach, for hooks on gradients, and for a schedule of the learning rate.
Each function returns a rule that reads the same hyperparameters and keeps the same buffers. Its tangent and its adjoint
come from automatic differentiation, so that hypergradients know of the change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradtune.recursion.rules import Buffers, Lam, Rule

Change = Callable[[Tensor], Tensor]


def only(rule: Rule, reached: Tensor) -> Rule:
    """Return `rule` for some of the weights; the others keep their values and their buffers.

    So do torch's optimisers with a parameter that has no gradient: neither weight decay nor momentum moves it. A
    counter of steps becomes one a weight.

    Args:
        rule: the rule.
        reached: True for weights that are updated, `[R, D]`.
    """

    def update(w: Tensor, buf: Buffers, g: Tensor, lam: Lam) -> tuple[Tensor, Buffers]:
        new, new_buf = rule.update(w, buf, g, lam)
        here = reached if w.dim() == 2 else reached[:, None]
        return torch.where(here, new, w), {n: torch.where(here, b, buf[n]) for n, b in new_buf.items()}

    return replace(rule, update=update, tangent=None)


def scaled(rule: Rule, factor: float | Tensor) -> Rule:
    """Return `rule` with a learning rate `factor` times the hyperparameter `lr`.

    Args:
        rule: the rule.
        factor: the value of a schedule at this step.
    """

    def update(w: Tensor, buf: Buffers, g: Tensor, lam: Lam) -> tuple[Tensor, Buffers]:
        return rule.update(w, buf, g, {**lam, "lr": factor * lam["lr"]})

    return replace(rule, update=update, tangent=None)


def hooked(rule: Rule, change: Change) -> Rule:
    """Return `rule` fed with a changed gradient.

    Args:
        rule: the rule.
        change: maps the gradient `[D]` of one run to another; torch can differentiate it.
    """

    def update(w: Tensor, buf: Buffers, g: Tensor, lam: Lam) -> tuple[Tensor, Buffers]:
        rows = [change(row) for row in g.reshape(-1, g.shape[-1])]
        return rule.update(w, buf, torch.stack(rows).reshape(g.shape), lam)

    return replace(rule, update=update, tangent=None)
