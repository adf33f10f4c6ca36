"""The ways to train that the study `together` compares, each as a line of a table.

A way is a method of this library, a search, or what people would take instead. All train through the public calls:
`gradtune.tune`, `gradtune.tune_by_search`, or an optimiser in a plain loop.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

import gradtune
from gradtune import methods
from gradtune.errors import GradtuneError, GradtuneWarning, unknown
from gradtune.estimators.reverse import Reverse
from gradtune.nets import losses
from gradtune.optim import MetaOptimize
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.outer import Lion, SignHalving
from gradtune.training.loop import Method
from gradtune.tuning import defaults
from gradtune_book.papers.packages import imported
from gradtune_book.papers.together import comparison_costs
from gradtune_book.papers.together.start_trainings import Trained, dog, loop, prodigy, schedule_free
from gradtune_book.tasks.small import Small

Tunes = Literal["", "rate", "decay", "rate and decay", "rate, decay and momentum", "rates by tensor", "smoothing"]
"""What a way tunes; "" is nothing."""

TRIALS = 5
"""Trainings that a search's budget is worth."""

SPACE = {"lr": (1e-6, 10.0), "weight_decay": (1e-5, 1.0)}
"""What a search looks through: as little known of the rate as to a method that starts anywhere."""

RESTARTS = 4
"""Trainings after the first of a method whose outer update comes at the end of a training."""

WINDOWS = 5
"""Windows of FDS."""

_DECAY, _MOMENTUM, _SMOOTHING = 1e-4, 0.9, 0.05


@dataclass(frozen=True)
class Trial:
    """What a way trains.

    Attributes:
        problem: The problem.
        net: Its module.
        steps: Training steps, all trainings of a search or of restarts together.
        seed: Seed of the batches and of random numbers.
        start: Learning rate at the start; None for a way that has none.
        tunes: What is tuned.
        factor: Multiple of the method's outer rate.
    """

    problem: Small
    net: nn.Module
    steps: int
    seed: int
    start: float | None = None
    tunes: Tunes = "rate and decay"
    factor: float = 1.0


Train = Callable[[Trial], Trained]


@dataclass(frozen=True)
class Way:
    """A way to train.

    Attributes:
        title: Its name in the book.
        kind: "gradients" of hyperparameters, "search", or "optimiser" of the usual kind.
        train: What trains.
        tunes: What it tunes where nothing else is said.
        also: What else it can tune.
        setting: Whose outer settings it has: "paper", "ours", or "" where it has none.
        starts: Whether it starts from a learning rate that is given.
        validates: Whether it needs validation rows while it trains.
        rule: What it trains by, where a method by gradients moves the rate of one: the name of the way that leaves the
            rate where it started.
    """

    title: str
    kind: Literal["gradients", "search", "optimiser"]
    train: Train
    tunes: Tunes = ""
    also: tuple[Tunes, ...] = ()
    setting: Literal["paper", "ours", ""] = ""
    starts: bool = True
    validates: bool = True
    rule: Literal["SGD", "AdamW"] = "SGD"


# --- by gradients -----------------------------------------------------------------------------------------------------

_OPTIONS: dict[str, Callable[[float, int], dict[str, Any]]] = {
    "oho": lambda f, steps: {"lr": 5e-6 * f},
    "unroll_k": lambda f, steps: {"scale": 0.1 * f},
    "clip_r": lambda f, steps: {"scale": 0.1 * f},
    "greedy": lambda f, steps: {"lr": 0.1 * f},
    "onepass": lambda f, steps: {"lr": 0.05 * f},
    "onepass_hdlr": lambda f, steps: {"lr": 0.05 * f},
    "lorraine": lambda f, steps: {"lr": 0.05 * f},
    "diff_through_opt": lambda f, steps: {"lr": 0.05 * f},
    "hd": lambda f, steps: {"lr": f * defaults.options("hd", steps)["lr"], "multiplicative": True},
    "baydin": lambda f, steps: {"lr": 1e-3 * f},
    "metaoptimize_hf": lambda f, steps: {"meta": Lion(f * defaults.options("metaoptimize_hf", steps)["meta"].lr)},
}


