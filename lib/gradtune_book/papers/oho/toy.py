"""A toy for the paper's opening page: the learning rate of a noisy quadratic, tuned while it trains.

The training loss of step t is `1/2 sum_i h_i (w_i - noise_{t,i})^2`, the validation loss `1/2 sum_i h_i w_i^2`. All
runs start at `w = 1` and see the same noise. A rate that is too low does not get far; a rate that stays high keeps the
noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gradtune import methods
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Run
from gradtune_book.notebooks import plots

STARTS = (0.01, 0.03, 0.1, 0.3)
"""Initial learning rates."""

_WEIGHTS, _NOISE, META_RATE = 50, 1.0, 1e-4


class Quadratic:
    """The losses of R runs; the noise of a step is a function of (seed, t).

    Args:
        steps: Number of steps.
        seed: Seed of the noise.

    Attributes:
        stationary: False, as the training loss depends on t.
    """

    stationary = False

    def __init__(self, steps: int, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.h = torch.logspace(-1, 0, _WEIGHTS, dtype=torch.float64)
        self.noise = _NOISE * torch.randn(steps, _WEIGHTS, generator=rng, dtype=torch.float64)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return (self.h * (w - self.noise[t]) ** 2).sum(1) / 2

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return (self.h * w**2).sum(1) / 2


def trained(steps: int = 1000, tuned: bool = True, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Train from every rate of `STARTS`.

    Args:
        steps: Number of steps.
        tuned: Whether OHO tunes the learning rate; it stays where it started otherwise.
        seed: Seed of the noise.

    Returns:
        Learning rates and validation losses `[4, steps]` after each step.
    """
    task = Quadratic(steps, seed)
    start = torch.ones(len(STARTS), _WEIGHTS, dtype=torch.float64)
    lr = Hyper("lr", torch.tensor(STARTS, dtype=torch.float64), bounds=(0.0, 1.0), tuned=tuned)
    method = methods.oho(META_RATE) if tuned else methods.fixed()
    loop = Loop(task, sgd(momentum=False, weight_decay=False), Hypers([lr], [_WEIGHTS]), method)
    rates, losses = [], []

    def watch(run: Run) -> None:
        rates.append(loop.values_of(run).lam["lr"][:, 0])
        losses.append(task.val_loss(run.state.w, {}, 0))

    loop.advance(loop.start(start), steps, watch, 1)
    return torch.stack(rates, 1), torch.stack(losses, 1)


def figure(steps: int = 1000) -> Figure:
    """Draw learning rates (left) and validation losses (right): tuned by OHO solid, fixed dashed."""
    fig, axes = plots.panels(2, width=4.4, height=3.3)
    for tuned, dash in ((True, "-"), (False, (0, (5, 2)))):
        for k, rows in enumerate(zip(*trained(steps, tuned))):
            for ax, values in zip(axes, rows):
                label = f"from {STARTS[k]:g}" if tuned else None
                ax.plot(values, color=sns.color_palette("colorblind")[k], ls=dash, lw=1.5, label=label)
    axes[0].set(xlabel="training step", ylabel="learning rate (log scale)", yscale="log")
    axes[1].set(xlabel="training step", ylabel="validation loss (log scale)", yscale="log")
    axes[0].legend(fontsize=8)
    return fig
