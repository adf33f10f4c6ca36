"""The state of a `gradtune.optim.MetaOptimize` as it is saved, and whether another one can go on from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, short
from gradtune.optim import rates
from gradtune.optim.settings import Settings, check_values, named

BEGUN = "begun"
"""Entry of a saved group: which of its parameters, by position, have a state. An older state does not have it."""

_AGAIN = "save it again from the optimiser's state_dict()"


def marked(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a state with the mark `BEGUN` in each group, so that what is lost on the way is noticed.

    Args:
        saved: what torch's `state_dict()` gives.
    """
    groups = [{**g, BEGUN: [bool(saved["state"].get(k)) for k in g["params"]]} for g in saved["param_groups"]]
    return {**saved, "param_groups": groups}


def checked(optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a saved state that an optimiser can go on from, as a hook before `load_state_dict`.

    Raises:
        GradtuneError: as `check`.
    """
    check(saved, optimizer.param_groups, optimizer._settings)
    return deepcopy(saved)


def check(saved: Any, groups: rates.Groups, settings: Settings) -> None:
    """Check that an optimiser can go on from a saved state.

    Args:
        saved: what `state_dict()` returned, of this version or one before.
        groups: the parameter groups of the optimiser that loads it.
        settings: its settings.

    Raises:
        GradtuneError: the state is that of another kind of optimiser or of other parameters, or not whole.
    """
    states, its_groups = _parts(saved)
    metas = [group["meta"] for group in its_groups if "meta" in group]
    meta = metas[0] if metas else states.get("meta", {})
    _expect(isinstance(meta, Mapping), f"its 'meta' is a {type(meta).__name__}")
    for name, mine in settings.names().items():
        its = meta.get(name)
        if (meta or states) and not (isinstance(its, str) and its == mine):
            raise GradtuneError(
                f"the state is of an optimiser with {name} = {short(its)}, and this one has {mine!r}; "
                "load it into a MetaOptimize with the same arguments"
            )
    if meta:
        _check_meta(meta, rates.blocks(its_groups, settings.groups)[-1][1] if its_groups else 0, settings)
    if [len(group["params"]) for group in its_groups] == [len(group["params"]) for group in groups]:
        _check_groups(states, its_groups, groups, settings)  # else torch says what is wrong


def _check_groups(
    states: Mapping[Any, Any], its_groups: Sequence[Any], groups: rates.Groups, settings: Settings
) -> None:
    """Check a state's hyperparameters, and what it has for each parameter."""
    numbers = [k for group in its_groups for k in group["params"]]
    _expect(all(isinstance(k, int | str) for k in numbers), "what should be numbers of parameters are none")
    _expect(len({*numbers}) == len(numbers), "two of its parameters have the same number")
    if other := [k for k in states if k != "meta" and k not in numbers]:
        raise GradtuneError(f"the state has an entry {other[0]!r} that belongs to none of its parameters; {_AGAIN}")
    for n, (group, mine) in enumerate(zip(its_groups, groups)):
        _check_values(n, group, settings.base)
        begun = group.get(BEGUN)
        for at, (k, p) in enumerate(zip(group["params"], mine["params"])):
            which = f"parameter {at} of group {n}"
            of_it = states.get(k, {})
            _expect(isinstance(of_it, Mapping), f"it has a {type(of_it).__name__} for {which}, not a dict")
            if of_it:
                _check_parameter(which, of_it, p, settings)
            lost = not of_it and isinstance(begun, list) and len(begun) == len(mine["params"]) and begun[at]
            _expect(not lost, f"what belongs to {which} has been lost")


def _parts(saved: Any) -> tuple[Mapping[Any, Any], Sequence[Any]]:
    """Return the states by parameter, and the groups."""
    states = saved.get("state") if isinstance(saved, Mapping) else None
    groups = saved.get("param_groups") if isinstance(saved, Mapping) else None
    whole = isinstance(states, Mapping) and isinstance(groups, list | tuple)
    _expect(whole, "expected a dict with 'state' and 'param_groups'")
    assert states is not None and groups is not None
    for n, group in enumerate(groups):
        fine = isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple)
        _expect(fine, f"its group {n} is no dict with a list of 'params'")
    return states, groups


def _check_meta(meta: Mapping[str, Any], blocks: int, settings: Settings) -> None:
    for name in ("raw", *named(settings.meta.init(torch.zeros(0, device="cpu")))):
        x = meta.get(name)
        fits = isinstance(x, Tensor) and x.is_floating_point() and x.shape == (blocks,)
        _expect(fits, f"its learning rates need {name!r}, a tensor of {blocks} numbers, and it is {_said(x)}")


def _check_values(number: int, group: Mapping[str, Any], base: str) -> None:
    lr = group.get("lr")
    one = isinstance(lr, Tensor) and lr.numel() == 1 and lr.is_floating_point()
    right = (one or (isinstance(lr, Real) and not isinstance(lr, bool))) and not float(lr) < 0  # type: ignore[arg-type]
    _expect(right, f"the lr of its group {number} is {_said(lr)}; expected a number >= 0")
    check_values(number, {name: value for name, value in group.items() if name != "lr"})


def _check_parameter(which: str, of_it: Mapping[str, Any], p: Tensor, settings: Settings) -> None:
    """Check what a state has for one parameter."""
    for name in (*settings.rule.buffers, "trace"):
        x = of_it.get(name)
        fits = isinstance(x, Tensor) and x.shape == p.shape and (x.is_floating_point() or x.is_complex())
        _expect(fits, f"{name!r} of {which} is {_said(x)}; expected a tensor of shape {[*p.shape]}")
    if settings.rule.counted:
        step = of_it.get("step")
        one = isinstance(step, Tensor) and step.numel() == 1 and not step.is_complex()
        right = (one or isinstance(step, Real)) and float(step) >= 0  # type: ignore[arg-type]
        _expect(right, f"the counter 'step' of {which} is {_said(step)}; expected a number >= 0")


def _said(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {[*x.shape]} and {x.dtype}" if x.numel() != 1 else f"a tensor with {x.tolist()}"
    return "absent" if x is None else short(x)


def _expect(right: bool, wrong: str) -> None:
    if not right:
        raise GradtuneError(f"the state cannot be loaded: {wrong}; {_AGAIN}")