def hypers(trial: Trial) -> dict[str, Any]:
    """Return what `gradtune.tune` is told to tune, with the learning rate it starts from.

    Raises:
        GradtuneError: Nothing of that name can be tuned.
    """
    lr = trial.start
    known: dict[str, dict[str, Any]] = {
        "rate": {"lr": lr},
        "decay": {"weight_decay": _DECAY},
        "rate and decay": {"lr": lr, "weight_decay": _DECAY},
        "rate, decay and momentum": {"lr": lr, "weight_decay": _DECAY, "momentum": _MOMENTUM},
        "rates by tensor": {"lr": {name: lr for name, _ in trial.net.named_parameters()}},
        "smoothing": {"smoothing": _SMOOTHING},
    }
    if trial.tunes not in known:
        raise unknown("choice of what is tuned", trial.tunes, known)
    return known[trial.tunes]


def by_gradients(name: str, trial: Trial, rule: str = "sgd") -> Trained:
    """Train once, while a method moves the hyperparameters.

    Args:
        name: What `gradtune.tune` calls the method.
        trial: What is trained.
        rule: The update rule.
    """
    options = _OPTIONS[name](trial.factor, trial.steps)
    return _tuned(trial, hypers(trial), rule, name, options=options)


def recipe(trial: Trial) -> Trained:
    """Train by `gradtune.tune` with nothing chosen."""
    return _tuned(trial, {"lr": trial.start}, None, None)


def at_the_end(windows: int | None, trial: Trial) -> Trained:
    """Train several times; after each training the sign rule with halving moves a schedule of learning rates.

    Args:
        windows: Windows of the schedule, whose hypergradient comes in forward mode (FDS); None for a value a step, in
            reverse mode.
        trial: What is trained.
    """
    steps = max(1, trial.steps // (1 + RESTARTS))
    start = 1e-3 if trial.start is None else trial.start
    count = steps if windows is None else min(windows, steps)
    rate = Hyper("lr", start, "log10", windows=count, bounds=(1e-10, max(1.0, start)))
    rule = SignHalving(0.5 * trial.factor)
    method = methods.fds(steps, rule) if windows else Method(Reverse(steps), rule, every=steps)
    return _tuned(trial, [rate], "sgd", method, steps=steps, restarts=RESTARTS)


def _tuned(trial: Trial, tuned: Any, rule: str | None, method: Any, **more: Any) -> Trained:
    problem, smooth = trial.problem, trial.tunes == "smoothing"
    held = {"lr": trial.start} if trial.tunes in ("decay", "smoothing") else {}
    val = None if method in ("hd", "baydin", "metaoptimize_hf") else problem.val
    arguments = {"steps": trial.steps, "seed": trial.seed, "rule": rule, "method": method, "hypers": tuned} | more
    arguments |= {"fixed": held, "batch_size": problem.batch}
    if val is not None:
        arguments |= {"val_batch_size": _rows(problem)}
    if smooth:
        arguments |= {"val_loss": problem.loss}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradtuneWarning)  # of updates that are left out
        model, history = gradtune.tune(
            trial.net,
            losses.cross_entropy if smooth else problem.loss,
            problem.data(trial.steps, trial.seed),
            val,
            **arguments,
        )
    frame = history.to_frame()
    rates = [c for c in frame.columns if c == "lr" or c.startswith("lr[")]
    return Trained(model, float(frame[rates[0]].iloc[-1]) if len(rates) == 1 else math.nan, history.rewinds)


def _rows(problem: Small) -> int | None:
    """Rows of a validation batch: as many as of a training batch, so that a validation gradient costs as much."""
    return None if problem.batch is None else min(problem.batch, len(problem.val[0]))


# --- by searches ------------------------------------------------------------------------------------------------------

_SEARCHES: Mapping[str, dict[str, Any]] = {
    "grid": {"points": TRIALS},  # of the rate alone: two values each of rate and decay would all be ends of a range
    "bayes": {"startup": 2},
    "pbt": {"size": TRIALS},
}


