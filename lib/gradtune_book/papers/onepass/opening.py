"""The picture on the opening page of the OnePass paper: a learning rate tuned in one training, from several starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.axes import Axes

from gradtune import methods
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop
from gradtune_book.notebooks import plots
from gradtune_book.tasks.quadratic import Quadratic

STARTS = (-3.5, -2.5, -1.5, -0.5)
"""log10 of the learning rates from which the toy is trained."""

_CURVATURE = torch.tensor([[1.0, 0.1]])
_FAR = 3.0


def paths(steps: int, starts: Sequence[float] = STARTS) -> pd.DataFrame:
    """Train a quadratic of two weights from each learning rate, with and without OnePass.

    Returns:
        A row for each start, method (`OnePass` or `Fixed`) and step: `start`, `method`, `step`, the learning rate `lr`
        and the validation loss `loss`.
    """
    toy = Quadratic(
        _CURVATURE.repeat(len(starts), 1),
        torch.tensor([[0.2, 0.2]]).repeat(len(starts), 1),
        torch.zeros(len(starts), 2),
    )
    rates = torch.tensor([10.0**x for x in starts])
    declared = [Hyper("lr", rates, "log10", bounds=(1e-10, 1.0)), Hyper("penalty", 0.0, tuned=False)]
    rows: list[tuple[float, str, int, float, float]] = []
    for name, method in {"OnePass": methods.onepass(), "Fixed": methods.fixed()}.items():
        hypers = Hypers(declared, [2])
        loop = Loop(toy, sgd(momentum=False, weight_decay=False), hypers, method)
        run = loop.start(torch.full((len(starts), 2), _FAR))
        for step in range(0, steps + 1, method.every if name == "OnePass" else 10):
            lr = hypers.natural(run.raw)["lr"].flatten()
            loss = toy.val_loss(run.state.w)
            rows += [(s, name, step, float(lr[k]), float(loss[k])) for k, s in enumerate(starts)]
            run = loop.advance(run, 10)
    return pd.DataFrame(rows, columns=["start", "method", "step", "lr", "loss"])


def draw(axes: Sequence[Axes], found: pd.DataFrame) -> None:
    """Draw the learning rates (left) and the validation losses (right) over the training, a line for each start."""
    for method, dash in (("OnePass", "-"), ("Fixed", ":")):
        style = plots.method_style("WD+LR" if method == "OnePass" else "Random") | {"linestyle": dash, "marker": ""}
        for k, (_, part) in enumerate(found[found["method"] == method].groupby("start")):
            label: dict[str, Any] = {"label": method} if k == 0 else {}
            axes[0].plot(part["step"], part["lr"], **style, **label)
            axes[1].plot(part["step"], part["loss"], **style, **label)
    axes[0].set(xlabel="training step", ylabel="learning rate (log scale)", yscale="log")
    axes[1].set(xlabel="training step", ylabel="validation loss (log scale)", yscale="log")
    axes[0].legend(fontsize="small")
