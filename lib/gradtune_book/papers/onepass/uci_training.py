"""One training of the OnePass paper's UCI experiments, which the studies `uci_*` share.

The module has its methods, its initial hyperparameters, and what is read off it. Every method starts a seed from the
same weights and hyperparameters.

Source: Clarke et al. (2022), Section 4 (the nine settings) and Appendix B.3 (Table 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtune import methods
from gradtune.errors import unknown
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import sgd
from gradtune.search import MULTIPLIER, Training
from gradtune.search.trainable import Members
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.papers.series import finite
from gradtune_book.records.environment import Stopwatch
from gradtune_book.tasks.uci import Table, TableRegression, load

LR, DECAY, MOMENTUM = "lr", "weight_decay", "momentum"
ALL = (LR, DECAY, MOMENTUM)
BOUNDS = (1e-10, 1.0)
"""Learning rates are kept here throughout (Section 4)."""

RANGES = {LR: (-6.0, -1.0), DECAY: (-7.0, -2.0), MOMENTUM: (0.0, 1.0), MULTIPLIER: (0.95, 1.01)}
"""Where initial values are drawn from, uniformly: log10 of the first two, natural units of the others (Table 5)."""

OPEN = (1e-6, 1 - 1e-6)
"""A momentum that is tuned lies strictly between 0 and 1, also in float32."""

_WORTH_TRACING = 1000  # steps; the numbers are the same to the last bit, recording a block takes seconds


@dataclass(frozen=True)
class Config:
    """One training of a ReLU net with one hidden layer from random weights and hyperparameters."""

    method: str  # a key of `SETTINGS`, or what a study adds
    seed: int  # draws the initial weights, learning rate, weight decay and momentum; the same for all methods
    dataset: str = "energy"  # a name from `gradtune data`
    steps: int = 4000  # full-batch training steps
    hidden: int = 50  # hidden units
    every: int = 10  # T: training steps between two hyperparameter updates
    look_back: int = 5  # i: terms of the Neumann series, or steps differentiated through
    dtype: str = "float32"  # the published program's; or float64
    form: str = "stacked"  # of the loss: "stacked" or "module", which differ by rounding
    version: int = 3

    def table(self, device: torch.device) -> Table:
        """The rows it trains, validates and tests on."""
        return load(self.dataset, dtype=getattr(torch, self.dtype), device=device)

    def setting(self) -> Setting:
        """What it tunes and how.

        Raises:
            GradtuneError: The method is unknown.
        """
        return setting(self.method)


@dataclass(frozen=True)
class Setting:
    """One of the paper's settings.

    Attributes:
        tuned: Names of the hyperparameters that it tunes.
        make: Makes its method from look-back and update interval.
        merged: Whether the validation rows are training rows.
        per_weight: Whether each weight has a learning rate of its own.
        bounds: Limits of the learning rate.
        init: Makes the initial weights `[R, D]` from the task and R seeds. None stands for the task's own.
    """

    tuned: tuple[str, ...]
    make: Callable[[int, int], Method]
    merged: bool = False
    per_weight: bool = False
    bounds: tuple[float, float] = BOUNDS
    init: Callable[[TableRegression, Sequence[int]], Tensor] | None = None


SETTINGS = {
    "Random": Setting((), lambda i, every: methods.fixed(), merged=True),
    "Random-xLR": Setting((), lambda i, every: methods.fixed(), merged=True),
    "Lorraine": Setting((DECAY,), methods.lorraine),
    "Baydin": Setting((LR,), lambda i, every: methods.baydin(), merged=True),
    "WD+LR": Setting((LR, DECAY), methods.onepass),
    "WD+LR+M": Setting(ALL, methods.onepass),
    "WD+HDLR+M": Setting(ALL, methods.onepass, per_weight=True),
    "Diff-through-Opt": Setting(ALL, methods.diff_through_opt),
}


def setting(method: str) -> Setting:
    """The setting of a method.

    Raises:
        GradtuneError: There is no such method; names the nearest.
    """
    if method not in SETTINGS:
        raise unknown("method", method, SETTINGS)
    return SETTINGS[method]


@dataclass(frozen=True)
class Start:
    """Initial values of R runs, each a tensor `[R]` in natural units and float64.

    Attributes:
        lr: Learning rates.
        weight_decay: Weight decays.
        momentum: Momenta.
        multiplier: Factors of the learning rate, which Random xLR alone uses.
    """

    lr: Tensor
    weight_decay: Tensor
    momentum: Tensor
    multiplier: Tensor

    def metrics(self, k: int) -> dict[str, float | int | None]:
        """The values of run k as they are recorded: `log10_lr`, `log10_decay` and `momentum_start`."""
        return {
            "log10_lr": float(self.lr[k].log10()),
            "log10_decay": float(self.weight_decay[k].log10()),
            "momentum_start": float(self.momentum[k]),
        }

    def recipes(self) -> list[dict[str, float]]:
        """The values of each run as a configuration of a search, the factor of the learning rate among them."""
        columns = {LR: self.lr, DECAY: self.weight_decay, MOMENTUM: self.momentum, MULTIPLIER: self.multiplier}
        return [{n: float(v[k]) for n, v in columns.items()} for k in range(len(self.lr))]


def draw(seeds: Sequence[int]) -> Start:
    """Draw initial hyperparameters, each from its run's seed and independent of the weights that this seed draws."""
    rows = [np.random.default_rng([seed, 1]).uniform(size=4) for seed in seeds]
    u = torch.from_numpy(np.stack(rows))
    lr, decay, momentum, multiplier = (low + (high - low) * u[:, k] for k, (low, high) in enumerate(RANGES.values()))
    return Start(10**lr, 10**decay, momentum.clamp(*OPEN), multiplier)


