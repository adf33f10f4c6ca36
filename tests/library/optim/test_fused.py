"""The compiled step of `gradtune.optim.MetaOptimize`: the numbers of torch's operations, and what is left to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.nets import compiled
from gradtune.optim import MetaOptimize, fused
from gradtune.optim.foreach import BASES
from library.optim.small import net, relative, train, weights

needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")
SHAPES = ((4, 3, 2, 2), (5, 33), (), (7,), (1, 2, 3), (129, 40))  # the last one has several blocks
VARIATIONS: tuple[dict[str, Any], ...] = (
    {},
    {"maximize": True, "weight_decay": 0.1, "gamma": 0.9},
    {"weight_decay": 0.0, "groups": "tensor", "meta": "rmsprop"},
    {"groups": "blockwise", "gamma": 0.95, "foreach": False},
    {"form": "package", "weight_decay": 0.1, "gamma": 0.9},
    {"form": "package", "maximize": True, "groups": "tensor"},
)
Gradients = Callable[[Tensor, int], Tensor | None]


def noise(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64).to(dtype)


def wave(p: Tensor, t: int) -> Tensor | None:
    """Gradients that follow from weights and time; at times there is none, or all are 0."""
    if (p.numel() + t) % 7 == 0:
        return None
    return torch.zeros_like(p) if (p.numel() + t) % 11 == 0 else (p + 0.3 * t).cos().detach()


def run(params: list[Tensor], steps: int, gradients: Gradients = wave, **arguments: Any) -> MetaOptimize:
    half = len(params) // 2
    groups = [{"params": params[half:]}, {"params": params[:half], "lr": 0.02}]
    optimizer = MetaOptimize(groups, **{"lr": 0.01, "meta": "adam", **arguments})
    for t in range(steps):
        for p in params:
            p.grad = gradients(p, t)
        optimizer.step()
    return optimizer


def both(make: Callable[[], list[Tensor]], steps: int, **arguments: Any) -> list[tuple[list[Tensor], MetaOptimize]]:
    """Parameters and optimiser after a training by the kernels, and after one by torch's operations."""
    sides = [make(), make()]
    return [(params, run(params, steps, fused=kind, **arguments)) for params, kind in zip(sides, (None, False))]


