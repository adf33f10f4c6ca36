"""A model of one's own trained many times: trials against `tune`, copies against schedules, and what a user is told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from gradtune import Tuner, tune
from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hyper
from gradtune.search import METHODS, Dimension
from gradtune.tuning.by_search import Found, tune_by_search
from gradtune.tuning.streams import stream
from gradtune.tuning.trials import Trial, Trials

RNG = torch.Generator().manual_seed(0)
X = torch.randn(160, 64, generator=RNG)
Y = (X @ torch.randn(64, 10, generator=RNG) + 3 * torch.randn(160, 10, generator=RNG)).argmax(1)
TRAIN, VAL = (X[:120], Y[:120]), (X[120:], Y[120:])
SPACE: dict[str, Any] = {"lr": (1e-3, 1.0), "weight_decay": (1e-5, 1e-1)}
MOMENTUM = {"momentum": 0.9}
STEPS = 15


def net(seed: int = 0) -> nn.Sequential:
    """For images of 8 x 8, with running statistics and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10, bias=False)
    )


def searched(model: nn.Module | None = None, **changes: Any) -> Found:
    given: dict[str, Any] = {"loss": cross_entropy, "train": TRAIN, "val": VAL, "space": SPACE, "steps": STEPS}
    given |= {"trials": 4, "fixed": MOMENTUM, "batch_size": 30, "seed": 1} | changes
    return tune_by_search(model or net(), **given)


def fixed(config: dict[str, float] | None, steps: int = STEPS, **changes: Any) -> nn.Module:
    """The same training by `tune`."""
    given: dict[str, Any] = {"train": TRAIN, "batch_size": 30, "seed": 1} | changes
    values = MOMENTUM | (config or {})
    return tune(net(), cross_entropy, steps=steps, hypers={}, fixed=values, method="fixed", **given).model


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def evaluated(model: nn.Module, x: Tensor = VAL[0], y: Tensor = VAL[1]) -> float:
    model.eval()
    with torch.no_grad():
        loss = float(cross_entropy(model(x), y))
    model.train()
    return loss


# -- trials -----------------------------------------------------------------------------------------------------------


def test_random_search_returns_the_best_of_its_trials() -> None:
    model = net()
    found = searched(model)
    frame = found.to_frame()
    assert found.model is model and found.search.spent_steps == 4 * STEPS and frame["steps"].tolist() == [STEPS] * 4
    best = frame.loc[frame["val_loss"].idxmin()]
    assert found.best == {n: best[n] for n in SPACE} and found.val_loss == best["val_loss"]
    assert evaluated(model) == pytest.approx(found.val_loss, rel=1e-6)
    assert frame[[*SPACE]].drop_duplicates().shape == (4, 2)


def test_every_trial_is_tune_with_the_same_hyperparameters_to_the_bit() -> None:
    found = searched()
    for _, row in found.to_frame().iterrows():
        model = fixed({n: row[n] for n in SPACE})
        assert evaluated(model) == pytest.approx(row["val_loss"], rel=1e-6)
        assert same(model, found.model) == (row["val_loss"] == found.val_loss)


def loader(own: bool) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(7) if own else None
    return DataLoader(TensorDataset(*TRAIN), batch_size=32, shuffle=True, generator=generator)


class Stream(IterableDataset[Any]):
    """A loader without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(X[k : k + 30], Y[k : k + 30]) for k in range(0, 120, 30)])


@pytest.mark.parametrize("name", ["random", "asha", "pbt"])
@pytest.mark.parametrize("kind", ["global", "generator", "stream", "list"])
def test_trials_on_a_loader(name: str, kind: str) -> None:
    """One after another or side by side: none moves the order of another, or the loader's own generator."""
    other: dict[str, Any] = {"stream": DataLoader(Stream(), batch_size=None), "list": [*Stream()]}
    data = other[kind] if kind in other else loader(kind == "generator")
    options = {"size": 2, "interval": STEPS} if name == "pbt" else {}
    found = searched(train=data, batch_size=None, method=name, options=options)
    frame = found.to_frame()
    best = frame.loc[frame["val_loss"].idxmin()]
    again = fixed(found.best, int(best["steps"]), train=data, batch_size=None)
    assert same(found.model, again)


def test_side_by_side_is_one_after_another() -> None:
    alone, beside = searched(), searched(options={"batch": 3})
    assert same(alone.model, beside.model)
    columns = [*SPACE, "steps", "val_loss"]
    assert alone.to_frame()[columns].equals(beside.to_frame()[columns])


