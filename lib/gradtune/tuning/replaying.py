"""When a tuner's steps are replayed: taken as recorded lists of tensor operations, without autograd and Python code.

A replayed step gives the same bits as an eager one, in less time. Steps are eager until it pays to record some. Steps
of each kind (`recorded`) are then recorded twice and, where the records agree, replayed; at the first, second, fourth,
eighth, ... replay the eager step is taken too, and all that the two leave has to have the same bits. On a GPU, where
the order of a sum may differ from call to call, the two have to be close, and a replayed step is a CUDA graph
(`training.graphs`). What the model's and the loss's Python code reads is compared before each replayed step. Where it
has changed the step is eager, and recording begins anew after twice the time in eager steps. What cannot be replayed is
noticed by one of these checks; then all steps are eager, and `Replay.status` says why.

When it pays: recording costs as much as some 10 to 200 eager steps, below half a second for small models. It begins
after `_PATIENCE` seconds of eager steps, or after `_EARLY` steps where the rest of the training is known to take four
times as long. It does not begin where the rest is known to be shorter, or where a step takes longer than `_LONG`.

Cost: about 30 microseconds a replayed step beside its operations. Memory: while a step is recorded, all that it
computes; afterwards that of its largest moment, and what later steps of the same record need.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Hashable

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.nets.second_order import is_counting
from gradtune.recursion.step import Step
from gradtune.training.loop import Loop, Run
from gradtune.tuning.recorded import Given, Recorded, Refusal, shape_of
from gradtune.tuning.supervised import Supervised

_PATIENCE = 2.0  # seconds of CPU time in eager steps before steps are recorded
_LONG = 0.1  # seconds of CPU time from which a step is long: torch's kernels take nearly all of it
_EARLY = 20  # steps after which it is known how long the rest of a training takes
_MOST_KINDS, _LONGEST = 12, 20


class Replay:
    """The steps of one tuner, eager or replayed.

    Args:
        loop: the loop that takes the steps.
        problem: the losses.
        wanted: True to record as soon as possible, and to raise an error where a step cannot be replayed; False never
            to; None to record on a CPU or a GPU when it pays.
        horizon: steps of the training, where they are known.

    Raises:
        GradtuneError: replay is wanted, and the method or the model allows none.
    """

    def __init__(self, loop: Loop, problem: Supervised, wanted: bool | None, horizon: int | None) -> None:
        self._loop, self._problem, self._wanted, self._horizon = loop, problem, wanted, horizon
        self._kinds: dict[Hashable, Recorded] = {}
        self._now: tuple[Recorded, str, Run, list[int]] | None = None
        self._spent, self._patience, self._counted, self._recording = 0.0, _PATIENCE, 0, wanted is True
        self._why = "no step was taken yet"
        self._raws: list[Tensor] = []
        self._changed = ""
        self._off = "replay=False was given" if wanted is False else ""
        kind = problem.single.own[0].device.type
        self._gpu = kind == "cuda"
        if wanted is None and kind not in ("cpu", "cuda"):
            self._give_up(f"the model is on {kind}, where steps are replayed only with replay=True")
        elif wanted is not False and (why := _unfit(loop, problem)):
            if wanted:
                raise GradtuneError(f"replay=True was given, and steps cannot be replayed: {why}; leave it out")
            self._give_up(why)

    @property
    def status(self) -> str:
        """Say whether steps are replayed: "on", or "not yet: ..." or "off: ..." with the reason."""
        if self._off:
            return f"off: {self._off}"
        return "on" if any(r.uses for r in self._kinds.values()) else f"not yet: {self._why}"

    def step(self, run: Run, recent: deque[Step], given: Given) -> Run:
        """Take one step.

        Args:
            run: where to go on.
            recent: as `Loop.step` has it.
            given: what the step is given.

        Returns:
            The run after the step.
        """
        if self._off:
            if self._wanted:
                raise GradtuneError(f"replay=True was given, and steps cannot be replayed: {self._off}; leave it out")
            return self._eager(run, recent, given)
        if not self._recording:
            return self._timed(run, recent, given)
        try:
            found = self._found(run, given)
            if found is None:
                return self._eager(run, recent, given)
            return self._as_recorded(*found, run, recent, given)
        except Refusal as refusal:
            self._give_up(str(refusal))
            return self._eager(run, recent, given)

    # -- eager steps ---------------------------------------------------------------------------------------------------

    def _eager(self, run: Run, recent: deque[Step], given: Given) -> Run:
        self._now = None
        self._problem.give(run.t, given.batches, given.val, given.factor)
        self._look_back(run, recent)
        return self._loop.step(run, recent)

    def _look_back(self, run: Run, recent: deque[Step]) -> None:
        """Take replayed steps of this interval again, for their graphs, where hyperparameters were set since then."""
        raws, self._raws = self._raws, []
        if recent or all(raw is run.raw for raw in raws):
            return
        count = min(len(run.past), len(raws), self._loop.method.keep - 1)  # the step itself is the last
        for t in range(run.t - count, run.t):
            values = self._loop.hypers.at(raws[t - run.t], run.fixed, t)
            state, products = run.past[t - run.t], self._loop.products
            recent.append(Step(self._problem, self._loop.rule, values, state, t, curvature=True, products=products))

    def _timed(self, run: Run, recent: deque[Step], given: Given) -> Run:
        """Take an eager step, and decide whether to record the next ones."""
        before = time.process_time()
        run = self._eager(run, recent, given)
        self._spent, self._counted = self._spent + time.process_time() - before, self._counted + 1
        if self._counted == 1:  # the first step warms up
            self._spent = 0.0
        mean = self._spent / max(1, self._counted - 1)
        left = None if self._horizon is None else mean * (self._horizon - run.t)
        self._why = self._changed or "too few steps were taken to know that recording pays"
        if self._counted > 2 and mean > _LONG and not self._gpu:  # there, launches take the time
            self._why = f"a step takes {mean:.2g} s, nearly all of it in torch's kernels"
        elif left is not None and left < self._patience:
            self._why = f"the {self._horizon} steps of the training are too few for recording to pay"
        elif self._spent > self._patience or (
            left is not None and self._counted >= _EARLY and left > 4 * self._patience
        ):
            self._recording, self._why = True, "steps are being recorded"
        return run

    # -- recorded steps ------------------------------------------------------------------------------------------------

    def _found(self, run: Run, given: Given) -> tuple[Recorded, int, str] | None:
        """Return the steps to which this one belongs, its number among them and what is to be done with them."""
        single = self._problem.single
        if single.hooked or single.aliased or is_counting() or torch.is_autocast_enabled(run.state.w.device.type):
            self._why = "a parameter has a hook" if single.hooked else "a step is computed in other types by autocast"
            self._why = "an attribute of the model is one of its buffers" if single.aliased else self._why
            self._why = "Hessian products are being counted" if is_counting() else self._why
            return None
        k, length = self._position(run.t)
        kind = self._kind(run.t - k, length, given)
        if k == 0:
            recorded = self._kinds.get(kind)
            if recorded is None:
                if len(self._kinds) == _MOST_KINDS:
                    return None
                recorded = self._kinds[kind] = Recorded(self._loop, self._problem, length)
            stage = recorded.stage
        elif self._now is None or self._now[2] is not run or self._kinds.get(kind) is not self._now[0]:
            return None
        else:
            recorded, stage, _, versions = self._now
            if versions != self._versions(recorded):
                return None
        if stage == "record" and sys.getprofile() is not None:
            self._why = "a profiler is at work, which recording needs for itself"
            return None
        if stage != "record" and not recorded.takes(k, given):
            return None
        return (recorded, k, stage) if self._unchanged(recorded) else None

    def _position(self, t: int) -> tuple[int, int]:
        """Return the number of a step among those in a row, and the number of these."""
        m = self._loop.method
        length, ahead = min(m.keep, m.every), -(t + 1) % m.every
        return (length - 1 - ahead, length) if ahead < length else (0, 1)

    def _kind(self, first: int, length: int, given: Given) -> Hashable:
        """Return what decides which operations the steps from the first on make, but for the validation batch."""
        m, last = self._loop.method, first + length - 1
        reset = getattr(m.estimator, "reset_every", None)
        again = None if reset is None else tuple((first + j) % reset == 0 for j in range(length))
        curvature = m.estimator is not None and m.estimator.curvature(-(first + 1) % m.every)
        return length, self._loop.due(last), again, curvature, given.factor == 1.0, shape_of(given.batches)

    def _versions(self, recorded: Recorded) -> list[int]:
        """Return what grows when tensors are written to between steps that belong together."""
        return [p._version for p in self._problem.single.own] + recorded.outside()

    def _unchanged(self, recorded: Recorded) -> bool:
        """Return whether the Python code would do what it did; if not, all records are dropped."""
        found = "" if recorded.watched is None else recorded.watched.changed()
        if not found:
            return True
        self._kinds.clear()
        self._now, self._changed, self._recording = None, f"{found} between two steps", self._wanted is True
        self._why = self._changed
        self._spent, self._counted, self._patience = 0.0, 1, 2 * self._patience
        return False

    def _as_recorded(self, recorded: Recorded, k: int, stage: str, run: Run, recent: deque[Step], given: Given) -> Run:
        """Take a step that belongs to recorded ones, or to ones that are being recorded."""
        last = k == recorded.length - 1
        raws, self._raws = self._raws, []
        if stage == "record":
            after = self._recorded(recorded, k, run, recent, given)
        elif stage == "check":
            after, same = recorded.check(k, run, recent, given)
            if not same:
                self._give_up("a replayed step did not give the bits of an eager one")
        else:
            recent.clear()
            after = recorded.replay(k, run, given)
            self._raws = [*raws, run.raw][-len(after.past) :] if after.past else []
        recorded.uses += last and stage != "record"
        self._now = None if last else (recorded, stage, after, self._versions(recorded))
        return after

    def _recorded(self, recorded: Recorded, k: int, run: Run, recent: deque[Step], given: Given) -> Run:
        """Take a step and record it; where that fails, bring the module back and take an eager one."""
        try:
            after = recorded.record(k, run, recent, given)
        except GradtuneError:
            raise
        except Exception as error:
            self._give_up(f"recording a step failed ({type(error).__name__}: {str(error).splitlines()[0][:160]})")
            while recent and recent[-1].t >= run.t:
                recent.pop()
            self._problem.back(run.t)
            return self._eager(run, recent, given)
        if k == recorded.length - 1:
            try:
                recorded.judge()
            except Refusal as refusal:
                self._give_up(str(refusal))
        return after

    def _give_up(self, why: str) -> None:
        self._off = why
        self._kinds.clear()


def _unfit(loop: Loop, problem: Supervised) -> str:
    """Return why a method or a problem allows no replay; empty if it does."""
    m = loop.method
    if m.replayed:
        return "the method takes steps again from a tree of checkpoints"
    if m.mode != "reverse":
        return "Hessian products may be taken in forward mode, over dual numbers"
    if loop.hypers.windowed:
        return "hyperparameters have time windows"
    if problem.scaling is not None:
        return "the scale of a loss in half precision is read at each step"
    if m.foreign:
        return f"{m.foreign} is none of the library's, and may depend on the number of the step"
    if min(m.keep, m.every) > _LONGEST:
        return f"the method looks back on {min(m.keep, m.every)} steps, and on up to {_LONGEST} steps are recorded"
    return ""
