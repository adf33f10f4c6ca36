"""What the FDS paper prints or its program does, against the exact form: the numbers of the page on omissions."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from gradtune.estimators import Estimator
from gradtune.estimators.forward import Forward
from gradtune.nets.losses import accuracy
from gradtune.nets.modules import batch_statistics, batched
from gradtune.nets.wide_resnet import residual
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule, clipped, sgd
from gradtune.recursion.wrapped import Kept
from gradtune.training.loop import Loop, Method
from gradtune_book.papers import published
from gradtune_book.papers.fds.common import lenet_for, pictures
from gradtune_book.tasks.per_run import PerRun, split

STEPS, SEEDS = 40, [0, 1, 2]
CPU = torch.device("cpu")


@lru_cache(maxsize=1)
def task() -> PerRun:
    """LeNet on 600 images of svhn_like, batches of 32, 100 validation images, float64."""
    given = pictures("svhn_like", CPU, 600, 10, torch.float64)
    return PerRun(lambda: lenet_for(given), given, split(600, 100, CPU), SEEDS, 32, 100)


def hypergradient(estimator: Estimator, rule: Rule | None = None) -> Tensor:
    """Hypergradients `[seeds, 3]` after 40 steps at learning rate 0.02, momentum 0.9, weight decay 1e-3."""
    declared = [Hyper("lr", 0.02), Hyper("momentum", 0.9), Hyper("weight_decay", 1e-3)]
    loop = Loop(task(), rule or sgd(), Hypers(declared, task().layout.sizes), Method(estimator, Kept(SGD(0.0)), STEPS))
    found: Tensor = loop.advance(loop.start(task().init()), STEPS).outer.hypergradient
    return found


@lru_cache(maxsize=1)
def exact() -> Tensor:
    return hypergradient(Forward())


def off(found: Tensor, right: Tensor) -> list[float]:
    """Relative errors of the hypergradients of learning rate, momentum and weight decay, medians over the seeds."""
    return ((found - right) / right).abs().median(dim=0).values.tolist()


def test_the_printed_velocity_is_off_for_the_momentum_alone() -> None:
    wrong = off(hypergradient(published.FdsPrintedMomentum()), exact())
    assert wrong == pytest.approx([0, 0.217, 0], rel=0.01, abs=1e-12)


def test_a_tight_clip_of_the_product_changes_hypergradients() -> None:
    assert off(hypergradient(Forward(product_limit=1.0)), exact()) == pytest.approx([0.788, 0.0053, 0.552], rel=0.01)
    assert off(hypergradient(Forward(product_limit=10.0)), exact()) == pytest.approx([0.028, 0, 0], rel=0.01)
    assert torch.equal(hypergradient(Forward(product_limit=100.0)), exact())  # to the last bit: nothing is clipped


def test_the_clip_belongs_after_the_hessian() -> None:
    rule = clipped(sgd(), 0.05)
    wrong = hypergradient(published.FdsClipInside(rule=sgd(), limit=0.05), rule)
    assert off(wrong, hypergradient(Forward(), rule)) == pytest.approx([0.185, 0.631, 1.01], rel=0.01)
    hardly = hypergradient(published.FdsClipInside(rule=sgd(), limit=1.0), clipped(sgd(), 1.0))
    assert off(hardly, exact()) == pytest.approx([0, 0, 0], abs=1e-12)  # in the median no coordinate is clipped at 1


def test_validation_passes_move_the_running_statistics() -> None:
    """A net with batch norm after 60 steps on digits: test accuracy with running statistics (momentum 0.1) of its
    training batches, and after two further passes over 100 validation images each in training mode."""
    given = pictures("digits", CPU)
    task = PerRun(lambda: residual(channels=1), given, split(1400, 200, CPU), [0], 64, 100)
    declared = [Hyper("lr", 0.1, tuned=False), Hyper("momentum", 0.9, tuned=False)]
    loop = Loop(task, sgd(weight_decay=False), Hypers(declared, task.layout.sizes), Method())
    w = loop.advance(loop.start(task.init()), 60).state.w
    seen = [given.x_train[task._own.rows(0, t)] for t in range(40, 60)]
    own = batch_statistics(task.module, w, seen, task._accuracy.buffers(w))
    moved = batch_statistics(task.module, w, list(given.x_train[task.val_rows[0]].split(100)), own)
    right = [float(batched(task.module, accuracy)(w, *given.test, mode="eval", buffers=b)) for b in (own, moved)]
    shift = max(float((moved[n] - own[n]).abs().max() / own[n].abs().max()) for n in own if "running_mean" in n)
    assert shift == pytest.approx(0.040, rel=0.2)
    assert [round(397 * each) for each in right] == [pytest.approx(354, abs=6), pytest.approx(356, abs=6)]