def by_search(name: str, trial: Trial) -> Trained:
    """Train many times by AdamW, `TRIALS` full trainings' worth of steps, and keep the best by validation loss."""
    full = max(1, trial.steps // TRIALS)
    found = gradtune.tune_by_search(
        trial.net,
        trial.problem.loss,
        trial.problem.train,
        trial.problem.val,
        space=SPACE if trial.tunes == "rate and decay" else {"lr": SPACE["lr"]},
        steps=full,
        budget_steps=TRIALS * full,
        method=name,
        options=_SEARCHES.get(name),
        rule="adamw",
        batch_size=trial.problem.batch,
        seed=trial.seed,
    )
    return Trained(found.model, math.nan if found.best is None else float(found.best["lr"]))


# --- by an optimiser --------------------------------------------------------------------------------------------------


def plainly(
    make: Callable[[nn.Module, float], torch.optim.Optimizer], trial: Trial, usual: float = 1e-3, cosine: bool = False
) -> Trained:
    """Train by an optimiser of torch, or one like it, in a plain loop.

    Args:
        make: Makes the optimiser of a module and a learning rate.
        trial: What is trained.
        usual: Learning rate where the trial has none: the one that most would take.
        cosine: Whether the learning rate falls to 0 along a cosine.
    """
    optimiser = make(trial.net, usual if trial.start is None else trial.start)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, trial.steps) if cosine else None
    loop(trial.problem, trial.net, optimiser, trial.steps, trial.seed, falling.step if falling else lambda: None)
    return Trained(trial.net, float(optimiser.param_groups[0]["lr"]))


def _adamw(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=lr)


def _sgd(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr)


def _momentum(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)


def _meta(groups: str, trial: Trial) -> Trained:
    step = trial.factor * defaults.options("metaoptimize_hf", trial.steps)["meta"].lr
    make = lambda net, lr: MetaOptimize(net.parameters(), lr=lr, meta_step_size=step, groups=groups)  # noqa: E731
    return plainly(make, trial)


def _packaged(name: str, trained: Callable[..., Trained], trial: Trial) -> Trained:
    """Train by a package of others with its defaults; the number is the rate that `schedulefree` has by default."""
    return trained(imported(name), 0.0025, trial.problem, trial.net, trial.steps, trial.seed)


def _adapted(found: Any, start: float, problem: Small, net: nn.Module, steps: int, seed: int) -> Trained:
    """D-Adaptation of Adam with its defaults."""
    loop(problem, net, found.DAdaptAdam(net.parameters()), steps, seed)
    return Trained(net)


def fixed(rule: str, weight_decay: float) -> Train:
    """Return the training by AdamW or SGD with momentum 0.9 whose learning rate, the start, and weight decay stay."""
    makes: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "AdamW": torch.optim.AdamW,
        "SGD": partial(torch.optim.SGD, momentum=_MOMENTUM),
    }
    if rule not in makes:
        raise unknown("rule of fixed trainings", rule, makes)
    return partial(plainly, lambda net, lr: makes[rule](net.parameters(), lr=lr, weight_decay=weight_decay))


# --- the table --------------------------------------------------------------------------------------------------------

_BOTH: Tunes = "rate and decay"
_MORE: tuple[Tunes, ...] = ("rate, decay and momentum", "rates by tensor", "smoothing")


def _gradients(title: str, name: str, tunes: Tunes, also: tuple[Tunes, ...] = (), **more: Any) -> Way:
    setting, rule = more.pop("setting", "paper"), more.get("rule", "SGD")
    train = partial(by_gradients, name, rule=rule.lower())
    return Way(title, "gradients", train, tunes, also, setting, **more)


def _search(title: str, name: str, tunes: Tunes = _BOTH) -> Way:
    return Way(title, "search", partial(by_search, name), tunes, starts=False)


def _optimiser(title: str, train: Train, starts: bool = False) -> Way:
    return Way(title, "optimiser", train, starts=starts, validates=False)


