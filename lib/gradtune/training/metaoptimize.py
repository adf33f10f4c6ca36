"""MetaOptimize (Algorithm 1): meta-parameters that minimise a discounted sum of future losses, for small problems.

The method is forward mode through the coupled system of base and meta updates::

    x_{t+1} = base(x_t, beta_t),   y_{t+1} = meta(y_t, H_t' g_t),   H_{t+1} = d base (X_t, Y_t)

`x` holds weights and buffers, `y` the meta-parameters `beta` and the buffers of the outer rule. `Y`, `X` and `Q` are
the discounted sums of `dy_t/dbeta_tau`, `dx_t/dbeta_tau` and `dh_t/dbeta_tau` over past `tau`. Here `h` stands for the
columns of `H`, which are the weights' rows of `X`. One step is, by eq. 14::

    (Y, X, Q) <- G_t (gamma (Y, X, Q) + (1 - gamma) ((I, 0), 0, 0))

with `G_t` the Jacobian of `(y, x, h) -> (y, x, h)`. It is never formed, but applied to one column at a time. As in the
paper (eq. 47 and 63), inside the Jacobian of `H_{t+1}` the other rows of `X` and `Y` are constants.

The start is `Y_0 = (I, 0)`, `X_0 = Q_0 = 0`. With the definitions' sums over `tau >= 0` it would be `Y_0 = 0`. The
choice `(I, 0)` says that `beta` had rested at `beta_0` for ever before: a change at any `tau < 0` is a change of
`beta_0`, and these weigh `gamma^t` together. So::

    Y_t = (1 - gamma) sum_{0 <= tau < t} gamma^(t - tau - 1) dy_t/dbeta_tau + gamma^t dy_t/dbeta_0

and `gamma = 1` is defined: the derivative by the initial `beta`, forward mode over all of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from gradtune.errors import GradtuneError, unknown
from gradtune.recursion.hypers import Hypers, Values
from gradtune.recursion.outer import Outer
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import Problem, State, initial_state

LEVELS = ("full", "2x2", "L")


class Meta(NamedTuple):
    """The meta state y of R runs.

    Attributes:
        raw: the meta-parameters, `[R, P]`: raw coordinates of the tuned hyperparameters.
        outer: the outer rule's state.
    """

    raw: Tensor
    outer: Any


class MetaRun(NamedTuple):
    """Everything that continues from one step to the next.

    `Y`, `X` and `Q` have a leading dimension P: one row for each coordinate of `beta_tau` that the derivative is taken
    by.

    Attributes:
        t: number of training steps taken.
        meta: the meta state y.
        base: the training state x, weights and buffers.
        fixed: natural values of the hyperparameters that are not tuned, `[R, groups, windows]` by name.
        Y: discounted sum of the derivatives of `meta` by past `beta_tau`, with its fields.
        X: the same of `base`, with its fields; `X.w [P, R, D]` are the columns of H.
        Q: the same of H, `[P, P, R, D]`; None but at level "full".
    """

    t: int
    meta: Meta
    base: State
    fixed: dict[str, Tensor]
    Y: Meta
    X: State
    Q: Tensor | None


@dataclass(frozen=True)
class MetaOptimize:
    """MetaOptimize (Algorithm 1) for any update rule and any outer rule.

    Use `start`, then `advance` as often as wanted.

    It differs from the Hessian-free `trace.Trace` by exact derivatives, Hessians included. It differs from
    `forward.Forward` with an SGD outer rule by the discount and, but for level "L", by the meta-parameters' own
    dynamics. At `gamma = 1`, level "L" and a meta step size near 0 its H is that of `Forward()`.

    Cost per step: P Hessian products at levels "L" and "2x2"; `P^2` products with third derivatives at level "full".

    Memory: (1 + buffers) P D, at level "full" `P^2 D` more, and the graph of a step.

    Attributes:
        problem: the task, of which the training loss is used.
        rule: the update rule of the weights, the base.
        hypers: the hyperparameters. The tuned ones are the meta-parameters: learning rates, scalar, blockwise or per
            weight, or any other hyperparameter of the rule, each in its coordinate ("log" is the paper's exponential
            map).
        outer: the outer rule that moves the meta-parameters.
        gamma: discount, in (0, 1].
        level: "full"; "2x2", which leaves Q out (Section 5; the paper gives it no equation); or "L", the
            L-approximation (eq. 15 and 16), which also leaves out how the weights move the meta-parameters and, for a
            meta SGD, keeps Y at its start.

    Raises:
        GradtuneError: `gamma` is outside (0, 1]; `level` is unknown; the rule reads a hyperparameter that is not given;
            or the tuned hyperparameters are none, belong to the loss or have time windows.
    """

    problem: Problem
    rule: Rule
    hypers: Hypers
    outer: Outer
    gamma: float = 1.0
    level: str = "full"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise GradtuneError(f"the discount gamma is {self.gamma}; expected a number in (0, 1]")
        if self.level not in LEVELS:
            raise unknown("level of MetaOptimize", self.level, LEVELS)
        missing = [n for n in self.rule.hypers if n not in self.hypers.blocks]
        if missing:
            raise GradtuneError(
                f"the rule {self.rule.name} reads {missing}, which are not given; declare them as Hyper"
            )
        of_loss = [n for n in self.hypers.tuned if n not in self.rule.hypers]
        if of_loss or self.hypers.windowed or not self.hypers.tuned:
            raise GradtuneError(
                f"MetaOptimize tunes hyperparameters of the rule {self.rule.name}, {list(self.rule.hypers)}, on the "
                f"training loss and without time windows; {list(self.hypers.tuned)} are tuned"
                f"{', in windows' * self.hypers.windowed}"
            )

    def start(self, w: Tensor) -> MetaRun:
        """Return a run at weights `w [R, D]` and the hyperparameters' initial values."""
        base = initial_state(w, self.rule)
        raw, fixed = self.hypers.init(base.w)
        meta, columns = Meta(raw, self.outer.init(raw)), raw.shape[1]

        def zeros(x: Tensor) -> Tensor:
            return x.new_zeros(columns, *x.shape)

        q = base.w.new_zeros(columns, columns, *base.w.shape) if self.level == "full" else None
        return MetaRun(0, meta, base, fixed, self._rest(meta, 1.0), tree_map(zeros, base), q)

    def advance(self, run: MetaRun, steps: int, watch: Callable[[MetaRun], None] | None = None) -> MetaRun:
        """Take `steps` more training steps, each followed by a meta update.

        Args:
            run: where to go on.
            steps: number of training steps.
            watch: called with the run after each step.

        Returns:
            The run after these steps.
        """
        for _ in range(steps):
            run = self._step(run)
            if watch is not None:
                watch(run)
        return run

    def hypergradient(self, run: MetaRun) -> Tensor:
        """Return `H_t' g_t`, `[R, P]`, which the next step hands to the outer rule (eq. 6).

        The gradient `g_t` is taken at the run's weights, on the coming batch.
        """
        return _dot(run.X.w, self._gradient(run.base.w, self._lam(run, run.meta.raw), run.t).detach())

    def _lam(self, run: MetaRun, raw: Tensor) -> dict[str, Tensor]:
        return Values(self.hypers, raw, run.fixed, run.t).lam

    def _gradient(self, w: Tensor, lam: dict[str, Tensor], t: int) -> Tensor:
        of_loss = {n: v for n, v in lam.items() if n not in self.rule.hypers}
        w = w if w.requires_grad else w.detach().requires_grad_()
        return torch.autograd.grad(self.problem.train_loss(w, of_loss, t).sum(), w, create_graph=True)[0]

    def _rest(self, meta: Meta, weight: float) -> Meta:
        """Return `weight` times the derivative of `y_t` by `beta_t` itself: (I, 0), one row for each coordinate."""
        n = meta.raw.shape[1]
        eye = torch.eye(n, dtype=meta.raw.dtype, device=meta.raw.device)[:, None].expand(n, *meta.raw.shape)
        return Meta(weight * eye, tree_map(lambda x: x.new_zeros(n, *x.shape), meta.outer))

    def _step(self, run: MetaRun) -> MetaRun:
        """Take one pass of Algorithm 1.

        `y_dot` and `x_dot` are gamma (Y, X) + (1 - gamma) ((I, 0), 0), to which the Jacobian `G_t` is applied.
        """
        gamma = self.gamma
        y_dot = tree_map(lambda a, b: gamma * a + b, run.Y, self._rest(run.meta, 1 - gamma))
        x_dot = tree_map(lambda a: gamma * a, run.X)

        def base(y: Meta, x: State) -> State:
            lam = self._lam(run, y.raw)
            return State(*self.rule.update(x.w, x.buf, self._gradient(x.w, lam, run.t), lam))

        def meta(y: Meta, x: State, h: Tensor) -> Meta:
            lam = self._lam(run, y.raw)
            raw, outer = self.outer.update(y.raw, _dot(h, self._gradient(x.w, lam, run.t)), y.outer, lam)
            return Meta(self.hypers.clamp(raw), outer)

        def joint(y: Meta, x: State, h: Tensor) -> tuple[Meta, State, Tensor]:
            x_new, x_dot_new = _columns(base, (y, x), (y_dot, State(gamma * h, x_dot.buf)))
            return meta(y, x, h), x_new, x_dot_new.w

        y, x, h = run.meta, run.base, run.X.w
        if self.level == "full":
            dots = (y_dot, x_dot, gamma * run.Q)  # type: ignore[operator]
            (y, x, _), new = _columns(joint, (y, x, h), dots)
        elif self.level == "2x2":
            (y, x), new = _columns(lambda y, x: (meta(y, x, h), base(y, x)), (y, x), (y_dot, x_dot))
        else:
            x_new, big_x = _columns(base, (y, x), (y_dot, x_dot))
            y, big_y = _columns(lambda y: meta(y, x, h), (y,), (y_dot,))
            x, new = x_new, (big_y, big_x)
        y, x, new = tree_map(torch.detach, (y, x, new))
        return MetaRun(run.t + 1, y, x, run.fixed, *new, *(() if self.level == "full" else (None,)))


