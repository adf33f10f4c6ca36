"""How the study `starts` trains a problem: by `gradtune.tune`, by an optimiser in a plain loop, or by a search."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

import gradtune
from gradtune.errors import GradtuneWarning, unknown
from gradtune.optim import MetaOptimize
from gradtune.tuning import defaults
from gradtune.tuning.history import History
from gradtune.tuning.streams import stream
from gradtune_book.papers.packages import imported
from gradtune_book.tasks.small import Pair, Small

NAMED = (
    *("onepass", "diff_through_opt", "oho", "clip_r", "unroll_k"),
    *("hd", "baydin", "metaoptimize_hf", "fds"),
)
"""Methods that `gradtune.tune` runs under these names."""

STARTED = ("default", *NAMED, "MetaOptimize", "AdamW", "SGD")
"""Methods that have a learning rate to start from."""

OF_PACKAGES = ("ScheduleFree", "Prodigy", "DoG", "Bayes")
"""Methods that need a package of others."""

RULES = {"adamw": "AdamW", "sgd": "SGD"}
"""The two rules by their names in `gradtune`, and as methods with a fixed learning rate."""

_RESTARTS = {"fds": 2}
_TRIALS = 3
_SPACE = {"lr": (1e-6, 10.0), "weight_decay": (1e-5, 1.0)}  # as little known as to a method with a start
_WARMED = 50  # batches from which batch norm's statistics are taken anew


class Trained(NamedTuple):
    """What a training has left behind.

    Attributes:
        model: The trained model.
        lr: The learning rate in force at the end, NaN where a method has none.
        rewinds: How often the guard brought the training back.
    """

    model: nn.Module
    lr: float = math.nan
    rewinds: int = 0


Training = Callable[[Small, nn.Module, int, int], Trained]
"""Trains a module of a problem for a number of steps, with a seed of the batches and random numbers."""


def training(method: str, start: float | None, rule: str = "", weight_decay: float | None = None) -> Training:
    """Return the training of a method.

    Args:
        method: Name of the method: one of `STARTED` or `OF_PACKAGES`, or "grid".
        start: Learning rate at the start; None for a method that has none.
        rule: Rule of the fixed learning rate of "grid", one of `RULES`.
        weight_decay: Weight decay of "grid"; None for the default.

    Raises:
        GradtuneError: The method or the rule is unknown, or the method's package is not installed.
    """
    if method in OF_PACKAGES:
        return _of_a_package(method, start)
    if method == "grid":
        if rule not in RULES:
            raise unknown("rule of the grid", rule, RULES)
        return _fixed(RULES[rule], start, weight_decay)
    if method in RULES.values():
        return _fixed(method, start, None)
    if method == "MetaOptimize":
        return _looped(lambda parameters, steps: MetaOptimize(parameters, lr=start))  # type: ignore[arg-type]
    if method not in STARTED:
        raise unknown("method", method, [*STARTED, *OF_PACKAGES, "grid"])
    return _tuned(method, start)


def mean_loss(small: Small, model: nn.Module, part: Pair) -> float:
    """Return the mean loss of a model over all rows of a part, in evaluation mode."""
    with torch.no_grad():
        return float(small.loss(model.eval()(part[0]), part[1]))


# --- by gradtune ------------------------------------------------------------------------------------------------------


def _tuned(method: str, start: float | None) -> Training:
    """`gradtune.tune` with default options from a start: the recipe, or a method by name."""
    name, rule = (None, "adamw") if method == "default" else (method, "sgd")
    hypers = defaults.start(rule, name, {}) | {"lr": start}

    def train(small: Small, net: nn.Module, steps: int, seed: int) -> Trained:
        choices: dict[str, Any] = {"restarts": _RESTARTS.get(method, 0), "method": name, "hypers": hypers}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradtuneWarning)  # of updates that are left out
            model, history = gradtune.tune(
                net, small.loss, small.train, small.val, steps=steps, batch_size=small.batch, seed=seed, **choices
            )
        return Trained(model, _last_rate(history), history.rewinds)

    return train


def _last_rate(history: History) -> float:
    return float(history.to_frame()["lr"].iloc[-1])


def _search(small: Small, net: nn.Module, steps: int, seed: int) -> Trained:
    """The best of three trainings by AdamW, whose learning rate and weight decay Optuna's Gaussian process chooses."""
    found = gradtune.tune_by_search(
        net,
        small.loss,
        small.train,
        small.val,
        space=_SPACE,
        steps=steps,
        trials=_TRIALS,
        method="bayes",
        options={"startup": 1},
        rule="adamw",
        batch_size=small.batch,
        seed=seed,
    )
    return Trained(found.model, math.nan if found.best is None else float(found.best["lr"]))


