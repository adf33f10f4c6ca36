"""The default call, from any learning rate: the race, the guard, the best weights, and a start for every method."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from gradtune import Hyper, Tuner, hypergradient, tune
from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.methods import METHODS
from gradtune.search import METHODS as SEARCHES
from gradtune.tuning import defaults, schedule
from gradtune.tuning.events import Candidate, Event
from gradtune.tuning.guard import FALL
from gradtune.tuning.history import History
from gradtune.tuning.probe import _winner, candidates, lengths

_DRAW = torch.Generator().manual_seed(0)
X = torch.randn(120, 6, generator=_DRAW)
Y = ((X @ torch.randn(6, 3, generator=_DRAW)).tanh() + 0.5 * torch.randn(120, 3, generator=_DRAW)).argmax(1)
TRAIN, VAL, TEST = (X[:60], Y[:60]), (X[60:90], Y[60:90]), (X[90:], Y[90:])
GRADIENT = [row.name for row in METHODS if row.name not in {s.name for s in SEARCHES}]


SEEN: list[int] = []
"""Rows of validation batches. A list of the loss's own would be brought back after each validation loss."""


def noting(output: Tensor, y: Tensor) -> Tensor:
    SEEN.append(len(y))
    return cross_entropy(output, y)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def by_default(steps: int = 120, model: nn.Module | None = None, **more: Any) -> tuple[nn.Module, History]:
    model = net() if model is None else model
    return tune(model, cross_entropy, TRAIN, VAL, **({"steps": steps, "batch_size": 20} | more))


def loss_of(model: nn.Module, data: tuple[Tensor, Tensor] = VAL) -> float:
    model.eval()
    with torch.no_grad():
        return float(cross_entropy(model(data[0]), data[1]))


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_the_start_does_not_matter() -> None:
    """Every start is one candidate of the race, beside the same others, of which one wins."""
    reference, history = by_default()
    assert history.race is not None and history.race.best is not None and 1e-3 < history.race.best < 0.2
    for start in (1e-6, 10.0):
        model, other = by_default(hypers={"lr": start})
        assert same(model, reference) and other.race is not None and other.race.best == history.race.best
    frame = history.to_frame()
    assert (
        frame["lr"].tolist() == pytest.approx([history.race.best] * len(frame)) and frame["weight_decay"].nunique() > 1
    )


def test_it_is_no_worse_than_most_of_a_grid() -> None:
    ends = sorted(
        loss_of(by_default(rule="adamw", method="fixed", hypers={"lr": lr, "weight_decay": decay})[0])
        for lr in (1e-3, 1e-2, 1e-1)
        for decay in (0.0, 1.0)
    )
    assert loss_of(by_default()[0]) <= 1.5 * ends[0]


def test_the_recipe_is_its_parts() -> None:
    model, history = by_default(240)
    assert history.race is not None and history.race.best is not None
    again, parts = by_default(
        240,
        rule="adamw",
        method="onepass",
        options={"look_back": 3, "every": 20, "lr": 0.1},
        hypers=[
            Hyper("lr", history.race.best, "log10", bounds=(history.race.best, history.race.best)),
            Hyper("weight_decay", min(0.1, 1 / (240 * history.race.best)), "log10", bounds=(0.0, float("inf"))),
        ],
        schedule=schedule.linear(240),
        val_batch_size=20,
        keep="best",
    )
    assert same(model, again) and parts.race is None and parts.events == history.events
    assert torch.equal(history.state()["raw"], parts.state()["raw"])


def test_validation_batches_are_no_larger_than_those_of_training() -> None:
    SEEN.clear()
    tune(net(), cross_entropy, TRAIN, VAL, steps=30, batch_size=20, val_loss=noting)
    assert set(SEEN) == {20, 10}  # all 30 rows are looked at
    SEEN.clear()
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=12)
    tune(net(), cross_entropy, loader, VAL, steps=30, val_loss=noting)
    assert set(SEEN) == {12, 6}
    SEEN.clear()
    tune(net(), cross_entropy, TRAIN, VAL, steps=30, batch_size=20, method="onepass", val_loss=noting)
    assert set(SEEN) == {30}


