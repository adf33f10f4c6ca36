"""The study on ImageNet, for a few steps on a tiny folder in the form of the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_imagenet
from gradtune.errors import GradtuneError
from gradtune_book import config, papers
from gradtune_book.papers.metaoptimize import imagenet
from gradtune_book.papers.metaoptimize.training import BLOCKS, COSINE, FIXED, SCALAR


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes of five images each, one dark and one bright."""
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    tiny_imagenet.write(tmp_path)
    return tmp_path


def test_paper_scale_is_that_of_table_4(root: Path) -> None:
    runs = imagenet.configs(imagenet.SIZES["paper"])
    assert {(c.batch, c.size, c.steps) for c in runs} == {(256, 224, 300_000)}
    assert {(c.method, c.base, c.meta, c.meta_step) for c in runs if c.meta != "none"} == {
        *((m, base, "Lion", 1e-3) for m in (SCALAR, BLOCKS) for base in ("AdamW", "Lion")),
        (SCALAR, "SGDm", "Lion", 1e-3),
    }
    assert {c.lr for c in runs if c.method == COSINE} == {1e-5, 1e-4, 1e-3}
    net = imagenet.network(1000, 0)
    assert sum(p.numel() for p in net.parameters()) == 11_689_512
    adapted = next(c for c in runs if c.method == BLOCKS)
    assert len(imagenet.optimiser(adapted, net)[0].param_groups) == 6


def test_every_method_trains_for_a_few_steps_over_epochs(root: Path) -> None:
    before = torch.random.get_rng_state()
    chosen = list({c.method: c for c in imagenet.configs(imagenet.SIZES["smoke"])}.values())
    frame = papers.run_now(imagenet.STUDY, chosen)  # four steps of four images: two epochs of ten
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(frame["method"]) == [SCALAR, BLOCKS, FIXED, COSINE]
    assert np.isfinite(frame["late_loss"]).all() and frame["test_accuracy"].isin([0, 0.1, 0.5, 0.9, 1]).all()
    assert set(frame["dataset"]) == {"ImageNet, 10 training images of 2 classes"}
    assert frame["test_curve"].map(len).tolist() == [4] * 4


def test_it_learns_what_can_be_learned_and_is_the_same_again(root: Path) -> None:
    c = imagenet.Config(FIXED, 0, lr=1e-3, size=16, batch=5, steps=24)
    one, two = (papers.run_now(imagenet.STUDY, [c]).iloc[0] for _ in range(2))
    assert one["late_loss"] == two["late_loss"] and one["loss_curve"] == two["loss_curve"]
    assert one["late_loss"] < 0.5 * one["loss_curve"][0]


def test_errors(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = imagenet.configs(imagenet.SIZES["smoke"])[0]
    with pytest.raises(GradtuneError, match="unknown method"):
        imagenet.run([config.replace(c, method="none")], torch.device("cpu"))
    monkeypatch.setenv("GRADTUNE_DATA", str(root / "elsewhere"))
    with pytest.raises(GradtuneError, match="has no images by class"):
        imagenet.run([c], torch.device("cpu"))
