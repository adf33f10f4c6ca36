"""Reverse mode over a tree of checkpoints: the bits of stored states, the counts of the formulas, bounded memory."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.estimators.reverse import Reverse
from gradtune.estimators.tree import TreeCost, edge, parts, revolve_cost, tree_cost
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, Adam
from gradtune.recursion.rules import Rule, adamw, sgd
from gradtune.training.loop import Loop, Method
from problems import RULES, START, Net
from tools import hypergradient, relative


def declared(rule: Rule, problem: Net, steps: int, l2: bool = False, windows: int = 1) -> Hypers:
    names = [*rule.hypers, *["l2"] * l2]
    return Hypers([Hyper(n, START[n], windows=min(windows, steps)) for n in names], problem.layout.sizes, steps)


def cost(problem: Any, rule: Rule, hypers: Hypers, w: Tensor, how: Reverse, steps: int) -> TreeCost:
    loop = Loop(problem, rule, hypers, Method(how, SGD(0.0), every=steps))
    loop.advance(loop.start(w), steps)
    assert loop.replays is not None and loop.replays.cost is not None
    return loop.replays.cost


# -- counts ------------------------------------------------------------------------------------------------------------


@cache
def advances(steps: int, branching: int) -> int:
    """Steps taken to visit some steps backwards from the state before the first one."""
    lengths = parts(steps, branching)
    return 0 if steps == 1 else steps - lengths[-1] + sum(advances(n, branching) for n in lengths)


@cache
def kept(steps: int, branching: int) -> int:
    """States that are kept meanwhile: those before earlier parts, and those of the part itself."""
    return 1 if steps == 1 else max(k + kept(n, branching) for k, n in enumerate(parts(steps, branching)))


@cache
def fewest(steps: int, states: int) -> int:
    """The fewest advances possible, by trying every place of the next state."""
    if steps == 1:
        return 0
    if states == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, states - 1) + fewest(m, states) for m in range(1, steps))


@given(st.integers(1, 3000), st.integers(2, 40))
def test_the_formulas_count_the_tree(steps: int, branching: int) -> None:
    found = tree_cost(steps, branching)
    assert found == TreeCost(advances(steps, branching) - (steps - 1), kept(steps, branching))
    assert len(edge(steps, branching)) == found.states and edge(steps, branching)[-1] == steps - 1
    depth = next(d for d in range(20) if branching**d >= steps)
    assert found.states <= depth * (branching - 1) + 1
    assert found.replayed <= steps * depth


@pytest.mark.parametrize(("branching", "depth"), [(2, 1), (2, 9), (3, 5), (8, 4), (10, 3)])
def test_of_powers(branching: int, depth: int) -> None:
    steps = branching**depth
    assert tree_cost(steps, branching) == TreeCost(
        depth * (branching - 1) * steps // branching - steps + 1, depth * (branching - 1) + 1
    )


def test_revolve_is_the_optimum() -> None:
    for steps in range(1, 45):
        for states in range(1, 8):
            assert revolve_cost(steps, states) == fewest(steps, states) - (steps - 1)


@given(st.integers(1, 20000), st.integers(2, 20))
def test_no_tree_beats_revolve(steps: int, branching: int) -> None:
    """And none takes more than 2.1 times as many steps as Revolve, training and way back included."""
    found = tree_cost(steps, branching)
    best = revolve_cost(steps, found.states)
    assert best <= found.replayed and 2 * steps + found.replayed <= 2.1 * (2 * steps + best)


@pytest.mark.parametrize(("steps", "branching"), [(0, 2), (5, 1), (True, 2)])
def test_costs_of_nothing(steps: int, branching: int) -> None:
    with pytest.raises(GradtuneError, match="expected a whole number"):
        tree_cost(steps, branching)


# -- bits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branching", [2, 3, 8])
@pytest.mark.parametrize("name", RULES)
def test_tree_is_state_is_unrolled(name: str, branching: int) -> None:
    """Two runs, all hyperparameters of the rule tuned; horizons that are no powers of k, and a single step."""
    problem, rule = Net(), RULES[name]
    for steps in (1, 2, 11, 26):
        case = problem, rule, declared(rule, problem, steps), problem.init(2)
        wanted = hypergradient(*case, Reverse(steps), steps)
        found = hypergradient(*case, Reverse(steps, "tree", branching), steps)
        assert torch.equal(found, wanted) and wanted.any()
        assert relative(found, oracle.unrolled(*case, steps)) < 1e-10
        assert cost(*case, Reverse(steps, "tree", branching), steps) == tree_cost(steps, branching)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(RULES)),
    st.integers(1, 40),
    st.sampled_from([2, 3, 5, 8]),
    st.sampled_from(["memory", "disk"]),
    st.booleans(),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_tree_is_state_to_the_bit(
    name: str, steps: int, branching: int, on: str, l2: bool, windows: int, dtype: torch.dtype
) -> None:
    """With a hyperparameter of the loss, time windows, on disk, in float32."""
    problem, rule = Net(), RULES[name]
    problem.x, problem.y, problem.val = (
        problem.x.to(dtype),
        problem.y.to(dtype),
        tuple(v.to(dtype) for v in problem.val),
    )
    case = problem, rule, declared(rule, problem, steps, l2, windows), problem.init(2).to(dtype)
    wanted = hypergradient(*case, Reverse(steps), steps)
    assert torch.equal(hypergradient(*case, Reverse(steps, "tree", branching, on), steps), wanted)
    assert cost(*case, Reverse(steps, "tree", branching, on), steps) == tree_cost(steps, branching)


@pytest.mark.parametrize(("horizon", "every", "warm_up"), [(5, 12, 0), (12, 5, 0), (7, 7, 10), (4, 9, 9)])
@pytest.mark.parametrize("on", ["memory", "disk"])
def test_many_updates(horizon: int, every: int, warm_up: int, on: str) -> None:
    """Horizons shorter and longer than the interval between updates, a warm-up, and calls that end anywhere."""
    problem, rule = Net(), adamw()
    ends = []
    for how in (Reverse(horizon), Reverse(horizon, "tree", 2, on)):
        loop = Loop(problem, rule, declared(rule, problem, 50), Method(how, Adam(0.02), every=every, warm_up=warm_up))
        run = loop.start(problem.init(1))
        for steps in (1, 3, 8, 2, 17, 6):
            run = loop.advance(run, steps)
        ends.append((run.state.w, run.raw))
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])
    assert not torch.equal(ends[0][1], loop.start(problem.init(1)).raw)


# -- memory ------------------------------------------------------------------------------------------------------------


class Counting(Net):
    """Counts the rows of weights that are alive whenever a loss is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        alive = {x.data_ptr() for x in gc.get_objects() if type(x) is Tensor and x.shape == w.shape}
        self.most = max(self.most, len(alive))
        return super().train_loss(w, lam, t)


