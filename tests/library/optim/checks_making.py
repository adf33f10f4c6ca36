"""Torch's checks of an optimiser's construction and of its parameter groups."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from gradtune.errors import GradtuneError
from gradtune.optim import MetaOptimize
from library.optim.checks import check
from library.optim.small import backward, net, relative, train, weights

making = partial(check, "construction")


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.randn(2, 2))


@making("parameters come as an iterator, a list or groups of either")
def _forms() -> None:
    ends = []
    for form in (lambda p: p, list, lambda p: [{"params": p}], lambda p: ({"params": each} for each in list(p))):
        model = net()
        train(model, MetaOptimize(form(model.parameters()), 0.01), 5)
        ends.append(weights(model))
    assert all(relative(end, ends[0]) < 1e-12 for end in ends)


@making("a bare tensor is a TypeError")
def _bare() -> None:
    with pytest.raises(TypeError, match="should be an iterable of Tensors or dicts"):
        MetaOptimize(parameter())
    with pytest.raises(TypeError, match="can only optimize Tensors"):
        MetaOptimize([parameter(), "b"])


@making("a set of parameters is a FutureWarning, in a group a TypeError")
def _set() -> None:
    with pytest.warns(FutureWarning, match="ordered collections"):
        MetaOptimize({parameter(), parameter()})
    with pytest.raises(TypeError, match="ordered collections"):
        MetaOptimize([{"params": {parameter()}}])


@making("a parameter twice in a group is a UserWarning")
def _twice() -> None:
    p = parameter()
    with pytest.warns(UserWarning, match="duplicate parameters"):
        MetaOptimize([p, p])


@making("a parameter in two groups is a ValueError")
def _overlap() -> None:
    p = parameter()
    with pytest.raises(ValueError, match="more than one parameter group"):
        MetaOptimize([{"params": p}, {"params": [p, parameter()]}])


@making("a tensor that is no leaf is a ValueError")
def _no_leaf() -> None:
    with pytest.raises(ValueError, match="non-leaf"):
        MetaOptimize([parameter() + 1])


@making("named parameters keep their names in the state")
def _named() -> None:
    a, b = net(), net()
    mine = MetaOptimize(a.named_parameters(), 0.01)
    train(a, mine, 5)
    train(b, MetaOptimize(b.parameters(), 0.01), 5)
    assert torch.equal(weights(a), weights(b))
    assert mine.state_dict()["param_groups"][0]["param_names"] == [name for name, _ in a.named_parameters()]


@making("names for some of the parameters are a ValueError")
def _half_named() -> None:
    with pytest.raises(ValueError, match="Some param names are missing"):
        MetaOptimize([("a", parameter()), parameter()])
    with pytest.raises(ValueError, match="cannot add param group with names"):
        MetaOptimize([{"params": [parameter()]}, {"params": [("b", parameter())]}])


@making("no parameters at all are a ValueError")
def _none() -> None:
    with pytest.raises(ValueError, match="got no parameters"):
        MetaOptimize([])


WRONG: tuple[dict[str, Any], ...] = (
    {"lr": -1e-2},
    {"lr": float("nan")},
    {"betas": (1.0, 0.0)},
    {"betas": (0.0, -0.1)},
    {"eps": -1e-8},
    {"weight_decay": -1},
    {"base": "sgdm", "momentum": -0.5},
    {"base": "rmsprop", "alpha": 1.0},
)


@making("a hyperparameter outside its range is a ValueError, in a group too")
def _ranges() -> None:
    for wrong in WRONG:
        with pytest.raises(ValueError, match="in parameter group 0; expected"):
            MetaOptimize([parameter()], **wrong)
    group: dict[str, Any] = {"params": [parameter()], "weight_decay": -1.0}
    with pytest.raises(ValueError, match=r"weight_decay = -1\.0 in parameter group 1"):
        MetaOptimize([{"params": [parameter()]}, group])


@making("a tensor learning rate of several elements is a ValueError")
def _wide_rate() -> None:
    for shape in (2, 0, (2, 1)):
        with pytest.raises(ValueError, match="Tensor lr must be 1-element"):
            MetaOptimize([parameter()], lr=torch.full((shape,) if isinstance(shape, int) else shape, 0.001))


@making(
    "hyperparameters as tensors, the learning rate apart",
    "betas = (tensor(0.9000), tensor(0.9900)) in parameter group 0; expected two numbers in [0, 1)",
)
def _tensor_betas() -> None:
    MetaOptimize([parameter()], betas=(torch.tensor(0.9), torch.tensor(0.99)))  # type: ignore[arg-type]


@making("groups have learning rates and weight decays of their own")
def _own() -> None:
    """Of torch's two tests: what has almost no learning rate stays, and all else goes downhill."""
    for groups in ("scalar", "blockwise", "tensor"):
        for decay in (0.0, 0.1):
            model, still = net(), nn.Parameter(torch.ones(3).double())
            parts = [{"params": model.parameters(), "lr": 1e-2, "weight_decay": decay}, {"params": [still]}]
            optimizer = MetaOptimize(parts, 1e-28, groups=groups, weight_decay=0.0)
            before = backward(model).item()
            for t in range(20):
                still.grad = torch.randn(3, generator=torch.Generator().manual_seed(t)).double()
                model.zero_grad()
                backward(model)
                optimizer.step()
            assert backward(model).item() < before and torch.equal(still, torch.ones(3).double())


