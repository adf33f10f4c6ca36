"""What is taken where a user names nothing: the rule, the method and its rates, and where hyperparameters start.

With neither rule nor method, `tune` trains by the recipe:

1. learning rates race for a few steps each (`probe`), and training starts from the one that wins, whatever rate was
   given;
2. AdamW trains, and OnePass tunes the weight decay, and all else that is named, on validation batches: every 20 steps
   (in trainings below 240 steps a twelfth of them) with a look-back of 3 and an outer rate of 0.1, a third of the
   derivatives of the paper's setting;
3. the learning rate is multiplied by a factor that falls in a straight line from 1 to 0.01 (`schedule.linear`);
4. a guard brings the training back where it diverges (`guard.Guard`);
5. the training ends with the weights whose validation loss was lowest (`guard.Best`).

A learning rate that is one number is not moved by its hypergradient: that of a few steps favours small rates, and the
schedule lowers the rate already. Rates by group, and declared ones, race as a whole and are tuned from there.

No paper has this recipe, and none of its parts acts on a method that is asked for by name, but for the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.outer import Lion, SignHalving
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Method
from gradtune.tuning.events import Race

_LOOK_BACK, _EVERY, _UPDATES, _RATE = 3, 20, 12, 0.1

Given = Mapping[str, Any] | Sequence[Hyper]

_DECAY = 0.1  # the largest weight decay to start from in the recipe

_RATES = {"sgd": 0.01, "nesterov": 0.01, "lion": 1e-4}
_DECAYS = {"adamw": 0.1, "lion": 0.01}
_ONLY_LR = ("hd", "baydin", "metaoptimize_hf")
_REACH = 10.0


def _meta_step(steps: int | None) -> float:
    """Return a relative step of the learning rate: 0.02 up to 500 steps, and above, what reaches a factor exp(10)."""
    return 0.02 if steps is None else max(1e-3, min(0.02, _REACH / steps))


def recipe(steps: int, tuned: Given) -> tuple[str, dict[str, Any]]:
    """Return name and options of the recipe's method; it is "fixed" where nothing is left to tune but the rate.

    Args:
        steps: steps of the training.
        tuned: what `raced` returned.
    """
    lr = tuned.get("lr") if isinstance(tuned, Mapping) else None
    if names(tuned) == ["lr"] and isinstance(lr, Hyper) and lr.bounds[0] == lr.bounds[1]:
        return "fixed", {}
    every = max(1, min(_EVERY, steps // _UPDATES))
    return "onepass", {"look_back": _LOOK_BACK, "every": every, "lr": _RATE}


_OPTIONS: dict[str, Callable[[int | None], dict[str, Any]]] = {
    "hd": lambda steps: {"lr": _meta_step(steps), "multiplicative": True},
    "metaoptimize_hf": lambda steps: {"meta": Lion(_meta_step(steps))},
    "fds": lambda steps: {"outer": SignHalving(0.1)},
}
_WITHOUT = {
    "greedy": "the rate of its outer SGD depends on the scale of your loss",
    "per_step": "the rate of its outer SGD depends on the scale of your loss and on the number of steps",
}


def options(method: str, steps: int | None) -> dict[str, Any]:
    """Return the options of a method that depend on the number of steps, which nobody has given.

    Args:
        method: name of the method.
        steps: steps of the training; None where it is not known.
    """
    return _OPTIONS[method](steps) if method in _OPTIONS else {}


def raced(tuned: Given, race: Race | None, chosen: str | Rule, fixed: Mapping[str, Any], steps: int) -> Given:
    """Return what the recipe tunes and from where, after a race: numbers where numbers were given.

    The weight decay starts from 1 / (rate steps), so that AdamW's decay over the training stays below exp(-1), and at
    most from `_DECAY`; it is left out where it is fixed or where the rule has none. A learning rate that was one number
    stays the one that won, as the schedule lowers it; rates by group, and declared ones, are tuned from there.

    Args:
        tuned: what was given to tune.
        race: the race.
        chosen: the rule.
        fixed: what stays as it is.
        steps: steps of the training.
    """
    if not isinstance(tuned, Mapping) or not isinstance(tuned.get("lr"), (int, float)):
        return tuned
    lr = tuned["lr"] if race is None or race.best is None else race.best
    found = {**tuned, "lr": Hyper("lr", lr, "log10", bounds=(lr, lr))}
    if "weight_decay" not in found and "weight_decay" not in fixed and name(chosen) in _DECAYS:
        found["weight_decay"] = min(_DECAY, 1 / (lr * steps))
    return found


def why_not(method: str) -> str:
    """Return why a method has no default rate, in words; "" where nothing is known."""
    return _WITHOUT.get(method, "")


def chosen(
    rule: str | Rule | None, hypers: Given | None, fixed: Mapping[str, Any], method: str | Method | None
) -> tuple[str | Rule, Given, dict[str, Any]]:
    """Return rule, tuned and fixed hyperparameters: what was given, and the defaults of the rest.

    The rule is AdamW in the recipe, and SGD elsewhere and where a momentum is named.

    Args:
        rule: the rule that was given, or None.
        hypers: what is tuned, or None.
        fixed: what stays as it is.
        method: the method; None stands for the recipe.

    Raises:
        GradtuneError: `start` raises it.
    """
    named = {*names(hypers or {}), *fixed}
    made = rule if rule is not None else "adamw" if method is None and "momentum" not in named else "sgd"
    tuned = start(made, method, fixed) if hypers is None else hypers
    return made, tuned, {**held(made, method, tuned), **fixed}


def start(chosen: str | Rule, method: str | Method | None, fixed: Mapping[str, Any]) -> dict[str, float]:
    """Return what is tuned, and from where, when nobody has said it.

    These are the learning rate and the weight decay, as far as they are not fixed and the method can tune them.

    Args:
        chosen: the rule.
        method: the method; None stands for the recipe.
        fixed: hyperparameters that stay as they are.

    Raises:
        GradtuneError: the method tunes what only the user can name, or the rule is the user's own.
    """
    if method == "unroll1_gtgv":
        raise GradtuneError(
            "unroll1_gtgv tunes hyperparameters of the loss or the model, which only you can name; give hypers=..."
        )
    reads = chosen.hypers if isinstance(chosen, Rule) else ("lr", "weight_decay")
    found = {"lr": _RATES.get(name(chosen), 1e-3), "weight_decay": _DECAYS.get(name(chosen), 1e-4)}
    if method in _ONLY_LR:
        del found["weight_decay"]
    if method == "lorraine":
        del found["lr"]
    if method is None and name(chosen) in _DECAYS:
        del found["weight_decay"]  # `raced` knows better
    found = {n: v for n, v in found.items() if n in reads and n not in fixed}
    if not found:
        raise GradtuneError(
            "nothing is said of what to tune, and learning rate and weight decay are fixed; give hypers"
        )
    return found


def held(chosen: str | Rule, method: str | Method | None, tuned: Given) -> dict[str, float]:
    """Return what stays as it is when nobody has said anything: the learning rate of a method that tunes the others."""
    return {"lr": _RATES.get(name(chosen), 1e-3)} if method == "lorraine" and "lr" not in names(tuned) else {}


def names(given: Given) -> list[str]:
    """Return the names of hyperparameters that are given by name or declared."""
    return list(given) if isinstance(given, Mapping) else [h.name for h in given]


def name(chosen: str | Rule) -> str:
    """Return the name of a rule."""
    return chosen if isinstance(chosen, str) else chosen.name