def most_alive(how: Reverse, steps: int) -> int:
    gc.collect()
    gc.freeze()  # what there is already is not looked through
    try:
        problem, rule = Counting(), sgd()
        loop = Loop(problem, rule, declared(rule, problem, steps), Method(how, SGD(0.0), every=steps))
        loop.advance(loop.start(problem.init(1)), steps)
        return problem.most
    finally:
        gc.unfreeze()


def test_memory_is_that_of_the_states_of_the_tree() -> None:
    """A state is two rows, weights and velocity; beside the kept ones there is what a single step needs."""
    base = most_alive(Reverse(1, "tree", 2), 1)
    for steps in (8, 64):
        states = tree_cost(steps, 2).states
        assert 2 * states <= most_alive(Reverse(steps, "tree", 2), steps) <= 2 * states + base + 8
    assert most_alive(Reverse(64), 64) > 2 * 64
    assert most_alive(Reverse(64, "tree", 2, "disk"), 64) == most_alive(Reverse(16, "tree", 2, "disk"), 16) < 25


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "arguments"),
    {
        "expected 'state', 'graph' or 'tree'": {"store": "trees"},
        "unknown place of a tree's states 'disc'": {"store": "tree", "on": "disc"},
        "branching = 1": {"store": "tree", "branching": 1},
        "on='disk' goes with store='tree'": {"on": "disk"},
        "the states stay in memory": {"store": "tree", "folder": "here"},
    }.items(),
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_arguments(message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(GradtuneError, match=message):
        Reverse(3, **arguments)


def test_records_of_steps_are_refused() -> None:
    problem, rule = Net(stationary=True), sgd()
    with pytest.raises(GradtuneError, match="store='tree' keeps few states"):
        Loop(problem, rule, declared(rule, problem, 4), Method(Reverse(4, "tree"), SGD(0.0), every=4), trace=True)


class Moody(Net):
    """Its losses of the first three steps are another at each call."""

    calls = 0

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        self.calls += 1
        return super().train_loss(w, lam, t) * (1 + (t < 3) * 1e-9 * self.calls)


def test_a_training_that_cannot_be_taken_again_is_told() -> None:
    problem, rule = Moody(), sgd()
    with pytest.raises(GradtuneError, match="taken again, does not give the weights"):
        hypergradient(problem, rule, declared(rule, problem, 6), problem.init(1), Reverse(6, "tree", 2), 6)


def test_a_training_that_diverges_is_taken_again() -> None:
    """NaN is NaN again."""
    problem, rule = Net(), sgd(momentum=False)
    hypers = Hypers([Hyper("lr", 1e200), Hyper("weight_decay", 0.1)], problem.layout.sizes)
    found = hypergradient(problem, rule, hypers, problem.init(1), Reverse(9, "tree", 3), 9)
    assert not found.isfinite().all()


def test_an_interrupted_way_back_is_told() -> None:
    problem, rule = Moody(), sgd()
    loop = Loop(problem, rule, declared(rule, problem, 6), Method(Reverse(6, "tree", 2), SGD(0.0), every=6))
    run = loop.advance(loop.start(problem.init(1)), 5)
    for message in ("taken again, does not give", "the states that reverse mode over a tree needs are gone"):
        with pytest.raises(GradtuneError, match=message):
            loop.advance(run, 1)


def test_the_text_of_other_stores_stays() -> None:
    """A tuner's checkpoint compares it."""
    assert repr(Reverse(3)) == "Reverse(horizon=3, store='state')"
    assert repr(Reverse(3, "tree", 4)) == "Reverse(horizon=3, store='tree', branching=4, on='memory')"
