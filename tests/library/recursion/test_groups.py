"""Groups of weights: by pattern, with a value each, and some of them fixed while others are tuned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward, Split
from gradtune.estimators.neumann import Neumann
from gradtune.estimators.reverse import Reverse
from gradtune.estimators.trace import Trace
from gradtune.recursion import oracle
from gradtune.recursion.hypers import Granularity, Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule, adam, adamw, sgd
from gradtune.training.loop import Loop, Method
from gradtune.training.metaoptimize import MetaOptimize
from problems import Net
from tools import hypergradient, relative

T = 6
NAMES = ("features.0.weight", "features.0.bias", "head.weight", "head.bias")
SHAPES = ((2, 3), (2,), (1, 2), (1,))
SIZES = (6, 2, 2, 1)
W = torch.zeros(2, 11, dtype=torch.float64)
BACKBONE: Granularity = {"backbone": "features.*", "rest": "*"}


def hypers(*given: Hyper, **more: Any) -> Hypers:
    return Hypers(given, SIZES, **{"names": NAMES, "shapes": SHAPES} | more)


def groups(granularity: Granularity) -> list[int]:
    """Group of each parameter tensor."""
    index = hypers(Hyper("lr", 0.1, granularity=granularity)).blocks["lr"].index
    assert index is not None
    assert [len(set(part.tolist())) for part in index.split(SIZES)] == [1] * 4
    return [int(part[0]) for part in index.split(SIZES)]


# -- which tensors ----------------------------------------------------------------------------------------------------


def test_the_first_group_with_a_pattern_that_matches_takes_a_tensor() -> None:
    assert groups({"backbone": "features.*", "head": ["head.w*", "*.b*"]}) == [0, 0, 1, 1]
    assert groups({"bias": "*.bias", "backbone": "features.*", "rest": "*"}) == [1, 0, 2, 0]
    assert groups({"vectors": "1d", "rest": "*"}) == [1, 0, 1, 0]
    assert groups({"head": ["1d", "head.*"], "rest": "*"}) == [1, 0, 0, 0]


def test_groups_are_those_of_the_same_numbers() -> None:
    by_name = hypers(Hyper("lr", [0.1, 0.2], granularity=BACKBONE)).init(W)[0]
    by_number = hypers(Hyper("lr", [0.1, 0.2], granularity=(0, 0, 1, 1)), names=None, shapes=None).init(W)[0]
    assert torch.equal(by_name, by_number)


def test_a_declaration_keeps_its_own_patterns() -> None:
    given: dict[str, Any] = {"backbone": ["features.*"], "rest": "*"}
    h = Hyper("lr", 0.1, granularity=given)
    given["backbone"].append("head.*")
    assert h.granularity == {"backbone": ("features.*",), "rest": ("*",)}


# -- which values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, [[0.5, 0.5, 0.5]] * 2),
        ([0.1, 0.2, 0.3], [[0.1, 0.2, 0.3]] * 2),
        ((0.1, 0.2, 0.3), [[0.1, 0.2, 0.3]] * 2),
        ({"c": 0.3, "a": 0.1, "b": 0.2}, [[0.1, 0.2, 0.3]] * 2),
        ({2: 0.3, 0: 0.1, 1: 0.2}, [[0.1, 0.2, 0.3]] * 2),
        (torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), [[0.1, 0.2, 0.3]] * 2),
        (torch.tensor([0.1, 0.2], dtype=torch.float64), [[0.1] * 3, [0.2] * 3]),  # one a run
        ([0.1, 0.2], [[0.1] * 3, [0.2] * 3]),
        (torch.tensor([[[0.1], [0.2], [0.3]], [[0.4], [0.5], [0.6]]]).double(), [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
    ],
)
def test_a_value_for_each_group(value: Any, expected: list[list[float]]) -> None:
    granularity = {"a": "features.0.weight", "b": "*.bias", "c": "*"}
    raw, _ = hypers(Hyper("lr", value, granularity=granularity)).init(W)
    torch.testing.assert_close(raw, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_as_many_runs_as_groups() -> None:
    """A tensor has a value a run, as ever; a list or a mapping has one a group."""
    values = torch.tensor([0.1, 0.2], dtype=torch.float64)

    def natural(value: Any) -> list[list[float]]:
        return hypers(Hyper("lr", value, granularity=BACKBONE)).init(W)[0].tolist()

    assert natural(values) == [[0.1, 0.1], [0.2, 0.2]]
    assert natural(values.tolist()) == natural({"backbone": 0.1, "rest": 0.2}) == [[0.1, 0.2]] * 2


def test_as_many_windows_as_groups() -> None:
    h = Hyper("lr", torch.tensor([0.1, 0.2, 0.3]).double(), granularity=(0, 1, 2, 2), windows=3)
    assert torch.allclose(hypers(h, horizon=9).init(W)[0][0], torch.tensor([0.1, 0.2, 0.3] * 3).double())
    h = Hyper("lr", [0.1, 0.2, 0.3], granularity=(0, 1, 2, 2), windows=3)
    assert torch.allclose(hypers(h, horizon=9).init(W)[0][0], torch.tensor([0.1] * 3 + [0.2] * 3 + [0.3] * 3).double())


# -- some groups fixed ------------------------------------------------------------------------------------------------

DECAY = Hyper(
    "weight_decay",
    {"weights": 1e-2, "vectors": 0.0},
    "log10",
    {"vectors": "1d", "weights": "*"},
    bounds=(1e-3, 1e-1),
    tuned=["weights"],
)


def test_a_fixed_group_keeps_its_value_to_the_bit() -> None:
    """Also 0, which has no logarithm, and one outside the bounds of the tuned ones."""
    h = hypers(DECAY, Hyper("lr", 0.1))
    raw, fixed = h.init(W)
    assert h.tuned == ("weight_decay", "lr") and h.columns == raw.shape[1] == 2
    moved = h.clamp(raw + torch.tensor([7.0, 0.0], dtype=torch.float64))
    assert moved[:, 0].tolist() == [-1.0, -1.0]  # log10 of the upper bound
    lam = h.at(moved, fixed).lam["weight_decay"]
    vectors = torch.tensor([len(s) == 1 for s in SHAPES]).repeat_interleave(torch.tensor(SIZES))
    assert (lam[:, vectors] == 0).all() and torch.allclose(lam[:, ~vectors], torch.tensor(0.1).double())
    assert h.natural(moved)["weight_decay"].shape == (2, 1)


def test_what_nobody_tunes_is_fixed() -> None:
    h = hypers(Hyper("lr", [0.1, 0.2], granularity=BACKBONE, tuned=()))
    raw, fixed = h.init(W)
    assert h.columns == 0 and h.tuned == () and list(fixed) == ["lr"] and raw.shape == (2, 0)
    everything = hypers(Hyper("lr", [0.1, 0.2], granularity=BACKBONE, tuned=("rest", "backbone")))
    assert everything.columns == 2 and everything.init(W)[1] == {}


@pytest.mark.parametrize("tuned", [["rest"], {"rest"}, "rest", (1,)])
def test_a_group_is_named_or_numbered(tuned: Any) -> None:
    h = hypers(Hyper("lr", [0.1, 0.2], granularity=BACKBONE, tuned=tuned))
    assert h.init(W)[0].tolist() == [[0.2]] * 2
    assert hypers(Hyper("lr", 0.1, granularity="tensor", tuned=["head.bias", 0])).columns == 2


def problem_hypers(rule: Rule, tuned: Any, windows: int = 1, l2: bool = True) -> Hypers:
    """Rates and decays by groups of the tensors of `Net`; of some hyperparameters only some groups are tuned."""
    given = {
        "lr": Hyper("lr", {0: 0.04, 1: 0.06, 2: 0.05}, "log10", (0, 1, 2, 1), windows, tuned=tuned),
        "momentum": Hyper("momentum", [0.8, 0.7], "sigmoid", (0, 0, 1, 1), tuned=True if tuned is True else (1,)),
        "beta1": Hyper("beta1", [0.8, 0.7], "sigmoid", (0, 0, 1, 1), tuned=True if tuned is True else (1,)),
        "beta2": Hyper("beta2", 0.9, "sigmoid", tuned=False),
        "weight_decay": Hyper("weight_decay", [0.1, 0.0], "log", (0, 1, 0, 1), tuned=(0,)),
    }
    of_loss = [Hyper("l2", 0.05, "log10")] if l2 else []
    return Hypers([*(given[n] for n in rule.hypers), *of_loss], Net().layout.sizes, T)


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("rule", [sgd(), sgd(nesterov=True), adamw(), adam(weight_decay=True)], ids=lambda r: r.name)
def test_forward_is_reverse_is_unrolled_is_differences(rule: Rule, windows: int) -> None:
    problem = Net()
    case = problem, rule, problem_hypers(rule, (0, 2), windows), problem.init(2)
    exact = oracle.unrolled(*case, T)
    assert exact.shape[1] == 2 * windows + 3 and (exact != 0).all()
    for estimator in (Forward(), Reverse(T), Reverse(T, "graph")):
        assert relative(hypergradient(*case, estimator, T), exact) < 1e-10
    assert relative(oracle.central_differences(*case, T, 1e-5), exact) < 1e-6


@pytest.mark.parametrize("estimator", [Forward(), Neumann(3)], ids=["forward", "neumann"])
def test_the_columns_are_those_of_the_tuned_groups(estimator: Any) -> None:
    """The other columns of the same hyperparameters, all tuned, are left out, and nothing else changes."""
    rule, problem = sgd(momentum=False, weight_decay=False), Net()
    some, every = (
        hypergradient(problem, rule, problem_hypers(rule, tuned), problem.init(2), estimator, T)
        for tuned in ((0, 2), True)
    )
    torch.testing.assert_close(some, every[:, [0, 2, 3]], rtol=1e-12, atol=1e-15)


def test_split_sensitivities_of_some_groups() -> None:
    """All tuned groups move together, and each is credited with its own weights: with one group, those of `Forward`."""
    rule, problem = sgd(momentum=False, weight_decay=False), Net()
    loops = [
        Loop(problem, rule, problem_hypers(rule, (0,), l2=False), Method(estimator, SGD(0.0), every=T))
        for estimator in (Split(), Forward())
    ]
    split, forward = (loop.advance(loop.start(problem.init(2)), T) for loop in loops)
    torch.testing.assert_close(split.memory.w, forward.memory.w, rtol=1e-12, atol=1e-15)
    assert hypergradient(problem, rule, loops[0].hypers, problem.init(2), Split(), T).shape == (2, 1)


def test_a_trace_of_some_groups_is_that_of_these_groups() -> None:
    rule, problem = sgd(momentum=False, weight_decay=False), Net()
    moves = {}
    for tuned in ((0, 2), True):
        loop = Loop(
            problem, rule, problem_hypers(rule, tuned, l2=False), Method(Trace(), SGD(1e-9), outer_loss="training")
        )
        start = loop.start(problem.init(2))
        moves[tuned] = loop.advance(start, T).raw - start.raw
    torch.testing.assert_close(moves[0, 2], moves[True][:, [0, 2]], rtol=1e-5, atol=0)


def test_fixed_groups_stay_through_a_training() -> None:
    problem, rule = Net(), sgd()
    h = problem_hypers(rule, (0, 2))
    loop = Loop(problem, rule, h, Method(Forward(), SGD(0.1), every=2))
    run = loop.start(problem.init(2))
    before = h.at(run.raw, run.fixed).lam
    run = loop.advance(run, T)
    after = h.at(run.raw, run.fixed).lam
    index = h.blocks["lr"].index
    assert torch.equal(after["lr"][:, index == 1], before["lr"][:, index == 1])
    assert (after["lr"][:, index != 1] != before["lr"][:, index != 1]).all()
    assert (after["weight_decay"][:, h.blocks["weight_decay"].index == 1] == 0).all()


def test_a_recorded_training_is_the_same() -> None:
    problem, rule = Net(stationary=True), adamw()
    h = problem_hypers(rule, (0, 2))
    runs = []
    for trace in (False, True):
        loop = Loop(problem, rule, h, Method(Forward(), SGD(0.1), every=2), trace)
        runs.append(loop.advance(loop.start(problem.init(2)), T))
    torch.testing.assert_close(runs[0].raw, runs[1].raw, rtol=1e-12, atol=0)
    torch.testing.assert_close(runs[0].state.w, runs[1].state.w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("level", ["full", "2x2", "L"])
def test_metaoptimize_of_some_groups(level: str) -> None:
    """With a meta rule that stands still, the hypergradients are those of the groups among all."""
    problem, rule = Net(), sgd()
    found = {}
    for tuned in ((0, 2), True):
        given = [
            Hyper("lr", {0: 0.04, 1: 0.06, 2: 0.05}, "log", (0, 1, 2, 1), tuned=tuned),
            Hyper("momentum", 0.5, tuned=False),
            Hyper("weight_decay", [0.1, 0.0], granularity=(0, 1, 0, 1), tuned=False),
        ]
        loop = MetaOptimize(problem, rule, Hypers(given, problem.layout.sizes), SGD(0.0), 0.9, level)
        found[tuned] = loop.hypergradient(loop.advance(loop.start(problem.init(2)), T))
    torch.testing.assert_close(found[0, 2], found[True][:, [0, 2]], rtol=1e-11, atol=1e-15)


def test_values_of_fixed_groups_are_where_the_weights_are() -> None:
    """The group numbers lie on the CPU; torch's fake tensors check the devices of every operation without a GPU."""
    h = hypers(DECAY, Hyper("lr", [0.1, 0.2], granularity=BACKBONE))
    with FakeTensorMode(allow_non_fake_inputs=True):
        raw, fixed = torch.zeros(2, 3, device="cuda"), {"weight_decay": torch.zeros(2, 2, 1, device="cuda")}
        values = h.at(raw, fixed)
        found: list[Tensor] = [*values.lam.values(), *values.tangents().values(), values.slope("weight_decay")]
        found += [values.pull({"weight_decay": torch.zeros(2, 11, device="cuda")})]
        assert {x.device.type for x in found} == {"cuda"}


