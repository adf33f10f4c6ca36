"""What a `gradtune.optim.MetaOptimize` is asked to do, checked before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError, short, unknown
from gradtune.optim import fused
from gradtune.optim.foreach import BASES, Base
from gradtune.optim.shards import place
from gradtune.recursion.outer import SGD, Adam, Lion, Outer, RMSprop

FLAGS = {"maximize": False, "foreach": None, "fused": None, "capturable": False, "differentiable": False}
"""What each optimiser of torch takes beside its hyperparameters, with the defaults."""

REACH, LOWEST, HIGHEST, DEFAULT = 20.0, 1e-3, 0.1, 0.02
"""Of the meta step size: times the number of steps; its bounds; where the number of steps is not known."""

_EXPECTED = "expected parameters, such as model.parameters(), or a list of groups {'params': ...}"
_META = {"sgd": SGD, "adam": Adam, "lion": Lion, "rmsprop": RMSprop}
_GROUPS = ("scalar", "blockwise", "tensor")
_FORMS = ("ours", "package")


def _number(x: Any, low: float, high: float) -> bool:
    return isinstance(x, Real) and not isinstance(x, bool) and low <= float(x) < high


def _rate(x: Any) -> bool:
    whole = isinstance(x, Tensor) and x.numel() == 1 and not x.is_complex()
    return 0 <= float(x) < math.inf if whole else _number(x, 0, math.inf)


def _two_shares(x: Any) -> bool:
    return isinstance(x, Sequence) and len(x) == 2 and all(_number(b, 0, 1) for b in x)


def _flag(x: Any) -> bool:
    return x is True or x is False


# What the hyperparameters of a parameter group may be; the interval as it reads in the sentence.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "lr": (_rate, "a number >= 0 (a Tensor lr must be 1-element)"),
    "weight_decay": (lambda x: _number(x, 0, math.inf), "a number >= 0"),
    "momentum": (lambda x: _number(x, 0, 1), "a number in [0, 1)"),
    "alpha": (lambda x: _number(x, 0, 1), "a number in [0, 1)"),
    "betas": (_two_shares, "two numbers in [0, 1)"),
    "eps": (lambda x: _number(x, 0, math.inf), "a number >= 0"),
    "maximize": (_flag, "True or False"),
    "foreach": (lambda x: x is None or _flag(x), "True, False or None"),
    "fused": (lambda x: x is None or _flag(x), "True, False or None"),
    "capturable": (
        lambda x: not x,
        "False, as the learning rates are new tensors at every step, which a CUDA graph would not follow; capture the "
        "gradients alone and call step() after the replay",
    ),
    "differentiable": (
        lambda x: not x,
        "False, as the fused and foreach kernels keep no graph; gradtune.tune has derivatives through the training",
    ),
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
            if getattr(self, kind) not in list(known):
                raise unknown(f"{kind} of MetaOptimize", getattr(self, kind), known)
        if not _holds(lambda x: _number(x, 0, math.inf) and 0 < x <= 1, self.gamma):
            raise GradtuneError(f"the discount gamma is {short(self.gamma)}; expected a number in (0, 1]")

    @property
    def rule(self) -> Base:
        return BASES[self.base]

    def names(self) -> dict[str, str]:
        """Return the names that are stored with the state, which fits only an optimiser of the same kind."""
        return {"base": self.base, "meta": type(self.meta).__name__, "groups": self.groups, "form": self.form}

    @cached_property
    def _empty(self) -> Any:
        return self.meta.init(torch.zeros(0, device="cpu"))

    def memory(self, stored: Mapping[str, Tensor]) -> Any:
        """Return the meta rule's state as the rule wants it."""
        values = [stored[name] for name in named(self._empty)]
        return self._empty._make(values) if hasattr(self._empty, "_make") else tuple(values)


def named(memory: Any) -> dict[str, Tensor]:
    """Return the tensors of a meta rule's state by name."""
    return memory._asdict() if hasattr(memory, "_asdict") else {str(i): x for i, x in enumerate(memory)}


