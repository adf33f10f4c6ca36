"""What `MetaOptimize` does not take: arguments, parameters and states, each refused in one sentence."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradtune.errors import GradtuneError
from gradtune.optim import MetaOptimize
from gradtune.recursion import outer
from library.optim.small import net, same, train, weights

State = dict[str, Any]
P = nn.Parameter(torch.ones(2))


def refused(call: Callable[[], Any], words: str = ".") -> None:
    with pytest.raises(GradtuneError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


NO_NUMBERS: tuple[Any, ...] = ("1", None, math.nan, [0.1], True, 1j, torch.ones(2), b"1", -1.0, {}, math.inf, 10**400)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize(
    ("name", "words", "none"),
    [
        ("gamma", "the discount gamma is", False),
        ("meta_step_size", "the meta step size is", True),
        ("lr", "lr = ", False),
        ("weight_decay", "weight_decay = ", True),
        ("eps", "eps = ", True),
        ("betas", "betas = ", True),
    ],
)
def test_what_is_no_number_in_its_range(name: str, words: str, none: bool, value: Any) -> None:
    if not (value is None and none):
        refused(lambda: MetaOptimize(net().parameters(), **{name: value}), words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": ["sgd"]}, "unknown base"),
        ({"base": {}}, "unknown base"),
        ({"groups": 3}, "unknown groups"),
        ({"form": None}, "unknown form"),
        ({"meta": None}, "meta is a NoneType"),
        ({"meta": outer.SGD}, "meta is a type"),
        ({"meta": {}}, "meta is a dict"),
        ({"maximize": "no"}, "maximize = 'no'"),
        ({"foreach": "no"}, "foreach = 'no'"),
        ({"fused": 1}, "fused = 1"),
        ({"betas": {0.9, 0.99}}, "betas = "),
        ({"betas": (0.9, None)}, "betas = "),
        ({"lr": torch.tensor(1j)}, "lr = "),
    ],
)
def test_a_choice_that_is_none(change: dict[str, Any], words: str) -> None:
    refused(lambda: MetaOptimize(net().parameters(), **change), words)


PARAMETERS: dict[str, tuple[Any, str]] = {
    "a tensor": (P, "should be an iterable of Tensors or dicts"),
    "text": ("weights", "params is a str"),
    "no text": ("", "params is a str"),
    "bytes": (b"w", "params is a bytes"),
    "None": (None, "params is a NoneType"),
    "a dict": ({"w": P}, "params is a dict"),
    "one group alone": ({"params": [P]}, "params is a dict"),
    "a state": (net().state_dict(), "params is a OrderedDict"),
    "modules": ([net()], "params has a Model in it"),
    "texts": (["w"], "params has a str in it"),
    "None in a list": ([P, None], "params has a NoneType in it"),
    "a name with too much": ([("w", P, 1)], "params has a tuple in it"),
    "groups and parameters": ([{"params": [P]}, P], "both parameters and groups"),
    "parameters and groups": ([P, {"params": [P]}], "both parameters and groups"),
    "no leaf": ([P * 2], "can't optimize a non-leaf Tensor"),
    "one parameter in two groups": ([{"params": [P]}, {"params": [P]}], "more than one parameter group"),
    "some named": ([("w", P), nn.Parameter(torch.ones(1))], "params has a .* in it|with/without names"),
    "a group without": ([{"lr": 0.1}], "a parameter group has no 'params'"),
    "a group of None": ([{"params": None}], "a parameter group are a NoneType"),
    "a group of a number": ([{"params": 3}], "a parameter group are a int"),
    "a group of text": ([{"params": "w"}], "a parameter group are a str"),
    "a group of a module": ([{"params": net()}], "a parameter group are a Model"),
    "a group of numbers": ([{"params": [3]}], "can only optimize Tensors"),
    "a group of a set": ([{"params": {P}}], "organized in ordered collections"),
}


@pytest.mark.parametrize("what", PARAMETERS)
def test_what_are_no_parameters(what: str) -> None:
    params, words = PARAMETERS[what]
    refused(lambda: MetaOptimize(params), words)


@pytest.mark.parametrize("group", [3, None, [P], "w", {}, {"lr": 0.1}, {"params": "w"}, {"params": [P], "lr": "a"}])
def test_a_group_that_is_none_is_not_added(group: Any) -> None:
    optimizer = MetaOptimize(net().parameters())
    refused(lambda: optimizer.add_param_group(group))
    assert len(optimizer.param_groups) == 1


# --- States -----------------------------------------------------------------------------------------------------------


def saved(**arguments: Any) -> State:
    model = net()
    optimizer = MetaOptimize(model.parameters(), **arguments)
    train(model, optimizer, 2)
    return copy.deepcopy(optimizer.state_dict())


def assert_refused(state: Any, words: str = ".", **arguments: Any) -> None:
    """Refused, and the optimiser takes the step that it would have taken."""
    models = net(), net()
    optimizers = [MetaOptimize(model.parameters(), **arguments) for model in models]
    for model, optimizer in zip(models, optimizers):
        train(model, optimizer, 1)
    refused(lambda: optimizers[0].load_state_dict(state), words)
    assert same(optimizers[0].state_dict(), optimizers[1].state_dict())
    for model, optimizer in zip(models, optimizers):
        train(model, optimizer, 1)
    assert torch.equal(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("state", [None, {}, 3, [], "state", net().state_dict(), {"state": {}}, {"param_groups": []}])
def test_what_is_no_state(state: Any) -> None:
    assert_refused(state, "expected (what state_dict|a dict with 'state' and 'param_groups')")


@pytest.mark.parametrize("groups", ["scalar", "blockwise", "tensor"])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("how", ["all", "one", "all empty", "one empty"])
def test_a_state_whose_part_by_parameter_is_lost(groups: str, base: str, how: str) -> None:
    state = saved(groups=groups, base=base)
    lost = list(state["state"])[1 if "one" in how else 0 :][: 1 if "one" in how else None]
    for k in lost:
        state["state"][k] = {}
        if "empty" not in how:
            del state["state"][k]
    assert_refused(state, f"what belongs to parameter {lost[0]} of group 0 has been lost", groups=groups, base=base)


def test_what_had_no_state_needs_none() -> None:
    """A frozen parameter, an optimiser before its first step, and one whose state was cleared."""
    model = net()
    model.first.weight.requires_grad_(False)
    optimizer = MetaOptimize(model.parameters())
    train(model, optimizer, 2)
    MetaOptimize(net().parameters()).load_state_dict(optimizer.state_dict())
    optimizer.state.clear()
    MetaOptimize(net().parameters()).load_state_dict(optimizer.state_dict())


def test_a_state_of_other_weights() -> None:
    other = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 1)).double()
    optimizer = MetaOptimize(other.parameters())
    optimizer.zero_grad()
    other(torch.ones(2, 3).double()).sum().backward()
    optimizer.step()
    assert_refused(optimizer.state_dict(), "of parameter 0 of group 0 is a tensor of shape")


BAD: tuple[Any, ...] = (
    None,
    3,
    -1.0,
    "text",
    [],
    {},
    True,
    torch.ones(7, 7),
    torch.ones(1),
    torch.tensor(-1.0),
    [1, 2],
)


def places(state: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested state that has a value, as keys one after another."""
    inner = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return [at] * bool(at) + [found for k, each in inner for found in places(each, (*at, k))]


WHOLE = saved()
PLACES = [at for at in places(WHOLE) if at[-1] not in ("param_names", "begun") and "begun" not in at]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(["gone", *BAD]))
def test_any_part_of_another_kind_is_refused_or_harmless(at: tuple[Any, ...], value: Any) -> None:
    """One part replaced or taken out: one sentence, or a state from which training goes on."""
    state = copy.deepcopy(WHOLE)
    inner = state
    for k in at[:-1]:
        inner = inner[k]
    if isinstance(value, str) and value == "gone":
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    model = net()
    optimizer = MetaOptimize(model.parameters())
    try:
        optimizer.load_state_dict(state)
    except GradtuneError as error:
        assert "\n" not in str(error)
        return
    train(model, optimizer, 2)
    assert weights(model).isfinite().all()