# -- mistakes ---------------------------------------------------------------------------------------------------------

BAD: dict[str, Any] = {
    r"no group of lr matches the parameter tensors head\.weight, head\.bias; add": lambda: hypers(
        Hyper("lr", 0.1, granularity={"backbone": "features.*"})
    ),
    r"group 'tail' of lr has none of the trained .* features\.0\.weight.*pattern tail\.\*": lambda: hypers(
        Hyper("lr", 0.1, granularity={"tail": "tail.*", "rest": "*"})
    ),
    r"group 'head' of lr has none .*groups before it": lambda: hypers(
        Hyper("lr", 0.1, granularity={"all": "*", "head": "head.*"})
    ),
    r"groups by pattern, and the names .* not known; give Hypers\(\.\.\., names=": lambda: Hypers(
        [Hyper("lr", 0.1, granularity=BACKBONE)], SIZES
    ),
    r"pattern '1d' .*shapes are not known": lambda: Hypers(
        [Hyper("lr", 0.1, granularity={"a": "1d", "b": "*"})], SIZES, names=NAMES
    ),
    r"3 names are given for 4 parameter tensors": lambda: Hypers([Hyper("lr", 0.1)], SIZES, names=NAMES[:3]),
    r"unknown group of lr 'backbon'; did you mean 'backbone'\?": lambda: hypers(
        Hyper("lr", 0.1, granularity=BACKBONE, tuned=["backbon"])
    ),
    r"lr has no group 2; its groups have the numbers 0 to 1": lambda: hypers(
        Hyper("lr", 0.1, granularity=(0, 0, 1, 1), tuned=[2])
    ),
    r"lr has no value for the groups rest": lambda: hypers(
        Hyper("lr", {"backbone": 0.1}, granularity=BACKBONE)
    ).init(W),
    r"unknown group of lr 'head'": lambda: hypers(
        Hyper("lr", {"backbone": 0.1, "head": 0.1}, granularity=BACKBONE)
    ).init(W),
    r"shape \(3,\); expected a number, \[2\] \(one a group\), \[2\] \(one a run\)": lambda: hypers(
        Hyper("lr", [0.1, 0.2, 0.3], granularity=BACKBONE)
    ).init(W),
    r"lr = -1 is outside \(0, inf\)": lambda: hypers(
        Hyper("lr", [0.1, -1.0], "log10", BACKBONE, tuned=["rest"])
    ).init(W),
    r"lr = -2 is outside \(0, inf\)": lambda: hypers(Hyper("lr", [-2.0, 0.1], "log10", BACKBONE, tuned=["rest"])).init(
        W
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_groups_get_one_clear_sentence(message: str) -> None:
    with pytest.raises(GradtuneError, match=message) as caught:
        BAD[message]()
    assert "\n" not in str(caught.value)
