"""Fashion-MNIST in the OnePass paper (Section 4.2, Appendices B.5 and B.6): ten methods, with and without batch norm.

Tables 2, 7, 8 and 9 and Figures 5, 11 to 15, as far as they are of Fashion-MNIST. A run trains the 50-unit net for
10,000 steps on batches of 50. For "Random-3-batched" it trains three nets and keeps the one of lowest validation loss;
for "Bayes" it is a search of 30 trainings. Random, WD+LR+M and Diff-through-Opt without batch norm are, at the paper's
size, those of the study `image_horizon`, which starts from the same draws (`joined`).

The method "times" is no training of the paper: it takes steps of all one-pass methods in turns, one net at a time, so
that their seconds can be compared whatever else the machine does (Figures 5a and 14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtune.errors import unknown
from gradtune.recursion.rules import sgd
from gradtune.search import Bayes, Training
from gradtune.search.trainable import Members
from gradtune_book.papers.onepass import image_horizon, one_pass, uci_bayes
from gradtune_book.papers.onepass.image_training import Config as OneTraining
from gradtune_book.papers.onepass.image_training import lowest, problem, results, without_outliers
from gradtune_book.papers.onepass.one_pass import TIMES, Plan, Trainer
from gradtune_book.papers.onepass.uci_onepass import BAYES, ONE_PASS, THREE
from gradtune_book.papers.onepass.uci_training import DECAY, LR, MOMENTUM, SETTINGS, declared
from gradtune_book.papers.series import short
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import fashion
from gradtune_book.tasks.classification import Classification


@dataclass(frozen=True)
class Config(OneTraining):
    """One run of one method."""

    batch_norm: bool = False  # of the hidden units, before the ReLU
    trials: int = 1  # trainings of a run: 3 of a 3-batched one, 30 of Bayesian optimisation


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    dataset: str  # as `fashion.resolve` takes it
    runs: int  # initialisations for each one-pass method
    steps: int  # training steps of a run
    searches: int  # repetitions of Bayesian optimisation
    trials: int  # trainings of one search
    timings: int  # repetitions of "times"
    timed_steps: int  # steps of each method in one of them
    elsewhere: tuple[str, ...] = ()  # methods whose runs without batch norm are those of `image_horizon`


SIZES = {
    "smoke": Sizes("digits", 4, 80, 1, 4, 1, 20),
    "laptop": Sizes("auto", 10, 2000, 2, 10, 2, 200),
    "paper": Sizes("real", 100, 10_000, 32, 30, 5, 1000, image_horizon.SHORT),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the runs of a scale: ten methods, times, then batch norm.

    Args:
        sizes: What the scale sets.
        seed: Seed of the first run of each method.
    """
    base = Config("", seed, fashion.resolve(sizes.dataset), sizes.steps)
    every = [replace(base, method=m, trials=3 if m == THREE else 1) for m in ONE_PASS]
    out = [replace(c, seed=seed + k) for c in every if c.method not in sizes.elsewhere for k in range(sizes.runs)]
    out += [replace(base, method=TIMES, seed=seed + k, steps=sizes.timed_steps) for k in range(sizes.timings)]
    out += [replace(base, method=BAYES, seed=seed + k, trials=sizes.trials) for k in range(sizes.searches)]
    return out + [replace(c, seed=seed + k, batch_norm=True) for c in every for k in range(sizes.runs)]


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute a batch of runs that agree in all but their seeds.

    Metrics and series of a training are those of `image_training.results`; of a 3-batched run, those of the training
    that is kept. The series are read before the first step and some 20 times after it.

    For Bayesian optimisation the metrics are those of the training of lowest validation loss, but for `best_ce`, the
    lowest test loss of all trainings, and `diverged`, 1 when all trainings diverged. Its series are the values of every
    training: `trial_val` and `trial_test`.

    The metrics of "times" are `ms_<method>`, the processor's milliseconds of a step.

    Raises:
        GradtuneError: The method or the data set is unknown, the data set is absent, or optuna is not installed and the
            method is "Bayes".
    """
    c, seeds = batch[0], [b.seed for b in batch]
    if c.method == TIMES:
        return [_times(b, device) for b in batch]
    if c.method == BAYES:
        return _searches(c, seeds, device)
    if c.method == THREE:
        return _best_of_three(c, seeds, device)
    if c.method not in SETTINGS:
        raise unknown("method", c.method, [*ONE_PASS, BAYES, TIMES])
    return _train(c, seeds, device)


def _trainer(c: Config, seeds: Sequence[int], device: torch.device) -> tuple[Classification, Trainer]:
    task = problem(c, device, SETTINGS[c.method].merged, c.batch_norm)
    plan = Plan(c.method, c.steps, c.every, c.look_back)
    return task, Trainer(plan, task, sgd(), task.init(seeds), seeds)


def _train(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    task, t = _trainer(c, seeds, device)
    spent = Stopwatch(device)

    def read(w: Tensor) -> list[Any]:
        return [x.tolist() for x in task.evaluate(w, "test")]

    found = one_pass.train(t, f"training from seed {seeds[0]}", read, spent)
    ce, error = np.moveaxis(np.array(found, dtype=float), 0, -1)
    curves = without_outliers(ce, ce), without_outliers(error, ce)
    return results(task, t.run.state.w, t.start, curves, spent.share(len(seeds)))


def _best_of_three(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    plain = replace(c, method="Random")
    thirds = [_train(plain, each, device) for each in one_pass.seeds_of_thirds(seeds, c.trials)]
    return [one_pass.best(trained, "val_ce") for trained in zip(*thirds, strict=True)]


class _Whole(Training):
    """Training whose configurations are compared on all validation images."""

    @torch.no_grad()
    def val_loss(self, members: Members) -> list[float]:
        task = self.problem
        assert isinstance(task, Classification)
        return task.evaluate(members.run.state.w, "val")[0].tolist()


def _searches(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    task, spent = problem(c, device, merged=False, batch_norm=c.batch_norm), Stopwatch(device)
    training = _Whole(task, sgd(), declared(SETTINGS["Random"]), task.layout.sizes, task.init, c.steps, every=c.every)
    errors: list[list[float]] = []

    def test(members: Members) -> list[float]:
        loss, error = task.evaluate(members.run.state.w, "test")
        errors.append(error.tolist())
        return loss.tolist()

    with sittings.current().part(f"errors from seed {seeds[0]}", lambda: {"errors": errors}) as earlier:
        errors += earlier["errors"] if earlier else []
        found = uci_bayes.side_by_side(training, seeds, c.trials, spent, test, Bayes())
    out, seconds = [], spent.share(len(seeds))
    for k, r in enumerate(found):
        val, ce = np.where(np.isfinite(r.val), r.val, np.nan), np.array(r.test, dtype=float)
        test_ce = without_outliers(ce, ce)
        error = without_outliers(np.array([e[k] for e in errors]), ce)
        best = 0 if np.isnan(val).all() else int(np.nanargmin(val))
        metrics: dict[str, Any] = {
            "log10_lr": float(np.log10(r.configs[best][LR])),
            "log10_decay": float(np.log10(r.configs[best][DECAY])),
            "momentum_start": r.configs[best][MOMENTUM],
            "val_ce": val[best],
            "test_ce": test_ce[best],
            "test_error": error[best],
            "best_ce": lowest(test_ce),
            "best_error": lowest(error),
            "diverged": int(np.isnan(test_ce).all()),
        }
        series = {"trial_val": short(val), "trial_test": short(test_ce)}
        images = task.images
        out.append(Result(metrics, series, dataset=images.name, dataset_sha256=images.sha256, **seconds))
    return out


def _times(c: Config, device: torch.device) -> Result:
    def make(method: str) -> Trainer:
        return _trainer(replace(c, method=method), [c.seed], device)[1]

    metrics, seconds = one_pass.times(make, c.steps, c.every, device)
    images = problem(c, device, merged=True).images
    return Result(metrics, {}, dataset=images.name, dataset_sha256=images.sha256, **seconds)


def _cost(c: Config) -> float:
    factor = {"Random": 1.0, "Random-xLR": 1.0, THREE: 1.0, BAYES: 1.0, TIMES: 20.0}.get(c.method, 1.6)
    return c.steps * c.trials * factor * (1.7 if c.batch_norm else 1.0) / 3000


def _chunk(c: Config) -> int:
    # with batch norm, 25 side by side were no dearer a run than ten: 0.75 and 0.94 of the time for two methods
    return 1 if c.method == TIMES else 8 if c.method == BAYES else 25 if c.batch_norm else 10


STUDY = Study("image_onepass", Config, SIZES, configs, run, chunk=_chunk, cost=_cost)
