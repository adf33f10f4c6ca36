"""What tests of several rooms share: places, random tensors, and how far two results are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradtune.nets.layout import Layout
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Loop, Method

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""
REFERENCE = ROOT / "tests" / "reference"
"""Folder of the published programs' numbers."""


def hypergradient(
    problem: Any, rule: Rule, hypers: Hypers, w: torch.Tensor, estimator: Any, steps: int = 7, trace: bool = False
) -> torch.Tensor:
    """What an estimator hands to the outer rule after `steps` steps at the initial hyperparameters."""
    loop = Loop(problem, rule, hypers, Method(estimator, SGD(1.0), every=steps), trace=trace)
    start = loop.start(w)
    hypers.clamp = lambda raw: raw  # type: ignore[method-assign]
    return start.raw - loop.advance(start, steps).raw


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def three_runs(module: nn.Module) -> Tensor:
    return 0.5 * normal(3, sum(Layout.of(module).sizes))
