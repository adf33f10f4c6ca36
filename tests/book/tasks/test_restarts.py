"""Restarted training: FDS against per-step hypergradients, resume in the middle of an outer step, memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.reverse import Reverse
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, SignHalving
from gradtune.recursion.rules import sgd
from gradtune.recursion.step import Problem
from gradtune.recursion.wrapped import Clipped, Kept, Masked
from gradtune.training.loop import Loop, Method
from gradtune.training.restarts import Progress, Restarts, Task
from gradtune_book.tasks.per_run import PerRun, split
from pictures import training_images

RULE = sgd()


def task(seeds: list[int], dtype: torch.dtype = torch.float64) -> PerRun:
    """A small net with batch norm on 60 random images of 3 classes."""
    rng = torch.Generator().manual_seed(5)
    x, y = torch.randn(60, 1, 6, 6, generator=rng).to(dtype), torch.randint(3, (60,), generator=rng)

    def net() -> nn.Module:
        first = nn.Conv2d(1, 4, 3)
        return nn.Sequential(first, nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))

    return PerRun(net, training_images(x, y), split(60, 12, x.device), seeds, 8, val_batch=6)


def make(number: int) -> Task:
    fresh = task([10 + number, 20 + number])
    return Task(fresh, fresh.init(), fresh.layout.sizes)


def search(horizons: list[int], method: Callable[[int], Method] | None = None) -> Restarts:
    hypers = [Hyper("lr", 0.05, windows=3), Hyper("momentum", 0.3), Hyper("weight_decay", 1e-3, windows=2)]
    fds = method or (lambda steps: methods.fds(steps, Kept(SignHalving(0.02)), 10.0))
    return Restarts(make, RULE, hypers, fds, horizons)


def hypergradient(problem: Problem, w: Tensor, hypers: Hypers, method: Method, steps: int) -> Tensor:
    loop = Loop(problem, RULE, hypers, method)
    found: Tensor = loop.advance(loop.start(w), steps).outer.hypergradient
    return found


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_fds_sums_the_per_step_hypergradients_of_its_windows(count: int) -> None:
    """Any number of windows N over T = 10 steps, N dividing T or not, against N = T by reverse mode (float64)."""
    steps, problem = 10, task([1, 2])
    w = problem.init()

    def declared(n: int) -> Hypers:
        names = (("lr", 0.1), ("momentum", 0.5), ("weight_decay", 0.01))
        return Hypers([Hyper(name, value, windows=n) for name, value in names], problem.layout.sizes, steps)

    every_step = Method(Reverse(steps), Kept(SGD(0.0)), every=steps)
    each = hypergradient(problem, w, declared(steps), every_step, steps).view(2, 3, steps)
    found = hypergradient(problem, w, declared(count), methods.fds(steps, Kept(SGD(0.0))), steps).view(2, 3, count)
    index = torch.arange(steps) * count // steps
    summed = torch.zeros(2, 3, count, dtype=torch.float64).index_add(2, index, each)
    torch.testing.assert_close(found, summed, rtol=1e-9, atol=1e-12)
    assert found.abs().min() > 1e-8


def test_a_greedy_reverse_step_is_the_forward_one() -> None:
    problem, steps = task([1, 2]), 5
    hypers = Hypers([Hyper("lr", 0.1), Hyper("momentum", 0.5), Hyper("weight_decay", 0.01)], problem.layout.sizes)
    both = [
        hypergradient(problem, problem.init(), hypers, Method(estimator, Kept(SGD(0.0))), steps)
        for estimator in (Reverse(1), Forward(reset_every=1))
    ]
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-13)
    assert both[0].abs().min() > 1e-8


@pytest.mark.parametrize("stop", [3, 7, 11])
def test_a_search_stopped_anywhere_goes_on_to_the_same_bits(stop: int, tmp_path: Path) -> None:
    """Horizons 3, 6, 6: step 3 is the end of an outer step, 7 and 11 lie in the middle of one."""
    seen: list[int] = []
    straight = search([3, 6, 6])
    wanted = straight.advance(straight.start(), watch=lambda p: seen.append(p.number))
    assert seen == [0, 1, 2] and straight.done(wanted)

    before, file = search([3, 6, 6]), tmp_path / "search.pt"
    before.save(before.advance(before.start(), stop), file)
    after = search([3, 6, 6])
    progress = after.load(file)
    assert after.left(progress) == 15 - stop and not after.done(progress)
    found = after.advance(progress)
    for mine, its in zip(_tensors(found), _tensors(wanted), strict=True):
        assert torch.equal(mine, its)


@pytest.mark.parametrize("store", ["state", "tree"])
def test_a_stored_horizon_is_resumed_too(store: str, tmp_path: Path) -> None:
    """Reverse mode looks back on states from before the interruption."""
    reverse: Callable[[int], Method] = lambda n: Method(Reverse(n, store, 2), SGD(0.01), every=n)  # noqa: E731
    straight, before, after = (search([6], reverse) for _ in range(3))
    wanted = straight.advance(straight.start())
    before.save(before.advance(before.start(), 4), tmp_path / "s.pt")
    found = after.advance(after.load(tmp_path / "s.pt"))
    torch.testing.assert_close(found.run.raw, wanted.run.raw, rtol=1e-12, atol=0)
    assert not torch.equal(found.run.raw, after.start().run.raw)


def _tensors(progress: Progress) -> list[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(progress) if torch.is_tensor(x)]


def test_each_outer_step_has_its_own_weights_rows_and_windows() -> None:
    found = search([3, 6])
    first, second = (found.loop(k) for k in (0, 1))
    assert first.hypers.horizon == 3 and second.hypers.horizon == 6
    assert not torch.equal(make(0).w, make(1).w)
    assert not torch.equal(task([10]).val_rows[0], task([11]).val_rows[0])


def test_memory_of_fds_does_not_grow_with_the_horizon() -> None:
    """Bytes of all live tensors after 50 and after 500 steps; those of per-step reverse mode do grow."""

    def live(method: Callable[[int], Method], steps: int) -> int:
        before = _alive()  # what other tests have left, some of it without storage
        known = {id(x) for x in before}
        x, y = torch.randn(60, 50), torch.arange(60) % 3
        problem = PerRun(lambda: nn.Linear(50, 3), training_images(x, y), split(60, 12, x.device), [1], 8)
        loop = Loop(problem, RULE, Hypers(_plain(), problem.layout.sizes, 1000), method(1000))
        run = loop.start(problem.init())
        for _ in range(steps // 25):
            run = loop.advance(run, 25)
        gc.collect()
        seen = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in _alive() if id(x) not in known}
        del run, before
        return sum(seen.values())

    fds: Callable[[int], Method] = lambda steps: methods.fds(steps, SGD(0.0))  # noqa: E731
    reverse: Callable[[int], Method] = lambda steps: Method(Reverse(steps), SGD(0.0), every=steps)  # noqa: E731
    assert live(fds, 500) == pytest.approx(live(fds, 50), abs=4096)
    assert live(reverse, 100) > live(reverse, 50) + 50 * 2 * 4 * 150


def _plain() -> list[Hyper]:
    return [Hyper("lr", 0.01, windows=2), Hyper("momentum", 0.5), Hyper("weight_decay", 1e-4)]


def _alive() -> list[Tensor]:
    return [x for x in gc.get_objects() if issubclass(type(x), Tensor)]


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(GradtuneError, match="horizons is empty"):
        search([])
    with pytest.raises(GradtuneError, match=r"horizons\[1\] = 0; expected a whole number >= 1"):
        search([3, 0])
    file = tmp_path / "search.pt"
    first = search([3])
    first.save(first.start(), file)
    with pytest.raises(GradtuneError, match=r"saved by a search with horizons \[3\], and this one has \[4\]"):
        search([4]).load(file)
    with pytest.raises(GradtuneError, match="another net, method or number of runs"):
        search([3], lambda steps: Method(Reverse(steps), SGD(0.1), every=steps)).load(file)


def test_a_diverged_coordinate_stays_where_it_is() -> None:
    raw, bad = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[float("nan"), float("inf"), 0.5]])
    moved, state = Masked(SignHalving(0.1)).update(raw, bad, SignHalving(0.1).init(raw), {})
    assert moved.tolist() == [[1.0, 2.0, pytest.approx(2.9)]] and state.sign.tolist() == [[0.0, 0.0, 1.0]]
    kept, state = Kept(Clipped(SGD(1.0), 3.0)).update(raw, 5 * raw, Kept(SGD(1.0)).init(raw), {})
    assert kept.tolist() == [[-2.0, -1.0, 0.0]] and torch.equal(state.hypergradient, 5 * raw)
