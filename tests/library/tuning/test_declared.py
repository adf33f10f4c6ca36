"""What a user's words stand for: groups by pattern, what stays fixed, Adam, and what is refused or warned of."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.nets.layout import Layout
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import initial_state
from gradtune.tuning import declared

NET = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
LAYOUT = Layout.of(NET)  # 0.weight, 0.bias, 1.weight, 1.bias, 2.weight, 2.bias
W = LAYOUT.flatten(dict(NET.named_parameters()))[None]


def given(
    hypers: Any, fixed: Any = None, rule: Any = "sgd", method: str = "onepass", options: Any = None, of: Any = ()
) -> tuple[Rule, list[Hyper]]:
    how = declared.method(method, options)
    return declared.rule_and_hypers(rule, hypers, fixed or {}, of, how, method)


def values(*arguments: Any, **more: Any) -> tuple[Hypers, dict[str, dict[str, float]]]:
    """The hyperparameters, and the value of each parameter tensor."""
    hypers = Hypers(given(*arguments, **more)[1], LAYOUT.sizes, names=LAYOUT.names, shapes=LAYOUT.shapes)
    lam = hypers.at(*hypers.init(W)).lam
    found = {n: LAYOUT.split(v.expand(1, W.shape[1])[0]) for n, v in lam.items()}
    for parts in found.values():
        assert all((part == part.flatten()[0]).all() for part in parts.values())
    return hypers, {n: {k: float(part.flatten()[0]) for k, part in parts.items()} for n, parts in found.items()}


def near(expected: list[float]) -> Any:
    return pytest.approx(dict(zip(LAYOUT.names, expected, strict=True)), rel=1e-12, abs=0)


# -- groups -----------------------------------------------------------------------------------------------------------


def test_patterns_are_groups() -> None:
    hypers, found = values({"lr": {"0.*": 1e-4, "*": 1e-3}})
    assert found["lr"] == near([1e-4, 1e-4, 1e-3, 1e-3, 1e-3, 1e-3])
    assert hypers.columns == 2 and hypers.blocks["lr"].labels == ("0.*", "*")
    h = hypers.blocks["lr"].hyper
    assert (h.transform, h.bounds, h.tuned) == ("log10", (1e-10, 1.0), True)


def test_one_group_is_tuned_and_the_rest_is_fixed() -> None:
    hypers, found = values({"lr": {"2.*": 1e-3}}, {"lr": {"*": 1e-4}})
    assert found["lr"] == near([1e-4] * 4 + [1e-3] * 2)
    assert hypers.columns == 1 and hypers.init(W)[0].tolist() == [[-3.0]]


def test_no_decay_of_biases_and_norms() -> None:
    """A fixed 0, which log10 cannot represent, stays 0."""
    expected = near([1e-4, 0.0, 0.0, 0.0, 1e-4, 0.0])
    lr = {"lr": 0.1}
    for tuned in ({"*": 1e-4}, {"*weight": 1e-4}):
        hypers, found = values(lr | {"weight_decay": tuned}, {"weight_decay": {"1d": 0.0}})
        assert found["weight_decay"] == expected and hypers.columns == 2
        assert hypers.blocks["weight_decay"].hyper.transform == "log10"
    found = values(lr | {"weight_decay": {"*weight": 1e-4}}, {"weight_decay": {"*": 0.0}})[1]
    assert found["weight_decay"] == near([1e-4, 0.0, 1e-4, 0.0, 1e-4, 0.0])  # the norm's weight has decay
    assert values(lr, {"weight_decay": {"1d": 0.0, "*": 1e-4}})[1]["weight_decay"] == expected


def test_the_rest_comes_last_and_hypers_before_fixed() -> None:
    assert values({"lr": {"*": 1.0, "0.*": 0.5}})[1]["lr"] == near([0.5, 0.5, 1, 1, 1, 1])
    found = values({"lr": {"*.bias": 0.1}}, {"lr": {"*": 0.2, "0.*": 0.3}})[1]["lr"]
    assert found == near([0.3, 0.1, 0.2, 0.1, 0.2, 0.1])
    found = values({"lr": {"0.*": 0.1, "*": 0.2}}, {"lr": {"1d": 0.3}})[1]["lr"]
    assert found == near([0.1, 0.3, 0.3, 0.3, 0.2, 0.3])


@pytest.mark.parametrize("method", ["oho", "metaoptimize_hf", "onepass_hdlr"])
def test_groups_have_the_coordinate_of_the_method(method: str) -> None:
    (h,) = given({"lr": {"0.*": 0.1, "*": 0.2}}, method=method)[1]
    alone = given({"lr": 0.1}, method=method)[1][0]
    assert (h.transform, h.bounds) == (alone.transform, alone.bounds) and h.value == {"0.*": 0.1, "*": 0.2}


def test_groups_train_by_groups() -> None:
    """A step by hand: each tensor moves by its own rate, and decays by its own."""
    rule, hypers = given({"lr": {"0.*": 0.1, "*": 0.2}, "weight_decay": {"*": 0.01}}, {"weight_decay": {"1d": 0.0}})
    made = Hypers(hypers, LAYOUT.sizes, names=LAYOUT.names, shapes=LAYOUT.shapes)
    lam = made.at(*made.init(W)).lam
    after = LAYOUT.split(rule.update(W, initial_state(W, rule).buf, torch.ones_like(W), lam)[0][0])
    for name, p in NET.named_parameters():
        rate, decay = 0.1 if name.startswith("0.") else 0.2, 0.01 if p.dim() > 1 else 0.0
        torch.testing.assert_close(after[name], (p - rate * (1 + decay * p)).detach(), rtol=1e-12, atol=1e-14)


# -- the rule ---------------------------------------------------------------------------------------------------------


def test_adam_has_torchs_defaults() -> None:
    rule, hypers = given({"lr": 1e-3}, rule="adam")
    assert rule.name == "adam" and rule.hypers == ("lr", "beta1", "beta2")
    assert {h.name: h.value for h in hypers} == {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999}
    assert [h.name for h in hypers if h.tuned] == ["lr"]
    assert given({"lr": 1e-3, "weight_decay": 1e-4}, rule="adam")[0].hypers[-1] == "weight_decay"
    assert given({"lr": 1e-3}, {"weight_decay": 0.0}, rule="adam")[0].hypers[-1] == "weight_decay"
    assert "adam" in declared.RULES


def test_the_order_is_tuned_then_fixed_then_defaults() -> None:
    names = [h.name for h in given({"lr": 0.1}, {"weight_decay": 0.0, "beta2": 0.99}, rule="adamw")[1]]
    assert names == ["lr", "weight_decay", "beta2", "beta1"]


# -- mistakes ---------------------------------------------------------------------------------------------------------

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hypers": {"lr": 0.1}, "fixed": {"lr": {"*": 0.1}}}, r"\['lr'\] are given in hypers.*numbers by pattern may"),
        ({"hypers": {"lr": 0.1}, "fixed": {"lr": 0.1}}, r"\['lr'\] are given in hypers and in fixed; give each once$"),
        ({"hypers": {"lr": Hyper("lr", 0.1)}, "fixed": {"lr": {"*": 0.1}}}, r"\['lr'\] are given in hypers"),
        ({"hypers": {"lr": {"*": 0.1}}, "fixed": {"lr": {"*": 0.2}}}, r"the groups \['\*'\] of lr are given"),
        ({"hypers": {"lr": {"*": "fast"}}}, r"lr is given by groups, and '\*' has no number"),
        ({"hypers": {"lr": {"*": Hyper("lr", 0.1)}}}, r"lr is given by groups, and '\*' has no number"),
        ({"hypers": {"lr": {0: 0.1}}}, r"lr is given by groups, and 0 has no number; expected numbers by pattern"),
        ({"hypers": {"lr": {}}}, r"lr is given by groups, and there is no group"),
        ({"hypers": {"lr": 0.1, "keep": {"*": 0.5}}, "of": ["keep"]}, r"keep is differentiated by differences"),
        ({"hypers": {"lr": 0.1, "smoothing": {"*": 0.5}}, "of": ["smoothing"]}, r"\['smoothing'\] belong to the model"),
        ({"hypers": {"tau": 0.5, "lr": 0.1}, "of": ["tau"]}, r"the number 0\.5 for 'tau' .*Hyper\('tau', 0\.5, tran"),
        ({"hypers": {"lr": 0.1}, "fixed": {"tau": 0.5}, "of": ["tau"]}, r"as Hyper\('tau', 0\.5, tuned=False\)"),
        ({"hypers": {"tau": ONES}, "of": ["tau"]}, r"values of shape \(2, 3\) for 'tau' .*bounds=.*, shape=\(2, 3\)"),
        ({"hypers": {"tau": np.ones(4)}, "of": ["tau"]}, r"shape \(4,\) for 'tau' .*values, transform.*shape=\(4,\)\)"),
        ({"hypers": {"tau": [1.0, 2.0]}, "of": ["tau"]}, r"values of shape \(2,\) for 'tau'"),
        ({"hypers": {"lr": 0.1}, "fixed": {"tau": ONES}, "of": ["tau"]}, r"values, tuned=False, shape=\(2, 3\)\)"),
        ({"hypers": {"tau": {"*": 1.0}}, "of": ["tau"]}, r"the numbers for 'tau' say nothing.*granularity="),
        ({"hypers": {"lr": Hyper("lr", 0.1, shape=(3,))}}, r"\['lr'\] belong to the update rule and have a shape"),
        (
            {
                "hypers": [Hyper("lr", 0.1, bounds=(0, 1)), Hyper("tau", 0.5, shape=(3,))],
                "of": ["tau"],
                "method": "oho",
                "options": {"layerwise": "split"},
            },
            r"\['tau'\] have a shape, and split sensitivities",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GradtuneError, match=message) as caught:
        given(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["metaoptimize_hf", "hd", "baydin"])
def test_a_trace_tunes_the_rate_alone(method: str) -> None:
    options = {"lr": 0.01} if method == "hd" else {}
    message = r"follows the learning rate alone, and \['weight_decay'\].*fixed=\{'weight_decay': 0\.001\}"
    for hypers in ({"lr": 0.1, "weight_decay": 1e-3}, {"weight_decay": 1e-3}):
        with pytest.raises(GradtuneError, match=rf"^{method} {message}"):
            given(hypers, method=method, options=options)
    made = given({"lr": 0.1}, {"weight_decay": 1e-3}, method=method, options=options)[1]
    assert [h.name for h in made if h.tuned] == ["lr"]
    mine = [Hyper("lr", 0.1, "log10"), Hyper("weight_decay", 0.1, tuned=False)]
    assert given(mine, method=method, options=options)[1] == mine


def test_a_trace_made_by_hand_has_no_name() -> None:
    how = declared.method("metaoptimize_hf", {})
    with pytest.raises(GradtuneError, match=r"^a trace follows the learning rate alone"):
        declared.rule_and_hypers("sgd", {"lr": 0.1, "momentum": 0.9}, {}, (), how, "")


# -- warnings ---------------------------------------------------------------------------------------------------------

INF = float("inf")


@pytest.mark.parametrize(
    ("h", "expected"),
    [
        (Hyper("lr", 0.1), r"lr is tuned in natural units with the bounds \(-inf, inf\).*bounds=\(0\.0, 1\.0\)\)"),
        (Hyper("lr", 0.1, bounds=(0.0, INF)), r"lr is tuned in natural units"),
        (Hyper("lr", 0.1, granularity="tensor"), r"or transform='log10'"),
        (Hyper("lr", 0.1, bounds=(0.0, 1.0)), None),
        (Hyper("lr", 0.1, "log10"), None),
    ],
)
def test_a_rate_in_natural_units_wants_bounds(h: Hyper, expected: str | None) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given([h], {"weight_decay": 0.0})
    if expected is None:
        assert not caught
        return
    (warning,) = caught
    assert warning.category is GradtuneWarning and re.search(expected, str(warning.message))
    assert warning.filename == __file__  # the user's line


def test_no_warning_where_nothing_can_drift() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given({"lr": 0.1, "weight_decay": 1e-3}, method="oho")
        given([Hyper("lr", 0.1, tuned=False), Hyper("momentum", 0.5)])
        Hypers([Hyper("lr", 0.1)], [6])  # declared by hand, as the book's studies do
