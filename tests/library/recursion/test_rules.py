"""Update rules against torch.optim, and their derivatives against autograd through training and central differences."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.reverse import Reverse
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Granularity, Hyper, Hypers
from gradtune.recursion.rules import Rule, adamw, clipped, lion, norm_clipped, rmsprop, sgd
from gradtune.recursion.step import State, Step, Tangent, initial_state
from problems import Net
from tools import hypergradient, relative

T = 7
START = {"lr": 0.05, "momentum": 0.8, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1}
COORDINATES = {"lr": "log10", "momentum": "sigmoid", "beta1": "sigmoid", "beta2": "sigmoid", "weight_decay": "log"}


def declared(
    rule: Rule, problem: Net, tuned: tuple[str, ...] = tuple(START), granularity: Granularity = "global"
) -> Hypers:
    """Every hyperparameter of a rule at its `START`; those in `tuned` are tuned."""
    return Hypers(
        [
            Hyper(n, START[n], COORDINATES[n], granularity if n == "lr" else "global", tuned=n in tuned)
            for n in rule.hypers
        ],
        problem.layout.sizes,
        T,
    )


def lion_by_hand(w: nn.Parameter, **options: Any) -> Callable[[], None]:
    m = torch.zeros_like(w)

    def step() -> None:
        assert w.grad is not None
        for row in range(len(w)):
            for k in range(w.shape[1]):
                c = 0.8 * m[row, k] + 0.2 * w.grad[row, k]
                sign = float(c > 0) - float(c < 0)
                w.data[row, k] = w.data[row, k] * (1 - 0.05 * 0.1) - 0.05 * sign
                m[row, k] = 0.95 * m[row, k] + 0.05 * w.grad[row, k]

    return step


TORCH: dict[str, tuple[Rule, Callable[[nn.Parameter], Callable[[], Any]]]] = {
    "sgd": (sgd(), lambda p: torch.optim.SGD([p], 0.05, 0.8, weight_decay=0.1).step),
    "nesterov": (sgd(nesterov=True), lambda p: torch.optim.SGD([p], 0.05, 0.8, weight_decay=0.1, nesterov=True).step),
    "adamw": (adamw(), lambda p: torch.optim.AdamW([p], 0.05, (0.8, 0.95), weight_decay=0.1).step),
    "rmsprop": (rmsprop(), lambda p: torch.optim.RMSprop([p], 0.05, 0.95, weight_decay=0.1).step),
    "rmsprop, no decay": (rmsprop(weight_decay=False), lambda p: torch.optim.RMSprop([p], 0.05, 0.95).step),
    "lion": (lion(), lion_by_hand),
}


def gradients(k: int) -> Tensor:
    """Of two runs with five weights; the fourth has gradient 0 for ever, the fifth at first."""
    g = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    g[:, 3] = 0.0
    g[:, 4] *= k > 4
    return g


def compare(rule: Rule, theirs: Callable[[nn.Parameter], Callable[[], Any]], before: Callable[[Tensor], None]) -> float:
    """Largest difference of weights over 30 steps on the same gradients; `before(parameter)` may change theirs."""
    w = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    parameter = nn.Parameter(w.clone())
    step, state, worst = theirs(parameter), initial_state(w, rule), 0.0
    lam = {n: torch.full((2, 1), START[n], dtype=torch.float64) for n in rule.hypers}
    for k in range(30):
        g = gradients(k)
        state = State(*rule.update(*state[:2], g, lam))
        parameter.grad = g.clone()
        before(parameter)
        step()
        worst = max(worst, float((state.w - parameter.detach()).abs().max()))
    return worst


@pytest.mark.parametrize("name", TORCH)
def test_rule_is_torch_optim(name: str) -> None:
    assert compare(*TORCH[name], lambda p: None) < 1e-13


def test_decoupled_rmsprop_decays_outside_the_normalisation() -> None:
    """It is torch's RMSprop without decay on weights that have just decayed by 1 - lr weight_decay."""

    def decay(p: Tensor) -> None:
        p.data *= 1 - 0.05 * 0.1

    assert compare(rmsprop(decoupled=True), TORCH["rmsprop, no decay"][1], decay) < 1e-13


