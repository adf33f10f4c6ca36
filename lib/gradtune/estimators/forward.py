"""Forward mode: the sensitivity Z = d state / d raw carried along the training steps.

The methods of the papers are::

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
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune.recursion.products import Mode, check_mode
from gradtune.recursion.step import State, Step, Tangent, Values


@dataclass(frozen=True)
class Forward:
    """Forward mode: Z carried along, optionally set to 0 before every K-th step or projected on a ball.

    The recursion is `Z_{t+1} = dPhi/dx Z_t + dPhi/draw`. With `reset_every=1` it is the greedy method (horizon 1); as
    the radius grows or K reaches the horizon it becomes the exact one.

    Attributes:
        reset_every: K; steps 0, K, 2K, ... start from Z = 0, so that an outer update after every K steps sees K steps.
            None: never (exact).
        radius: r; each column is scaled by `r / max(|dw/draw|, r)` after every step. A number, or a tensor `[R]` with a
            radius a run. The norm covers dw/draw only, and the buffers' rows of a column are scaled with it. A clip
            shortens that column's entry of the hypergradient. For one hyperparameter this keeps the direction (Clip
            paper, Section 3.4); with several columns, which are clipped one by one, the direction changes. None: no
            projection.
        product_limit: c; the entries of `H Z + dg/draw` are clamped to [-c, c] before they enter Z (FDS, Appendix C:
            10). None: no clamp.
        product: None for exact Hessian products. A number e for differences of two gradients at `w +- (e/|z|) z`,
            without any graph (see `difference_product`); they are wrong by more than 100 % where the net has ReLU kinks
            between the two points. "joint": see `joint_product`.
        keep: 0, as it looks back on no step.
        mode: in which mode exact Hessian products are taken, as in `reverse.Reverse`.

    Raises:
        GradtuneError: `mode` is unknown, or goes with a `product`; `reset_every` is below 1; `radius`, `product_limit`
            or a number `product` is not > 0; or the name given as `product` is unknown.
    """

    reset_every: int | None = None
    radius: float | Tensor | None = None
    product_limit: float | None = None
    product: float | str | None = None
    keep: int = 0
    mode: Mode = field(default="reverse", repr=False)

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.mode != "reverse" and self.product is not None:
            raise GradtuneError(
                f"mode is {self.mode!r}, and products are differences of gradients ({self.product!r}); choose one"
            )
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

    @property
    def second_order(self) -> bool:
        return self.product is None

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
        r = (
            self.radius.reshape(-1, 1, 1)
            if isinstance(self.radius, Tensor)
            else torch.full_like(norm, self.radius or 0.0)
        )
        scale = r / torch.maximum(norm, r)
        return Tangent(z.w * scale, {n: b * scale for n, b in z.buf.items()})

    def hypergradient(self, memory: Tangent, recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        return _along(memory.w, gv)


def _along(z: Tensor, gv: Tensor) -> Tensor:
    """Return the products `z gv`, `[R, A]`, of columns `[R, A, D]` and a gradient `[R, D]`.

    With the gradient on the left, BLAS on a CPU is faster for several runs, and as fast for one.
    """
    return torch.bmm(gv[:, None], z.mT)[:, 0]


def difference_product(step: Step, z: Tensor, lam_dot: Mapping[str, Tensor], width: float) -> Tensor:
    """Tangent `H z + dg/dlam lam_dot` of the gradient, by central differences along each column.

    With `e = width / |z|` (`width` where z = 0) it is::

        (g(w + e z, lam + e lam_dot) - g(w - e z, lam - e lam_dot)) / 2e

    A hyperparameter that is declared with a `difference` stays as it is in these: its derivative is the difference over
    the declared width, with two gradients more.

    Cost: two gradients a column, no graph. The error is of order `e^2` for smooth losses, and the rounding error of g
    divided by e.

    Args:
        step: the step whose gradient is taken.
        z: tangent of the weights, `[R, A, D]`.
        lam_dot: tangent of each tuned hyperparameter, `[R, A, 1 or D]` by name.
        width: length of `e z`.

    Returns:
        The tangent `[R, A, D]`.
    """
    rows, apart = [], step.coupled
    for p in range(z.shape[1]):
        norm = z[:, p].norm(dim=-1, keepdim=True)
        e = width / torch.where(norm > 0, norm, 1.0)
        ends = [
            step.gradient_at(
                step.state.w + sign * e * z[:, p],
                {
                    n: v.detach() + sign * e * lam_dot[n][:, p]
                    for n, v in step.loss_lam.items()
                    if n in lam_dot and n not in apart
                },
            )
            for sign in (1, -1)
        ]
        rows.append((ends[0] - ends[1]) / (2 * e))
    out = torch.stack(rows, dim=1)
    for n, slope in apart.items():
        out = out + lam_dot[n] * slope[:, None]
    return out


def joint_product(step: Step, z: Tensor, lam_dot: Mapping[str, Tensor]) -> Tensor:
    """Tangent `H z + dg/dlam lam_dot` of the gradient, by one difference in the weights and a hyperparameter together.

    It is for one tuned hyperparameter p that is declared with a `difference` e. The two gradients use the same random
    numbers; with `z = dw/dp` here, the tangent for p is::

        (g(w + e z, p + e) - g(w - e z, p - e)) / 2e

    Cost: two gradients and no graph, where an exact product and a separate difference cost a graph, a Hessian product
    and two gradients. The error is of order `e^2` in the weights and in p, and `e |z|` may be long. The noise of the
    masks, which fall apart at the two ends, is that of the separate difference.

    Args:
        step: the step whose gradient is taken.
        z: sensitivity dw/draw of the weights, `[R, 1, D]`.
        lam_dot: tangent of p, `[R, 1, 1]` by name.

    Returns:
        The tangent `[R, 1, D]` for the raw coordinate of p.

    Raises:
        GradtuneError: what is tuned is not one hyperparameter that is declared with a `difference`.
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
    """One sensitivity for each hyperparameter, all its groups moved together.

    The share of a group in the hypergradient is that of its own weights, the sum over the group of `gV Z`. This is what
    the program published with OHO does for "layerwise" hyperparameters. It differs from `Forward()`, the recursion for
    each group, in that the effect of a layer's hyperparameter on other layers is credited to those; for one group they
    agree. The fields are those of `Forward`. Cost and memory are those of a global hyperparameter, whatever the number
    of groups.

    Raises:
        GradtuneError: `init` finds a hyperparameter with several time windows; and as for `Forward`.
    """

    def init(self, state: State, values: Values) -> Tangent:
        if any(b.hyper.shape for b in values.hypers.blocks.values()):
            raise GradtuneError("split sensitivities are for hyperparameters of weights; use Forward() for a shape")
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
    """The first-order method without step size, Z = -dg/draw (Clip paper, eq. 8 without eta).

    It is for hyperparameters of the training loss. The hypergradient `-<gV, dg/draw>` ignores the step size and all
    earlier steps; `Forward(reset_every=1)` is the same times the learning rate, for SGD without Nesterov's momentum.
    Cost: one mixed derivative a column (the price of a gradient) at the last step before an outer update. Memory: P D.

    Attributes:
        keep: 0, as it looks back on no step.
        mode: in which mode the mixed derivative is taken, as in `reverse.Reverse`.

    Raises:
        GradtuneError: `mode` is unknown; `observe` finds a tuned hyperparameter of the update rule.
    """

    keep: int = 0
    mode: Mode = field(default="reverse", repr=False)

    def __post_init__(self) -> None:
        check_mode(self.mode)

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
        return _along(memory, gv)
