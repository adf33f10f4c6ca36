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

from gradtune.errors import unknown
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import sgd
from gradtune.search import MULTIPLIER, Bayes, Training
from gradtune.search.trainable import Members
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Run
from gradtune_book.papers.onepass import image_horizon, uci_bayes
from gradtune_book.papers.onepass.image_training import Config as OneTraining
from gradtune_book.papers.onepass.image_training import Reading, lowest, problem, results, without_outliers
from gradtune_book.papers.onepass.uci_onepass import BAYES, ONE_PASS, THREE
from gradtune_book.papers.onepass.uci_training import DECAY, LR, MOMENTUM, SETTINGS, Start, declared, draw
from gradtune_book.papers.series import short
from gradtune_book.records import sittings
from gradtune_book.records.environment import Seconds, Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study
from gradtune_book.tasks import fashion
from gradtune_book.tasks.classification import Classification

TIMES = "times"
_THIRDS = 10_000  # a 3-batched run's trainings start from other draws than the Random runs
_WARM, _TURNS = 50, 10  # steps that are not counted; turns of each method


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
    task, members, start, reading = _train(c, seeds, device)
    curves, seconds = reading.curves(), reading.spent.share(len(seeds))
    return results(task, members.run.state.w, start, curves, seconds)


class _Trainer:
    """Training of R nets by one method: the one-pass loop, or plain training whose learning rate is stepped."""

    def __init__(self, c: Config, seeds: Sequence[int], device: torch.device) -> None:
        setting = SETTINGS[c.method]
        self.task = problem(c, device, setting.merged, c.batch_norm)
        self.start, w = draw(seeds), self.task.init(seeds)
        hypers, sizes = declared(setting, self.start, w), self.task.layout.sizes
        self.loop = Loop(self.task, sgd(), Hypers(hypers, sizes), setting.make(c.look_back, c.every))
        self.stepped = Training(self.task, sgd(), hypers, sizes, self.task.init, c.steps, every=c.every)
        if c.method == "Random-xLR":
            self.members = self.stepped.start(_recipes(self.start, len(seeds)), seeds)
        else:
            self.members = Members(self.loop.start(w), None)

    def advance(self, steps: int) -> Run:
        """Take more training steps, and return the runs."""
        if self.members.factor is not None:
            self.members = self.stepped.advance(self.members, steps)
        else:
            self.members = Members(self.loop.advance(self.members.run, steps), None)
        return self.members.run


def _recipes(start: Start, runs: int) -> list[dict[str, float]]:
    columns = {LR: start.lr, DECAY: start.weight_decay, MOMENTUM: start.momentum, MULTIPLIER: start.multiplier}
    return [{n: float(v[k]) for n, v in columns.items()} for k in range(runs)]


def _train(c: Config, seeds: Sequence[int], device: torch.device) -> tuple[Classification, Members, Start, Reading]:
    t = _Trainer(c, seeds, device)
    reading, sitting = Reading(t.task, device), sittings.current()

    def state() -> dict[str, Any]:
        return {"run": saved_runs.state(t.members.run), "reading": reading.state()}

    with sitting.part(f"training from seed {seeds[0]}", state) as earlier:
        if earlier is None:
            reading.read(t.members.run)
        else:
            t.members = t.members._replace(run=saved_runs.restored(t.loop, t.members.run, earlier["run"]))
            reading.go_on(earlier["reading"])
        while t.members.run.t < c.steps:
            with reading.spent:
                t.advance(min(c.between, c.steps - t.members.run.t))
            reading.read(t.members.run)
            sitting.tick()
    return t.task, t.members, t.start, reading


def _best_of_three(c: Config, seeds: Sequence[int], device: torch.device) -> list[Result]:
    plain = replace(c, method="Random")
    thirds, spent = [], Seconds(cpu_s=0.0, wall_s=0.0)
    for j in range(c.trials):
        task, members, start, reading = _train(plain, [_THIRDS + c.trials * s + j for s in seeds], device)
        each = reading.spent.share(len(seeds))
        spent = Seconds(cpu_s=spent["cpu_s"] + each["cpu_s"], wall_s=spent["wall_s"] + each["wall_s"])
        thirds.append(results(task, members.run.state.w, start, reading.curves(), each))
    kept = []
    for trained in zip(*thirds, strict=True):
        val = [r.metrics["val_ce"] if r.metrics["val_ce"] is not None else np.nan for r in trained]
        chosen = trained[int(np.where(np.isnan(np.array(val, dtype=float)), np.inf, val).argmin())]
        kept.append(replace(chosen, **spent))
    return kept


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
    """Take steps of all methods in turns, and compare the seconds."""
    trainers = {m: _Trainer(replace(c, method=m), [c.seed], device) for m in SETTINGS}
    spent = {m: Stopwatch(device) for m in trainers}
    for t in trainers.values():
        t.advance(_WARM)
    turn = max(c.every, c.steps // _TURNS)
    for _ in range(0, c.steps, turn):
        for m, t in trainers.items():
            with spent[m]:
                t.advance(turn)
    taken = turn * len(range(0, c.steps, turn))
    metrics: dict[str, Any] = {f"ms_{m}": 1e3 * s.cpu_s / taken for m, s in spent.items()}
    images, total = trainers["Random"].task.images, Seconds(cpu_s=0.0, wall_s=0.0)
    for s in spent.values():
        each = s.share(1)
        total = Seconds(cpu_s=total["cpu_s"] + each["cpu_s"], wall_s=total["wall_s"] + each["wall_s"])
    return Result(metrics, {}, dataset=images.name, dataset_sha256=images.sha256, **total)


def _cost(c: Config) -> float:
    factor = {"Random": 1.0, "Random-xLR": 1.0, THREE: 1.0, BAYES: 1.0, TIMES: 20.0}.get(c.method, 1.6)
    return c.steps * c.trials * factor * (1.7 if c.batch_norm else 1.0) / 3000


def _chunk(c: Config) -> int:
    # with batch norm, 25 side by side were no dearer a run than ten: 0.75 and 0.94 of the time for two methods
    return 1 if c.method == TIMES else 8 if c.method == BAYES else 25 if c.batch_norm else 10


STUDY = Study("image_onepass", Config, SIZES, configs, run, chunk=_chunk, cost=_cost)