def test_the_rate_falls_in_a_straight_line_unless_another_schedule_is_given() -> None:
    factors: list[float] = []

    def watch(info: Any) -> None:
        factors.append(info.tuner.factor.value)

    by_default(40, every=1, callbacks=watch)
    assert factors == pytest.approx([1 - 0.99 * k / 40 for k in range(1, 41)])
    factors.clear()
    by_default(40, every=1, callbacks=watch, schedule=schedule.constant)
    assert factors == [1.0] * 40


@pytest.mark.parametrize(("momentum", "rule"), [({}, "adamw"), ({"momentum": 0.9}, "sgd")])
def test_a_momentum_means_sgd(momentum: dict[str, float], rule: str) -> None:
    chosen, tuned, held = defaults.chosen(None, {"lr": 0.1, **momentum}, {}, None)
    assert (chosen, tuned, held) == (rule, {"lr": 0.1, **momentum}, {})
    assert defaults.chosen(None, {"lr": 0.1}, momentum, None)[0] == rule


# -- the race ---------------------------------------------------------------------------------------------------------


def test_candidates_are_two_to_a_decade() -> None:
    assert (
        candidates("adamw") == candidates("norm-clipped adamw") == pytest.approx([10 ** (-4 + k / 2) for k in range(7)])
    )
    assert candidates("sgd") == pytest.approx([10 ** (-3 + k / 2) for k in range(8)])


@pytest.mark.parametrize(("steps", "expected"), [(20, (1, 3)), (100, (4, 12)), (250, (6, 18)), (10**6, (100, 300))])
def test_the_race_is_short(steps: int, expected: tuple[int, int]) -> None:
    assert lengths(steps) == expected


@pytest.mark.parametrize(
    ("losses", "wins"),
    [
        ({1e-3: 1.0, 1e-2: 0.9, 1e-1: 1.1}, 0.1),  # within a quarter of the lowest: the largest
        ({1e-3: 1.0, 1e-2: 0.9, 1e-1: 1.2}, 0.01),
        ({1e-3: -1.0, 1e-2: -0.9, 1e-1: -0.7}, 0.01),
        ({1e-3: 1.99, 1e-2: 1.98, 1e-1: 2.1}, 0.05),  # none has lowered the loss: the middle one
        ({1e-3: float("inf")}, None),
    ],
)
def test_who_wins(losses: dict[float, float], wins: float | None) -> None:
    every = [Candidate(1e-4, 6, 0.1), *(Candidate(lr, 18, loss) for lr, loss in losses.items())]
    assert _winner(every, 2.0, 0.05) == wins


@pytest.mark.parametrize(("scale", "lowest", "highest"), [(1e-6, 1e-6, 0.2), (1e4, 1e-4, 10.0)])
def test_the_range_is_extended_where_its_end_wins(scale: float, lowest: float, highest: float) -> None:
    """Targets far away ask for larger rates; weights that are right already for smaller ones."""
    model = nn.Linear(6, 1)
    y = scale * (X @ torch.ones(6, 1))
    if scale < 1:
        with torch.no_grad():
            model.weight.fill_(scale * 1.05)
            model.bias.zero_()
    history = tune(model, mse_loss, (X[:60], y[:60]), (X[60:], y[60:]), steps=100)[1]
    assert history.race is not None
    rates = [c.lr for c in history.race.candidates]
    assert rates[0] == pytest.approx(lowest, rel=0.01) if scale < 1 else rates[-1] == pytest.approx(highest, rel=0.01)