@pytest.mark.parametrize("name", [m.name for m in METHODS])
def test_every_search_runs_and_its_answer_is_its_best_evaluation(name: str) -> None:
    few: dict[str, Any] = {"grid": {"points": 2}, "bayes": {"startup": 2}, "pbt": {"size": 3, "interval": 5}}
    counted = [0]

    def loss(output: Tensor, y: Tensor) -> Tensor:
        counted[0] += torch.is_grad_enabled()
        return cross_entropy(output, y)

    found = searched(loss=loss, method=name, options=few.get(name, {}))
    frame = found.to_frame()
    assert found.search.spent_steps == 4 * STEPS == frame.groupby("trial")["steps"].max().sum()
    assert 4 * STEPS <= counted[0] <= 4 * STEPS + frame["trial"].nunique()  # a trial may look for random numbers once
    assert found.val_loss == frame["val_loss"].min()
    assert evaluated(found.model) == pytest.approx(found.val_loss, rel=1e-6)


def test_asha_stops_poor_trials_early_and_takes_no_step_twice() -> None:
    """The best trial, whatever its rungs, is the training that was never looked at."""
    found = searched(method="asha", trials=6, steps=27, seed=2)
    frame = found.to_frame()
    assert frame["trial"].nunique() > 6 and set(frame["steps"]) <= {1, 3, 9, 27} | {int(frame["steps"].iloc[-1])}
    best = frame.loc[frame["val_loss"].idxmin()]
    assert len(frame[frame["trial"] == best["trial"]]) > 1
    assert same(found.model, fixed(found.best, int(best["steps"]), seed=2))


def test_the_rate_of_random_xlr_is_stepped_every_ten_steps() -> None:
    found = searched(method="random_xlr", steps=30, trials=1)
    best = found.best
    assert best is not None and set(best) == {*SPACE, "lr_multiplier"}
    values = best["lr"] * best["lr_multiplier"] ** torch.arange(3, dtype=torch.float64)
    hypers = [Hyper("lr", values, "log10", windows=3, tuned=False)]
    given: dict[str, Any] = {"fixed": MOMENTUM | {"weight_decay": best["weight_decay"]}, "method": "fixed"}
    model = tune(net(), cross_entropy, TRAIN, steps=30, hypers=hypers, batch_size=30, seed=1, **given).model
    assert same(found.model, model)


# -- population based training ----------------------------------------------------------------------------------------


def trials(rule: str = "sgd", train: Any = TRAIN, size: int | None = 30, **more: Any) -> Trials:
    feed, val = stream(train, X, size, 2, "the data"), stream(VAL, X, None, 3, "the data")
    given = {"beta1": 0.8} if rule == "adamw" else MOMENTUM
    return Trials(net(), cross_entropy, feed, val, 16, {}, {"seed": 1, "rule": rule, "fixed": given}, **more)


@pytest.mark.parametrize("rule", ["sgd", "adamw"])
def test_a_copy_goes_on_as_a_schedule_of_its_two_configurations(rule: str) -> None:
    """Weights, running statistics, the rule's buffers and the step count are the donor's, to the bit; its neighbours do
    not notice."""
    t = trials(rule)
    configs = [{"lr": 0.01}, {"lr": 0.1}, {"lr": 0.02}]
    half = t.advance(t.start(configs, [0, 0, 0]), 8)
    after = t.advance(t.select(half, [0, 1, 1], [configs[0], configs[1], {"lr": 0.05}]), 8)
    for trial, rates in zip(after, ([0.01, 0.01], [0.1, 0.1], [0.1, 0.05]), strict=True):
        hyper = Hyper("lr", torch.tensor(rates, dtype=torch.float64), "log10", windows=2, tuned=False)
        tuner = Tuner(net(), cross_entropy, hypers=[hyper], method="fixed", horizon=16, **t.arguments)
        for k in range(16):
            tuner.step(t.train.at(k))
        assert same(trial.tuner.model, tuner.model) and trial.tuner.steps == 16


def test_a_copy_shares_no_memory_with_its_donor() -> None:
    t = trials()
    first, copy = t.select(t.advance(t.start([{"lr": 0.1}] * 2, [0, 0]), 2), [0, 0], [{"lr": 0.1}, {"lr": 0.1}])
    assert same(first.tuner.model, copy.tuner.model)
    places = [{x.untyped_storage().data_ptr() for x in m.tuner.model.state_dict().values()} for m in (first, copy)]
    assert not places[0] & places[1]