def meta_step(steps: int) -> float:
    """Return the meta step size for a training of so many steps, of rules whose steps have one size: `REACH / steps`.

    It is at least `LOWEST` and at most `HIGHEST`. Chosen on recorded trainings of 100 to 3,000 steps (the book's study
    `metaoptimize_sensitivity`): from learning rates far too low the loss at the end is lowest at 15 to 40 / steps; from
    a good one, anything below serves as well.

    Raises:
        GradtuneError: `steps` is no whole number above 0.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise GradtuneError(f"steps is {steps!r}; expected the number of steps that the training will take, at least 1")
    return max(LOWEST, min(HIGHEST, REACH / steps))


def outer_rule(meta: str | Outer, step_size: float | None, form: str, steps: int | None = None) -> Outer:
    """Return the meta rule of a name, or the one that was given.

    Args:
        meta: "sgd", "adam", "lion" or "rmsprop", or an outer rule.
        step_size: step size of a rule given by name. None stands for `meta_step(steps)`, or `DEFAULT` without `steps`.
        form: with "package" the rule "lion" has the new momentum inside its sign.
        steps: how many steps the training will take; None: not known.

    Raises:
        GradtuneError: `meta` is neither a known name nor an outer rule, `step_size` is not a number >= 0, or `steps` is
            given with what leaves it nothing to decide.
    """
    if steps is not None and (step_size is not None or meta == "sgd" or not isinstance(meta, str)):
        raise GradtuneError(
            "steps chooses the meta step size of the meta rules lion, adam and rmsprop; "
            "leave it out beside meta_step_size, with the rule sgd, and with a rule that has a step size of its own"
        )
    if not isinstance(meta, str):
        if isinstance(meta, type) or not (hasattr(meta, "update") and hasattr(meta, "init")):
            raise GradtuneError(
                f"meta is a {type(meta).__name__}; expected one of {', '.join(_META)}, "
                "or a rule of gradtune.recursion.outer"
            )
        return meta
    if meta not in _META:
        raise unknown("meta rule of MetaOptimize", meta, _META)
    if step_size is None:
        step_size = DEFAULT if steps is None else meta_step(steps)
    if not _holds(lambda x: _number(x, 0, math.inf), step_size):
        raise GradtuneError(f"the meta step size is {short(step_size)}; expected a number >= 0")
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


def parameter_lists(params: Any, may_be_none: bool = False) -> Any:
    """Return parameters, or groups of them, in lists for torch to check further.

    Args:
        params: what the user gave.
        may_be_none: whether there may be no parameters at all, as where another process has them.

    Raises:
        GradtuneError: there are no parameters, or `params` is a module or nothing to iterate over.
    """
    if isinstance(params, Tensor | set):
        return params  # torch says what is wrong
    if isinstance(params, nn.Module | str | bytes | Mapping) or not isinstance(params, Iterable):
        raise GradtuneError(f"params is a {type(params).__name__}; {_EXPECTED}")
    lists = [_listed(each) if isinstance(each, dict) else each for each in params]
    if not may_be_none and (not lists or all(isinstance(each, dict) and each["params"] == [] for each in lists)):
        raise GradtuneError("MetaOptimize got no parameters; expected some, such as model.parameters()")
    kinds = {type(each).__name__ for each in lists if not (isinstance(each, Tensor | dict) or _is_named(each))}
    if kinds or 0 < sum(isinstance(each, dict) for each in lists) < len(lists):
        one = f"has {_named(kinds)} in it, and an optimizer can only optimize Tensors"
        raise WrongKind(f"params {one if kinds else 'has both parameters and groups of them in it'}; {_EXPECTED}")
    return lists


def _listed(group: Any) -> dict[str, Any]:
    """Return a group of parameters with these in a list."""
    if not isinstance(group, dict) or "params" not in group:
        what = "has no 'params'" if isinstance(group, dict) else f"is a {type(group).__name__}"
        raise WrongKind(f"a parameter group {what}; expected a dict such as {{'params': model.parameters()}}")
    params = group["params"]
    if isinstance(params, set):
        return group  # torch says what is wrong
    if isinstance(params, Tensor):
        return {**group, "params": [params]}
    if isinstance(params, nn.Module | str | bytes | Mapping) or not isinstance(params, Iterable):
        raise GradtuneError(f"the params of a parameter group are a {type(params).__name__}; {_EXPECTED}")
    return {**group, "params": list(params)}


def _is_named(each: Any) -> bool:
    """Tell whether something is a name and its parameter, as `named_parameters` gives them."""
    return isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str) and isinstance(each[1], Tensor)


def _named(kinds: Iterable[str]) -> str:
    return " and ".join(f"a {kind}" for kind in sorted(kinds))


class WrongKind(GradtuneError, TypeError):
    """A mistake of which torch's optimisers make a TypeError."""


@contextmanager
def torchs_errors() -> Iterator[None]:
    """Context: what torch says of parameters, groups or a state that do not fit is a `GradtuneError` too.

    Raises:
        GradtuneError: torch raised a ValueError or a TypeError; the latter is a TypeError still.
    """
    try:
        yield
    except GradtuneError:
        raise
    except (ValueError, TypeError) as error:
        kind = WrongKind if isinstance(error, TypeError) else GradtuneError
        sentence = " ".join(str(error).split()).rstrip(".")
        raise kind(f"{sentence}; MetaOptimize takes what torch's optimisers take") from error


def check_group(number: int, group: Mapping[str, Any], base: str, sharded: bool) -> None:
    """Check the hyperparameters and the parameters of a parameter group.

    Args:
        number: number of the group, for the message of the error.
        group: the group.
        base: name of the base optimiser.
        sharded: whether the optimiser was told that its parameters are divided among the processes.

    Raises:
        GradtuneError: a hyperparameter is outside its range, there is no such kernel, or the parameters are divided
            among the processes in another way than `sharded` says.
    """
    check_values(number, group)
    if group["fused"] and group["foreach"]:
        raise GradtuneError(f"fused and foreach are both True in parameter group {number}; leave one of them out")
    if group["fused"]:
        fused.check(number, group["params"], base)
    for k, p in enumerate(group["params"]):
        _check_division(f"parameter {k} of group {number}", p, sharded)


def check_values(number: int, values: Mapping[str, Any]) -> None:
    """Check hyperparameters by their names; what is none is passed over.

    Args:
        number: number of the parameter group, for the message of the error.
        values: value by name.

    Raises:
        GradtuneError: one is outside its range.
    """
    for name, (fits, expected) in _RANGES.items():
        if name in values and not _holds(fits, values[name]):
            raise GradtuneError(f"{name} = {short(values[name])} in parameter group {number}; expected {expected}")


def _check_division(which: str, p: Tensor, sharded: bool) -> None:
    if sharded and place(p) is not None:
        raise GradtuneError(f"{which} is a DTensor, which says by itself how it is divided; leave sharded out")
    if not sharded and getattr(p, "_fsdp_flattened", False):
        raise GradtuneError(
            f"{which} is flattened by FullyShardedDataParallel, which does not say how it is divided; "
            "give sharded=True, or use fully_shard"
        )


def _holds(fits: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(fits(value))
    except (TypeError, OverflowError, RuntimeError):  # not a number, or one beyond all others, or several
        return False
