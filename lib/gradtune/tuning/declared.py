"""What a user's words stand for: the name of a rule or a method, and a hyperparameter given as a number.

A number becomes a `Hyper` in the coordinate in which it is usually tuned (`coordinate`). A `Hyper` is taken as it is.

Numbers by pattern stand for groups of parameter tensors, each with a value of its own. What is tuned and what is fixed
may be groups of the same hyperparameter::

    hypers={"lr": {"features.*": 1e-4, "*": 1e-3}}
    hypers={"lr": {"head.*": 1e-3}}, fixed={"lr": {"*": 1e-4}}
    hypers={"weight_decay": {"*": 1e-4}}, fixed={"weight_decay": {"1d": 0.0}}

The first pattern that matches the name of a tensor takes it, those of `hypers` before those of `fixed`. The pattern
"1d", which stands for all tensors with at most one dimension (biases, and the scales of norms), is asked before all
others, and the pattern "*" after them, wherever they stand.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gradtune import methods, search
from gradtune.errors import GradtuneError, GradtuneWarning, short, unknown
from gradtune.estimators.forward import Split
from gradtune.estimators.trace import IDBD, Trace
from gradtune.recursion import rules
from gradtune.recursion.groups import ONE_DIMENSIONAL, is_one_number
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.outer import Multiplicative
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Method
from gradtune.tuning import defaults

Given = Mapping[str, "float | Hyper | Mapping[str, float] | Tensor"] | Sequence[Hyper]
Fixed = Mapping[str, "float | Hyper | Mapping[str, float]"]

# name -> how it is made from the names of the hyperparameters that are given, what it can read, and torch.optim's
# defaults of what is not given (there, a momentum or a decay of 0 leaves the term out)
_RULES: dict[str, tuple[Callable[[set[str]], Rule], tuple[str, ...], dict[str, float]]] = {
    "sgd": (
        lambda n: rules.sgd(momentum="momentum" in n, weight_decay="weight_decay" in n),
        ("lr", "momentum", "weight_decay"),
        {},
    ),
    "nesterov": (
        lambda n: rules.sgd(weight_decay="weight_decay" in n, nesterov=True),
        ("lr", "momentum", "weight_decay"),
        {"momentum": 0.9},
    ),
    "adam": (
        lambda n: rules.adam(weight_decay="weight_decay" in n),
        ("lr", "beta1", "beta2", "weight_decay"),
        {"beta1": 0.9, "beta2": 0.999},
    ),
    "adamw": (
        lambda n: rules.adamw(),
        ("lr", "beta1", "beta2", "weight_decay"),
        {"beta1": 0.9, "beta2": 0.999, "weight_decay": 0.01},
    ),
    "rmsprop": (
        lambda n: rules.rmsprop(weight_decay="weight_decay" in n),
        ("lr", "beta2", "weight_decay"),
        {"beta2": 0.99},
    ),
    "lion": (
        lambda n: rules.lion(),
        ("lr", "beta1", "beta2", "weight_decay"),
        {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0},
    ),
}
RULES = tuple(_RULES)
"""Names of the update rules."""

_ONE = (0.0, 1.0)
# name -> transform and bounds; None: the coordinate of rates, log10 but where the method says otherwise
_COORDINATES: dict[str, tuple[str | None, tuple[float, float]]] = {
    "lr": (None, (1e-10, 1.0)),
    "weight_decay": (None, (0.0, float("inf"))),
    "momentum": ("sigmoid", _ONE),
    "beta1": ("sigmoid", _ONE),
    "beta2": ("sigmoid", _ONE),
    "smoothing": ("sigmoid", _ONE),
    "keep": ("sigmoid", _ONE),
}
# in natural units a step can leave the range where training is defined: these are closed ends a little inside
_NATURAL_BOUNDS = {"lr": _ONE, "weight_decay": _ONE}
_NATURAL_ELSE = (1e-3, 1 - 1e-3)
_KEEP_DIFFERENCE = 0.05


def coordinate(
    name: str, value: float | Mapping[str, float], method: str = "", tuned: bool | Collection[str] = True
) -> Hyper:
    """Return the declaration that a bare number, or numbers by pattern, stand for.

    The rates `lr` (bounds 1e-10 and 1) and `weight_decay` are tuned in log10; `momentum`, `beta1`, `beta2`, `smoothing`
    and `keep` in sigmoid coordinates (OnePass, Section 4.1). `keep` is differentiated by coupled differences of
    half-width 0.05, as the Clip paper does.

    Where the default rate of a method is meant for another coordinate, that coordinate is taken:

    * natural units for "oho" and for a multiplicative outer rule, with `lr` and `weight_decay` in [0, 1] and the others
      in [0.001, 0.999]; `keep` stays in sigmoid coordinates;
    * the natural logarithm of the rates for "metaoptimize_hf";
    * natural units with the range of the name alone for "fixed", where nothing moves.

    With "onepass_hdlr" there is a learning rate per weight. A number that is not tuned has only the range that its name
    means.

    Args:
        name: name of the hyperparameter.
        value: its initial value, natural units; or the value of each group of parameter tensors, by pattern.
        method: name of the method, or "multiplicative" for a method with a multiplicative outer rule.
        tuned: whether the hyperparameter is tuned, or the patterns of those of its groups that are.

    Raises:
        GradtuneError: the name is none of those above, or a pattern or its value is none.
    """
    if name not in _COORDINATES:
        raise _without_coordinate(name, value, bool(tuned))
    if isinstance(value, Mapping):
        return _by_pattern(name, value, method, tuned)
    if not is_one_number(value):
        raise GradtuneError(f"{name} is given as {short(value)}; expected a number, or numbers by pattern")
    transform, bounds = _COORDINATES[name]
    if method == "fixed":
        return Hyper(name, value, "identity", bounds=(0.0, float("inf") if transform is None else 1.0))
    if not tuned:
        return Hyper(name, value, transform or "log10", tuned=False)
    if name == "lr" and float(value) > bounds[1]:  # where somebody starts, the training may go
        bounds = (bounds[0], float(value))
    natural = method in ("oho", "multiplicative")
    if natural and name != "keep":
        ends = _NATURAL_BOUNDS.get(name, _NATURAL_ELSE)
        return Hyper(name, value, "identity", bounds=(ends[0], max(ends[1], bounds[1]) if name == "lr" else ends[1]))
    transform = transform or ("log" if method == "metaoptimize_hf" else "log10")
    per_weight = method == "onepass_hdlr" and name == "lr"
    difference = _KEEP_DIFFERENCE if name == "keep" else 0.0
    granularity = "weight" if per_weight else "global"
    return Hyper(name, value, transform, granularity, bounds=bounds, difference=difference)


def _without_coordinate(name: str, value: Any, tuned: bool) -> GradtuneError:
    """The error for a value of which its name says nothing more."""
    options = "transform, bounds=(low, high)" if tuned else "tuned=False"
    if isinstance(value, Mapping):
        what, declared = "numbers", f"{{...}}, {options}, granularity={{...}}"
    elif shape := _shape(value):
        what, declared = f"values of shape {shape}", f"values, {options}, shape={shape}"
    else:
        return GradtuneError(
            f"the number {value} for {name!r} says nothing of its coordinate and range; declare it as "
            f"Hyper({name!r}, {value}, {options})"
        )
    return GradtuneError(
        f"the {what} for {name!r} say nothing of their coordinate and range; declare them as "
        f"Hyper({name!r}, {declared})"
    )


def _by_pattern(name: str, values: Mapping[str, float], method: str, tuned: bool | Collection[str]) -> Hyper:
    """Groups whose patterns are their names, the most special first and the one for all the others last."""
    wrong = [p for p, v in values.items() if not isinstance(p, str) or _shape(v) != ()]
    if wrong or not values:
        what = f"{wrong[0]!r} has no number" if wrong else "there is no group"
        raise GradtuneError(
            f"{name} is given by groups, and {what}; expected numbers by pattern, such as "
            '{"features.*": 1e-4, "*": 1e-3}'
        )
    patterns = sorted(values, key=lambda p: (p != ONE_DIMENSIONAL) + (p == "*"))  # stable
    h = coordinate(name, next(iter(values.values())), method, bool(tuned))
    ordered = {p: float(values[p]) for p in patterns}
    return replace(h, value=ordered, granularity={p: p for p in patterns}, tuned=tuned)


def _shape(value: object) -> tuple[int, ...] | None:
    """Shape of a number, a tensor or an array; None of anything else."""
    try:
        return tuple(torch.as_tensor(value).shape)
    except (TypeError, ValueError, RuntimeError):
        return None


def method(given: str | Method, options: Mapping[str, Any] | None, steps: int | None = None) -> Method:
    """Return a `loop.Method` from its name in `methods.METHODS` and the options of the function that makes it.

    Args:
        given: the name, or a method, which is returned as it is.
        options: arguments of the function that makes the method.
        steps: value of an option `horizon` that has to be given and is not (FDS, the per-step method).

    Raises:
        GradtuneError: a name or an option is unknown, an option is missing, a method is given with options, or the name
            is that of no method of this kind: a search, the framework MetaOptimize, IDBD.
    """
    if isinstance(given, Method):
        if options:
            raise GradtuneError(f"options {sorted(options)} go with the name of a method; this one is made already")
        return given
    row = methods.get(given)
    if given in {s.name for s in search.METHODS}:
        raise GradtuneError(
            f"{given} is a search over many trainings, and this trains once; use gradtune.search.search({given!r}, ...)"
        )
    if given in _ELSEWHERE:
        raise GradtuneError(_ELSEWHERE[given])
    parameters = inspect.signature(row.make).parameters
    options = dict(options or defaults.options(given, steps))
    for name in options:
        if name not in parameters:
            raise unknown(f"option of {given}", name, parameters)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
    if "horizon" in missing and steps is not None:
        options["horizon"] = steps
        missing.remove("horizon")
    if missing:
        example = ", ".join(f"{n!r}: ..." for n in missing)
        why = f" ({reason})" if (reason := defaults.why_not(given)) else ""
        raise GradtuneError(f"the method {given} needs {', '.join(missing)}{why}; give options={{{example}}}")
    try:
        made: Method = row.make(**options)
    except (TypeError, OverflowError) as error:
        raise GradtuneError(f"the method {given} cannot be made with options={short(options)} ({error})") from error
    return made


_ELSEWHERE = {
    "metaoptimize": "metaoptimize in full is a loop of its own, gradtune.training.metaoptimize.MetaOptimize, for small "
    "problems; use 'metaoptimize_hf', its form without Hessians, or gradtune.optim.MetaOptimize",
    "idbd": "idbd is derived for a linear model, whose curvature a module does not offer; use 'metaoptimize_hf' with "
    "Hyper('lr', ..., 'log', granularity='weight')",
}


def rule_and_hypers(
    rule: str | Rule,
    hypers: Given,
    fixed: Fixed,
    of_function: Iterable[str],
    how: Method,
    name: str,
) -> tuple[Rule, list[Hyper]]:
    """Return the rule, and the declarations of all hyperparameters that it, the model or the loss reads.

    It warns of a rate that is tuned in natural units without bounds.

    Args:
        rule: name in `RULES`, or a rule.
        hypers: what the user tunes.
        fixed: what the user gives and does not tune. A name may stand in `hypers` as well where both have numbers by
            pattern.
        of_function: names that the model's forward pass and the loss take.
        how: the method.
        name: what the method is called.

    Returns:
        The rule and the declarations. What the rule reads and nobody gives has torch's default.

    Raises:
        GradtuneError: a name is unknown, repeated or wrongly placed, a number has no usual coordinate, nothing is left
            to tune, or the method cannot tune it.
    """
    given = _as_mapping(hypers)
    _refuse_twice(given, fixed)
    make, reads, defaults = _rule(rule)
    known = [*reads, *of_function]
    for n in (*given, *fixed):
        if n not in known:
            raise unknown("hyperparameter", n, known)
    rest = {**fixed, **{n: v for n, v in defaults.items() if n not in fixed}}
    rest = {n: v for n, v in rest.items() if n not in given}
    kind = "multiplicative" if isinstance(how.outer, Multiplicative) else name if how.estimator else "fixed"
    declared = [v if isinstance(v, Hyper) else _partly(n, v, fixed.get(n, {}), kind) for n, v in given.items()]
    declared += [
        replace(v, tuned=False) if isinstance(v, Hyper) else coordinate(n, v, tuned=False) for n, v in rest.items()
    ]
    local = [h.name for h in declared if h.name not in reads and h.granularity != "global"]
    if local:
        raise GradtuneError(f"{local} belong to the model or the loss and have one value; use granularity='global'")
    if how.estimator is not None and not any(h.tuned for h in declared):
        raise GradtuneError("no hyperparameter is left to tune; name one in hypers, or use method='fixed'")
    _check(declared, reads, how, name)
    return make({h.name for h in declared}), declared


def _refuse_twice(given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse what is given in both places, but for different groups of the same hyperparameter."""
    both = {n: [isinstance(x, Mapping) for x in (given[n], fixed[n])] for n in given if n in fixed}
    twice = [n for n, grouped in both.items() if not all(grouped)]
    if twice:
        hint = "; numbers by pattern may be in both, for different groups" * any(any(both[n]) for n in twice)
        raise GradtuneError(f"{twice} are given in hypers and in fixed; give each once{hint}")
    for n in both:
        patterns = [p for p in fixed[n] if p in given[n]]
        if patterns:
            raise GradtuneError(f"the groups {patterns} of {n} are given in hypers and in fixed; give each once")


