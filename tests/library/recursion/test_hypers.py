"""Hyperparameter declarations: transforms, bounds, groups, windows, and what is said of bad ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gradtune import methods
from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.nets.layout import Layout
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD, Adam
from gradtune.recursion.rules import sgd
from gradtune.recursion.step import initial_state
from gradtune.recursion.transforms import TRANSFORMS
from gradtune.training.loop import Loop, Method
from problems import Net

W = torch.zeros(2, 6, dtype=torch.float64)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=lambda t: t.name)
def test_transforms_invert_and_their_slope_is_their_derivative(transform: Any) -> None:
    raw = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64).requires_grad_()
    natural = transform.forward(raw)
    assert torch.allclose(transform.inverse(natural), raw)
    (slope,) = torch.autograd.grad(natural.sum(), raw)
    assert torch.allclose(slope, transform.slope(raw.detach()))


def test_windows_and_groups_pick_their_values() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    hypers = Hypers([Hyper("lr", values, granularity=(0, 1, 0), windows=3)], [1, 2, 3], horizon=7)
    raw, fixed = hypers.init(W)
    assert raw.shape == (2, 6)
    assert [hypers.window("lr", t) for t in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert hypers.at(raw, fixed, 4).lam["lr"][0].tolist() == [2.0, 5.0, 5.0, 2.0, 2.0, 2.0]


def test_a_value_per_run() -> None:
    raw, _ = Hypers([Hyper("lr", torch.tensor([0.1, 0.01]), "log10")], [6]).init(W)
    assert torch.allclose(raw[:, 0], torch.tensor([-1.0, -2.0], dtype=torch.float64), atol=1e-6)


def test_bounds_hold_after_an_outer_step_and_nan_stays() -> None:
    hypers = Hypers([Hyper("lr", 0.1, "log10", bounds=(1e-3, 1.0))], [6])
    raw = torch.tensor([[5.0], [float("nan")], [-9.0]], dtype=torch.float64)
    assert hypers.clamp(raw).nan_to_num(99.0).flatten().tolist() == [0.0, 99.0, -3.0]


def _loop(*hypers: Hyper) -> Any:
    problem = Net()
    loop = Loop(problem, sgd(), Hypers(list(hypers), problem.layout.sizes), methods.oho())
    return loop.advance(loop.start(problem.init(1)), 1)


GOOD = Hyper("lr", 0.1), Hyper("momentum", 0.5), Hyper("weight_decay", 0.1)
BAD = {
    r"lr = -1 is outside \(0, inf\).*another transform than log10": lambda: _loop(
        Hyper("lr", -1.0, "log10"), *GOOD[1:]
    ),
    r"momentum = 1 is outside \(0, 1\)": lambda: _loop(GOOD[0], Hyper("momentum", 1.0, "sigmoid"), GOOD[2]),
    r"transform.*'lgo10'.*log10": lambda: _loop(Hyper("lr", 0.1, "lgo10"), *GOOD[1:]),
    r"granularity.*'tensr'.*tensor": lambda: _loop(Hyper("lr", 0.1, granularity="tensr"), *GOOD[1:]),
    r"groups \(0, 2\).*one number a tensor": lambda: Hypers([Hyper("lr", 0.1, granularity=(0, 2))], [3, 3]),
    r"say how many steps they share": lambda: Hypers([Hyper("lr", 0.1, windows=3)], [6]),
    r"named twice": lambda: Hypers([Hyper("lr", 0.1), Hyper("lr", 0.2)], [6]),
    r"\['momentum', 'weight_decay'\] are not given": lambda: _loop(GOOD[0]),
    r"\['dropout'\] must be used by the training loss": lambda: _loop(*GOOD, Hyper("dropout", 0.5)),
    r"shape \(3,\); expected a number, \[2\]": lambda: Hypers([Hyper("lr", torch.ones(3))], [6]).init(W),
    r"expected \[R, D\]": lambda: initial_state(torch.zeros(6), sgd()),
    r"ReLU has no parameters": lambda: Layout.of(torch.nn.ReLU()),
    r"reset_every is 0": lambda: Forward(reset_every=0),
    r"radius is -1": lambda: Forward(radius=-1.0),
    r"look_back is -1": lambda: Neumann(-1),
    r"horizon is 0": lambda: Reverse(0),
    r"store is 'disk'": lambda: Reverse(3, "disk"),
    r"outer learning rate is -1": lambda: SGD(-1.0),
    r"outer learning rate is nan": lambda: Adam(float("nan")),
    r"needs an estimator and an outer rule": lambda: Method(Forward()),
    r"every = 0; expected a whole number >= 1": lambda: Method(every=0),
    r"trace=True needs losses": lambda: Loop(
        Net(), sgd(), Hypers(list(GOOD), [12, 4, 4, 1]), methods.fixed(), trace=True
    ),
    r"method.*'onepas'.*onepass": lambda: methods.get("onepas"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_gets_one_clear_sentence(message: str) -> None:
    with pytest.raises(GradtuneError, match=message):
        BAD[message]()


def test_shares_are_summed_where_the_weights_are() -> None:
    """The group numbers lie on the CPU; torch's fake tensors check the devices of every operation without a GPU."""
    hypers = Hypers([Hyper("lr", 0.1, granularity=(0, 1, 0))], [1, 2, 3])
    raw, fixed = hypers.init(W)
    values = hypers.at(raw, fixed)
    assert torch.equal(values.grouped("lr", W + torch.arange(6)), torch.tensor([[12.0, 3.0]] * 2, dtype=torch.float64))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert values.grouped("lr", torch.empty(2, 6, device="cuda")).device.type == "cuda"


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_hyperparameters_of_half_weights_are_float32(half: torch.dtype) -> None:
    """In bfloat16 log10(0.001) would move in steps of 0.016, and beta2 = 0.999 would be 1."""
    declared = [
        Hyper("lr", 0.0123, "log10", (0, 1, 0), bounds=(1e-3, 0.02), tuned=[1]),
        Hyper("beta2", 0.999, tuned=False),
    ]
    found = {}
    for dtype in (half, torch.float32):
        hypers = Hypers(declared, [1, 2, 3])
        raw, fixed = hypers.init(W.to(dtype))
        values = hypers.at(hypers.clamp(raw + 0.5), fixed)
        cot = torch.arange(12, dtype=dtype).reshape(2, 6)
        found[dtype] = [raw, *fixed.values(), *values.lam.values(), values.pull({"lr": cot}), values.tangents()["lr"]]
        found[dtype] += [values.grouped("lr", cot)]
    for a, b in zip(*found.values(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_other_types_stay() -> None:
    for dtype in (torch.float32, torch.float64):
        raw, fixed = Hypers([Hyper("lr", 0.1), Hyper("momentum", 0.5, tuned=False)], [6]).init(W.to(dtype))
        assert raw.dtype == fixed["momentum"].dtype == dtype


def test_constants_are_kept_for_each_type() -> None:
    hypers = Hypers([Hyper("lr", 0.1, "log10", bounds=(1e-3, 1.0)), Hyper("momentum", 0.5)], [6])
    for dtype in (torch.float32, torch.float64, torch.float32):
        raw, fixed = hypers.init(W.to(dtype))
        assert hypers.constants.chosen("lr", 0, raw).dtype == hypers.clamp(raw).dtype == dtype
        assert hypers.at(raw, fixed).tangents()["momentum"].dtype == dtype


@pytest.mark.parametrize("value", [float("nan"), torch.tensor([0.1, float("nan")])])
@pytest.mark.parametrize("tuned", [True, False])
def test_an_initial_value_is_a_number(value: Any, tuned: bool) -> None:
    with pytest.raises(GradtuneError, match="lr has the initial value nan; expected a number"):
        Hypers([Hyper("lr", value, tuned=tuned)], [6]).init(W)


def test_without_bounds_nothing_is_moved() -> None:
    raw = torch.tensor([[5.0, -3.0]], dtype=torch.float64)
    assert Hypers([Hyper("lr", 0.1), Hyper("momentum", 0.5)], [6]).clamp(raw) is raw
    one = Hypers([Hyper("lr", 0.1), Hyper("momentum", 0.5, bounds=(0.0, 1.0))], [6])
    assert one.clamp(raw).tolist() == [[5.0, 0.0]]
