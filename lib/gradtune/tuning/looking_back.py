"""What a tuner does beside its steps for methods that look back on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.estimators.reverse import pulled
from gradtune.estimators.tree import TreeCost
from gradtune.nets.buffers import copied
from gradtune.nets.layout import Layout
from gradtune.nets.single import Single
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.step import Step, cotangent, validation_gradient
from gradtune.training.loop import Loop, Method, Run
from gradtune.tuning.batches import Batch, fits
from gradtune.tuning.supervised import Supervised


class LookingBack:
    """The part of a tuner that looks back on steps."""

    method: Method
    hypers: Hypers
    _loop: Loop
    _problem: Supervised
    _layout: Layout
    _recent: deque[Step]
    _run: Run
    _single: Single
    _batches: Callable[[Any, Tensor], list[Batch]]
    sync: Callable[[], None]

    def recall(self, source: Callable[[int], Any] | None) -> None:
        """Name where the batches of earlier steps come from, for a method that takes steps again (`store="tree"`).

        They are then not kept. Without a source they are, by reference: one that is made for a step alone stays in
        memory until the next outer update.

        Args:
            source: returns what step number t was given, again and to the bit; None for none.
        """
        if self._problem.window is not None:
            again = None if source is None else lambda t: self._batches(source(t), self._run.state.w)
            self._problem.window.source = again

    def resume(self) -> int:
        """Go on where a training was interrupted whose tree of states lies in a folder of the caller's.

        It has to start from the same weights and hyperparameters. Batches of earlier steps have to come from `recall`.

        Returns:
            The number of steps that need not be taken again; 0 where the folder has none of this training.

        Raises:
            GradtuneError: the folder holds checkpoints of another training, or a file is damaged.
        """
        run, replays = self._run, self._loop.replays
        found = None if replays is None else replays.resumed(run.t, run.state, run.raw)
        if found is None:
            return 0
        t, before, past = found
        self._run = run._replace(t=t, state=before.state, past=past)
        self._single.buffers.load(copied(before.seen.buffers))
        if before.seen.noted is not None:
            self._single.around.put(before.seen.noted)
        self.sync()
        return t - run.t

    @property
    def tree(self) -> TreeCost | None:
        """Steps taken again and states kept on the last way back over a tree; None before one."""
        return None if self._loop.replays is None else self._loop.replays.cost

    def let_go(self) -> None:
        """Forget the steps so far, and remove the files of a tree."""
        if self._loop.replays is not None:
            self._loop.replays.end()

    def pulled_back(self, val_batch: Batch) -> tuple[Tensor, dict[str, Tensor], float]:
        """Pull the validation gradient back through the steps since the last outer update; nothing is updated.

        Cost: a validation gradient and a Hessian product a step.

        Args:
            val_batch: validation batch.

        Returns:
            dL/draw `[P]`; dL/dw by parameter, at the weights before the first of these steps; and the validation loss.

        Raises:
            GradtuneError: the method does not look back on steps.
        """
        recent = self._loop.looked_back(self._run, self._recent)
        if not recent:
            raise GradtuneError(f"{self.method} keeps no steps to pull a gradient back through; use reverse mode")
        self._problem.validate(fits(val_batch, self._run.state.w, "the validation batch"))
        last = self._run.t - 1
        values = self.hypers.at(self._run.raw, self._run.fixed, last) if self._loop.replays else recent[-1].values
        gv, total = validation_gradient(self._problem, self._loop.rule, values, self._run.state, last)
        val = self._problem.seen_val
        cot, total = pulled(recent, cotangent(gv, self._run.state), total, to_start=True)
        assert val is not None
        return total[0], self._layout.split(cot.w[0]), float(val)
