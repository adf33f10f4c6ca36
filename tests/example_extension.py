"""A rule, an outer rule, an estimator, a task, and a training with all four.

The book's page `extend` shows them (lines are short to fit it); every one is
proved in `test_extension`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradtune.errors import GradtuneError
from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.recursion.hypers import Hyper, Hypers, Values
from gradtune.recursion.rules import Buffers, Rule
from gradtune.recursion.step import State, Step, Tangent
from gradtune.training.loop import Loop, Method, Run


def heavy_ball() -> Rule:
    """Polyak's heavy ball: v <- momentum v - lr g;  w <- w + v.

    As `sgd(weight_decay=False)` while the learning rate is constant; when it
    changes, past steps in the buffer keep the rate they were taken with.
    """

    def update(
        w: Tensor,
        buf: Buffers,
        g: Tensor,
        lam: Mapping[str, Tensor],
    ) -> tuple[Tensor, Buffers]:
        v = lam["momentum"] * buf["v"] - lam["lr"] * g
        return w + v, {"v": v}

    return Rule("heavy_ball", ("lr", "momentum"), ("v",), update)


class RpropState(NamedTuple):
    """Sign of the last hypergradient that counted, step size: `[R, P]`."""

    sign: Tensor
    step: Tensor


@dataclass(frozen=True)
class Rprop:
    """Rprop (Riedmiller & Braun 1993), as in `torch.optim.Rprop`.

    Every coordinate has a step size of its own, which grows while the sign of
    the hypergradient stays and shrinks, without a step, when it turns.
    """

    first: float = 0.05
    grow: float = 1.2
    shrink: float = 0.5
    largest: float = 0.2

    def init(self, raw: Tensor) -> RpropState:
        step = torch.full_like(raw, self.first)
        return RpropState(torch.zeros_like(raw), step)

    def update(
        self,
        raw: Tensor,
        hypergradient: Tensor,
        state: RpropState,
        lam: Mapping[str, Tensor],
    ) -> tuple[Tensor, RpropState]:
        sign = hypergradient.sign()
        turned, stayed = sign * state.sign < 0, sign * state.sign > 0
        step = torch.where(stayed, self.grow * state.step, state.step)
        step = torch.where(turned, self.shrink * state.step, step)
        step = step.clamp(max=self.largest)
        sign = torch.where(turned, 0.0, sign)
        return raw - step * sign, RpropState(sign, step)


@dataclass(frozen=True)
class Forgetful:
    """Forward mode that forgets: Z_{t+1} = gamma dPhi/dx Z_t + dPhi/draw.

    A step k steps ago counts gamma^k; `Forward()` is the case gamma = 1.
    Cost and memory are those of `Forward`.
    """

    gamma: float = 0.99
    keep: int = 0  # it asks for none of the past steps

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise GradtuneError(f"gamma = {self.gamma}; expected it in (0, 1]")

    def init(self, state: State, values: Values) -> Tangent:
        return Tangent.zero(state, values.hypers.columns)

    def curvature(self, ahead: int) -> bool:
        return True

    def observe(self, memory: Tangent, step: Step) -> Tangent:
        buf = {name: self.gamma * b for name, b in memory.buf.items()}
        faded = Tangent(self.gamma * memory.w, buf)
        lam_dot = step.values.tangents()
        g_dot = step.gradient_tangent(faded.w, lam_dot)
        return step.push(faded, lam_dot, g_dot)

    def hypergradient(
        self,
        memory: Tangent,
        recent: Sequence[Step],
        gv: Tensor,
        values: Values,
    ) -> Tensor:
        return torch.einsum("rpd,rd->rp", memory.w, gv)


class Digits:
    """Handwritten digits (scikit-learn's 8 x 8 pictures) in mini-batches.

    For any module from 64 inputs to 10 logits. The training loss has the
    hyperparameter `l2`.
    """

    stationary = False

    def __init__(self, module: nn.Module, batch: int = 64) -> None:
        x, y = map(torch.as_tensor, load_digits(return_X_y=True))
        self.train = x[:1200] / 16, y[:1200]
        self.val = x[1200:] / 16, y[1200:]
        self.module, self.batch = module.double(), batch
        self.layout = Layout.of(module)
        self._loss = batched(module, cross_entropy)

    def init(self, runs: int) -> Tensor:
        """The module's own weights, once for each run: `[R, D]`."""
        named = dict(self.module.named_parameters())
        return self.layout.flatten(named).repeat(runs, 1)

    def train_loss(
        self,
        w: Tensor,
        lam: Mapping[str, Tensor],
        t: int,
    ) -> Tensor:
        x, y = self.train
        rows = torch.arange(self.batch, device=x.device) + t * self.batch
        rows = rows % len(x)
        penalty = 0.5 * (lam["l2"] * w * w).sum(-1)
        return self._loss(w, x[rows], y[rows]) + penalty

    def val_loss(
        self,
        w: Tensor,
        lam: Mapping[str, Tensor],
        t: int,
    ) -> Tensor:
        return self._loss(w, *self.val)


def together(steps: int = 300) -> tuple[Hypers, Run]:
    """Three runs from three learning rates; a penalty for each tensor."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    task = Digits(net)
    rates = torch.tensor([0.001, 0.01, 0.1])
    tuned = [
        Hyper("lr", rates, "log10", bounds=(1e-5, 0.3)),
        Hyper("momentum", 0.5, "sigmoid"),
        Hyper("l2", 1e-3, "log10", granularity="tensor"),
    ]
    hypers = Hypers(tuned, task.layout.sizes)
    method = Method(Forgetful(0.99), Rprop(), every=10)
    loop = Loop(task, heavy_ball(), hypers, method)
    return hypers, loop.advance(loop.start(task.init(runs=3)), steps)
