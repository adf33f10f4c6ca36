"""The picture on the opening page of the Clip paper: weights and penalty of a small quadratic, trained together."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.axes import Axes

from gradtune.estimators.forward import Forward
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method
from gradtune_book.notebooks import plots
from gradtune_book.tasks.quadratic import Quadratic

TOY = Quadratic(
    torch.tensor([[4.0, 1.0]]),
    torch.tensor([[2.0, 2.0]]),
    torch.tensor([[1.9, 0.8]]),
)
"""Two weights; the losses are those of Section 4.1."""

WAYS = {
    "kept": ("Forward", Forward()),
    "reset at every step (Unroll1)": ("Unroll1", Forward(reset_every=1)),
    "kept and clipped (Clip1)": ("Clip2", Forward(radius=1.0)),
}
"""What is done with the sensitivity: the method whose style draws it, and the estimator."""

_RATE, _OUTER, _FAR = 0.01, 0.01, 4.0


def paths(steps: int) -> pd.DataFrame:
    """Train the toy in each of the ways of `WAYS`, from weights far away and a penalty of 0.

    Returns:
        A row for each way and step: `way`, `step`, the second weight `theta`, the penalty `lambda`, and the length
        `|y|` of the sensitivity.
    """
    hypers = Hypers([Hyper("lr", _RATE, tuned=False), Hyper("penalty", 0.0)], [2])
    rows: list[tuple[str, int, float, float, float]] = []
    for way, (_, estimator) in WAYS.items():
        loop = Loop(TOY, sgd(momentum=False, weight_decay=False), hypers, Method(estimator, SGD(_OUTER)), trace=True)
        run = loop.start(torch.full((1, 2), _FAR))
        for step in range(1, steps + 1):
            run = loop.advance(run, 1)
            y = float(run.memory.w.norm())
            rows.append((way, step, float(run.state.w[0, 1]), float(run.raw[0, 0]), y))
    return pd.DataFrame(rows, columns=["way", "step", "theta", "lambda", "|y|"])


def draw(axes: Sequence[Axes], found: pd.DataFrame) -> None:
    """Draw the penalty (left) and the length of its sensitivity (right) over the training steps."""
    best = TOY.optimal_penalty()
    for way, part in found.groupby("way", sort=False):
        style = plots.method_style(WAYS[str(way)][0])
        for ax, column in zip(axes, ("lambda", "|y|")):
            ax.plot(part["step"], part[column], **style, markevery=max(1, len(part) // 6), markersize=5, label=way)
    axes[0].axhline(float(best), color="black", linestyle=":", label=r"best $\lambda$")
    axes[0].set(xlabel="training step", ylabel=r"penalty $\lambda_t$")
    axes[1].set(xlabel="training step", ylabel=r"$|y_t|$")
    axes[0].legend(fontsize="small")