def _partly(name: str, value: Any, fixed: Any, kind: str) -> Hyper:
    """A hyperparameter that is tuned, but for the groups in `fixed`."""
    if not fixed:
        return coordinate(name, value, kind)
    return coordinate(name, {**value, **fixed}, kind, tuple(value))


def _check(declared: Sequence[Hyper], reads: Collection[str], how: Method, name: str) -> None:
    """Refuse what the rule or the method cannot take, and warn of a rate that may drift without end."""
    shaped = [h.name for h in declared if h.shape]
    of_rule = [n for n in shaped if n in reads]
    if of_rule:
        raise GradtuneError(
            f"{of_rule} belong to the update rule and have a shape; leave it out, and use granularity for a value a "
            "group of weights"
        )
    if shaped and isinstance(how.estimator, Split):
        raise GradtuneError(
            f"{shaped} have a shape, and split sensitivities take all values of a hyperparameter together; use "
            "layerwise='exact', or another method"
        )
    others = [h for h in declared if h.tuned and h.name != "lr"]
    if others and isinstance(how.estimator, (Trace, IDBD)):
        example = others[0].value if isinstance(others[0].value, (int, float)) else "..."
        raise GradtuneError(
            f"{name or 'a trace'} follows the learning rate alone, and {[h.name for h in others]} are to be tuned too; "
            f"tune 'lr' and hold the others, as in fixed={{{others[0].name!r}: {example}}}"
        )
    rates = [h for h in declared if h.name in _NATURAL_BOUNDS and h.tuned and h.transform == "identity"]
    for h in rates if how.estimator is not None else ():
        if not all(map(math.isfinite, h.bounds)):
            warnings.warn(
                f"{h.name} is tuned in natural units with the bounds {h.bounds}, in which training may carry it away; "
                f"give Hyper({h.name!r}, ..., bounds={_NATURAL_BOUNDS[h.name]}), or transform='log10'",
                GradtuneWarning,
                stacklevel=_levels(),
            )


