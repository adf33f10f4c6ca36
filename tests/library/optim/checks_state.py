"""Torch's checks of an optimiser's state: saved, loaded, copied, of an earlier version, and the hooks on the way."""

from __future__ import annotations

import copy
import io
import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradtune.optim import MetaOptimize
from library.optim.checks import check
from library.optim.small import Model, net, same, train, weights

state = partial(check, "state")


def trained(steps: int = 3, **arguments: Any) -> tuple[Model, MetaOptimize]:
    """A net and its optimiser with two groups, after some steps."""
    model = net()
    parts = [{"params": model.first.parameters()}, {"params": model.last.parameters(), "lr": 0.02}]
    optimizer = MetaOptimize(parts, 0.01, **{"meta": "adam", **arguments})
    train(model, optimizer, steps)
    return model, optimizer


def goes_on_like(model: Model, optimizer: MetaOptimize, saved: dict[str, Any], **arguments: Any) -> bool:
    """Whether a new optimiser with a saved state takes the same steps as `optimizer`, which it came from."""
    twin, its = trained(0, **arguments)
    twin.load_state_dict(model.state_dict())
    its.load_state_dict(saved)
    train(model, optimizer, 3, 3)
    train(twin, its, 3, 3)
    return torch.equal(weights(model), weights(twin)) and same(optimizer.state_dict(), its.state_dict())


@state("it has only parameters as keys, and is there after a step")
def _keys() -> None:
    for groups in ("scalar", "blockwise", "tensor"):
        model, optimizer = trained(groups=groups)
        assert set(optimizer.state) == set(model.parameters())
        assert optimizer.state_dict()["state"].keys() == set(range(4))


@state("a loaded state goes on to the bit, and gives the same state again")
def _deterministic() -> None:
    for groups in ("scalar", "blockwise", "tensor"):
        model, optimizer = trained(groups=groups)
        assert goes_on_like(model, optimizer, copy.deepcopy(optimizer.state_dict()), groups=groups)


@state("loading changes nothing in what is loaded, and keeps a copy")
def _unchanged() -> None:
    model, optimizer = trained()
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    other, its = trained(0)
    its.load_state_dict(before)
    train(other, its, 2)
    assert same(before, saved) and optimizer.state[model.first.weight]["step"] == 3


@state("a state taken before keeps its learning rates")
def _earlier() -> None:
    model, optimizer = trained()
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved["param_groups"])
    train(model, optimizer, 2)
    assert same(saved["param_groups"], kept)


@state("groups that repeat are saved alike")
def _repeated() -> None:
    _, optimizer = trained()
    before = copy.deepcopy(optimizer.state_dict()["param_groups"][-1])
    optimizer.param_groups.extend(optimizer.param_groups)
    assert same(optimizer.state_dict()["param_groups"][-1], before)


@state("deepcopy, with the model, copies all public attributes and goes on alike")
def _deepcopy() -> None:
    pair = trained()
    twin, its = copy.deepcopy(pair)
    for model, optimizer in (pair, (twin, its)):
        train(model, optimizer, 3, 3)
    public = [{name for name in vars(each) if not name.startswith("_")} for each in (pair[1], its)]
    assert torch.equal(weights(pair[0]), weights(twin)) and public[0] == public[1]


@state("pickle, with the model")
def _pickle() -> None:
    pair = trained(groups="tensor")
    twin, its = pickle.loads(pickle.dumps(pair))
    for model, optimizer in (pair, (twin, its)):
        train(model, optimizer, 3, 3)
    assert torch.equal(weights(pair[0]), weights(twin)) and its.lr == pair[1].lr


@state("torch.save, and torch.load with weights_only")
def _saved() -> None:
    for groups in ("scalar", "tensor"):
        model, optimizer = trained(groups=groups)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        assert goes_on_like(model, optimizer, torch.load(file, weights_only=True), groups=groups)


@state("a state before the first step")
def _fresh() -> None:
    _, fresh = trained(0)
    model, optimizer = trained(3)
    optimizer.load_state_dict(fresh.state_dict())
    assert optimizer.lr == [0.01, 0.02] and not optimizer.state
    train(model, optimizer, 1)


NEWER = ("maximize", "foreach", "fused", "capturable", "differentiable")


@state("an older state without the newer entries of a group")
def _older() -> None:
    model, optimizer = trained()
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for name in NEWER:
            del group[name]
    assert goes_on_like(model, optimizer, older)


@state("step counters that are numbers")
def _counters() -> None:
    model, optimizer = trained()
    older = copy.deepcopy(optimizer.state_dict())
    for each in older["state"].values():
        each["step"] = each["step"].item()
    assert goes_on_like(model, optimizer, older)


