"""The adjoints that are written out are those of automatic differentiation, in double precision."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from gradtune.recursion.adjoints import Taken
from gradtune.recursion.rules import Descent, Rule, adam, adamw, sgd

RULES = {
    "sgd": sgd(),
    "sgd, plain": sgd(momentum=False, weight_decay=False),
    "sgd, no momentum": sgd(momentum=False),
    "sgd, no decay": sgd(weight_decay=False),
    "sgd, nesterov": sgd(nesterov=True),
    "sgd, nesterov, no decay": sgd(nesterov=True, weight_decay=False),
    "adam": adam(),
    "adam, decay": adam(weight_decay=True, eps=1e-3),
    "adamw": adamw(eps=1e-3),
}
VALUES = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1, "beta1": 0.7, "beta2": 0.9}
RUNS, SIZE = 2, 6


def a_step(rule: Rule, columns: int) -> tuple[Tensor, dict[str, Tensor], Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, dtype=torch.float64) + 0.2

    buf = {n: draw(RUNS, SIZE) for n in rule.buffers} | {n: torch.full((RUNS, 1), 2.0).double() for n in rule.counters}
    lam = {n: VALUES[n] * draw(RUNS, columns) / 2 for n in rule.hypers}
    return draw(RUNS, SIZE) - 0.7, buf, draw(RUNS, SIZE) - 0.7, lam


@pytest.mark.parametrize("columns", [1, SIZE])
@pytest.mark.parametrize("name", RULES)
def test_an_adjoint_is_that_of_automatic_differentiation(name: str, columns: int) -> None:
    rule = RULES[name]
    update = cast(Descent, rule.update)
    w, buf, g, lam = a_step(rule, columns)
    leaves = [x.requires_grad_() for x in (w, g, *buf.values(), *lam.values())]
    new_w, new = update(w, buf, g, lam)
    rng = torch.Generator().manual_seed(1)
    c, c_buf = (
        torch.randn(RUNS, SIZE, generator=rng, dtype=torch.float64),
        {
            n: torch.randn(b.shape, generator=rng, dtype=torch.float64) * (n not in rule.counters)
            for n, b in new.items()
        },
    )
    exact = torch.autograd.grad((new_w, *new.values()), leaves, (c, *c_buf.values()), materialize_grads=True)
    with torch.no_grad():
        d, after = update.direction(w, buf, g, lam)
        assert update.adjoint is not None
        found = update.adjoint(Taken(w, buf, g, lam, d, after), c, c_buf, rule.hypers)
    pieces: dict[str, Any] = dict(zip(("w", "g", *buf, *lam), exact, strict=True))
    assert torch.allclose(found.w, pieces["w"], rtol=1e-12, atol=1e-14)
    assert torch.allclose(found.g, pieces["g"], rtol=1e-12, atol=1e-14)
    for n in rule.buffers:
        assert torch.allclose(found.buf[n], pieces[n], rtol=1e-12, atol=1e-14), n
    for n in rule.hypers:
        assert torch.allclose(found.lam[n], pieces[n], rtol=1e-12, atol=1e-14), n
    assert set(found.buf) == {*rule.buffers, *rule.counters}


def test_what_is_not_tuned_has_no_cotangent() -> None:
    for rule in RULES.values():
        w, buf, g, lam = a_step(rule, 1)
        update = cast(Descent, rule.update)
        d, after = update.direction(w, buf, g, lam)
        assert update.adjoint is not None
        assert not update.adjoint(Taken(w, buf, g, lam, d, after), w, after, ()).lam


def test_an_entry_whose_gradients_have_been_zero_has_derivative_zero() -> None:
    rule = adam()
    w, _, _, lam = a_step(rule, 1)
    zero = torch.zeros_like(w)
    buf = {"m": zero, "v": zero, "steps": torch.zeros(RUNS, 1, dtype=torch.float64)}
    update = cast(Descent, rule.update)
    d, after = update.direction(w, buf, zero, lam)
    assert update.adjoint is not None
    found = update.adjoint(Taken(w, buf, zero, lam, d, after), w, {**buf}, rule.hypers)
    assert (found.buf["v"] == 0).all() and found.g.isfinite().all() and found.lam["beta2"].isfinite().all()
