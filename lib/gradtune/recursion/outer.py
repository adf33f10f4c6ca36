"""Outer rules: how a hypergradient moves the raw coordinates.

Every run, a row of `[R, P]`, keeps its own state; a NaN stays in its run. The costs of state are given in numbers a
run, with P tuned coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.recursion.rules import root, sign


class Outer(Protocol):
    """An outer rule: `init` gives its state, `update` the new raw coordinates and state.

    `raw` and `hypergradient` are `[R, P]`. `lam` holds the natural values of the hyperparameters in force, by name.
    """

    def init(self, raw: Tensor) -> Any: ...

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, Any]: ...


def _check(lr: float) -> None:
    if not lr >= 0:
        raise GradtuneError(f"the outer learning rate is {lr}; expected a number >= 0")


def _mean(values: Tensor) -> Tensor:
    """Return values `[R, 1]` as they are, and the mean of values of each weight, `[R, D]`, as `[R, 1]`."""
    return values if values.shape[1] == 1 else values.mean(1, keepdim=True)


@dataclass(frozen=True)
class SGD:
    """Gradient descent on the raw coordinates, `raw <- raw - rate hypergradient`, without state.

    Attributes:
        lr: the rate, or the factor that multiplies the hyperparameter `times`; >= 0.
        times: name of a hyperparameter: the rate is `lr` times its value in force (ClipR: c times the learning rate),
            or its mean over the weights where it has groups. None: the rate is `lr`.

    Raises:
        GradtuneError: `lr` is negative.
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
        rate = self.lr if self.times is None else self.lr * _mean(lam[self.times])
        return raw - rate * hypergradient, state


class AdamState(NamedTuple):
    """State of `Adam`.

    Attributes:
        mean: first moments `[R, P]`.
        square: second moments `[R, P]`.
        updates: number of updates, a tensor of no dimensions.
    """

    mean: Tensor
    square: Tensor
    updates: Tensor


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) with bias correction, as in `torch.optim.Adam`.

    OnePass uses the learning rate 0.05 and the defaults. State: 2 P a run.

    Attributes:
        lr: learning rate in raw coordinates, >= 0.
        betas: decays of the first and the second moment.
        eps: added to the root of the second moment.

    Raises:
        GradtuneError: `lr` is negative.
    """

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
    """State of `Lion`.

    Attributes:
        mean: momentum `[R, P]`.
    """

    mean: Tensor


@dataclass(frozen=True)
class Lion:
    """Lion (Chen et al. 2023): steps of the same length in every coordinate, along the sign of a momentum.

    With the momentum M and `betas = (b1, b2)`, an update is::

        raw <- raw - lr (sign(b1 M + (1 - b1) hypergradient) + weight_decay raw)
        M   <- b2 M + (1 - b2) hypergradient

    Source: MetaOptimize, eq. 34 to 37 (there b1 is c and b2 is rho), which drops the weight decay. Every coordinate
    moves by `lr` at each update, whatever the size of the hypergradient; `SignHalving` shortens that step where the
    sign turns. State: P a run.

    Attributes:
        lr: learning rate in raw coordinates, >= 0.
        betas: b1 and b2.
        weight_decay: decay of the raw coordinates.
        new_momentum: True puts the updated M inside the sign, as the package published with MetaOptimize does.

    Raises:
        GradtuneError: `lr` is negative.
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
    """State of `RMSprop`.

    Attributes:
        square: mean of the squared hypergradients, `[R, P]`.
    """

    square: Tensor


@dataclass(frozen=True)
class RMSprop:
    """RMSprop (Hinton 2012) without momentum, as in `torch.optim.RMSprop`.

    It is `Adam` without its mean and bias corrections: the first steps are longer by `1 / sqrt(1 - alpha)`. State: P a
    run.

    Attributes:
        lr: learning rate in raw coordinates, >= 0.
        alpha: decay of the squared hypergradients.
        eps: added to the root of their mean.

    Raises:
        GradtuneError: `lr` is negative.
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
    """State of `SignHalving`.

    Attributes:
        gamma: step sizes `[R, P]`.
        sign: signs of the last hypergradient, `[R, P]`.
    """

    gamma: Tensor
    sign: Tensor


@dataclass(frozen=True)
class SignHalving:
    """The sign rule with halving (FDS, Appendix G, Algorithm 2).

    Where the sign of the hypergradient has turned since the update before, gamma is halved; then
    `raw <- raw - gamma sign`. The sign has turned where the product of both signs is -1. The printed condition
    `s_o != s_{o-1}` would also halve around a zero.

    As no step is longer than gamma, n updates stay in `search_range(raw0, n)`. As the sign keeps turning, the range
    still within reach shrinks to a point; that of `Lion` does not. State: 2 P a run.

    Attributes:
        gamma: initial step sizes in raw coordinates, a number or a tensor `[P]` (one a column).

    Raises:
        GradtuneError: a step size is negative, or `init` finds that the shape of `gamma` is not `[P]`.
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
        """Lowest and highest raw coordinates that a number of updates can reach.

        FDS, Section 5.4 and Appendix C: 10 updates of 0.1 from 0 search [-1, 1].

        Args:
            raw0: initial raw coordinates `[..., P]`.
            updates: number of updates.

        Returns:
            The lowest and the highest coordinates, of the shape of `raw0`.
        """
        reach = updates * torch.as_tensor(self.gamma, dtype=raw0.dtype, device=raw0.device).expand_as(raw0)
        return raw0 - reach, raw0 + reach


@dataclass(frozen=True)
class Multiplicative:
    """The multiplicative rule of hypergradient descent (Baydin et al. 2018): `raw <- raw (1 - rate hypergradient)`.

    It is for a coordinate that is the hyperparameter itself (transform "identity"). To first order it is `SGD(rate)` on
    the logarithm with a hypergradient that lacks the chain factor. The normalised hypergradient of
    `Trace(normalised=True)` is at most 1 in size; with it and a rate below 1 the hyperparameter keeps its sign. The
    rule has no state.

    Attributes:
        rate: relative step for a hypergradient of 1; >= 0.

    Raises:
        GradtuneError: `rate` is negative.
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
    """Exponentiated gradient (Kivinen & Warmuth 1997): `raw <- raw exp(-rate hypergradient)`, without state.

    It is a gradient step on the logarithm of a positive coordinate (transform "identity") without the chain factor. The
    hypergradient stays that of the coordinate itself, and so does the sensitivity, which an estimator may clip. A step
    has the same effect in per cent wherever the coordinate is.

    With the transform "log", `SGD(lr)` has the chain factor: it stands still near 0. `Multiplicative` is the first
    order of this rule and can change the sign.

    Attributes:
        lr: the rate, or the factor that multiplies the hyperparameter `times`; >= 0.
        times: name of a hyperparameter: the rate is `lr` times its value in force. None: the rate is `lr`.

    Raises:
        GradtuneError: `lr` is negative.
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
