"""Update rules: one optimiser step as a pure function of weights, buffers, gradient and hyperparameters.

A rule is written once. Estimators get its tangent and its adjoint by automatic differentiation of `update` alone, or
the tangent from the rule where it is written out. The loss enters only through the gradient `g`, so the curvature of
the loss is never part of a rule.

A rule is data: `update` and `tangent` are functions of a module, bound to their options by `functools.partial`, so that
it can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from gradtune.errors import GradtuneError
from gradtune.recursion import adjoints

Buffers = dict[str, Tensor]
Lam = Mapping[str, Tensor]
Update = Callable[[Tensor, Buffers, Tensor, Lam], tuple[Tensor, Buffers]]
Adjoint = Callable[[adjoints.Taken, Tensor, Buffers, Collection[str]], adjoints.Pulled]
Tangent = Callable[[Tensor, Buffers, Tensor, Lam, Tensor, Buffers, Tensor, Lam], tuple[Tensor, Buffers]]


@dataclass(frozen=True)
class Rule:
    """An optimiser step `(w, buffers, g, lam) -> (w, buffers)` that never mixes runs.

    A rule made from another by `dataclasses.replace(rule, update=...)` needs `tangent=None`, or one of its own.

    Attributes:
        name: the rule's name in messages.
        hypers: names of the hyperparameters that it reads from `lam`.
        buffers: names of the state `[R, D]` that it keeps beside the weights, all zero at the start.
        update: the step, on tensors that broadcast to `[R, D]` or `[R, A, D]`.
        counters: names of the state `[R, 1]` that it keeps once a run, all zero at the start. A counter of its own for
            each weight, `[R, D]`, will do as well.
        tangent: the derivative of `update` along `(w_dot, buffers_dot, g_dot, lam_dot)`, written out. It takes the
            arguments of `update` as `[R, 1, D]`, then their tangents `[R, A, D]`, with an entry of `lam_dot` for each
            tuned hyperparameter. None: forward-mode automatic differentiation of `update`, which gives the same in
            several times the passes over memory.
    """

    name: str
    hypers: tuple[str, ...]
    buffers: tuple[str, ...]
    update: Update
    counters: tuple[str, ...] = ()
    tangent: Tangent | None = None


@dataclass(frozen=True)
class Descent:
    """The update of a rule that goes along a direction: `w <- w - lr d`, where d does not depend on `lr`.

    Its derivative by the learning rate is `-d`, which costs nothing where the step has been taken.

    Attributes:
        direction: returns d and the new buffers, from the arguments of an update.
        adjoint: pulls cotangents of the weights and buffers after a step back, written out (`adjoints`). None:
            automatic differentiation.
    """

    direction: Update
    adjoint: Adjoint | None = None

    def __call__(self, w: Tensor, buf: Buffers, g: Tensor, lam: Lam) -> tuple[Tensor, Buffers]:
        """Take a step."""
        d, new = self.direction(w, buf, g, lam)
        return self.along(w, d, lam), new

    @staticmethod
    def along(w: Tensor, d: Tensor, lam: Lam) -> Tensor:
        """Return the weights after a step along d."""
        return w - lam["lr"] * d


def sgd(*, momentum: bool = True, weight_decay: bool = True, nesterov: bool = False) -> Rule:
    """Stochastic gradient descent as in `torch.optim.SGD` (dampening 0).

    Its hyperparameters are `lr`, `momentum` and `weight_decay`. A step is::

        v <- momentum v + g + weight_decay w
        w <- w - lr v                                          without nesterov
        w <- w - lr (g + weight_decay w + momentum v)          with nesterov

    Source: FDS, Section 3.3; OnePass, Appendix A.4, eq. 10.

    Args:
        momentum: False leaves out the buffer v and the hyperparameter `momentum`.
        weight_decay: False leaves out the decay term and the hyperparameter `weight_decay`.
        nesterov: whether the momentum is Nesterov's.

    Raises:
        GradtuneError: `nesterov` is set without `momentum`.
    """
    if nesterov and not momentum:
        raise GradtuneError("nesterov=True changes the momentum, and momentum=False leaves it out; drop one of the two")
    hypers = ("lr",) + ("momentum",) * momentum + ("weight_decay",) * weight_decay
    update = Descent(
        partial(_sgd, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov),
        partial(adjoints.sgd, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov),
    )
    tangent = partial(_sgd_tangent, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
    return Rule("sgd", hypers, ("v",) if momentum else (), update, tangent=tangent)


def _sgd(
    w: Tensor, buf: Buffers, g: Tensor, lam: Lam, *, momentum: bool, weight_decay: bool, nesterov: bool
) -> tuple[Tensor, Buffers]:
    d = g + lam["weight_decay"] * w if weight_decay else g
    if not momentum:
        return d, {}
    v = lam["momentum"] * buf["v"] + d
    return d + lam["momentum"] * v if nesterov else v, {"v": v}


def _sgd_tangent(
    w: Tensor,
    buf: Buffers,
    g: Tensor,
    lam: Lam,
    w_dot: Tensor,
    buf_dot: Buffers,
    g_dot: Tensor,
    lam_dot: Lam,
    *,
    momentum: bool,
    weight_decay: bool,
    nesterov: bool,
) -> tuple[Tensor, Buffers]:
    def plus(total: Tensor, name: str, x: Tensor, x_dot: Tensor, factor: int = 1) -> Tensor:
        """Add `factor (lam x)'` to `total`, by the product rule."""
        total = torch.addcmul(total, lam[name], x_dot, value=factor)
        return torch.addcmul(total, lam_dot[name], x, value=factor) if name in lam_dot else total

    d = torch.addcmul(g, lam["weight_decay"], w) if weight_decay else g
    d_dot = plus(g_dot, "weight_decay", w, w_dot) if weight_decay else g_dot
    if not momentum:
        return plus(w_dot, "lr", d, d_dot, -1), {}
    v, v_dot = torch.addcmul(d, lam["momentum"], buf["v"]), plus(d_dot, "momentum", buf["v"], buf_dot["v"])
    step, step_dot = v, v_dot
    if nesterov:
        step, step_dot = torch.addcmul(d, lam["momentum"], v), plus(d_dot, "momentum", v, v_dot)
    return plus(w_dot, "lr", step, step_dot, -1), {"v": v_dot}


def root(x: Tensor) -> Tensor:
    """Square root with derivative 0 at 0; the inner `where` keeps the infinite slope out of the derivative.

    Where nobody differentiates, torch's own gives the same bits in a third of the time.
    """
    if not (x.requires_grad or forward_ad._current_level >= 0 or is_functorch_wrapped_tensor(x)):
        return x.sqrt()
    nonzero = x != 0
    return torch.where(nonzero, torch.where(nonzero, x, 1.0).sqrt(), 0.0)


def sign(x: Tensor) -> Tensor:
    """Sign (-1, 0 or 1) with derivative 0; NaN stays NaN.

    `torch.sign` makes a NaN 0, and a diverged run would look calm.
    """
    return torch.where(x.isnan(), x, torch.sign(x))


def adam(*, weight_decay: bool = False, eps: float = 1e-8) -> Rule:
    """Adam (Kingma & Ba 2015) as in `torch.optim.Adam`, with the decay inside the gradient.

    Its hyperparameters are `lr`, `beta1`, `beta2` and `weight_decay`. With k the number of steps taken, this one
    included, a step is::

        d = g + weight_decay w
        m <- beta1 m + (1 - beta1) d
        v <- beta2 v + (1 - beta2) d^2
        w <- w - lr m / (1 - beta1^k) / (sqrt(v / (1 - beta2^k)) + eps)

    It differs from `adamw` in that the decay is normalised with the gradient. What is said there of the bias correction
    and of gradients that are zero holds here. Memory: 2 D.

    Args:
        weight_decay: False leaves out the decay term and the hyperparameter `weight_decay`.
        eps: added to the root of the second moment.
    """
    hypers = ("lr", "beta1", "beta2", *("weight_decay",) * weight_decay)
    adjoint = partial(adjoints.adam, weight_decay=weight_decay, decoupled=False, eps=eps)
    update = Descent(partial(_adam, weight_decay=weight_decay, eps=eps), adjoint)
    return Rule("adam", hypers, ("m", "v"), update, ("steps",))


def _adam(w: Tensor, buf: Buffers, g: Tensor, lam: Lam, *, weight_decay: bool, eps: float) -> tuple[Tensor, Buffers]:
    return _normalised(buf, g + lam["weight_decay"] * w if weight_decay else g, lam, eps)


def adamw(*, eps: float = 1e-8) -> Rule:
    """AdamW (Loshchilov & Hutter 2019) as in `torch.optim.AdamW`.

    Its hyperparameters are `lr`, `beta1`, `beta2` and `weight_decay`. With k the number of steps taken, this one
    included, a step is::

        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        w <- w - lr (m / (1 - beta1^k) / (sqrt(v / (1 - beta2^k)) + eps) + weight_decay w)

    Source: MetaOptimize, Algorithm 3, which prints no `eps`. Its eq. 57 is another rule: moments without the factors
    `1 - beta`, and a step along the moments before this gradient. The bias correction uses the betas in force, as if
    they had been constant. An entry whose gradients have all been zero has a normalised step of 0, with derivative 0.
    Memory: 2 D.

    Args:
        eps: added to the root of the second moment.
    """
    update = Descent(partial(_adamw, eps=eps), partial(adjoints.adam, weight_decay=True, decoupled=True, eps=eps))
    return Rule("adamw", ("lr", "beta1", "beta2", "weight_decay"), ("m", "v"), update, ("steps",))


def _adamw(w: Tensor, buf: Buffers, g: Tensor, lam: Lam, *, eps: float) -> tuple[Tensor, Buffers]:
    step, new = _normalised(buf, g, lam, eps)
    return step + lam["weight_decay"] * w, new


def _normalised(buf: Buffers, g: Tensor, lam: Lam, eps: float) -> tuple[Tensor, Buffers]:
    """Adam's normalised step and its new buffers."""
    b1, b2, steps = lam["beta1"], lam["beta2"], buf["steps"] + 1
    m = b1 * buf["m"] + (1 - b1) * g
    v = b2 * buf["v"] + (1 - b2) * g * g
    return m / (1 - b1**steps) / (root(v / (1 - b2**steps)) + eps), {"m": m, "v": v, "steps": steps}


