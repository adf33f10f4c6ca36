"""Hessian-free traces, hypergradient descent and IDBD: published numbers and plain loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.trace import Trace
from gradtune.recursion.hypers import Granularity, Hyper, Hypers
from gradtune.recursion.outer import SGD, Adam, Lion, Outer, RMSprop
from gradtune.recursion.rules import Buffers, Rule, adamw, lion, rmsprop, sgd
from gradtune.training.loop import Loop, Method, Run
from problems import Net
from tools import REFERENCE
from traces import PLAIN, Classifier, LinearModel, gradient_at, rates, relative, stream


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
    assert name in {case["name"] for case in json.loads((REFERENCE / "metaoptimize_mlp.json").read_text())}
    z = dict(np.load(REFERENCE / "metaoptimize_mlp.npz"))
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
def test_algorithm_3_by_hand(granularity: str | tuple[int, ...], trace: bool) -> None:
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
    exact = -1e-7 * (torch.sign(gradient_at(problem, w, 0)) + 0.1 * w)
    assert relative(h, exact) < 1e-5


# --- Hypergradient descent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplicative", [False, True])
def test_hd_is_baydins_rule(multiplicative: bool) -> None:
    """alpha_t = alpha_{t-1} + rate g_t' g_{t-1}, or alpha_{t-1} (1 + rate cos(g_t, g_{t-1})), then the step with it."""
    problem, rate = Net(), 0.02
    for start in problem.init(2):
        w, alpha, before = start[None], 0.05, torch.zeros(1, 21, dtype=torch.float64)
        for t in range(20):
            g = gradient_at(problem, w, t)
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


# --- Robustness and mistakes ------------------------------------------------------------------------------------------


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


def _advance(method: Method, rule: Rule = PLAIN, problem: Any = None, hypers: Hypers | None = None) -> None:
    problem = problem or Net()
    loop = Loop(problem, rule, hypers or rates(rule, problem), method)
    loop.advance(loop.start(torch.zeros(1, sum(problem.layout.sizes), dtype=torch.float64)), 1)


def _two_tuned() -> Hypers:
    return Hypers([Hyper("lr", 0.1), Hyper("weight_decay", 0.1)], Net().layout.sizes)


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
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES)
def test_mistakes_are_one_sentence(mistake: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(GradtuneError, match=sentence):
        mistake()
