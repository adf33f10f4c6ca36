"""ImageNet's loader on a tiny folder in the form of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny_imagenet
from gradtune.errors import GradtuneError
from gradtune_book.tasks.imagenet import DEVIATION, MEAN, ImageNet


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of five images each, as large as they come and with a colour of their own."""
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    tiny_imagenet.write(tmp_path)
    return tmp_path


def test_images_classes_and_standardisation(root: Path) -> None:
    part = ImageNet("val", size=16)
    assert len(part) == 10 and part.classes == ("n01440764", "n01443537")
    x, y = next(part.batches(4))
    assert x.shape == (4, 3, 16, 16) and y.tolist() == [0, 0, 0, 0]
    expected = [(c / 255 - m) / d for c, m, d in zip((0, 100, 50), MEAN, DEVIATION, strict=True)]
    assert torch.allclose(x[0].mean((1, 2)), torch.tensor(expected), atol=0.03)
    assert [len(b[1]) for b in part.batches(4)] == [4, 4, 2]


def test_training_batches_are_drawn_from_the_seed(root: Path) -> None:
    part = ImageNet("train", size=16)
    before = torch.random.get_rng_state()
    first, again, other = (list(part.batches(4, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(first) == 2
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert [b[1].tolist() for b in first] != [b[1].tolist() for b in other]


def test_batches_do_not_depend_on_the_processes_that_read_them(root: Path) -> None:
    part = ImageNet("train", size=16)
    alone, together = (list(part.batches(4, 3, workers)) for workers in (0, 2))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(alone, together, strict=True))


def test_the_digest_is_of_names_and_sizes(root: Path) -> None:
    before = ImageNet("train").sha256()
    assert before == ImageNet("train").sha256() and len(before) == 64
    (root / "imagenet" / "train" / "n01440764" / "n01440764_0.JPEG").unlink()
    assert ImageNet("train").sha256() != before


def test_what_is_absent_is_said(root: Path) -> None:
    with pytest.raises(GradtuneError, match="unknown part of ImageNet 'test'"):
        ImageNet("test")
    with pytest.raises(GradtuneError, match="has no images by class"):
        ImageNet("train", root=root / "elsewhere")
    with pytest.raises(GradtuneError, match="a batch of 11 images was asked of 10; expected at most as many"):
        next(ImageNet("train").batches(11))
