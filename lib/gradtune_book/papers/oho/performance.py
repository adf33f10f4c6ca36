"""Figures 2 and 3 of the OHO paper: one training with OHO against searches that train many times.

Each training starts from a learning rate, a weight decay and what else its way to train has, drawn at random. The draw
is a function of the seed, the same learning rate and weight decay for every way and for OHO. So the trainings of a way
are its random search (Figure 2), and their final test losses its distribution over initial hyperparameters (Figure 3).
Bayesian optimisation trains one net after another.

The ranges, the number of epochs and what "Step" falls by are not in the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradtune import methods, search
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import adam, sgd
from gradtune.search import Dimension, Space
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Run
from gradtune_book.papers.oho import training
from gradtune_book.papers.oho.schedules import ADAM, EXP, STEP, WAYS
from gradtune_book.papers.oho.training import DECAY, LR, OHO, Bench, Change, blocks_of, falling, seeds_of, train
from gradtune_book.papers.series import short
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.records.told import Tick, Told

PERIOD, GAMMA, BETA1, BETA2 = "period", "gamma", "beta1", "beta2"
RANGES = {LR: Dimension(1e-3, 0.3, "log10"), DECAY: Dimension(1e-6, 1e-2, "log10")}
"""Where initial learning rates and weight decays come from, of every way to train and of OHO."""
OWN = {
    ADAM: {BETA1: Dimension(0.5, 0.99), BETA2: Dimension(0.9, 0.9999)},
    EXP: {GAMMA: Dimension(0.5, 1.0)},
}
"""Further ranges by the way to train; "Step" has the epochs between two falls, from 1 to all."""

STARTUP = 3
"""Random trials of a Bayesian optimisation before its first proposal."""

_DRAW = 6  # so that a draw shares no random numbers with the weights of the same seed


@dataclass(frozen=True)
class Config(training.Config):
    """One training from hyperparameters drawn by its seed, or one Bayesian optimisation."""

    search: Literal["random", "bayes"] = "random"
    trials: int = 1  # trainings of a Bayesian optimisation


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    base: Config  # without method and seed
    draws: int  # of each way to train and of global OHO
    layerwise_draws: int
    layers: int  # sets of hyperparameters of layerwise OHO
    searches: int  # Bayesian optimisations of each way to train
    trials: int  # trainings of each of them


_MNIST = Config("", 0, readings=1)
_DIGITS = replace(_MNIST, data="digits", validation=280, batch=56, outer_batch=56, width=32, epochs=5, meta_rate=1e-4)
_SMALL_CNN = replace(
    _MNIST, rows=6000, test_rows=2000, validation=1000, net="cnn", width=8, batch=100, epochs=4,
)  # fmt: skip
SIZES = {
    "smoke": Sizes(_DIGITS, 4, 2, 6, 1, 2),
    "laptop": Sizes(_SMALL_CNN, 5, 5, 6, 3, 4),
    "paper": Sizes(_MNIST, 20, 10, 6, 5, 6),
}
CNN = replace(_MNIST, net="cnn")
"""The paper's convolutional net, 128 kernels of 5 x 5 pixels in each layer, for a GPU."""
RESNET = replace(
    _MNIST, data="cifar10", validation=5000, net="resnet18", augment=True, batch=100, outer_batch=1000, epochs=300,
    lr=0.01,
)  # fmt: skip
"""The paper's training on CIFAR-10, for a GPU."""


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: random draws of OHO and each way to train, a few at a time, then searches and layers.

    Args:
        sizes: What the scale sets.
        seed: First seed.
    """
    blocks = blocks_of(sizes.draws, seed)
    out = [replace(sizes.base, method=m, seed=s, order=o) for block in blocks for m in (OHO, *WAYS) for s, o in block]
    bayes = replace(sizes.base, search="bayes", trials=sizes.trials)
    out += [replace(bayes, method=m, seed=s, order=s) for s in range(seed, seed + sizes.searches) for m in WAYS]
    layerwise = replace(sizes.base, method=OHO, sets=sizes.layers)
    return out + [replace(layerwise, seed=s, order=o) for s, o in seeds_of(sizes.layerwise_draws, seed)]


def space(way: str, epochs: int) -> Space:
    """Return what is searched for a way to train, or for OHO: learning rate and weight decay first."""
    own = {PERIOD: Dimension(1.0, float(epochs))} if way == STEP else OWN.get(way, {})
    return Space({**RANGES, **own})


def drawn(c: Config) -> dict[str, float]:
    """Return the hyperparameters that a training starts from: uniform in the raw coordinates of its ranges."""
    return space(c.method, c.epochs).draw(np.random.default_rng([c.seed, _DRAW]))


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that differ in their seeds.

    The metrics of a training are those of `training.Bench.at_end` and `start_<name>`, what it started from. Its series
    are those of `training.Bench.read`.

    The metrics of a Bayesian optimisation are those of its training of lowest validation loss: `test`, `val` and
    `best`, its number; and `sampler_s`, seconds by the clock that proposing took. Its series are `trial_test`,
    `trial_val` and `trial_s`, the processor's seconds of training up to each trial's end.

    Args:
        batch: The configurations.
        device: Where to compute.
    """
    if batch[0].search == "bayes":
        return [_optimised(c, device) for c in batch]
    return trainings(batch, Bench(batch[0], device), [drawn(c) for c in batch])


