"""Trainings of the studies whose launches are counted: the operations of the paper's sizes on few rows and narrow nets.

The number of launches follows from layers, columns and steps, not from widths and batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradtune import methods
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SignHalving
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop
from gradtune_book import papers
from gradtune_book.papers.clip import mnist, ptb
from gradtune_book.papers.fds.cifar_training import Bench, Config
from gradtune_book.papers.fds.common import lenet_for, pictures
from gradtune_book.papers.oho import training as oho
from gradtune_book.papers.onepass import uci_training
from gradtune_book.tasks import images
from gradtune_book.tasks.classification import fully_connected
from gradtune_book.tasks.per_run import PerRun, split

CUDA = torch.device("cuda")
Stepping = Callable[[int], Any]


@dataclass(frozen=True)
class Row:
    """A training: how it is made, and after how many steps how many are counted."""

    make: Callable[[], Stepping]
    warm: int
    steps: int


def _stepping(advance: Callable[[Any, int], Any], run: Any) -> Stepping:
    held = [run]

    def step(count: int) -> None:
        held[0] = advance(held[0], count)

    return step


def _config(study: str, method: str, **changed: Any) -> Any:
    return replace(next(c for c in papers.get(study).runs("smoke") if c.method == method), **changed)


def uci(seeds: Sequence[int] = (0,)) -> Stepping:
    """OnePass WD+LR+M on a table, as recorded: a training of 4000 steps, an update every 10."""
    trainer = uci_training.Trainer(_config("uci_choices", "WD+LR+M", steps=4000), CUDA)
    return _stepping(trainer.advance, trainer.start(seeds)[1])


def fds_lenet() -> Stepping:
    """FDS with five learning rates over time and a LeNet."""
    given = pictures("svhn_like", CUDA, 200)
    task = PerRun(lambda: lenet_for(given), given, split(200, 20, CUDA), [0], 4, 20)
    hypers = [Hyper("lr", 0.01, windows=5), Hyper("momentum", 0.9, tuned=False)]
    loop = Loop(
        task, sgd(weight_decay=False), Hypers(hypers, task.layout.sizes, 120), methods.fds(120, SignHalving(0.1))
    )
    return _stepping(loop.advance, loop.start(task.init()))


def fds_wrn() -> Stepping:
    """FDS with seven learning rates over time, a momentum and a weight decay, and the WRN-16-1 with augmentation."""
    bench = Bench(Config("FDS", 0, "digits", net="wrn-16-1", batch=4, validation=20), CUDA)
    task = bench.task([0])
    hypers = [Hyper("lr", 0.01, windows=7), Hyper("momentum", 0.5), Hyper("weight_decay", 1e-3)]
    method = methods.fds(112, SignHalving(0.1), product_limit=10.0)
    loop = Loop(task, bench.rule, Hypers(hypers, task.layout.sizes, 112), method)
    started = loop.start(task.init())._replace(t=96)  # in the last window, where all columns have begun
    return _stepping(loop.advance, started)


def clip_words() -> Stepping:
    """Clip5 and the keep probability of an LSTM of two layers, 35 words unrolled."""
    small = {"hidden": 4, "layers": 2, "unrolled": 35, "batch_size": 4, "warm_up": 0, "vocabulary": 20}
    c = _config("clip_ptb", "Clip5", **small)
    problem = ptb.problem(c, [0], CUDA)
    loop = ptb.loop(c, problem)
    return _stepping(loop.advance, loop.start(problem.init(c.init)))


def clip_mnist() -> Stepping:
    """Clip5 and the weight decay of a net of four layers."""
    c = _config("clip_mnist", "Clip5", width=4)
    given = images.load(c.data, getattr(torch, c.dtype), CUDA)
    task = fully_connected(given, [c.width] * 3, c.batch_size, c.val_batch_size, 0)
    loop = mnist.loop(c, task, [c.decay])
    return _stepping(loop.advance, loop.start(task.init([0])))


def oho_mlp() -> Stepping:
    """OHO with two hyperparameters for each of four sets of layers."""
    bench = oho.Bench(_config("oho_layerwise", "OHO", sets=4), CUDA)
    loop = bench.loop(bench.hypers(True))
    return _stepping(loop.advance, loop.start(bench.task.init([0])))


ROWS = {
    "OnePass WD+LR+M, UCI, one run": Row(uci, 40, 20),
    "OnePass WD+LR+M, UCI, 10 runs at once": Row(lambda: uci(range(10)), 40, 20),
    "FDS, LeNet, 5 windows": Row(fds_lenet, 108, 8),
    "FDS, WRN-16-1, 9 columns": Row(fds_wrn, 8, 4),
    "Clip5, LSTM of 2 layers, 35 words": Row(clip_words, 3, 2),
    "Clip5, 4-layer net": Row(clip_mnist, 8, 4),
    "OHO, 4 sets of layers": Row(oho_mlp, 8, 4),
}
