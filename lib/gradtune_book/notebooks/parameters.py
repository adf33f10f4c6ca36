"""The parameters of a notebook: read from its `parameters` cell without running it, and checked before it runs.

papermill injects a misspelt name after a mere warning and passes `1e-3` on as a string. Here a name has to be one that
the cell assigns, and a value has to be of the type the cell declares. Understood types: str, int, float, bool, and any
of them `| None`.
"""

import ast
import io
import math
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradtune.errors import GradtuneError, unknown

_SCALARS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell, such as ``seed: int = 0  # of the first run``."""

    name: str
    type: str  # "int" or "int | None"; empty when the line has no annotation
    default: Any
    comment: str  # what stands after "#" on the line, or on the lines just above it


def read(source: str, where: str) -> dict[str, Parameter]:
    """Return the parameters that the cell `source` assigns, in its order; `where` names the notebook in errors.

    Raises:
        GradtuneError: the cell is no Python, or an annotation or default is not one that can be checked.
    """
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise GradtuneError(f"{where}: the parameters cell is no valid Python (line {error.lineno})") from None
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
    """Return `values` as the types that the notebook declares; text, as a command line gives it, is converted.

    Raises:
        GradtuneError: a name the notebook does not have (nearest one suggested), or a value of the wrong type.
    """
    for name in values:
        if name not in known:
            raise unknown(f"parameter of {where}", name, known)
    return {name: _value(known[name], value, where) for name, value in values.items()}


def _literal(node: ast.expr, name: str, where: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise GradtuneError(
            f"{where}: the default of parameter {name!r} must be a plain value, not a formula"
        ) from None


def _comments(source: str) -> dict[int, str]:
    """Return line number -> comment on that line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("#").strip() for t in tokens if t.type == tokenize.COMMENT}


def _comment(line: ast.stmt, comments: Mapping[int, str]) -> str:
    return comments.get(line.end_lineno or line.lineno) or comments.get(line.lineno - 1, "")


def _value(parameter: Parameter, value: Any, where: str) -> Any:
    """Return `value` as one of the parameter's types, the first that takes it."""
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
    """Return `value` as `kind`, or None when it is none: a bool is no number, an int may stand for a float."""
    if isinstance(value, str) and kind is not str:
        return _parsed(kind, value.strip())
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind and (kind is not float or math.isfinite(value)) else None


def _parsed(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower())
    try:
        number = int(text) if kind is int else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
