"""`gradtune.optim.MetaOptimize`: the numbers of the generic loop and of the published programs, and what torch's own
optimisers can do."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ExponentialLR

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.optim.foreach import BASES, Bucket
from gradtune.optim.metaoptimize import MetaOptimize
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, Adam, Lion, Outer, RMSprop
from gradtune.recursion.rules import Rule, adamw, lion, rmsprop, sgd
from gradtune.training.loop import Loop
from library.optim.small import Model, backward, gradient, net, relative, same, train, weights
from problems import Net
from tools import REFERENCE

ORDER = ("W1", "b1", "W2", "b2", "W3", "b3")


# --- The numbers ------------------------------------------------------------------------------------------------------

RULES: dict[str, tuple[Rule, dict[str, float], dict[str, Any]]] = {  # rule, its hyperparameters, ours
    "sgd": (sgd(momentum=False), {}, {}),
    "sgdm": (sgd(), {"momentum": 0.8}, {"momentum": 0.8}),
    "rmsprop": (rmsprop(decoupled=True), {"beta2": 0.95}, {"alpha": 0.95}),
    "adamw": (adamw(), {"beta1": 0.8, "beta2": 0.95}, {"betas": (0.8, 0.95)}),
    "lion": (lion(), {"beta1": 0.8, "beta2": 0.95}, {"betas": (0.8, 0.95)}),
}
CASES = [
    ("global", "scalar", 1.0, 0.0),
    ("global", "scalar", 0.9, 0.1),
    ((0, 0, 1, 1), "blockwise", 1.0, 0.1),
    ((0, 0, 1, 1), "blockwise", 0.9, 0.0),
    ("tensor", "tensor", 0.9, 0.1),
]
STEPS = 6  # five moves of Lion's learning rate cannot cancel
METAS: dict[str, Outer] = {"sgd": SGD(0.01), "adam": Adam(0.01), "lion": Lion(0.01), "rmsprop": RMSprop(0.01)}


@pytest.mark.parametrize("form", ["ours", "package"])
@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("base", RULES)
def test_the_generic_loop(base: str, meta: str, form: str) -> None:
    """`methods.metaoptimize_hf` in `loop.Loop`."""
    rule, values, own = RULES[base]
    outer = Lion(0.01, new_momentum=form == "package") if meta == "lion" else METAS[meta]
    for granularity, groups, gamma, decay in CASES:
        problem, given = Net(), {**values, "lr": 0.05, "weight_decay": decay}
        hypers = [
            Hyper("lr", 0.05, "log", granularity),  # type: ignore[arg-type]
            *(Hyper(n, given[n], tuned=False) for n in rule.hypers if n != "lr"),
        ]
        method = methods.metaoptimize_hf(outer, gamma, form)
        loop = Loop(problem, rule, Hypers(hypers, problem.layout.sizes), method)
        w = problem.init(1)
        end = loop.advance(loop.start(w), STEPS)

        parts = [p.clone().requires_grad_() for p in w[0].split(problem.layout.sizes)]
        optimizer = MetaOptimize(
            [{"params": parts[:2]}, {"params": parts[2:]}],
            0.05, base, meta, 0.01, gamma, groups, weight_decay=decay, form=form, **own,
        )  # fmt: skip
        for t in range(STEPS):
            optimizer.zero_grad()
            problem.train_loss(torch.cat(parts)[None], {}, t).sum().backward()
            optimizer.step()
        lr = np.ravel(np.concatenate([np.ravel(each) for each in optimizer.lr]))
        lr = lr[:1] if groups == "scalar" else lr
        assert relative(torch.cat(parts).detach(), end.state.w[0]) < 1e-12
        assert relative(torch.cat([optimizer.state[p]["trace"] for p in parts]), end.memory[0]) < 1e-12
        assert relative(lr, end.raw[0].exp()) < 1e-12
        assert np.abs(lr / 0.05 - 1).min() > 1e-6


@pytest.mark.parametrize(
    ("name", "base", "arguments"),
    [
        (
            "pkg_AdamW_Lion_b222_wd0.1_g0.9_f64",
            "adamw",
            {"lr": 0.03, "meta": Lion(0.02, (0.9, 0.99), new_momentum=True), "form": "package"},
        ),
        ("hf_Lion_Lion_b222_g0.9", "lion", {"lr": 0.01, "meta": Lion(0.02, (0.7, 0.9), weight_decay=0.01)}),
    ],
)
def test_published_runs(name: str, base: str, arguments: dict[str, Any]) -> None:
    """All 200 steps of the published programs: learning rates and weights."""
    assert name in {case["name"] for case in json.loads((REFERENCE / "metaoptimize_mlp.json").read_text())}
    z = dict(np.load(REFERENCE / "metaoptimize_mlp.npz"))
    w1, b1, w2, b2, w3, b3 = params = [torch.tensor(z[n], requires_grad=True) for n in ORDER]
    blocks = [{"params": params[i : i + 2]} for i in (0, 2, 4)]
    optimizer = MetaOptimize(blocks, base=base, gamma=0.9, groups="blockwise", weight_decay=0.1, **arguments)
    x, y = torch.tensor(z["X"]), torch.tensor(z["Y"])
    rates, lengths = [optimizer.lr], []
    for rows in torch.tensor(z["batch_idx"]):
        optimizer.zero_grad()
        hidden = torch.tanh(torch.tanh(x[rows] @ w1.T + b1) @ w2.T + b2)
        cross_entropy(hidden @ w3.T + b3, y[rows]).backward()
        optimizer.step()
        rates.append(optimizer.lr)
        lengths.append(torch.stack([optimizer.state[p]["trace"].norm() for p in params]).norm())
    assert relative(rates, z[f"{name}__alpha"]) < 1e-10
    assert relative(torch.stack(lengths), z[f"{name}__h_norm"][1:]) < 1e-10
    assert relative(torch.cat([p.detach().flatten() for p in params]), z[f"{name}__final_weights"]) < 1e-10


TORCH: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.01, weight_decay=0.1),
    "sgdm": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("base", TORCH)
def test_with_a_meta_step_size_of_0_it_is_torchs_optimiser(base: str, maximize: bool) -> None:
    a, b = net(), net()
    decay = {} if base == "rmsprop" else {"weight_decay": 0.1}
    theirs = TORCH[base](b.parameters())
    theirs.param_groups[0]["maximize"] = maximize
    train(a, MetaOptimize(a.parameters(), 0.01, base, meta_step_size=0.0, maximize=maximize, **decay), 20)  # type: ignore[arg-type]
    train(b, theirs, 20)
    assert relative(weights(a), weights(b)) < 1e-12


def test_defaults_are_torchs() -> None:
    mine, theirs = (kind(net().parameters(), 0.01) for kind in (MetaOptimize, torch.optim.AdamW))
    for name in ("lr", "betas", "eps", "weight_decay", "maximize"):
        assert mine.param_groups[0][name] == theirs.param_groups[0][name]


def test_a_small_learning_rate_keeps_its_digits_in_float32() -> None:
    """The trace after one step is the step itself, -lr (sign(g) + weight_decay w), though the weights hardly move."""
    model = net(torch.float32)
    start, optimizer = copy.deepcopy(model), MetaOptimize(model.parameters(), 1e-7)
    train(model, optimizer, 1)
    backward(start)
    for p, q in zip(model.parameters(), start.parameters()):
        g = gradient(q).double()
        exact = -1e-7 * (g / (g.abs() + 1e-8) + 0.01 * q.double())
        assert relative(optimizer.state[p]["trace"], exact.detach().float()) < 1e-5


def test_it_learns_and_finds_a_learning_rate() -> None:
    """From a learning rate 1000 times too small."""
    model = net()
    optimizer = MetaOptimize(model.parameters(), 1e-5, meta_step_size=0.05)
    before = backward(model).item()
    train(model, optimizer, 250)
    assert backward(model).item() < 0.2 * before and optimizer.lr[0] > 1e-3


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(None, 0.02), (1, 0.1), (200, 0.1), (250, 0.08), (1000, 0.02), (20_000, 1e-3), (10**6, 1e-3)],
)
def test_the_meta_step_follows_the_number_of_steps(steps: int | None, expected: float) -> None:
    """20 / steps within bounds: with Lion each step moves the logarithm of the learning rate by that much."""
    model = net()
    optimizer = MetaOptimize(model.parameters(), 1e-5, steps=steps)
    train(model, optimizer, 2)  # the trace is empty in the first
    before = math.log(optimizer.lr[0])
    train(model, optimizer, 1)
    assert abs(math.log(optimizer.lr[0]) - before) == pytest.approx(expected, rel=1e-6)


def test_with_the_number_of_steps_it_learns_from_a_rate_1000_times_too_small() -> None:
    """In 250 steps, where the default without it has not come up yet."""
    losses = {}
    for steps in (None, 250):
        model = net()
        train(model, MetaOptimize(model.parameters(), 1e-5, steps=steps), 250)
        losses[steps] = backward(model).item()
    assert losses[250] < 0.2 * backward(net()).item() < losses[None]


# --- An optimiser as torch has them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["scalar", "blockwise", "tensor"])
@pytest.mark.parametrize("base", BASES)
def test_a_state_continues_to_the_bit(base: str, groups: str) -> None:
    """Through `torch.save` and `weights_only` loading, and by `deepcopy` and `pickle` of model and optimiser."""

    def make(model: Model) -> MetaOptimize:
        parts = [{"params": list(model.first.parameters())}, {"params": list(model.last.parameters()), "lr": 0.02}]
        return MetaOptimize(parts, 0.01, base, "adam", groups=groups)

    model = net()
    optimizer = make(model)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    twins = copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, 5, 5)

    file.seek(0)
    saved, again = torch.load(file, weights_only=True), net(seed=1)
    loaded = make(again)
    again.load_state_dict(saved["model"])
    loaded.load_state_dict(saved["optimizer"])
    for other, its in ((again, loaded), *twins):
        train(other, its, 5, 5)
        assert torch.equal(weights(other), weights(model)) and its.lr == optimizer.lr
        assert same(its.state_dict(), optimizer.state_dict())


def test_a_loaded_state_is_a_copy() -> None:
    model, other = net(), net()
    optimizer, second = MetaOptimize(model.parameters(), 0.01), MetaOptimize(other.parameters(), 0.01)
    train(model, optimizer, 3)
    other.load_state_dict(model.state_dict())
    second.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 3, 3)
    train(other, second, 3, 3)
    assert torch.equal(weights(model), weights(other))


def test_a_cleared_state_starts_again() -> None:
    model = net()
    optimizer = MetaOptimize(model.parameters(), 0.01)
    fresh = optimizer.state_dict()
    train(model, optimizer, 3)
    optimizer.state.clear()
    train(model, optimizer, 1)
    assert optimizer.state[model.first.weight]["step"] == 1
    optimizer.load_state_dict(fresh)
    assert optimizer.lr == [0.01]


def test_groups_have_their_own_hyperparameters() -> None:
    """One step from zero buffers: weight decay 0 and 0.5, learning rates 0.01 and 0.1."""
    model = net()
    backward(model)
    start = copy.deepcopy(model)
    own = {"params": model.last.parameters(), "lr": 0.1, "weight_decay": 0.5}
    optimizer = MetaOptimize([{"params": model.first.parameters()}, own], 0.01, "sgd")
    optimizer.step()
    for old, new, lr, decay in ((start.first, model.first, 0.01, 0.0), (start.last, model.last, 0.1, 0.5)):
        for q, p in zip(old.parameters(), new.parameters()):
            assert relative((q - p).detach(), lr * (gradient(p) + decay * q).detach()) < 1e-12


def test_groups_may_be_empty() -> None:
    model = net()
    for groups in ("scalar", "blockwise", "tensor"):
        optimizer = MetaOptimize([{"params": []}, {"params": model.parameters()}], 0.01, groups=groups)
        train(model, optimizer, 5)
        assert optimizer.lr[0] in (0.01, [], optimizer.lr[1]) and optimizer.lr[1] != 0.01
        assert math.isfinite(optimizer.param_groups[0]["lr"])


def test_a_scalar_keeps_the_ratio_of_the_groups() -> None:
    model = net()
    optimizer = MetaOptimize([{"params": [p], "lr": 0.01 * k} for k, p in enumerate(model.parameters(), 1)])
    train(model, optimizer, 10)
    assert optimizer.lr[0] != 0.01
    assert relative(optimizer.lr, optimizer.lr[0] * np.arange(1, 5)) < 1e-12


@pytest.mark.parametrize("groups", ["scalar", "blockwise", "tensor"])
def test_a_group_added_in_mid_training(groups: str) -> None:
    """It starts as in a new optimiser, bias corrections of base and meta rule included."""
    model = net()
    optimizer = MetaOptimize(model.first.parameters(), 0.01, meta="adam", groups=groups)
    train(model, optimizer, 5)
    old = optimizer.lr
    optimizer.add_param_group({"params": model.last.parameters(), "lr": 0.03})
    assert optimizer.lr[:1] == old and np.ravel(optimizer.lr[1]) == pytest.approx(0.03)
    late = copy.deepcopy(model.last)
    train(model, optimizer, 4, 5)
    assert optimizer.state[model.last.bias]["step"] == 4
    if groups == "scalar":
        return
    twin = MetaOptimize(late.parameters(), 0.03, meta="adam", groups=groups)
    model = net()  # the same gradients for two optimisers
    first = MetaOptimize(model.first.parameters(), 0.01, meta="adam", groups=groups)
    train(model, first, 5)
    model.last = late
    for t in range(5, 9):
        model.zero_grad()
        backward(model, t)
        first.step()
        twin.step()
    assert relative(np.ravel(twin.lr), np.ravel(optimizer.lr[1])) < 1e-12
    assert relative(np.ravel(first.lr), np.ravel(optimizer.lr[0])) < 1e-12


def test_a_closure() -> None:
    a, b = net(), net()
    mine = MetaOptimize(a.parameters(), 0.01)

    def closure() -> Tensor:
        mine.zero_grad()
        return backward(a, 0)

    assert mine.step(closure).item() == backward(b, 0).item()
    MetaOptimize(b.parameters(), 0.01).step()
    assert torch.equal(weights(a), weights(b))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    """Without gradients nothing moves; with gradients of zero the momentum does."""
    model = net()
    optimizer = MetaOptimize(model.parameters(), 0.01)
    train(model, optimizer, 3)
    before, lr = weights(model), optimizer.lr
    optimizer.zero_grad(set_to_none)
    optimizer.step()
    assert torch.equal(weights(model), before) == set_to_none == (optimizer.lr == lr)


@pytest.mark.parametrize("groups", ["scalar", "blockwise", "tensor"])
def test_frozen_parameters_stop_nothing(groups: str) -> None:
    """Frozen from the start, they do not matter at all; frozen later, they keep their weights, states and rate."""

    def make(model: Model, all_of_it: bool = True) -> MetaOptimize:
        parts = [{"params": model.first.parameters()}, {"params": model.last.parameters()}][: 1 + all_of_it]
        return MetaOptimize(parts, 0.01, groups=groups)

    a, b = net(), net()
    for model in (a, b):
        model.last.requires_grad_(False)
    mine, alone = make(a), make(b, all_of_it=False)
    train(a, mine, 10)
    train(b, alone, 10)
    assert torch.equal(weights(a), weights(b)) and mine.lr[0] == alone.lr[0] and np.ravel(mine.lr[0])[0] != 0.01

    a.last.requires_grad_()
    train(a, mine, 5)
    a.last.requires_grad_(False)
    mine.zero_grad()
    before, lr, state = weights(a.last), mine.lr, copy.deepcopy(mine.state[a.last.weight])
    train(a, mine, 5)
    assert torch.equal(weights(a.last), before) and all(
        torch.equal(x, mine.state[a.last.weight][n]) for n, x in state.items()
    )
    assert mine.lr[0] != lr[0] and (mine.lr[1] == lr[1]) == (groups != "scalar")


def test_an_assigned_learning_rate_is_gone_on_from() -> None:
    """A scheduler that multiplies composes with the adaptation; here the meta rule moves by 1 % a step."""
    for groups in ("scalar", "blockwise", "tensor"):
        model = net()
        optimizer = MetaOptimize(model.parameters(), 0.01, meta_step_size=0.01, groups=groups)
        scheduler = ExponentialLR(optimizer, 0.5)
        train(model, optimizer, 2)
        before = optimizer.lr[0]
        scheduler.step()
        assert relative(optimizer.lr[0], np.multiply(0.5, before)) < 1e-12
        train(model, optimizer, 1)
        assert np.abs(np.log(np.ravel(optimizer.lr[0]) / np.ravel(before) * 2)) == pytest.approx(0.01)


def test_grad_scaler_skips_infinite_gradients() -> None:
    """Scaled by 2^16 and unscaled it takes the plain steps; an infinite gradient changes nothing but the scale."""
    a, b = net(torch.float32), net(torch.float32)
    mine, plain, scaler = MetaOptimize(a.parameters()), MetaOptimize(b.parameters()), torch.amp.GradScaler("cpu")
    train(b, plain, 4)
    for t in range(4):
        mine.zero_grad()
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(t))
        scaler.scale(cross_entropy(a(x), (x[:, 0] > 0).long())).backward()
        scaler.step(mine)
        scaler.update()
    assert torch.equal(weights(a), weights(b)) and mine.lr == plain.lr
    before, states = weights(a), [copy.deepcopy(state) for state in mine.state.values()]
    gradient(a.first.bias)[0] = math.inf
    scaler.step(mine)
    scaler.update()
    assert torch.equal(weights(a), before) and scaler.get_scale() == 2.0**15
    for state, now in zip(states, mine.state.values()):
        assert all(torch.equal(x, now[n]) for n, x in state.items() if isinstance(x, Tensor))


def test_a_nan_gradient_shows_in_the_learning_rate() -> None:
    for base in BASES:
        model = net()
        optimizer = MetaOptimize(model.parameters(), 0.01, base)
        train(model, optimizer, 2)
        gradient(model.first.bias)[0] = math.nan
        optimizer.step()
        assert math.isnan(optimizer.lr[0])
        optimizer.step()
        assert weights(model).isnan().all()


def test_compiled_models_and_compiled_training_steps() -> None:
    models = [net() for _ in range(3)]
    optimizers = [MetaOptimize(m.parameters(), 0.01) for m in models]
    fast: Any = torch.compile(models[1], backend="aot_eager")
    whole: Any = torch.compile(train, backend="eager")
    train(models[0], optimizers[0], 4)
    train(fast, optimizers[1], 4)
    whole(models[2], optimizers[2], 4)
    for model, optimizer in zip(models[1:], optimizers[1:]):
        assert relative(weights(model), weights(models[0])) < 1e-12
        assert relative(optimizer.lr, optimizers[0].lr) < 1e-12


@pytest.mark.parametrize("base", BASES)
def test_weights_in_any_order_of_the_memory(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels last with gradients that are not, a slice of a larger tensor, a number, and tensors larger than a piece:
    the same as contiguous weights, tensor by tensor."""
    monkeypatch.setattr("gradtune.optim.foreach.PIECE", 100)
    torch.manual_seed(0)
    like = [torch.randn(shape).double() for shape in ((4, 3, 2, 2), (5, 6), (), (3, 50), (7,))]
    mixed = [x.clone() for x in like]
    mixed[0] = mixed[0].to(memory_format=torch.channels_last)
    mixed[1] = torch.empty(5, 12).double()[:, ::2].copy_(like[1])
    mixed[3] = mixed[3].T.contiguous().T
    ends, traces, rates, targets = [], [], [], [x.cos() for x in like]
    for tensors in (like, mixed):
        params = [x.requires_grad_() for x in tensors]
        optimizer = MetaOptimize(params, 0.01, base)
        for t in range(4):
            for p, x in zip(params, targets):
                p.grad = (p - t * x).detach().contiguous()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in params]))
        traces.append(torch.cat([optimizer.state[p]["trace"].flatten() for p in params]))
        rates.append(optimizer.lr[0])
    assert not mixed[1].is_contiguous() and rates[0] != 0.01
    assert relative(ends[1], ends[0]) < 1e-12 and relative(traces[1], traces[0]) < 1e-12
    assert rates[1] == pytest.approx(rates[0], rel=1e-12)