@making("a group may be empty")
def _empty_group() -> None:
    model = net()
    train(model, MetaOptimize([{"params": []}, {"params": model.parameters()}], 0.01), 2)


@making("a group added later trains")
def _added() -> None:
    model = net()
    optimizer = MetaOptimize(model.first.parameters(), 0.01)
    train(model, optimizer, 2)
    before, old = copy.deepcopy(model.last.weight), optimizer.lr[0]
    optimizer.add_param_group({"params": model.last.parameters(), "lr": 0.1})
    train(model, optimizer, 2)
    assert not torch.equal(model.last.weight, before) and optimizer.lr[1] / 0.1 == pytest.approx(optimizer.lr[0] / old)


@making("groups of another optimiser can be taken over")
def _taken_over() -> None:
    model = net()
    first = MetaOptimize(model.parameters(), 0.01, groups="tensor")
    train(model, first, 2)
    second = MetaOptimize(first.param_groups, groups="tensor")
    assert second.lr[0] == pytest.approx([first.param_groups[0]["lr"]] * 4)
    train(model, second, 2)


@making("it can be printed")
def _printed() -> None:
    text = repr(MetaOptimize([parameter()], 0.25))
    assert text.startswith("MetaOptimize (\nParameter Group 0\n") and "    lr: 0.25\n" in text


@making("defaults has every argument of a group")
def _defaults() -> None:
    optimizer = MetaOptimize([parameter()])
    group = optimizer.param_groups[0]
    names = {"lr", "betas", "eps", "weight_decay", "maximize", "foreach", "fused", "capturable", "differentiable"}
    assert optimizer.defaults.keys() == names and names | {"params", "meta"} == group.keys()


@making(
    "capturable=True, for CUDA graphs",
    "capturable = True in parameter group 0; expected False, as the learning rates are new tensors at every step, "
    "which a CUDA graph would not follow; capture the gradients alone and call step() after the replay",
)
def _capturable() -> None:
    MetaOptimize([parameter()], capturable=True)


@making(
    "differentiable=True, a graph through the step",
    "differentiable = True in parameter group 0; expected False, as the fused and foreach kernels keep no graph; "
    "gradtune.tune has derivatives through the training",
)
def _differentiable() -> None:
    MetaOptimize([parameter()], differentiable=True)


@making(
    "fused=True where there is no such kernel",
    "fused = True in parameter group 0, and parameter 0 is a tensor of bfloat16 on cpu; "
    "leave it out, or give plain tensors of float32 or float64 on the CPU",
)
def _no_fused() -> None:
    MetaOptimize([nn.Parameter(torch.ones(2, dtype=torch.bfloat16))], base="lion", fused=True)


@making("fused=False keeps to the operations of torch")
def _not_fused() -> None:
    a, b = net(), net()
    train(a, MetaOptimize(a.parameters(), fused=False), 3)
    train(b, MetaOptimize(b.parameters()), 3)
    assert torch.allclose(weights(a), weights(b), rtol=1e-12)


@making("foreach and fused together are an error")
def _both() -> None:
    with pytest.raises(GradtuneError, match="fused and foreach are both True in parameter group 0; leave one"):
        MetaOptimize([parameter()], foreach=True, fused=True)