def test_a_race_leaves_everything_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = net(), 0
            self.seen: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.calls += 1
                self.seen.append(len(x))
            out: Tensor = self.inner(x)
            return out

    log: list[int] = []

    def stop(info: Any) -> bool:
        log.append(info.step)
        return True

    model = Counting()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradtuneWarning)
        history = by_default(60, model, callbacks=stop, every=1)[1]
    assert (
        log == [1] and history.race is not None and history.race.steps == sum(c.steps for c in history.race.candidates)
    )
    assert model.calls == 1 and model.seen == [20]  # one step was taken when the callback ended the training
    assert int(model.inner[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    assert any(not torch.equal(before[n], v) for n, v in model.state_dict().items())
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_all_groups_of_a_rate_keep_their_ratios() -> None:
    hypers: Any = {"lr": {"0.*": 1e-5, "*": 1e-3}}
    _, history = by_default(60, hypers=hypers, every=1, callbacks=lambda info: True)
    frame, race = history.to_frame(), history.race
    assert race is not None and race.best is not None
    first = frame.iloc[0]
    assert first["lr[*]"] / first["lr[0.*]"] == pytest.approx(100, rel=0.3)  # OnePass has moved them once
    assert (first["lr[*]"] * first["lr[0.*]"]) ** 0.5 == pytest.approx(race.best, rel=0.3)


@pytest.mark.parametrize(
    ("hypers", "fixed", "level"),
    [
        ({"lr": 0.01}, {}, 0.01),
        ([Hyper("lr", 0.01, "identity", windows=3)], {}, 0.01),
        ({"lr": {"0.*": 1e-4}}, {"lr": {"*": 1e-2}}, 1e-3),
        ({"weight_decay": 1e-3}, {"lr": 0.02}, 0.02),
        ([Hyper("lr", 0.01, "log", "weight")], {}, 0.01),
    ],
)
def test_all_learning_rates_at_once(hypers: Any, fixed: Any, level: float) -> None:
    tuner = Tuner(net(), cross_entropy, hypers=hypers, fixed=fixed, horizon=9)
    assert tuner.lr == pytest.approx(level, rel=1e-5)
    decay = tuner.hyperparameters.get("weight_decay")
    tuner.scale_lr(0.1)
    assert tuner.lr == pytest.approx(0.1 * level, rel=1e-5) and tuner.hyperparameters.get("weight_decay") == decay
    tuner.lr = 0.003
    assert tuner.lr == pytest.approx(0.003, rel=1e-5)


def test_data_that_end_are_not_raced_on() -> None:
    batches = ((X[20 * (k % 3) : 20 * (k % 3) + 20], Y[20 * (k % 3) : 20 * (k % 3) + 20]) for k in range(40))
    with pytest.warns(GradtuneWarning, match="an iterator, which cannot start again: the learning rate is not probed"):
        _, history = tune(net(), cross_entropy, batches, VAL, steps=40, hypers={"lr": 0.01})
    assert history.race is None and len(history)


def test_a_race_that_nobody_finishes_is_told() -> None:
    x = X[:60].clone()
    x[:, 0] = float("inf")
    with pytest.warns(GradtuneWarning, match="not finite after 4 steps with any of the learning rates 0.0001 to 0.1"):
        tune(net(), cross_entropy, (x, Y[:60]), VAL, steps=100, callbacks=lambda info: True, every=1)


# -- the guard --------------------------------------------------------------------------------------------------------


def diverging(seed: int = 0, **more: Any) -> tuple[nn.Module, History]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    data = (X[:60], X[:60] @ torch.ones(6, 1))
    given: dict[str, Any] = {"steps": 200, "batch_size": 20, "method": "onepass", "hypers": {"lr": 10.0}}
    return tune(model, mse_loss, data, data, **(given | more))


def test_a_training_that_diverges_comes_back() -> None:
    with pytest.warns(GradtuneWarning, match="the training has diverged; the weights of step 0 have come back") as told:
        model, history = diverging()
    assert len(told) == 1 and history.rewinds > 1  # said once, and all of them counted
    frame = history.to_frame()
    assert all(p.isfinite().all() for p in model.parameters()) and frame["val_loss"].iloc[-1] < 1.0
    rewound = [e for e in history.events if e.kind == "rewound"]
    assert rewound[0].lr == pytest.approx(10 * FALL, rel=1e-4) and rewound[1].lr == pytest.approx(
        10 * FALL**2, rel=1e-2
    )
    assert all((0 <= e.since < e.step and e.loss > 10) or e.loss != e.loss for e in rewound)
    assert frame["lr"].iloc[-1] < 1.0
    with pytest.warns(GradtuneWarning, match="diverged; start with a smaller learning rate"):
        alone, without = diverging(guard=False)
    assert not without.events and not all(p.isfinite().all() for p in alone.parameters())


def test_fixed_hyperparameters_stay_fixed() -> None:
    with pytest.warns(GradtuneWarning, match="diverged; start with a smaller learning rate"):
        assert not diverging(method="fixed")[1].events
    with pytest.warns(GradtuneWarning, match="have come back"):
        assert diverging(method="fixed", guard=True)[1].rewinds


def test_a_calm_training_is_not_touched() -> None:
    given: dict[str, Any] = {"method": "onepass", "hypers": {"lr": 0.05, "momentum": 0.5}}
    with_guard, history = by_default(**given)
    assert same(with_guard, by_default(**given, guard=False)[0]) and not history.events


def test_a_bad_batch_costs_its_step_and_no_learning_rate() -> None:
    x = X[:60].clone()
    x[45] = float("nan")
    batches = [(x[k : k + 20], Y[k : k + 20]) for k in (0, 20, 40)]
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    with pytest.warns(GradtuneWarning, match="step 3: the loss of its batch is not finite at weights that were good"):
        _, history = tune(
            model, cross_entropy, batches, VAL, steps=30, method="onepass", hypers={"lr": 0.1}, options={"every": 4}
        )
    assert [e.kind for e in history.events] == ["bad batch"] * 10 and history.rewinds == 0
    assert all(p.isfinite().all() for p in model.parameters())
    assert {e.step for e in history.events} == set(range(3, 31, 3))


def test_a_rate_at_the_end_of_its_range_is_told() -> None:
    with pytest.warns(GradtuneWarning, match="the learning rate has fallen to 0, the end of its range"):
        by_default(method="oho", options={"lr": 1.0}, hypers={"lr": 0.3})


# -- the best weights -------------------------------------------------------------------------------------------------


def test_the_best_weights_are_kept_where_they_are_asked_for() -> None:
    given: dict[str, Any] = {"method": "fixed", "rule": "adamw", "hypers": {"lr": 0.05}, "every": 1}
    ends: list[float] = []
    last, _ = by_default(**given, callbacks=lambda info: ends.append(float(info.tuner.evaluate(VAL))))
    best, history = by_default(**given, keep="best")
    (event,) = history.events
    looked = [ends[k - 1] for k in range(8, 121, 8)]
    assert event.kind == "kept" and event.loss == pytest.approx(min(looked)) and ends[event.since - 1] == min(looked)
    assert loss_of(best) == pytest.approx(min(looked), rel=1e-6) and loss_of(last) > 1.1 * loss_of(best)
    assert history.val == pytest.approx(loss_of(best), rel=1e-6)
    assert history.to_frame()["val_loss"].iloc[-1] == pytest.approx(loss_of(best), rel=1e-6)
    with pytest.raises(GradtuneError, match="unknown choice of what is kept 'bets'; did you mean 'best'"):
        by_default(**given, keep="bets")


def test_a_checkpoint_holds_race_guard_and_best_weights(tmp_path: Path) -> None:
    whole, at_once = by_default(hypers={"lr": 10.0})
    file = tmp_path / "run.pt"

    class Interrupted(Exception):
        pass

    def interrupt(info: Any) -> None:
        if info.step == 60:
            raise Interrupted

    given: dict[str, Any] = {"hypers": {"lr": 10.0}, "checkpoint": file, "checkpoint_seconds": 0.0}
    with pytest.raises(Interrupted):
        by_default(**given, callbacks=interrupt)
    again, history = by_default(**given)
    assert same(whole, again) and history.race == at_once.race and history.events == at_once.events
    assert history.to_frame().equals(at_once.to_frame())


def test_a_training_that_came_back_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(info: Any) -> None:
        if info.step == 20:
            raise Interrupted

    given: dict[str, Any] = {"checkpoint": tmp_path / "run.pt", "checkpoint_seconds": 0.0, "every": 10}
    with pytest.warns(GradtuneWarning):
        whole, at_once = diverging(every=10)
    with pytest.warns(GradtuneWarning), pytest.raises(Interrupted):
        diverging(**given, callbacks=interrupt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again, history = diverging(**given)
    assert same(whole, again) and history.events == at_once.events


# -- a start for every method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRADIENT)
def test_every_method_has_a_start_or_says_why_not(name: str) -> None:
    def train() -> History:
        more: dict[str, Any] = {"restarts": 1} if name == "fds" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradtuneWarning)
            return by_default(40, method=name, **more)[1]

    why = {
        "greedy": "the rate of its outer SGD depends on the scale of your loss",
        "per_step": "the rate of its outer SGD depends on the scale of your loss",
        "unroll1_gtgv": "which only you can name",
        "metaoptimize": "use 'metaoptimize_hf'",
        "idbd": "derived for a linear model",
    }
    if name in why:
        with pytest.raises(GradtuneError, match=why[name]):
            train()
        return
    frame = train().to_frame()
    assert frame["train_loss"].notna().all() and len(frame)


@pytest.mark.parametrize(("steps", "rate"), [(None, 0.02), (100, 0.02), (2000, 0.005), (10**6, 1e-3)])
def test_rates_that_depend_on_the_number_of_steps(steps: int | None, rate: float) -> None:
    assert defaults.options("metaoptimize_hf", steps)["meta"].lr == pytest.approx(rate)
    assert defaults.options("hd", steps) == {"lr": pytest.approx(rate), "multiplicative": True}


def test_what_nobody_can_choose_is_asked_for() -> None:
    with pytest.raises(GradtuneError, match="nothing is said of what to tune"):
        by_default(fixed={"lr": 0.1, "weight_decay": 0.1})
    with pytest.raises(GradtuneError, match="the default method updates the hyperparameters on validation data"):
        tune(net(), cross_entropy, TRAIN, steps=40)


# -- history --------------------------------------------------------------------------------------------------------


def test_the_figure_shows_events() -> None:
    import matplotlib.pyplot as plt

    with pytest.warns(GradtuneWarning):
        history = diverging()[1]
    figure = history.plot()
    upright = [line for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]  # type: ignore[arg-type]
    assert len(upright) == len(history.events)
    plt.close(figure)


def test_happenings_survive_a_round_trip() -> None:
    history = by_default()[1]
    history.events.append(Event(3, "rewound", 1.0, 0.1, 2))
    other = History(history._hypers, [])
    other.load_happenings(history.happenings())
    assert other.events == history.events and other.race == history.race


# -- weights that a loss does not reach, with a rule that counts steps ------------------------------------------------


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


@pytest.mark.parametrize("method", ["onepass", "diff_through_opt", "oho"])
def test_counters_of_weights_that_are_not_reached(method: str) -> None:
    """At the first step a counter is one number before, and one a weight after."""
    given: Any = {"rule": "adamw", "method": method, "hypers": {"lr": 0.01}}
    given["options"] = {} if method == "oho" else {"every": 1}
    torch.manual_seed(0)
    whole = Half().double()
    reached = Half().double().used
    reached.load_state_dict(whole.used.state_dict())
    data = (TRAIN[0].double(), TRAIN[1]), (VAL[0].double(), VAL[1])
    rates = [tune(m, cross_entropy, *data, steps=3, **given)[1].to_frame()["lr"].tolist() for m in (whole, reached)]
    assert rates[0] == pytest.approx(rates[1], rel=1e-12)
    found = hypergradient(whole, cross_entropy, [data[0]], data[1], rule="adamw", hypers={"lr": 0.01})
    assert abs(found.values["lr"]) > 0


# -- how large a loss is at the start ---------------------------------------------------------------------------------


def test_a_first_batch_without_events_does_not_look_like_a_divergence() -> None:
    """Most targets are 0, and the first batch may have nothing else: its loss says little of those to come."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 6, generator=draw)
    y = ((x[:, :1] > 1.4) * (30 + 10 * x[:, 1:2])).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    data = (x[:800], y[:800]), (x[800:], y[800:])
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradtuneWarning)
        history = tune(model, mse_loss, *data, steps=300, batch_size=8)[1]
    assert history.rewinds == 0


def test_a_training_that_a_callback_ends_keeps_its_best_weights_too() -> None:
    ends: list[float] = []

    def watch(info: Any) -> bool:
        ends.append(float(info.tuner.evaluate(VAL)))
        return info.step == 100

    given: dict[str, Any] = {"method": "fixed", "rule": "adamw", "hypers": {"lr": 0.05}, "every": 1}
    best, history = by_default(**given, keep="best", callbacks=watch)
    looked = [ends[k - 1] for k in range(8, 97, 8)]
    assert loss_of(best) == pytest.approx(min(looked), rel=1e-6) and history.events[-1].kind == "kept"