def test_clipped_rules_clip_as_torch_does() -> None:
    def by_value(p: Tensor) -> None:
        nn.utils.clip_grad_value_([p], 0.7)

    def by_norm(p: Tensor) -> None:
        assert p.grad is not None
        for row in range(len(p)):  # a run alone
            one = nn.Parameter(torch.zeros(5, dtype=torch.float64))
            one.grad = p.grad[row]
            nn.utils.clip_grad_norm_([one], 1.5)
            p.grad[row] = one.grad

    assert compare(clipped(adamw(), 0.7), TORCH["adamw"][1], by_value) < 1e-13
    assert compare(norm_clipped(sgd(), 1.5), TORCH["sgd"][1], by_norm) < 1e-13
    lengths = torch.cat([gradients(k).norm(dim=1) for k in range(30)])
    assert (lengths > 1.5).any() and (lengths < 1.5).any()


DIFFERENTIATED = {
    "adamw": adamw(),
    "rmsprop": rmsprop(),
    "rmsprop decoupled": rmsprop(decoupled=True),
    "clipped adamw": clipped(adamw(), 0.3),
    "clipped sgd": clipped(sgd(), 0.3),
    "norm-clipped sgd": norm_clipped(sgd(), 0.5),
    "norm-clipped rmsprop": norm_clipped(rmsprop(), 0.5),
}


@pytest.mark.parametrize("granularity", ["global", "tensor"])
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_forward_is_reverse_is_unrolled_is_differences(name: str, granularity: Granularity) -> None:
    """Learning rate, betas or momentum, and weight decay tuned together; two runs."""
    problem, rule = Net(), DIFFERENTIATED[name]
    case = problem, rule, declared(rule, problem, granularity=granularity), problem.init(2)
    exact = oracle.unrolled(*case, T)
    assert (exact != 0).all()
    for estimator in (Forward(), Reverse(T), Reverse(T, "graph")):
        assert relative(hypergradient(*case, estimator), exact) < 1e-10
    if granularity == "global":
        assert relative(oracle.central_differences(*case, T, 1e-5), exact) < 1e-6


def test_lion_learning_rate_and_decay() -> None:
    """The signs are constant around almost every point, so that differences see the same derivative as autograd; the
    betas have derivative 0."""
    problem, rule = Net(), lion()
    case = problem, rule, declared(rule, problem), problem.init(2)
    exact = oracle.unrolled(*case, T)
    for estimator in (Forward(), Reverse(T)):
        assert relative(hypergradient(*case, estimator), exact) < 1e-10
    assert (exact[:, [0, 3]] != 0).all() and not exact[:, [1, 2]].any()
    assert relative(oracle.central_differences(*case, T, 1e-6), exact) < 1e-6


