"""ASHA and PBT with OnePass inside (OnePass, Appendix B.8.2): Table 15 and Figure 19, on UCI Energy.

Each search trains as many steps as 200 trainings of 4000 steps take, with hyperparameters that stay (Random) and with
OnePass (WD+LR+M). The validation rows compare configurations; OnePass also tunes on them.

ASHA has 114,286 trials and stops all but the best quarter of those that came before at 1, 4, 16, 64, 256 and 1024
steps. The paper's program trains eight at a time; here a hundred stand side by side, and those that go on wait until
there are a hundred of them. `gradtune.search`'s own `Asha` asks optuna about each trial, which looks at all trials
before it: too slow for so many.

PBT has a population of 200, a selection every 100 steps, and the defaults of the paper's program: the worst quarter is
replaced, and a hyperparameter is drawn anew with probability 1/4, else multiplied by 0.8 or 1.2. With OnePass the ratio
of new to old value multiplies the value that OnePass has reached.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradtune.errors import unknown
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import sgd
from gradtune.search import search
from gradtune.training.loop import Loop, Run
from gradtune_book.papers.onepass.uci_bayes import SPACE
from gradtune_book.papers.onepass.uci_training import (
    ALL,
    BOUNDS,
    DECAY,
    LR,
    MOMENTUM,
    OPEN,
    SETTINGS,
    Start,
    declared,
    draw,
    regression,
)
from gradtune_book.papers.onepass.uci_training import Config as Training
from gradtune_book.papers.series import short
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result
from gradtune_book.records.study import Study

ASHA, PBT = "ASHA", "PBT"
INSIDE = ("Random", "WD+LR+M")
REDUCTION, SELECTIONS = 4, 40
"""Of how many trials ASHA lets one go on; selections of PBT in a training."""

_SIDE, _POINTS = 100, 60  # trials side by side; points of a recorded incumbent


@dataclass(frozen=True)
class Config(Training):
    """One search; `method` is its name, and `seed` its own."""

    inside: str = "Random"  # what trains each trial: a name of `INSIDE`
    members: int = 200  # trainings that its steps would pay for; the population of PBT


@dataclass(frozen=True)
class Sizes:
    """What a scale sets."""

    dataset: str  # a name from `gradtune data`
    searches: int  # repetitions of each search
    steps: int  # training steps of a whole training
    members: int  # trainings that a search's steps would pay for


SIZES = {
    "smoke": Sizes("diabetes", 1, 64, 12),
    "laptop": Sizes("energy", 2, 1000, 50),
    "paper": Sizes("energy", 5, 4000, 200),
}


def configs(sizes: Sizes, seed: int = 0) -> list[Config]:
    """Return the searches of a scale, a repetition of all four at a time."""
    base = Config("", seed, sizes.dataset, sizes.steps, members=sizes.members)
    kinds = [replace(base, method=m, inside=i) for m in (ASHA, PBT) for i in INSIDE]
    return [replace(c, seed=seed + k) for k in range(sizes.searches) for c in kinds]


class Members(NamedTuple):
    """R trials of one age.

    Attributes:
        run: The loop's run.
        seen: Their hyperparameters as a search sees them, `[R]` by name.
    """

    run: Run
    seen: dict[str, Tensor]


@dataclass
class Trials:
    """Trainings whose hyperparameters a method moves, or none does; a `gradtune.search.Copyable`.

    Attributes:
        c: Configuration of the search.
        device: Where to train.
        spent: Seconds of training and validation so far.
        best: (seconds, test MSE) of each evaluation that was better on the test rows than all before.
    """

    c: Config
    device: torch.device
    spent: Stopwatch = field(init=False)
    best: list[tuple[float, float]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.c.inside not in INSIDE:
            raise unknown("training", self.c.inside, INSIDE)
        self.setting, self.spent = SETTINGS[self.c.inside], Stopwatch(self.device)
        self.task = regression(self.c, self.device, merged=False)
        method = self.setting.make(self.c.look_back, self.c.every)
        self.loop = Loop(self.task, sgd(), Hypers(declared(self.setting), self.task.layout.sizes), method)

    @property
    def steps(self) -> int:
        return self.c.steps

    def start(self, configs: Sequence[Mapping[str, float]], seeds: Sequence[int]) -> Members:
        values = [torch.tensor([c[n] for c in configs], dtype=torch.float64) for n in ALL]
        lr, decay, momentum = (_inside(n, x) for n, x in zip(ALL, values))
        return self._start(Start(lr, decay, momentum, torch.ones_like(lr)), seeds)

    def drawn(self, seeds: Sequence[int]) -> Members:
        """Return untrained trials whose hyperparameters their own seeds draw."""
        return self._start(draw(seeds), seeds)

    def _start(self, start: Start, seeds: Sequence[int]) -> Members:
        w = self.task.init(seeds)
        run = self.loop.start(w, Hypers(declared(self.setting, start, w), self.task.layout.sizes))
        return Members(run, {n: x.to(w) for n, x in zip(ALL, (start.lr, start.weight_decay, start.momentum))})

    def advance(self, members: Members, steps: int) -> Members:
        with self.spent:
            return members._replace(run=self.loop.advance(members.run, steps))

    def val_loss(self, members: Members) -> list[float]:
        with self.spent:
            losses: list[float] = self.task.val_loss(members.run.state.w, {}).tolist()
        tests = self.tests(members)
        lowest = np.nanmin(tests) if np.isfinite(tests).any() else math.inf
        if members.run.t and (not self.best or lowest < self.best[-1][1]):
            self.best.append((self.spent.cpu_s, float(lowest)))
        return losses

    def tests(self, members: Members) -> np.ndarray:
        """Return test MSEs `[R]`, NaN where not finite."""
        x = self.task.test_mse(members.run.state.w).double().cpu().numpy()
        return np.where(np.isfinite(x), x, np.nan)

    def select(self, members: Members, rows: Sequence[int], configs: Sequence[Mapping[str, float]]) -> Members:
        """Return trials with everything of `rows`; where `configs` has another value, its ratio moves the trial's."""
        taken = rows_of(members, rows)
        run, like = taken.run, taken.run.state.w
        raw, fixed, seen = run.raw.clone(), dict(run.fixed), {}
        for name, old in taken.seen.items():
            seen[name] = like.new_tensor([c[name] for c in configs])
            ratio = torch.where(seen[name] == old, torch.ones_like(old), seen[name] / old)
            if name in fixed:
                fixed[name] = _inside(name, seen[name])[:, None, None].expand_as(fixed[name])
            else:
                block = self.loop.hypers.blocks[name]
                at = slice(block.offset, block.offset + block.columns)
                moved = _inside(name, block.transform.forward(raw[:, at]) * ratio[:, None])
                raw[:, at] = torch.where(ratio[:, None] == 1, raw[:, at], block.transform.inverse(moved))
        return Members(run._replace(raw=raw, fixed=fixed), seen)


