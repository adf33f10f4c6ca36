"""The parts that the book's page on extending shows: each against an independent computation, then all together."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from example_extension import Digits, Forgetful, Rprop, heavy_ball, together
from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.estimators import Estimator
from gradtune.estimators.forward import Forward
from gradtune.estimators.reverse import Reverse
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule, sgd
from gradtune.training.loop import Loop, Method

T = 5


@pytest.fixture(scope="module")
def task() -> Digits:
    torch.manual_seed(1)
    return Digits(nn.Sequential(nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 10)), batch=8)


def declared(task: Digits) -> Hypers:
    hypers = [
        Hyper("lr", 0.1, "log10", "tensor"),
        Hyper("momentum", 0.7, "sigmoid"),
        Hyper("l2", 0.05, "log10", (0, 0, 1, 1)),
    ]
    return Hypers(hypers, task.layout.sizes)


def hypergradient(task: Digits, rule: Rule, estimator: Estimator) -> torch.Tensor:
    """What the estimator hands to the outer rule after T steps, two runs."""
    loop = Loop(task, rule, declared(task), Method(estimator, SGD(1.0), every=T))
    start = loop.start(starts(task))
    return start.raw - loop.advance(start, T).raw


def starts(task: Digits) -> torch.Tensor:
    w = task.init(2)
    return w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(2), dtype=w.dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def test_the_hypergradient_is_exact(task: Digits) -> None:
    case = task, heavy_ball(), declared(task), starts(task), T
    exact = oracle.unrolled(*case)
    assert relative(oracle.central_differences(*case), exact) < 1e-6
    for estimator in (Forgetful(1.0), Forward(), Reverse(T)):
        found = hypergradient(task, heavy_ball(), estimator)
        assert relative(found, exact) < 1e-10


def test_heavy_ball_is_sgd_at_a_constant_learning_rate(task: Digits) -> None:
    ends = []
    for rule in (heavy_ball(), sgd(weight_decay=False)):
        loop = Loop(task, rule, declared(task), methods.fixed())
        ends.append(loop.advance(loop.start(starts(task)), T).state.w)
    assert relative(ends[0], ends[1]) < 1e-14


@pytest.mark.parametrize("gamma", [0.9, 0.3])
def test_forgetting_weighs_each_step_by_its_age(task: Digits, gamma: float) -> None:
    """The step k steps ago contributes what `Reverse(k + 1)` sees and `Reverse(k)` does not."""
    seen = [hypergradient(task, heavy_ball(), Reverse(k)) for k in range(1, T + 1)]
    shares = [seen[0], *(longer - shorter for shorter, longer in pairwise(seen))]
    expected = sum((gamma**k * share for k, share in enumerate(shares)), torch.zeros(()))
    assert relative(hypergradient(task, heavy_ball(), Forgetful(gamma)), expected) < 1e-10
    assert relative(expected, seen[-1]) > 1e-2


@pytest.mark.parametrize("gamma", [0.0, 1.5, float("nan")])
def test_forgetful_refuses_a_wrong_factor(gamma: float) -> None:
    with pytest.raises(GradtuneError, match=r"gamma = .*; expected it in \(0, 1\]"):
        Forgetful(gamma)


def test_rprop_is_that_of_torch() -> None:
    curvature = torch.tensor([[1.0, 30.0], [3.0, 0.1]])
    raw, rule = torch.tensor([[1.0, -2.0], [0.5, 4.0]]), Rprop(0.1, largest=0.5)
    theirs = raw.clone().requires_grad_()
    optimiser, state = torch.optim.Rprop([theirs], lr=0.1, step_sizes=(0.0, 0.5)), rule.init(raw)
    for _ in range(30):
        raw, state = rule.update(raw, curvature * raw, state, {})
        theirs.grad = curvature * theirs.detach()
        optimiser.step()
    torch.testing.assert_close(raw, theirs.detach())
    assert (state.step < 0.1).any()  # some signs have turned


def test_rprop_leaves_the_neighbours_of_a_diverged_run_alone() -> None:
    raw, rule = torch.zeros(2, 1), Rprop()
    moved, _ = rule.update(raw, torch.tensor([[float("nan")], [1.0]]), rule.init(raw), {})
    torch.testing.assert_close(moved[1], torch.tensor([-rule.first]))


def test_all_together_learn_better_than_the_rates_they_start_from() -> None:
    hypers, run = together()
    assert hypers.natural(run.raw)["l2"].shape == (3, 4)
    torch.manual_seed(0)
    task = Digits(nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)))
    tuned = task.val_loss(run.state.w, {}, 0)
    given = [Hyper("lr", torch.tensor([0.001, 0.01, 0.1]), "log10"), Hyper("momentum", 0.5, "sigmoid")]
    fixed = Loop(task, heavy_ball(), Hypers([*given, Hyper("l2", 1e-3)], task.layout.sizes), methods.fixed())
    assert (tuned < task.val_loss(fixed.advance(fixed.start(task.init(3)), run.t).state.w, {}, 0)).all()
