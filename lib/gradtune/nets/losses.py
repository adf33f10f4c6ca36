"""Losses with hyperparameters of their own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from gradtune.nets.ranges import Range

SMOOTHING = Range("smoothing", 0.0, 1.0, high_open=True)


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float | Tensor = 0.0) -> Tensor:
    """Mean cross entropy against (1 - s) one-hot + s uniform labels, in nats (Szegedy et al. 2016, Section 7).

    logits `[..., C]`: classes last; target `[...]`: class numbers; `smoothing` s: a number or a tensor of one element,
    differentiable. Returns a tensor of the shape of `smoothing` (a number for a number). Equals
    `torch.nn.functional.cross_entropy(logits, target, label_smoothing=s)` on `[N, C]`, which takes s as a Python
    float only and so has no derivative with respect to it, and which puts the classes second, not last.

    The loss is linear in s: dL/ds = -mean(log p) - NLL, and d2L/dw ds is exact by automatic differentiation. With
    `modules.batched` every run has its own s: `loss_lam={"smoothing": lam["smoothing"]}`.
    Raises GradtuneError for s outside [0, 1). Cost: one log-softmax; memory: one copy of the logits.
    """
    SMOOTHING.check(smoothing)
    log_p = log_softmax(logits, dim=-1)
    hard = nll_loss(log_p.flatten(0, -2), target.flatten())
    return (1 - smoothing) * hard - smoothing * log_p.mean()


@torch.no_grad()
def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose largest logit is the target's, in [0, 1]; shapes as in `cross_entropy`. Not differentiable:
    a read-out for `modules.batched`."""
    return (logits.argmax(dim=-1) == target).to(logits.dtype).mean()
