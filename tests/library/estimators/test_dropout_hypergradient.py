"""The derivative in a keep probability by coupled masks (Clip paper, eq. 10): right on average, and with less noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method

UNITS = 3
X = torch.tensor([[1.0, -0.5, 0.8], [-0.7, 1.2, 0.4], [0.3, 0.9, -1.1], [1.4, 0.2, 0.6]], dtype=torch.float64)
Y = torch.tensor([0.9, -0.6, 0.2, 1.1], dtype=torch.float64)
SLOPE = torch.tensor([0.7, -0.4, 0.5], dtype=torch.float64)


class TinyNet:
    """y = v' tanh(U (m x)), R runs, dropout m on the three inputs (one mask a step for all rows); `coupled` masks use
    the same uniforms for every keep probability."""

    stationary = False

    def __init__(self, runs: int, coupled: bool = True, seed: int = 0) -> None:
        self.runs, self.coupled, self.seed, self.calls = runs, coupled, seed, 0

    def init(self) -> Tensor:
        first = 0.5 * torch.randn(UNITS * UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        return torch.cat([first, SLOPE]).expand(self.runs, -1)

    @staticmethod
    def loss(w: Tensor, mask: Tensor) -> Tensor:
        u, v = w[:, :-UNITS].unflatten(1, (UNITS, UNITS)), w[:, -UNITS:]
        hidden = (u[:, None] * (mask[:, None] * X)[:, :, None]).sum(-1).tanh()
        return ((hidden * v[:, None]).sum(-1) - Y).square().mean(1)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        self.calls += 1
        draw = 1000 * self.seed + t if self.coupled else 10**6 * (self.seed + 1) + self.calls
        uniform = torch.rand(self.runs, UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(draw))
        return self.loss(w, (uniform < lam["keep"].detach()) / lam["keep"].detach())

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.loss(w, torch.ones(len(w), UNITS, dtype=torch.float64))


def expected_gradient(p: Tensor) -> Tensor:
    """The gradient averaged over all masks with their probabilities, exactly, differentiable in p."""
    w, total = TinyNet(1).init().clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
    for kept in itertools.product((0.0, 1.0), repeat=UNITS):
        mask = torch.tensor([kept], dtype=torch.float64)
        chance = torch.where(mask == 1, p, 1 - p).prod()
        total = total + chance * TinyNet.loss(w, mask / p).sum()
    return torch.autograd.grad(total, w, create_graph=True)[0][0]


def slopes(runs: int, coupled: bool, difference: float) -> Tensor:
    """dg/dp at the start by differences, a row for each draw of the masks."""
    task = TinyNet(runs, coupled)
    hypers = Hypers([Hyper("lr", 0.1, tuned=False), Hyper("keep", 0.6, difference=difference)], [UNITS**2 + UNITS])
    loop = Loop(task, sgd(momentum=False, weight_decay=False), hypers, Method(Forward(), SGD(0.0)))
    return -loop.advance(loop.start(task.init()), 1).memory.w[:, 0] / 0.1


def test_coupled_differences_are_right_on_average_and_less_noisy_than_independent_ones() -> None:
    p, width = torch.tensor(0.6, dtype=torch.float64), 0.05
    exact = torch.autograd.functional.jacobian(expected_gradient, p)
    quotient = ((expected_gradient(p + width) - expected_gradient(p - width)) / (2 * width)).detach()
    assert (quotient - exact).norm() < 0.02 * exact.norm()  # of order width^2
    coupled, independent = slopes(10_000, True, width), slopes(10_000, False, width)
    for drawn in (coupled, independent):
        assert ((drawn.mean(0) - quotient).abs() < 4 * drawn.std(0) / len(drawn) ** 0.5).all()
    assert (coupled.mean(0) - exact).norm() < 0.15 * exact.norm()
    factor = float(independent.var(0).sum() / coupled.var(0).sum())
    print(f"coupled masks cut the variance of dg/dp by a factor of {factor:.1f} (difference {width})")
    assert factor > 3


def final_loss(keep: float, seed: int, runs: int, steps: int, lr: float) -> Tensor:
    task = TinyNet(runs, seed=seed)
    hypers = Hypers([Hyper("lr", lr, tuned=False), Hyper("keep", keep, tuned=False)], [UNITS**2 + UNITS])
    loop = Loop(task, sgd(momentum=False, weight_decay=False), hypers, Method())
    return task.val_loss(loop.advance(loop.start(task.init()), steps).state.w, {}, steps)


def test_the_hypergradient_of_a_training_agrees_with_a_long_monte_carlo() -> None:
    """d E[L_V(w_T)] / dp over 15 steps: forward mode with coupled masks, averaged over 5,000 trainings, against the
    difference of the mean final losses of 2 x 40,000 trainings."""
    steps, lr, width = 15, 0.04, 0.05
    task = TinyNet(5_000)
    hypers = Hypers([Hyper("lr", lr, tuned=False), Hyper("keep", 0.6, difference=0.02)], [UNITS**2 + UNITS])
    loop = Loop(task, sgd(momentum=False, weight_decay=False), hypers, Method(Forward(), SGD(1.0), every=steps))
    run = loop.advance(loop.start(task.init()), steps)
    each = 0.6 - run.raw[:, 0]
    ends = [torch.cat([final_loss(0.6 + s * width, k, 20_000, steps, lr) for k in (1, 2)]) for s in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * width)  # with common random numbers
    error = (float(each.var()) / len(each) + float(difference.var()) / len(difference)) ** 0.5
    assert error < 0.06 * abs(float(difference.mean()))
    assert abs(float(each.mean() - difference.mean())) < 4 * error + 0.03 * abs(float(difference.mean()))


def test_a_joint_difference_equals_the_sum_of_both_products_where_it_should() -> None:
    """With a small difference and masks that do not change between its ends, to the order of its square."""
    results = []
    for product in (None, "joint"):
        task = TinyNet(200)
        keep = Hyper("keep", 0.6, difference=1e-4)
        hypers = Hypers([Hyper("lr", 0.1, tuned=False), keep], [UNITS**2 + UNITS])
        loop = Loop(task, sgd(momentum=False, weight_decay=False), hypers, Method(Forward(product=product), SGD(0.0)))
        run = loop.advance(loop.start(task.init()), 8)
        results.append((run.state.w, run.memory.w[:, 0]))
    (w, exact), (same, joint) = results
    assert torch.equal(w, same)
    steady = (exact.norm(dim=1) < 50) & (joint.norm(dim=1) < 50)  # a mask that flips between the ends adds a jump
    assert steady.float().mean() > 0.9
    assert torch.allclose(exact[steady], joint[steady], rtol=1e-4, atol=1e-6)


def test_differences_of_gradients_take_the_declared_difference() -> None:
    """The width that suits the weights is no width for a keep probability, whose masks are steps."""
    results = []
    for product in (None, 1e-4):
        task = TinyNet(200)
        keep = Hyper("keep", 0.6, difference=0.05)
        hypers = Hypers([Hyper("lr", 0.1, "log10"), keep], [UNITS**2 + UNITS])
        loop = Loop(task, sgd(momentum=False, weight_decay=False), hypers, Method(Forward(product=product), SGD(0.0)))
        run = loop.advance(loop.start(task.init()), 6)
        results.append((run.state.w, run.memory.w))
    (w, exact), (same, differences) = results
    assert torch.equal(w, same) and exact[:, 1].abs().max() > 0.1
    assert torch.allclose(exact, differences, rtol=1e-5, atol=1e-7)


def test_a_joint_difference_needs_a_single_keep_probability() -> None:
    task = TinyNet(2)
    both = [Hyper("lr", 0.1), Hyper("keep", 0.6, difference=0.1)]
    loop = Loop(
        task, sgd(momentum=False, weight_decay=False), Hypers(both, [12]), Method(Forward(product="joint"), SGD(0.0))
    )
    with pytest.raises(GradtuneError, match="joint difference needs one tuned hyperparameter"):
        loop.advance(loop.start(task.init()), 1)
    with pytest.raises(GradtuneError, match="unknown product 'jiont'; did you mean 'joint'"):
        Forward(product="jiont")