def declared(s: Setting, start: Start | None = None, like: Tensor | None = None) -> list[Hyper]:
    """The three hyperparameters as a setting tunes them.

    Args:
        s: The setting.
        start: Initial values of R runs. None gives placeholders for values.
        like: Tensor whose type and device the values have, such as the weights. None leaves them as they are.
    """
    values: list[Any] = [0.1, 1e-3, 0.5]
    if start is not None:
        values = [x.to(like) for x in (start.lr, start.weight_decay, start.momentum)]
    wide = "weight" if s.per_weight else "global"
    return [
        Hyper(LR, values[0], "log10", wide, bounds=s.bounds, tuned=LR in s.tuned),
        Hyper(DECAY, values[1], "log10", tuned=DECAY in s.tuned),
        Hyper(MOMENTUM, values[2], "sigmoid", tuned=MOMENTUM in s.tuned),
    ]


def regression(c: Config, device: torch.device, merged: bool) -> TableRegression:
    """The regression problem of a configuration.

    Args:
        c: The configuration.
        device: Device of the rows.
        merged: Whether the validation rows are training rows.

    Raises:
        GradtuneError: The configuration's form of the loss, dtype or set is unknown, or the set cannot be read.
    """
    if c.form not in ("stacked", "module"):
        raise unknown("form of the loss", c.form, ["stacked", "module"])
    if c.dtype not in ("float32", "float64"):
        raise unknown("dtype", c.dtype, ["float32", "float64"])
    table = c.table(device)
    return TableRegression(table.merged() if merged else table, c.hidden, stacked=c.form == "stacked")


class Trainer:
    """Training of many batches of runs that agree in all but their seeds; they share the recorded training steps.

    What continues from one step to the next is a `trainable.Members`. For Random xLR it holds a run of a
    `trainable.Training` and the factors of its learning rates; for all other methods, a run of the one-pass loop and no
    factors.

    Args:
        c: Configuration of the runs, but for their seeds.
        device: Where to train.
    """

    def __init__(self, c: Config, device: torch.device) -> None:
        self.c, self.setting = c, c.setting()
        self.task = regression(c, device, self.setting.merged)
        hypers, sizes, trace = declared(self.setting), self.task.layout.sizes, c.steps >= _WORTH_TRACING
        self.hypers = Hypers(hypers, sizes)
        self.loop = Loop(self.task, sgd(), self.hypers, self.setting.make(c.look_back, c.every), trace)
        self.stepped = Training(self.task, sgd(), hypers, sizes, self.task.init, c.steps, trace, c.every)
        self._warm = False

    def start(self, seeds: Sequence[int]) -> tuple[Start, Members]:
        """Untrained runs and the values they start from."""
        start = draw(seeds)
        if self.c.method == "Random-xLR":
            return start, self.stepped.start(start.recipes(), seeds)
        w = self.setting.init(self.task, seeds) if self.setting.init else self.task.init(seeds)
        raw, fixed = Hypers(declared(self.setting, start, w), self.task.layout.sizes).init(w)
        return start, Members(self.loop.start(w)._replace(raw=raw, fixed=fixed), None)

    def advance(self, members: Members, steps: int) -> Members:
        """Return the runs after `steps` more training steps of each."""
        if members.factor is not None:
            return self.stepped.advance(members, steps)
        return Members(self.loop.advance(members.run, steps), None)

    def warm_up(self, members: Members, steps: int) -> None:
        """Take `steps` steps for nothing, once, so that their recording does not count as training."""
        if not self._warm:
            self.advance(members, steps)
            self._warm = True

    @torch.no_grad()
    def val_mse(self, run: Run) -> Tensor:
        """Mean squared error `[R]` on the validation rows, in the target's unit squared."""
        return self.task.val_loss(run.state.w, {}) * self.task.table.y_std**2