def rmsprop(*, weight_decay: bool = True, decoupled: bool = False, eps: float = 1e-8) -> Rule:
    """RMSprop (Hinton 2012) as in `torch.optim.RMSprop` without momentum.

    Its hyperparameters are `lr`, `beta2` (torch's alpha, the decay of the squared gradients) and `weight_decay`. A step
    is::

        d = g + weight_decay w
        v <- beta2 v + (1 - beta2) d^2
        w <- w - lr d / (sqrt(v) + eps)

    With `decoupled=True` the decay stays outside the normalisation, as in `adamw`, from which the rule then differs by
    having neither momentum nor bias correction::

        v <- beta2 v + (1 - beta2) g^2
        w <- w - lr (g / (sqrt(v) + eps) + weight_decay w)

    Memory: D.

    Args:
        weight_decay: False leaves out the decay term and the hyperparameter `weight_decay`.
        decoupled: whether the decay stays outside the normalisation.
        eps: added to the root of the mean square.
    """
    update = Descent(partial(_rmsprop, weight_decay=weight_decay, decoupled=decoupled, eps=eps))
    return Rule("rmsprop", ("lr", "beta2", *("weight_decay",) * weight_decay), ("v",), update)


def _rmsprop(
    w: Tensor, buf: Buffers, g: Tensor, lam: Lam, *, weight_decay: bool, decoupled: bool, eps: float
) -> tuple[Tensor, Buffers]:
    decay = lam["weight_decay"] * w if weight_decay else torch.zeros_like(w)
    d = g if decoupled else g + decay
    v = lam["beta2"] * buf["v"] + (1 - lam["beta2"]) * d * d
    step = d / (root(v) + eps)
    return step + decay if decoupled else step, {"v": v}


