"""Norms and correlations along a training: what Figures 9 and 10 of the OHO paper show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradtune.recursion.hypers import Hypers
from gradtune.recursion.step import Problem
from gradtune.training.loop import Run


def influence(hypers: Hypers, memory: Tensor) -> dict[str, Tensor]:
    """Return the squared Frobenius norm `[R]` of the influence matrix of each tuned hyperparameter, by name.

    Args:
        hypers: The hyperparameters.
        memory: Influence `dw/draw [R, P, D]`, a column for each coordinate.
    """
    squares = memory.square().sum(-1)
    parts = {name: hypers.blocks[name] for name in hypers.tuned}
    return {name: squares[:, b.offset : b.offset + b.columns].sum(1) for name, b in parts.items()}


def gradient(problem: Problem, w: Tensor, t: int) -> Tensor:
    """Return the gradient `[R, D]` of the training loss on batch t. Cost: a gradient."""
    leaf = w.detach().requires_grad_()
    loss = problem.train_loss(leaf, {}, t)
    return torch.autograd.grad(loss, leaf, torch.ones_like(loss))[0]


def jacobian_norm(problem: Problem, w: Tensor, t: int, lr: Tensor, decay: Tensor, iterations: int = 30) -> Tensor:
    """Return the squared spectral norm `[R]` of the Jacobian of a step, `I - lr (H + decay I)`, by power iteration.

    The Jacobian is symmetric, so that its spectral norm is its eigenvalue of largest size. The iteration starts from
    the same random vector in every run. Its result lies below the norm and grows towards it.

    Cost: a gradient with its graph and one Hessian product an iteration.

    Args:
        problem: The losses; H is the Hessian of the training loss on batch t.
        w: Weights `[R, D]` before the step.
        t: Number of the step.
        lr: Learning rate, `[R, 1]` or `[R, D]`.
        decay: Weight decay, `[R, 1]` or `[R, D]`. With one value a run the Jacobian is symmetric.
        iterations: Number of iterations.
    """
    leaf = w.detach().requires_grad_()
    loss = problem.train_loss(leaf, {}, t)
    (g,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss), create_graph=True)
    v = torch.randn(w.shape[1], generator=torch.Generator().manual_seed(0)).to(w).expand_as(w)
    norm = torch.ones_like(w[:, :1])
    for _ in range(iterations):
        v = v / v.norm(dim=-1, keepdim=True)
        (product,) = torch.autograd.grad(g, leaf, v, retain_graph=True)
        v = v - lr * (product + decay * v)
        norm = v.norm(dim=-1, keepdim=True)
    return norm[:, 0].square()


class Correlations:
    """Cosines between the gradients of successive steps, for windows of steps.

    It is called with a run before the first step and after every one. The gradient at a call is that of the batch to
    come, taken anew. Cost: a gradient a call.

    Args:
        problem: The losses.
        window: Steps of a window.
    """

    def __init__(self, problem: Problem, window: int) -> None:
        self.problem, self.window = problem, window
        self._last: Tensor | None = None
        self._cosines: list[Tensor] = []

    def __call__(self, run: Run) -> None:
        g = gradient(self.problem, run.state.w, run.t)
        if self._last is not None:
            self._cosines.append(torch.nn.functional.cosine_similarity(g, self._last.to(g.device), dim=-1))
        self._last = g

    def state(self) -> dict[str, Any]:
        """Return what it has seen so far."""
        return {"last": self._last, "cosines": self._cosines}

    def go_on(self, earlier: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; on the device of the next run."""
        self._last, self._cosines = earlier["last"], list(earlier["cosines"])

    def windows(self) -> Mapping[str, Tensor]:
        """Return mean and standard deviation `[R, windows]` of the cosines in each whole window, by name."""
        whole = len(self._cosines) // self.window * self.window
        here = self._cosines[-1].device
        cosines = torch.stack([each.to(here) for each in self._cosines[:whole]], 1).unflatten(1, (-1, self.window))
        return {"mean": cosines.mean(2), "deviation": cosines.std(2)}
