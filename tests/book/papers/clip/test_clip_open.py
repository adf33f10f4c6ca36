"""What Algorithm 1 of the Clip paper leaves open, tried on its quadratic toy: the numbers of the page on omissions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from gradtune.estimators.forward import Forward
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.recursion.step import Tangent
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.tasks.quadratic import Quadratic, sample


class OldSensitivity(Forward):
    """ClipR with the y of before the step and the validation gradient of after it."""

    def init(self, state: Any, values: Any) -> Any:
        y = super().init(state, values)
        return y, y

    def observe(self, memory: Any, step: Any) -> Any:
        return super().observe(memory[0], step), memory[0]

    def hypergradient(self, memory: Any, recent: Any, gv: Tensor, values: Any) -> Tensor:
        return super().hypergradient(memory[1], recent, gv, values)


@dataclass(frozen=True)
class OldHypergradient(SGD):
    """Both of before the step: every hypergradient is used one update later."""

    def init(self, raw: Tensor) -> Any:
        return torch.zeros_like(raw)

    def update(self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Any) -> tuple[Tensor, Any]:
        return super().update(raw, state, (), lam)[0], hypergradient


class WholeBall(Forward):
    """The buffers' rows count in the norm that is clipped."""

    def _project(self, z: Tangent) -> Tangent:
        norm = torch.cat([z.w, *z.buf.values()], dim=-1).norm(dim=-1, keepdim=True)
        return self._scaled(z, norm, 1.0)

    def _scaled(self, z: Tangent, norm: Tensor, of_buffers: float) -> Tangent:
        assert isinstance(self.radius, float)
        scale = self.radius / norm.clamp(min=self.radius)
        return Tangent(z.w * scale, {n: b * scale**of_buffers for n, b in z.buf.items()})


class BuffersAlone(WholeBall):
    """The norm is that of the weights' rows, and only those are shortened."""

    def _project(self, z: Tangent) -> Tangent:
        return self._scaled(z, z.w.norm(dim=-1, keepdim=True), 0.0)


@lru_cache(maxsize=1)
def toy() -> Quadratic:
    return sample(list(range(20)))


def trained(method: Method, momentum: float = 0.0) -> Run:
    """2000 steps of gradient descent at an effective learning rate of 1e-3 from a penalty of 0."""
    lr = Hyper("lr", 1e-3 * (1 - momentum), tuned=False)
    hypers = Hypers([lr, Hyper("momentum", momentum, tuned=False), Hyper("penalty", 0.0)], [20])
    loop = Loop(toy(), sgd(weight_decay=False), hypers, method, trace=True)
    return loop.advance(loop.start(torch.zeros_like(toy().h)), 2000)


def excess(run: Run) -> float:
    """Mean excess of the validation loss over its optimum in per cent."""
    return float(100 * (toy().val_loss(run.state.w) / toy().best_val_loss() - 1).mean())


@pytest.mark.parametrize("radius", [2.0, 5.0])
def test_the_order_of_the_updates_does_not_matter(radius: float) -> None:
    usual = trained(Method(Forward(radius=radius), SGD(0.1, "lr"))).raw
    for other in (
        Method(OldSensitivity(radius=radius), SGD(0.1, "lr")),
        Method(Forward(radius=radius), OldHypergradient(0.1, "lr")),
    ):
        gap = (trained(other).raw - usual).abs().max()
        assert 0 < gap < 1.05e-7


def test_the_ball_of_clipr_holds_the_weights_rows() -> None:
    ours, whole, alone = (
        excess(trained(Method(kind(radius=2.0), SGD(1.0, "lr")), momentum=0.9))
        for kind in (Forward, WholeBall, BuffersAlone)
    )
    assert ours == pytest.approx(0.0410, rel=0.01) and alone == pytest.approx(ours, rel=1e-3)
    assert whole == pytest.approx(35.1, rel=0.01)
