"""What a search trains: R configurations side by side, resumable, so that no search method ever trains a step twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import Problem, State
from gradtune.training.loop import Loop, Method, Run

MULTIPLIER = "lr_multiplier"
Configs = Sequence[Mapping[str, float]]


class Trainable(Protocol):
    """Training that starts from configurations, advances and reports.

    What `start` and `advance` return is opaque to a search, which goes on with it alone: `advance` may change its
    argument in place, as training of a module does.
    """

    @property
    def steps(self) -> int:
        """Training steps of a full-length trial."""
        ...

    def start(self, configs: Configs, seeds: Sequence[int]) -> Any:
        """Return R untrained runs, one per configuration; run r depends on chance only through `seeds[r]`."""
        ...

    def advance(self, members: Any, steps: int) -> Any:
        """Return the runs after `steps` more training steps of each."""
        ...

    def val_loss(self, members: Any) -> Sequence[float]:
        """Return the validation loss of every run; NaN or infinity for a diverged one."""
        ...


@runtime_checkable
class Copyable(Trainable, Protocol):
    """A trainable whose runs can be copied over one another: what population based training needs."""

    def select(self, members: Any, rows: Sequence[int], configs: Configs) -> Any:
        """Return runs with the weights and buffers of `rows` and the hyperparameters of `configs`."""
        ...


class Members(NamedTuple):
    """R runs of one `Training`.

    Attributes:
        run: the loop's run.
        factor: the factors `[R, 1, 1]` of the learning rate in random xLR, or None.
    """

    run: Run
    factor: Tensor | None


@dataclass
class Training:
    """Training of a `step.Problem` at hyperparameters that stay fixed: the trainable of an ordinary black-box search.

    A configuration may also hold `lr_multiplier`: the learning rate is multiplied by it after every `every` steps and
    kept in the bounds of its declaration (Random xLR; OnePass, Section 4, with `every=10`).

    Unlike `loop.Loop` alone, one object trains many configurations, and recorded steps are shared by all of them.

    Cost: a gradient per step.

    Memory: (1 + buffers) D per run.

    Attributes:
        problem: losses of R runs.
        rule: the update rule.
        hypers: every hyperparameter of rule and losses. A configuration replaces the values that it names, the others
            keep theirs.
        sizes: entries of each parameter tensor.
        init: weights `[R, D]` from R seeds, such as `uci.TableRegression.init`.
        steps: training steps of a full-length trial.
        trace: whether recorded steps are replayed (`loop.Loop`).
        every: steps between two multiplications of the learning rate by `lr_multiplier`.

    Raises:
        GradtuneError: `steps` or `every` is less than 1. When runs start: a name is no hyperparameter, a value is
            outside its bounds, or the weights are not `[R, D]`. When runs are copied: they have an `lr_multiplier`.
    """

    problem: Problem
    rule: Rule
    hypers: Sequence[Hyper]
    sizes: Sequence[int]
    init: Callable[[Sequence[int]], Tensor]
    steps: int
    trace: bool = False
    every: int = 10
    _loops: dict[int, Loop] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.every < 1:
            raise GradtuneError(f"steps = {self.steps}, every = {self.every}; expected both >= 1")
        self.hypers = [replace(h, tuned=False) for h in self.hypers]

    def start(self, configs: Configs, seeds: Sequence[int]) -> Members:
        w = self.init(seeds)
        if w.dim() != 2 or len(w) != len(configs):
            raise GradtuneError(
                f"init gave weights of shape {tuple(w.shape)} for {len(configs)} seeds; expected [R, D], a row a seed"
            )
        factors = [c[MULTIPLIER] for c in configs if MULTIPLIER in c]
        factor = w.new_tensor(factors)[:, None, None] if factors else None
        run = self._loop(len(w)).start(w)
        return Members(run._replace(fixed=self._natural(configs, w)), factor)

    def advance(self, members: Members, steps: int) -> Members:
        run, factor = members
        loop, end = self._loop(len(run.state.w)), run.t + steps
        while factor is not None and run.t < end:
            run = loop.advance(run, min(end - run.t, self.every - run.t % self.every))
            if run.t % self.every == 0:
                run = run._replace(fixed=run.fixed | {"lr": self._bounded(run.fixed["lr"] * factor)})
        return Members(loop.advance(run, end - run.t), factor)

    @torch.no_grad()
    def val_loss(self, members: Members) -> list[float]:
        run = members.run
        lam = self._loop(len(run.state.w)).hypers.at(run.raw, run.fixed, max(run.t - 1, 0)).lam
        lam = {n: v for n, v in lam.items() if n not in self.rule.hypers}
        return self.problem.val_loss(run.state.w, lam, max(run.t - 1, 0)).tolist()

    def select(self, members: Members, rows: Sequence[int], configs: Configs) -> Members:
        if members.factor is not None:
            raise GradtuneError(f"runs whose learning rate is stepped cannot be copied; search without {MULTIPLIER}")
        run = members.run
        at = torch.tensor(list(rows), device=run.state.w.device)
        state = State(run.state.w[at], {n: b[at] for n, b in run.state.buf.items()})
        return Members(run._replace(state=state, raw=run.raw[at], fixed=self._natural(configs, state.w)), None)

    def _natural(self, configs: Configs, w: Tensor) -> dict[str, Tensor]:
        """Return the checked natural values `[R, groups, windows]` of every hyperparameter."""
        declared = {h.name for h in self.hypers}
        wrong = [n for n in configs[0] if n not in declared | {MULTIPLIER}]
        if wrong:
            raise unknown("hyperparameter", wrong[0], declared | {MULTIPLIER})
        values = {n: w.new_tensor([c[n] for c in configs]) for n in configs[0] if n in declared}
        hypers = [replace(h, value=values[h.name]) if h.name in values else h for h in self.hypers]
        return Hypers(hypers, self.sizes, self._horizon).init(w)[1]

    @property
    def _horizon(self) -> int | None:
        return self.steps if any(h.windows > 1 for h in self.hypers) else None

    def _bounded(self, lr: Tensor) -> Tensor:
        low, high = next(h.bounds for h in self.hypers if h.name == "lr")
        return lr.clamp(low, high)

    def _loop(self, runs: int) -> Loop:
        """Return the loop for this number of runs: recorded steps hold for one shape."""
        if runs not in self._loops:
            hypers = Hypers(self.hypers, self.sizes, self._horizon)
            self._loops[runs] = Loop(self.problem, self.rule, hypers, Method(every=self.every), self.trace)
        return self._loops[runs]
