"""A rule, an outer rule, an estimator and a task of one's own, and a training that uses all four.

The book's page `extend` shows the parts of this file between the markers; `test_extension` proves every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from gradhpo.core import Layout, State, Step, Tangent, batched
from gradhpo.errors import GradhpoError
from gradhpo.estimators.forward import Forward
from gradhpo.hypers import Hyper, Hypers, Values
from gradhpo.rules import Buffers, Rule
from gradhpo.train import Loop, Method, Run
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


# [rule]
def heavy_ball() -> Rule:
    """Polyak's heavy ball: v <- momentum v - lr g;  w <- w + v.

    As `sgd(weight_decay=False)` while the learning rate is constant; when it changes, the past steps in the buffer
    keep the rate that they were taken with.
    """

    def update(w: Tensor, buf: Buffers, g: Tensor, lam: Mapping[str, Tensor]) -> tuple[Tensor, Buffers]:
        v = lam["momentum"] * buf["v"] - lam["lr"] * g
        return w + v, {"v": v}

    return Rule("heavy_ball", hypers=("lr", "momentum"), buffers=("v",), update=update)


# [outer]
class RpropState(NamedTuple):
    """The sign of the last hypergradient that counted and the step size, both `[R, P]`."""

    sign: Tensor
    step: Tensor


@dataclass(frozen=True)
class Rprop:
    """Rprop (Riedmiller & Braun 1993), as in `torch.optim.Rprop`: a step size for every coordinate, which grows while
    the sign of the hypergradient stays and shrinks, without a step, when it turns."""

    first: float = 0.05
    grow: float = 1.2
    shrink: float = 0.5
    largest: float = 0.2

    def init(self, raw: Tensor) -> RpropState:
        return RpropState(torch.zeros_like(raw), torch.full_like(raw, self.first))

    def update(
        self, raw: Tensor, hypergradient: Tensor, state: RpropState, lam: Mapping[str, Tensor]
    ) -> tuple[Tensor, RpropState]:
        sign = hypergradient.sign()
        turned, stayed = sign * state.sign < 0, sign * state.sign > 0
        step = state.step * torch.where(turned, self.shrink, torch.where(stayed, self.grow, 1.0))
        sign, step = torch.where(turned, 0.0, sign), step.clamp(max=self.largest)
        return raw - step * sign, RpropState(sign, step)


# [estimator]
@dataclass(frozen=True)
class Forgetful:
    """Forward mode that forgets: Z_{t+1} = gamma dPhi/dx Z_t + dPhi/draw, so that a step k steps ago counts gamma^k.

    Equal to `Forward()` at gamma = 1. Cost and memory are those of `Forward`.
    """

    gamma: float = 0.99
    keep: int = 0  # it asks for none of the past steps

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise GradhpoError(f"gamma is {self.gamma}; expected a factor above 0 and at most 1")

    def init(self, state: State, values: Values) -> Tangent:
        return Forward().init(state, values)

    def curvature(self, ahead: int) -> bool:
        return True

    def observe(self, memory: Tangent, step: Step) -> Tangent:
        return step.push(Tangent(self.gamma * memory.w, {n: self.gamma * b for n, b in memory.buf.items()}))

    def hypergradient(self, memory: Tangent, recent: Sequence[Step], gv: Tensor) -> Tensor:
        return torch.einsum("rpd,rd->rp", memory.w, gv)


# [task]
class Digits:
    """Handwritten digits (scikit-learn's 8 x 8 pictures) in mini-batches, for any module from 64 inputs to 10 logits.

    Has the loss hyperparameter `l2`, which the validation loss leaves out.
    """

    stationary = False

    def __init__(self, module: nn.Module, batch: int = 64) -> None:
        x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
        self.train, self.val = (x[:1200] / 16, y[:1200]), (x[1200:] / 16, y[1200:])
        self.module, self.batch = module.double(), batch
        self.layout, self._loss = Layout.of(module), batched(module, cross_entropy)

    def init(self, runs: int) -> Tensor:
        """The module's own weights, once for each run: `[R, D]`."""
        return self.layout.flatten(dict(self.module.named_parameters())).repeat(runs, 1)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        x, y = self.train
        rows = torch.arange(t * self.batch, (t + 1) * self.batch, device=x.device) % len(x)
        return self._loss(w, x[rows], y[rows]) + 0.5 * (lam["l2"] * w * w).sum(-1)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self._loss(w, *self.val)


# [together]
def together(steps: int = 300) -> tuple[Hypers, Run]:
    """Three runs from three learning rates, with an L2 penalty for each of the four parameter tensors."""
    torch.manual_seed(0)
    task = Digits(nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)))
    tuned = [
        Hyper("lr", torch.tensor([0.001, 0.01, 0.1]), "log10", bounds=(1e-5, 0.3)),
        Hyper("momentum", 0.5, "sigmoid"),
        Hyper("l2", 1e-3, "log10", granularity="tensor"),
    ]
    hypers = Hypers(tuned, task.layout.sizes)
    loop = Loop(task, heavy_ball(), hypers, Method(Forgetful(0.99), Rprop(), every=10))
    return hypers, loop.advance(loop.start(task.init(runs=3)), steps)


# [end]
