"""A traced loop on a problem that hands its batches over is the eager loop."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method
from problems import Net


class Handing(Net):
    """`Net` whose losses see their rows only through `batch`; four training batches, the last one shorter, and a
    validation batch that changes as well."""

    given: tuple[Tensor, ...] | None = None

    def batch(self, t: int) -> tuple[Tensor, ...]:
        rows, val = slice(3 * (t % 4), min(3 * (t % 4) + 3, 11)), slice(t % 3, t % 3 + 4)
        return self.x[rows], self.y[rows], self.val[0][val], self.val[1][val]

    def on(self, batch: tuple[Tensor, ...]) -> Handing:
        other = copy.copy(self)
        other.given = batch
        return other

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.loss(w, *(self.given or self.batch(t))[:2])

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.loss(w, *(self.given or self.batch(t))[2:])


class Steady(Handing):
    """The same with batches of one size."""

    def batch(self, t: int) -> tuple[Tensor, ...]:
        rows = slice(3 * (t % 4), 3 * (t % 4) + 3)
        return self.x[rows], self.y[rows], *self.val


def ends(problem: Any, method: Method, cuts: tuple[int, ...] = (8,)) -> list[Any]:
    """Eager and traced runs; methods on the training loss tune the learning rate alone."""
    more = method.outer_loss == "validation"
    decay, momentum = Hyper("weight_decay", 0.05, "log10", tuned=more), Hyper("momentum", 0.5, "sigmoid", tuned=more)
    hypers = Hypers([Hyper("lr", 0.1, "log10"), decay, momentum], problem.layout.sizes)
    out = []
    for trace in (False, True):
        loop = Loop(problem, sgd(), hypers, method, trace=trace)
        run = loop.start(problem.init(1))
        for steps in cuts:
            run = loop.advance(run, steps)
        out.append(run)
    return out


@pytest.mark.parametrize("method", [methods.oho(1e-2), methods.baydin()], ids=["forward", "trace"])
def test_traced_batches_are_eager_to_the_bit(method: Method) -> None:
    eager, traced = ends(Steady(), method, cuts=(3,))
    assert torch.equal(eager.raw, traced.raw) and torch.equal(eager.state.w, traced.state.w)


def test_batches_of_other_shapes_are_recorded_too() -> None:
    eager, traced = ends(Handing(), Method(Neumann(2), SGD(0.05), every=2))
    assert torch.equal(eager.raw, traced.raw) and torch.equal(eager.state.w, traced.state.w)


def test_stopping_between_updates_takes_earlier_batches_again() -> None:
    eager, traced = ends(Steady(), Method(Reverse(2), SGD(0.05), every=3), (2, 1))
    assert torch.equal(eager.raw, traced.raw) and torch.equal(eager.state.w, traced.state.w)


def test_without_batches_there_is_no_trace() -> None:
    problem = Net()
    with pytest.raises(GradtuneError, match=r"or a problem with batch\(t\) and on\(batch\); use trace=False"):
        Loop(problem, sgd(momentum=False, weight_decay=False), Hypers([Hyper("lr", 0.1)], [21]), methods.oho(), True)
