"""Property tests in float64: every estimator against autograd through the whole training and against central
differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradhpo import methods, oracle
from gradhpo.errors import GradhpoError
from gradhpo.estimators.forward import FirstOrder, Forward
from gradhpo.estimators.neumann import Neumann
from gradhpo.estimators.reverse import Reverse
from gradhpo.hypers import Granularity, Hyper, Hypers
from gradhpo.outer import SGD
from gradhpo.rules import Rule, sgd
from gradhpo.train import Loop, Method
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import Net

T = 7
GRANULARITIES: list[Granularity] = ["global", "tensor", "weight", (0, 0, 1, 1)]


def hypergradient(
    problem: Any, rule: Rule, hypers: Hypers, w: torch.Tensor, estimator: Any, steps: int = T, trace: bool = False
) -> torch.Tensor:
    """What an estimator hands to the outer rule after `steps` steps at the initial hyperparameters."""
    loop = Loop(problem, rule, hypers, Method(estimator, SGD(1.0), every=steps), trace=trace)
    start = loop.start(w)
    hypers.clamp = lambda raw: raw  # type: ignore[method-assign]
    return start.raw - loop.advance(start, steps).raw


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@st.composite
def cases(draw: st.DrawFn) -> tuple[Net, Rule, Hypers, torch.Tensor]:
    """A rule, hyperparameters of random transforms, granularities and windows, and random weights of one to three
    runs."""
    momentum, decay, loss = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    rule = sgd(momentum=momentum, weight_decay=decay, nesterov=momentum and draw(st.booleans()))
    ranges = {"lr": (0.01, 0.2), "momentum": (0.1, 0.9), "weight_decay": (1e-3, 0.3), "l2": (1e-3, 0.3)}
    names = list(rule.hypers) + ["l2"] * loss
    tuned = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    hypers = []
    for name in names:
        transform = "sigmoid" if name == "momentum" else draw(st.sampled_from(["identity", "log10", "log"]))
        granularity: Granularity = draw(st.sampled_from(GRANULARITIES))
        value = draw(st.floats(*ranges[name]))
        hypers.append(Hyper(name, value, transform, granularity, draw(st.integers(1, 4)), tuned=name in tuned))
    problem = Net(stationary=draw(st.booleans()), val_uses_l2=draw(st.booleans()))
    return (
        problem,
        rule,
        Hypers(hypers, problem.layout.sizes, T),
        problem.init(draw(st.integers(1, 3)), draw(st.integers(0, 99))),
    )


@settings(max_examples=25, deadline=None)
@given(cases())
def test_forward_is_reverse_is_unrolled(case: tuple[Net, Rule, Hypers, torch.Tensor]) -> None:
    exact = oracle.unrolled(*case, T)
    for estimator in (Forward(), Reverse(T), Reverse(T, "graph"), Forward(radius=1e6), Forward(reset_every=T)):
        assert relative(hypergradient(*case, estimator), exact) < 1e-10


@settings(max_examples=8, deadline=None)
@given(cases())
def test_unrolled_is_central_differences(case: tuple[Net, Rule, Hypers, torch.Tensor]) -> None:
    assert relative(oracle.central_differences(*case, T), oracle.unrolled(*case, T)) < 1e-6


@settings(max_examples=6, deadline=None)
@given(cases())
def test_runs_together_are_runs_alone(case: tuple[Net, Rule, Hypers, torch.Tensor]) -> None:
    problem, rule, hypers, w = case
    for estimator in (Forward(), Reverse(T), Neumann(3)):
        together = hypergradient(*case, estimator)
        alone = torch.cat([hypergradient(problem, rule, hypers, row[None], estimator) for row in w])
        assert relative(together, alone) < 1e-10


def usual(
    tuned: tuple[str, ...] = ("lr", "weight_decay"), momentum: float | None = None
) -> tuple[Net, Rule, Hypers, torch.Tensor]:
    """The full-batch net with log10 coordinates, one run."""
    problem = Net(stationary=True)
    hypers = [
        Hyper("lr", 0.1, "log10", tuned="lr" in tuned),
        Hyper("weight_decay", 0.05, "log10", tuned="weight_decay" in tuned),
    ]
    hypers += [Hyper("momentum", momentum, "sigmoid", tuned="momentum" in tuned)] if momentum else []
    return problem, sgd(momentum=momentum is not None), Hypers(hypers, problem.layout.sizes), problem.init(1)


def test_neumann_with_one_term_is_the_last_step_exactly() -> None:
    case = usual(("lr", "weight_decay", "momentum"), momentum=0.7)
    assert relative(hypergradient(*case, Neumann(1)), hypergradient(*case, Reverse(1))) < 1e-12


def test_neumann_becomes_exact_at_a_fixed_point_of_training() -> None:
    """Without momentum, at the minimum of the training loss, the error of i terms goes to zero like the powers of a
    contraction."""
    case = usual()
    problem, rule, hypers, w = case
    loop = Loop(problem, rule, hypers, methods.fixed(), trace=True)
    settled = loop.advance(loop.start(w), 20_000).state.w
    exact = hypergradient(problem, rule, hypers, settled, Forward(), 4000, trace=True)
    errors = [
        relative(hypergradient(problem, rule, hypers, settled, Neumann(i), 10), exact) for i in (5, 50, 500, 4000)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2 and errors[-1] < 1e-8


def test_clipping_shortens_and_never_turns_one_step() -> None:
    """After one step the projected hypergradient points as the exact one does, with |dw/draw| at most the radius."""
    case = usual()
    exact, clipped = (hypergradient(*case, e, 1) for e in (Forward(), Forward(radius=1e-3)))
    factors = clipped / exact
    assert (factors > 0).all() and (factors <= 1 + 1e-12).all() and (factors < 0.999).any()


def test_clip_becomes_exact_as_the_radius_grows() -> None:
    case = usual(momentum=0.5)
    exact = hypergradient(*case, Forward())
    errors = [relative(hypergradient(*case, Forward(radius=r)), exact) for r in (0.01, 0.1, 100.0)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-12


def test_reset_counts_the_last_k_steps_only() -> None:
    case = usual(momentum=0.5)
    assert relative(hypergradient(*case, Forward(reset_every=3), 9), hypergradient(*case, Reverse(3), 9)) < 1e-10


def test_first_order_is_one_unrolled_step_without_the_step_size() -> None:
    problem = Net(stationary=True)
    hypers = Hypers([Hyper("lr", 0.1, tuned=False), Hyper("l2", 0.05)], problem.layout.sizes)
    case = problem, sgd(momentum=False, weight_decay=False), hypers, problem.init(2)
    assert (
        relative(0.1 * hypergradient(*case, FirstOrder(), 3), hypergradient(*case, Forward(reset_every=1), 3)) < 1e-12
    )


def test_first_order_refuses_hyperparameters_of_the_rule() -> None:
    with pytest.raises(GradhpoError, match=r"\['lr', 'weight_decay'\] belong to the rule sgd"):
        hypergradient(*usual(), FirstOrder())


@pytest.mark.parametrize("estimator", [Forward(), Forward(reset_every=5, radius=0.5), Neumann(3), Reverse(5)], ids=repr)
def test_traced_is_eager_to_the_bit(estimator: Any) -> None:
    problem, rule, hypers, w = usual(("lr", "weight_decay", "momentum"), momentum=0.5)
    ends = []
    for trace in (False, True):
        loop = Loop(problem, rule, hypers, Method(estimator, SGD(0.05), every=5), trace=trace)
        ends.append(loop.advance(loop.start(w), 43))
    assert torch.equal(ends[0].raw, ends[1].raw) and torch.equal(ends[0].state.w, ends[1].state.w)
    assert not torch.equal(ends[0].raw, hypers.init(w)[0])


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
def test_going_on_is_never_having_stopped(trace: bool) -> None:
    problem, rule, hypers, w = usual(("lr", "weight_decay", "momentum"), momentum=0.5)
    loop = Loop(problem, rule, hypers, methods.onepass(3, 5), trace=trace)
    straight = loop.advance(loop.start(w), 60)
    halfway = loop.advance(loop.start(w), 25)
    again = Loop(problem, rule, hypers, methods.onepass(3, 5), trace=trace)
    assert torch.equal(again.advance(halfway, 35).raw, straight.raw)


@pytest.mark.parametrize(
    "method",
    [methods.onepass(), methods.oho(1e-2), methods.diff_through_opt(), methods.clip_r(5.0)],
    ids=["onepass", "oho", "reverse", "clip"],
)
def test_a_diverging_run_leaves_its_neighbours_alone(method: Method) -> None:
    """Three runs, the middle one with a learning rate that overflows: the others are unchanged to the last bit."""
    problem = Net(stationary=True)
    w = problem.init(3)

    def final(middle: float) -> Any:
        lr = torch.tensor([0.1, middle, 0.05], dtype=torch.float64)
        hypers = Hypers(
            [Hyper("lr", lr, "log10"), Hyper("weight_decay", 0.01, "log10"), Hyper("momentum", 0.5, "sigmoid")],
            problem.layout.sizes,
        )
        loop = Loop(problem, sgd(), hypers, method)
        return loop.advance(loop.start(w), 60)

    calm, wild = final(0.1), final(1e200)
    assert wild.state.w[1].isnan().any() and not calm.state.w.isnan().any()
    for keep in (0, 2):
        assert torch.equal(calm.state.w[keep], wild.state.w[keep]) and torch.equal(calm.raw[keep], wild.raw[keep])


def test_one_run_stays_nan_and_is_counted() -> None:
    from gradhpo.stats import mean_error

    assert mean_error([1.0, float("nan"), 3.0]) == (2.0, 1.0, 2, 1)
