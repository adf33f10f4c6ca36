"""Outer rules: how a hypergradient moves the raw coordinates. Every run `[R, P]` keeps its own state; a NaN stays in
its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.recursion.rules import root, sign


class Outer(Protocol):
    """An outer rule: `init` gives its state, `update` the new raw coordinates and state."""

    def init(self, raw: Tensor) -> Any: ...

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, Any]: ...


def _check(lr: float) -> None:
    if not lr >= 0:
        raise GradtuneError(f"the outer learning rate is {lr}; expected a number >= 0")


@dataclass(frozen=True)
class SGD:
    """raw <- raw - lr hypergradient; with `times`, the rate is lr times the hyperparameter of that name (ClipR: c
    times the learning rate). No state."""

    lr: float
    times: str | None = None

    def __post_init__(self) -> None:
        _check(self.lr)

    def init(self, raw: Tensor) -> tuple[()]:
        return ()

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: tuple[()], lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, tuple[()]]:
        rate = self.lr if self.times is None else self.lr * lam[self.times]
        return raw - rate * hypergradient, state


class AdamState(NamedTuple):
    """First and second moments `[R, P]` and the number of updates, a tensor of no dimensions."""

    mean: Tensor
    square: Tensor
    updates: Tensor


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) with bias correction, as in `torch.optim.Adam`; OnePass uses lr 0.05 and the defaults.
    State: 2 P a run."""

    lr: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self.lr)

    def init(self, raw: Tensor) -> AdamState:
        return AdamState(torch.zeros_like(raw), torch.zeros_like(raw), raw.new_zeros(()))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: AdamState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, AdamState]:
        b1, b2 = self.betas
        count = state.updates + 1
        mean = b1 * state.mean + (1 - b1) * hypergradient
        square = b2 * state.square + (1 - b2) * hypergradient**2
        step = (mean / (1 - b1**count)) / (root(square / (1 - b2**count)) + self.eps)
        return raw - self.lr * step, AdamState(mean, square, count)


class LionState(NamedTuple):
    """Momentum `[R, P]`."""

    mean: Tensor