def lion() -> Rule:
    """Lion (Chen et al. 2023) with decoupled weight decay.

    Its hyperparameters are `lr`, `beta1`, `beta2` and `weight_decay`. A step, whose sign uses the old m, is::

        w <- w - lr (sign(beta1 m + (1 - beta1) g) + weight_decay w)
        m <- beta2 m + (1 - beta2) g

    Source: MetaOptimize, eq. 69 and 70 (there beta1 is c and beta2 is rho). The sign has derivative 0, so that no
    curvature of the loss reaches the weights, and the betas have hypergradient 0. Memory: D.
    """
    return Rule("lion", ("lr", "beta1", "beta2", "weight_decay"), ("m",), Descent(_lion))


def _lion(w: Tensor, buf: Buffers, g: Tensor, lam: Lam) -> tuple[Tensor, Buffers]:
    direction = sign(lam["beta1"] * buf["m"] + (1 - lam["beta1"]) * g)
    m = lam["beta2"] * buf["m"] + (1 - lam["beta2"]) * g
    return direction + lam["weight_decay"] * w, {"m": m}


def _before(rule: Rule, change: Callable[[Tensor, float], Tensor], limit: float, name: str) -> Rule:
    """`rule` fed with a gradient changed by `change(g, limit)`."""
    if not limit > 0:
        raise GradtuneError(f"the gradient of the rule {rule.name} is clipped at {limit}; expected a number > 0")
    return replace(rule, name=f"{name} {rule.name}", update=partial(_fed, rule.update, change, limit), tangent=None)


