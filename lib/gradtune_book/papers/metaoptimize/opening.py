"""The opening page of the MetaOptimize paper: step sizes on a toy, fixed and adapted from four starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes

from gradtune import methods
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import Lion
from gradtune.recursion.rules import adamw
from gradtune.training.loop import Loop, Method
from gradtune_book.notebooks import plots
from gradtune_book.tasks import streams

STARTS = (1e-4, 1e-3, 1e-2, 1e-1)
_REST = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0}


class Found(NamedTuple):
    """What the toy gives.

    Attributes:
        fixed: mean loss of a training by fixed step size.
        paths: step size after each step, by where it starts.
        losses: mean loss of an adapted training by where it starts.
    """

    fixed: dict[float, float]
    paths: dict[float, list[float]]
    losses: dict[float, float]

    @property
    def best(self) -> float:
        """The fixed step size with the lowest loss."""
        return min(self.fixed, key=lambda lr: self.fixed[lr])


def paths(steps: int) -> Found:
    """Train AdamW on the first noisy quadratic of `tasks.streams`, with fixed and with adapted step sizes.

    Args:
        steps: length of each training.
    """
    grid = torch.logspace(-4, 0, 13).tolist()
    fixed = {lr: _train(lr, Method(), steps)[0] for lr in grid}
    adapted = methods.metaoptimize_hf(Lion(0.05), gamma=0.9)
    found = {lr: _train(lr, adapted, steps) for lr in STARTS}
    return Found(fixed, {lr: p for lr, (_, p) in found.items()}, {lr: loss for lr, (loss, _) in found.items()})


def _train(start: float, method: Method, steps: int) -> tuple[float, list[float]]:
    problem, w = streams.draw("quadratic", [0], steps)
    lr = Hyper("lr", start, "log", tuned=method.outer is not None)
    rest = [Hyper(name, value, tuned=False) for name, value in _REST.items()]
    loop = Loop(problem, adamw(), Hypers([lr, *rest], [w.shape[1]]), method)
    run, losses, rates = loop.start(w), [], []
    for t in range(steps):
        losses.append(float(problem.train_loss(run.state.w, {}, t)))
        run = loop.advance(run, 1)
        rates.append(float(run.raw.exp()) if run.raw.numel() else start)
    return sum(losses) / steps, rates


def draw(axes: Sequence[Axes], found: Found) -> None:
    """Draw mean losses by step size, fixed or at the start (left), and how the step sizes move (right)."""
    fixed, adapted = plots.method_style("AdamW"), plots.method_style("MetaOptimize")
    axes[0].loglog(list(found.fixed), list(found.fixed.values()), **fixed, label="fixed")
    axes[0].loglog(list(found.losses), list(found.losses.values()), **adapted, label="MetaOptimize, by its start")
    axes[0].axvline(found.best, color="black", linewidth=0.8)
    axes[0].set(xlabel="step size, fixed or at the start", ylabel="mean loss")
    axes[0].legend(fontsize="small")
    for path in found.paths.values():
        axes[1].semilogy(range(1, len(path) + 1), path, color=adapted["color"])
    axes[1].axhline(found.best, color="black", linewidth=0.8)
    axes[1].set(xlabel="step", ylabel="step size")
