"""Strict configurations: flat frozen dataclasses that reject unknown names and wrong types.

A configuration says everything that decides a run's numbers, so its hash (`key`) is the run's identity in the records.
Field types may be bool, int, float, str, `Literal[...]`, `X | None` and tuples of these. An int is welcome where a
float is declared and becomes one, so that 1 and 1.0 are the same run. A float must be finite. A bool is never a number.
"""

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from gradtune.errors import GradtuneError, unknown

SCALES: tuple[str, ...] = ("smoke", "laptop", "paper")
"""Sizes a study can be run at, smallest first."""

C = TypeVar("C")

# the fields' types of a class, kept because a study's list may hold thousands of configurations
_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def check_scale(scale: str) -> str:
    """Return `scale` where it is one of `SCALES`.

    Raises:
        GradtuneError: It is none of them. The error suggests the nearest one.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    return scale


def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
    """Build a configuration from values by field name; fields that are absent take their defaults.

    Args:
        cls: Type of the configuration, a dataclass.
        values: Value of each field, by name. A list stands for a tuple.

    Raises:
        GradtuneError: A name is unknown (the nearest one is suggested), a value has the wrong type or is not finite, a
            field without a default is missing, or `cls` is no dataclass.
    """
    hints = _hints(cls)
    fields = {field.name: field for field in _fields(cls) if field.init}
    for name in values:
        if name not in fields:
            raise unknown(f"parameter of {cls.__name__}", name, fields)
    missing = [name for name, field in fields.items() if name not in values and not _has_default(field)]
    if missing:
        raise GradtuneError(f"{cls.__name__} needs a value for {', '.join(missing)}")
    checked = {name: _checked(f"{cls.__name__}.{name}", hints[name], value) for name, value in values.items()}
    return cls(**checked)


def to_dict(cfg: Any) -> dict[str, Any]:
    """Return the configuration as plain JSON values, tuples as lists; `from_dict` undoes it."""
    return {field.name: _plain(getattr(cfg, field.name)) for field in _fields(type(cfg)) if field.init}


def replace(cfg: C, **changes: Any) -> C:
    """Return a copy of `cfg` with some fields changed.

    Raises:
        GradtuneError: As `from_dict`.
    """
    return from_dict(type(cfg), {**to_dict(cfg), **changes})


def check(cfg: C) -> C:
    """Return `cfg` with every field's type checked, as a dataclass checks nothing itself when it is called.

    Raises:
        GradtuneError: A value has the wrong type or is not finite.
    """
    return from_dict(type(cfg), to_dict(cfg))


def key(study: str, cfg: Any) -> str:
    """Return the 12 hexadecimal digits that identify one run of a study in the records.

    They are the start of a SHA-256 over the study's name and every field, defaults included: a changed default is
    another run.

    Args:
        study: Name of the study.
        cfg: The run's configuration, checked by `check`.
    """
    text = json.dumps([study, to_dict(check(cfg))], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    if not dataclasses.is_dataclass(cls):
        raise GradtuneError(f"a configuration must be a dataclass; {cls.__name__} is none")
    return dataclasses.fields(cls)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def _checked(name: str, hint: Any, value: Any) -> Any:
    """Return `value` as the declared type `hint`, or raise a GradtuneError that names the field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _checked_union(name, hint, arguments, value)
    if origin is typing.Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise unknown(f"value of {name}", value, [str(choice) for choice in arguments])
        return value
    if origin is tuple:
        return _checked_tuple(name, hint, arguments, value)
    return _checked_scalar(name, hint, value)


def _checked_union(name: str, hint: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    """Take the first member of the union that accepts `value`."""
    for member in arguments:
        try:
            return _checked(name, member, value)
        except GradtuneError as error:
            if (
                len(arguments) == 2
                and types.NoneType in arguments
                and member is not types.NoneType
                and value is not None
            ):
                raise GradtuneError(f"{error} (or None)") from None
    raise _wrong_type(name, hint, value)


def _checked_tuple(name: str, hint: Any, arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise _wrong_type(name, hint, value)
    members = (arguments[0],) * len(value) if len(arguments) == 2 and arguments[1] is Ellipsis else arguments
    if len(members) != len(value):
        raise GradtuneError(f"{name} must hold {len(members)} values, not {len(value)}: {value!r}")
    return tuple(_checked(f"{name}[{i}]", member, item) for i, (member, item) in enumerate(zip(members, value)))


def _checked_scalar(name: str, hint: Any, value: Any) -> Any:
    if hint is types.NoneType and value is None:
        return None
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise GradtuneError(
                f"{name} must be a finite number, not {value!r}; use a field of type `float | None` for 'none'"
            )
        return float(value)
    if hint in (bool, int, str) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise _wrong_type(name, hint, value)


def _wrong_type(name: str, hint: Any, value: Any) -> GradtuneError:
    expected = (
        hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
    )
    return GradtuneError(f"{name} must be {expected}, not {type(value).__name__}: {value!r}")
