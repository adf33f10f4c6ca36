"""Losses with hyperparameters of their own, and accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from gradtune.nets.ranges import Range

SMOOTHING = Range("smoothing", 0.0, 1.0, high_open=True)


def cross_entropy(
    logits: Tensor, target: Tensor, smoothing: float | Tensor = 0.0, weight: Tensor | None = None
) -> Tensor:
    """Mean cross entropy in nats against smoothed labels, differentiable by the smoothing and by weights of classes.

    With smoothing s the labels are (1 - s) one-hot + s uniform (Szegedy et al. 2016, Section 7). On logits `[N, C]` the
    loss equals `torch.nn.functional.cross_entropy(logits, target, weight, label_smoothing=s)`. That function takes s as
    a Python float only and has no derivative with respect to s or the weights, and it puts the classes second, not
    last.

    The loss is linear in s: `dL/ds = -mean(log p) - NLL`, and `d2L/dw ds` is exact by automatic differentiation. With
    `modules.batched` every run has its own s: `loss_lam={"smoothing": lam["smoothing"]}`.

    Cost: one log-softmax. Memory: one copy of the logits.

    Args:
        logits: `[..., C]`, classes last, with at least one dimension before them.
        target: class numbers, `[...]`.
        smoothing: s in [0, 1), a number or a tensor of one element.
        weight: a weight for each class, `[C]`; the mean is that of weighted losses, divided by the sum of the targets'
            weights. None for equal weights.

    Returns:
        A tensor of the shape of `smoothing`, without dimensions where that is a number.

    Raises:
        GradtuneError: s is outside [0, 1); a tensor on an accelerator is not checked.
    """
    SMOOTHING.check(smoothing)
    log_p = log_softmax(logits, dim=-1)
    if weight is not None:
        return _weighted(log_p.flatten(0, -2), target.flatten(), smoothing, weight)
    hard = nll_loss(log_p.flatten(0, -2), target.flatten())
    return (1 - smoothing) * hard - smoothing * log_p.mean()


def _weighted(log_p: Tensor, target: Tensor, smoothing: float | Tensor, weight: Tensor) -> Tensor:
    """Return the loss with a weight for each class, of log probabilities `[N, C]` and targets `[N]`."""
    own = weight[target]
    hard = -(own * log_p.gather(1, target[:, None])[:, 0]).sum()
    soft = -(log_p * weight).sum() / log_p.shape[1]
    return ((1 - smoothing) * hard + smoothing * soft) / own.sum()


@torch.no_grad()
def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose largest logit is the target's, in [0, 1].

    Not differentiable: a read-out for `modules.batched`.

    Args:
        logits: `[..., C]`, classes last.
        target: class numbers, `[...]`.
    """
    return (logits.argmax(dim=-1) == target).to(logits.dtype).mean()
