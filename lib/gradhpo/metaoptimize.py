"""MetaOptimize (Algorithm 1): meta-parameters that minimise a discounted sum of future losses, by forward mode through
the coupled system of base and meta updates. For small problems.

    x_{t+1} = base(x_t, beta_t),   y_{t+1} = meta(y_t, H_t' g_t),   H_{t+1} = d base (X_t, Y_t)

`x` holds weights and buffers, `y` the meta-parameters `beta` and the buffers of the outer rule. Y, X and Q are the
discounted sums of dy_t, dx_t and dh_t / dbeta_tau over past tau (h: the columns of H, which are the weights' rows of
X), and one step is

    (Y, X, Q) <- G_t (gamma (Y, X, Q) + (1 - gamma) ((I, 0), 0, 0))                   (eq. 14)

with G_t the Jacobian of (y, x, h) -> (y, x, h), never formed: forward-mode products with one column at a time apply
it. As in the paper (eq. 47 and 63), inside the Jacobian of H_{t+1} the other rows of X and Y are constants.

Start: Y_0 = (I, 0), X_0 = Q_0 = 0. With the definitions' sums over tau >= 0 it would be Y_0 = 0; (I, 0) says that
beta had rested at beta_0 for ever before: a change at any tau < 0 is a change of beta_0, and these weigh gamma^t
together. So

    Y_t = (1 - gamma) sum_{0 <= tau < t} gamma^(t - tau - 1) dy_t/dbeta_tau + gamma^t dy_t/dbeta_0

and gamma = 1 is defined: the derivative by the initial beta, forward mode over all of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_map

from gradhpo.core import Problem, State, initial_state
from gradhpo.errors import GradhpoError, unknown
from gradhpo.hypers import Hypers, Values
from gradhpo.outer import Outer
from gradhpo.rules import Rule

LEVELS = ("full", "2x2", "L")


class Meta(NamedTuple):
    """y: meta-parameters, the raw coordinates `raw [R, P]` of the tuned hyperparameters, and the outer rule's state."""

    raw: Tensor
    outer: Any


