"""Torch's own inputs for its optimisers' tests, given to `MetaOptimize`: what can be driven from outside.

`torch.testing._internal.common_optimizers` is part of torch's wheel: arguments, mistakes and schedulers for each
optimiser. `python torchs_own.py` tries them and prints how many there were, or fails. It is a program, as the module
sets up torch's test runner when it is imported.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
import unittest
import warnings
from typing import Any

import torch
from torch import nn

from gradtune.optim import MetaOptimize

BASES = {"SGD": "sgdm", "RMSprop": "rmsprop", "AdamW": "adamw"}
OTHERS = {"amsgrad", "nesterov", "centered", "dampening", "momentum", "capturable", "differentiable"}
"""Arguments that are not MetaOptimize's; `momentum` of RMSprop among them."""


def torchs() -> Any:
    """The module, which wants a package for nothing but a base class of tests."""
    if "expecttest" not in sys.modules:
        with contextlib.suppress(ImportError):
            import expecttest  # type: ignore[import-not-found] # noqa: F401
    if "expecttest" not in sys.modules:
        stand_in: Any = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    from torch.testing._internal import common_optimizers

    return common_optimizers


def mistakes(own: Any) -> int:
    """Those of all optimisers in torch's own words, those of Adam's hyperparameters by their type."""
    common = {each.optimizer_error_input.desc for each in own.get_error_inputs_for_all_optims("cpu", torch.float32)}
    given = own.optim_error_inputs_func_adam("cpu", torch.float32)
    tried = 0
    for each in given:
        case = each.optimizer_error_input
        if {"foreach", "lr"} <= case.kwargs.keys() and isinstance(case.kwargs["lr"], torch.Tensor):
            continue  # that torch does not have: a tensor as learning rate of the foreach form
        params = [nn.Parameter(torch.ones(2))] if case.params is None else case.params
        words = each.error_regex if case.desc in common else "."
        test = unittest.TestCase()
        warns = issubclass(each.error_type, Warning)
        with (test.assertWarnsRegex if warns else test.assertRaisesRegex)(each.error_type, words):
            MetaOptimize(params, **case.kwargs)
        tried += 1
    return tried


def goes_the_right_way(arguments: dict[str, Any], makers: list[Any]) -> None:
    """Torch's test of the direction, on a weight and a bias, contiguous or not."""
    for contiguous in (True, False):
        torch.manual_seed(0)
        shapes = [torch.randn(10, 5), torch.randn(10)] if contiguous else [torch.randn(10, 5, 2), torch.randn(10, 2)]
        weight, bias = (nn.Parameter(x if contiguous else x[..., 0]) for x in shapes)
        row = torch.randn(5)
        optimizer = MetaOptimize([weight, bias], **arguments)
        schedulers = [make(optimizer) for make in makers]
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            loss = (weight.mv(row) + bias).square().sum()
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
            for each in schedulers:
                each.step(*[loss] * isinstance(each, torch.optim.lr_scheduler.ReduceLROnPlateau))
        assert (losses[-1] > losses[0]) == arguments.get("maximize", False), (arguments, losses)


def inputs(own: Any) -> tuple[int, int]:
    """The arguments of torch's three namesakes, alone and with their schedulers."""
    tried = scheduled = 0
    for info in own.optim_db:
        base = BASES.get(info.optim_cls.__name__)
        if base is None:
            continue
        for case in info.optim_inputs_func(device="cpu"):
            arguments = {n: x for n, x in case.kwargs.items() if n not in OTHERS or (n, base) == ("momentum", "sgdm")}
            goes_the_right_way({"lr": 1e-3, **arguments, "base": base}, [])
            tried += 1
        for makers in info.scheduler_inputs:
            goes_the_right_way({"lr": 1e-3, "base": base}, makers)
            scheduled += 1
    return tried, scheduled


def main() -> None:
    warnings.simplefilter("ignore")
    own = torchs()
    tried, scheduled = inputs(own)
    print(json.dumps({"mistakes": mistakes(own), "arguments": tried, "schedulers": scheduled}))


if __name__ == "__main__":
    main()