def _dot(h: Tensor, g: Tensor) -> Tensor:
    """Return `H' g` of every run, `[R, P]`, from the columns `h [P, R, D]`."""
    return torch.einsum("prd,rd->rp", h, g)


def _columns(f: Callable[..., Any], at: tuple[Any, ...], dots: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return `f(*at)` and its Jacobian times each of the directions `dots`, a leading dimension in every tensor.

    The method is reverse mode twice: `u'J` is linear in `u`, and its derivative by `u` along a direction is `J` times
    it. Unlike torch's forward mode, this needs no other formulas than the backward pass of the loss, and may be nested:
    the result has a graph back to `at`.
    """
    with torch.enable_grad():
        leaves, spec = tree_flatten(at)
        leaves = [x if x.requires_grad else x.detach().requires_grad_() for x in leaves]
        values, out_spec = tree_flatten(f(*tree_unflatten(leaves, spec)))
        seeds = [torch.zeros_like(v, requires_grad=True) for v in values]
        live = [k for k, v in enumerate(values) if v.requires_grad]
        pulled = torch.autograd.grad(
            [values[k] for k in live], leaves, [seeds[k] for k in live], create_graph=True, materialize_grads=True
        )
        linear = [k for k, v in enumerate(pulled) if v.requires_grad]
        directions = tree_leaves(dots)
        pushed = [
            torch.autograd.grad(
                [pulled[k] for k in linear],
                seeds,
                [directions[k][p] for k in linear],
                create_graph=True,
                materialize_grads=True,
            )
            for p in range(len(directions[0]))
        ]
    columns = [torch.stack(rows) for rows in zip(*pushed, strict=True)]
    return tree_unflatten(values, out_spec), tree_unflatten(columns, out_spec)
