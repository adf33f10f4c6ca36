"""The black-box searches of the regret study, on the library's searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from gradtune import search
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.search import Dimension, Space
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
from gradtune_book.tasks.per_run import PerRun

SEARCHES = {"Random": "random", "Bayes": "bayes", "Hyperband": "hyperband", "BOHB": "bohb"}


class _Members(NamedTuple):
    """Trials in training side by side."""

    task: PerRun
    loop: Loop
    run: Run


@dataclass
class Trials:
    """What the searches train: each trial a net of its own, with its own validation rows.

    It is a `Trainable` of `gradtune.search`.

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

    def advance(self, members: _Members, steps: int) -> _Members:
        return members._replace(run=members.loop.advance(members.run, steps))

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
    found = search.search(method, Trials(bench), space(c.lr_windows), c.budget_steps, c.seed, **options)
    account.pause()
    account.training_steps = found.spent_steps
    last, elapsed = None, found.rows[-1]["training_seconds"] + found.rows[-1]["sampler_seconds"]
    asked = {row["trial"]: {n: row[n] for n in space(c.lr_windows)} for row in found.rows}
    for row in found.rows:
        if row["incumbent"] is None or row["incumbent"] == last:
            continue
        last, recipe = row["incumbent"], recipe_of(asked[row["incumbent"]])
        share = (row["training_seconds"] + row["sampler_seconds"]) / elapsed
        account.at(row["total_steps"], account.seconds * share, recipe, lambda r=recipe: bench.worth(r), ())  # type: ignore[misc]
    if last is None:  # every trial diverged: chance
        nothing = Recipe((0.0,) * c.lr_windows, 0.0, 0.0)
        account.at(found.spent_steps, account.seconds, nothing, lambda: bench.worth(nothing), ())
