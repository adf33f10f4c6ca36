"""Outer rules against torch.optim and against their formulas; runs never mix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.recursion.outer import SGD, Adam, Lion, Multiplicative, RMSprop, SignHalving
from gradtune.recursion.wrapped import Clipped

RULES = [
    SGD(0.1),
    Adam(0.05),
    RMSprop(0.02),
    Lion(0.02, weight_decay=0.1),
    Lion(0.02, new_momentum=True),
    SignHalving(torch.tensor([0.1, 0.2, 0.05, 0.4])),
    Multiplicative(0.1),
    Clipped(Adam(0.05), 0.5),
]


def hypergradient(k: int) -> Tensor:
    g = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    g[:, 3] *= k > 4  # 0 at first
    return g


def run(rule: Any, raw: Tensor, updates: int = 30, spoil: bool = False) -> Tensor:
    state = rule.init(raw)
    for k in range(updates):
        g = hypergradient(k)[: len(raw)]
        if spoil and k == 7:
            g[1] = torch.nan
        raw, state = rule.update(raw, g, state, {})
    return raw


def start() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(77))


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (Adam(0.05), lambda p: torch.optim.Adam(p, lr=0.05)),
        (RMSprop(0.02), lambda p: torch.optim.RMSprop(p, lr=0.02)),
        (SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    ],
    ids=["adam", "rmsprop", "sgd"],
)
def test_rule_is_torch_optim(rule: Any, make: Any) -> None:
    parameter = nn.Parameter(start())
    theirs = make([parameter])
    for k in range(30):
        parameter.grad = hypergradient(k)
        theirs.step()
    assert torch.allclose(run(rule, start()), parameter.detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("new", [False, True])
def test_lion_entry_by_entry(new: bool) -> None:
    raw, ours = start(), run(Lion(0.02, (0.7, 0.9), 0.1, new_momentum=new), start())
    for r in range(3):
        for p in range(4):
            x, m = float(raw[r, p]), 0.0
            for k in range(30):
                g = float(hypergradient(k)[r, p])
                after = 0.9 * m + 0.1 * g
                c = 0.7 * (after if new else m) + 0.3 * g
                x, m = x - 0.02 * ((c > 0) - (c < 0) + 0.1 * x), after
            assert abs(float(ours[r, p]) - x) < 1e-13


def test_sign_halving_shortens_where_the_sign_turns() -> None:
    """Signs + + - 0 - + of a coordinate: a zero neither moves nor halves, and hides the sign before it."""
    rule, raw = SignHalving(0.8), torch.zeros(1, 1, dtype=torch.float64)
    state, path = rule.init(raw), []
    for g in (3.0, 0.1, -2.0, 0.0, -1.0, 5.0):
        raw, state = rule.update(raw, torch.tensor([[g]], dtype=torch.float64), state, {})
        path.append((float(raw), float(state.gamma)))
    want = [(-0.8, 0.8), (-1.6, 0.8), (-1.2, 0.4), (-1.2, 0.4), (-0.8, 0.4), (-1.0, 0.2)]
    assert np.allclose(path, want, rtol=1e-15, atol=1e-15)


def test_sign_halving_stays_in_its_search_range() -> None:
    """FDS, Appendix F: 10 steps of 0.1, 0.15 and 4e-4 from 0 search [-1, 1], [-1.5, 1.5] and [-4e-3, 4e-3]."""
    gamma, raw0 = torch.tensor([0.1, 0.15, 4e-4], dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    low, high = SignHalving(gamma).search_range(raw0, 10)
    assert torch.allclose(high, torch.tensor([[1.0, 1.5, 4e-3]], dtype=torch.float64)) and torch.equal(low, -high)
    up, turning = SignHalving(gamma), SignHalving(gamma)
    state, other, at, back = up.init(raw0), turning.init(raw0), raw0, raw0
    for k in range(10):
        at, state = up.update(at, -torch.ones(1, 3, dtype=torch.float64), state, {})
        back, other = turning.update(back, (-1.0) ** k * torch.ones(1, 3, dtype=torch.float64), other, {})
    assert torch.allclose(at, high) and (back.abs() < high).all()


def test_multiplicative_and_clipped() -> None:
    raw, g = torch.tensor([[2.0, -3.0]]), torch.tensor([[0.5, -40.0]])
    assert torch.equal(Multiplicative(0.1).update(raw, g, (), {})[0], torch.tensor([[2.0 * 0.95, -3.0 * 5.0]]))
    assert torch.equal(Clipped(SGD(1.0), 3.0).update(raw, g, (), {})[0], torch.tensor([[1.5, 0.0]]))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_nan_stays_in_its_run(rule: Any) -> None:
    clean, spoilt = run(rule, start()), run(rule, start(), spoil=True)
    assert clean.isfinite().all() and spoilt[1].isnan().all()
    assert torch.equal(clean[[0, 2]], spoilt[[0, 2]])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Lion(-1.0), "the outer learning rate is -1.0; expected a number >= 0"),
        (lambda: SignHalving(-0.1), "the step sizes gamma are -0.1; expected numbers >= 0"),
        (lambda: Clipped(SGD(0.1), 0.0), "the hypergradient is clipped at 0.0; expected a number > 0"),
        (
            lambda: SignHalving(torch.ones(3)).init(torch.zeros(2, 4)),
            r"gamma has shape \(3,\); expected a number or \[4\]",
        ),
    ],
)
def test_mistakes_are_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(GradtuneError, match=sentence):
        make()


def test_a_rate_that_follows_a_hyperparameter_with_groups_follows_its_mean() -> None:
    """ClipR and UnrollK with a learning rate for each layer: the outer rate is c times the mean over the weights."""
    raw, g = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    rates = torch.tensor([[0.1, 0.1, 0.1, 0.5], [1.0, 1.0, 2.0, 4.0]], dtype=torch.float64)  # of four weights
    moved, _ = SGD(0.1, "lr").update(raw, g, (), {"lr": rates})
    torch.testing.assert_close(moved, -0.1 * torch.tensor([[0.2], [2.0]], dtype=torch.float64).expand(2, 3))
    alone, _ = SGD(0.1, "lr").update(raw, g, (), {"lr": rates[:, :1]})
    assert torch.equal(alone, -0.1 * rates[:, :1] * g)
