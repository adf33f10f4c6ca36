"""Property tests in float64: every estimator against autograd through the whole training and against central
differences."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.estimators.forward import FirstOrder, Forward, Split
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.nets.second_order import counting
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Granularity, Hyper, Hypers, neighbours
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule, adamw, rmsprop, sgd
from gradtune.recursion.step import State, Step, validation_gradient
from gradtune.training.loop import Loop, Method
from problems import Net
from tools import hypergradient, relative

T = 7
GRANULARITIES: list[Granularity] = ["global", "tensor", "weight", (0, 0, 1, 1)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Net, Rule, Hypers, torch.Tensor]:
    """A rule, hyperparameters of random transforms, granularities and windows, and random weights of one to three
    runs."""
    momentum, decay, loss = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    of_sgd = sgd(momentum=momentum, weight_decay=decay, nesterov=momentum and draw(st.booleans()))
    # a large eps: with a small one the step turns within 1e-5 where a gradient is nearly 0, and differences see a chord
    of_rmsprop = rmsprop(weight_decay=decay, decoupled=momentum, eps=0.1)
    rule = draw(st.sampled_from([of_sgd, of_sgd, adamw(eps=0.1), of_rmsprop]))
    ranges = {"lr": (0.01, 0.2), "momentum": (0.1, 0.9), "weight_decay": (1e-3, 0.3), "l2": (1e-3, 0.3)}
    ranges |= {"beta1": (0.5, 0.95), "beta2": (0.8, 0.99)}
    names = list(rule.hypers) + ["l2"] * loss
    tuned = draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    hypers = []
    for name in names:
        transform = (
            "sigmoid" if name in ("momentum", "beta1", "beta2") else draw(st.sampled_from(["identity", "log10", "log"]))
        )
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


@settings(max_examples=20, deadline=None)
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


@pytest.mark.parametrize(
    ("method", "of_rule", "of_loss"),
    [
        (methods.onepass(5, every=T), 4, 5),
        (methods.lorraine(5, every=T), 4, 5),
        (methods.diff_through_opt(5, every=T), 4, 5),
        (methods.greedy(1e-9), 0, T),
        (methods.unroll_k(T), T - 1, T),
    ],
    ids=["onepass", "lorraine", "diff-through-opt", "greedy", "unroll"],
)
def test_methods_cost_the_hessian_products_they_say(method: Method, of_rule: int, of_loss: int) -> None:
    """For one tuned hyperparameter over T steps: the weight decay of the rule, or a penalty in the loss."""
    problem, w = Net(), Net().init(1)
    for name, products in (("weight_decay", of_rule), ("l2", of_loss)):
        fixed = [Hyper(n, 0.1, tuned=False) for n in ("lr", "momentum", "weight_decay") if n != name]
        loop = Loop(problem, sgd(), Hypers([*fixed, Hyper(name, 0.01, "log10")], problem.layout.sizes), method)
        with counting() as found:
            loop.advance(loop.start(w), T)
        assert found.count == products, name


def test_neumann_with_one_term_is_the_last_step_exactly() -> None:
    case = usual(("lr", "weight_decay", "momentum"), momentum=0.7)
    assert relative(hypergradient(*case, Neumann(1)), hypergradient(*case, Reverse(1))) < 1e-12


def test_fresh_neumann_takes_its_derivatives_at_the_weights_just_reached() -> None:
    """Against the three terms written out with the whole Hessian there."""
    problem, rule, hypers, w = usual()
    loop = Loop(problem, rule, hypers, methods.fixed())
    end = loop.advance(loop.start(w), T).state.w
    g, gv = (torch.func.grad(lambda x, f=f: f(x, {}, 0).sum())(end) for f in (problem.train_loss, problem.val_loss))
    hessian = torch.func.hessian(lambda x: problem.train_loss(x, {}, 0).sum())(end).squeeze()
    lr, decay, scale = 0.1, 0.05, torch.log(torch.tensor(10.0).to(w))
    jacobian = torch.eye(len(hessian)).to(w) * (1 - lr * decay) - lr * hessian
    direct = -scale * lr * torch.stack([(g + decay * end)[0], decay * end[0]])
    expected = sum(direct @ torch.linalg.matrix_power(jacobian, j).T @ gv[0] for j in range(3))
    found = hypergradient(problem, rule, hypers, w, Neumann(3, fresh=True))
    assert relative(found[0], expected) < 1e-12
    assert relative(found, hypergradient(problem, rule, hypers, w, Neumann(3))) > 1e-3


def test_neumann_becomes_exact_at_a_fixed_point_of_training() -> None:
    """Without momentum, at the minimum of the training loss, the error of i terms goes to zero like the powers of a
    contraction."""
    case = usual()
    problem, rule, hypers, w = case
    loop = Loop(problem, rule, hypers, methods.fixed(), trace=True)
    settled = loop.advance(loop.start(w), 8_000).state.w
    exact = hypergradient(problem, rule, hypers, settled, Forward(), 2000, trace=True)
    errors = [
        relative(hypergradient(problem, rule, hypers, settled, Neumann(i), 10), exact) for i in (5, 50, 500, 2000)
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
    number, tensor = (hypergradient(*case, Forward(radius=r)) for r in (0.1, torch.tensor(0.1, dtype=torch.float64)))
    assert torch.equal(number, tensor)


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
    with pytest.raises(GradtuneError, match=r"\['lr', 'weight_decay'\] belong to the rule sgd"):
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


# --- the forward mode's options ---------------------------------------------------------------------------------------


def test_differences_of_gradients_are_the_hessian_product_on_a_smooth_net() -> None:
    case = usual(("lr", "weight_decay", "momentum"), momentum=0.5)
    exact = hypergradient(*case, Forward())
    errors = [relative(hypergradient(*case, Forward(product=e)), exact) for e in (1e-1, 1e-2, 1e-3)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] and errors[2] < 1e-6  # of second order in the width


def test_a_limit_on_products_bites_and_lets_go() -> None:
    case = usual(momentum=0.5)
    exact = hypergradient(*case, Forward())
    assert torch.equal(hypergradient(*case, Forward(product_limit=1e6)), exact)
    assert relative(hypergradient(*case, Forward(product_limit=1e-4)), exact) > 1e-4


def layered(groups: Granularity) -> tuple[Net, Rule, Hypers, torch.Tensor]:
    problem = Net()
    hypers = [
        Hyper("lr", 0.1, "log10", groups),
        Hyper("weight_decay", 0.05, granularity=groups),
        Hyper("momentum", 0.5, tuned=False),
    ]
    return problem, sgd(), Hypers(hypers, problem.layout.sizes), problem.init(2)


def test_split_shares_sum_to_the_global_hypergradient_and_are_not_the_layers_own() -> None:
    split = hypergradient(*layered("tensor"), Split()).view(2, 2, 4)
    exact = hypergradient(*layered("tensor"), Forward()).view(2, 2, 4)
    whole = hypergradient(*layered("global"), Forward())
    assert relative(split.sum(-1), whole) < 1e-12 and relative(exact.sum(-1), whole) < 1e-12
    assert relative(split, exact) > 1e-2
    assert relative(hypergradient(*layered("global"), Split()), whole) < 1e-12


def test_neighbouring_layers_form_groups() -> None:
    names = ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight"]
    assert neighbours(names, 1) == (0,) * 5
    assert neighbours(names, 2) == (0, 0, 0, 0, 1)
    assert neighbours(names, 3) == (0, 0, 1, 1, 2)
    with pytest.raises(GradtuneError, match="4 groups were asked of 3 layers; expected 1 to 3"):
        neighbours(names, 4)


class Kept:
    """A linear model whose inputs are kept with probability `keep`; `t` draws the uniform numbers of the mask."""

    stationary = False

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(1)
        self.x = torch.randn(8, 5, generator=rng, dtype=torch.float64)
        self.y = torch.randn(8, generator=rng, dtype=torch.float64)

    def train_loss(self, w: torch.Tensor, lam: Any, t: int) -> torch.Tensor:
        u = torch.rand(len(w), 8, 5, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        mask = (u < lam["keep"][:, :, None]).to(w) / lam["keep"][:, :, None].detach()
        return ((self.x * mask * w[:, None]).sum(-1) - self.y).square().mean(-1)

    def val_loss(self, w: torch.Tensor, lam: Any, t: int) -> torch.Tensor:
        return (w @ self.x.T - self.y).square().mean(-1)


def test_coupled_differences_average_to_the_derivative_of_the_expected_gradient() -> None:
    """E over masks of the gradient of a linear model is known: 2/n (X'(Xw - y) + (1/p - 1) diag(X'X) w)."""
    p, problem, runs = 0.6, Kept(), 4000
    hypers = Hypers([Hyper("lr", 0.1, tuned=False), Hyper("keep", p, difference=0.05)], [5])
    w = torch.tensor([[0.3, -0.5, 0.8, 0.1, -0.9]], dtype=torch.float64)
    raw, fixed = hypers.init(w)
    rule = sgd(momentum=False, weight_decay=False)
    slopes = torch.cat(
        [Step(problem, rule, hypers.at(raw, fixed, t), State(w, {}), t, curvature=False).coupled["keep"]
         for t in range(runs)]
    )  # fmt: skip
    difference = (1 / (p + 0.05) - 1 / (p - 0.05)) / 0.1  # of 1/p, over the same width
    expected = 2 / 8 * difference * problem.x.square().sum(0) * w[0]
    error = slopes.std(0) / runs**0.5
    assert ((slopes.mean(0) - expected).abs() < 4 * error).all()
    assert (expected.abs() > 8 * error).sum() >= 3  # the test can tell the sign


@pytest.mark.parametrize("estimator", [Forward(), Reverse(3)], ids=["forward", "reverse"])
def test_coupled_differences_enter_the_hypergradient(estimator: Any) -> None:
    """Over one step: gV' (-lr dg/dkeep)."""
    problem, rule = Kept(), sgd(momentum=False, weight_decay=False)
    hypers = Hypers([Hyper("lr", 0.1, tuned=False), Hyper("keep", 0.6, "sigmoid", difference=0.05)], [5])
    w = torch.full((2, 5), 0.3, dtype=torch.float64)
    step = Step(problem, rule, hypers.at(*hypers.init(w)), State(w, {}), 0, curvature=False)
    gv, _ = validation_gradient(problem, rule, step.values, step.next, 0)
    by_hand = -0.1 * (gv * step.coupled["keep"]).sum(-1, keepdim=True) * 0.6 * 0.4
    assert relative(hypergradient(problem, rule, hypers, w, estimator, 1), by_hand) < 1e-12


