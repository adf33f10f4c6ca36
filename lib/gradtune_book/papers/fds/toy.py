"""A toy for the paper's opening page: exact hypergradients of every step's learning rate on a noisy quadratic.

Weights `w [D]` are trained on `L(w) = 1/2 sum_i h_i w_i^2` with gradients `h w + noise`. In closed form, with learning
rates alpha_t and `w_T` at the end,

    dL(w_T)/dalpha_t = -sum_i h_i w_{T,i} prod_{s > t} (1 - alpha_s h_i) (h_i w_{t,i} + noise_{t,i})
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gradtune_book.notebooks import plots
from gradtune_book.papers import sharing
from gradtune_book.papers.fds.sharing_mse import NON_GREEDY
from gradtune_book.papers.fds.tables import legend, line

Array = NDArray[np.float64]

CURVATURE, START = np.geomspace(0.1, 1.0, 200), np.ones(200)
STEPS, RATE, NOISE = 120, 0.1, 0.5


def hypergradients(seeds: int = 400, seed: int = 0, rates: Array | None = None) -> Array:
    """Return exact hypergradients `[S, T]` of all learning rates, one row a training.

    Args:
        seeds: number of trainings, S, which differ in the noise of their gradients.
        seed: seed of the noise.
        rates: learning rates `[T]`; None for `RATE` at all `STEPS`.
    """
    rates = np.full(STEPS, RATE) if rates is None else np.asarray(rates, dtype=float)
    noise = NOISE * np.random.default_rng(seed).standard_normal((len(rates), seeds, len(START)))
    w, gradients = np.tile(START, (seeds, 1)), []
    for rate, xi in zip(rates, noise):
        gradients.append(CURVATURE * w + xi)
        w = w - rate * gradients[-1]
    pulled, found = CURVATURE * w, []
    for rate, gradient in zip(rates[::-1], gradients[::-1]):
        found.append(-(pulled * gradient).sum(axis=1))
        pulled = (1 - rate * CURVATURE) * pulled
    return np.array(found[::-1]).T


def errors(g: Array) -> pd.Series:
    """Return the mean squared error of hypergradients `[S, T]` against their mean by window length."""
    mu, steps = g.mean(axis=0), g.shape[1]
    found = {steps / n: sharing.squared_error(g, mu, n) for n in sharing.counts(steps)}
    return pd.Series(found, name="mean squared error").rename_axis("W")


def figure(g: Array) -> Figure:
    """Draw one training's hypergradients, by step and shared over the best window, and the error by window."""
    fig, (left, right) = plots.panels(2, width=4.4, height=3.3)
    mu, table = g.mean(axis=0), errors(g)
    best, steps = float(table.idxmin()), g.shape[1]
    style = line(NON_GREEDY)
    left.plot(g[0], color="#949494", linewidth=0.9, label="one training, step by step")
    shared = sharing.shared(g[0], round(steps / best))
    label, edges = f"shared over {best:.0f} steps", np.arange(steps + 1)
    left.stairs(shared, edges, baseline=None, linewidth=2, label=label, **style)
    left.plot(mu, color="black", linestyle=":", label="mean of all trainings")
    left.set(xlabel="training step", ylabel=r"$dL_V/d\alpha_t$")
    right.plot(table, **style)
    right.axvline(best, color=style["color"], linewidth=0.8)
    right.set(xscale="log", yscale="log", xlabel="window W [steps] (log scale)", ylabel="squared error (log scale)")
    legend(fig, 3)
    return fig