class Blind(Net):
    """The first input is always 0, so that four weights never see a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.x[:, 0] = 0.0


@pytest.mark.parametrize(
    "rule", [adamw(), rmsprop(weight_decay=False), lion(), norm_clipped(adamw(), 1.0)], ids=lambda r: r.name
)
def test_zero_gradients_have_zero_steps_and_finite_derivatives(rule: Rule) -> None:
    problem = Blind()
    hypers = declared(rule, problem)
    case = problem, rule, hypers, problem.init(1)
    exact = oracle.unrolled(*case, T)
    assert exact.isfinite().all()
    assert relative(hypergradient(*case, Forward()), exact) < 1e-10
    assert relative(hypergradient(*case, Reverse(T)), exact) < 1e-10
    state = initial_state(problem.init(1), rule)
    raw, fixed = hypers.init(state.w)
    step = Step(problem, rule, hypers.at(raw, fixed), state, 0, curvature=True)
    blind = step.g[0] == 0
    assert blind.sum() == 4
    z = step.push(
        Tangent.zero(state, hypers.columns),
        step.values.tangents(),
        step.gradient_tangent(torch.zeros(1, hypers.columns, 21, dtype=torch.float64), {}),
    )
    decay = hypers.at(raw, fixed).lam.get("weight_decay", torch.zeros(1, 1))
    assert torch.allclose(step.next.w[0, blind], (1 - 0.05 * decay)[0] * state.w[0, blind], rtol=1e-14, atol=0)
    slope = step.values.slope("lr")[0]  # log10: lr ln 10
    assert torch.allclose(z.w[0, 0, blind], -slope * decay[0] * state.w[0, blind], rtol=1e-13, atol=0)


@pytest.mark.parametrize("rule", [adamw(), rmsprop(), norm_clipped(sgd(), 1.0)], ids=["adamw", "rmsprop", "norm"])
def test_a_gradient_of_zero_everywhere_gives_no_nan(rule: Rule) -> None:
    """The minimum of a loss without weight decay to move away from it."""

    class Flat(Net):
        def train_loss(self, w: Tensor, lam: Any, t: int) -> Tensor:
            return (w**3).sum(-1)

    problem, w = Flat(), torch.zeros(1, 21, dtype=torch.float64)
    case = problem, rule, declared(rule, problem), w
    assert not oracle.unrolled(*case, 3).any()
    assert not hypergradient(*case, Forward(), 3).any() and not hypergradient(*case, Reverse(3), 3).any()


def test_a_nan_gradient_stays_visible() -> None:
    """The guard of the square root at 0 must not turn NaN into a number."""
    w, g = torch.ones(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    g[1, 0] = torch.nan
    for rule in (adamw(), rmsprop(), lion(), norm_clipped(sgd(), 1.0)):
        lam = {n: torch.full((2, 1), START[n], dtype=torch.float64) for n in rule.hypers}
        state = initial_state(w, rule)
        w_new, buf = rule.update(state.w, state.buf, g, lam)
        assert w_new[1, 0].isnan() and w_new[0].isfinite().all()
        assert all(b[0].isfinite().all() for b in buf.values())


def test_clipping_masks_after_the_hessian_product() -> None:
    """One step from a random sensitivity: Z <- Z - lr mask (H Z), with the Hessian of the loss, and not H (mask Z)."""
    problem, rule = Net(), clipped(sgd(momentum=False, weight_decay=False), 0.3)
    hypers, w = declared(rule, problem), problem.init(1)
    raw, fixed = hypers.init(w)
    step = Step(problem, rule, hypers.at(raw, fixed), initial_state(w, rule), 0, curvature=True)
    z = torch.randn(1, 1, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    after = step.push(Tangent(z, {}), {"lr": torch.zeros(1, 1, 1, dtype=torch.float64)}, step.gradient_tangent(z, {}))
    hessian = torch.autograd.functional.hessian(lambda v: problem.train_loss(v[None], {}, 0)[0], w[0])
    mask = (step.g[0].abs() <= 0.3).double()
    assert 0 < mask.sum() < 21
    assert torch.allclose(after.w[0, 0], z[0, 0] - 0.05 * mask * (hessian @ z[0, 0]), rtol=1e-12, atol=1e-14)
    assert not torch.allclose(after.w[0, 0], z[0, 0] - 0.05 * hessian @ (mask * z[0, 0]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrapper", [clipped, norm_clipped])
def test_a_limit_must_be_positive(wrapper: Callable[[Rule, float], Rule]) -> None:
    with pytest.raises(GradtuneError, match="the gradient of the rule sgd is clipped at 0; expected a number > 0"):
        wrapper(sgd(), 0)


@pytest.mark.parametrize(
    "tuned", [names for k in range(4) for names in combinations(("lr", "momentum", "weight_decay"), k)]
)
@pytest.mark.parametrize(
    "rule", [sgd(momentum=False), sgd(), sgd(nesterov=True)], ids=["plain", "momentum", "nesterov"]
)
def test_the_tangent_of_sgd_whatever_is_tuned(rule: Rule, tuned: tuple[str, ...]) -> None:
    """Written out, it is that of the update by automatic differentiation, two columns of two runs at once."""
    numbers = torch.Generator().manual_seed(7)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=numbers)

    lam = {n: torch.full((2, 1, 1), START[n], dtype=torch.float64) for n in rule.hypers}
    lam_dot = {n: drawn(2, 2, 1) for n in rule.hypers if n in tuned}
    w, g, buf = drawn(2, 1, 5), drawn(2, 1, 5), {n: drawn(2, 1, 5) for n in rule.buffers}
    dots = drawn(2, 2, 5), {n: drawn(2, 2, 5) for n in rule.buffers}, drawn(2, 2, 5)
    assert rule.tangent is not None
    found = rule.tangent(w, buf, g, lam, *dots, lam_dot)
    every = {n: lam_dot.get(n, torch.zeros(2, 2, 1, dtype=torch.float64)) for n in rule.hypers}
    for k in range(2):
        column = tree_map(lambda x, k=k: x[:, k : k + 1], (*dots, every))
        expected = torch.func.jvp(rule.update, (w, buf, g, lam), column)[1]
        for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            assert torch.allclose(a[:, k : k + 1], b, rtol=1e-13, atol=1e-15)
