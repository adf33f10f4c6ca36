"""Arguments of another kind than `tune` takes: one sentence in place of what would go wrong somewhere inside."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler

from gradtune.errors import GradtuneError, short
from gradtune.recursion.groups import is_one_number
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Method


def check(given: Mapping[str, Any]) -> None:
    """Check the kinds of arguments of `tune`, which have the same names there.

    Args:
        given: value by name of the argument; what is not known here is passed over.

    Raises:
        GradtuneError: one is of another kind; says which, and what is expected.
    """
    for name, (fits, expected) in _KINDS.items():
        if name in given and not fits(given[name]):
            value = given[name]
            what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
            plain = isinstance(value, (int, float, complex)) and expected.startswith(("a number", "True"))
            raise GradtuneError(f"{name} is {short(value) if plain else what}; expected {expected}")


def _function(x: Any) -> bool:
    return callable(x) and not isinstance(x, type)


def _positive(x: Any) -> bool:
    return is_one_number(x) and not isinstance(x, Tensor) and 0 < float(x) < math.inf


def _hypers(x: Any) -> bool:
    several = not isinstance(x, str) and isinstance(x, Sequence)
    return x is None or isinstance(x, Mapping) or (several and all(isinstance(h, Hyper) for h in x))


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: x is None or fits(x)


def _is(*kinds: Any) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, kinds)


_FLAG = (_or_none(_is(bool)), "True, False or None")
_LIMIT = (_or_none(_positive), "a number > 0, or None for no limit")
_VALUES = (_or_none(_is(Mapping)), "a dict from names to values, or None")
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model": (_is(nn.Module), "a torch.nn.Module"),
    "loss": (_or_none(_function), "a function loss(output, y), or None for a model that returns its loss"),
    "val_loss": (_or_none(_function), "a function val_loss(output, y), or None for the training loss"),
    "hypers": (_hypers, "a dict from names to values, such as {'lr': 0.1}, or a list of Hyper"),
    "fixed": _VALUES,
    "options": _VALUES,
    "method": (_or_none(_is(str, Method)), "the name of a method, a Method, or None"),
    "rule": (_or_none(_is(str, Rule)), "the name of a rule, a Rule, or None"),
    "clip_norm": _LIMIT,
    "clip_value": _LIMIT,
    "scaler": (_or_none(_is(GradScaler)), "a torch.amp.GradScaler, or None"),
    "probe": _FLAG,
    "guard": _FLAG,
    "replay": _FLAG,
    "in_place": (_is(bool), "True or False"),
    "callbacks": (
        lambda x: _function(x) or (isinstance(x, Sequence) and all(map(_function, x))),
        "a function of an Info, or a list of them",
    ),
    "checkpoint": (_or_none(_is(str, os.PathLike)), "a path, or None"),
    "checkpoint_seconds": (lambda x: _positive(x) or (isinstance(x, Real) and x == 0), "a number >= 0"),
}
