"""What the FDS paper prints or its program does, against the exact form: the numbers of the page on omissions."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from gradhpo import published
from gradhpo.estimators import Estimator
from gradhpo.estimators.forward import Forward
from gradhpo.hypers import Hyper, Hypers
from gradhpo.outer import SGD, Kept
from gradhpo.rules import Rule, clipped, sgd
from gradhpo.studies.fds_common import lenet_for, pictures
from gradhpo.tasks.classification import Classification, split
from gradhpo.train import Loop, Method
from torch import Tensor

STEPS, NAMES = 40, ("learning rate", "momentum", "weight decay")
CPU = torch.device("cpu")


@lru_cache(maxsize=1)
def task() -> Classification:
    """LeNet on 600 images of svhn_like, batches of 32, 100 validation images."""
    given = pictures("svhn_like", CPU, 600, 10)
    return Classification(lambda: lenet_for(given), given.train, split(600, 100, CPU), [0], 32, 100)


def hypergradient(estimator: Estimator, rule: Rule | None = None) -> Tensor:
    """Hypergradients `[3]` after 40 steps at learning rate 0.05, momentum 0.9, weight decay 1e-3."""
    declared = [Hyper("lr", 0.05), Hyper("momentum", 0.9), Hyper("weight_decay", 1e-3)]
    loop = Loop(task(), rule or sgd(), Hypers(declared, task().layout.sizes), Method(estimator, Kept(SGD(0.0)), STEPS))
    found: Tensor = loop.advance(loop.start(task().init()), STEPS).outer.hypergradient[0]
    return found


@lru_cache(maxsize=1)
def exact() -> Tensor:
    return hypergradient(Forward())


def off(found: Tensor, right: Tensor) -> list[float]:
    """Relative errors of the three hypergradients."""
    return ((found - right) / right).abs().tolist()


def test_the_printed_velocity_is_off_for_the_momentum_alone() -> None:
    wrong = off(hypergradient(published.FdsPrintedMomentum()), exact())
    print(dict(zip(NAMES, wrong)))
    assert wrong[0] < 1e-5 and wrong[2] < 1e-5 and wrong[1] > 1e-3


def test_a_tight_clip_of_the_product_changes_hypergradients() -> None:
    errors = {limit: off(hypergradient(Forward(product_limit=limit)), exact()) for limit in (1.0, 10.0, 100.0)}
    print({limit: dict(zip(NAMES, e)) for limit, e in errors.items()})
    assert max(errors[1.0]) > 0.1 and max(errors[1.0]) > max(errors[100.0])


@pytest.mark.parametrize("limit", [0.05, 1.0])
def test_the_clip_belongs_after_the_hessian(limit: float) -> None:
    rule = clipped(sgd(), limit)
    right = hypergradient(Forward(), rule)
    wrong = off(hypergradient(published.FdsClipInside(rule=sgd(), limit=limit), rule), right)
    print(limit, dict(zip(NAMES, wrong)))
    assert max(wrong) > 1e-3 if limit < 1 else max(wrong) < 1