def test_copies_on_a_loader_go_on_with_the_next_batch() -> None:
    for own in (False, True):
        t = trials(train=loader(own), size=None)
        half = t.advance(t.start([{"lr": 0.01}, {"lr": 0.1}], [0, 0]), 6)
        after = t.advance(t.select(half, [1, 1], [{"lr": 0.1}, {"lr": 0.1}]), 6)
        (alone,) = t.advance(t.start([{"lr": 0.1}], [0]), 12)
        assert all(same(trial.tuner.model, alone.tuner.model) for trial in after)


def test_a_copy_takes_over_the_schedule_of_its_donor() -> None:
    t = trials(schedule=lambda factor: CosineAnnealingLR(factor, 16))
    half = t.advance(t.start([{"lr": 0.01}, {"lr": 0.1}], [0, 0]), 6)
    after = t.advance(t.select(half, [1, 1], [{"lr": 0.1}, {"lr": 0.05}]), 10)
    hyper = Hyper("lr", 0.1, "log10", tuned=False)
    tuner = Tuner(net(), cross_entropy, hypers=[hyper], method="fixed", horizon=16, **t.arguments)
    schedule = CosineAnnealingLR(tuner.factor, 16)
    for k in range(16):
        tuner.step(t.train.at(k))
        schedule.step()
    assert same(after[0].tuner.model, tuner.model) and not same(after[1].tuner.model, tuner.model)
    assert after[1].tuner.factor.value == tuner.factor.value


def test_pbt_copies_and_perturbs() -> None:
    found = searched(method="pbt", options={"size": 4, "interval": 5, "fraction": 0.5}, seed=0)
    frame = found.to_frame()
    copied = frame[frame["copied_from"].notna()]
    assert len(copied) > 0 and found.search.stopped.endswith("no trial was cut")
    before = frame.set_index(["trial", "steps"])
    for _, row in copied.iterrows():
        donor = before.loc[(row["copied_from"], row["steps"] - 5)]
        for n, (low, high) in SPACE.items():
            assert row[n] in [min(max(donor[n] * f, low), high) for f in (1.2, 0.8)]


# -- the arguments of `tune` ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"accumulate": 2},
        {"clip_norm": 0.5, "clip_value": 0.1},
        {"schedule": lambda factor: CosineAnnealingLR(factor, STEPS)},
        {"rule": "adamw", "fixed": {}},
        {"train": {"input": X[:120], "labels": Y[:120]}},
        {"train": (X[:120].double().numpy(), Y[:120].numpy())},
    ],
    ids=["accumulate", "clip", "schedule", "adamw", "dict", "arrays"],
)
def test_arguments_mean_what_they_mean_in_tune(more: dict[str, Any]) -> None:
    found = searched(trials=2, **more)
    values = more.get("fixed", MOMENTUM) | (found.best or {})
    given: dict[str, Any] = {"train": TRAIN, "batch_size": 30, "seed": 1, "steps": STEPS} | more | {"fixed": values}
    assert same(found.model, tune(net(), cross_entropy, hypers={}, method="fixed", **given).model)


def test_epochs_and_a_test_set() -> None:
    found = searched(steps=None, epochs=3, trials=2, test=(VAL[0][:20], VAL[1][:20]), val_batch_size=8)
    assert found.search.trial_steps == 12 and found.search.spent_steps == 24
    assert found.test == pytest.approx(evaluated(found.model, VAL[0][:20], VAL[1][:20]), rel=1e-5)
    assert searched(trials=1, steps=2).test is None