@dataclass(frozen=True)
class Lion:
    """Lion (Chen et al. 2023): raw <- raw - lr (sign(b1 M + (1 - b1) hypergradient) + weight_decay raw), then
    M <- b2 M + (1 - b2) hypergradient. State: P a run.

    Source: MetaOptimize, eq. 34 to 37 (there b1 is c and b2 is rho), which drops the weight decay. `new_momentum=True`
    puts the updated M inside the sign, as the package published with MetaOptimize does. Every coordinate moves by lr
    at each update, whatever the size of the hypergradient; `SignHalving` shortens that step where the sign turns.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    new_momentum: bool = False

    def __post_init__(self) -> None:
        _check(self.lr)

    def init(self, raw: Tensor) -> LionState:
        return LionState(torch.zeros_like(raw))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: LionState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, LionState]:
        b1, b2 = self.betas
        mean = b2 * state.mean + (1 - b2) * hypergradient
        direction = sign(b1 * (mean if self.new_momentum else state.mean) + (1 - b1) * hypergradient)
        return raw - self.lr * (direction + self.weight_decay * raw), LionState(mean)


class RMSpropState(NamedTuple):
    """Mean of the squared hypergradients `[R, P]`."""

    square: Tensor


@dataclass(frozen=True)
class RMSprop:
    """RMSprop (Hinton 2012) without momentum, as in `torch.optim.RMSprop`. State: P a run.

    It is `Adam` without its mean and bias corrections: the first steps are longer by 1 / sqrt(1 - alpha).
    """

    lr: float = 1e-3
    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self.lr)

    def init(self, raw: Tensor) -> RMSpropState:
        return RMSpropState(torch.zeros_like(raw))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: RMSpropState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, RMSpropState]:
        square = self.alpha * state.square + (1 - self.alpha) * hypergradient**2
        return raw - self.lr * hypergradient / (root(square) + self.eps), RMSpropState(square)


class SignState(NamedTuple):
    """Step sizes and signs of the last hypergradient, `[R, P]` each."""

    gamma: Tensor
    sign: Tensor


@dataclass(frozen=True)
class SignHalving:
    """The sign rule with halving (FDS, Appendix G, Algorithm 2): gamma <- gamma / 2 where the sign of the
    hypergradient turned since the update before (the product of both is -1; the printed s_o != s_{o-1} would also halve
    around a zero), then raw <- raw - gamma sign.

    gamma: initial step sizes in raw coordinates, a number or a tensor `[P]` (one a column). State: 2 P a run. As no
    step is longer than gamma, n updates stay in `search_range(raw0, n)`; `Lion` has no such range that shrinks to a
    point. Raises GradtuneError for a negative step size.
    """

    gamma: float | Tensor = 0.1

    def __post_init__(self) -> None:
        if not (torch.as_tensor(self.gamma) >= 0).all():
            raise GradtuneError(f"the step sizes gamma are {self.gamma}; expected numbers >= 0")

    def init(self, raw: Tensor) -> SignState:
        gamma = torch.as_tensor(self.gamma, dtype=raw.dtype, device=raw.device)
        if gamma.dim() and gamma.shape != raw.shape[1:]:
            raise GradtuneError(
                f"gamma has shape {tuple(gamma.shape)}; expected a number or [{raw.shape[1]}], one a tuned column"
            )
        return SignState(gamma.expand_as(raw).clone(), torch.zeros_like(raw))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: SignState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, SignState]:
        turn = sign(hypergradient)
        gamma = torch.where(turn * state.sign == -1, state.gamma / 2, state.gamma)
        return raw - gamma * turn, SignState(gamma, turn)

    def search_range(self, raw0: Tensor, updates: int) -> tuple[Tensor, Tensor]:
        """The lowest and highest raw coordinates that `updates` updates from `raw0 [..., P]` can reach (FDS,
        Appendix F: 10 updates of 0.1 from 0 search [-1, 1])."""
        reach = updates * torch.as_tensor(self.gamma, dtype=raw0.dtype, device=raw0.device).expand_as(raw0)
        return raw0 - reach, raw0 + reach


@dataclass(frozen=True)
class Multiplicative:
    """raw <- raw (1 - rate hypergradient): the multiplicative rule of hypergradient descent (Baydin et al. 2018),
    for a coordinate that is the hyperparameter itself (transform "identity"). No state.

    To first order it is `SGD(rate)` on the logarithm with a hypergradient that lacks the chain factor. With the
    normalised hypergradient of `Trace(normalised=True)`, at most 1 in size, and rate < 1 the hyperparameter keeps its
    sign.
    """

    rate: float

    def __post_init__(self) -> None:
        _check(self.rate)

    def init(self, raw: Tensor) -> tuple[()]:
        return ()

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: tuple[()], lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, tuple[()]]:
        return raw * (1 - self.rate * hypergradient), state


@dataclass(frozen=True)
class Exponentiated:
    """raw <- raw exp(-lr hypergradient), with `times` lr times the hyperparameter of that name: a gradient step on the
    logarithm of a positive coordinate (transform "identity") without the chain factor (exponentiated gradient, Kivinen
    & Warmuth 1997). No state.

    The hypergradient, hence also the sensitivity that an estimator may clip, stays that of the coordinate itself, and
    a step has the same effect in per cent wherever the coordinate is. With the transform "log", `SGD(lr)` has the chain
    factor: it stands still near 0. `Multiplicative` is its first order and can change the sign.
    """

    lr: float
    times: str | None = None

    def __post_init__(self) -> None:
        _check(self.lr)

    def init(self, raw: Tensor) -> tuple[()]:
        return ()

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: tuple[()], lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, tuple[()]]:
        rate = self.lr if self.times is None else self.lr * lam[self.times]
        return raw * torch.exp(-rate * hypergradient), state


@dataclass(frozen=True)
class Clipped:
    """An outer rule fed with hypergradients clamped to [-limit, limit] (FDS, Figure 3: 3; Figure 4: 1). Raises
    GradtuneError for a limit that is not > 0."""

    outer: Outer
    limit: float

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise GradtuneError(f"the hypergradient is clipped at {self.limit}; expected a number > 0")

    def init(self, raw: Tensor) -> Any:
        return self.outer.init(raw)

    def update(self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        return self.outer.update(raw, hypergradient.clamp(-self.limit, self.limit), state, lam)


class KeptState(NamedTuple):
    """The inner rule's state, and the last hypergradient `[R, P]` as it came in."""

    inner: Any
    hypergradient: Tensor


@dataclass(frozen=True)
class Kept:
    """An outer rule that also keeps the hypergradient of its last update in its state, for records and figures (FDS,
    Figures 2 and 7). With SGD(0.0) the hyperparameters stay as they are. State: P a run more."""

    outer: Outer

    def init(self, raw: Tensor) -> KeptState:
        return KeptState(self.outer.init(raw), torch.zeros_like(raw))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: KeptState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, KeptState]:
        raw, inner = self.outer.update(raw, hypergradient, state.inner, lam)
        return raw, KeptState(inner, hypergradient)


@dataclass(frozen=True)
class Masked:
    """An outer rule fed with 0 where the hypergradient is NaN or infinite: a coordinate whose training diverged stays
    where it is, and the next training may do better (FDS's program gives NaN the sign 0). Without it a NaN stays in its
    run for ever."""

    outer: Outer

    def init(self, raw: Tensor) -> Any:
        return self.outer.init(raw)

    def update(self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Mapping[str, Tensor]) -> tuple[Tensor, Any]:
        finite = torch.where(hypergradient.isfinite(), hypergradient, 0.0)
        return self.outer.update(raw, finite, state, lam)