_LIMITS = {LR: BOUNDS, DECAY: (0.0, math.inf), MOMENTUM: OPEN}


def _inside(name: str, values: Tensor) -> Tensor:
    return values.clamp(*_LIMITS[name])


def rows_of(members: Members, rows: Sequence[int]) -> Members:
    """Return some of the trials, with all that belongs to them."""
    at, runs = torch.tensor(list(rows), device=members.run.state.w.device), len(members.run.state.w)

    def taken(x: object) -> object:
        return x[at] if isinstance(x, Tensor) and x.dim() and len(x) == runs else x

    out: Members = pytree.tree_map(taken, members)
    return out


def united(parts: Sequence[Members]) -> Members:
    """Return trials of one age side by side."""
    leaves, spec = zip(*(pytree.tree_flatten(p) for p in parts))
    whole = [torch.cat(x) if isinstance(x[0], Tensor) and x[0].dim() else x[0] for x in zip(*leaves)]
    out: Members = pytree.tree_unflatten(whole, spec[0])
    return out


def ages(full: int) -> list[int]:
    """Return the steps at which ASHA looks at a trial: powers of the reduction, then all steps."""
    return [*(REDUCTION**k for k in range(math.ceil(math.log(full, REDUCTION) - 1e-9))), full]


class Halving:
    """Successive halving as trials come: a trial goes on if it is in the best share of those before it at its age.

    Args:
        trials: What is trained.
        count: Number of trials.
    """

    def __init__(self, trials: Trials, count: int) -> None:
        self.trials, self.count, self.rungs = trials, count, ages(trials.steps)
        self.losses: dict[int, list[float]] = defaultdict(list)
        self.waiting: dict[int, list[Members]] = defaultdict(list)
        self.finals: list[float] = []

    def run(self, seed: int) -> None:
        """Train all trials; the final test MSEs are in `finals`."""
        first = np.random.default_rng(seed).integers(2**31 - self.count)
        for low in range(0, self.count, _SIDE):
            seeds = range(int(first) + low, int(first) + min(low + _SIDE, self.count))
            self._climb(self.trials.drawn(seeds), 0)
            for rung in [*self.waiting]:
                while sum(len(m.run.raw) for m in self.waiting[rung]) >= _SIDE:
                    self._go_on(rung)
        for rung in range(1, len(self.rungs)):
            while self.waiting[rung]:
                self._go_on(rung)

    def _go_on(self, rung: int) -> None:
        together = united(self.waiting.pop(rung))
        runs = len(together.run.state.w)
        if runs > _SIDE:
            self.waiting[rung].append(rows_of(together, range(_SIDE, runs)))
        self._climb(rows_of(together, range(min(_SIDE, runs))), rung)

    def _climb(self, members: Members, rung: int) -> None:
        members = self.trials.advance(members, self.rungs[rung] - members.run.t)
        losses = self.trials.val_loss(members)
        if rung == len(self.rungs) - 1:
            self.finals += self.trials.tests(members).tolist()
            return
        better = [k for k, loss in enumerate(losses) if self._goes_on(self.losses[rung], loss)]
        if better:
            self.waiting[rung + 1].append(rows_of(members, better))

    @staticmethod
    def _goes_on(before: list[float], loss: float) -> bool:
        """Tell whether a trial goes on, and put its loss among those before it, which stay sorted.

        The first goes on, a diverged one does not.
        """
        if not math.isfinite(loss):
            before.append(math.inf)
            return False
        good = not before or loss <= before[(len(before) - 1) // REDUCTION]
        insort(before, loss)
        return good


def trials_of(c: Config) -> int:
    """Return how many trials ASHA starts so that all its ages together cost what `members` trainings do."""
    return round(c.steps * c.members / len(ages(c.steps)))


def run(batch: Sequence[Config], device: torch.device) -> list[Result]:
    """Compute searches, one after the other.

    Metrics: `finished`, how many trials were trained to the end; `mean`, `median` and `best` of their final test MSEs
    in the target's unit squared; `steps_taken`, training steps of all trials. Series: `finals`, these losses; and
    `incumbent_s` and `incumbent_mse`, the lowest test MSE at any evaluation so far, and when it was found, in the
    processor's seconds of training and validation.

    Raises:
        GradtuneError: The search or what it trains is unknown.
    """
    return [_searched(c, device) for c in batch]


def _searched(c: Config, device: torch.device) -> Result:
    trials = Trials(c, device)
    if c.method == ASHA:
        halving = Halving(trials, trials_of(c))
        halving.run(c.seed)
        finals, taken = halving.finals, _taken(halving)
    elif c.method == PBT:
        finals, taken = _population(c, trials)
    else:
        raise unknown("search", c.method, [ASHA, PBT])
    x = np.array(finals, dtype=float)
    finite = x[np.isfinite(x)]
    some = len(finite) > 0
    metrics: dict[str, float | int | None] = {
        "finished": len(x),
        "mean": float(finite.mean()) if some else None,
        "median": float(np.median(finite)) if some else None,
        "best": float(finite.min()) if some else None,
        "steps_taken": taken,
    }
    thin = np.unique(np.linspace(0, max(0, len(trials.best) - 1), _POINTS).round().astype(int))
    best = np.array(trials.best or [(math.nan, math.nan)])[thin]
    series = {"finals": short(x), "incumbent_s": short(best[:, 0]), "incumbent_mse": short(best[:, 1])}
    table = trials.task.table
    return Result(metrics, series, dataset=table.name, dataset_sha256=table.sha256, **trials.spent.share(1))


def _taken(halving: Halving) -> int:
    """Return the training steps of all trials."""
    reached = [*(len(halving.losses[k]) for k in range(len(halving.rungs) - 1)), len(halving.finals)]
    return sum(n * (age - before) for n, age, before in zip(reached, halving.rungs, [0, *halving.rungs]))


class _Kept(Trials):
    """Trials that remember the test losses of those that are trained to the end."""

    finals: np.ndarray

    def val_loss(self, members: Members) -> list[float]:
        if members.run.t == self.c.steps:
            self.finals = self.tests(members)
        return super().val_loss(members)


def _population(c: Config, trials: Trials) -> tuple[list[float], int]:
    kept = _Kept(c, trials.device)
    kept.spent, kept.best = trials.spent, trials.best
    interval = max(1, c.steps // SELECTIONS)
    options = {"size": c.members, "interval": interval, "fraction": 0.25, "resample": 0.25}
    found = search("pbt", kept, SPACE, c.members * c.steps, c.seed, **options)
    return kept.finals.tolist(), found.spent_steps


def _cost(c: Config) -> float:
    return c.steps * c.members * 1e-4


STUDY = Study("energy_population", Config, SIZES, configs, run, chunk=1, cost=_cost)