class OwnLoss(nn.Module):
    """Returns its loss, as models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": cross_entropy(self.net(x), labels)}


def test_a_model_that_returns_its_loss() -> None:
    train, val = ({"x": x, "labels": y} for x, y in (TRAIN, VAL))
    found = searched(OwnLoss(), loss=None, train=train, val=val)
    assert same(found.model.net, searched().model)  # type: ignore[arg-type]


# -- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("val", "size"),
    [
        (VAL, None),
        (VAL, 16),
        ([(VAL[0][:25], VAL[1][:25]), (VAL[0][25:], VAL[1][25:])], None),
        (DataLoader(TensorDataset(*VAL), batch_size=16, shuffle=True), None),
        ((VAL[0].numpy(), VAL[1].numpy()), 7),
    ],
    ids=["all", "rows", "list", "loader", "arrays"],
)
def test_validation_is_a_pass_through_all_rows(val: Any, size: int | None) -> None:
    found = searched(val=val, val_batch_size=size)
    expected = searched()
    assert found.to_frame()["val_loss"].tolist() == pytest.approx(expected.to_frame()["val_loss"].tolist(), rel=1e-5)
    assert same(found.model, expected.model)


def test_validation_on_some_batches() -> None:
    found = searched(val_batch_size=10, val_batches=2)
    assert found.val_loss == pytest.approx(evaluated(found.model, VAL[0][:20], VAL[1][:20]), rel=1e-5)


def test_a_validation_loss_and_hyperparameters_of_ones_own() -> None:
    def loss(output: Tensor, y: Tensor, power: Tensor) -> Tensor:
        return cross_entropy(output, y) + power * (output**2).mean()

    space = {"lr": (1e-2, 1e-1), "power": (0.0, 1.0), "momentum": Dimension(0.0, 0.9)}
    found = searched(loss=loss, val_loss=cross_entropy, space=space, fixed={}, trials=3)
    assert found.best is not None and 0 <= found.best["power"] <= 1
    assert evaluated(found.model) == pytest.approx(found.val_loss, rel=1e-6)


# -- the space --------------------------------------------------------------------------------------------------------


def test_pairs_are_searched_in_the_usual_coordinates() -> None:
    space = {"lr": (0.01, 1.0), "momentum": (0.5, 0.9), "weight_decay": Dimension(0.0, 0.1)}
    frame = searched(space=space, fixed={}, method="grid", options={"points": 3}, steps=1, trials=None).to_frame()
    assert len(frame) == 27  # all points are paid for
    middle = 1 / (1 + math.exp(-(math.log(1) + math.log(9)) / 2))
    assert sorted(set(frame["lr"])) == pytest.approx([0.01, 0.1, 1.0])
    assert sorted(set(frame["momentum"])) == pytest.approx([0.5, middle, 0.9])
    assert sorted(set(frame["weight_decay"])) == pytest.approx([0.0, 0.05, 0.1])


# -- the model that is given ------------------------------------------------------------------------------------------


def test_the_model_ends_with_tensors_of_its_own_or_is_left_alone() -> None:
    model = net()
    parameters = list(model.parameters())
    found = searched(model, trials=2)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    places = {x.untyped_storage().data_ptr() for x in model.state_dict().values()}
    assert len(places) == len(model.state_dict()) and model.training
    given = net()
    other = searched(given, trials=2, in_place=False)
    assert same(given, net()) and other.model is not given and same(other.model, found.model)


def test_the_search_draws_no_numbers_of_torchs() -> None:
    model = net()
    before = torch.get_rng_state()
    searched(model, trials=1)
    assert torch.equal(before, torch.get_rng_state())


def test_when_every_trial_diverges_the_model_is_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    before = model.weight.detach().clone()
    found = searched(model, loss=lambda o, y: o.square().mean(), space={"lr": (1e3, 1e4)}, trials=2)
    assert found.best is None and math.isnan(found.val_loss) and torch.equal(model.weight, before)
    assert not np.isfinite(found.to_frame()["val_loss"]).any()


# -- interruption -----------------------------------------------------------------------------------------------------


def stopping(after: int) -> Any:
    left = [after]

    def loss(output: Tensor, y: Tensor) -> Tensor:
        left[0] -= torch.is_grad_enabled()
        if left[0] < 0:
            raise KeyboardInterrupt
        return cross_entropy(output, y)

    return loss


def test_an_interrupted_search_returns_what_it_has() -> None:
    found = searched(loss=stopping(int(2.5 * STEPS)))
    frame = found.to_frame()
    assert found.search.stopped == f"{2 * STEPS} of {4 * STEPS} training steps are spent; it was interrupted"
    assert frame["val_loss"].tolist() == searched().to_frame()["val_loss"].tolist()[:2]
    assert same(found.model, fixed(found.best)) and found.val_loss == frame["val_loss"].min()
    model = net()
    with pytest.raises(KeyboardInterrupt):
        searched(model, loss=stopping(5))
    assert same(model, net())


# -- faults -----------------------------------------------------------------------------------------------------------


class Uncopied(nn.Sequential):
    """Its attribute is a tensor with a graph, which torch does not copy."""

    def __init__(self) -> None:
        super().__init__(first := nn.Linear(64, 10))
        self.last = first.weight * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "onepass"}, r"onepass moves hyperparameters by gradients.*use gradtune\.tune\(\.\.\., method='one"),
        ({"method": "randm"}, r"unknown search method 'randm'; did you mean 'random'\?"),
        ({"options": {"point": 3}, "method": "grid"}, "unknown option of grid 'point'; did you mean 'points'"),
        ({"trials": None}, "trials = None and budget_steps = None; give one of them"),
        ({"budget_steps": 10}, "trials = 4 and budget_steps = 10; give one of them"),
        ({"trials": 0}, "trials = 0; expected a whole number >= 1"),
        ({"trials": None, "budget_steps": 0}, "budget_steps = 0; expected a whole number >= 1"),
        ({"steps": 0}, "steps = 0; expected a whole number >= 1"),
        ({"steps": None}, "steps = None and epochs = None; give one of the two"),
        ({"epochs": 3}, "steps = 15 and epochs = 3; give one of the two"),
        ({"steps": None, "epochs": 0}, "epochs = 0; expected a whole number >= 1"),
        ({"seed": -1}, "seed = -1; expected a whole number >= 0"),
        ({"val": None}, "val is missing"),
        ({"space": {}}, "the search space has no dimension"),
        ({"space": {"lr": 0.1}}, r"space\['lr'\] is 0\.1; expected the lowest and the highest value"),
        ({"space": {"lr": (0.1, "a")}}, r"space\['lr'\] is \(0\.1, 'a'\); expected"),
        ({"space": {"lr": (0.1, 0.01)}}, r"space\['lr'\]: the range from 0\.1 to 0\.01 cannot be searched"),
        ({"space": {"lr": (0.0, 0.1)}}, r"the values that log10 expresses; a Dimension\(low, high\) is searched unif"),
        ({"space": {"lr": Dimension(-1.0, 1.0)}}, "lr = -1 is outside"),
        ({"space": {"lr": (0.1, 0.2), "weight_deca": (0.1, 0.2)}}, "unknown hyperparameter 'weight_deca'; did you m"),
        ({"space": SPACE | {"momentum": (0.1, 0.2)}}, r"\['momentum'\] are given in space and in fixed"),
        ({"space": {"weight_decay": (0.1, 0.2)}}, r"\['lr'\] are not given"),
        ({"train": iter([TRAIN]), "batch_size": None}, "the training data are an iterator .*cannot start again"),
        ({"val": iter([VAL])}, "the validation data are an iterator"),
        ({"train": [TRAIN]}, "a list of 1 batches, each of which has a batch size of its own"),
        ({"val": VAL, "val_batch_size": 41}, "a batch of 41 cannot be drawn from 40 rows"),
        ({"val": []}, "the validation data yields no batch"),
        ({"rule": "sdg"}, "unknown update rule 'sdg'"),
        ({"model": nn.ReLU()}, "no parameters to train"),
        ({"model": net().eval()}, "is in evaluation mode"),
        ({"model": Uncopied()}, "Uncopied cannot be copied"),
        ({"method": "pbt", "options": {"size": 1}}, "size = 1"),
        (
            {"method": "random_xlr", "space": {"weight_decay": (0.1, 0.2)}, "fixed": {"lr": 0.1}},
            "lr_multiplier steps the learning rate, and 'lr' is not in the space",
        ),
    ],
)
def test_a_mistake_is_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GradtuneError, match=message) as caught:
        searched(**change)
    if "Uncopied" not in message:  # torch's own words
        assert "\n" not in str(caught.value)


def test_persistent_workers_serve_one_trial_at_a_time() -> None:
    data = DataLoader(TensorDataset(*TRAIN), batch_size=30, num_workers=1, persistent_workers=True)
    message = "3 trials are trained side by side, .* persistent_workers=True, which serves one at a time"
    with pytest.raises(GradtuneError, match=message):
        searched(train=data, batch_size=None, method="pbt", options={"size": 3})


def test_runs_with_a_stepped_rate_are_not_copied() -> None:
    t = trials()
    members: list[Trial] = t.start([{"lr": 0.1, "lr_multiplier": 0.9}], [0])
    with pytest.raises(GradtuneError, match="search without lr_multiplier"):
        t.select(members, [0], [{"lr": 0.1, "lr_multiplier": 0.9}])
