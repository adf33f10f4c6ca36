"""MetaOptimize's framework: the closed form of Algorithm 2, and the definitions of its sums by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.trace import IDBD
from gradtune.recursion.hypers import Granularity, Hyper, Hypers
from gradtune.recursion.outer import SGD, Adam, Lion, RMSprop
from gradtune.recursion.rules import Rule, adamw, rmsprop, sgd
from gradtune.recursion.step import State
from gradtune.training.loop import Loop, Method
from gradtune.training.metaoptimize import Meta, MetaOptimize, MetaRun
from problems import Net
from tools import REFERENCE
from traces import PLAIN, START, Classifier, LinearModel, gradient_at, rates, relative, stream


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("level", ["2x2", "L"])
def test_algorithm_2(level: str, gamma: float) -> None:
    """Base and meta SGD with one learning rate: H <- gamma (I - alpha Hess) H - alpha B g and
    B <- gamma B + 1 - gamma - gamma^2 eta H' Hess H from B = 1, with B = gamma Y + 1 - gamma; for "L", B = 1."""
    task = Classifier(dict(np.load(REFERENCE / "metaoptimize_mlp.npz")))
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
        g = gradient_at(problem, state.w, t)

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


def _framework(**options: Any) -> MetaOptimize:
    settings: dict[str, Any] = {
        "problem": Net(),
        "rule": PLAIN,
        "hypers": rates(PLAIN, Net()),
        "outer": SGD(0.1),
    } | options
    return MetaOptimize(**settings)


MISTAKES: list[tuple[Callable[[], Any], str]] = [
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
    with pytest.raises(GradtuneError, match=sentence):
        mistake()
