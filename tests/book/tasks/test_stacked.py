"""Losses of stacked nets and their written-out derivatives against the same modules under vmap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradtune.errors import GradtuneError
from gradtune.nets.losses import cross_entropy as smooth_cross_entropy
from gradtune.nets.modules import batched
from gradtune.nets.stacked import StackedMLP
from gradtune_book.data import text
from gradtune_book.tasks.language import LanguageModelling


def derivatives(loss: Tensor, w: Tensor, c: Tensor, v: Tensor) -> list[Tensor]:
    (g,) = torch.autograd.grad(loss, w, c, create_graph=True)
    (hv,) = torch.autograd.grad(g, w, v, retain_graph=True)
    return [loss, g, hv]


@pytest.mark.parametrize("sizes", [[5, 3], [5, 4, 3], [5, 6, 4, 4, 3]])
@pytest.mark.parametrize("runs", [1, 3])
def test_stacked_relu_nets_equal_the_module(sizes: list[int], runs: int) -> None:
    torch.manual_seed(0)
    net = StackedMLP(sizes)
    w = torch.randn(runs, sum(net.layout.sizes), dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(7, 5, dtype=torch.float64), torch.randint(0, 3, (7,))
    c, v = torch.rand(runs, dtype=torch.float64) + 0.5, torch.randn_like(w)
    module = batched(net.module.double(), cross_entropy)
    for ours, theirs in zip(derivatives(net(w, x, y), w, c, v), derivatives(module(w, x, y), w, c, v), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_the_weight_of_a_loss_has_its_derivative_and_there_is_no_third_one() -> None:
    torch.manual_seed(0)
    net = StackedMLP([4, 5, 3])
    w = torch.randn(2, sum(net.layout.sizes), dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    c, v = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.randn_like(w)
    (g,) = torch.autograd.grad(net(w, x, y), w, c, create_graph=True)
    (along,) = torch.autograd.grad((g * v).sum(), c, retain_graph=True)
    assert torch.allclose(along, (g * v).sum(1))
    (hv,) = torch.autograd.grad((g * v).sum(), w, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(hv.sum(), w)


def language(**given: int) -> LanguageModelling:
    corpus = text.load("embedded", 20, 400, 100)
    return LanguageModelling(corpus, [3, 4], hidden=5, unrolled=6, batch_size=4, dtype=torch.float64, **given)


@pytest.mark.parametrize("layers", [1, 2])
def test_stacked_language_models_equal_the_module_with_its_masks(layers: int) -> None:
    task = language(layers=layers)
    w = task.init(0.5).requires_grad_()
    keep = torch.tensor([[0.5], [0.8]], dtype=torch.float64)
    x, y = task._train[0]
    module = batched(task.net.module.double(), smooth_cross_entropy)
    theirs = module(w, x, y, net_lam={"keep": keep}, seeds=[3, 4], t=0)
    c, v = torch.ones(2, dtype=torch.float64), torch.randn_like(w)
    ours = derivatives(task.train_loss(w, {"keep": keep}, 0) / len(x), w, c, v)
    for a, b in zip(ours, derivatives(theirs, w, c, v), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


def test_the_state_goes_on_from_piece_to_piece() -> None:
    """Two pieces in turn have the losses of one piece of twice the length; the second alone has not."""
    task = language()
    w = task.init(0.5)
    (x, y), (x2, y2) = task._train[:2]
    whole = task.net(w, torch.cat([x, x2]), torch.cat([y, y2]), task.net.zero_state(w, 4))[0]
    first, second = task.train_loss(w, {}, 0), task.train_loss(w, {}, 1)
    assert torch.allclose((first + second) / (2 * len(x)), whole, rtol=1e-12)
    alone = task.net(w, x2, y2, task.net.zero_state(w, 4))[0]
    assert not torch.allclose(alone * len(x), second, rtol=1e-6)
    assert torch.equal(task.train_loss(w, {}, 1), second)  # a step can be taken again
    with pytest.raises(GradtuneError, match="state before piece 5 of the text is not known"):
        task.train_loss(w, {}, 5)


def test_a_second_training_takes_no_state_of_the_first() -> None:
    task, fresh = language(), language()
    first, other = task.init(0.5), task.init(0.2)
    for t in range(5):
        task.train_loss(first, {}, t)
    assert [task.train_loss(other, {}, t).tolist() for t in range(2)] == [
        fresh.train_loss(other, {}, t).tolist() for t in range(2)
    ]


def test_evaluation_reads_the_whole_text() -> None:
    """As many words as there are, in pieces of any length, with one state."""
    task = language()
    w = task.init(0.5)
    rows = text.streams(task.text.val, 20)
    whole = task.net(w, rows[:, :-1].T, rows[:, 1:].T, task.net.zero_state(w, 20))[0]
    assert torch.allclose(task.evaluate(w, "val"), whole, rtol=1e-12)
