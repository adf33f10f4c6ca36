"""Hypergradients through what a model of one's own may do, against central differences of whole trainings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradtune import Hyper, Tuner, hypergradient
from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.reverse import Reverse
from gradtune.nets.losses import cross_entropy as weighted
from gradtune.recursion.outer import SGD
from gradtune.training.loop import Method
from library.tuning.patterns import PATTERNS, VAL, Base, batches, made

HYPERS = {"lr": 0.2, "momentum": 0.7, "weight_decay": 0.02}
STEPS = 6
# a clamp of the weights inside forward is no part of the derivative, in torch neither
LEFT_OUT = ("weights clamped in forward", "weights replaced in forward", "norms by hooks", "parametrisations")
STATEFUL = (
    "assigned buffers",
    "a growing buffer",
    "batch norm",
    "batch norm without momentum",
    "a checkpoint",
    "frozen",
)
SMOOTH = [p for p in PATTERNS if p not in LEFT_OUT + STATEFUL]


def trained(
    make: Callable[[], nn.Module], values: dict[str, float], how: Method, rule: str = "sgd", **options: Any
) -> Tuner:
    factors = options.pop("factors", [1.0] * STEPS)
    count = options.get("accumulate", 1)
    tuner = Tuner(made(make), cross_entropy, rule=rule, hypers=values, method=how, seed=4, **options)
    data = list(batches(STEPS * count))
    for k in range(STEPS):
        tuner.factor.value = factors[k]
        tuner.step(data[k] if count == 1 else data[k * count : (k + 1) * count], VAL)
    return tuner


def check(make: Callable[[], nn.Module], estimator: Any, hypers: dict[str, float] = HYPERS, **options: Any) -> None:
    tuner = trained(make, hypers, Method(estimator, SGD(0.0), every=STEPS), **options)
    start = tuner.raw[None].clone()
    for k, name in enumerate(hypers):
        ends = []
        for sign in (1, -1):
            raw = start.clone()
            raw[0, k] += sign * 1e-5
            moved = {n: float(v) for n, v in tuner.hypers.natural(raw).items()}
            ends.append(float(trained(make, moved, Method(), **options).evaluate(VAL)))
        difference = (ends[0] - ends[1]) / 2e-5
        assert tuner.hypergradient[name] == pytest.approx(difference, rel=1e-5, abs=1e-9), name


ESTIMATORS = {"forward": Forward(), "reverse": Reverse(STEPS), "graphs": Reverse(STEPS, "graph")}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("pattern", SMOOTH)
def test_the_hypergradient_of_a_pattern_is_exact(pattern: str, estimator: str) -> None:
    check(PATTERNS[pattern], ESTIMATORS[estimator])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "options",
    [
        {"factors": [0.1, 0.5, 1.0, 0.7, 0.3, 0.2]},
        {"accumulate": 3},
        {"clip_norm": 0.5},
        {"clip_value": 0.02},
        {"rule": "adam", "hypers": {"lr": 0.02, "beta1": 0.8}},
        {"rule": "adamw", "hypers": {"lr": 0.02}, "factors": [0.5] * 6},
    ],
    ids=["schedule", "accumulate", "clip_norm", "clip_value", "adam", "adamw"],
)
def test_the_hypergradient_of_an_option_is_exact(options: dict[str, Any], estimator: str) -> None:
    check(PATTERNS["a layer used sometimes"], ESTIMATORS[estimator], **options)


# -- one hypergradient by itself --------------------------------------------------------------------------------------


def penalty(model: nn.Module) -> Callable[..., Tensor]:
    own = list(model.parameters())

    def loss(out: Tensor, y: Tensor, l1: Tensor | float = 0.0, weight: Tensor | None = None) -> Tensor:
        return weighted(out, y, weight=weight) + l1 * sum(p.abs().sum() for p in own)

    return loss


def test_a_hypergradient_of_a_penalty_and_of_class_weights() -> None:
    """The penalty reads the model past the module; the weights of the classes are a vector."""
    data, start = list(batches(3)), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def found(l1: float, weight: Tensor) -> Any:
        hypers = [Hyper("l1", l1, "log10"), Hyper("weight", weight, "log", shape=(3,))]
        copy = made(Base)
        loss = penalty(copy)
        tuner = Tuner(
            copy,
            loss,
            hypers=hypers,
            fixed={"lr": 0.1},
            val_loss=cross_entropy,
            method=Method(Reverse(3), SGD(0.0), every=3),
        )
        for batch in data:
            tuner.step(batch, VAL)
        return tuner.hypergradient, float(tuner.evaluate(VAL))

    slopes, _ = found(0.02, start)
    assert list(slopes) == ["l1", "weight[0]", "weight[1]", "weight[2]"]
    e = 1e-5
    ends = [found(10 ** (math.log10(0.02) + sign * e), start)[1] for sign in (1, -1)]
    assert slopes["l1"] == pytest.approx((ends[0] - ends[1]) / (2 * e), rel=1e-6)
    for k in range(3):
        moved = [start.clone(), start.clone()]
        for sign, values in zip((1, -1), moved, strict=True):
            values[k] = start[k] * math.exp(sign * e)
        ends = [found(0.02, values)[1] for values in moved]
        assert slopes[f"weight[{k}]"] == pytest.approx((ends[0] - ends[1]) / (2 * e), rel=1e-6, abs=1e-10)


def test_a_hypergradient_leaves_the_model_alone_and_says_what_it_costs() -> None:
    model, data = made(Base), list(batches(3))
    before = {n: v.clone() for n, v in model.state_dict().items()}
    exact = hypergradient(model, cross_entropy, data, VAL, hypers=HYPERS, initial_weights=True)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    e = 1e-5
    for name, value in HYPERS.items():
        ends = [
            hypergradient(model, cross_entropy, data, VAL, hypers=HYPERS | {name: value + sign * e}).val_loss
            for sign in (1, -1)
        ]
        assert exact.natural[name] == pytest.approx((ends[0] - ends[1]) / (2 * e), rel=1e-5)
    assert exact.weights is not None
    ends = []
    for sign in (1, -1):
        moved = made(Base)
        with torch.no_grad():
            moved.first.weight[1, 2] += sign * e  # type: ignore[operator, union-attr, index]
        ends.append(hypergradient(moved, cross_entropy, data, VAL, hypers=HYPERS).val_loss)
    assert float(exact.weights["first.weight"][1, 2]) == pytest.approx((ends[0] - ends[1]) / (2 * e), rel=1e-5)
    onepass = hypergradient(model, cross_entropy, data, VAL, hypers=HYPERS, method="onepass")
    assert onepass.cost.gradients == 3 + 1 and onepass.cost.hessian_products == 4
    with pytest.raises(GradtuneError, match="has no hypergradient on validation data"):
        hypergradient(model, cross_entropy, data, VAL, hypers={"lr": 0.1}, method="hd", options={"lr": 0.1})
    with pytest.raises(GradtuneError, match="batches is no list of batches"):
        hypergradient(model, cross_entropy, [], VAL, hypers={"lr": 0.1})


def test_the_sensitivity_has_names() -> None:
    tuner = trained(Base, HYPERS, Method(Forward(), SGD(0.0), every=2))
    assert list(tuner.sensitivity) == list(HYPERS)
    assert tuner.sensitivity["lr"]["first.weight"].shape == (8, 6)
    assert float(tuner.sensitivity["lr"]["unused.weight"].abs().max()) == 0
    with pytest.raises(GradtuneError, match="carries no sensitivity"):
        _ = trained(Base, HYPERS, Method(Reverse(2), SGD(0.0), every=2)).sensitivity