@lru_cache(maxsize=4)
def _trainer(c: Config, runs: int, device: torch.device) -> Trainer:
    return Trainer(c, device)


def trainer(c: Config, runs: int, device: torch.device) -> Trainer:
    """The trainer of a configuration for this number of runs, kept for the next batch.

    Recorded steps hold for one shape, so that each number of runs has a trainer of its own. At most four are kept.
    """
    return _trainer(replace(c, seed=0), runs, device)


@dataclass(frozen=True)
class Trained:
    """R trained runs, read at K steps.

    Attributes:
        steps: Training steps at which the runs were read, `[K]`; the first is 0.
        test: Test MSE there, `[R, K]`, in the target's unit squared; NaN where not finite.
        val: Final validation MSE, `[R]`, in the target's unit squared; NaN where not finite.
        tuned: Values there of each hyperparameter that moved, `[R, K]` by name, in natural units. Of a learning rate
            per weight these are the means, and its range is under the names ending in `_min` and `_max`.
        start: Initial hyperparameters.
        cpu_s: Seconds of training a run that the processor computed (`environment.busy_seconds`).
        wall_s: Seconds of training a run by the clock.
        dataset: Name of the set.
        sha256: Digest of the set.
    """

    steps: np.ndarray
    test: np.ndarray
    val: np.ndarray
    tuned: dict[str, np.ndarray]
    start: Start
    cpu_s: float
    wall_s: float
    dataset: str
    sha256: str


def train(c: Config, seeds: Sequence[int], device: torch.device, watch_every: int) -> Trained:
    """Train a run for each seed, side by side, and read them as they go.

    Args:
        c: Configuration of the runs, but for their seeds.
        seeds: Seed of each run.
        device: Where to train.
        watch_every: Training steps between two readings. The runs are also read before the first step and at the end.
            Reading does not count as training time.

    Raises:
        GradtuneError: The configuration names something unknown, or its set cannot be read.
    """
    t = trainer(c, len(seeds), device)
    start, members = t.start(seeds)
    t.warm_up(members, min(watch_every, c.steps))
    steps, test, tuned = [0], [t.task.test_mse(members.run.state.w)], [_tuned(t, members.run)]
    spent = Stopwatch(device)
    while steps[-1] < c.steps:
        with spent:
            members = t.advance(members, min(watch_every, c.steps - steps[-1]))
        steps.append(members.run.t)
        test.append(t.task.test_mse(members.run.state.w))
        tuned.append(_tuned(t, members.run))
    return Trained(
        steps=np.array(steps),
        test=finite(torch.stack(test, dim=1)),
        val=finite(t.val_mse(members.run)),
        tuned={n: torch.stack([point[n] for point in tuned], dim=1).double().cpu().numpy() for n in tuned[0]},
        start=start,
        **spent.share(len(seeds)),
        dataset=t.task.table.name,
        sha256=t.task.table.sha256,
    )


def _tuned(t: Trainer, run: Run) -> dict[str, Tensor]:
    """The values in force, `[R]` by name; of a learning rate per weight the smallest, the mean and the largest."""
    if t.c.method == "Random-xLR":
        return {LR: run.fixed[LR][:, 0, 0]}
    out = {}
    for name, value in t.hypers.natural(run.raw).items():
        if value.shape[1] == 1:
            out[name] = value[:, 0]
        else:
            out |= {f"{name}_min": value.amin(1), name: value.mean(1), f"{name}_max": value.amax(1)}
    return out


def points(trained: Trained, count: int) -> np.ndarray:
    """Indices into `trained.steps` of `count` evenly spaced points, ends included; all where there are fewer."""
    last = len(trained.steps) - 1
    return np.unique(np.linspace(0, last, min(count, last + 1)).round().astype(int))
