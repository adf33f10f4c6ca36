"""Convolution, batch norm, the tangent of SGD and swapped modules: what is faster is still exact."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.functional import cross_entropy

from gradtune.errors import GradtuneError
from gradtune.nets.layout import Layout
from gradtune.nets.modules import batched
from gradtune.nets.second_order import lean
from gradtune.nets.swapped import Places
from gradtune.nets.wide_resnet import wrn
from gradtune.recursion import rules
from gradtune.recursion import step as core
from gradtune.recursion.hypers import Granularity, Hyper, Hypers
from gradtune.recursion.step import Step, Tangent, initial_state
from problems import Net

torch.manual_seed(0)


def derivatives(net: nn.Module, x: Tensor, context: Any) -> list[Tensor]:
    """Loss, gradient and a Hessian product in weights and input, and the buffers afterwards."""
    inputs = [*net.parameters(), x.requires_grad_()]
    with context:
        loss = net(x).square().sin().sum()
    grads = torch.autograd.grad(loss, inputs, create_graph=True)
    rng = torch.Generator().manual_seed(1)
    seeds = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in inputs]
    return [loss, *grads, *torch.autograd.grad(grads, inputs, seeds), *(b.double() for b in net.buffers())]


def _case(layer: nn.Module, *shape: int) -> tuple[nn.Sequential, Tensor]:
    return nn.Sequential(nn.Tanh(), layer, nn.Tanh()), torch.randn(shape, dtype=torch.float64)


CASES: dict[str, Callable[[], tuple[nn.Sequential, Tensor]]] = {
    "plain": lambda: _case(nn.Conv2d(3, 4, 3), 2, 3, 7, 7),
    "stride and padding": lambda: _case(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), 2, 3, 7, 7),
    "uneven": lambda: _case(nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=(0, 1)), 2, 3, 7, 7),
    "groups and dilation": lambda: _case(nn.Conv2d(4, 6, 3, groups=2, dilation=2), 2, 4, 8, 8),
    "few channels": lambda: _case(nn.Conv2d(6, 5, 3, stride=2), 2, 6, 7, 7),
    "few channels, no bias": lambda: _case(nn.Conv2d(6, 5, 3, bias=False), 2, 6, 7, 7),
    "same": lambda: _case(nn.Conv2d(3, 4, 3, padding="same"), 2, 3, 5, 5),
    "reflected": lambda: _case(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), 2, 3, 5, 5),
    "no batch": lambda: _case(nn.Conv2d(3, 4, 3), 3, 7, 7),
    "1d": lambda: _case(nn.Conv1d(3, 4, 3, padding=1), 2, 3, 7),
    "3d": lambda: _case(nn.Conv3d(2, 3, 2), 2, 2, 4, 4, 4),
    "norm": lambda: _case(nn.BatchNorm2d(3), 4, 3, 5, 5),
    "norm of rows": lambda: _case(nn.BatchNorm1d(3), 6, 3),
    "norm without weights": lambda: _case(nn.BatchNorm2d(3, affine=False), 4, 3, 5, 5),
    "norm without statistics": lambda: _case(nn.BatchNorm2d(3, track_running_stats=False), 4, 3, 5, 5),
    "norm in eval mode": lambda: _case(nn.BatchNorm2d(3).eval(), 4, 3, 5, 5),
    "relu": lambda: _case(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(inplace=True)), 3, 4),
    "wide residual net": lambda: (wrn(10), torch.randn(4, 3, 8, 8, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", CASES)
def test_lean_derivatives_are_torchs(name: str) -> None:
    (net, x), found = CASES[name](), []
    net, start = net.double(), {n: v.clone() for n, v in net.double().state_dict().items()}
    for context in (nullcontext(), lean()):
        net.load_state_dict(start)
        found.append(derivatives(net, x, context))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_frozen_weights_and_missing_cotangents() -> None:
    net, x = CASES["plain"]()
    net.double()
    found = []
    for context in (nullcontext(), lean()):
        with context:
            loss = net(x).square().sin().sum()
        weight, bias = net[1].parameters()
        for inputs in ([bias], [weight]):
            (g,) = torch.autograd.grad(loss, inputs, create_graph=True)
            found.append(torch.autograd.grad(g.sin().sum(), inputs, retain_graph=True)[0])
    assert torch.allclose(found[0], found[2]) and torch.allclose(found[1], found[3])


def test_frozen_inputs_of_few_channels() -> None:
    """The weights' gradient is taken on its own, the bias along with it."""
    net, x = CASES["few channels"]()
    net.double()
    found = []
    for context in (nullcontext(), lean()):
        with context:
            loss = net[1](x).sin().sum()
        found.append(torch.autograd.grad(loss, list(net.parameters())))
    assert all(torch.allclose(a, b) for a, b in zip(*found, strict=True))


def test_a_third_derivative_of_batch_norm_is_refused() -> None:
    net, x = CASES["norm"]()
    w, _ = net.double()[1].parameters()
    with lean():
        loss = net(x).sin().sum()
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    with pytest.raises(GradtuneError, match="a third derivative was asked for"):
        torch.autograd.grad(g.sin().sum(), w, create_graph=True)


