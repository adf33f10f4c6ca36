"""Recursions as published programs run them where that differs from their paper, for comparison with the exact form.

Not for use: each class says what is off, and the book's page on omissions shows by how much.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradtune.estimators.forward import Forward
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import Problem, Step, Tangent


@dataclass
class OhoProgram:
    """OHO's program: SGD with rate `lr` and penalty `l2`, both tuned after every step, for one run (R = 1).

    Departures from the exact recursion (`Forward()` with a penalty `l2/2 |w|^2`):

    * The Hessian is taken at the weights after the step.
    * The penalty enters the sensitivities with a factor 2 while the training step uses 1, so that the hypergradient of
      l2 is about twice too large.
    * The sensitivity to l2 uses the learning rate just updated.
    * l2 moves with 0.01 of the meta rate and is capped.

    Cost of a step: two gradients, two exact Hessian products and a validation gradient.

    Memory: 2 D and a graph.

    Attributes:
        problem: the losses. The training loss must not contain the penalty.
        lr: learning rate in force, changed by each step.
        l2: penalty in force, changed by each step.
        meta_rate: outer rate of the learning rate.
        cap: largest penalty.
        to_lr: sensitivity of the weights to the learning rate, `[1, D]`, from the first step on.
        to_l2: sensitivity of the weights to the penalty, `[1, D]`, from the first step on.
    """

    problem: Problem
    lr: float
    l2: float
    meta_rate: float
    cap: float = 2e-4
    to_lr: Tensor = field(init=False)
    to_l2: Tensor = field(init=False)

    def step(self, w: Tensor, t: int) -> tuple[Tensor, float, float]:
        """Take one training step and update both hyperparameters.

        Args:
            w: weights `[1, D]` before the step.
            t: number of the step. Step 0 sets the sensitivities to 0.

        Returns:
            Weights `[1, D]` after the step, and the hypergradients of the learning rate and of the penalty that it
            used.
        """
        if t == 0:
            self.to_lr, self.to_l2 = torch.zeros_like(w), torch.zeros_like(w)
        g, _ = self._gradient(w, t)
        w = w - self.lr * (g + self.l2 * w)
        again, (leaf,) = self._gradient(w, t, graph=True)
        h_lr, h_l2 = (torch.autograd.grad(again, leaf, z, retain_graph=True)[0] for z in (self.to_lr, self.to_l2))
        leaf = w.detach().requires_grad_()
        (gv,) = torch.autograd.grad(self.problem.val_loss(leaf, {}, t).sum(), leaf)
        self.to_lr = self.to_lr * (1 - 2 * self.l2 * self.lr) - self.lr * h_lr - g - 2 * self.l2 * w
        hg_lr = float((gv * self.to_lr).sum())
        lr = max(0.0, self.lr - self.meta_rate * hg_lr)
        self.to_l2 = self.to_l2 * (1 - 2 * self.l2 * lr) - lr * h_l2 - 2 * lr * w
        hg_l2 = float((gv * self.to_l2).sum())
        self.lr, self.l2 = lr, min(max(self.l2 - 0.01 * self.meta_rate * hg_l2, 0.0), self.cap)
        return w, hg_lr, hg_l2

    def state(self) -> dict[str, Any]:
        """Return what a training in its middle goes on from, beside its weights."""
        return {"lr": self.lr, "l2": self.l2, "to_lr": self.to_lr, "to_l2": self.to_l2}

    def go_on(self, earlier: Mapping[str, Any], like: Tensor) -> None:
        """Go on from what `state` gave, on the device and with the type of `like`."""
        self.lr, self.l2 = earlier["lr"], earlier["l2"]
        self.to_lr, self.to_l2 = earlier["to_lr"].to(like), earlier["to_l2"].to(like)

    def _gradient(self, w: Tensor, t: int, graph: bool = False) -> tuple[Tensor, tuple[Tensor]]:
        leaf = w.detach().requires_grad_()
        (g,) = torch.autograd.grad(self.problem.train_loss(leaf, {}, t).sum(), leaf, create_graph=graph)
        return g, (leaf,)


@dataclass(frozen=True)
class FdsPrintedMomentum(Forward):
    """Forward mode with the sensitivity of the velocity as FDS's Appendix A prints it.

    It prints `C_t = delta(v_t) + ...`, where the derivative of `v_t = beta_t v_{t-1} + ...` with respect to `beta_t` is
    `v_{t-1}`. Everything else, Z included, is exact. The fields are those of `Forward`.
    """

    def _advanced(self, z: Tangent, step: Step, lam_dot: Mapping[str, Tensor]) -> Tangent:
        exact = super()._advanced(z, step, lam_dot)
        change = (step.next.buf["v"] - step.state.buf["v"])[:, None]
        return Tangent(exact.w, {**exact.buf, "v": exact.buf["v"] + lam_dot["momentum"] * change})


@dataclass(frozen=True)
class FdsClipInside(Forward):
    """Forward mode with the training gradient clipped before it is differentiated, as FDS's program does.

    It has `H (mask Z)` in place of `mask (H Z)`, the derivative of a step with `rules.clipped(rule, limit)`. A clipped
    weight then feels the others, and they do not feel it. The other fields are those of `Forward`.

    Attributes:
        rule: the update rule without its clip; None: the rule of the step.
        limit: largest size of an entry of the gradient.
    """

    rule: Rule | None = None
    limit: float = 1.0

    def _advanced(self, z: Tangent, step: Step, lam_dot: Mapping[str, Tensor]) -> Tangent:
        inside = copy.copy(step)
        inside.g, inside.rule = step.g.clamp(-self.limit, self.limit), self.rule or step.rule
        return super()._advanced(z, inside, lam_dot)
