"""Trainings by MetaOptimize and by what the paper compares it with, on any module: base updates and meta rules.

A base update with a fixed step size is the same code as with an adapted one, with a meta step of 0, so that both differ
in the adaptation alone. Settings are those of the paper's Tables 2 to 5; the base updates are those of `torch.optim`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from gradtune import optim
from gradtune.errors import unknown
from gradtune.recursion.outer import SGD, Adam, Lion, Outer
from gradtune_book import config
from gradtune_book.papers.metaoptimize.others import OF_PACKAGES, Steps
from gradtune_book.papers.packages import installed
from gradtune_book.records import store

FIXED, COSINE, SCALAR, BLOCKS = "fixed", "warm-up and cosine", "MetaOptimize, scalar", "MetaOptimize, blocks"
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {"betas": (0.9, 0.999), "weight_decay": 0.1}),
    "Lion": ("lion", {"betas": (0.9, 0.99), "weight_decay": 0.1}),
    "RMSprop": ("rmsprop", {"alpha": 0.999, "weight_decay": 0.1}),
    "SGDm": ("sgdm", {"momentum": 0.9, "weight_decay": 0.1}),
}
"""Base updates by the paper's names: that of `gradtune.optim`, and the settings."""

WARM_UP = 1 / 30
"""Share of the steps in which the step size of `COSINE` rises: 1,000 of 30,000 in the paper."""


def rule(meta: str, meta_step: float, form: str = "ours") -> Outer:
    """Return a meta rule with the paper's settings.

    Args:
        meta: "Adam" or "Lion"; "none" leaves the step sizes as they are.
        meta_step: its step size.
        form: "ours" or "package", which puts the new momentum inside Lion's sign.

    Raises:
        GradtuneError: the rule is unknown.
    """
    rules: dict[str, Callable[[], Outer]] = {
        "Adam": lambda: Adam(meta_step),
        "Lion": lambda: Lion(meta_step, new_momentum=form == "package"),
        "none": lambda: SGD(0.0),
    }
    if meta not in rules:
        raise unknown("meta rule", meta, rules)
    return rules[meta]()


def adapted(
    blocks: Sequence[Sequence[nn.Parameter]],
    base: str,
    meta: str,
    lr: float,
    meta_step: float = 0.0,
    gamma: float = 1.0,
    form: str = "ours",
    **changed: Any,
) -> optim.MetaOptimize:
    """Return MetaOptimize with a step size for each block of parameters; one block shares one step size.

    Args:
        blocks: the parameters.
        base: a key of `BASES`.
        meta: as `rule` takes it.
        lr: step size at the start.
        meta_step: step size of the meta rule.
        gamma: discount.
        form: "ours" or "package".
        **changed: settings of the base in place of those of `BASES`.

    Raises:
        GradtuneError: a name is unknown.
    """
    if base not in BASES:
        raise unknown("base update", base, BASES)
    name, settings = BASES[base]
    groups = [{"params": list(block)} for block in blocks]
    made = rule(meta, meta_step, form)
    return optim.MetaOptimize(
        groups, lr, name, made, gamma=gamma, groups="blockwise", form=form, **(settings | changed)
    )


def scheduled(
    parameters: Sequence[nn.Parameter], lr: float, steps: int
) -> tuple[torch.optim.AdamW, Callable[[], None]]:
    """Return AdamW and what is to be called after each of its steps.

    The step size rises linearly for `WARM_UP` of the steps up to `lr`, then falls towards 0 as half a cosine.
    """
    optimizer, rise = torch.optim.AdamW(parameters, lr, **BASES["AdamW"][1]), max(1, round(WARM_UP * steps))

    def factor(t: int) -> float:
        if t < rise:
            return (t + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (t - rise) / max(1, steps - rise)))

    return optimizer, LambdaLR(optimizer, factor).step


def geometric_mean(optimizer: Steps) -> float:
    """Return the geometric mean of the step sizes of an optimiser's groups, times Prodigy's and D-Adaptation's `d`."""
    rates = [max(float(group["lr"]) * float(group.get("d", 1)), 1e-300) for group in optimizer.param_groups]
    return math.exp(sum(map(math.log, rates)) / len(rates))


def mean_loss(net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, rows: int = 500) -> float:
    """Return the mean loss over all rows, in evaluation mode; the net is in training mode afterwards."""
    net.eval()
    with torch.no_grad():
        parts = [float(loss(net(a), b)) * len(b) for a, b in zip(x.split(rows), y.split(rows), strict=True)]
    net.train()
    return sum(parts) / len(y)


def with_packages(study: str, scale: str, chosen: Sequence[Any]) -> list[Any]:
    """Return runs, then those of the packages of others: of each that is installed, or those that are recorded.

    They have the fields of the last run that was chosen, one with warm-up and cosine, for each of its seeds.

    Args:
        study: Name of the study.
        scale: One of `config.SCALES`.
        chosen: Runs of the methods that need no package.
    """
    out = list(chosen)
    last = [c for c in chosen if c.method == COSINE and c.lr == chosen[-1].lr]
    for method in OF_PACKAGES:
        every = [config.replace(c, method=method) for c in last]
        out += every if installed(method) else store.among(study, scale, method, every)
    return out
