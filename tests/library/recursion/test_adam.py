"""Adam against torch.optim, and Adam's and AdamW's derivatives, also where every weight counts its own steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.reverse import Reverse
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule, adam, adamw, sgd
from gradtune.recursion.step import State, Step, Tangent, initial_state
from problems import Net
from tools import hypergradient, normal, relative

T = 7
START = {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}
COORDINATES = {"lr": "log10", "beta1": "sigmoid", "beta2": "sigmoid", "weight_decay": "log"}
RULES = {"adam": adam(), "adam, decay": adam(weight_decay=True), "adamw": adamw()}


def declared(rule: Rule) -> Hypers:
    return Hypers([Hyper(n, START[n], COORDINATES[n]) for n in rule.hypers], Net().layout.sizes)


@pytest.mark.parametrize(
    ("rule", "decay"), [(adam(), 0.0), (adam(weight_decay=True), 0.1), (adam(weight_decay=True, eps=1e-3), 0.1)]
)
def test_adam_is_torchs(rule: Rule, decay: float) -> None:
    """On the net's own gradients, 50 steps."""
    problem = Net()
    w = problem.init(1)
    theirs, state = nn.Parameter(w.clone()), initial_state(w, rule)
    eps = 1e-3 if "eps=0.001" in str(rule.update) else 1e-8
    optimiser = torch.optim.Adam([theirs], 0.05, (0.8, 0.95), eps, weight_decay=decay)
    lam = {n: torch.full((1, 1), START[n], dtype=torch.float64) for n in rule.hypers}
    for t in range(50):
        optimiser.zero_grad()
        problem.train_loss(theirs, {}, t).sum().backward()
        optimiser.step()
        own = state.w.requires_grad_()
        (g,) = torch.autograd.grad(problem.train_loss(own, {}, t).sum(), own)
        state = State(*rule.update(own.detach(), state.buf, g, lam))
        torch.testing.assert_close(state.w, theirs.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", [False, True])
def test_forward_is_reverse_is_unrolled_is_differences(decay: bool) -> None:
    rule, problem = adam(weight_decay=decay), Net()
    case = problem, rule, declared(rule), problem.init(2)
    exact = oracle.unrolled(*case, T)
    assert exact.shape == (2, 3 + decay) and (exact != 0).all()
    for estimator in (Forward(), Reverse(T), Reverse(T, "graph")):
        assert relative(hypergradient(*case, estimator, T), exact) < 1e-10
    assert relative(oracle.central_differences(*case, T, 1e-5), exact) < 1e-6


def under_way(rule: Rule, counter: Tensor) -> State:
    """A state amid training."""
    buf = {"m": 0.3 * normal(2, 21, seed=1), "v": 0.2 + normal(2, 21, seed=2).square(), "steps": counter}
    return State(Net().init(2), buf)


ONE = torch.full((2, 1), 3.0, dtype=torch.float64)
OWN = torch.arange(42, dtype=torch.float64).reshape(2, 21) % 5  # some weights have taken no step


@pytest.mark.parametrize("name", RULES)
def test_a_counter_for_each_weight_counts_as_one_for_all(name: str) -> None:
    """To the bit where all are equal; where they differ, each weight is that of a run with its own number."""
    rule, g = RULES[name], normal(2, 21, seed=3)
    lam = {n: torch.tensor([[START[n]], [0.9 * START[n]]], dtype=torch.float64) for n in rule.hypers}

    def after(counter: Tensor) -> State:
        x = under_way(rule, counter)
        return State(*rule.update(x.w, x.buf, g, lam))

    for one, each in zip(after(ONE)[0], after(ONE.expand(2, 21).clone())[0], strict=True):
        assert torch.equal(one, each)
    mixed = after(OWN)
    assert torch.equal(mixed.buf["steps"], OWN + 1)
    for k in range(5):
        alone = after(torch.full((2, 1), float(k), dtype=torch.float64))
        assert torch.equal(mixed.w[k == OWN], alone.w[k == OWN])


@pytest.mark.parametrize("counter", [ONE, OWN], ids=["one a run", "one a weight"])
@pytest.mark.parametrize("name", RULES)
def test_one_steps_tangent_is_a_difference(name: str, counter: Tensor) -> None:
    """`Step.push` from a random sensitivity, against steps from states and coordinates to both sides."""
    rule, problem = RULES[name], Net()
    hypers, x = declared(rule), under_way(rule, counter)
    raw, fixed = hypers.init(x.w)
    z = Tangent(
        normal(2, hypers.columns, 21, seed=4),
        {
            "m": normal(2, hypers.columns, 21, seed=5),
            "v": 0.1 * normal(2, hypers.columns, 21, seed=6),
            "steps": torch.zeros(2, hypers.columns, counter.shape[1], dtype=torch.float64),
        },
    )
    step = Step(problem, rule, hypers.at(raw, fixed), x, 0, curvature=True)
    pushed = step.push(z, step.values.tangents(), step.gradient_tangent(z.w, step.values.tangents()))

    def moved(p: int, e: float) -> State:
        buf = {n: b + e * z.buf[n][:, p] for n, b in x.buf.items()}
        at = raw + e * torch.eye(hypers.columns, dtype=torch.float64)[p]
        return Step(problem, rule, hypers.at(at, fixed), State(x.w + e * z.w[:, p], buf), 0, curvature=False).next

    for p in range(hypers.columns):
        high, low = moved(p, 1e-5), moved(p, -1e-5)
        assert relative((high.w - low.w) / 2e-5, pushed.w[:, p]) < 1e-7
        for n in ("m", "v"):
            assert relative((high.buf[n] - low.buf[n]) / 2e-5, pushed.buf[n][:, p]) < 1e-7
    assert not pushed.buf["steps"].any() and pushed.buf["steps"].shape[2] == counter.shape[1]


@pytest.mark.parametrize("name", RULES)
def test_the_adjoint_of_a_step_with_a_counter_for_each_weight(name: str) -> None:
    """`Step.pull` is the transpose of `Step.push`."""
    rule, problem = RULES[name], Net()
    hypers, x = declared(rule), under_way(rule, OWN)
    raw, fixed = hypers.init(x.w)
    step = Step(problem, rule, hypers.at(raw, fixed), x, 0, curvature=True)
    cot = State(normal(2, 21, seed=7), {"m": normal(2, 21, seed=8), "v": normal(2, 21, seed=9), "steps": 0 * OWN})
    back, share = step.pull(cot)
    z: Any = Tangent(
        normal(2, hypers.columns, 21, seed=4),
        {n: normal(2, hypers.columns, 21, seed=k) for k, n in enumerate(("m", "v"))}
        | {"steps": torch.zeros(2, hypers.columns, 21, dtype=torch.float64)},
    )
    pushed = step.push(z, step.values.tangents(), step.gradient_tangent(z.w, step.values.tangents()))

    def dot(rows: Tangent, c: State) -> Tensor:
        parts = [(rows.w, c.w), *((rows.buf[n], c.buf[n]) for n in ("m", "v"))]
        return sum(torch.einsum("rpd,rd->rp", a, b) for a, b in parts)  # type: ignore[return-value]

    torch.testing.assert_close(dot(z, back) + share, dot(pushed, cot), rtol=1e-10, atol=1e-12)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(GradtuneError, match=r"nesterov=True changes the momentum, and momentum=False leaves it out"):
        sgd(momentum=False, nesterov=True)