def trainings(batch: Sequence[Config], bench: Bench, recipes: Sequence[Mapping[str, float]]) -> list[Result]:
    """Train nets that differ in their seeds, each from its recipe.

    Args:
        batch: The configurations.
        bench: Net, images and batches.
        recipes: What each starts from, as `drawn` has it.

    Returns:
        What `run` says of a training.
    """
    w = bench.task.init([c.seed for c in batch])
    if batch[0].method == OHO:
        lr, decay = (_column(recipes, n, w) for n in (LR, DECAY))
        trained = train(bench, bench.loop(bench.hypers(True, lr, decay)), w)
    else:
        trained = train(bench, *_way(bench, batch[0].method, recipes, w))
    end = bench.at_end(trained.w)
    out = []
    for k, recipe in enumerate(recipes):
        metrics = {n: v[k] for n, v in end.items()} | {f"start_{n}": v for n, v in recipe.items()}
        name, digest = bench.images.name, bench.images.sha256
        out.append(Result(metrics, trained.series(k), dataset=name, dataset_sha256=digest, **trained.seconds))
    return out


def _column(recipes: Sequence[Mapping[str, float]], name: str, like: Tensor, default: float = 1.0) -> Tensor:
    return like.new_tensor([r.get(name, default) for r in recipes])


def loop_of(bench: Bench, way: str, recipes: Sequence[Mapping[str, float]], like: Tensor) -> tuple[Loop, Change]:
    """Return the training of R nets by a way, and what lets the learning rate fall.

    Args:
        bench: Net, images and batches.
        way: One of `WAYS`.
        recipes: Hyperparameters of each run, by name.
        like: Weights, for type and device.
    """
    names = [LR, DECAY, *([BETA1, BETA2] if way == ADAM else [])]
    hypers = Hypers([Hyper(n, _column(recipes, n, like), tuned=False) for n in names], bench.task.layout.sizes)
    rule = adam(weight_decay=True) if way == ADAM else sgd(momentum=False)
    period = _column(recipes, PERIOD, like).round()
    lr, gamma = _column(recipes, LR, like), _column(recipes, GAMMA, like)
    fall = falling(way, bench.per_epoch, bench.c.epochs, lr, period, gamma)
    return Loop(bench.task, rule, hypers, methods.fixed()), fall


def _way(bench: Bench, way: str, recipes: Sequence[Mapping[str, float]], w: Tensor) -> tuple[Loop, Tensor, Change]:
    loop, fall = loop_of(bench, way, recipes, w)
    return loop, w, fall


class _Members(NamedTuple):
    loop: Loop
    fall: Change
    run: Run