WAYS: dict[str, Way] = {
    "recipe": Way("Default", "gradients", recipe, _BOTH, setting="ours", rule="AdamW"),
    "oho": _gradients("OHO", "oho", _BOTH, _MORE),
    "unroll_k": _gradients("Unroll5", "unroll_k", _BOTH, _MORE),
    "clip_r": _gradients("ClipR", "clip_r", _BOTH, _MORE),
    "greedy": _gradients("Greedy", "greedy", _BOTH, setting="ours"),
    "fds": Way("FDS", "gradients", partial(at_the_end, WINDOWS), "rate", setting="ours"),
    "per_step": Way("Per step", "gradients", partial(at_the_end, None), "rate", setting="ours"),
    "onepass": _gradients("OnePass", "onepass", _BOTH, _MORE),
    "onepass_adamw": _gradients("OnePass, AdamW", "onepass", _BOTH, setting="ours", rule="AdamW"),
    "onepass_hdlr": _gradients("OnePass, rate a weight", "onepass_hdlr", _BOTH),
    "lorraine": _gradients("Lorraine", "lorraine", "decay", ("smoothing",)),
    "diff_through_opt": _gradients("Diff-through-Opt", "diff_through_opt", _BOTH, _MORE),
    "hd": _gradients("HD", "hd", "rate", setting="ours", validates=False),
    "baydin": _gradients("Baydin", "baydin", "rate", validates=False),
    "metaoptimize_hf": _gradients(
        "MetaOptimize, SGD", "metaoptimize_hf", "rate", ("rates by tensor",), setting="ours", validates=False
    ),
    "MetaOptimize": Way(
        "MetaOptimize", "gradients", partial(_meta, "scalar"), "rate", (), "ours", validates=False, rule="AdamW"
    ),
    "MetaOptimize-blocks": Way(
        "MetaOptimize by tensor",
        "gradients",
        partial(_meta, "tensor"),
        "rates by tensor",
        (),
        "ours",
        validates=False,
        rule="AdamW",
    ),
    "random": _search("Random", "random"),
    "grid": _search("Grid", "grid", "rate"),
    "bayes": _search("Bayes", "bayes"),
    "hyperband": _search("Hyperband", "hyperband"),
    "bohb": _search("BOHB", "bohb"),
    "asha": _search("ASHA", "asha"),
    "pbt": _search("PBT", "pbt"),
    "AdamW": _optimiser("AdamW", partial(plainly, _adamw), starts=True),
    "SGD": _optimiser("SGD", partial(plainly, _sgd), starts=True),
    "AdamW-1e-3": _optimiser("AdamW 0.001", partial(plainly, _adamw)),
    "AdamW-cosine": _optimiser("AdamW 0.001, cosine", partial(plainly, _adamw, cosine=True)),
    "SGD-cosine": _optimiser("SGD 0.1, cosine", partial(plainly, _momentum, usual=0.1, cosine=True)),
    "ScheduleFree": _optimiser("ScheduleFree", partial(_packaged, "ScheduleFree", schedule_free)),
    "Prodigy": _optimiser("Prodigy", partial(_packaged, "Prodigy", prodigy)),
    "D-Adaptation": _optimiser("D-Adaptation", partial(_packaged, "D-Adaptation", _adapted)),
    "DoG": _optimiser("DoG", partial(_packaged, "DoG", dog)),
}
"""All ways, in the order of tables."""


def get(name: str) -> Way:
    """Return a way by name.

    Raises:
        GradtuneError: There is no such way; says the nearest.
    """
    if name not in WAYS:
        raise unknown("way to train", name, WAYS)
    return WAYS[name]


def kind_of(title: str) -> str:
    """Return the kind of the way with a title."""
    return next(way.kind for way in WAYS.values() if way.title == title)


def cost(name: str, problem: str, tunes: Tunes = "") -> float:
    """Return what a step of a way costs in plain steps by AdamW, as the trainings of the study are planned with.

    Args:
        name: Name of the way.
        problem: Name of the problem.
        tunes: What is tuned; "" is what the way usually tunes.

    Raises:
        GradtuneError: It was not measured.
    """
    column = comparison_costs.PROBLEMS.index("mnist" if problem == "fashion" else problem)
    found = comparison_costs.COSTS[name, tunes or WAYS[name].tunes][column]
    if found is None:
        raise GradtuneError(f"what {name} costs on {problem}, where it tunes {tunes!r}, was not measured")
    return found
