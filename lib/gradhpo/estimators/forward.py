"""Forward mode: the sensitivity Z = d state / d raw carried along the training steps.

    Forward()                    exact (OHO, Section 4; FDS, eq. 3 and 4, with windows declared by the hyperparameter)
    Forward(reset_every=K)       UnrollK (Franceschi et al. 2017; Clip paper, Section 3.2)
    Forward(radius=R)            ClipR (Clip paper, eq. 9 and Algorithm 1)
    FirstOrder()                 Unroll1-gTgV (Luketina et al. 2016; Clip paper, Section 3.3)

Cost a step: one gradient with its graph and one Hessian product for each column in use. Memory: (1 + buffers) P D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradhpo.core import State, Step, Tangent, Values
from gradhpo.errors import GradhpoError


@dataclass(frozen=True)
class Forward:
    """Z_{t+1} = dPhi/dx Z_t + dPhi/draw, optionally set to 0 before every K-th step or projected on a ball.

    reset_every: K; steps 0, K, 2K, ... start from Z = 0, so that an outer update after every K steps sees K steps.
    None: never (exact).
    radius: each column is scaled by r / max(|dw/draw|, r) after every step; a number, or a tensor `[R]` with a
    radius a run. The norm covers dw/draw only;
        the buffers' rows are scaled with it, so that a clip changes the length of a hypergradient, not its
        direction. None: no projection.
    With `reset_every=1` it is the greedy method (horizon 1); as the radius grows or K reaches the horizon it becomes
    the exact one.
    """

    reset_every: int | None = None
    radius: float | Tensor | None = None
    keep: int = 0

    def __post_init__(self) -> None:
        if self.reset_every is not None and self.reset_every < 1:
            raise GradhpoError(
                f"reset_every is {self.reset_every}; expected a number of steps >= 1, or None for no reset"
            )
        if self.radius is not None and not (torch.as_tensor(self.radius) > 0).all():
            raise GradhpoError(f"radius is {self.radius}; expected a length > 0, or None for no projection")

    def init(self, state: State, values: Values) -> Tangent:
        runs, weights = state.w.shape
        zero = state.w.new_zeros(runs, values.hypers.columns, weights)
        return Tangent(zero, {n: zero.clone() for n in state.buf})

    def curvature(self, ahead: int) -> bool:
        return True

    def observe(self, memory: Tangent, step: Step) -> Tangent:
        if self.reset_every and step.t % self.reset_every == 0:
            memory = Tangent(torch.zeros_like(memory.w), {n: torch.zeros_like(b) for n, b in memory.buf.items()})
        active = step.values.active()
        if active is None:
            new = step.push(memory)
        else:
            part = step.push(Tangent(memory.w[:, active], {n: b[:, active] for n, b in memory.buf.items()}), active)
            buf = {n: b.index_copy(1, active, part.buf[n]) for n, b in memory.buf.items()}
            new = Tangent(memory.w.index_copy(1, active, part.w), buf)
        return new if self.radius is None else self._project(new)

    def _project(self, z: Tangent) -> Tangent:
        norm = z.w.norm(dim=-1, keepdim=True)
        r = self.radius[:, None, None] if isinstance(self.radius, Tensor) else torch.full_like(norm, self.radius or 0.0)
        scale = r / torch.maximum(norm, r)
        return Tangent(z.w * scale, {n: b * scale for n, b in z.buf.items()})

    def hypergradient(self, memory: Tangent, recent: Sequence[Step], gv: Tensor) -> Tensor:
        return torch.einsum("rpd,rd->rp", memory.w, gv)


@dataclass(frozen=True)
class FirstOrder:
    """Z = -dg/draw: the first-order method without step size, for hyperparameters of the training loss (Clip paper,
    eq. 8 without eta).

    The hypergradient -<gV, dg/draw> ignores the step size and all earlier steps; `Forward(reset_every=1)` is the
    same times the learning rate.
    Cost: one mixed derivative a column (the price of a gradient); memory P D. Raises GradhpoError for
    hyperparameters of the update rule.
    """

    keep: int = 0

    def init(self, state: State, values: Values) -> Tensor:
        return state.w.new_zeros(len(state.w), values.hypers.columns, state.w.shape[1])

    def curvature(self, ahead: int) -> bool:
        return ahead == 0

    def observe(self, memory: Tensor, step: Step) -> Tensor:
        of_rule = [n for n in step.values.hypers.tuned if n in step.rule.hypers]
        if of_rule:
            raise GradhpoError(
                f"the first-order method tunes hyperparameters of the training loss only, and "
                f"{of_rule} belong to the rule {step.rule.name}; use Forward(reset_every=1)"
            )
        return -step.gradient_tangent(None, step.values.tangents()) if step.curvature else memory

    def hypergradient(self, memory: Tensor, recent: Sequence[Step], gv: Tensor) -> Tensor:
        return torch.einsum("rpd,rd->rp", memory, gv)