def _fed(
    update: Update,
    change: Callable[[Tensor, float], Tensor],
    limit: float,
    w: Tensor,
    buf: Buffers,
    g: Tensor,
    lam: Lam,
) -> tuple[Tensor, Buffers]:
    return update(w, buf, change(g, limit), lam)


def clipped(rule: Rule, limit: float) -> Rule:
    """`rule` with every entry of the gradient clamped to [-limit, limit], as `torch.nn.utils.clip_grad_value_` does.

    In the sensitivity the mask of the clamp multiplies `H Z + dg/draw` after the Hessian product: a weight whose
    gradient is clipped feels nothing, and the Hessian is that of the loss. The program published with FDS clips
    gradients in this way, with the mask inside the product, `H (mask Z)`. FDS's Appendix C clips other things: the
    Hessian product (`Forward.product_limit`) and the hypergradient.

    Args:
        rule: the rule that is fed.
        limit: largest size of an entry.

    Raises:
        GradtuneError: `limit` is not > 0.
    """
    return _before(rule, _clamped, limit, "clipped")


def _clamped(g: Tensor, limit: float) -> Tensor:
    return g.clamp(-limit, limit)


def norm_clipped(rule: Rule, max_norm: float) -> Rule:
    """`rule` with the gradient of each run scaled to the length `max_norm` where it is longer.

    This is what `torch.nn.utils.clip_grad_norm_` does to one run. It differs from `clipped` in that it keeps the
    direction; its derivative removes the part of `H Z` along g.

    Args:
        rule: the rule that is fed.
        max_norm: largest length of a run's gradient.

    Raises:
        GradtuneError: `max_norm` is not > 0.
    """
    return _before(rule, _shortened, max_norm, "norm-clipped")


def _shortened(g: Tensor, max_norm: float) -> Tensor:
    norm = root((g * g).sum(-1, keepdim=True))
    return g * (max_norm / (norm + 1e-6)).clamp(max=1.0)
