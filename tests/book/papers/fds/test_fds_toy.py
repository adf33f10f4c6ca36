"""The toy of the opening page: its closed form against autograd, and the trade-off that its picture shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradtune_book.papers.fds import toy


def test_the_hypergradients_are_those_of_autograd() -> None:
    rates = np.linspace(0.02, 0.2, 7)
    found = toy.hypergradients(2, seed=3, rates=rates)
    noise = torch.tensor(toy.NOISE * np.random.default_rng(3).standard_normal((7, 2, len(toy.START))))
    curvature = torch.tensor(toy.CURVATURE)
    for k in range(2):
        alpha, w = torch.tensor(rates, requires_grad=True), torch.tensor(toy.START)
        for t in range(7):
            w = w - alpha[t] * (curvature * w + noise[t, k])
        (right,) = torch.autograd.grad((curvature * w**2).sum() / 2, alpha)
        assert found[k] == pytest.approx(right.numpy(), rel=1e-10)


def test_some_sharing_is_better_than_none_and_than_a_single_rate() -> None:
    table = toy.errors(toy.hypergradients())
    best = float(table.idxmin())
    assert 1 < best < toy.STEPS
    assert table[best] < table.iloc[0] / 2 and table[best] < table.iloc[-1] / 2


def test_the_picture_marks_the_best_window() -> None:
    import matplotlib.pyplot as plt

    g = toy.hypergradients(50)
    fig = toy.figure(g)
    left, right = fig.axes
    best = float(toy.errors(g).idxmin())
    assert any(f"{best:.0f} steps" in str(text) for text in left.get_legend_handles_labels()[1])
    assert np.asarray(right.get_lines()[-1].get_xdata())[0] == best
    plt.close(fig)
