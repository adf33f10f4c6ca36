"""Cross entropy with label smoothing against torch's, and its derivatives with respect to the smoothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradtune.nets.layout import Layout
from gradtune.nets.losses import accuracy, cross_entropy
from gradtune.nets.modules import batched
from gradtune.nets.plain import mlp
from tools import normal, relative, three_runs, whole


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    logits, y = normal(7, 4).requires_grad_(), whole(4, 7)
    ours = cross_entropy(logits, y, torch.tensor(smoothing, dtype=torch.float64))
    theirs = nn.functional.cross_entropy(logits, y, label_smoothing=smoothing)
    assert relative(ours, theirs) < 1e-12
    assert relative(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs))) < 1e-12


def test_cross_entropy_of_sequences_is_that_of_their_rows() -> None:
    logits, y = normal(3, 5, 4), whole(4, 3, 5)
    assert relative(cross_entropy(logits, y, 0.1), cross_entropy(logits.view(15, 4), y.view(15), 0.1)) < 1e-12


def test_derivative_with_respect_to_smoothing() -> None:
    s = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, x: cross_entropy(x, whole(4, 7), s), (s, normal(7, 4).requires_grad_()))
    assert torch.autograd.gradgradcheck(
        lambda x, s: cross_entropy(x, whole(4, 7), s), (normal(7, 4).requires_grad_(), s)
    )


def test_accuracy_is_the_share_of_hits() -> None:
    net = mlp([3, 2]).double()
    w, x, y = three_runs(net), normal(8, 3), whole(2, 8)
    shares = batched(net, accuracy)(w, x, y, mode="eval")
    for r, row in enumerate(w):
        net.load_state_dict(Layout.of(net).split(row))
        assert float(shares[r]) == sum(int(net(x[n]).argmax() == y[n]) for n in range(8)) / 8
