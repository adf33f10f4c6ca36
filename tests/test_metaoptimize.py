"""MetaOptimize: published numbers, plain loops, closed forms, and the definitions of its sums by brute force."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradhpo import methods
from gradhpo.core import State
from gradhpo.errors import GradhpoError
from gradhpo.estimators.forward import Forward
from gradhpo.estimators.trace import IDBD, Trace
from gradhpo.hypers import Granularity, Hyper, Hypers
from gradhpo.metaoptimize import Meta, MetaOptimize, MetaRun
from gradhpo.modules import Layout, batched
from gradhpo.outer import SGD, Adam, Lion, Outer, RMSprop
from gradhpo.rules import Buffers, Rule, adamw, lion, rmsprop, sgd
from gradhpo.train import Loop, Method, Run
from problems import Net
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

FOLDER = Path(__file__).parent / "reference"
START = {"lr": 0.05, "momentum": 0.8, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}
PLAIN = sgd(momentum=False, weight_decay=False)


def relative(a: Any, b: Any) -> float:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def rates(
    rule: Rule, problem: Any, granularity: Granularity = "global", transform: str = "log", **values: Any
) -> Hypers:
    """A tuned learning rate beside the rule's other hyperparameters, all at `START` where `values` says nothing."""
    return Hypers(
        [
            Hyper(
                n,
                (START | values)[n],
                transform if n == "lr" else "identity",
                granularity if n == "lr" else "global",
                tuned=n == "lr",
            )
            for n in rule.hypers
        ],
        problem.layout.sizes,
    )


def recording(method: Method) -> tuple[Method, list[Tensor]]:
    """The method, and a list that receives its hypergradients."""
    seen: list[Tensor] = []
    assert method.outer is not None
    outer: Outer = method.outer

    class Recorder:
        def init(self, raw: Tensor) -> Any:
            return outer.init(raw)

        def update(
            self, raw: Tensor, hypergradient: Tensor, state: Any, lam: Mapping[str, Tensor]
        ) -> tuple[Tensor, Any]:
            seen.append(hypergradient)
            return outer.update(raw, hypergradient, state, lam)

    settings = {n: getattr(method, n) for n in ("every", "warm_up", "outer_loss", "immediate")}
    return Method(method.estimator, Recorder(), **settings), seen


# --- The published programs -------------------------------------------------------------------------------------------


class Classifier:
    """10-16-16-3 tanh net on the stored batches."""

    stationary = False

    def __init__(self, z: dict[str, np.ndarray]) -> None:
        self.x, self.y, self.rows = (torch.tensor(z[n]) for n in ("X", "Y", "batch_idx"))
        net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        self.layout, self.loss = Layout.of(net), batched(net, cross_entropy)
        self.w = torch.cat([torch.tensor(z[n]).reshape(-1) for n in ("W1", "b1", "W2", "b2", "W3", "b3")])[None]

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.loss(w, self.x[self.rows[t]], self.y[self.rows[t]])

    val_loss = train_loss


def lagging_sgd() -> Rule:
    """The published program's SGDm: the step takes the momentum buffer as it was before this gradient."""

    def update(w: Tensor, buf: Buffers, g: Tensor, lam: Mapping[str, Tensor]) -> tuple[Tensor, Buffers]:
        m = lam["momentum"] * buf["m"] + (1 - lam["momentum"]) * g
        return w - lam["lr"] * (buf["m"] + lam["weight_decay"] * w), {"m": m}

    return Rule("lagging sgd", ("lr", "momentum", "weight_decay"), ("m",), update)


