"""The forward and the backward view of MetaOptimize (Section 3) by their definitions, on a short stream.

Both move `beta`, the logarithm of one step size of SGD, along the derivative of the discounted sum of future losses.
With `D[tau, t]` the derivative of the loss `f_tau(w_tau)` by a lasting change of beta from step t on::

    forward   beta_{t+1} = beta_t - eta (1 - gamma) sum_{tau > t} gamma^(tau - t - 1) D[tau, t]         (eq. 4)
    backward  beta_{tau+1} = beta_tau - eta (1 - gamma) sum_{t < tau} gamma^(tau - t - 1) D[tau, t]     (eq. 5)

The forward view is not causal: D depends on later values of beta. It is solved by iteration, so that it holds along the
very path that it makes. Losses before the stream and after it are zero, as the paper's footnote has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradtune.recursion.step import Problem


def losses(problem: Problem, w: Tensor, betas: Tensor) -> Tensor:
    """Return the losses `[T]` along a training by SGD with step sizes `exp(betas [T])` from the weights `w [1, D]`."""
    found = []
    w = w.detach().requires_grad_()
    for t in range(len(betas)):
        loss = problem.train_loss(w, {}, t).sum()
        (g,) = torch.autograd.grad(loss, w, create_graph=True)
        found.append(loss)
        w = w - betas[t].exp() * g
    return torch.stack(found)


def lasting(problem: Problem, w: Tensor, betas: Tensor) -> Tensor:
    """Return `D [T, T]`: the derivative of the loss at tau by a change of beta at t that stays; 0 from tau = t up."""
    single = torch.autograd.functional.jacobian(lambda b: losses(problem, w, b), betas, vectorize=True)
    return single.flip(1).cumsum(1).flip(1)


def discounts(steps: int, gamma: float) -> Tensor:
    """Return `(1 - gamma) gamma^(tau - t - 1)` for tau > t, else 0, as `[T, T]`; 1 in place of the powers' factor at 1.

    At `gamma = 1` the factor `1 - gamma` is left out, as in the paper's Section 9.
    """
    lag = torch.arange(steps)[:, None] - torch.arange(steps)[None] - 1
    factor = 1 - gamma if gamma < 1 else 1.0
    return torch.where(lag >= 0, factor * torch.as_tensor(gamma, dtype=torch.float64) ** lag.clamp(min=0), 0.0)


def forward(problem: Problem, w: Tensor, beta: float, eta: float, steps: int, gamma: float) -> Tensor:
    """Return the path `beta_0, ..., beta_T` of the forward view, by iteration to rounding; it is for small `eta`."""
    weights, path = discounts(steps, gamma), torch.full((steps + 1,), beta, dtype=torch.float64)
    for _ in range(200):
        gradient = (weights * lasting(problem, w, path[:-1])).sum(0)
        new = torch.cat([path[:1], beta - eta * gradient.cumsum(0)])
        if torch.equal(new, path) or float((new - path).abs().max()) < 1e-15:
            return new
        path = new
    return path


def backward(problem: Problem, w: Tensor, beta: float, eta: float, steps: int, gamma: float) -> Tensor:
    """Return the path `beta_0, ..., beta_T` of the backward view, which uses no loss before its time."""
    weights, path = discounts(steps, gamma), torch.full((steps + 1,), beta, dtype=torch.float64)
    for tau in range(steps):
        betas = path[: tau + 1].clone().requires_grad_()
        (single,) = torch.autograd.grad(losses(problem, w, betas)[tau], betas, materialize_grads=True)
        derivative = single.flip(0).cumsum(0).flip(0)
        path[tau + 1] = path[tau] - eta * (weights[tau, : tau + 1] * derivative).sum()
    return path


def gap(problem: Problem, w: Tensor, beta: float, eta: float, steps: int, gamma: float) -> float:
    """Return how far both views end apart."""
    ends = [view(problem, w, beta, eta, steps, gamma)[-1] for view in (forward, backward)]
    return abs(float(ends[0] - ends[1]))


def order(etas: Sequence[float], gaps: Sequence[float]) -> float:
    """Return the power of the meta step size with which the views come together, from the two smallest ones."""
    (a, x), (b, y) = sorted(zip(etas, gaps))[:2]
    return math.log(y / x) / math.log(b / a)
