"""Hyperparameters of the loss with a shape: every entry is tuned by a coordinate of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.estimators.forward import FirstOrder, Forward, Split
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.recursion.step import Step, initial_state
from problems import Net
from tools import hypergradient, relative

T = 6
W = torch.zeros(2, 21, dtype=torch.float64)
PART = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], dtype=torch.float64)


class Parts(Net):
    """A penalty on each of six pairs of weights; its factors are one hyperparameter of shape (2, 3), or six."""

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        factors = lam["part"] if "part" in lam else torch.cat([lam[f"part{k}"] for k in range(6)], 1)
        squares = w[:, :12].unflatten(1, (6, 2)).square().sum(2)
        return super().train_loss(w, {}, t) + (factors.square() * squares).sum(1)


def hypers(*more: Hyper, windows: int = 1, **options: Any) -> Hypers:
    part = Hyper("part", PART, "log10", windows=windows, shape=(2, 3), **options)
    return Hypers([Hyper("lr", 0.05, "log10"), *more, part], Net().layout.sizes, T)


@pytest.mark.parametrize("windows", [1, 2])
def test_forward_is_reverse_is_unrolled_is_differences(windows: int) -> None:
    rule, problem = sgd(), Parts()
    more = Hyper("momentum", 0.8, "sigmoid"), Hyper("weight_decay", 0.01, "log10", "tensor")
    case = problem, rule, hypers(*more, windows=windows), problem.init(2)
    exact = oracle.unrolled(*case, T)
    assert exact.shape == (2, 6 + 6 * windows) and (exact != 0).all()
    for estimator in (Forward(), Reverse(T), Reverse(T, "graph")):
        assert relative(hypergradient(*case, estimator, T), exact) < 1e-10
    assert relative(oracle.central_differences(*case, T, 1e-5), exact) < 1e-6


@pytest.mark.parametrize("estimator", [Forward(), Reverse(3), Neumann(3), FirstOrder()], ids=lambda e: type(e).__name__)
def test_entries_are_hyperparameters_of_their_own(estimator: Any) -> None:
    rule, problem, lr = sgd(momentum=False, weight_decay=False), Parts(), Hyper("lr", 0.05, tuned=False)
    sizes = problem.layout.sizes
    apart = Hypers([lr, *(Hyper(f"part{k}", x, "log10") for k, x in enumerate(PART.flatten().tolist()))], sizes)
    together = Hypers([lr, Hyper("part", PART, "log10", shape=(2, 3))], sizes)
    a, b = (hypergradient(problem, rule, h, problem.init(2), estimator, T) for h in (together, apart))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_the_loss_sees_the_entries_row_by_row() -> None:
    h = hypers()
    raw, fixed = h.init(W)
    values = h.at(raw, fixed)
    assert values.lam["part"].shape == (2, 6) and torch.allclose(values.lam["part"][1], PART.flatten())
    assert values.slope("part").shape == (2, 6) and values.tangents()["part"].shape == (2, 7, 6)
    cot = torch.arange(12, dtype=torch.float64).reshape(2, 6)
    assert torch.allclose(values.pull({"part": cot})[:, 1:], cot * values.slope("part"))
    step = Step(
        Parts(), sgd(momentum=False, weight_decay=False), values, initial_state(W + 1, sgd()), 0, curvature=True
    )
    assert step.g_lam["part"] is not None and step.g_lam["part"].shape == (2, 6)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, torch.full((2, 6), 0.5)),
        (PART, PART.flatten().expand(2, 6)),
        (PART.tolist(), PART.flatten().expand(2, 6)),
        (torch.stack([PART, 2 * PART]), torch.stack([PART.flatten(), 2 * PART.flatten()])),
    ],
)
def test_a_value_of_the_shape_or_one_a_run(value: Any, expected: Tensor) -> None:
    h = Hypers([Hyper("part", value, shape=(2, 3))], [21])
    assert torch.equal(h.init(W)[0], expected.double())
    fixed = Hypers([Hyper("part", value, shape=(2, 3), tuned=False)], [21])
    raw, natural = fixed.init(W)
    assert torch.equal(fixed.at(raw, natural).lam["part"], expected.double())


def test_some_entries_can_be_fixed() -> None:
    rule, problem = sgd(momentum=False, weight_decay=False), Parts()
    some = hypers(tuned=(1, 4))
    found = hypergradient(problem, rule, some, problem.init(2), Forward(), T)
    every = hypergradient(problem, rule, hypers(), problem.init(2), Forward(), T)
    torch.testing.assert_close(found, every[:, [0, 2, 5]], rtol=1e-12, atol=1e-15)
    raw, fixed = some.init(W)
    assert torch.equal(some.at(raw, fixed).lam["part"][:, [0, 2, 3, 5]], PART.flatten()[[0, 2, 3, 5]].expand(2, 4))


def test_bounds_hold_for_every_entry() -> None:
    h = Hypers([Hyper("part", 0.5, shape=(3,), bounds=(0.1, 0.9))], [21])
    assert h.clamp(torch.tensor([[-1.0, 0.5, 2.0]], dtype=torch.float64)).tolist() == [[0.1, 0.5, 0.9]]


BAD: dict[str, Any] = {
    r"part has a value of shape \(3, 2\); expected a number, \[2, 3\] or \[2, 2, 3\] \(one a run\)": lambda: Hypers(
        [Hyper("part", PART.T, shape=(2, 3))], [21]
    ).init(W),
    r"part = -1 is outside \(0, inf\)": lambda: Hypers([Hyper("part", -1.0, "log10", shape=(2, 3))], [21]).init(W),
    r"part has the shape \(3,\).*difference = 0": lambda: Hyper("part", 0.5, shape=(3,), difference=0.1),
    r"part has the shape \(3,\), granularity 'tensor'.*granularity 'global'": lambda: Hyper(
        "part", 0.5, granularity="tensor", shape=(3,)
    ),
    r"shape \(0,\).*at least one entry": lambda: Hyper("part", 0.5, shape=(0,)),
    r"split sensitivities are for hyperparameters of weights": lambda: hypergradient(
        Parts(), sgd(momentum=False, weight_decay=False), hypers(), Parts().init(2), Split(), T
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_shape_gets_one_clear_sentence(message: str) -> None:
    with pytest.raises(GradtuneError, match=message) as caught:
        BAD[message]()
    assert "\n" not in str(caught.value)