def _levels() -> int:
    """Number of frames from the caller to the user's line, for `warnings.warn`."""
    frame, levels = inspect.currentframe(), 0
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "gradtune":
        frame, levels = frame.f_back, levels + 1
    return levels


def _as_mapping(hypers: Given) -> dict[str, Any]:
    if isinstance(hypers, Mapping):
        wrong = [n for n, v in hypers.items() if isinstance(v, Hyper) and v.name != n]
        if wrong:
            raise GradtuneError(f"hypers[{wrong[0]!r}] declares another name; write the same name in both places")
        return dict(hypers)
    if len({h.name for h in hypers}) < len(hypers):
        raise GradtuneError(f"hyperparameters are named twice in {[h.name for h in hypers]}; give each name once")
    return {h.name: h for h in hypers}


def _rule(given: str | Rule) -> tuple[Callable[[set[str]], Rule], tuple[str, ...], dict[str, float]]:
    if isinstance(given, Rule):
        made = given
        return lambda names: made, given.hypers, {}
    if given not in _RULES:
        raise unknown("update rule", given, _RULES)
    return _RULES[given]


def keywords(function: Callable[..., Any], positional: int) -> dict[str, bool]:
    """Return the arguments of a model's forward pass or of a loss after the first `positional`.

    torch's own functions and modules have none: what they take beyond tensors are settings, not hyperparameters.

    Args:
        function: the model, or the loss.
        positional: number of leading arguments that are left out.

    Returns:
        For each name whether the argument must be given.
    """
    if isinstance(function, nn.Module):
        function = function.forward
    origin = getattr(function, "func", function)  # of a functools.partial
    if (getattr(origin, "__module__", None) or "").startswith("torch."):
        return {}
    try:
        parameters = list(inspect.signature(function).parameters.values())[positional:]
    except (TypeError, ValueError):
        return {}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: p.default is p.empty for p in named}
