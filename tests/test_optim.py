"""`gradhpo.optim.MetaOptimize`: the numbers of the generic loop and of the published programs, and what torch's own
optimisers can do."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradhpo import methods
from gradhpo.errors import GradhpoError
from gradhpo.foreach import BASES
from gradhpo.hypers import Hyper, Hypers
from gradhpo.optim import MetaOptimize
from gradhpo.outer import SGD, Adam, Lion, Outer, RMSprop
from gradhpo.rules import Rule, adamw, lion, rmsprop, sgd
from gradhpo.train import Loop
from problems import Net
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim.lr_scheduler import ExponentialLR

FOLDER = Path(__file__).parent / "reference"
ORDER = ("W1", "b1", "W2", "b2", "W3", "b3")


def net(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    """Gradients of a batch of its own."""
    p = next(model.parameters())
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).to(p)
    loss = cross_entropy(model(x), (x[:, 0] > 0).long())
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for t in range(first, first + steps):
        optimizer.zero_grad()
        backward(model, t)
        optimizer.step()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


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
STEPS = 7
METAS: dict[str, Outer] = {"sgd": SGD(0.01), "adam": Adam(0.01), "lion": Lion(0.01), "rmsprop": RMSprop(0.01)}


@pytest.mark.parametrize("form", ["ours", "package"])
@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("base", RULES)
def test_the_generic_loop(base: str, meta: str, form: str) -> None:
    """`methods.metaoptimize_hf` in `train.Loop`."""
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
    assert name in {case["name"] for case in json.loads((FOLDER / "metaoptimize_mlp.json").read_text())}
    z = dict(np.load(FOLDER / "metaoptimize_mlp.npz"))
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
        exact = -1e-7 * (q.grad.double() / (q.grad.double().abs() + 1e-8) + 0.01 * q.double())  # type: ignore[union-attr]
        assert relative(optimizer.state[p]["trace"], exact.detach().float()) < 1e-5


def test_it_learns_and_finds_a_learning_rate() -> None:
    """From a learning rate 1000 times too small."""
    model, optimizer = net(), None
    optimizer = MetaOptimize(model.parameters(), 1e-5, meta_step_size=0.02)
    before = backward(model).item()
    train(model, optimizer, 400)
    assert backward(model).item() < 0.2 * before and optimizer.lr[0] > 1e-3


# --- An optimiser as torch has them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", ["scalar", "blockwise", "tensor"])
@pytest.mark.parametrize("base", BASES)
def test_a_state_continues_to_the_bit(base: str, groups: str) -> None:
    """Through `torch.save`, as safely as `weights_only` loads, and by `deepcopy` of model and optimiser together."""

    def make(model: nn.Sequential) -> MetaOptimize:
        parts = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters()), "lr": 0.02}]
        return MetaOptimize(parts, 0.01, base, "adam", groups=groups)

    model = net()
    optimizer = make(model)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    twins = copy.deepcopy((model, optimizer))
    train(model, optimizer, 5, 5)

    file.seek(0)
    saved, again = torch.load(file, weights_only=True), net(seed=1)
    loaded = make(again)
    again.load_state_dict(saved["model"])
    loaded.load_state_dict(saved["optimizer"])
    for other, its in ((again, loaded), twins):
        train(other, its, 5, 5)
        assert torch.equal(weights(other), weights(model)) and its.lr == optimizer.lr
        assert its.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


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
    assert optimizer.state[model[0].weight]["step"] == 1
    optimizer.load_state_dict(fresh)
    assert optimizer.lr == [0.01]


def test_groups_have_their_own_hyperparameters() -> None:
    """One step from zero buffers: weight decay 0 and 0.5, learning rates 0.01 and 0.1."""
    model = net()
    backward(model)
    start = copy.deepcopy(model)
    own = {"params": model[2].parameters(), "lr": 0.1, "weight_decay": 0.5}
    optimizer = MetaOptimize([{"params": model[0].parameters()}, own], 0.01, "sgd")
    optimizer.step()
    for layer, lr, decay in ((0, 0.01, 0.0), (2, 0.1, 0.5)):
        for p, q in zip(model[layer].parameters(), start[layer].parameters()):
            assert relative((q - p).detach(), lr * (p.grad + decay * q).detach()) < 1e-12  # type: ignore[operator]


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
    optimizer = MetaOptimize(model[0].parameters(), 0.01, meta="adam", groups=groups)
    train(model, optimizer, 5)
    old = optimizer.lr
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.03})
    assert optimizer.lr[:1] == old and np.ravel(optimizer.lr[1]) == pytest.approx(0.03)
    late = copy.deepcopy(model[2])
    train(model, optimizer, 4, 5)
    assert optimizer.state[model[2].bias]["step"] == 4
    if groups == "scalar":
        return
    twin = MetaOptimize(late.parameters(), 0.03, meta="adam", groups=groups)
    model, first = net(), MetaOptimize(model[0].parameters(), 0.01)  # the same gradients, from the start
    first = MetaOptimize(model[0].parameters(), 0.01, meta="adam", groups=groups)
    train(model, first, 5)
    model[2] = late
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

    def make(model: nn.Sequential, all_of_it: bool = True) -> MetaOptimize:
        parts = [{"params": model[0].parameters()}, {"params": model[2].parameters()}][: 1 + all_of_it]
        return MetaOptimize(parts, 0.01, groups=groups)

    a, b = net(), net()
    for model in (a, b):
        model[2].requires_grad_(False)
    mine, alone = make(a), make(b, all_of_it=False)
    train(a, mine, 10)
    train(b, alone, 10)
    assert torch.equal(weights(a), weights(b)) and mine.lr[0] == alone.lr[0] and np.ravel(mine.lr[0])[0] != 0.01

    a[2].requires_grad_()
    train(a, mine, 5)
    a[2].requires_grad_(False)
    mine.zero_grad()
    before, lr, state = weights(a[2]), mine.lr, copy.deepcopy(mine.state[a[2].weight])
    train(a, mine, 5)
    assert torch.equal(weights(a[2]), before) and all(
        torch.equal(x, mine.state[a[2].weight][n]) for n, x in state.items()
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
    before, state = weights(a), copy.deepcopy(mine.state_dict())
    a[0].bias.grad[0] = math.inf
    scaler.step(mine)
    scaler.update()
    assert torch.equal(weights(a), before) and scaler.get_scale() == 2.0**15
    assert str(mine.state_dict()) == str(state)


def test_a_nan_gradient_shows_in_the_learning_rate() -> None:
    for base in BASES:
        model = net()
        optimizer = MetaOptimize(model.parameters(), 0.01, base)
        train(model, optimizer, 2)
        model[0].bias.grad[0] = math.nan
        optimizer.step()
        assert math.isnan(optimizer.lr[0])
        optimizer.step()
        assert weights(model).isnan().all()


def test_compiled_models_train() -> None:
    a, b = net(), net()
    fast = torch.compile(b, backend="aot_eager")
    mine, compiled = MetaOptimize(a.parameters(), 0.01), MetaOptimize(fast.parameters(), 0.01)
    train(a, mine, 5)
    train(fast, compiled, 5)  # type: ignore[arg-type]
    assert relative(weights(b), weights(a)) < 1e-12 and relative(compiled.lr, mine.lr) < 1e-12


def test_other_memory_formats_and_types() -> None:
    """A gradient whose strides differ from its weights' is read by index, not by place in the memory."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 2).double()
    other = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    x = torch.randn(5, 3, 4, 4).double()
    mine = [MetaOptimize(m.parameters(), 0.01) for m in (conv, other)]
    for _ in range(4):
        for model, optimizer in zip((conv, other), mine):
            optimizer.zero_grad()
            mse_loss(model(x), torch.zeros(5, 4, 3, 3).double()).backward()
            for p in model.parameters():
                p.grad = p.grad.contiguous()  # type: ignore[union-attr]
            optimizer.step()
    assert not other.weight.is_contiguous()
    assert relative(weights(other), weights(conv)) < 1e-12 and mine[0].lr == pytest.approx(mine[1].lr, rel=1e-12)


def test_half_precision_and_mixed_types() -> None:
    model = net(torch.float32)
    model[2].to(torch.bfloat16)
    optimizer = MetaOptimize(model.parameters(), 0.01)
    for t in range(3):
        optimizer.zero_grad()
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(t))
        model[2](model[1](model[0](x)).bfloat16()).float().square().mean().backward()
        optimizer.step()
    assert weights(model).isfinite().all() and optimizer.lr[0] != 0.01
    assert optimizer.state[model[2].weight]["trace"].dtype == torch.bfloat16
    assert optimizer.state_dict()["state"][2]["step"].dtype == torch.float32