@dataclass
class Trials:
    """What a search trains. It is a `records.told.Resumable`.

    Attributes:
        bench: Net, images and batches, which all trials share.
        way: One of `WAYS`.
        spent: Seconds of training so far.
        tests: Test loss of each finished trial.
        seconds: `spent` at the end of each finished trial, the processor's.
    """

    bench: Bench
    way: str
    spent: Stopwatch = field(init=False)
    tests: list[float] = field(init=False, default_factory=list)
    seconds: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.spent = Stopwatch(self.bench.device)

    @property
    def steps(self) -> int:
        return self.bench.steps

    def start(self, configs: Sequence[Any], seeds: Sequence[int]) -> _Members:
        w = self.bench.task.init(seeds)
        loop, fall = loop_of(self.bench, self.way, configs, w)
        return _Members(loop, fall, loop.start(w))

    def advance(self, members: _Members, steps: int, tick: Tick = lambda members, spent: None) -> _Members:
        loop, run, end = members.loop, members.run, members.run.t + steps

        def watch(now: Run) -> None:
            tick(_Members(loop, members.fall, now), self.spent)

        while run.t < end:
            loop, run = members.fall(loop, run)
            with self.spent:
                run = loop.advance(
                    run, min(end, (run.t // self.bench.per_epoch + 1) * self.bench.per_epoch) - run.t, watch, 10
                )
        return _Members(loop, members.fall, run)

    def state(self, members: _Members | None) -> dict[str, Any]:
        own = {"spent": self.spent.state(), "tests": self.tests, "seconds": self.seconds}
        return own if members is None else {**own, "run": saved_runs.state(members.run)}

    def restored(self, members: _Members | None, earlier: Mapping[str, Any]) -> _Members | None:
        self.spent.go_on(earlier["spent"])
        self.tests, self.seconds = [*earlier["tests"]], [*earlier["seconds"]]
        if members is None:
            return None
        return members._replace(run=saved_runs.restored(members.loop, members.run, earlier["run"]))

    def age(self, members: _Members) -> int:
        return members.run.t

    def val_loss(self, members: _Members) -> list[float]:
        w = members.run.state.w
        if members.run.t:
            self.tests += self.bench.task.evaluate(w, "test")[0].tolist()
            self.seconds.append(self.spent.cpu_s)
        return self.bench.task.evaluate(w, "val")[0].tolist()


def _optimised(c: Config, device: torch.device) -> Result:
    """Search by Bayesian optimisation (a Gaussian process, after `STARTUP` random trials)."""
    trials = Trials(Bench(c, device), c.method)
    budget = c.trials * trials.steps
    with Told(trials) as told:
        found = search.search("bayes", told, space(c.method, c.epochs), budget, c.seed, startup=STARTUP)
    val = np.array([row["val_loss"] for row in found.rows], dtype=float)
    best = int(np.where(np.isfinite(val), val, np.inf).argmin())
    sampler = float(found.rows[-1]["sampler_seconds"])
    metrics: dict[str, float | int | None] = {
        "test": trials.tests[best],
        "val": float(val[best]),
        "best": best,
        "sampler_s": sampler,
    }
    series = {"trial_test": trials.tests, "trial_val": val, "trial_s": trials.seconds}
    images, spent = trials.bench.images, trials.spent.share(1)
    kept = {n: short(np.asarray(v, dtype=float), 5) for n, v in series.items()}
    return Result(metrics, kept, dataset=images.name, dataset_sha256=images.sha256, **spent)


def _cost(c: Config) -> float:
    return c.epochs * c.trials * (0.5 if c.method != OHO else 2 + 2 * c.sets) / 40


def _chunk(c: Config) -> int:
    """Return how many runs stand side by side: nets that are no plain ones gain nothing by it on a CPU."""
    return 5 if c.net == "mlp" and c.search == "random" else 1


STUDY = Study("oho_performance", Config, SIZES, configs, run, chunk=_chunk, cost=_cost)