@state("an older optimiser out of a pickle, with what is missing filled in")
def _setstate() -> None:
    model, optimizer = trained()
    older = copy.deepcopy(optimizer).__getstate__()
    del older["_sharded"]
    for name in NEWER:
        del older["defaults"][name]
        for group in older["param_groups"]:
            del group[name]
    older["param_groups"] = [
        {**g, "params": h["params"]} for g, h in zip(older["param_groups"], optimizer.param_groups)
    ]
    older["state"] = copy.copy(optimizer.state)
    again: MetaOptimize = MetaOptimize.__new__(MetaOptimize)
    again.__setstate__(older)
    assert all(again.param_groups[0][name] == optimizer.param_groups[0][name] for name in NEWER)
    train(model, again, 1)


@state("it takes the type of the parameters; counters and learning rates keep theirs")
def _cast() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, optimizer = trained(groups="tensor")
        other = net(dtype)
        parts = [{"params": other.first.parameters()}, {"params": other.last.parameters()}]
        its = MetaOptimize(parts, meta="adam", groups="tensor")
        its.load_state_dict(optimizer.state_dict())
        mine = its.state[other.first.weight]
        assert (mine["exp_avg"].dtype, mine["trace"].dtype, mine["step"].dtype) == (dtype, dtype, torch.float32)
        assert its.lr == optimizer.lr
        train(other, its, 1)
        assert weights(other).isfinite().all()


@state("states with and without names are loaded into one another")
def _names() -> None:
    a, b = net(), net()
    plain, named = MetaOptimize(a.parameters(), 0.01), MetaOptimize(b.named_parameters(), 0.01)
    train(a, plain, 2)
    train(b, named, 2)
    plain.load_state_dict(named.state_dict())
    assert plain.param_groups[0]["param_names"][0] == "first.weight"
    named.load_state_dict(
        {
            **plain.state_dict(),
            "param_groups": [{n: x for n, x in plain.state_dict()["param_groups"][0].items() if n != "param_names"}],
        }
    )
    assert named.param_groups[0]["param_names"][0] == "first.weight"


@state("another number of groups is a ValueError")
def _groups() -> None:
    _, optimizer = trained()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        MetaOptimize(net().parameters(), meta="adam").load_state_dict(optimizer.state_dict())


@state("a group of another size is a ValueError, and nothing has changed")
def _size() -> None:
    _, optimizer = trained()
    model = net()
    other = MetaOptimize([{"params": [model.first.weight]}, {"params": model.last.parameters()}], meta="adam")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        other.load_state_dict(optimizer.state_dict())
    assert same(other.state_dict(), before)


@state("hooks before and after state_dict")
def _saving_hooks() -> None:
    _, optimizer = trained()
    order: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: order.append("second"))
    optimizer.register_state_dict_pre_hook(lambda o: order.append("first"), prepend=True)
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "note": order[:]})
    assert optimizer.state_dict()["note"] == ["first", "second"]


@state("a hook before load_state_dict may hand over another state")
def _loading_hook() -> None:
    """Its state alone is loaded and checked: what the caller gave is that of another kind of optimiser."""
    model, optimizer = trained()
    twin, its = trained(0)
    twin.load_state_dict(model.state_dict())
    order: list[str] = []
    its.register_load_state_dict_pre_hook(lambda o, given: optimizer.state_dict())
    its.register_load_state_dict_pre_hook(lambda o, given: order.extend(given), prepend=True)
    other = torch.optim.AdamW(twin.parameters())
    train(twin, other, 1)
    its.load_state_dict(other.state_dict())
    assert order == ["state", "param_groups"] and same(its.state_dict(), optimizer.state_dict())
    assert len(its._optimizer_load_state_dict_pre_hooks) == 2


@state("a hook after load_state_dict sees the whole state")
def _loaded_hook() -> None:
    _, optimizer = trained()
    saved = copy.deepcopy(optimizer.state_dict())
    for each in saved["state"].values():
        each["step"] = 3
    _, its = trained(0)
    seen: list[Any] = []
    its.register_load_state_dict_post_hook(lambda o: seen.extend([o.lr, *(s["step"] for s in o.state.values())]))  # type: ignore[attr-defined]
    its.load_state_dict(saved)
    assert seen == [optimizer.lr, 3.0, 3.0, 3.0, 3.0] and all(isinstance(each, Tensor) for each in seen[1:])


@state("a module that is converted after the optimiser was made")
def _converted() -> None:
    """`module.double()` changes the parameters in place; before the first step there is no state to fit."""
    model = nn.Linear(3, 2)
    optimizer = MetaOptimize(model.parameters(), 0.01)
    model.double()
    for t in range(2):
        optimizer.zero_grad()
        model(torch.full((1, 3), 1.0 + t).double()).square().sum().backward()
        optimizer.step()
    assert optimizer.state[model.weight]["trace"].dtype == torch.float64 and math.isfinite(optimizer.lr[0])
