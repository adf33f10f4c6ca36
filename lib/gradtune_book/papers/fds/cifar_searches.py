"""The black-box searches of the regret study, on the library's searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from gradtune import search
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.search import Dimension, Space
from gradtune.training import saved_runs
from gradtune.training.loop import Loop, Method, Run
from gradtune_book.papers.fds.cifar_account import Account
from gradtune_book.papers.fds.cifar_training import (
    DECAY,
    LR,
    MOMENTUM,
    RANGES,
    Bench,
    Recipe,
)
from gradtune_book.records.told import Tick, Told
from gradtune_book.tasks.per_run import PerRun

_TICK = 50  # steps between two moments at which a trial may be saved
SEARCHES = {"Random": "random", "Bayes": "bayes", "Hyperband": "hyperband", "BOHB": "bohb"}


class _Members(NamedTuple):
    """Trials in training side by side."""

    task: PerRun
    loop: Loop
    run: Run


@dataclass
class Trials:
    """What the searches train: each trial a net of its own, with its own validation rows.

    It is a `records.told.Resumable`.

    Attributes:
        bench: trainings of the configuration.
    """

    bench: Bench

    @property
    def steps(self) -> int:
        return self.bench.c.steps

    def start(self, configs: Sequence[Any], seeds: Sequence[int]) -> _Members:
        task = self.bench.task(seeds)
        recipes = [recipe_of(each) for each in configs]
        w = task.init()
        rates = torch.tensor([r.lr for r in recipes]).to(w)[:, None]
        hypers = [Hyper(LR, rates, windows=rates.shape[2], tuned=False)]
        hypers += [Hyper(n, torch.tensor([getattr(r, n) for r in recipes]), tuned=False) for n in (MOMENTUM, DECAY)]
        loop = Loop(task, self.bench.rule, Hypers(hypers, task.layout.sizes, self.steps), Method())
        return _Members(task, loop, loop.start(w))

    def advance(self, members: _Members, steps: int, tick: Tick = lambda members, spent: None) -> _Members:
        run = members.loop.advance(members.run, steps, lambda run: tick(members._replace(run=run), None), _TICK)
        return members._replace(run=run)

    def state(self, members: _Members | None) -> dict[str, Any]:
        return {} if members is None else {"run": saved_runs.state(members.run)}

    def restored(self, members: _Members | None, earlier: Mapping[str, Any]) -> _Members | None:
        if members is None:
            return None
        return members._replace(run=saved_runs.restored(members.loop, members.run, earlier["run"]))

    def age(self, members: _Members) -> int:
        return members.run.t

    @torch.no_grad()
    def val_loss(self, members: _Members) -> list[float]:
        return members.task.val_loss(members.run.state.w, {}, members.run.t).tolist()


def recipe_of(found: Mapping[str, float]) -> Recipe:
    """Return the recipe of a search's configuration."""
    lr = [found[n] for n in found if n.startswith(f"{LR}_")]
    return Recipe(tuple(lr), found[MOMENTUM], found[DECAY])


def space(lr_windows: int) -> Space:
    """Return the range that FDS's ten steps span, as the space of a search."""
    names = [*(f"{LR}_{k}" for k in range(lr_windows)), MOMENTUM, DECAY]
    return Space({n: Dimension(*RANGES[LR if n.startswith(LR) else n]) for n in names})


def black_box(bench: Bench, account: Account) -> None:
    """Run the search that the bench's method names within its budget, and enter every new best answer."""
    c = bench.c
    options = {"min_steps": c.first_steps} if c.method in ("Hyperband", "BOHB") else {}
    method = SEARCHES[c.method]
    with Told(Trials(bench), account.caught_up) as told:
        found = search.search(method, told, space(c.lr_windows), c.budget_steps, c.seed, **options)
        told.catch_up()
        account.pause()
        account.training_steps = found.spent_steps
        shares = np.array(told.seconds) / told.seconds[-1]
        for k in _answers(found)[len(account.answers) :]:
            row = found.rows[k]
            recipe = recipe_of(next(r for r in found.rows if r["trial"] == row["incumbent"]))
            worth = lambda r=recipe: bench.worth(r)  # noqa: E731
            account.at(row["total_steps"], account.seconds * shares[k], recipe, worth, ())
        if not account.answers:  # every trial diverged: chance
            nothing = Recipe((0.0,) * c.lr_windows, 0.0, 0.0)
            account.at(found.spent_steps, account.seconds, nothing, lambda: bench.worth(nothing), ())


def _answers(found: search.Result) -> list[int]:
    """Return the numbers of the evaluations after which a search had another best trial."""
    best = [row["incumbent"] for row in found.rows]
    return [k for k, one in enumerate(best) if one is not None and one != (best[k - 1] if k else None)]
