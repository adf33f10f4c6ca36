"""Traces: one vector `h [R, D]` in place of the sensitivity of the learning rate, without Hessian products.

The methods of the papers are::

    Trace()                                     Hessian-free MetaOptimize (Algorithm 3)
    Trace(direction="gradient")                 the form of h in the package published with MetaOptimize
    Trace(gamma=0)                              hypergradient descent (Baydin et al. 2018; MetaOptimize, Appendix B.2)
    Trace(gamma=0, direction="gradient", chain=False)     its form as a baseline of OnePass
    IDBD()                                      h with the diagonal of the Hessian (Sutton 1992; MetaOptimize, B.1)

Without Hessian products a weight feels no other weight, so the sensitivity of a learning rate that a group of weights
shares is nonzero on these weights only. The vectors of all groups therefore fit into one: scalar, blockwise and
per-weight learning rates cost the same. All are used with `Method(outer_loss="training")`: no validation set, no
further gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune.recursion.rules import root
from gradtune.recursion.step import State, Step, Values

# What makes a step differ from the normalised gradient: set to 0 for `direction="gradient"`.
_BEYOND_GRADIENT = ("momentum", "beta1", "weight_decay")


def _check(values: Values, name: str) -> None:
    tuned = values.hypers.tuned
    if tuned != ("lr",) or values.hypers.windowed:
        raise GradtuneError(
            f"{name} follows the learning rate alone, and {list(tuned)} are tuned"
            f"{' in time windows' * values.hypers.windowed}; tune 'lr', without windows, and declare the others with "
            "tuned=False, or use Forward()"
        )


def _taken(step: Step) -> Tensor:
    """Return the learning rate of the step as taken, with the factor of a schedule."""
    lr = step.values.lam["lr"]
    return lr if isinstance(step.lr_factor, float) and step.lr_factor == 1.0 else step.lr_factor * lr


@dataclass(frozen=True)
class Trace:
    """Discounted trace of the derivatives of the steps by the learning rate (MetaOptimize, Algorithm 3).

    After a step, with the gradient g of the outer loss, the trace and the hypergradient, summed over each group, are::

        h <- gamma (1 - lr weight_decay) h + dw_{t+1}/draw
        hypergradient = <h, g>

    It is `Forward()` without Hessian products and without the paths through the buffers, discounted: exact at gamma = 1
    for SGD without momentum on a linear loss. Cost: elementwise. Memory: D.

    Attributes:
        gamma: discount of past steps, in [0, 1]; 0 keeps the previous step alone (HD).
        direction: "step" differentiates the step as taken, with momentum and weight decay. "gradient" differentiates
            the step as it would be without both (momentum, beta1 and weight_decay 0), whose direction is minus the
            normalised gradient for AdamW and -g for SGD.
        chain: with False, h is the derivative by the learning rate itself, whatever its coordinate.
        normalised: divide by `|g| |h|` of each group, so that the hypergradient is a cosine (Baydin's multiplicative
            rule).
        keep: 0, as it looks back on no step.

    Raises:
        GradtuneError: `gamma` lies outside [0, 1], `direction` is unknown, or `init` finds that anything but "lr" is
            tuned or that "lr" has several time windows.
    """

    gamma: float = 1.0
    direction: str = "step"
    chain: bool = True
    normalised: bool = False
    keep: int = 0
    second_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise GradtuneError(f"the discount gamma is {self.gamma}; expected a number in [0, 1]")
        if self.direction not in ("step", "gradient"):
            raise unknown("direction", self.direction, ["step", "gradient"])

    def init(self, state: State, values: Values) -> Tensor:
        _check(values, "a trace")
        return torch.zeros_like(state.w)

    def curvature(self, ahead: int) -> bool:
        return False

    def observe(self, memory: Tensor, step: Step) -> Tensor:
        lam = step.values.lam
        slope = step.values.slope("lr") if self.chain else torch.ones_like(lam["lr"])
        plain = _BEYOND_GRADIENT if self.direction == "gradient" else ()
        taken = {n: torch.zeros_like(v) if n in plain else v for n, v in lam.items()} if plain else lam
        new = step.rate_tangent(taken, slope)
        if self.gamma == 0:
            return new
        decay = _taken(step) * lam["weight_decay"] if "weight_decay" in step.rule.hypers else 0.0
        return self.gamma * (1 - decay) * memory + new

    def hypergradient(self, memory: Tensor, recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        dot = values.grouped("lr", memory * gv)
        if not self.normalised:
            return dot
        length = root(values.grouped("lr", memory * memory) * values.grouped("lr", gv * gv))
        return torch.where(length == 0, 0.0, dot / length)


@dataclass(frozen=True)
class IDBD:
    """Trace with the diagonal c of the loss's Hessian, for a learning rate per weight (MetaOptimize, eq. 83 to 87).

    After a step, with the gradient g of the outer loss, the trace and the hypergradient of each weight are::

        h <- max(0, 1 - lr c) h + dw_{t+1}/draw
        hypergradient = h g

    The method is that of Sutton (1992) for the linear model `1/2 (a'w - b)^2`, where `c = a^2`. Here c comes from the
    problem: `curvature_diagonal(w, lam, t) -> [R, D]`. It is MetaOptimize's L-approximation for base and meta SGD with
    a diagonal Hessian, undiscounted, and with the `max` for stability; `Trace(gamma=1)` leaves out c. Cost:
    elementwise, and what c costs. Memory: D.

    Attributes:
        keep: 0, as it looks back on no step.

    Raises:
        GradtuneError: anything but one "lr" a weight, without time windows, is tuned; the problem has no
            `curvature_diagonal`; or the rule keeps buffers or reads other hyperparameters than "lr", unlike
            `sgd(momentum=False, weight_decay=False)`.
    """

    keep: int = 0
    second_order: ClassVar[bool] = False

    def init(self, state: State, values: Values) -> Tensor:
        _check(values, "IDBD")
        if values.hypers.blocks["lr"].groups != state.w.shape[1]:
            raise GradtuneError(
                f"IDBD has a learning rate per weight, and lr has granularity "
                f"{values.hypers.blocks['lr'].hyper.granularity!r}; use Hyper('lr', ..., granularity='weight')"
            )
        return torch.zeros_like(state.w)

    def curvature(self, ahead: int) -> bool:
        return False

    def observe(self, memory: Tensor, step: Step) -> Tensor:
        diagonal = getattr(step.problem, "curvature_diagonal", None)
        if diagonal is None:
            raise GradtuneError(
                f"IDBD needs the diagonal of the Hessian, and {type(step.problem).__name__} has no method "
                "curvature_diagonal(w, lam, t) -> [R, D]; add it, or use Trace(), which needs no curvature"
            )
        if step.rule.hypers != ("lr",) or step.rule.buffers:
            raise GradtuneError(
                f"IDBD is derived for plain gradient descent, and the rule {step.rule.name} reads "
                f"{list(step.rule.hypers)}; use sgd(momentum=False, weight_decay=False)"
            )
        c, lr = diagonal(step.state.w, step.loss_lam, step.t).detach(), _taken(step)
        new = step.rate_tangent(step.values.lam, step.values.slope("lr"))
        return (1 - lr * c).clamp(min=0.0) * memory + new

    def hypergradient(self, memory: Tensor, recent: Sequence[Step], gv: Tensor, values: Values) -> Tensor:
        return values.grouped("lr", memory * gv)
