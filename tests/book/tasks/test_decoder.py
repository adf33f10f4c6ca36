"""The decoder: shapes, causality, relative positions, its parts by hand, and the paper's number of weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from gradtune.errors import GradtuneError
from gradtune_book.tasks.decoder import Attention, Decoder, Shape, SwiGLU, rotated, rotations

SMALL = Shape(vocabulary=20, width=16, layers=2, heads=2, context=12)


def made(shape: Shape = SMALL) -> Decoder:
    torch.manual_seed(0)
    return Decoder(shape).double()


def test_shapes_and_number_of_weights() -> None:
    net = made()
    assert net(torch.randint(20, (3, 7))).shape == (3, 7, 20)
    with torch.device("meta"):
        whole = Decoder(Shape(32_000))
    assert sum(p.numel() for p in whole.parameters()) == 15_191_712  # "15M"
    assert whole.next.weight is whole.words.weight
    assert Shape(32_000).hidden == 768
    with pytest.raises(GradtuneError, match="13 words were given to a decoder that sees at most 12"):
        net(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(GradtuneError, match="a multiple of 2 heads"):
        Shape(20, width=18, heads=2, layers=1, context=4)


def test_a_word_changes_no_prediction_before_it() -> None:
    net, x = made(), torch.randint(20, (1, 10), generator=torch.Generator().manual_seed(1))
    before = net(x)
    for place in range(10):
        other = x.clone()
        other[0, place] = (x[0, place] + 1) % 20
        change = (net(other) - before).abs().amax((0, 2))
        assert float(change[:place].max()) == 0 if place else True
        assert float(change[place:].min()) > 1e-9


def test_every_weight_has_a_gradient() -> None:
    net, x = made(), torch.randint(20, (4, 9))
    cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in net.parameters())


def test_rotations_keep_lengths_and_see_distances_alone() -> None:
    cos, sin = (each.double() for each in rotations(12, 8))
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    turned = [rotated(v.expand(12, 8), cos, sin) for v in (q, k)]
    assert torch.allclose(turned[0].norm(dim=1), q.norm().expand(12))
    products = turned[0] @ turned[1].T
    for lag in range(-8, 9):
        assert float(products.diagonal(lag).std()) < 1e-6
    assert float(products[0].std()) > 1e-3


def test_parts_by_hand() -> None:
    torch.manual_seed(3)
    part, x = SwiGLU(SMALL).double(), torch.randn(2, 5, 16, dtype=torch.float64)
    gate, up = part.gate(x), part.up(x)
    assert torch.allclose(part(x), part.down(gate / (1 + (-gate).exp()) * up))
    attention = Attention(SMALL).double()
    cos, sin = (each[:5].double() for each in rotations(12, 8))
    heads = []
    for h in range(2):
        q, k, v = (each(x)[..., 8 * h : 8 * h + 8] for each in (attention.queries, attention.keys, attention.values))
        scores = rotated(q, cos, sin) @ rotated(k, cos, sin).mT / 8**0.5
        heads.append(scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1) @ v)
    assert torch.allclose(attention(x, cos, sin), attention.out(torch.cat(heads, -1)))
