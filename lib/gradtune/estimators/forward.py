"""Forward mode: the sensitivity Z = d state / d raw carried along the training steps.

    Forward()                    exact (OHO, Section 4; FDS, eq. 3 and 4, with windows declared by the hyperparameter)
    Forward(reset_every=K)       UnrollK (Franceschi et al. 2017; Clip paper, Section 3.2)
    Forward(radius=R)            ClipR (Clip paper, eq. 9 and Algorithm 1)
    Forward(product=0.01)        OHO with differences of gradients for Hessian products (OHO, Section 4)
    Forward(product="joint")     one difference in the weights and in a keep probability together
    Split()                      one sensitivity for all groups, as the program published with OHO does
    FirstOrder()                 Unroll1-gTgV (Luketina et al. 2016; Clip paper, Section 3.3)

Cost a step: one gradient with its graph and one Hessian product for each column in use. Memory: (1 + buffers) P D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune.recursion.step import State, Step, Tangent, Values


@dataclass(frozen=True)
class Forward:
    """Z_{t+1} = dPhi/dx Z_t + dPhi/draw, optionally set to 0 before every K-th step or projected on a ball.

    reset_every: K; steps 0, K, 2K, ... start from Z = 0, so that an outer update after every K steps sees K steps.
    None: never (exact).
    radius: each column is scaled by r / max(|dw/draw|, r) after every step; a number, or a tensor `[R]` with a
    radius a run. The norm covers dw/draw only;
        the buffers' rows are scaled with it, so that a clip changes the length of a hypergradient, not its
        direction. None: no projection.
    product_limit: c; the entries of H Z + dg/draw are clamped to [-c, c] before they enter Z (FDS, Appendix C: 10).
    product: None for exact Hessian products; a number e for differences of two gradients at w +- (e/|z|) z, without
        any graph: wrong by more than 100 % where the net has ReLU kinks between the two points. "joint": see
        `joint_product`.
    With `reset_every=1` it is the greedy method (horizon 1); as the radius grows or K reaches the horizon it becomes
    the exact one.
    """

    reset_every: int | None = None
    radius: float | Tensor | None = None
    product_limit: float | None = None
    product: float | str | None = None
    keep: int = 0

    def __post_init__(self) -> None:
        if self.reset_every is not None and self.reset_every < 1:
            raise GradtuneError(
                f"reset_every is {self.reset_every}; expected a number of steps >= 1, or None for no reset"
            )
        if self.radius is not None and not (torch.as_tensor(self.radius) > 0).all():
            raise GradtuneError(f"radius is {self.radius}; expected a length > 0, or None for no projection")
        for name in ("product_limit", "product"):
            value = getattr(self, name)
            if isinstance(value, str):
                if value != "joint":
                    raise unknown("product", value, ["joint"])
            elif value is not None and not value > 0:
                raise GradtuneError(f"{name} is {value}; expected a number > 0, or None")

    def init(self, state: State, values: Values) -> Tangent:
        return Tangent.zero(state, values.hypers.columns)

    def curvature(self, ahead: int) -> bool:
        return self.product is None

    def observe(self, memory: Tangent, step: Step) -> Tangent:
        active = step.values.active()
        lam_dot = step.values.tangents(active)
        if active is None:
            return self._advanced(memory, step, lam_dot)
        part = Tangent(memory.w[:, active], {n: b[:, active] for n, b in memory.buf.items()})
        part = self._advanced(part, step, lam_dot)
        buf = {n: b.index_copy(1, active, part.buf[n]) for n, b in memory.buf.items()}
        return Tangent(memory.w.index_copy(1, active, part.w), buf)

    def _advanced(self, z: Tangent, step: Step, lam_dot: Mapping[str, Tensor]) -> Tangent:
        reset = self.reset_every is not None and step.t % self.reset_every == 0
        if reset:
            z = Tangent(torch.zeros_like(z.w), {n: torch.zeros_like(b) for n, b in z.buf.items()})
        if self.product is None:
            g_dot = step.gradient_tangent(None if reset else z.w, lam_dot)  # H 0 need not be computed
        elif isinstance(self.product, str):
            g_dot = joint_product(step, z.w, lam_dot)
        else:
            g_dot = difference_product(step, z.w, lam_dot, self.product)
        if self.product_limit is not None:
            g_dot = g_dot.clamp(-self.product_limit, self.product_limit)
        z = step.push(z, lam_dot, g_dot)
        return z if self.radius is None else self._project(z)

    def _project(self, z: Tangent) -> Tangent:
        norm = z.w.norm(dim=-1, keepdim=True)
        r = self.radius[:, None, None] if isinstance(self.radius, Tensor) else torch.full_like(norm, self.radius or 0.0)
        scale = r / torch.maximum(norm, r)
        return Tangent(z.w * scale, {n: b * scale for n, b in z.buf.items()})

    def hypergradient(self, memory: Tangent, recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        return torch.bmm(memory.w, gv[:, :, None])[..., 0]


def difference_product(step: Step, z: Tensor, lam_dot: Mapping[str, Tensor], width: float) -> Tensor:
    """`H z + dg/dlam lam_dot`, `[R, A, D]`, by (g(w + e z, lam + e lam_dot) - g(w - e z, lam - e lam_dot)) / 2e with
    e = width / |z| (width where z = 0). Cost: two gradients a column, no graph; the error is of order e^2 for smooth
    losses, and the rounding error of g divided by e."""
    rows = []
    for p in range(z.shape[1]):
        norm = z[:, p].norm(dim=-1, keepdim=True)
        e = width / torch.where(norm > 0, norm, 1.0)
        ends = [
            step.gradient_at(
                step.state.w + sign * e * z[:, p],
                {n: v.detach() + sign * e * lam_dot[n][:, p] for n, v in step.loss_lam.items() if n in lam_dot},
            )
            for sign in (1, -1)
        ]
        rows.append((ends[0] - ends[1]) / (2 * e))
    return torch.stack(rows, dim=1)


def joint_product(step: Step, z: Tensor, lam_dot: Mapping[str, Tensor]) -> Tensor:
    """`H z + dg/dlam lam_dot`, `[R, 1, D]`, by (g(w + e z, p + e) - g(w - e z, p - e)) / 2e for one tuned
    hyperparameter p that is declared with a `difference` e (here z = dw/dp); the same random numbers at both ends.

    Cost: two gradients and no graph, where an exact product and a separate difference cost a graph, a Hessian product
    and two gradients. The error is of order e^2 in the weights and in p, and e |z| may be long; the noise of the masks,
    which fall apart at the two ends, is that of the separate difference.
    """
    between = step.values.neighbours()
    if len(between) != 1 or list(lam_dot) != list(between) or z.shape[1] != 1:
        raise GradtuneError(
            f"a joint difference needs one tuned hyperparameter, declared with a difference; tuned are {list(lam_dot)}"
        )
    ((name, (low, high)),) = between.items()
    here, slope = step.values.lam[name], lam_dot[name][:, 0]
    ends = [step.gradient_at(step.state.w + (p - here) / slope * z[:, 0], {name: p}) for p in (high, low)]
    return ((ends[0] - ends[1]) * (slope / (high - low)))[:, None]


@dataclass(frozen=True)
class Split(Forward):
    """One sensitivity for each hyperparameter, all its groups moved together; the share of a group in the
    hypergradient is that of its own weights, sum over the group of gV Z.

    This is what the program published with OHO does for "layerwise" hyperparameters. It differs from `Forward()`,
    the recursion for each group, in that the effect of a layer's hyperparameter on other layers is credited to those;
    for one group they agree. Cost and memory are those of a global hyperparameter, whatever the number of groups.
    """

    def init(self, state: State, values: Values) -> Tangent:
        if values.hypers.windowed:
            raise GradtuneError("split sensitivities have no time windows; use Forward(), or windows=1 throughout")
        return Tangent.zero(state, len(values.hypers.tuned))

    def observe(self, memory: Tangent, step: Step) -> Tangent:
        tuned = step.values.hypers.tuned
        lam_dot = {}
        for row, name in enumerate(tuned):
            slope = step.values.slope(name)
            lam_dot[name] = slope.new_zeros(len(slope), len(tuned), slope.shape[1])
            lam_dot[name][:, row] = slope
        return self._advanced(memory, step, lam_dot)

    def hypergradient(self, memory: Tangent, recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        shares = [values.grouped(n, memory.w[:, k] * gv) for k, n in enumerate(values.hypers.tuned)]
        return torch.cat(shares, dim=1)


@dataclass(frozen=True)
class FirstOrder:
    """Z = -dg/draw: the first-order method without step size, for hyperparameters of the training loss (Clip paper,
    eq. 8 without eta).

    The hypergradient -<gV, dg/draw> ignores the step size and all earlier steps; `Forward(reset_every=1)` is the
    same times the learning rate.
    Cost: one mixed derivative a column (the price of a gradient); memory P D. Raises GradtuneError for
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
            raise GradtuneError(
                f"the first-order method tunes hyperparameters of the training loss only, and "
                f"{of_rule} belong to the rule {step.rule.name}; use Forward(reset_every=1)"
            )
        return -step.gradient_tangent(None, step.values.tangents()) if step.curvature else memory

    def hypergradient(self, memory: Tensor, recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        return torch.bmm(memory, gv[:, :, None])[..., 0]