class MetaRun(NamedTuple):
    """Everything that continues. t: steps taken; meta, base: y and x; fixed: natural values of the hyperparameters that
    are not tuned.

    Y, X, Q have a leading dimension P, one row for each column beta_tau is differentiated by: Y has the fields of
    `meta`, X those of `base` (X.w `[P, R, D]` are the columns of H), Q is `[P, P, R, D]` (None but at level "full").
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
    """Algorithm 1 for any update rule and any outer rule. Use `start`, then `advance` as often as wanted.

    hypers: the tuned ones are the meta-parameters: learning rates, scalar, blockwise or per weight, or any other
        hyperparameter of the rule, each in its coordinate ("log" is the paper's exponential map).
    gamma: discount, in (0, 1]. level: "full"; "2x2" leaves Q out (eq. 15); "L" also leaves out how the weights move
        the meta-parameters (eq. 16), which for a meta SGD keeps Y at its start.
    It differs from the Hessian-free `estimators.trace.Trace` by exact derivatives, Hessians included, and from
    `Forward()` with SGD by the discount and, but for "L", by the meta-parameters' own dynamics; at gamma = 1, level "L"
    and a meta step size near 0 its H is that of `Forward()`.
    Cost a step: "L", "2x2": P forward-mode products with a gradient; "full": P^2 of second order. Memory: (1 + buffers)
    P D, "full": P^2 D more. Losses and rule must have forward-mode derivatives (for "full", of second order).
    """

    problem: Problem
    rule: Rule
    hypers: Hypers
    outer: Outer
    gamma: float = 1.0
    level: str = "full"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise GradhpoError(f"the discount gamma is {self.gamma}; expected a number in (0, 1]")
        if self.level not in LEVELS:
            raise unknown("level of MetaOptimize", self.level, LEVELS)
        missing = [n for n in self.rule.hypers if n not in self.hypers.blocks]
        if missing:
            raise GradhpoError(f"the rule {self.rule.name} reads {missing}, which are not given; declare them as Hyper")
        of_loss = [n for n in self.hypers.tuned if n not in self.rule.hypers]
        if of_loss or self.hypers.windowed or not self.hypers.tuned:
            raise GradhpoError(
                f"MetaOptimize tunes hyperparameters of the rule {self.rule.name}, {list(self.rule.hypers)}, on the "
                f"training loss and without time windows; {list(self.hypers.tuned)} are tuned"
                f"{', in windows' * self.hypers.windowed}"
            )

    def start(self, w: Tensor) -> MetaRun:
        """A run from weights `w [R, D]` and the hyperparameters' initial values."""
        base = initial_state(w, self.rule)
        raw, fixed = self.hypers.init(base.w)
        meta, columns = Meta(raw, self.outer.init(raw)), raw.shape[1]

        def zeros(x: Tensor) -> Tensor:
            return x.new_zeros(columns, *x.shape)

        q = base.w.new_zeros(columns, columns, *base.w.shape) if self.level == "full" else None
        return MetaRun(0, meta, base, fixed, self._rest(meta, 1.0), tree_map(zeros, base), q)

    def advance(self, run: MetaRun, steps: int, watch: Callable[[MetaRun], None] | None = None) -> MetaRun:
        """`steps` more training steps, each followed by a meta update; `watch(run)` is called after each."""
        for _ in range(steps):
            run = self._step(run)
            if watch is not None:
                watch(run)
        return run

    def hypergradient(self, run: MetaRun) -> Tensor:
        """H_t' g_t `[R, P]` at a run's weights and coming batch: what the next step hands to the outer rule (eq. 6)."""
        return _dot(run.X.w, self._gradient(run.base.w, self._lam(run, run.meta.raw), run.t))

    def _lam(self, run: MetaRun, raw: Tensor) -> dict[str, Tensor]:
        return Values(self.hypers, raw, run.fixed, run.t).lam

    def _gradient(self, w: Tensor, lam: dict[str, Tensor], t: int) -> Tensor:
        of_loss = {n: v for n, v in lam.items() if n not in self.rule.hypers}
        return grad(lambda w: self.problem.train_loss(w, of_loss, t).sum())(w)

    def _rest(self, meta: Meta, weight: float) -> Meta:
        """`weight` times the derivative of y_t by beta_t itself: (I, 0), a row a column."""
        n = meta.raw.shape[1]
        eye = torch.eye(n, dtype=meta.raw.dtype, device=meta.raw.device)[:, None].expand(n, *meta.raw.shape)
        return Meta(weight * eye, tree_map(lambda x: x.new_zeros(n, *x.shape), meta.outer))

    def _step(self, run: MetaRun) -> MetaRun:
        """One pass of Algorithm 1. y_dot, x_dot: gamma (Y, X) + (1 - gamma) ((I, 0), 0), which G_t is applied to."""
        h, gamma = run.X.w, self.gamma
        y_dot = tree_map(lambda a, b: gamma * a + b, run.Y, self._rest(run.meta, 1 - gamma))
        x_dot = tree_map(lambda a: gamma * a, run.X)

        def base(meta: Meta, x: State) -> State:
            lam = self._lam(run, meta.raw)
            return State(*self.rule.update(x.w, x.buf, self._gradient(x.w, lam, run.t), lam))

        def meta(y: Meta, x: State, h: Tensor) -> Meta:
            lam = self._lam(run, y.raw)
            raw, outer = self.outer.update(y.raw, _dot(h, self._gradient(x.w, lam, run.t)), y.outer, lam)
            return Meta(self.hypers.clamp(raw), outer)

        def sensitivity(y: Meta, x: State, h: Tensor) -> Tensor:
            return _columns(base, (y, x), (y_dot, State(gamma * h, x_dot.buf))).w

        y, x = run.meta, run.base
        new = run._replace(t=run.t + 1, meta=meta(y, x, h), base=base(y, x))
        if self.level == "full":
            dots = (y_dot, x_dot, gamma * run.Q)  # type: ignore[operator]
            big_y, big_x, big_q = _columns(
                lambda y, x, h: (meta(y, x, h), base(y, x), sensitivity(y, x, h)), (y, x, h), dots
            )
            return new._replace(Y=big_y, X=big_x, Q=big_q)
        if self.level == "2x2":
            big_y, big_x = _columns(lambda y, x: (meta(y, x, h), base(y, x)), (y, x), (y_dot, x_dot))
        else:
            big_y, big_x = _columns(lambda y: meta(y, x, h), (y,), (y_dot,)), _columns(base, (y, x), (y_dot, x_dot))
        return new._replace(Y=big_y, X=big_x)


def _dot(h: Tensor, g: Tensor) -> Tensor:
    """H' g of every run, `[R, P]`, from the columns `h [P, R, D]`."""
    return torch.einsum("prd,rd->rp", h, g)


def _columns(f: Callable[..., Any], at: tuple[Any, ...], dots: tuple[Any, ...]) -> Any:
    """The Jacobian of `f` at `at` times each of the directions `dots` (a leading dimension in every tensor)."""
    return vmap(lambda *dot: jvp(f, at, dot)[1], randomness="same")(*dots)
