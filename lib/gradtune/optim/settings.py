"""What a `gradtune.optim.MetaOptimize` is asked to do, checked before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError, unknown
from gradtune.optim.foreach import BASES, Base
from gradtune.recursion.outer import SGD, Adam, Lion, Outer, RMSprop

_META = {"sgd": SGD, "adam": Adam, "lion": Lion, "rmsprop": RMSprop}
_GROUPS = ("scalar", "blockwise", "tensor")
_FORMS = ("ours", "package")

# What the hyperparameters of a parameter group may be; the interval as it reads in the sentence.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (lambda x: 0 < x < math.inf, "a number > 0"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "a number >= 0"),
    "momentum": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "alpha": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "betas": (lambda x: len(x) == 2 and all(0 <= b < 1 for b in x), "two numbers in [0, 1)"),
    "eps": (lambda x: 0 <= x < math.inf, "a number >= 0"),
}


@dataclass(frozen=True)
class Settings:
    """What the whole optimiser shares, parameter groups and states apart.

    Attributes:
        base: name of the base optimiser, one of `foreach.BASES`.
        meta: the meta rule.
        gamma: discount of past steps, in (0, 1].
        groups: what shares a learning rate: "scalar", "blockwise" or "tensor".
        form: "ours" or "package".

    Raises:
        GradtuneError: a name is unknown, or `gamma` is outside (0, 1].
    """

    base: str
    meta: Outer
    gamma: float
    groups: str
    form: str

    def __post_init__(self) -> None:
        for kind, known in (("base", BASES), ("form", _FORMS), ("groups", _GROUPS)):
            if getattr(self, kind) not in known:
                raise unknown(f"{kind} of MetaOptimize", getattr(self, kind), known)
        if not 0 < self.gamma <= 1:
            raise GradtuneError(f"the discount gamma is {self.gamma}; expected a number in (0, 1]")

    @property
    def rule(self) -> Base:
        return BASES[self.base]

    def names(self) -> dict[str, str]:
        """Return the names that are stored with the state, which fits only an optimiser of the same kind."""
        return {"base": self.base, "meta": type(self.meta).__name__, "groups": self.groups, "form": self.form}

    @cached_property
    def _empty(self) -> Any:
        return self.meta.init(torch.zeros(0))

    def memory(self, stored: Mapping[str, Tensor]) -> Any:
        """Return the meta rule's state as the rule wants it."""
        values = [stored[name] for name in named(self._empty)]
        return self._empty._make(values) if hasattr(self._empty, "_make") else tuple(values)


def named(memory: Any) -> dict[str, Tensor]:
    """Return the tensors of a meta rule's state by name."""
    return memory._asdict() if hasattr(memory, "_asdict") else {str(i): x for i, x in enumerate(memory)}


def outer_rule(meta: str | Outer, step_size: float, form: str) -> Outer:
    """Return the meta rule of a name, or the one that was given.

    Args:
        meta: "sgd", "adam", "lion" or "rmsprop", or an outer rule.
        step_size: step size of a rule given by name.
        form: with "package" the rule "lion" has the new momentum inside its sign.

    Raises:
        GradtuneError: `meta` is neither a known name nor an outer rule, or `step_size` is not a number >= 0.
    """
    if not isinstance(meta, str):
        if not hasattr(meta, "update"):
            raise GradtuneError(
                f"meta is a {type(meta).__name__}; expected one of {', '.join(_META)}, "
                "or a rule of gradtune.recursion.outer"
            )
        return meta
    if meta not in _META:
        raise unknown("meta rule of MetaOptimize", meta, _META)
    if not 0 <= step_size < math.inf:
        raise GradtuneError(f"the meta step size is {step_size}; expected a number >= 0")
    return Lion(step_size, new_momentum=form == "package") if meta == "lion" else _META[meta](step_size)


def hyperparameters(base: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base's defaults with what was given in their place.

    Args:
        base: name of the base optimiser.
        given: a value for each hyperparameter that any base has, None for the default.

    Raises:
        GradtuneError: a value is given for what the base does not have.
    """
    defaults = BASES[base].defaults
    for name, value in given.items():
        if value is not None and name not in defaults:
            raise GradtuneError(f"the base {base!r} has no {name}; leave it out (it has {', '.join(defaults)})")
    return {name: default if given[name] is None else given[name] for name, default in defaults.items()}


def parameter_lists(params: Any) -> Any:
    """Return parameters, or groups of them, in lists for torch to check further.

    Raises:
        GradtuneError: there are no parameters, or `params` is a module or nothing to iterate over.
    """
    if isinstance(params, Tensor):
        return params  # torch says what is wrong
    if isinstance(params, nn.Module) or not isinstance(params, Iterable):
        raise GradtuneError(f"params is a {type(params).__name__}; expected parameters, such as model.parameters()")
    lists = [_listed(each) if isinstance(each, dict) else each for each in params]
    if not lists or all(isinstance(each, dict) and each["params"] == [] for each in lists):
        raise GradtuneError("MetaOptimize got no parameters; expected some, such as model.parameters()")
    return lists


def _listed(group: dict[str, Any]) -> dict[str, Any]:
    params = group["params"]
    return {**group, "params": [params] if isinstance(params, Tensor) else list(params)}


def check_group(number: int, group: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check the hyperparameters and the parameters of a parameter group.

    Args:
        number: number of the group, for the message of the error.
        group: the group.
        names: names of the hyperparameters to check.

    Raises:
        GradtuneError: a hyperparameter is outside its range, or a parameter is complex.
    """
    for name in names:
        fits, expected = _RANGES.get(name, (_anything, ""))
        if not _holds(fits, group[name]):
            raise GradtuneError(f"{name} = {group[name]!r} in parameter group {number}; expected {expected}")
    for k, p in enumerate(group["params"]):
        if p.is_complex():
            raise GradtuneError(
                f"parameter {k} of group {number} is complex, and MetaOptimize needs real ones; "
                "optimise torch.view_as_real of it"
            )


def _anything(value: Any) -> bool:
    return True


def _holds(fits: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(fits(value))
    except TypeError:  # not a number
        return False
