"""The parameters of a notebook: read from its `parameters` cell without running it, and checked before it runs.

papermill injects a misspelt name after a mere warning and passes `1e-3` on as a string. Here a name has to be one that
the cell assigns, and a value has to be of the type that the cell declares. The types that can be checked are str, int,
float, bool, and unions of these with one another or None, such as `int | None`.
"""

import ast
import io
import math
import sys
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradtune.errors import GradtuneError, unknown

_SCALARS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell, such as `seed: int = 0  # of the first run`.

    Attributes:
        name: Name of the variable.
        type: The annotation, such as "int" or "int | None". Empty when the line has none.
        default: The value that the line assigns.
        comment: What stands after "#" on the line, or else on the line just above it.
    """

    name: str
    type: str
    default: Any
    comment: str


def read(source: str, where: str) -> dict[str, Parameter]:
    """Return the parameters that a cell assigns, by name and in its order.

    Args:
        source: Text of the cell.
        where: Name of the notebook in errors.

    Raises:
        GradtuneError: The cell is no valid Python, or a default is not a plain value.
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or "?"
        raise GradtuneError(f"{where}: the parameters cell is no valid Python (line {line})") from None
    comments, found = _comments(source), {}
    for line in body:
        target = line.target if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])[0]
        value = getattr(line, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            continue
        declared = ast.unparse(line.annotation) if isinstance(line, ast.AnnAssign) else ""
        found[target.id] = Parameter(target.id, declared, _literal(value, target.id, where), _comment(line, comments))
    return found


def check(known: Mapping[str, Parameter], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values by name in the types that the notebook declares.

    Text, as a command line gives it, is converted, and an int may stand for a float.

    Args:
        known: The notebook's parameters, from `read`.
        values: The values to check.
        where: Name of the notebook in errors.

    Raises:
        GradtuneError: The notebook has no parameter of a name (the nearest one is suggested), a value has the wrong
            type, or the declared type is none that can be checked.
    """
    for name in values:
        if name not in known:
            raise unknown(f"parameter of {where}", name, known)
    return {name: _value(known[name], value, where) for name, value in values.items()}


def _literal(node: ast.expr, name: str, where: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):  # a TypeError is that of a list as a key
        raise GradtuneError(
            f"{where}: the default of parameter {name!r} must be a plain value, not a formula"
        ) from None


def _comments(source: str) -> dict[int, str]:
    """Return the comment on each line that has one, by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}


def _comment(line: ast.stmt, comments: Mapping[int, str]) -> str:
    return comments.get(line.end_lineno or line.lineno) or comments.get(line.lineno - 1, "")


def _value(parameter: Parameter, value: Any, where: str) -> Any:
    """Return `value` as the first of the parameter's types that takes it."""
    members = [member.strip() for member in parameter.type.split("|")]
    if not {*members} <= {*_SCALARS, "None"} or members == ["None"]:
        raise GradtuneError(
            f"{where}: {parameter.name!r} cannot be set: its type ({parameter.type or 'not declared'}) is none "
            "of str, int, float, bool, or one of these with `| None`"
        )
    if "None" in members and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    for member in members:
        taken = None if member == "None" else _scalar(_SCALARS[member], value)
        if taken is not None:
            return taken
    raise GradtuneError(
        f"{where}: parameter {parameter.name!r} must be {parameter.type}, not {type(value).__name__}: {value!r}"
    )


def _scalar(kind: Any, value: Any) -> Any:
    """Return `value` as `kind`, None when it is of another: a bool is no number, an int may stand for a float."""
    if isinstance(value, str) and kind is not str:
        return _parsed(kind, value.strip())
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= sys.float_info.max else None
    return value if type(value) is kind and (kind is not float or math.isfinite(value)) else None


def _parsed(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    try:
        number = int(text) if kind is int else float(text)
    except ValueError:
        return None
    return number if kind is int or math.isfinite(number) else None
