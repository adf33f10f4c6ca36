"""The one-pass loop: weights and hyperparameters learn together, the hyperparameters after every `every` steps.

`Loop` runs the same few lines in two ways. Eagerly; or, with `trace=True` and a problem whose losses do not depend
on the step number, as a straight list of
tensor operations recorded once and replayed (`tracing`), without the autograd engine's overhead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from gradhpo.core import Problem, State, Step, initial_state, validation_gradient
from gradhpo.errors import GradhpoError
from gradhpo.estimators import Estimator
from gradhpo.hypers import Hypers, Values
from gradhpo.outer import Outer
from gradhpo.rules import Rule
from gradhpo.tracing import record

# A recorded block holds few steps, so that it is recorded fast, and enough of them to make a call's overhead small;
# an update interval of up to `_WHOLE` steps is recorded whole.
_TRACED_STEPS, _WHOLE = 4, 20


@dataclass(frozen=True)
class Method:
    """A hypergradient method: an estimator, an outer rule and a cadence. `estimator=None` keeps the hyperparameters
    as they are.

    every: training steps between two outer updates. warm_up: steps before the first one (the estimator already
    observes them).
    """

    estimator: Estimator | None = None
    outer: Outer | None = None
    every: int = 1
    warm_up: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.warm_up < 0:
            raise GradhpoError(f"every = {self.every}, warm_up = {self.warm_up}; expected every >= 1 and warm_up >= 0")
        if (self.estimator is None) != (self.outer is None):
            raise GradhpoError("a method needs an estimator and an outer rule, or neither (fixed hyperparameters)")


class Run(NamedTuple):
    """Everything that continues, as tensors.

    t: steps taken; state: weights and buffers; raw `[R, P]`: tuned hyperparameters; fixed: natural values of the
    others; memory: the estimator's; outer: the outer rule's.
    """

    t: int
    state: State
    raw: Tensor
    fixed: dict[str, Tensor]
    memory: Any
    outer: Any


Watch = Callable[[Run], None]


@dataclass
class Loop:
    """Trains R runs on `problem` by `rule` while `method` moves `hypers`. Use `start`, then `advance` as often as
    wanted."""

    problem: Problem
    rule: Rule
    hypers: Hypers
    method: Method
    trace: bool = False
    _recent: deque[Step] = field(init=False)
    _traced: dict[tuple[int, bool, int, bool], Callable[..., Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        missing = [n for n in self.rule.hypers if n not in self.hypers.blocks]
        if missing:
            raise GradhpoError(
                f"the rule {self.rule.name} reads {list(self.rule.hypers)}, "
                f"and {missing} are not given; declare them as Hyper(name, value)"
            )
        if self.trace and (self.hypers.windowed or not self.problem.stationary):
            raise GradhpoError(
                "trace=True needs losses and hyperparameters that do not depend on the step number; "
                "use trace=False for this problem"
            )
        self._recent = deque(maxlen=self.method.estimator.keep if self.method.estimator else 0)

    def start(self, w: Tensor) -> Run:
        """A run from weights `w [R, D]` and the hyperparameters' initial values."""
        state = initial_state(w, self.rule)
        raw, fixed = self.hypers.init(state.w)
        self._recent.clear()
        m = self.method
        memory = m.estimator.init(state, self.hypers.at(raw, fixed)) if m.estimator else ()
        return Run(0, state, raw, fixed, memory, m.outer.init(raw) if m.outer else ())

    def advance(self, run: Run, steps: int, watch: Watch | None = None, watch_every: int = 0) -> Run:
        """`steps` more training steps; `watch(run)` is called after every `watch_every` of them."""
        end, stride = run.t + steps, watch_every or steps
        while run.t < end:
            goal = min(end, run.t + stride)
            while run.t < goal:
                run = self._block(run, self._block_length(run.t, goal - run.t))
            if watch is not None:
                watch(run)
        return run

    def _block_length(self, t: int, left: int) -> int:
        """Steps to take at once from step `t`: all that is left eagerly; traced, a few, cut so that few
        different blocks occur."""
        every = self.method.every
        to_update = every - t % every
        left = min(left, self.method.warm_up - t) if t < self.method.warm_up else left
        if not self.trace or left < to_update:
            return left
        if every <= _WHOLE:
            unit = every * max(1, _TRACED_STEPS // every)
            return unit if left >= unit and to_update == every else to_update
        keep = self.method.estimator.keep if self.method.estimator else 0
        return _TRACED_STEPS if to_update - _TRACED_STEPS > max(keep, 1) else to_update

    def _block(self, run: Run, n: int) -> Run:
        if not self.trace or n > _WHOLE:
            return self._steps(run, n)
        reset = getattr(self.method.estimator, "reset_every", None) or 1
        key = (n, (run.t + n) % self.method.every == 0, run.t % reset, run.t >= self.method.warm_up)
        if key not in self._traced:
            self._traced[key] = record(lambda *parts: tuple(self._steps(Run(run.t, *parts), n)[1:]), tuple(run[1:]))
        return Run(run.t + n, *self._traced[key](*run[1:]))

    def _steps(self, run: Run, n: int) -> Run:
        """The loop itself."""
        m, end = self.method, run.t + n
        values = self.hypers.at(run.raw, run.fixed, run.t)
        while run.t < end:
            ahead = -(run.t + 1) % m.every
            if self.hypers.windowed:
                values = self.hypers.at(run.raw, run.fixed, run.t)
            step = Step(
                self.problem,
                self.rule,
                values,
                run.state,
                run.t,
                curvature=m.estimator is not None and m.estimator.curvature(ahead),
            )
            memory = m.estimator.observe(run.memory, step) if m.estimator else ()
            self._recent.append(step)
            run = run._replace(t=run.t + 1, state=step.next, memory=memory)
            if ahead == 0:
                if m.estimator is not None and run.t > m.warm_up:
                    run = self._update(run, values)
                    values = self.hypers.at(run.raw, run.fixed, run.t)
                self._recent.clear()
        return run

    def _update(self, run: Run, values: Values) -> Run:
        """One outer update, at the state after the last step; `values` are the hyperparameters of that step."""
        assert self.method.estimator is not None and self.method.outer is not None
        gv, direct = validation_gradient(self.problem, self.rule, values, run.state, run.t - 1)
        hypergradient = self.method.estimator.hypergradient(run.memory, self._recent, gv) + direct
        raw, outer = self.method.outer.update(run.raw, hypergradient, run.outer, values.lam)
        return run._replace(raw=self.hypers.clamp(raw).detach(), outer=outer)
