"""The studies of ResNet-18, a few steps with the net itself on a few small images."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from gradtune_book import papers
from gradtune_book.papers.metaoptimize import cifar
from gradtune_book.papers.oho import training as oho_training
from gradtune_book.papers.onepass import resnet as onepass_resnet
from gradtune_book.tasks.images import Images
from gradtune_book.tasks.resnet18 import resnet18

CPU = torch.device("cpu")
WEIGHTS = 11_173_962


def finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def pictures(*_: Any) -> Images:
    """Forty images of 8 x 8 pixels in three colours."""
    x = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 10
    return Images(x[:20], y[:20], x[20:30], y[20:30], x[30:], y[30:], "pictures", "pictures", "")


def test_the_net_has_the_papers_size() -> None:
    assert sum(p.numel() for p in resnet18().parameters()) == WEIGHTS
    assert len(list(resnet18().parameters())) == 62


@pytest.mark.parametrize("sets", [1, 2])
def test_oho(sets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oho_training, "_images", pictures)
    study = papers.get("oho_resnet")
    paper = study.runs("paper")
    assert [c.sets for c in paper] == [1, 1, 1, 2, 2, 2, 6, 6, 6, 62, 62, 62] and {c.net for c in paper} == {"resnet18"}
    c = next(c for c in paper if c.sets == sets)
    (found,) = study.run([replace(c, batch=10, outer_batch=5, epochs=1, readings=1)], CPU)
    assert all(map(finite, found.series["test_curve"])) and len(found.series[f"lr_{sets - 1}"]) == 2
    assert found.series["lr_0"][0] == pytest.approx(0.1) != found.series["lr_0"][1]


@pytest.mark.parametrize("method", ["Random", "Random-xLR", "Random-3-batched", "WD+LR+M", "Diff-through-Opt"])
def test_onepass(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onepass_resnet, "_images", pictures)
    study = papers.get("onepass_resnet")
    paper = study.runs("paper")
    trained = [c for c in paper if c.method != "times"]
    assert len(trained) == 50 * 9 and {(c.net, c.steps, c.batch) for c in trained} == {("resnet18", 32_400, 100)}
    c = next(c for c in paper if c.method == method)
    (found,) = study.run([replace(c, validation=5, batch=5, steps=4, every=2, look_back=1)], CPU)
    assert len(found.series["ce_curve"]) == 3 and finite(found.metrics["test_ce"])
    best, last = float(found.metrics["best_error"] or 0), float(found.metrics["test_error"] or 0)
    assert 0 <= best <= last <= 1


def test_metaoptimize(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_images", pictures)
    study = papers.get("metaoptimize_cifar")
    c = next(c for c in study.runs("paper") if c.method == cifar.BLOCKS)
    (found,) = study.run([replace(c, batch=4, steps=3)], CPU)
    assert len(found.series["loss_curve"]) == 3 and finite(found.metrics["late_loss"])