def params(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [nn.Parameter(noise(shape, dtype)) for shape in SHAPES]


def apart(a: tuple[list[Tensor], MetaOptimize], b: tuple[list[Tensor], MetaOptimize]) -> float:
    """How far weights, states and learning rates are apart, relative to the largest entry of each tensor."""
    pairs = list(zip(a[0], b[0]))
    for p, q in list(pairs):
        states = a[1].state[p], b[1].state[q]
        assert states[0].keys() == states[1].keys()
        pairs += [(states[0][name], states[1][name]) for name in states[0]]
    largest = max(relative(x.detach().double(), y.detach().double()) for x, y in pairs)
    return max(largest, *(relative(x, y) for x, y in zip(a[1].lr, b[1].lr)))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a kernel took the step, for every bucket that was offered to one."""
    seen: list[bool] = []
    advance = fused.advance

    def noted(*arguments: Any) -> float | None:
        product = advance(*arguments)
        seen.append(product is not None)
        return product

    monkeypatch.setattr(fused, "advance", noted)
    return seen


# --- The numbers ------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("arguments", VARIATIONS)
@pytest.mark.parametrize("base", BASES)
def test_the_numbers_of_torchs_operations(base: str, arguments: dict[str, Any], calls: list[bool]) -> None:
    mine, theirs = both(params, 40, base=base, **arguments)
    assert apart(mine, theirs) < 1e-12 and calls and all(calls)
    assert all(0.01 not in ([each] if isinstance(each, float) else each) for each in mine[1].lr)


@needs_compiler
@pytest.mark.parametrize("base", BASES)
def test_and_in_float32_over_100_steps(base: str) -> None:
    """Gradients that do not follow from the weights, so that no rounding grows."""

    def given(p: Tensor, t: int) -> Tensor:
        return torch.randn(p.shape, generator=torch.Generator().manual_seed(t)) + 0.1

    mine, theirs = both(lambda: params(torch.float32), 100, base=base, gradients=given)
    assert apart(mine, theirs) < 5e-6


@needs_compiler
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("base", BASES)
def test_gradients_that_are_not_finite(base: str, value: float) -> None:
    """What is NaN and what is infinite, step by step, with and without decay and maximize."""

    def spoilt(p: Tensor, t: int) -> Tensor:
        g = (p.detach() + t).cos().nan_to_num(1.0)
        if t == 1 and p.dim() == 2:
            g[1, 1] = value
        return g

    for arguments in ({}, {"weight_decay": 0.0, "maximize": True}, {"form": "package"}):
        for steps in (2, 3):
            mine, theirs = both(params, steps, base=base, gradients=spoilt, **arguments)
            for p, q in zip(mine[0], theirs[0]):
                states = mine[1].state[p], theirs[1].state[q]
                for x, y in ((p, q), *((states[0][n], states[1][n]) for n in states[0])):
                    assert torch.equal(x.isnan(), y.isnan()) and torch.equal(x.isinf(), y.isinf())
            assert [math.isnan(lr) for lr in mine[1].lr] == [math.isnan(lr) for lr in theirs[1].lr] == [True, True]


@needs_compiler
def test_weights_that_are_not_finite_have_no_decay_of_0() -> None:
    for base in BASES:
        ends = []
        for kind in (None, False):
            p = nn.Parameter(torch.tensor([math.inf, 1.0]))
            p.grad = torch.tensor([1.0, 2.0])
            MetaOptimize([p], 0.1, base, weight_decay=0.0, fused=kind).step()
            ends.append(p.detach())
        assert torch.allclose(ends[0], ends[1], atol=1e-6) and ends[0][0] == math.inf


@needs_compiler
@pytest.mark.parametrize("base", BASES)
def test_the_number_of_threads_changes_no_bit(base: str) -> None:
    ends, before = [], torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            p: list[Tensor] = [
                nn.Parameter(noise((400, 401), torch.float32)),
                nn.Parameter(noise((50_000,), torch.float32)),
            ]
            optimizer = run(p, 3, lambda p, t: torch.full_like(p, 0.1 * t), base=base)
        finally:
            torch.set_num_threads(before)
        ends.append((torch.cat([x.detach().flatten() for x in p]), optimizer.lr))
    assert all(torch.equal(w, ends[0][0]) and lr == ends[0][1] for w, lr in ends)


@needs_compiler
def test_the_product_of_many_weights_keeps_its_digits() -> None:
    """In float32 the sum of a million products is as good as in double."""
    p = nn.Parameter(torch.zeros(1_000_000))
    optimizer = MetaOptimize([p], 1.0, "sgd", meta="sgd", meta_step_size=1e-7)
    p.grad = noise((1_000_000,), torch.float32)
    for _ in range(2):  # the trace is - g after the first step
        optimizer.step()
    exact = p.grad.double().square().sum().item()
    assert math.log(optimizer.lr[0]) == pytest.approx(1e-7 * exact, rel=1e-7)


# --- What the kernels take --------------------------------------------------------------------------------------------


def _ordered() -> list[Tensor]:
    """Dense weights in several orders of the memory."""
    mixed = [
        noise((4, 3, 2, 2)).to(memory_format=torch.channels_last),
        noise((30, 50)).T,
        noise((2, 3, 4)).movedim(0, 1),
    ]
    return [x.requires_grad_() for x in mixed]


@needs_compiler
def test_weights_in_any_order_of_the_memory(calls: list[bool]) -> None:
    for base in BASES:
        mine, theirs = both(_ordered, 5, base=base)
        contiguous = [x.detach().contiguous().requires_grad_() for x in _ordered()]
        assert apart(mine, theirs) < 1e-12 and all(calls)
        assert apart(mine, (contiguous, run(contiguous, 5, base=base))) < 1e-12


@needs_compiler
def test_gradients_in_another_order_than_the_weights(calls: list[bool]) -> None:
    """And those of one expanded number, those that are the weights themselves, and views with the other sign."""
    kinds: tuple[Gradients, ...] = (
        lambda p, t: p.detach().clone(memory_format=torch.contiguous_format),
        lambda p, t: torch.tensor(0.1 + t).double().expand(p.shape),
        lambda p, t: p.detach(),
        lambda p, t: torch._neg_view(p.detach().clone()),
    )
    for gradients in kinds:
        mine, theirs = both(_ordered, 4, gradients=gradients)
        assert apart(mine, theirs) < 1e-12
    assert all(calls)


@needs_compiler
def test_what_is_left_to_torch(calls: list[bool]) -> None:
    class Mine(nn.Parameter):
        pass

    left: tuple[Callable[[], Tensor], ...] = (
        lambda: noise((5, 6))[:, ::2],
        lambda: noise((5,), torch.bfloat16),
        lambda: noise((5,), torch.float16),
        lambda: torch.empty(0, dtype=torch.float64),
        lambda: Mine(noise((5,))),
    )
    for make in left:
        ends = []
        for kind in (None, False):
            p = make().requires_grad_()
            run([p], 4, lambda p, t: (p.detach() + t).cos(), fused=kind, eps=1e-3)
            ends.append(p.detach())
        assert torch.equal(*ends)
    assert calls == 4 * len(left) * [False]


@needs_compiler
def test_complex_weights(calls: list[bool]) -> None:
    def make() -> list[Tensor]:
        return [nn.Parameter(torch.view_as_complex(noise((5, 2)))), nn.Parameter(noise((3,)))]

    mine, theirs = both(make, 5, base="adamw", gradients=lambda p, t: (p.detach() + t).cos())
    assert all(calls)
    for p, q in zip(mine[0], theirs[0]):
        assert torch.allclose(p, q, rtol=1e-12, atol=0)


@needs_compiler
def test_a_state_of_other_weights_is_no_way_out_of_the_memory() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(50_000))
    small, large = MetaOptimize([a]), MetaOptimize([b])
    a.grad, b.grad = torch.ones(2), torch.ones(50_000)
    small.step()
    with pytest.raises(GradtuneError, match=r"'exp_avg' of parameter 0 of group 0 is a tensor of shape \[2\]"):
        large.load_state_dict(small.state_dict())
    large.state[b] = small.state[a]  # past the checks
    with pytest.raises(RuntimeError, match="size"):
        large.step()


@needs_compiler
def test_autograd_notices_the_step() -> None:
    model = net()
    optimizer = MetaOptimize(model.parameters())
    loss = model(torch.ones(2, 3).double()).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_a_state_goes_on_in_the_other_form() -> None:
    a, b = net(), net()
    mine, theirs = MetaOptimize(a.parameters(), 0.01), MetaOptimize(b.parameters(), 0.01, fused=False)
    train(a, mine, 5)
    train(b, theirs, 5)
    saved = copy.deepcopy(mine.state_dict())
    assert saved["param_groups"][0]["fused"] is None
    mine.param_groups[0]["fused"] = False
    theirs.param_groups[0]["fused"] = True
    train(a, mine, 5, 5)
    train(b, theirs, 5, 5)
    assert relative(weights(a), weights(b)) < 1e-12


# --- The choice -------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing remembered before or after."""
    monkeypatch.setenv("GRADTUNE_CACHE", str(tmp_path))
    remembered = (compiled.load, compiled.compiler, fused.kernel)
    for each in remembered:
        each.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    for each in remembered:
        each.cache_clear()


@needs_compiler
def test_the_first_step_compiles(nothing_compiled: Path, calls: list[bool]) -> None:
    model = net()
    optimizer = MetaOptimize(model.parameters())
    assert not any(nothing_compiled.iterdir())
    train(model, optimizer, 2)
    assert len([*nothing_compiled.glob("*.so")]) == 1 and calls == [True, True]


def test_without_a_compiler_torch_takes_the_steps(nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_COMPILE", "0")
    a, b = net(), net()
    train(a, MetaOptimize(a.parameters()), 5)
    train(b, MetaOptimize(b.parameters(), fused=False), 5)
    assert torch.equal(weights(a), weights(b)) and not any(nothing_compiled.iterdir())
    with pytest.raises(GradtuneError) as caught:
        MetaOptimize(a.parameters(), fused=True)
    assert str(caught.value) == (
        "fused = True in parameter group 0, and there is no C++ compiler that makes the kernel; "
        "leave it out, or install one"
    )


def test_a_cache_that_cannot_be_written_is_no_error(nothing_compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nothing_compiled / "file").write_text("")
    monkeypatch.setenv("GRADTUNE_CACHE", str(nothing_compiled / "file"))
    model = net()
    train(model, MetaOptimize(model.parameters()), 2)


@pytest.mark.parametrize(("dtype", "device", "base"), [("bfloat16", "cpu", "adamw"), ("float32", "meta", "lion")])
def test_fused_true_says_what_it_does_not_take(dtype: str, device: str, base: str) -> None:
    p = nn.Parameter(torch.empty(3, dtype=getattr(torch, dtype), device=device))
    with pytest.raises(GradtuneError) as caught:
        MetaOptimize([p], base=base, fused=True)
    assert str(caught.value) == (
        f"fused = True in parameter group 0, and parameter 0 is a tensor of {dtype} on {device}; "
        "leave it out, or give plain tensors of float32 or float64 on the CPU"
    )


@needs_compiler
def test_the_kernels_compile_without_a_warning(tmp_path: Path) -> None:
    """With several threads and with one."""
    found = compiled.compiler()
    assert found is not None
    for flags in ((), ("-fopenmp",)):
        command = (found.path, *compiled._FLAGS, *flags, "-Wall", "-Wextra", "-Werror", str(fused.SOURCE))
        assert compiled._output(*command, "-o", str(tmp_path / "made.so")) is not None
