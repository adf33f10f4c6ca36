"""Random numbers of a part of a forward pass that runs again, and the shapes of dropout's masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradtune.nets.draws import Draws

RUN = torch.zeros((), dtype=torch.int64)


def drawn(draws: Draws, count: int = 1) -> list[Tensor]:
    with draws.inside(RUN):
        return [torch.rand_like(torch.ones(3)) for _ in range(count)]


def test_again_repeats_what_is_to_come_and_nothing_else() -> None:
    draws = Draws([5], 2)
    drawn(draws)
    again = draws.again()
    coming = drawn(draws, 3)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(drawn(again.again(), 3), coming, strict=True))
    assert torch.equal(drawn(again)[0], coming[0]) and not torch.equal(drawn(draws)[0], coming[0])


def test_again_before_the_first_draw_starts_where_that_does() -> None:
    draws = Draws([5], 2)
    again = draws.again()
    assert torch.equal(drawn(draws)[0], drawn(again)[0])


@pytest.mark.filterwarnings("ignore:dropout")
@pytest.mark.parametrize("dims", range(1, 7))
@pytest.mark.parametrize("name", ["dropout", "dropout1d", "dropout2d", "dropout3d"])
def test_masks_have_torchs_shapes(name: str, dims: int) -> None:
    """What varies within torch's mask varies within ours, what is constant there is constant here."""
    function, x = getattr(F, name), torch.ones((6, 5, 4, 3, 2, 2)[:dims])
    torch.manual_seed(0)
    try:
        torchs = function(x, 0.5)
    except RuntimeError as error:
        with Draws([0], 0).inside(RUN), pytest.raises(RuntimeError, match=str(error)[:20]):
            function(x, 0.5)
        return
    with Draws([0], 0).inside(RUN):
        ours = function(x, 0.5)
    assert set(ours.unique().tolist()) == {0.0, 2.0}
    for d in range(dims):
        constant = [bool((y == y.narrow(d, 0, 1)).all()) for y in (torchs, ours)]
        assert constant[0] == constant[1], d


def test_a_layer_on_an_input_of_three_dimensions_drops_channels() -> None:
    x = torch.ones(50, 8, 9)
    with Draws([0], 0).inside(RUN):
        y = nn.Dropout2d(0.5)(x)
    assert bool((y == y[..., :1]).all()) and not bool((y == y[:, :1]).all())


def test_torch_says_what_is_wrong() -> None:
    with Draws([0], 0).inside(RUN), pytest.raises(ValueError, match=r"between 0 and 1, but got 1\.5"):
        F.dropout(torch.ones(3), 1.5)
    with Draws([0], 0).inside(RUN):
        assert torch.equal(F.dropout2d(torch.ones(2, 3, 4), 1.0), torch.zeros(2, 3, 4))
        x = torch.ones(2, 3, 4)
        assert F.dropout2d(x, 0.0) is x and F.dropout1d(x, 0.5, inplace=True) is x