# --- by an optimiser in a plain loop ----------------------------------------------------------------------------------

Make = Callable[[list[nn.Parameter], int], Optimizer]


def _fixed(rule: str, start: float | None, weight_decay: float | None) -> Training:
    """One of torch's optimisers with a learning rate and a weight decay that stay."""
    optimiser: Any = {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}[rule]
    decay = defaults.start(rule.lower(), "fixed", {})["weight_decay"] if weight_decay is None else weight_decay
    return _looped(lambda parameters, steps: optimiser(parameters, lr=start, weight_decay=decay))


def _looped(make: Make) -> Training:
    def train(small: Small, net: nn.Module, steps: int, seed: int) -> Trained:
        optimiser = make(list(net.parameters()), steps)
        loop(small, net, optimiser, steps, seed)
        return Trained(net, float(optimiser.param_groups[0]["lr"]))

    return train


def loop(
    small: Small,
    net: nn.Module,
    optimiser: Optimizer,
    steps: int,
    seed: int,
    after: Callable[[], object] = lambda: None,
) -> None:
    """Train as one does with torch, on the batches that `gradtune.tune` would take.

    Args:
        small: The problem.
        net: Its module.
        optimiser: Optimiser of the module's parameters.
        steps: Number of steps.
        seed: Seed of the order of the rows and of dropout.
        after: Called after each step.
    """
    feed = stream(small.data(steps, seed), next(net.parameters()), small.batch, 2 * seed, "the training data")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            x, y = feed.at(step)
            optimiser.zero_grad()
            small.loss(net(x), y).backward()
            optimiser.step()
            after()


# --- by packages of others --------------------------------------------------------------------------------------------


def _of_a_package(method: str, start: float | None) -> Training:
    found = imported(method)
    if method == "Bayes":
        return _search
    trained = {"ScheduleFree": schedule_free, "Prodigy": prodigy, "DoG": dog}[method]
    return lambda small, net, steps, seed: trained(found, start, small, net, steps, seed)


def schedule_free(found: Any, start: float | None, small: Small, net: nn.Module, steps: int, seed: int) -> Trained:
    """AdamW without a schedule; batch norm's statistics are taken anew at the averaged weights, as its authors say."""
    optimiser = found.AdamWScheduleFree(net.parameters(), lr=start)
    optimiser.train()
    loop(small, net, optimiser, steps, seed)
    optimiser.eval()
    feed = stream(small.train, next(net.parameters()), small.batch, 2 * seed, "the training data")
    if any(isinstance(m, nn.BatchNorm1d) for m in net.modules()):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for step in range(min(_WARMED, steps)):
                net(feed.at(step)[0])
    return Trained(net, float(optimiser.param_groups[0]["lr"]))


def prodigy(found: Any, start: float | None, small: Small, net: nn.Module, steps: int, seed: int) -> Trained:
    """Prodigy with its defaults and a cosine, as its authors advise."""
    optimiser = found.Prodigy(net.parameters())
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    loop(small, net, optimiser, steps, seed, cosine.step)
    return Trained(net)


def dog(found: Any, start: float | None, small: Small, net: nn.Module, steps: int, seed: int) -> Trained:
    """DoG with its defaults, and its average of the weights, as its authors advise."""
    optimiser, average = found.DoG(net.parameters()), found.PolynomialDecayAverager(net)
    loop(small, net, optimiser, steps, seed, average.step)
    return Trained(average.averaged_model)
