"""Recursions as published programs run them where that differs from their paper, for comparison with the exact form.

Not for use: each function says what is off, and the book's page on omissions shows by how much.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from gradtune.estimators.forward import Forward
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import Problem, Step, Tangent
from torch import Tensor


@dataclass
class OhoProgram:
    """OHO's program: SGD with rate `lr` and penalty `l2`, both tuned after every step, for one run (R = 1).

    Departures from the exact recursion (`Forward()` with a penalty l2/2 |w|^2): the Hessian is taken at the weights
    after the step; the penalty enters the sensitivities with a factor 2 while the training step uses 1, so that the
    l2 hypergradient is about twice too large; the sensitivity to l2 uses the learning rate just updated; l2 moves
    with 0.01 of the meta rate and is capped. The problem's training loss must not contain the penalty.
    Cost a step: two gradients, two exact Hessian products and a validation gradient; memory 2 D and a graph.
    """

    problem: Problem
    lr: float
    l2: float
    meta_rate: float
    cap: float = 2e-4
    to_lr: Tensor = field(init=False)
    to_l2: Tensor = field(init=False)

    def step(self, w: Tensor, t: int) -> tuple[Tensor, float, float]:
        """Weights `[1, D]` after step t and the two hypergradients it used."""
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

    def _gradient(self, w: Tensor, t: int, graph: bool = False) -> tuple[Tensor, tuple[Tensor]]:
        leaf = w.detach().requires_grad_()
        (g,) = torch.autograd.grad(self.problem.train_loss(leaf, {}, t).sum(), leaf, create_graph=graph)
        return g, (leaf,)


@dataclass(frozen=True)
class FdsPrintedMomentum(Forward):
    """Forward mode with the sensitivity of the velocity as FDS's Appendix A prints it: C_t = delta(v_t) + ..., where
    the derivative of v_t = beta_t v_{t-1} + ... by beta_t is v_{t-1}. Everything else, Z included, is exact."""

    def _advanced(self, z: Tangent, step: Step, lam_dot: Mapping[str, Tensor]) -> Tangent:
        exact = super()._advanced(z, step, lam_dot)
        change = (step.next.buf["v"] - step.state.buf["v"])[:, None]
        return Tangent(exact.w, {**exact.buf, "v": exact.buf["v"] + lam_dot["momentum"] * change})


@dataclass(frozen=True)
class FdsClipInside(Forward):
    """Forward mode with the training gradient clipped before it is differentiated, as FDS's program does: H (mask Z) in
    place of mask (H Z), the derivative of a step with `rules.clipped(rule, limit)`. A clipped weight then feels the
    others, and they do not feel it. `rule`: the rule without its clip."""

    rule: Rule | None = None
    limit: float = 1.0

    def _advanced(self, z: Tangent, step: Step, lam_dot: Mapping[str, Tensor]) -> Tangent:
        inside = copy.copy(step)
        inside.g, inside.rule = step.g.clamp(-self.limit, self.limit), self.rule or step.rule
        return super()._advanced(z, inside, lam_dot)