# --- the loop  ---


@pytest.mark.parametrize("trace", [False, True], ids=["eager", "traced"])
@pytest.mark.parametrize(
    "method", [methods.diff_through_opt(4, 6), methods.onepass(3, 6), methods.clip_r(0.5)], ids=str
)
def test_resume_between_updates_is_uninterrupted(method: Method, trace: bool) -> None:
    """Stopped where an update looks back over the stop, and continued by another loop."""
    problem, rule, hypers, w = usual(("lr", "weight_decay", "momentum"), momentum=0.5)
    straight = Loop(problem, rule, hypers, method).advance(Loop(problem, rule, hypers, method).start(w), 18)
    first = Loop(problem, rule, hypers, method, trace=trace)
    halfway = first.advance(first.start(w), 10)
    again = Loop(problem, rule, hypers, method, trace=trace).advance(halfway, 8)
    assert relative(again.raw, straight.raw) < 1e-12 and relative(again.state.w, straight.state.w) < 1e-12
    if not trace:
        assert torch.equal(again.raw, straight.raw)


def test_training_loss_as_outer_loss_is_the_gradient_before_the_step() -> None:
    """HD by forward mode reset every step: <g_t, dw_t/dlr>, for the step itself or for the one after."""
    problem, rule = Net(), sgd(momentum=False, weight_decay=False)
    hypers, w = Hypers([Hyper("lr", 0.1)], problem.layout.sizes), problem.init(1)
    for immediate in (False, True):
        method = Method(Forward(reset_every=1), SGD(0.01), outer_loss="training", immediate=immediate)
        loop = Loop(problem, rule, hypers, method)
        run = loop.advance(loop.start(w), 5)
        lr, at, before = torch.tensor([[0.1]], dtype=torch.float64), w, torch.zeros_like(w)
        for t in range(5):
            leaf = at.clone().requires_grad_()
            (g,) = torch.autograd.grad(problem.train_loss(leaf, {}, t).sum(), leaf)
            new = lr + 0.01 * (g * before).sum(-1, keepdim=True)
            at = at - (new if immediate else lr) * g
            lr, before = new, g
        assert relative(run.raw, lr) < 1e-12 and relative(run.state.w, at) < 1e-12


@pytest.mark.parametrize(
    "method",
    [methods.onepass(), methods.oho(1e-3), methods.clip_r(1.0), methods.unroll_k(5)],
    ids=["onepass", "oho", "clip", "unroll"],
)
def test_memory_is_flat_over_2000_steps(method: Method) -> None:
    """Python's live tensors after 1000 and after 2000 steps."""
    problem, rule, hypers, w = usual(momentum=0.5)
    loop = Loop(problem, rule, hypers, method)

    def live() -> int:
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    run = loop.advance(loop.start(w), 100)
    before = live()
    run = loop.advance(run, 1900)
    assert live() <= before