@pytest.mark.parametrize("form", ["ours", "package"])
@pytest.mark.parametrize("groups", ["scalar", "tensor"])
@pytest.mark.parametrize("base", BASES)
def test_nothing_waits_for_a_device(base: str, groups: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that claim to be on a GPU and have no values: any read of a value, or a mix of devices, would fail."""

    def kernel(*lists: list[Tensor], lr: Tensor, **_: Any) -> None:  # the fused one needs a device
        assert {(x.device.type, x.dtype) for x in (*chain(*lists), lr)} == {("cuda", torch.float32)}

    monkeypatch.setattr(torch, "_fused_adamw_", kernel)
    with FakeTensorMode():
        params = [
            torch.empty(5, 3, device="cuda", requires_grad=True),
            torch.empty(5, device="cuda", requires_grad=True),
        ]
        optimizer = MetaOptimize(params, 0.01, base, meta="adam", groups=groups, weight_decay=0.1, form=form)
        for _ in range(2):
            for p in params:
                p.grad = torch.empty_like(p)
            optimizer.step()
        assert optimizer.param_groups[0]["lr"].device.type == "cuda"
        with pytest.raises(DataDependentOutputException):
            _ = optimizer.lr  # the read-out waits: the check can fail


def test_half_precision_and_mixed_types() -> None:
    model = net(torch.float32)
    model.last.to(torch.bfloat16)
    optimizer = MetaOptimize(model.parameters(), 0.01)
    for t in range(3):
        optimizer.zero_grad()
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(t))
        model(x).float().square().mean().backward()
        optimizer.step()
    assert weights(model).isfinite().all() and optimizer.lr[0] != 0.01
    assert optimizer.state[model.last.weight]["trace"].dtype == torch.bfloat16
    assert optimizer.state_dict()["state"][2]["step"].dtype == torch.float32


def test_pieces_are_of_a_useful_size() -> None:
    size = 50
    params = [torch.zeros(n) for n in (10, 3 * size + 1, 20, 30, size)]
    bucket = Bucket({}, 0, params, params, {"trace": params, "step": [torch.tensor(1.0)] * 5})
    sizes = [[len(p) for p in piece.params] for piece in bucket.pieces(size)]
    assert sizes == [[10, 50], [50], [50], [1, 20, 30], [50]]
    assert all(len(piece.states["step"]) == len(piece.params) for piece in bucket.pieces(size))


# --- Mistakes ---------------------------------------------------------------------------------------------------------


def _sparse() -> None:
    layer = nn.Embedding(5, 2, sparse=True)
    other = nn.Linear(2, 1)
    other(layer(torch.tensor([1, 2]))).sum().backward()
    before = weights(other)
    try:
        MetaOptimize([*other.parameters(), *layer.parameters()]).step()
    finally:
        assert torch.equal(weights(other), before)


def _load(state: dict[str, Any], **arguments: Any) -> None:
    MetaOptimize(net().parameters(), **arguments).load_state_dict(state)


def _make(params: Any = None, **arguments: Any) -> MetaOptimize:
    return MetaOptimize(net().parameters() if params is None else params, **arguments)


def _trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    train(model, optimizer, 1)
    return optimizer.state_dict()


def _adamw_state() -> dict[str, Any]:
    model = net()
    return _trained(torch.optim.AdamW(model.parameters()), model)


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: _make([]), "MetaOptimize got no parameters; expected some, such as model.parameters()"),
    (lambda: _make([{"params": []}]), "MetaOptimize got no parameters"),
    (lambda: _make(net()), r"params is a Model; expected parameters, such as model.parameters\(\)"),
    (lambda: _make(base="adamW"), "unknown base of MetaOptimize 'adamW'; did you mean 'adamw'"),
    (lambda: _make(meta="lions"), "unknown meta rule of MetaOptimize 'lions'; did you mean 'lion'"),
    (
        lambda: _make(meta=0.1),
        "meta is a float; expected one of sgd, adam, lion, rmsprop, or a rule of gradtune.recursion.outer",
    ),
    (lambda: _make(groups="block"), "unknown groups of MetaOptimize 'block'; did you mean 'blockwise'"),
    (lambda: _make(form="our"), "unknown form of MetaOptimize 'our'; did you mean 'ours'"),
    (lambda: _make(gamma=0.0), r"the discount gamma is 0.0; expected a number in \(0, 1\]"),
    (lambda: _make(gamma=1.01), "the discount gamma is 1.01"),
    (lambda: _make(lr=-0.1), "lr = -0.1 in parameter group 0; expected a number >= 0"),
    (lambda: _make(lr=math.nan), "lr = nan in parameter group 0"),
    (lambda: _make(lr="0.1"), "lr = '0.1' in parameter group 0; expected a number >= 0"),
    (lambda: _make([{"params": net().parameters(), "lr": -1.0}]), "lr = -1.0 in parameter group 0"),
    (lambda: _make(weight_decay=-0.1), "weight_decay = -0.1 in parameter group 0; expected a number >= 0"),
    (lambda: _make(betas=(0.9, 1.0)), r"betas = \(0.9, 1.0\) in parameter group 0; expected two numbers in \[0, 1\)"),
    (lambda: _make(betas=0.9), r"betas = 0.9 in parameter group 0; expected two numbers"),
    (lambda: _make(base="sgdm", momentum=1.0), "momentum = 1.0 in parameter group 0"),
    (lambda: _make(base="sgd", momentum=0.9), "the base 'sgd' has no momentum; leave it out .it has weight_decay."),
    (lambda: _make(meta_step_size=-1.0), "the meta step size is -1.0; expected a number >= 0"),
    (lambda: _make(steps=0), "steps is 0; expected the number of steps that the training will take, at least 1"),
    (lambda: _make(steps=1e3), "steps is 1000.0; expected the number of steps"),
    (lambda: _make(steps=100, meta_step_size=0.1), "steps chooses the meta step size .* leave it out beside meta_step"),
    (lambda: _make(steps=100, meta="sgd"), "steps chooses the meta step size of the meta rules lion, adam and rmsprop"),
    (lambda: _make(steps=100, meta=Lion(0.1)), "with a rule that has a step size of its own"),
    (_sparse, "parameter 2 of group 0 has a sparse gradient, and MetaOptimize needs dense ones; build the layer"),
    (
        lambda: _load(_make().state_dict(), base="lion"),
        "the state is of an optimiser with base = 'adamw', and this one has 'lion'; load it into a MetaOptimize with",
    ),
    (lambda: _load(_make(meta="adam").state_dict()), "with meta = 'Adam', and this one has 'Lion'"),
    (lambda: _load(_adamw_state()), "the state is of an optimiser with base = None"),
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES)
def test_mistakes_are_one_sentence(mistake: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(GradtuneError, match=sentence):
        mistake()


def test_a_refused_group_leaves_the_optimiser_as_it_was() -> None:
    model = net()
    optimizer = MetaOptimize(model.first.parameters(), groups="blockwise")
    with pytest.raises(GradtuneError, match="lr = -1 in parameter group 1"):
        optimizer.add_param_group({"params": model.last.parameters(), "lr": -1})
    optimizer.add_param_group({"params": model.last.parameters(), "lr": 0.2})
    assert optimizer.lr == [1e-4, 0.2]


def test_importing_the_library_stays_light() -> None:
    code = "import sys, gradtune; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
