"""The one-pass loop: weights and hyperparameters learn together.

The hyperparameters move after every `every` training steps. `Loop` runs the same few lines in two ways: eagerly or,
with `trace=True`, as a straight list of tensor operations recorded once and replayed (`tracing`), without the autograd
engine's overhead. For the second way the losses must not depend on the step number, or only through tensors that the
problem hands over (`step.WithBatches`). On a GPU, blocks of steps of such problems are CUDA graphs (`captured`), with
`trace` or without.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.hypers import Hypers, Values
from gradtune.recursion.problems import HandingOn
from gradtune.recursion.products import Products
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import Problem, State, Step, WithBatches, initial_state, validation_gradient
from gradtune.training.captured import Blocks, Refused
from gradtune.training.method import Method
from gradtune.training.replayed import Anchor, Replays, Trail
from gradtune.training.tracing import record

# A recorded block holds few steps, so that it is recorded fast, and enough of them to make a call's overhead small;
# an update interval of up to `_WHOLE` steps is recorded whole.
_TRACED_STEPS, _WHOLE = 4, 20


class Run(NamedTuple):
    """Everything that continues from one training step to the next, as tensors.

    Attributes:
        t: number of training steps taken.
        state: weights and buffers.
        raw: tuned hyperparameters in raw coordinates, `[R, P]`.
        fixed: natural values of the other hyperparameters, `[R, groups, windows]` by name.
        memory: the estimator's memory.
        outer: the outer rule's state.
        past: the states before the last training steps, as many as the estimator looks back on, none from before the
            latest outer update; or those of them that a tree keeps, as `replayed.Anchor`.
    """

    t: int
    state: State
    raw: Tensor
    fixed: dict[str, Tensor]
    memory: Any
    outer: Any
    past: tuple[Any, ...] = ()


Watch = Callable[[Run], None]
Problems = Mapping[int, Problem]


@dataclass
class Loop:
    """Training of R runs on `problem` by `rule` while `method` moves `hypers`.

    Use `start`, then `advance` as often as wanted.

    Attributes:
        problem: the training loss and the validation loss.
        rule: the update rule of the weights.
        hypers: the hyperparameters, tuned and fixed; among them all that the rule reads.
        method: how the tuned hyperparameters move.
        trace: record blocks of steps once and replay them (`tracing.record`), instead of running them eagerly.
        replays: the checkpoints of a method that takes steps again from a tree of them; None for other methods.
        products: in which mode Hessian products are taken.

    Raises:
        GradtuneError: the rule reads a hyperparameter that is not given; `trace` is set and hyperparameters have time
            windows, steps are taken again from a tree, or losses depend on the step number otherwise than through
            `step.WithBatches`; or the method's outer loss is "training" and a tuned hyperparameter belongs to the loss.
    """

    problem: Problem
    rule: Rule
    hypers: Hypers
    method: Method
    trace: bool = False
    _graphs: Blocks = field(init=False, default_factory=Blocks, repr=False)
    _traced: dict[tuple[Any, ...], Callable[..., Any]] = field(init=False, default_factory=dict)
    _values: tuple[Tensor, dict[str, Tensor], Values] | None = field(init=False, default=None)
    replays: Replays | None = field(init=False, default=None, repr=False)
    products: Products = field(init=False, repr=False)

    def __post_init__(self) -> None:
        missing = [n for n in self.rule.hypers if n not in self.hypers.blocks]
        if missing:
            raise GradtuneError(
                f"the rule {self.rule.name} reads {list(self.rule.hypers)}, "
                f"and {missing} are not given; declare them as Hyper(name, value)"
            )
        if self.trace and (self.hypers.windowed or not (self.problem.stationary or self._handed_over)):
            raise GradtuneError(
                "trace=True needs losses and hyperparameters that do not depend on the step number, or a problem with "
                "batch(t) and on(batch); use trace=False for this problem"
            )
        self.products = self.method.products()
        if self.trace and self.method.mode != "reverse":
            raise GradtuneError("trace=True records graphs over gradients; use it with mode='reverse'")
        if isinstance(self.method.estimator, Reverse) and self.method.replayed:
            if self.trace:
                raise GradtuneError(
                    "trace=True records all steps of an update, and store='tree' keeps few states; choose"
                )
            self.replays = Replays(self.problem, self.method.estimator, self.method.every)
        of_loss = [n for n in self.hypers.tuned if n not in self.rule.hypers]
        if self.method.outer_loss == "training" and of_loss:
            raise GradtuneError(
                f"{of_loss} change the training loss itself, which outer_loss='training' would minimise over them; "
                "tune them on the validation loss"
            )

    @property
    def _handed_over(self) -> bool:
        return not self.problem.stationary and isinstance(self.problem, WithBatches)

    def start(self, w: Tensor, hypers: Hypers | None = None) -> Run:
        """Return a run at weights `w [R, D]` and the initial values of the hyperparameters, or of others like them."""
        state = initial_state(w, self.rule)
        raw, fixed = (hypers or self.hypers).init(state.w)
        m = self.method
        memory = m.estimator.init(state, self.hypers.at(raw, fixed)) if m.estimator else ()
        return Run(0, state, raw, fixed, memory, m.outer.init(raw) if m.outer else ())

    def advance(self, run: Run, steps: int, watch: Watch | None = None, watch_every: int = 0) -> Run:
        """Take `steps` more training steps.

        Args:
            run: where to go on.
            steps: number of training steps.
            watch: called with the run after every `watch_every` steps and after the last one.
            watch_every: training steps between two calls of `watch`; 0 calls it after the last step alone.

        Returns:
            The run after these steps.
        """
        end, stride = run.t + steps, watch_every or steps
        while run.t < end:
            goal = min(end, run.t + stride)
            while run.t < goal:
                run = self._block(run, self._block_length(run, goal - run.t))
            if watch is not None:
                watch(run)
        return run

    def step(self, run: Run, recent: deque[Step], values: Values | None = None) -> Run:
        """Take one training step, for a loop of one's own.

        Args:
            run: where to go on.
            recent: the steps since the last outer update with their graphs, a deque with `maxlen=method.keep`, empty at
                first. It is changed in place. Steps that it lacks are taken again from their stored states.
            values: the hyperparameters in force; by default `values_of(run)`.

        Returns:
            The run after the step.
        """
        return self._steps(run, 1, recent=recent, values=self.values_of(run) if values is None else values)

    def values_of(self, run: Run) -> Values:
        """Return the hyperparameters in force, which are kept until they move."""
        last = self._values
        if last is None or last[0] is not run.raw or last[1] is not run.fixed or self.hypers.windowed:
            self._values = last = run.raw, run.fixed, self.hypers.at(run.raw, run.fixed, run.t)
        return last[2]

    def looked_back(self, run: Run, recent: Sequence[Step]) -> Sequence[Step]:
        """Return the steps that the estimator looks back on; those missing in `recent` are taken again."""
        if self.replays is not None:
            return self._trail(run, run.past, keep=True) if run.past else []
        return self._kept(run, run.past[: len(run.past) - len(recent)], recent, {})

    def form_of_past(self, run: Run) -> Any:
        """Return an entry of `Run.past` of a run like this one."""
        return run.state if self.replays is None else self.replays.form(run.state)

    def due(self, t: int) -> bool:
        """Return whether an outer update belongs to step number `t`."""
        m = self.method
        return m.estimator is not None and (t + 1) % m.every == 0 and t + 1 > m.warm_up

    def _captures(self, run: Run) -> bool:
        """Return whether blocks of steps are captured as CUDA graphs."""
        steady = (self.problem.stationary or self._handed_over) and self.replays is None and not self.method.foreign
        return steady and run.state.w.device.type == "cuda" and not self._graphs.refused

    def _block_length(self, run: Run, left: int) -> int:
        """Return how many of the `left` steps to take at once.

        Eagerly, these are all, or all to the end of the warm-up. In recorded blocks they are few, cut so that few
        different blocks occur.
        """
        every, t = self.method.every, run.t
        to_update, captures = every - t % every, self._captures(run)
        left = min(left, self.method.warm_up - t) if t < self.method.warm_up else left
        if captures and isinstance(self.problem, HandingOn):
            return 1
        if not (self.trace or captures) or left < to_update:
            return min(left, _TRACED_STEPS) if captures and not self.trace else left
        if every <= _WHOLE:
            unit = every * max(1, _TRACED_STEPS // every)
            return unit if left >= unit and to_update == every else to_update
        return _TRACED_STEPS if to_update - _TRACED_STEPS > max(self.method.keep, 1) else to_update

    def _block(self, run: Run, n: int) -> Run:
        """Take `n` steps: eagerly, as recorded, or by a CUDA graph."""
        captures = self._captures(run)
        if n > _WHOLE or not (self.trace or captures):
            return self._steps(run, n)
        batches: dict[int, tuple[Tensor, ...]] = {}
        if isinstance(self.problem, WithBatches) and self._handed_over:
            batches = {t: self.problem.batch(t) for t in range(run.t - len(run.past), run.t + n)}
        kind, given = self._kind(run, n, batches), tuple(batches.values())
        function = self._block_of(run.t, n, tuple(batches))
        if self.trace:
            if kind not in self._traced:
                self._traced[kind] = record(function, (given, *run[1:]))
            function = self._traced[kind]
        if captures and self._graphs.wants(kind):
            try:
                parts, left = self._graphs.take(kind, function, (given, *run[1:]), run.t)
            except Refused as refused:
                warnings.warn(
                    f"training steps are not captured as CUDA graphs ({refused}); each operation is launched alone",
                    GradtuneWarning,
                    stacklevel=3,
                )
            else:
                if isinstance(self.problem, HandingOn):
                    self.problem.take_over(run.t + n, left)
                return Run(run.t + n, *parts)
        return Run(run.t + n, *function(given, *run[1:])[0]) if self.trace else self._steps(run, n)

    def _kind(self, run: Run, n: int, batches: Mapping[int, tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """Return what decides which operations the next `n` steps make."""
        m, steps = self.method, range(run.t, run.t + n)
        reset = getattr(m.estimator, "reset_every", None) or 1
        curved = m.estimator is not None and tuple(m.estimator.curvature(-(t + 1) % m.every) for t in steps)
        windows = tuple(self.hypers.window(name, t) for t in steps for name in self.hypers.blocks)
        shapes = tuple(x.shape for batch in batches.values() for x in batch)
        updates = (run.t + n) % m.every == 0
        return n, updates, curved, run.t % reset, run.t >= m.warm_up, len(run.past), windows, shapes

    def _block_of(self, t: int, n: int, steps: tuple[int, ...]) -> Callable[..., Any]:
        """Return `n` steps from step `t` on, as a function of the batches of `steps` and of what continues."""

        def block(given: Sequence[tuple[Tensor, ...]], *parts: Any) -> tuple[Any, ...]:
            own = self.problem
            handed = zip(steps, given, strict=True)
            problems = {k: own.on(batch) for k, batch in handed} if isinstance(own, WithBatches) else {}
            after = self._steps(Run(t, *parts), n, problems)[1:]
            return tuple(after), own.handed_on(problems[t]) if isinstance(own, HandingOn) else ()

        return block

    def _steps(
        self,
        run: Run,
        n: int,
        problems: Problems | None = None,
        recent: deque[Step] | None = None,
        values: Values | None = None,
    ) -> Run:
        """Take `n` steps: the loop itself. A recorded block gives the problems of its steps."""
        m, end = self.method, run.t + n
        problems = problems or {}
        values = values or self.hypers.at(run.raw, run.fixed, run.t)
        recent = deque[Step](maxlen=m.keep) if recent is None else recent
        past = run.past[: len(run.past) - len(recent)]
        while run.t < end:
            ahead = -(run.t + 1) % m.every
            due = self.due(run.t)
            if self.hypers.windowed:
                values = self.hypers.at(run.raw, run.fixed, run.t)
            curvature = m.estimator is not None and m.estimator.curvature(ahead)
            problem = problems.get(run.t, self.problem)
            if self.replays is not None and self.due(run.t + ahead):
                past = self.replays.before(run.t, run.state, run.raw, past)
            step = Step(problem, self.rule, values, run.state, run.t, curvature=curvature, products=self.products)
            seen = run.memory
            if due and m.immediate:
                run = self._update(run, problem, values, seen, (), step.g.detach())
                values = self.hypers.at(run.raw, run.fixed, run.t)
                step = step.with_values(values)
            memory = m.estimator.observe(run.memory, step) if m.estimator else ()
            if self.replays is None:
                recent.append(step)
            run = run._replace(t=run.t + 1, state=step.next, memory=memory)
            if due and m.outer_loss == "training" and not m.immediate:
                run = self._update(run, problem, values, seen, (), step.g.detach())
            elif due and m.outer_loss == "validation":
                kept = self._kept(run, past, recent, problems) if self.replays is None else self._trail(run, past)
                run = self._update(run, problem, values, memory, kept)
            if ahead == 0:
                past = ()
                if self.replays is not None:
                    self.replays.end()
                recent.clear()
            if due:
                values = self.hypers.at(run.raw, run.fixed, run.t)
        states = (*past, *(s.state for s in recent))
        return run._replace(past=states[-m.keep :] if m.keep else ())

    def _kept(self, run: Run, past: Sequence[State], recent: Sequence[Step], problems: Problems) -> list[Step]:
        """Return the steps that the estimator looks back on.

        Those of an earlier call are taken again from their stored states.
        """
        missing = min(self.method.keep - len(recent), len(past))
        first = run.t - len(recent) - missing
        before = []
        for t, state in enumerate(past[len(past) - missing :], start=first):
            values = self.hypers.at(run.raw, run.fixed, t)
            problem = problems.get(t, self.problem)
            before.append(Step(problem, self.rule, values, state, t, curvature=True, products=self.products))
        return [*before, *recent]

    def _trail(self, run: Run, past: Sequence[Anchor], keep: bool = False) -> Trail:
        """Return the steps that the estimator looks back on, to be taken again from the states in `past`."""
        assert self.replays is not None
        values = None if self.hypers.windowed else self.hypers.at(run.raw, run.fixed, run.t - 1)

        def make(t: int, state: State, curvature: bool) -> Step:
            now = self.hypers.at(run.raw, run.fixed, t) if values is None else values
            return Step(self.problem, self.rule, now, state, t, curvature=curvature, products=self.products)

        of_loss = any(n not in self.rule.hypers for n in self.hypers.smooth)
        return self.replays.trail(past, run.t, run.state, make, of_loss, keep)

    def _update(
        self,
        run: Run,
        problem: Problem,
        values: Values,
        memory: Any,
        recent: Sequence[Step],
        outer_gradient: Tensor | None = None,
    ) -> Run:
        """Make one outer update, with the problem and the hyperparameters of the last step.

        Without an outer gradient it takes that of the validation loss at the run's weights, and the direct term.
        """
        assert self.method.estimator is not None and self.method.outer is not None
        direct: Tensor | float = 0.0
        if outer_gradient is None:
            outer_gradient, direct = validation_gradient(problem, self.rule, values, run.state, run.t - 1)
        hypergradient = self.method.estimator.hypergradient(memory, recent, outer_gradient, values) + direct
        raw, outer = self.method.outer.update(run.raw, hypergradient, run.outer, values.lam)
        return run._replace(raw=self.hypers.clamp(raw).detach(), outer=outer)
