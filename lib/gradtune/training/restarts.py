"""Training from scratch again and again while the hyperparameters go on: the outer loop of FDS (Algorithm 1).

Example::

    search = Restarts(make, sgd(), hypers, lambda steps: methods.fds(steps, SignHalving(0.1)), horizons=[50] * 10)
    progress = search.advance(search.start())

Everything that continues is in `progress`: a search can be stopped after any training step, in the middle of an outer
step too, and goes on to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from gradtune.errors import GradtuneError, at_least
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import Problem
from gradtune.training import checkpoints, saved_runs
from gradtune.training.loop import Loop, Method, Run


class Progress(NamedTuple):
    """Where a search is: the outer step under way and its training.

    An outer step is complete when `run.t` is its horizon. Then `run.raw` are the updated hyperparameters, and
    `run.state.w` the weights that the old ones gave.

    Attributes:
        number: number of the outer step under way, counted from 0.
        run: its training.
    """

    number: int
    run: Run


class Task(NamedTuple):
    """What an outer step trains.

    Attributes:
        problem: the losses.
        w: initial weights, `[R, D]`.
        sizes: number of entries of each parameter tensor.
    """

    problem: Problem
    w: Tensor
    sizes: Sequence[int]


Watch = Callable[[Progress], None]


@dataclass
class Restarts:
    """A training for each of `horizons`, the hyperparameters carried from one to the next.

    Time windows are cut from each training's own horizon, so that a short training tells of a long one (FDS, Figure 1).

    It differs from the argument `restarts` of `gradtune.tune`, which restarts from the same weights on the same data.

    Cost and memory: those of the method.

    Attributes:
        make: returns the `Task` of an outer step from its number, and depends on this number alone (new weights, new
            validation rows: FDS, Algorithm 1).
        rule: the update rule of the weights.
        hypers: declarations of the hyperparameters.
        method: returns the `loop.Method` of a training from its horizon; with `every` equal to the horizon for one
            outer update at the end of a training, or less for an online method that is started again and again.
        horizons: number of training steps of each outer step.

    Raises:
        GradtuneError: `horizons` is empty, or one of them is below 1.
    """

    make: Callable[[int], Task]
    rule: Rule
    hypers: Sequence[Hyper]
    method: Callable[[int], Method]
    horizons: Sequence[int]
    _current: tuple[int, Loop, Run] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if not self.horizons:
            raise GradtuneError("horizons is empty; expected the number of training steps of each outer step")
        at_least(1, **{f"horizons[{k}]": steps for k, steps in enumerate(self.horizons)})

    def start(self) -> Progress:
        """Return the search before its first training step."""
        return Progress(0, self._begun(0)[1])

    def loop(self, number: int) -> Loop:
        """Return the loop of an outer step: its problem, its hyperparameters with their windows, its method."""
        return self._begun(number)[0]

    def done(self, progress: Progress) -> bool:
        """Return whether the last training is complete."""
        return progress.number == len(self.horizons) - 1 and self.complete(progress)

    def complete(self, progress: Progress) -> bool:
        """Return whether the outer step under way is complete."""
        return progress.run.t == self.horizons[progress.number]

    def left(self, progress: Progress) -> int:
        """Return the number of training steps to the end of the search."""
        return sum(self.horizons[progress.number :]) - progress.run.t

    def advance(
        self,
        progress: Progress,
        steps: int | None = None,
        watch: Watch | None = None,
        tick: Watch | None = None,
        stride: int = 10,
    ) -> Progress:
        """Take `steps` more training steps, across outer steps where need be.

        Args:
            progress: where to go on.
            steps: number of training steps; None goes to the end of the search. It never goes beyond.
            watch: called with the progress whenever an outer step is complete.
            tick: called with the progress after every few steps, before `watch`; the moment to save it.
            stride: number of steps between two calls of `tick`.

        Returns:
            The progress after these steps.
        """
        left = self.left(progress) if steps is None else min(steps, self.left(progress))
        with tqdm(total=left, unit="step", disable=None, leave=False) as bar:
            while left:
                if self.complete(progress):
                    progress = self._next(progress)
                number, run = progress
                now = min(left, self.horizons[number] - run.t, *([] if tick is None else [stride]))
                progress = Progress(number, self.loop(number).advance(run, now))
                left -= now
                bar.update(now)
                if tick is not None:
                    tick(progress)
                if watch is not None and self.complete(progress):
                    watch(progress)
        return progress

    def _next(self, progress: Progress) -> Progress:
        number, old = progress.number + 1, progress.run
        start = self._begun(number)[1]
        return Progress(number, start._replace(raw=old.raw, outer=old.outer))

    def _begun(self, number: int) -> tuple[Loop, Run]:
        """Return the loop of an outer step and its start from the hyperparameters' initial values.

        Those of the last number that was asked for are kept.
        """
        if self._current is None or self._current[0] != number:
            task, horizon = self.make(number), self.horizons[number]
            hypers = Hypers(self.hypers, task.sizes, horizon)
            loop = Loop(task.problem, self.rule, hypers, self.method(horizon))
            self._current = number, loop, loop.start(task.w)
        return self._current[1:]

    # -- state ---------------------------------------------------------------------------------------------------------

    def save(self, progress: Progress, path: Path) -> None:
        """Write a search's progress to `path`, whole or not at all.

        Raises:
            GradtuneError: the file cannot be written.
        """
        checkpoints.save(self.state(progress), path)

    def load(self, path: Path) -> Progress:
        """Return the progress that `save` wrote to `path`.

        Raises:
            GradtuneError: the file holds no progress, or that of another search.
        """
        device = self._begun(0)[1].state.w.device
        state = checkpoints.load(path, device, "horizons", "gradtune.training.restarts")
        if state["horizons"] != list(self.horizons):
            raise GradtuneError(
                f"{path} was saved by a search with horizons {state['horizons']}, and this one has "
                f"{list(self.horizons)}; use the same, or remove the file"
            )
        with checkpoints.expected(path):
            return self.restored(state, str(path))

    def state(self, progress: Progress) -> dict[str, Any]:
        """Return a search's progress as plain data, to be part of a larger checkpoint; no tensor is copied."""
        return {"horizons": list(self.horizons), "number": progress.number, **saved_runs.state(progress.run)}

    def restored(self, state: dict[str, Any], where: str = "the checkpoint") -> Progress:
        """Return the progress whose `state` this is.

        Raises:
            GradtuneError: it belongs to a search of another net, method or number of runs.
        """
        loop, start = self._begun(state["number"])
        return Progress(state["number"], saved_runs.restored(loop, start, state, where))
