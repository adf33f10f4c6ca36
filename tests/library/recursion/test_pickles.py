"""Rules, transforms and declarations are data: they go through pickle, and act the same afterwards."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule, adam, adamw, clipped, lion, norm_clipped, rmsprop, sgd
from gradtune.recursion.step import initial_state
from gradtune.recursion.transforms import TRANSFORMS
from tools import normal

RULES = {
    "sgd": sgd(),
    "plain sgd": sgd(momentum=False, weight_decay=False),
    "nesterov": sgd(nesterov=True),
    "adam": adam(weight_decay=True, eps=1e-6),
    "adamw": adamw(eps=1e-6),
    "rmsprop": rmsprop(decoupled=True),
    "lion": lion(),
    "clipped": clipped(adam(), 0.3),
    "norm-clipped": norm_clipped(clipped(sgd(), 0.3), 0.5),
    "renamed": replace(sgd(), name="mine", tangent=None),
}


def again(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_takes_the_same_step(name: str) -> None:
    rule: Rule = RULES[name]
    copy = again(rule)
    assert replace(copy, update=rule.update, tangent=rule.tangent) == rule
    w, g = normal(2, 5), normal(2, 5, seed=1)
    lam = {n: torch.full((2, 1), 0.1, dtype=torch.float64) for n in rule.hypers}
    (a, a_buf), (b, b_buf) = (r.update(w, initial_state(w, r).buf, g, lam) for r in (rule, copy))
    assert torch.equal(a, b) and all(torch.equal(a_buf[n], b_buf[n]) for n in a_buf)
    if rule.tangent is None:
        assert copy.tangent is None
        return
    assert copy.tangent is not None
    z, lam_dot = normal(2, 3, 5, seed=2), {n: normal(2, 3, 1, seed=3) for n in rule.hypers}
    buf = {n: normal(2, 1, 5, seed=4) for n in rule.buffers}
    rows = {n: normal(2, 3, 5, seed=5) for n in rule.buffers}
    given = w[:, None], buf, g[:, None], {n: v[:, None] for n, v in lam.items()}, z, rows, z, lam_dot
    assert torch.equal(rule.tangent(*given)[0], copy.tangent(*given)[0])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_has_the_same_values(name: str) -> None:
    transform, copy, raw = TRANSFORMS[name], again(TRANSFORMS[name]), normal(4)
    assert (copy.name, copy.low, copy.high) == (transform.name, transform.low, transform.high)
    for f in ("forward", "slope"):
        assert torch.equal(getattr(transform, f)(raw), getattr(copy, f)(raw))
    natural = transform.forward(raw)
    assert torch.equal(transform.inverse(natural), copy.inverse(natural))


def test_hyperparameters_have_the_same_values() -> None:
    w = torch.zeros(2, 6, dtype=torch.float64)
    declared = [
        Hyper("lr", {"a": 0.1, "b": 0.2}, "log10", {"a": "x.*", "b": "*"}, bounds=(1e-3, 1.0), tuned=["b"]),
        Hyper("part", normal(2, 2).abs(), "log", shape=(2, 2)),
        Hyper("momentum", torch.tensor([0.5, 0.6]), "sigmoid", windows=2),
    ]
    hypers = Hypers(declared, [2, 4], 8, names=["x.weight", "y.weight"])
    raw, fixed = hypers.init(w)
    values = hypers.at(raw, fixed, 5)
    values.tangents(), hypers.clamp(raw)  # what is computed once is no part of a pickle
    copy = again(hypers)
    assert copy.tuned == hypers.tuned and copy.columns == hypers.columns
    assert len(pickle.dumps(copy)) == len(pickle.dumps(hypers))
    other = copy.at(*copy.init(w), 5)
    for name in hypers.blocks:
        assert torch.equal(values.lam[name], other.lam[name])
        assert torch.equal(values.tangents()[name], other.tangents()[name])
    assert torch.equal(hypers.clamp(raw + 5), copy.clamp(raw + 5))
    single = again(declared[1])
    assert torch.equal(single.value, declared[1].value) and single.shape == (2, 2)  # type: ignore[arg-type]


def test_a_pickled_declaration_leaves_the_device() -> None:
    h = Hyper("lr", torch.tensor([0.1], requires_grad=True))
    assert not again(h).value.requires_grad and again(h).value.device.type == "cpu"
