"""The six small problems: their parts, their nets, and what they say of unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune_book.tasks import small


@pytest.mark.parametrize("name", small.TITLES)
def test_a_problem_has_three_parts_and_a_loss_of_each(name: str) -> None:
    task = small.load(name, small.resolve(name, "embedded"))
    net = task.net(0).eval()
    parts = (task.train, task.val, task.test)
    assert len({len(x) for x, _ in parts}) > 1
    for x, y in parts:
        assert len(x) == len(y)
        assert torch.isfinite(task.loss(net(x), y))
    assert small.TITLES[name].split()[0] in task.caption or name in ("tables", "norm")


@pytest.mark.parametrize("name", small.TITLES)
def test_a_net_is_drawn_from_its_seed_alone(name: str) -> None:
    task, state = small.load(name, small.resolve(name, "embedded")), torch.get_rng_state()
    first, again, other = (torch.cat([p.flatten() for p in task.net(s).parameters()]) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_words_are_pairs_of_six_words_and_the_next() -> None:
    x, y = small.load("words", "markov").train
    assert x.shape[1] == 6 and torch.equal(x[1:, -1], y[:-1])


def test_patches_are_cut_row_by_row() -> None:
    """An image whose pixels tell their patch: each patch's vector then depends on its own number alone."""
    net = small.Patches(8)
    patch = torch.arange(16.0).view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    seen: list[torch.Tensor] = []
    net.embedded.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    net(patch[None, None])
    assert torch.equal(seen[0], torch.arange(16.0)[None, :, None].expand(1, 16, 4))


def test_the_real_sets_are_named_whether_they_are_there_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    assert [small.resolve(n, "real") for n in small.TITLES] == [
        "energy",
        "mnist",
        "digits",
        "ptb",
        "fashion",
        "concrete",
    ]
    assert [small.resolve(n, "auto") for n in small.TITLES] == [small.resolve(n, "embedded") for n in small.TITLES]
    with pytest.raises(GradtuneError, match="gradtune data fetch concrete"):
        small.load.__wrapped__("norm", "concrete")


def test_unknown_names() -> None:
    with pytest.raises(GradtuneError, match="did you mean 'words'"):
        small.resolve("word", "auto")
    with pytest.raises(GradtuneError, match="did you mean 'auto'"):
        small.resolve("words", "aut")
    with pytest.raises(GradtuneError, match="did you mean 'norm'"):
        small.load("nrm", "concrete")
    with pytest.raises(GradtuneError, match=r"^tables trains on energy or diabetes, not on 'mnist'$"):
        small.load("tables", "mnist")