# --- where torch's own formulas stay in charge ------------------------------------------------------------------------


def several(call: Callable[..., Tensor], *inputs: Tensor) -> list[list[Tensor]]:
    """Loss, gradient and Hessian product of runs side by side: without and with the context."""
    found = []
    for context in (nullcontext, lean):

        def single(*inputs: Tensor, context: Any = context) -> Tensor:
            with context():
                return call(*inputs).square().sin().sum()

        leaves = [x.clone().requires_grad_() for x in inputs]
        losses = torch.func.vmap(single)(*leaves)
        grads = torch.autograd.grad(losses.sum(), leaves, create_graph=True)
        found.append([losses, *grads, *torch.autograd.grad([g.sin().sum() for g in grads], leaves)])
    return found


NAMED: dict[str, Callable[..., Tensor]] = {
    "all by name": lambda x, w: F.conv2d(input=x, weight=w),
    "weights by name": lambda x, w: F.conv2d(x, weight=w, padding=1),
    "images that the runs share": lambda x, w: F.conv2d(torch.ones(2, 3, 5, 5, dtype=x.dtype), weight=w) * x.sum(),
    "relu": lambda x, w: F.relu(input=x) * w.sum(),
    "norm": lambda x, w: F.batch_norm(
        input=x, running_mean=None, running_var=None, weight=w[0, :, 0, 0], bias=w[1, :, 0, 0], training=True
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_arguments_by_name_under_vmap(name: str) -> None:
    x = torch.randn(2, 2, 3, 5, 5, dtype=torch.float64)
    w = torch.randn(2, 4, 3, 3, 3, dtype=torch.float64)
    for a, b in zip(*several(NAMED[name], x, w), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_arguments_by_name_have_the_lean_derivatives() -> None:
    x, w = torch.randn(2, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 3, 3)
    with lean():
        y = F.conv2d(input=x, weight=w)
    assert type(y.grad_fn).__name__ == "_ConvolutionBackward"


FORMS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "norm with a plain mean": lambda: (nn.BatchNorm1d(3, momentum=None), torch.randn(4, 3, 5)),
    "norm without statistics": lambda: (nn.BatchNorm1d(3, track_running_stats=False), torch.randn(4, 3)),
    "synchronised norm": lambda: (nn.SyncBatchNorm(3), torch.randn(4, 3, 5)),
    "norm of half precision in float32": lambda: (nn.BatchNorm1d(3), torch.randn(4, 3, 5).bfloat16()),
    "norm of half precision": lambda: (nn.BatchNorm1d(3).bfloat16(), torch.randn(4, 3, 5).bfloat16()),
    "norm of an empty batch": lambda: (nn.BatchNorm1d(3), torch.randn(0, 3)),
    "norm of empty images": lambda: (nn.BatchNorm2d(3), torch.randn(0, 3, 4, 4)),
    "convolution of an empty batch": lambda: (nn.Conv2d(3, 4, 3), torch.randn(0, 3, 7, 7)),
    "complex convolution": lambda: (
        nn.Conv1d(3, 4, 3).to(torch.complex64),
        torch.randn(2, 3, 7, dtype=torch.complex64),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_other_forms_are_torchs(name: str) -> None:
    torch.manual_seed(0)
    (net, x), found = FORMS[name](), []
    start = {n: v.clone() for n, v in net.state_dict().items()}
    for context in (nullcontext(), lean()):
        net.load_state_dict(start)
        weights = list(net.parameters())
        with context:
            loss = net(x).abs().float().square().sin().sum()
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        squares = [g.abs().float().square().sum() for g in grads]
        found.append([loss, *grads, *torch.autograd.grad(squares, weights), *net.buffers()])
    tolerance = 2e-2 if x.dtype == torch.bfloat16 else 1e-4
    for a, b in zip(*found, strict=True):
        size = float(b.abs().max()) if b.numel() else 0.0  # sums cancel: rounding is that of their largest
        assert a.dtype == b.dtype and torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, size))


@pytest.mark.parametrize("layer, shape", [(nn.BatchNorm1d(3), (1, 3)), (nn.BatchNorm2d(3), (3, 3))])
def test_torch_says_what_is_wrong_with_an_input(layer: nn.Module, shape: tuple[int, ...]) -> None:
    with lean(), pytest.raises(ValueError, match="xpected"):
        layer(torch.randn(shape))
    with lean(), pytest.raises((RuntimeError, ValueError)):
        F.batch_norm(torch.randn(3), None, None, torch.ones(3), torch.zeros(3), True)


class Images:
    """Six images, a small residual net, float64."""

    stationary = False

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(2)
        self.x = torch.randn(6, 3, 8, 8, generator=rng, dtype=torch.float64)
        self.y = torch.randint(10, (6,), generator=rng)
        net = wrn(10).double()
        self.layout, self.loss = Layout.of(net), batched(net, cross_entropy)
        self.w = self.layout.flatten(dict(net.named_parameters()))[None]

    def train_loss(self, w: Tensor, lam: Any, t: int) -> Tensor:
        return self.loss(w, self.x, self.y)

    val_loss = train_loss


def products(problem: Any, runs: int) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian products of two columns, `[R, 2, D]`."""
    rule, w = rules.sgd(momentum=False), problem.w.repeat(runs, 1)
    hypers = Hypers([Hyper("lr", 0.1), Hyper("weight_decay", 0.1)], problem.layout.sizes)
    step = Step(problem, rule, hypers.at(*hypers.init(w)), initial_state(w, rule), 0, curvature=True)
    z = torch.randn(1, 2, w.shape[1], generator=torch.Generator().manual_seed(3), dtype=w.dtype).repeat(runs, 1, 1)
    return step.g.detach(), step.gradient_tangent(z, step.values.tangents())


def test_a_step_uses_them_alone_and_agrees_with_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Images()
    fast, several = products(problem, 1), products(problem, 2)
    monkeypatch.setattr(core, "wanted", nullcontext)
    slow = products(problem, 1)
    for a, b, c in zip(fast, slow, several, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11) and torch.allclose(c, a.expand_as(c), rtol=1e-9, atol=1e-11)


# --- the tangent of SGD -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["global", "tensor", "weight"])
@pytest.mark.parametrize("options", [(False, False), (False, True), (True, False), (True, True), (True, True, True)])
def test_the_written_tangent_is_the_automatic_one(options: tuple[bool, ...], granularity: Granularity) -> None:
    momentum, decay, nesterov = (*options, False)[:3]
    rule = rules.sgd(momentum=momentum, weight_decay=decay, nesterov=nesterov)
    problem = Net()
    values = {"lr": 0.1, "momentum": 0.7, "weight_decay": 0.2}
    for tuned in (rule.hypers, rule.hypers[:1]):
        hypers = Hypers(
            [Hyper(n, values[n], granularity=granularity, tuned=n in tuned) for n in rule.hypers], problem.layout.sizes
        )
        w = problem.init(2)
        state = initial_state(w, rule)._replace(buf={n: torch.randn_like(w) for n in rule.buffers})
        now = hypers.at(*hypers.init(w))
        g_dot = torch.randn(2, hypers.columns, 21, dtype=w.dtype)
        z = Tangent(torch.randn_like(g_dot), {n: torch.randn_like(g_dot) for n in rule.buffers})
        ends = [
            Step(problem, each, now, state, 0, curvature=False).push(z, now.tangents(), g_dot)
            for each in (rule, replace(rule, tangent=None))
        ]
        assert torch.allclose(ends[0].w, ends[1].w, rtol=1e-12)
        assert all(torch.allclose(ends[0].buf[n], ends[1].buf[n], rtol=1e-12) for n in rule.buffers)


def test_a_clipped_rule_has_no_tangent_of_its_own() -> None:
    assert rules.sgd().tangent is not None and rules.clipped(rules.sgd(), 1.0).tangent is None


# --- wide residual nets -----------------------------------------------------------------------------------------------


def test_wrn_16_1_is_the_papers() -> None:
    net = wrn()
    assert sum(p.numel() for p in net.parameters()) == 175_066
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 15 and all(m.bias is None for m in convolutions)  # 13 of 3 x 3 and two shortcuts
    last = convolutions[-1].weight  # Xavier: variance 2 / (fan in + fan out)
    assert abs(float(last.std()) / (2 / (2 * 64 * 9)) ** 0.5 - 1) < 0.02


@pytest.mark.parametrize("depth", [4, 15, 18])
def test_a_wrong_depth_is_named(depth: int) -> None:
    with pytest.raises(GradtuneError, match=rf"depth is {depth}; expected 6 n \+ 4 with n >= 1"):
        wrn(depth)


# --- swapped modules --------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A linear layer used twice under two names, and a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.first(x).tanh()))


def test_a_swapped_module_is_functional_call() -> None:
    net, x = Tied(), torch.randn(5, 4)
    params = {n: torch.randn_like(p).requires_grad_() for n, p in net.named_parameters()}
    before, found = dict(net.named_parameters()), []
    for call in ("swapped", "functional"):
        buffers = {n: b.clone() for n, b in net.named_buffers()}
        if call == "swapped":
            with Places(net).swapped(params, buffers):
                y = net(x)
        else:
            y = functional_call(net, {**params, **buffers}, (x,))
        found.append([y, *torch.autograd.grad(y.sin().sum(), tuple(params.values())), *buffers.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(p is before[n] for n, p in net.named_parameters()) and net.second.weight is net.first.weight


def test_a_module_that_fails_is_put_back() -> None:
    net = Tied()
    before = list(net.parameters())
    with pytest.raises(RuntimeError), Places(net).swapped({"first.weight": torch.zeros(3, 3)}):
        net(torch.zeros(5, 4))
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