META = Lion(0.02, (0.7, 0.9), weight_decay=0.01)
PUBLISHED: dict[str, tuple[Rule, dict[str, Any], Granularity, Method]] = {
    "pkg_AdamW_Lion_b222_wd0.1_g0.9_f64": (
        adamw(),
        {"lr": 0.03, "beta1": 0.9, "beta2": 0.999},
        (0, 0, 1, 1, 2, 2),
        methods.metaoptimize_hf(Lion(0.02, (0.9, 0.99), new_momentum=True), 0.9, form="package"),
    ),
    "hf_SGDm_Lion_scalar_g1.0": (
        lagging_sgd(),
        {"lr": 2.0, "momentum": 0.9},
        "global",
        methods.metaoptimize_hf(META),
    ),
    "hf_Lion_Lion_b222_g0.9": (
        lion(),
        {"lr": 0.01, "beta1": 0.9, "beta2": 0.99},
        (0, 0, 1, 1, 2, 2),
        methods.metaoptimize_hf(META, gamma=0.9),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(name: str) -> None:
    """All 200 steps: learning rates, hypergradients, |h| and weights. The package's h has the opposite sign of ours."""
    rule, values, granularity, method = PUBLISHED[name]
    assert name in {case["name"] for case in json.loads((FOLDER / "metaoptimize_mlp.json").read_text())}
    z = dict(np.load(FOLDER / "metaoptimize_mlp.npz"))
    task, (method, seen) = Classifier(z), recording(method)
    loop = Loop(task, rule, rates(rule, task, granularity, **values), method)
    history: list[Run] = [loop.start(task.w)]
    loop.advance(history[0], 200, history.append, watch_every=1)
    ours = {
        "alpha": torch.cat([loop.hypers.natural(r.raw)["lr"] for r in history]),
        "meta_grad": torch.cat(seen) * (-1 if name.startswith("pkg") else 1),
        "h_norm": torch.cat([r.memory.norm(dim=1) for r in history]),
        "weight_norm": torch.cat([r.state.w.norm(dim=1) for r in history]),
        "final_weights": history[200].state.w[0],
    } | {f"weights_after_{k}": history[k].state.w[0] for k in (1, 2, 10)}
    for key, value in ours.items():
        assert relative(value, z[f"{name}__{key}"]) < 1e-10, key


# --- The Hessian-free traces ------------------------------------------------------------------------------------------

BASES = [PLAIN, sgd(), sgd(nesterov=True), rmsprop(decoupled=True), adamw(), lion()]
METAS = [SGD(1e-3), Adam(0.01), Lion(0.01), RMSprop(0.01)]


@pytest.mark.parametrize("meta", METAS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("base", BASES, ids=["sgd", "sgdm", "nesterov", "rmsprop", "adamw", "lion"])
def test_every_base_with_every_meta_rule(base: Rule, meta: Any) -> None:
    """Scalar, blockwise and per weight: finite, moved, and one vector of the weights' size in each case."""
    problem = Net()
    for granularity in ("global", (0, 0, 1, 1), "weight"):
        loop = Loop(problem, base, rates(base, problem, granularity), methods.metaoptimize_hf(meta, 0.95))
        start = loop.start(problem.init(2))
        second = loop.advance(start, 2)  # h is 0 before the first step
        end = loop.advance(second, 13)
        assert end.memory.shape == end.state.w.shape
        assert end.raw.isfinite().all() and end.state.w.isfinite().all()
        assert (second.raw != start.raw).all()


def adamw_adam_by_hand(problem: Net, w: Tensor, groups: list[int], steps: int) -> tuple[Tensor, list[float]]:
    """Algorithm 3 for one run, base AdamW and meta Adam: scalars in Python lists, weight by weight."""
    n = max(groups) + 1
    rho, lam, kappa, gamma, eta, eps = 0.8, 0.95, 0.1, 0.95, 0.01, 1e-8
    weights, m, v, h = w.tolist(), *([0.0] * len(groups) for _ in range(3))
    beta, m_bar, v_bar = [math.log(0.05)] * n, [0.0] * n, [0.0] * n
    for t in range(1, steps + 1):
        leaf = torch.tensor([weights], dtype=torch.float64, requires_grad=True)
        g = torch.autograd.grad(problem.train_loss(leaf, {}, t - 1).sum(), leaf)[0][0].tolist()
        mu, nu = (1 - lam**t) ** 0.5 / (1 - rho**t), (1 - lam**t) ** 0.5
        z = [0.0] * n
        for k, group in enumerate(groups):
            alpha = math.exp(beta[group])
            m[k] = rho * m[k] + (1 - rho) * g[k]
            v[k] = lam * v[k] + (1 - lam) * g[k] ** 2
            change = -alpha * mu * m[k] / (v[k] ** 0.5 + eps * nu) - kappa * alpha * weights[k]
            z[group] += h[k] * g[k]
            weights[k] += change
            h[k] = gamma * (1 - kappa * alpha) * h[k] + change
        for group in range(n):
            m_bar[group] = 0.9 * m_bar[group] + 0.1 * z[group]
            v_bar[group] = 0.999 * v_bar[group] + 0.001 * z[group] ** 2
            corrected = m_bar[group] / (1 - 0.9**t)
            beta[group] -= eta * corrected / ((v_bar[group] / (1 - 0.999**t)) ** 0.5 + eps)
    return torch.tensor(weights, dtype=torch.float64), beta


@pytest.mark.parametrize(
    ("granularity", "trace"),
    [("global", False), ((0, 0, 1, 1), False), ("weight", False), ((0, 0, 1, 1), True)],
    ids=["scalar", "blockwise", "per weight", "blockwise traced"],
)
def test_algorithm_3_by_hand(granularity: Granularity, trace: bool) -> None:
    problem, rule = Net(stationary=trace), adamw()
    loop = Loop(
        problem, rule, rates(rule, problem, granularity), methods.metaoptimize_hf(Adam(0.01), 0.95), trace=trace
    )
    w = problem.init(2)
    end = loop.advance(loop.start(w), 30)
    groups = {"global": [0] * 21, "weight": list(range(21)), (0, 0, 1, 1): [0] * 16 + [1] * 5}[granularity]
    for run in range(2):
        weights, beta = adamw_adam_by_hand(problem, w[run], groups, 30)
        assert relative(end.state.w[run], weights) < 1e-10 and relative(end.raw[run], beta) < 1e-10


def test_a_trace_is_forward_mode_where_the_loss_is_linear() -> None:
    """Without curvature and momentum nothing is left out, weight decay included; frozen learning rates."""

    class Linear(Net):
        def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
            return (w * torch.cos(torch.arange(21.0, dtype=w.dtype) + t)).sum(-1) + 0.0 * (w * w).sum(-1)

    problem, rule = Linear(), sgd(momentum=False)
    for granularity in ("global", "tensor"):
        hypers = rates(rule, problem, granularity, "log10")
        ends = []
        for estimator in (Trace(), Forward()):
            loop = Loop(problem, rule, hypers, Method(estimator, SGD(0.0), outer_loss="training"))
            ends.append(loop.advance(loop.start(problem.init(2)), 9).memory)
        assert relative(ends[0], ends[1].w.sum(1)) < 1e-13


def test_the_step_is_differentiated_without_cancellation() -> None:
    """In float32 and at a learning rate of 1e-7 the weights hardly move; h is exact all the same."""
    problem = Net()
    problem.x, problem.y, w = problem.x.float(), problem.y.float(), problem.init(1).float()
    rule = adamw()
    loop = Loop(problem, rule, rates(rule, problem, lr=1e-7), methods.metaoptimize_hf(SGD(0.0)))
    h = loop.advance(loop.start(w), 1).memory
    exact = -1e-7 * (torch.sign(_gradient(problem, w, 0)) + 0.1 * w)
    assert relative(h, exact) < 1e-5


def _gradient(problem: Any, w: Tensor, t: int) -> Tensor:
    leaf = w.detach().clone().requires_grad_()
    return torch.autograd.grad(problem.train_loss(leaf, {}, t).sum(), leaf)[0]


# --- Hypergradient descent --------------------------------------------------------------------------------------------


def test_hd_is_eq_90() -> None:
    """beta_{t+1} = beta_t - eta H_t' g_t with H_{t+1} = dw_{t+1}/dbeta_t, by autograd through AdamW; and MetaOptimize's
    framework tends to it as gamma goes to 0."""
    problem, rule, eta = Net(), adamw(), 0.05
    w = problem.init(1)
    state, beta, h = (
        State(w, {"m": torch.zeros_like(w), "v": torch.zeros_like(w), "steps": w.new_zeros(1, 1)}),
        w.new_full((1, 1), math.log(0.05)),
        torch.zeros_like(w),
    )
    lam = {n: w.new_full((1, 1), START[n]) for n in rule.hypers}
    for t in range(12):
        g = _gradient(problem, state.w, t)

        def step(b: Tensor, state: State = state, g: Tensor = g) -> Tensor:
            return rule.update(state.w, state.buf, g, {**lam, "lr": b.exp()})[0]

        slope = torch.autograd.functional.jacobian(step, beta)[0, :, 0, 0][None]
        state = State(*rule.update(state.w, state.buf, g, {**lam, "lr": beta.exp()}))
        beta, h = beta - eta * (h * g).sum(1, keepdim=True), slope
    hypers = rates(rule, problem)
    loop = Loop(problem, rule, hypers, methods.metaoptimize_hf(SGD(eta), gamma=0.0))
    end = loop.advance(loop.start(w), 12)
    assert relative(end.raw, beta) < 1e-12 and relative(end.memory, h) < 1e-12
    for level in ("full", "2x2", "L"):
        framework = MetaOptimize(problem, rule, hypers, SGD(eta), gamma=1e-13, level=level)
        run = framework.advance(framework.start(w), 12)
        assert relative(run.meta.raw, beta) < 1e-10 and relative(run.X.w[0], h) < 1e-10


@pytest.mark.parametrize("multiplicative", [False, True])
def test_hd_is_baydins_rule(multiplicative: bool) -> None:
    """alpha_t = alpha_{t-1} + rate g_t' g_{t-1}, or alpha_{t-1} (1 + rate cos(g_t, g_{t-1})), then the step with it."""
    problem, rate = Net(), 0.02
    for start in problem.init(2):
        w, alpha, before = start[None], 0.05, torch.zeros(1, 21, dtype=torch.float64)
        for t in range(20):
            g = _gradient(problem, w, t)
            dot = float((g * before).sum())
            if multiplicative:
                alpha *= 1 + rate * (dot / float(g.norm() * before.norm()) if t else 0.0)
            else:
                alpha += rate * dot
            w, before = w - alpha * g, g
        loop = Loop(problem, PLAIN, rates(PLAIN, problem, transform="identity"), methods.hd(rate, multiplicative))
        end = loop.advance(loop.start(start[None]), 20)
        assert abs(float(end.raw) / alpha - 1) < 1e-12 and relative(end.state.w, w) < 1e-12
        assert abs(alpha / 0.05 - 1) > 0.05


# --- IDBD -------------------------------------------------------------------------------------------------------------


class LinearModel:
    """1/2 (a_t'w - b_t)^2 on a stream of rows; the diagonal of its Hessian is a_t^2."""

    stationary = False

    def __init__(self, a: Tensor) -> None:
        self.a = a
        self.b = torch.randn(len(a), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        self.layout = Layout.of(nn.Linear(a.shape[1], 1, bias=False))

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return 0.5 * (w @ self.a[t] - self.b[t]) ** 2

    val_loss = train_loss

    def curvature_diagonal(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return (self.a[t] ** 2).expand_as(w)


def stream() -> Tensor:
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_idbd_by_hand() -> None:
    """Sutton's loop, with delta = b - a'w; at a learning rate of 0.3 some factors 1 - alpha a^2 are rectified."""
    task, eta = LinearModel(stream()), 0.02
    w0 = torch.randn(2, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    loop = Loop(task, PLAIN, rates(PLAIN, task, "weight", lr=0.3), methods.idbd(eta))
    end = loop.advance(loop.start(w0), 60)
    rectified = 0
    for run in range(2):
        w, h, beta = w0[run].tolist(), [0.0] * 5, [math.log(0.3)] * 5
        for a, b in zip(task.a.tolist(), task.b.tolist(), strict=True):
            delta = b - sum(x * y for x, y in zip(a, w, strict=True))
            for i in range(5):
                beta[i] += eta * delta * a[i] * h[i]
                alpha = math.exp(beta[i])
                w[i] += alpha * delta * a[i]
                rectified += alpha * a[i] ** 2 > 1
                h[i] = h[i] * max(0.0, 1 - alpha * a[i] ** 2) + alpha * delta * a[i]
        assert relative(end.raw[run], beta) < 1e-12 and relative(end.state.w[run], w) < 1e-12
    assert rectified > 10


def test_idbd_is_the_l_approximation_where_the_hessian_is_diagonal() -> None:
    """One-hot rows, base and meta SGD, the update after the step as in Algorithm 1; H is then a diagonal matrix."""
    rows = torch.arange(60) * 7 % 5
    task = LinearModel(torch.eye(5, dtype=torch.float64)[rows] * stream()[:, :1].clamp(-1.5, 1.5))
    w0 = torch.randn(2, 5, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    hypers = rates(PLAIN, task, "weight", lr=0.2)
    loop = Loop(task, PLAIN, hypers, Method(IDBD(), SGD(0.05), outer_loss="training"))
    ours = loop.advance(loop.start(w0), 60)
    framework = MetaOptimize(task, PLAIN, hypers, SGD(0.05), gamma=1.0, level="L")
    theirs = framework.advance(framework.start(w0), 60)
    assert relative(ours.raw, theirs.meta.raw) < 1e-12 and relative(ours.state.w, theirs.base.w) < 1e-12
    assert relative(torch.diag_embed(ours.memory), theirs.X.w.transpose(0, 1)) < 1e-12
    assert (ours.raw - math.log(0.2)).abs().min() > 1e-3


# --- The whole framework ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("level", ["2x2", "L"])
def test_algorithm_2(level: str, gamma: float) -> None:
    """Base and meta SGD with one learning rate: H <- gamma (I - alpha Hess) H - alpha B g and
    B <- gamma B + 1 - gamma - gamma^2 eta H' Hess H from B = 1, with B = gamma Y + 1 - gamma; for "L", B = 1."""
    task = Classifier(dict(np.load(FOLDER / "metaoptimize_mlp.npz")))
    framework = MetaOptimize(task, PLAIN, rates(PLAIN, task, lr=0.3), SGD(0.05), gamma, level)
    run = framework.advance(framework.start(task.w), 12)
    w, h, beta, b, moved = task.w, torch.zeros_like(task.w), math.log(0.3), 1.0, 0.0
    for t in range(12):
        leaf = w.clone().requires_grad_()
        (g,) = torch.autograd.grad(task.train_loss(leaf, {}, t).sum(), leaf, create_graph=True)
        (product,) = torch.autograd.grad(g, leaf, h)
        g, alpha = g.detach(), math.exp(beta)
        beta -= 0.05 * float((h * g).sum())
        w, h, curved = w - alpha * g, gamma * (h - alpha * product) - alpha * b * g, float((h * product).sum())
        if level == "2x2":
            b = gamma * b + (1 - gamma) - gamma**2 * 0.05 * curved
            moved = max(moved, abs(b - 1))
    assert relative(run.base.w, w) < 1e-10 and relative(run.X.w[0], h) < 1e-10
    assert abs(float(run.meta.raw) - beta) < 1e-10 and abs(float(gamma * run.Y.raw) + 1 - gamma - b) < 1e-10
    assert moved > 1e-3 or level == "L"


@pytest.mark.parametrize("level", ["full", "2x2", "L"])
@pytest.mark.parametrize("rule", [sgd(), adamw()], ids=["sgd", "adamw"])
def test_frozen_meta_parameters_give_forward_mode(rule: Rule, level: str) -> None:
    """gamma = 1, a meta step size of 0: H is dw_t/dbeta of `Forward()`, buffers too; all hyperparameters tuned."""
    problem = Net()
    transforms = {"lr": "log", "weight_decay": "log10"}
    hypers = Hypers(
        [Hyper(n, START[n], transforms.get(n, "sigmoid"), "tensor" if n == "lr" else "global") for n in rule.hypers],
        problem.layout.sizes,
    )
    w = problem.init(2)
    loop = Loop(problem, rule, hypers, Method(Forward(), SGD(0.0), every=100))
    exact = loop.advance(loop.start(w), 7)
    framework = MetaOptimize(problem, rule, hypers, SGD(0.0), 1.0, level)
    run = framework.advance(framework.start(w), 7)
    assert relative(run.base.w, exact.state.w) < 1e-12
    assert relative(run.X.w.transpose(0, 1), exact.memory.w) < 1e-10
    for name, buffer in exact.memory.buf.items():
        if buffer.any():
            assert relative(run.X.buf[name].transpose(0, 1), buffer) < 1e-10


class Unrolled:
    """The coupled system of y, x and h as one graph, to differentiate it by every beta_tau.

    In the step of h the rows of Y and X beside H are the numbers of a finished run (eq. 47). The graph is that of all
    steps together: nothing is carried along.
    """

    def __init__(self, framework: MetaOptimize, history: list[MetaRun]) -> None:
        self.f, self.history = framework, history

    def base(self, beta: Tensor, x: State, t: int) -> State:
        f = self.f
        lam = f.hypers.at(beta, self.history[0].fixed).lam  # the fixed ones; at() drops the graph of beta
        lr = beta.exp()
        if (index := f.hypers.blocks["lr"].index) is not None:
            lr = lr[:, index]
        (g,) = torch.autograd.grad(f.problem.train_loss(x.w, {}, t).sum(), x.w, create_graph=True)
        return State(*f.rule.update(x.w, x.buf, g, {**lam, "lr": lr}))

    def __call__(self, shifts: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """(raw and outer buffers, weights and buffers, h) after `steps`, each flat, for shifts `[steps, P]` of beta."""
        start, f = self.history[0], self.f
        meta, h = start.meta, start.X.w
        x = State(start.base.w.clone().requires_grad_(), start.base.buf)
        for t in range(steps):
            meta = Meta(meta.raw + shifts[t], meta.outer)
            (g,) = torch.autograd.grad(f.problem.train_loss(x.w, {}, t).sum(), x.w, create_graph=True)
            raw, outer = f.outer.update(meta.raw, (h[:, 0] @ g[0])[None], meta.outer, {})
            h = self.sensitivity(meta.raw, x, h, t)
            x, meta = self.base(meta.raw, x, t), Meta(raw, outer)
        return flat(meta), flat(x), h.flatten()

    def sensitivity(self, beta: Tensor, x: State, h: Tensor, t: int) -> Tensor:
        """H_{t+1} (eq. 46): gamma dw/dw H + gamma dw/dbuf X + dw/dbeta (gamma Y + 1 - gamma)."""
        gamma, run = self.f.gamma, self.history[t]
        names, columns = list(x.buf), beta.shape[1]
        eye = torch.eye(columns, dtype=beta.dtype)

        def weights(beta: Tensor, w: Tensor, *buf: Tensor) -> Tensor:
            return self.base(beta, State(w, dict(zip(names, buf, strict=True))), t).w

        rows = []
        for i in range(columns):
            at = (beta, x.w, *x.buf.values())
            dots = (
                gamma * run.Y.raw[i] + (1 - gamma) * eye[i],
                gamma * h[i],
                *(gamma * run.X.buf[n][i] for n in names),
            )
            rows.append(torch.autograd.functional.jvp(weights, at, dots, create_graph=True)[1])
        return torch.stack(rows)


def flat(tree: Any, columns: int = 0) -> Tensor:
    """All tensors of y or x in one row, `[columns, ...]` flat after the leading dimension where there is one."""
    leaves = [tree[0], *(tree[1].values() if isinstance(tree[1], dict) else tree[1])]
    return torch.cat([x.reshape(columns, -1) if columns else x.reshape(-1) for x in leaves], dim=-1)


@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize(
    ("rule", "outer", "groups"),
    [
        (PLAIN, SGD(0.5), "global"),
        (sgd(nesterov=True), Adam(0.1), (0, 0, 1, 1)),
        (adamw(), SGD(0.5), (0, 0, 1, 1)),
        (rmsprop(), RMSprop(0.1), "global"),
    ],
    ids=["sgd-sgd", "nesterov-adam", "adamw-sgd", "rmsprop-rmsprop"],
)
def test_definitions_by_brute_force(rule: Rule, outer: Any, groups: Granularity, gamma: float) -> None:
    """Y_t, X_t and Q_t are (1 - gamma) sum_{tau < t} gamma^(t - tau - 1) d/dbeta_tau + gamma^t d/dbeta_0 of y_t, x_t
    and h_t (eq. 11 to 13, with beta at rest before time 0)."""
    problem, steps = Net(), 3
    framework = MetaOptimize(problem, rule, rates(rule, problem, groups), outer, gamma, "full")
    history = [framework.start(problem.init(1))]
    framework.advance(history[0], steps, history.append)
    end, columns = history[steps], history[0].meta.raw.shape[1]
    system = Unrolled(framework, history)
    zero = torch.zeros(steps, columns, dtype=torch.float64)
    for ours, value in zip((flat(end.meta), flat(end.base), end.X.w.flatten()), system(zero, steps), strict=True):
        assert relative(ours, value.detach()) < 1e-12
    jacobians = torch.autograd.functional.jacobian(lambda e: system(e, steps), zero)
    weights = torch.tensor([(1 - gamma) * gamma ** (steps - tau - 1) for tau in range(steps)], dtype=torch.float64)
    weights[0] += gamma**steps
    assert end.Q is not None
    rows = flat(end.Y, columns), flat(end.X, columns), end.Q.reshape(columns, -1)
    for mine, jacobian in zip(rows, jacobians, strict=True):
        assert relative(mine, torch.einsum("t,kti->ik", weights, jacobian)) < 1e-10
    assert end.Q.abs().max() > 1e-4


def test_levels_differ_and_agree_without_curvature_of_the_meta_rule() -> None:
    """On a problem with curvature the three levels differ; for a meta Lion, whose sign hides H from beta, none does."""
    problem, rule = Net(), sgd()
    w = problem.init(2)
    ends: dict[str, list[Tensor]] = {"sgd": [], "lion": []}
    for level in ("full", "2x2", "L"):
        for name, outer in (("sgd", SGD(0.5)), ("lion", Lion(0.05))):
            framework = MetaOptimize(problem, rule, rates(rule, problem), outer, 0.9, level)
            ends[name].append(framework.advance(framework.start(w), 8).X.w)
    a, b, c = ends["sgd"]
    assert min(relative(a, b), relative(a, c), relative(b, c)) > 1e-4
    assert relative(ends["lion"][0], ends["lion"][2]) < 1e-13 and relative(ends["lion"][1], ends["lion"][2]) < 1e-13


def test_runs_of_the_framework_do_not_mix() -> None:
    problem, rule = Net(), adamw()
    w = problem.init(3)

    def end(w: Tensor) -> MetaRun:
        framework = MetaOptimize(problem, rule, rates(rule, problem, "tensor"), Adam(0.05), 0.9)
        return framework.advance(framework.start(w), 5)

    together = end(w)
    wild = w.clone()
    wild[1] = torch.nan
    spoilt = end(wild)
    for row in range(3):
        assert relative(together.X.w[:, row], end(w[row][None]).X.w[:, 0]) < 1e-10
    for row in (0, 2):
        assert torch.equal(spoilt.X.w[:, row], together.X.w[:, row])
    assert spoilt.base.w[1].isnan().all()


@pytest.mark.parametrize(
    "method",
    [methods.hd(1e-3), methods.hd(0.01, True), methods.baydin(), methods.metaoptimize_hf()],
    ids=["hd", "hd multiplicative", "baydin", "metaoptimize_hf"],
)
def test_a_diverging_run_leaves_its_neighbours_alone(method: Method) -> None:
    problem, rule = Net(), sgd()

    def end(middle: float) -> Run:
        lr = torch.tensor([0.05, middle, 0.02], dtype=torch.float64)
        loop = Loop(problem, rule, rates(rule, problem, transform="identity", lr=lr), method)
        return loop.advance(loop.start(problem.init(3)), 40)

    calm, wild = end(0.05), end(1e200)
    assert wild.state.w[1].isnan().any() and wild.raw[1].isnan().all() and calm.state.w.isfinite().all()
    for row in (0, 2):
        assert torch.equal(calm.state.w[row], wild.state.w[row]) and torch.equal(calm.raw[row], wild.raw[row])


# --- Mistakes ---------------------------------------------------------------------------------------------------------


def _advance(method: Method, rule: Rule = PLAIN, problem: Any = None, hypers: Hypers | None = None) -> None:
    problem = problem or Net()
    loop = Loop(problem, rule, hypers or rates(rule, problem), method)
    loop.advance(loop.start(torch.zeros(1, sum(problem.layout.sizes), dtype=torch.float64)), 1)


def _two_tuned() -> Hypers:
    return Hypers([Hyper("lr", 0.1), Hyper("weight_decay", 0.1)], Net().layout.sizes)


def _framework(**options: Any) -> MetaOptimize:
    settings: dict[str, Any] = {
        "problem": Net(),
        "rule": PLAIN,
        "hypers": rates(PLAIN, Net()),
        "outer": SGD(0.1),
    } | options
    return MetaOptimize(**settings)


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: Trace(1.5), r"the discount gamma is 1.5; expected a number in \[0, 1\]"),
    (lambda: Trace(direction="gradients"), "unknown direction 'gradients'; did you mean 'gradient'"),
    (lambda: methods.metaoptimize_hf(form="packages"), "unknown form .* did you mean 'package'"),
    (
        lambda: _advance(methods.metaoptimize_hf(), sgd(momentum=False), hypers=_two_tuned()),
        r"a trace follows the learning rate alone, and \['lr', 'weight_decay'\] are tuned; tune 'lr'",
    ),
    (lambda: _advance(methods.idbd(0.1)), "IDBD has a learning rate per weight, and lr has granularity 'global'"),
    (
        lambda: _advance(methods.idbd(0.1), hypers=rates(PLAIN, Net(), "weight")),
        "IDBD needs the diagonal of the Hessian, and Net has no method curvature_diagonal",
    ),
    (
        lambda: _advance(
            methods.idbd(0.1), sgd(), LinearModel(stream()), rates(sgd(), LinearModel(stream()), "weight")
        ),
        "IDBD is derived for plain gradient descent, and the rule sgd reads",
    ),
    (lambda: _framework(gamma=0.0), r"the discount gamma is 0.0; expected a number in \(0, 1\]"),
    (lambda: _framework(level="2x3"), "unknown level of MetaOptimize '2x3'; did you mean '2x2'"),
    (
        lambda: _framework(rule=adamw()),
        r"the rule adamw reads \['beta1', 'beta2', 'weight_decay'\], which are not given",
    ),
    (
        lambda: _framework(hypers=Hypers([Hyper("lr", 0.1), Hyper("l2", 0.1)], Net().layout.sizes)),
        r"MetaOptimize tunes hyperparameters of the rule sgd, \['lr'\], .* \['lr', 'l2'\] are tuned",
    ),
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES)
def test_mistakes_are_one_sentence(mistake: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(GradhpoError, match=sentence):
        mistake()
