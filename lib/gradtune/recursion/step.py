"""The recursion that every method shares: state, hyperparameters, and the first derivatives of one training step.

The members `next`, `push` and `pull` of a `Step` are, in this order::

    x_{t+1} = Phi_t(x_t, lam)
    Z_{t+1} = dPhi/dx Z_t + dPhi/draw                     forward mode, a column per hyperparameter
    (c_t, dL/draw) = c_{t+1}' (dPhi/dx, dPhi/draw)        reverse mode

The state `x_t` holds the weights `w [R, D]` of R independent runs and the optimiser's buffers. No estimator builds a
graph over a gradient itself: a step takes one gradient with `create_graph=True`, shared by all Hessian products of that
step. The gradient is taken with respect to the weights and the loss's own tuned hyperparameters together. As mixed
partial derivatives commute, one vector-Jacobian product with the pair (Z column, hyperparameter direction) gives
`H Z + dg/dlam` at the price of `H Z` alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.nets.second_order import counted, wanted
from gradtune.recursion.adjoints import Pulled, Taken
from gradtune.recursion.hypers import Hypers, Values
from gradtune.recursion.problems import Gradient, Problem, WithBatches, WithGradient, validation_gradient
from gradtune.recursion.products import REVERSE, Products, along
from gradtune.recursion.rules import Descent, Rule
from gradtune.recursion.rules import Tangent as RuleTangent
from gradtune.recursion.states import State, Tangent, cotangent, initial_state, wide

# torch's own first use of a dual number compiles its derivative formulas with the deprecated torch.jit, and says so
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)


class Step:
    """One training step `x -> Phi_t(x, lam)` and its first derivatives.

    Cost: a gradient; with `curvature` about one and a half. A Hessian product costs about two gradients:
    `gradient_tangent` takes one a column, `pull` takes one. Memory: one graph of the gradient until the step is
    dropped.

    The arguments are attributes of the same names. Weights in half precision stay so; the rule's buffers and arithmetic
    and all sensitivities are in float32 then.

    Args:
        problem: the task with its losses.
        rule: the update rule.
        values: the hyperparameters in force.
        state: the state before the step.
        t: number of the step.
        curvature: whether Hessian products are to follow, for which a graph is built over the gradient.
        products: in which mode they are taken; forward over reverse needs no graph.

    Attributes:
        base_rule: the update rule as given.
        rule: the update rule of this step, which a problem may change (`problems.Gradient`).
        lr_factor: what this step multiplies the learning rate by.
        w: the weights `[R, D]` before the step, a leaf of the graph.
        loss_lam: natural values of the hyperparameters that the rule does not read, `[R, 1 or D]` by name, also leaves.
        g: gradient `[R, D]` of the training loss with respect to the weights.
        g_lam: with `curvature`, the derivatives of the training loss with respect to its own tuned hyperparameters,
            `[R, 1 or D]` by name, without those declared with a `difference`.

    Raises:
        GradtuneError: the training loss does not use a tuned hyperparameter that the rule does not read either (seen
            with `curvature`).
    """

    def __init__(
        self,
        problem: Problem,
        rule: Rule,
        values: Values,
        state: State,
        t: int,
        *,
        curvature: bool,
        products: Products = REVERSE,
    ) -> None:
        self.problem, self.base_rule, self.values, self.state, self.t = problem, rule, values, state, t
        self.curvature, self.products = curvature, products
        self.w = state.w.detach().requires_grad_()
        self.loss_lam = {n: v.detach().requires_grad_() for n, v in values.lam.items() if n not in rule.hypers}
        graph = curvature and not self._forward
        with wanted() if graph else nullcontext():
            found = self._differentiated(self.w, self.loss_lam, self._smooth if curvature else {}, graph)
        self.g, self.rule, self.lr_factor = found.w, found.rule, found.lr_factor
        self._leaves, self._place = found.leaves or (self.w,), found.place
        self.g_lam = {n: g for n, g in zip(self._smooth, found.lam, strict=False) if g is not None}
        if self.g is None or len(self.g_lam) < len(found.lam):
            raise GradtuneError(
                f"hyperparameters {sorted(self._smooth)} must be used by the training loss "
                f"(the rule {rule.name} reads only {list(rule.hypers)}); "
                "use them there, or remove them from the tuned ones"
            )

    @property
    def _forward(self) -> bool:
        """Whether Hessian products are taken forward over reverse."""
        if self.products.forward is None:
            with wanted():
                here = self.w, self.loss_lam, self._smooth
                self.products.decide(lambda: self._differentiated(*here, True), (self.w, *self.loss_lam.values()))
        return bool(self.products.forward)

    @cached_property
    def _smooth(self) -> dict[str, Tensor]:
        """Tuned hyperparameters of the loss that autograd differentiates."""
        return {n: v for n, v in self.loss_lam.items() if n in self.values.hypers.smooth}

    def _differentiated(self, w: Tensor, lam: Mapping[str, Tensor], by: Mapping[str, Tensor], graph: bool) -> Gradient:
        """The gradients by `w` and `by` of this step's loss at the leaves `w` and `lam`."""
        own: WithGradient | None = getattr(self.problem, "train_gradient", None) and self.problem  # type: ignore[assignment]
        if own is not None:
            return own.train_gradient(w, lam, self.t, tuple(by.values()), self.base_rule, graph)
        loss = self.problem.train_loss(w, lam, self.t)
        inputs = (w, *by.values())
        g, *of_lam = torch.autograd.grad(loss, inputs, torch.ones_like(loss), create_graph=graph, allow_unused=True)
        return Gradient(g, tuple(of_lam), self.base_rule)

    def gradient_at(self, w: Tensor, lam: Mapping[str, Tensor]) -> Tensor:
        """Gradient `[R, D]` of this step's loss at other weights and loss hyperparameters, without a graph.

        Args:
            w: weights `[R, D]`.
            lam: natural values of some of the loss's hyperparameters, by name; the others stay as they are in this
                step.
        """
        w = w.detach().to(self.state.w.dtype).requires_grad_()
        return self._differentiated(w, {**self.loss_lam, **lam}, {}, False).w

    @cached_property
    def coupled(self) -> dict[str, Tensor]:
        """Derivatives dg/dlam `[R, D]` of the loss hyperparameters declared with a `difference`, by name.

        They are central differences with the same random numbers on both sides (Clip paper, Section 3.5.2, eq. 10).
        Cost: two gradients each.
        """
        slopes = {}
        for name, (low, high) in self.values.neighbours().items():
            rise = self.gradient_at(self.state.w, {name: high}) - self.gradient_at(self.state.w, {name: low})
            slopes[name] = wide(rise) / (high - low)
        return slopes

    @cached_property
    def next(self) -> State:
        """The state after the step, without a graph."""
        x = self.state
        with torch.no_grad():
            if isinstance(self.rule.update, Descent):
                d, buf = self._direction
                after = State(self.rule.update.along(x.w, d, self.values.lam), buf)
            else:
                after = State(*self.rule.update(x.w, x.buf, self.g.detach(), self.values.lam))
        return after if after.w.dtype == x.w.dtype else after.like(x)

    @cached_property
    def _direction(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The direction of the step and the buffers after it, of a rule that is a `rules.Descent`."""
        assert isinstance(self.rule.update, Descent)
        with torch.no_grad():
            return self.rule.update.direction(self.state.w, self.state.buf, self.g.detach(), self.values.lam)

    def rate_tangent(self, lam: Mapping[str, Tensor], slope: Tensor) -> Tensor:
        """Derivative `d w_{t+1} / d lr` times `slope`, `[R, D]`, of a step with hyperparameters `lam`.

        The weights and the gradient are fixed. It is `-slope d` for a step `w_{t+1} = w_t - lr d`, without the
        cancellation in `(w_{t+1} - w_t) / lr`. Cost: a product where `lam` are those of the step, else elementwise.
        """
        x, g = self.state, self.g.detach()
        with torch.no_grad():
            if isinstance(self.rule.update, Descent):
                own = lam is self.values.lam
                d = (self._direction if own else self.rule.update.direction(x.w, x.buf, g, lam))[0]
                return -(slope * d)
            with forward_ad.dual_level():
                lr = forward_ad.make_dual(lam["lr"], slope)
                w, _ = self.rule.update(x.w, x.buf, g, {**lam, "lr": lr})
                return _tangent(w)

    def with_curvature(self, to_state: bool = True) -> Step:
        """This step with a graph over its gradient, recomputed if it was taken without.

        The batch and the weights are the same. With `to_state=False` and no hyperparameter of the loss to
        differentiate, nothing goes through the gradient: the step itself is returned, as `pull(..., to_state=False)`
        needs no graph.

        Args:
            to_state: whether a `pull` to the state before the step is to follow.
        """
        if self._forward and (self.curvature or not self._smooth):
            return self
        stays = self._place is None or self._place.valid()
        if (self.curvature and stays) or not (to_state or self._smooth):
            return self
        return Step(
            self.problem, self.base_rule, self.values, self.state, self.t, curvature=True, products=self.products
        )

    def with_values(self, values: Values) -> Step:
        """This step with other hyperparameters of the rule, sharing its gradient."""
        other = copy.copy(self)
        other.values = values
        other.__dict__.pop("next", None)
        other.__dict__.pop("_rule_graph", None)
        other.__dict__.pop("_direction", None)
        return other

    def gradient_tangent(self, z: Tensor | None, lam_dot: Mapping[str, Tensor]) -> Tensor:
        """Tangent `H z + dg/dlam lam_dot` of the gradient, for every column.

        Cost: one Hessian product a column, and that of `coupled`.

        Args:
            z: tangent of the weights, `[R, A, D]`; None for 0.
            lam_dot: tangent of each tuned hyperparameter, `[R, A, 1 or D]` by name.

        Returns:
            The tangent `[R, A, D]`.
        """
        columns = len(z[0]) if z is not None else next(iter(lam_dot.values())).shape[1]
        loss_dot = {n: lam_dot[n] for n in self.g_lam}
        of_w: tuple[Tensor, ...] = (self.g,) if z is not None else ()
        outputs = of_w + tuple(self.g_lam.values())
        rows = []
        for p in range(columns):
            if self._forward:
                row_dot = {n: d[:, p].expand_as(self.loss_lam[n]).to(self.loss_lam[n]) for n, d in loss_dot.items()}
                rows.append(wide(self._along(None if z is None else z[:, p], row_dot)[0]))
                continue
            seeds = [z[:, p].to(self.g.dtype)] if z is not None else []
            seeds += [d[:, p].expand_as(self.g_lam[n]).to(self.g_lam[n].dtype) for n, d in loss_dot.items()]
            rows.append(wide(self._by(outputs, seeds)[0] if outputs else torch.zeros_like(self.w)))
        smooth = rows[0][:, None] if columns == 1 else torch.stack(rows, dim=1)
        for n, slope in self.coupled.items():
            smooth = smooth + lam_dot[n] * slope[:, None]
        return smooth

    def push(self, z: Tangent, lam_dot: Mapping[str, Tensor], g_dot: Tensor) -> Tangent:
        """Forward mode: push a sensitivity through the step, `dPhi/dx Z + dPhi/dlam lam_dot`.

        Cost: elementwise, as the tangent of the gradient is given.

        Args:
            z: sensitivity of the state before the step, A columns.
            lam_dot: tangent of each tuned hyperparameter, `[R, A, 1 or D]` by name.
            g_dot: tangent of the gradient, `[R, A, D]`, from `gradient_tangent`.

        Returns:
            The sensitivity of the state after the step.
        """
        if self.rule.tangent is not None:
            return self._push_written(self.rule.tangent, z, lam_dot, g_dot)
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual

            def lift(x: Tensor, x_dot: Tensor) -> Tensor:
                x, x_dot = wide(x), x_dot.expand(-1, -1, x.shape[-1]) if x_dot.shape[-1] < x.shape[-1] else x_dot
                return dual(x[:, None] if x_dot.shape[1] == 1 else x[:, None].expand_as(x_dot).contiguous(), x_dot)

            lam = {
                n: lift(v, lam_dot[n]) if n in lam_dot else v[:, None]
                for n, v in self.values.lam.items()
                if n in self.rule.hypers
            }
            buf = {n: lift(b, z.buf[n]) for n, b in self.state.buf.items()}
            w, buf = self.rule.update(lift(self.state.w, z.w), buf, lift(self.g.detach(), g_dot), lam)
            return Tangent(_tangent(w), {n: _tangent(b) for n, b in buf.items()})

    @torch.no_grad()
    def _push_written(self, tangent: RuleTangent, z: Tangent, lam_dot: Mapping[str, Tensor], g_dot: Tensor) -> Tangent:
        """`push` for a rule with a tangent of its own."""
        lam = {n: self.values.lam[n][:, None] for n in self.rule.hypers}
        w, buf = wide(self.state.w)[:, None], {n: wide(b)[:, None] for n, b in self.state.buf.items()}
        return Tangent(*tangent(w, buf, wide(self.g.detach())[:, None], lam, z.w, z.buf, g_dot, lam_dot))

    def pull(self, cot: State, *, to_state: bool = True) -> tuple[State, Tensor]:
        """Reverse mode: pull a cotangent of the state after the step back to the state before it.

        Cost: one Hessian product; with `to_state=False` none, unless the loss has tuned hyperparameters.

        Args:
            cot: cotangent of the state after the step.
            to_state: False where only the hyperparameters are asked for; the path through the gradient to the weights
                is then left out of the returned cotangent.

        Returns:
            The cotangent of the state before the step, and the step's share of `dL/draw`, `[R, P]`.
        """
        c_w, c_buf, c_g, c_lam = self._pulled(cot)
        c_lam |= {n: (c_g * slope).sum(-1, keepdim=True) for n, slope in self.coupled.items()}
        if self._forward and (to_state or self._smooth):
            of_w, of_loss = self._along(c_g, {})
            c_w = c_w + wide(of_w) if to_state else c_w
            c_lam.update(zip(self._smooth, of_loss, strict=True))
        elif to_state or self._smooth:
            back, of_lam = self._by((self.g,), (c_g.to(self.g.dtype),), tuple(self._smooth.values()), to_state)
            c_w = c_w + wide(back) if to_state else c_w
            c_lam.update(zip(self._smooth, of_lam, strict=True))
        return State(c_w, c_buf), self.values.pull(c_lam)

    def _pulled(self, cot: State) -> Pulled:
        """Pull a cotangent back through the rule alone."""
        tuned = [n for n in self.rule.hypers if n in self.values.hypers.tuned]
        if isinstance(self.rule.update, Descent) and self.rule.update.adjoint is not None:
            with torch.no_grad():
                return self.rule.update.adjoint(self._taken, cot.w, cot.buf, tuned)
        outputs, leaves = self._rule_graph
        grads = torch.autograd.grad(
            outputs, leaves, (cot.w, *cot.buf.values()), retain_graph=True, materialize_grads=True
        )
        buffers = dict(zip(self.state.buf, grads[2:], strict=False))
        return Pulled(grads[0], buffers, grads[1], dict(zip(tuned, grads[2 + len(buffers) :], strict=True)))

    @property
    def _taken(self) -> Taken:
        """The step as `adjoints` takes it, in float32 where the weights are in half precision."""
        assert isinstance(self.rule.update, Descent)
        x, g, lam = self.state, self.g.detach(), self.values.lam
        w = wide(x.w)
        d, new = self._direction if w is x.w else self.rule.update.direction(w, x.buf, wide(g), lam)
        return Taken(w, x.buf, wide(g), lam, d, new)

    def _along(self, w_dot: Tensor | None, lam_dot: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Tangents of the gradients by weights and loss hyperparameters along a direction of both."""
        counted()
        names, w_dot = tuple(self._smooth), None if w_dot is None else w_dot.to(self.w.dtype)
        return along(self.problem, self.w, self.loss_lam, self.t, names, w_dot, lam_dot)

    def _by(
        self, outputs: Sequence[Tensor], seeds: Sequence[Tensor], lam: tuple[Tensor, ...] = (), w: bool = True
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Pull seeds back through the graph of the gradient: to the weights `[R, D]`, and to `lam`."""
        inputs = (self._leaves if w else ()) + lam
        counted()
        if not all(x.requires_grad for x in outputs):  # the loss is linear
            pairs = [(x, s) for x, s in zip(outputs, seeds, strict=True) if x.requires_grad]
            if not pairs:
                return torch.zeros_like(self.w), [torch.zeros_like(x) for x in lam]
            outputs, seeds = zip(*pairs, strict=True)
        with nullcontext() if self._place is None else self._place.inside():
            grads = torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, materialize_grads=True)
        pieces = len(inputs) - len(lam)
        return (grads[0] if self._leaves[0] is self.w else _row(grads[:pieces])), grads[pieces:]

    @cached_property
    def _rule_graph(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Graph of the rule alone: outputs and leaves.

        The leaves are w, g, the buffers and, last, the rule's tuned hyperparameters.
        """
        tuned = [n for n in self.rule.hypers if n in self.values.hypers.tuned]
        with torch.enable_grad():
            w, g = (wide(x.detach()).requires_grad_() for x in (self.state.w, self.g))
            buf = {n: wide(b.detach()).requires_grad_() for n, b in self.state.buf.items()}
            lam = {n: v.detach().requires_grad_(n in tuned) for n, v in self.values.lam.items()}
            w_new, buf_new = self.rule.update(w, buf, g, lam)
        return (w_new, *buf_new.values()), (w, g, *buf.values(), *(lam[n] for n in tuned))


def _row(parts: Sequence[Tensor]) -> Tensor:
    """Return the pieces of one run's weights as a row `[1, D]`; no piece makes an empty row."""
    return torch.cat([p.reshape(-1) for p in parts])[None] if parts else torch.empty(1, 0)


def _tangent(x: Tensor) -> Tensor:
    primal, tangent = forward_ad.unpack_dual(x)
    return torch.zeros_like(primal) if tangent is None else tangent


__all__: Sequence[str] = [
    "Hypers",
    "Problem",
    "State",
    "Step",
    "Tangent",
    "Values",
    "WithBatches",
    "cotangent",
    "initial_state",
    "validation_gradient",
]
