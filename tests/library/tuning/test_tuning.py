"""A model of one's own: `tune` and `Tuner` against each other, torch's training and a loop by hand; resume; faults."""

from __future__ import annotations

import copy
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

import gradtune
from gradtune import History, Info, Tuner, tune
from gradtune.errors import GradtuneError
from gradtune.estimators.forward import Forward
from gradtune.estimators.reverse import Reverse
from gradtune.nets.losses import cross_entropy as smoothed
from gradtune.nets.modules import batched
from gradtune.nets.plain import Dropout
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import sgd
from gradtune.training.loop import Loop, Method
from tools import ROOT

RNG = torch.Generator().manual_seed(3)
X, Y = torch.randn(40, 6, generator=RNG), torch.randint(0, 3, (40,), generator=RNG)
TRAIN, VAL = (X[:28], Y[:28]), (X[28:], Y[28:])
LR = {"lr": 0.05}
THREE = {"lr": 0.05, "weight_decay": 1e-3, "momentum": 0.8}
# method -> options, what is tuned
CASES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "onepass": ({"every": 4}, THREE),
    "oho": ({"lr": 1e-3}, THREE),
    "clip_r": ({"radius": 0.5, "scale": 5.0, "warm_up": 2}, THREE),
    "diff_through_opt": ({"horizon": 3, "every": 4}, THREE),
    "metaoptimize_hf": ({}, LR),
    "hd": ({"lr": 0.01}, LR),
}


def net(seed: int = 0, dropout: float = 0.2) -> nn.Sequential:
    """A net with everything that is not a weight: running statistics and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)
    )


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def same(a: nn.Module, b: nn.Module) -> bool:
    """Equal to the bit, buffers too."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def options(method: str) -> dict[str, Any]:
    given, hypers = CASES[method]
    return {"method": method, "options": given, "hypers": hypers}


# -- one training, three ways -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CASES)
def test_tune_is_a_loop_over_the_tuner(method: str) -> None:
    batches = [(X[k : k + 7], Y[k : k + 7]) for k in (0, 7, 14, 21)]
    by_tune, history = tune(net(), cross_entropy, batches, VAL, steps=11, every=1, **options(method))
    tuner = Tuner(model := net(), cross_entropy, **options(method))
    infos = []
    for batch in itertools.islice(itertools.cycle(batches), 11):
        infos.append(tuner.step(batch, VAL if tuner.needs_val else None))
    assert same(by_tune, model)
    frame = history.to_frame()
    assert frame["train_loss"].tolist() == [info.train_loss for info in infos]
    assert {n: frame[n].iloc[-1] for n in CASES[method][1]} == pytest.approx(tuner.hyperparameters, rel=1e-6)
    used = [k for k, info in enumerate(infos) if info.val is not None]
    assert frame["val_loss"][used].tolist() == [infos[k].val_loss for k in used]
    how = tuner.method
    assert [info.updated for info in infos] == [k > how.warm_up and k % how.every == 0 for k in range(1, 12)]


class ByHand:
    """The same training as a problem written by hand, on the batches in order."""

    stationary = False

    def __init__(self, module: nn.Module) -> None:
        self.loss = batched(module, cross_entropy)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        rows = slice(7 * (t % 4), 7 * (t % 4) + 7)
        return self.loss(w, X[rows].double(), Y[rows])

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        return self.loss(w, VAL[0].double(), VAL[1], mode="eval")


@pytest.mark.parametrize("method", CASES)
def test_the_tuner_moves_hyperparameters_as_the_loop_does(method: str) -> None:
    tuner = Tuner(plain().double(), cross_entropy, **options(method))
    problem = ByHand(module := plain().double())
    hypers = tuner.hypers
    rule = sgd(momentum="momentum" in hypers.tuned, weight_decay="weight_decay" in hypers.tuned)
    loop = Loop(problem, rule, hypers, tuner.method)
    run = loop.start(problem.loss.layout.flatten(dict(module.named_parameters()))[None])
    run = loop.advance(run, 10)
    for t in range(10):
        rows = slice(7 * (t % 4), 7 * (t % 4) + 7)
        tuner.step((X[rows].double(), Y[rows]), (VAL[0].double(), VAL[1]))
    start = hypers.init(run.state.w)[0][0]
    assert (tuner.raw - start).abs().min() > 0  # all have moved
    torch.testing.assert_close(tuner.raw, run.raw[0], rtol=1e-12, atol=1e-14)
    flat = torch.cat([p.detach().flatten() for p in tuner.model.parameters()])
    torch.testing.assert_close(flat, run.state.w[0], rtol=1e-12, atol=1e-14)


SGD_TERMS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


@pytest.mark.parametrize(
    ("rule", "hypers", "theirs"),
    [
        ("sgd", SGD_TERMS, torch.optim.SGD),
        ("sgd", {"lr": 0.1}, torch.optim.SGD),
        ("nesterov", SGD_TERMS, partial(torch.optim.SGD, nesterov=True)),
        ("adamw", {"lr": 0.01}, torch.optim.AdamW),
        ("rmsprop", {"lr": 0.01}, torch.optim.RMSprop),
    ],
)
def test_without_tuning_it_is_ordinary_training(rule: str, hypers: dict[str, float], theirs: Any) -> None:
    """torch's optimiser and defaults, batch norm's running statistics included."""
    x, model = X.double(), net(dropout=0.0).double()
    expected = copy.deepcopy(model)
    tuner = Tuner(model, cross_entropy, rule=rule, hypers=hypers, method="fixed")
    optimiser = theirs(expected.parameters(), **hypers)
    for k in range(6):
        rows = slice(7 * (k % 4), 7 * (k % 4) + 7)
        tuner.step((x[rows], Y[rows]))
        optimiser.zero_grad()
        cross_entropy(expected(x[rows]), Y[rows]).backward()
        optimiser.step()
    for (name, ours), wanted in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("estimator", [Reverse(5), Reverse(5, "graph"), Forward()], ids=["state", "graph", "forward"])
def test_the_hypergradient_is_exact_with_batch_norm_and_dropout(estimator: Any) -> None:
    """Against central differences of whole trainings; without running statistics, which count as constants."""
    x, val = X.double(), (VAL[0].double(), VAL[1])

    def model() -> nn.Module:
        module = net().double()
        module[1] = nn.BatchNorm1d(8, track_running_stats=False).double()
        return module

    def trained(hypers: dict[str, float], how: Method) -> Tuner:
        tuner = Tuner(model(), cross_entropy, hypers=hypers, method=how, seed=4)
        for k in range(5):
            tuner.step((x[4 * k : 4 * k + 6], Y[4 * k : 4 * k + 6]), val)
        return tuner

    tuner = trained(THREE, Method(estimator, SGD(1.0), every=5))
    start = tuner.hypers.init(torch.zeros(1, 1, dtype=torch.float64))[0]
    for k, (name, e) in enumerate(itertools.product(THREE, [1e-5])):
        ends = []
        for sign in (1, -1):
            raw = start.clone()
            raw[0, k] += sign * e
            moved = {n: float(v) for n, v in tuner.hypers.natural(raw).items()}
            ends.append(float(trained(moved, Method()).evaluate(val)))
        assert float(start[0, k] - tuner.raw[k]) == pytest.approx((ends[0] - ends[1]) / (2 * e), rel=1e-5), name


def test_a_step_without_an_outer_update_is_one_pass() -> None:
    module, calls = net(), []
    module[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    tune(module, cross_entropy, TRAIN, VAL, steps=8, batch_size=7, hypers=THREE, method="onepass", options={"every": 4})
    # once a check of the second derivative, and the loss itself computed twice; at each of two validation gradients a
    # training batch for batch norm's statistics
    assert calls == [True] * (3 + 8 + 2 * 2)


# -- what is not a weight ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [Reverse(3), Forward(product=0.01), Forward()], ids=["reverse", "differences", "forward"]
)
def test_running_statistics_move_once_a_step(how: Any) -> None:
    """However often the method evaluates a step's loss."""
    module = net()
    tune(module, cross_entropy, TRAIN, VAL, steps=7, batch_size=7, hypers=THREE, method=Method(how, SGD(1e-3), every=3))
    buffers = dict(module.named_buffers())
    assert int(buffers["1.num_batches_tracked"]) == 7
    assert not torch.equal(buffers["1.running_mean"], torch.zeros(8))


def test_a_frozen_batch_norm_stays_frozen() -> None:
    module = net()
    module[1].eval()
    tune(module, cross_entropy, TRAIN, VAL, steps=5, hypers=LR, options={"every": 2})
    assert (
        int(dict(module.named_buffers())["1.num_batches_tracked"]) == 0 and not module[1].training and module.training
    )


class Functional(nn.Module):
    """Dropout that no layer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(functional.dropout(x, 0.5, self.training))


def test_random_numbers_are_found_and_follow_the_seed() -> None:
    def trained(seed: int) -> nn.Module:
        torch.manual_seed(0)
        model = Functional()
        torch.manual_seed(seed + 100)  # must not matter
        before = torch.get_rng_state()
        tune(model, cross_entropy, TRAIN, VAL, steps=4, hypers=LR, method="diff_through_opt", seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return model

    assert same(trained(1), trained(1))
    assert not same(trained(1), trained(2))


def test_frozen_parameters_are_not_weights() -> None:
    module = net()
    module[0].requires_grad_(False)
    before = [p.clone() for p in module[0].parameters()]
    tuner = Tuner(module, cross_entropy, hypers=LR)
    tuner.step(TRAIN)
    assert all(torch.equal(a, b) for a, b in zip(before, module[0].parameters(), strict=True))
    assert tuner.names == ("1.weight", "1.bias", "4.weight", "4.bias")
    assert [p.requires_grad for p in module.parameters()] == [False, True, True, True, True]


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).tanh())

    model, expected = Tied(), Tied()
    tune(model, mse_loss, (X, X), steps=3, hypers=LR, method="fixed")
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.05)
    for _ in range(3):
        optimiser.zero_grad()
        mse_loss(expected(X), X).backward()
        optimiser.step()
    assert model.a.weight is model.b.weight
    torch.testing.assert_close(model.a.weight, expected.a.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_floating_type(dtype: torch.dtype) -> None:
    model, history = tune(
        plain().to(dtype), cross_entropy, (X.to(dtype), Y), (VAL[0].to(dtype), VAL[1]), steps=4, hypers=LR
    )
    assert {p.dtype for p in model.parameters()} == {dtype} and len(history.to_frame()) == 4


# -- the model between two steps --------------------------------------------------------------------------------------


def test_the_model_is_the_trained_one_between_steps() -> None:
    model = net()
    parameters = list(model.parameters())
    tuner = Tuner(model, cross_entropy, hypers=LR, options={"every": 1})
    tuner.step(TRAIN, VAL)
    snapshot = model.state_dict()
    kept = {n: v.clone() for n, v in snapshot.items()}
    tuner.step(TRAIN, VAL)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(snapshot[n], kept[n]) for n in kept)  # later steps leave it alone
    assert not torch.equal(model.state_dict()["0.weight"], kept["0.weight"])
    model.eval()
    with torch.no_grad():
        assert float(cross_entropy(model(VAL[0]), VAL[1])) == float(tuner.evaluate(VAL))
    model.train()
    model.load_state_dict(kept)
    with torch.no_grad():
        model.eval()
        assert float(cross_entropy(model(VAL[0]), VAL[1])) == float(tuner.evaluate(VAL))


def test_the_result_has_tensors_of_its_own_and_the_copy_leaves_the_given_alone() -> None:
    given = net()
    trained, _ = tune(given, cross_entropy, TRAIN, VAL, steps=3, hypers=LR, in_place=False)
    assert same(given, net()) and not same(trained, given)
    storages = {t.untyped_storage().data_ptr() for t in trained.state_dict().values()}
    assert len(storages) == len(trained.state_dict())


# -- checkpoints ------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stop_at(step: int) -> Any:
    def callback(info: Info) -> None:
        if info.step == step:
            raise Stop

    return callback


def loader() -> DataLoader[Any]:
    """Shuffled, with noise on the inputs."""

    def collate(rows: list[Any]) -> tuple[Tensor, Tensor]:
        x = torch.stack([r[0] for r in rows])
        return x + 0.01 * torch.randn(x.shape), torch.stack([r[1] for r in rows])

    return DataLoader(TensorDataset(*TRAIN), batch_size=8, shuffle=True, collate_fn=collate)


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("method", CASES)
def test_an_interrupted_training_goes_on_to_the_same_bits(method: str, own_generator: bool, tmp_path: Path) -> None:
    def train(seed: int, **more: Any) -> tuple[nn.Module, History]:
        data = loader()
        if own_generator:
            generator = torch.Generator().manual_seed(5)
            data = DataLoader(TensorDataset(*TRAIN), batch_size=8, shuffle=True, generator=generator)
        torch.manual_seed(seed)
        return tune(net(seed), cross_entropy, data, VAL, steps=17, val_batch_size=5, every=3, **options(method), **more)

    straight, history = train(0)
    keep = {"checkpoint": tmp_path / "run.pt", "checkpoint_seconds": 0.0}
    for step in (6, 15):
        with pytest.raises(Stop):
            train(0, callbacks=stop_at(step), **keep)
    resumed, again = train(1, **keep)  # other weights: all comes from the file
    assert same(straight, resumed)
    assert history.to_frame().equals(again.to_frame())
    done, third = train(2, callbacks=stop_at(17), **keep)  # nothing is left to do
    assert same(straight, done) and third.to_frame().equals(history.to_frame())
    assert list(tmp_path.iterdir()) == [tmp_path / "run.pt"]


def test_a_tuner_goes_on_from_its_state() -> None:
    """Through a file, in the middle of an interval between two outer updates."""
    straight = Tuner(net(), cross_entropy, **options("diff_through_opt"))
    batches = [(X[k : k + 9], Y[k : k + 9]) for k in range(11)]
    first = Tuner(net(), cross_entropy, **options("diff_through_opt"))
    for batch in batches[:6]:
        straight.step(batch, VAL)
        first.step(batch, VAL)
    second = Tuner(net(7), cross_entropy, **options("diff_through_opt"))
    second.load_state_dict(first.state_dict())
    for batch in batches[6:]:
        straight.step(batch, VAL)
        second.step(batch, VAL)
    assert same(straight.model, second.model) and torch.equal(straight.raw, second.raw)
    assert second.steps == 11


def test_a_longer_training_goes_on_and_a_stopped_one_stays(tmp_path: Path) -> None:
    def train(steps: int, file: str, **more: Any) -> tuple[nn.Module, History]:
        more |= {"batch_size": 7, "every": 4, "checkpoint": tmp_path / file} | options("onepass")
        return tune(net(), cross_entropy, TRAIN, VAL, steps=steps, **more)

    train(8, "a.pt")
    longer, history = train(16, "a.pt")
    whole, at_once = train(16, "b.pt")
    assert same(longer, whole) and history.to_frame().equals(at_once.to_frame())
    stopped, _ = train(16, "c.pt", callbacks=lambda info: info.step == 8)
    again, rows = train(16, "c.pt")
    assert same(stopped, again) and rows.to_frame()["step"].tolist() == [4, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "nesterov"}, "does not fit, rule:"),
        ({"method": "oho"}, "does not fit, method:"),
        ({"hypers": {"lr": 0.06, "momentum": 0.5}}, "does not fit, hyperparameters:"),
        ({"seed": 1}, "does not fit, seed:"),
        ({"hypers": [Hyper("lr", 0.05, "log10", windows=2)], "steps": 3}, "does not fit, hyperparameters:"),
        ({"batch_size": 8}, "other data"),
        ({"model": nn.Linear(6, 3)}, "other model"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": net(), "loss": cross_entropy, "train": TRAIN, "val": VAL, "batch_size": 7}
    given |= {"hypers": {"lr": 0.05, "momentum": 0.5}, "steps": 2, "method": "onepass"}
    given |= {"checkpoint": tmp_path / "run.pt"}
    tune(**given)
    with pytest.raises(GradtuneError, match=rf"run\.pt.*{message}"):
        tune(**(given | change))


@pytest.mark.parametrize("content", [b"", b"no checkpoint", "half", "other"])
def test_a_file_that_is_no_checkpoint_is_named(content: bytes | str, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    tune(plain(), cross_entropy, TRAIN, VAL, steps=1, hypers=LR, checkpoint=path)
    if content == "other":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(path.read_bytes()[:500] if isinstance(content, str) else content)
    with pytest.raises(GradtuneError, match=r"run\.pt is no .*remove"):
        tune(plain(), cross_entropy, TRAIN, VAL, steps=1, hypers=LR, checkpoint=path)


# -- data -------------------------------------------------------------------------------------------------------------


def test_epochs_follow_one_another_and_each_row_comes_once() -> None:
    seen: list[Tensor] = []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        seen.append(y)
        return mse_loss(output, y)

    x, y = torch.randn(10, 2), torch.arange(10.0)[:, None]
    tune(nn.Linear(2, 1), loss, (x, y), steps=6, batch_size=3, hypers=LR, method="fixed")
    parts = seen[:3], seen[3:6]
    epochs = [torch.cat(part).flatten().tolist() for part in parts]
    assert all(len(set(e)) == 9 for e in epochs) and epochs[0] != epochs[1]


def test_a_loader_starts_again_and_nothing_else_moves_its_order() -> None:
    def trained(every: int) -> nn.Module:
        torch.manual_seed(every)
        more: dict[str, Any] = {"every": every, "options": {"every": 4}}
        return tune(plain(), cross_entropy, loader(), loader(), steps=11, hypers=LR, **more).model

    assert same(trained(1), trained(5))  # rows of the history read validation batches, and take none


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[:5], Y[:5])] * 3)


@pytest.mark.parametrize("data", [DataLoader(Stream(), batch_size=None), [[X[:5], Y[:5]]]])
def test_anything_that_can_be_iterated_again(data: Any) -> None:
    assert len(tune(plain(), cross_entropy, data, data, steps=20, hypers=LR, method="onepass")[1]) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([(X, Y)] * 3), "ended after 3 batches and is an iterator.*DataLoader"),
        ([], "the training data yields no batch"),
        (DataLoader(TensorDataset(X[:3], Y[:3]), batch_size=5, drop_last=True), "yields no batch"),
        (Subset(TensorDataset(X, Y), range(9)), "is a Dataset, which yields single rows; wrap it"),
        ((X, Y[:5]), "40 inputs and 5 targets"),
        ((X[:0], Y[:0]), "has no row; expected at least one"),
        (7, "is a int; expected tensors"),
        ([(X, Y, Y)], r"Sequential\.forward takes \(input\) and the batch gives it 2"),
        ((X.double(), Y), r"x of the training data is torch\.float64 and the model torch\.float32; convert"),
        ([(X.double(), Y)], r"x of the training batch is torch\.float64"),
        ((X.to("meta"), Y), "x of the training data lies on meta and the model on cpu; move one"),
    ],
)
def test_data_that_cannot_be_trained_on(data: Any, message: str) -> None:
    with pytest.raises(GradtuneError, match=message):
        tune(plain(), cross_entropy, data, VAL, steps=5, hypers=LR, method="onepass", options={"every": 5})


def test_validation_data_on_another_device_or_type() -> None:
    x, y = VAL
    for val, message in (((x.to("meta"), y), "validation data lies on meta"), ((x.double(), y), "float64")):
        with pytest.raises(GradtuneError, match=message):
            tune(plain(), cross_entropy, TRAIN, val, steps=5, hypers=LR)


# -- hyperparameters --------------------------------------------------------------------------------------------------


class Keep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.dropout = nn.Linear(6, 30), nn.Linear(30, 3), Dropout()

    def forward(self, x: Tensor, keep: float | Tensor | None = None) -> Tensor:
        return self.last(self.dropout(self.first(x).relu(), keep))


def test_hyperparameters_of_the_loss_and_of_the_model() -> None:
    hypers = {"lr": 0.05, "smoothing": 0.1, "keep": 0.8}
    tuner = Tuner(Keep(), smoothed, hypers=hypers, method=Method(Forward(), SGD(0.5)))
    for _ in range(3):
        info = tuner.step(TRAIN, VAL)
    assert all(abs(info.hyperparameters[n] - v) > 1e-5 for n, v in hypers.items())
    tuner.model.eval()
    with torch.no_grad():  # validation has neither smoothing nor dropout
        assert float(tuner.evaluate(VAL)) == pytest.approx(float(cross_entropy(tuner.model(VAL[0]), VAL[1])), rel=1e-6)


def test_a_validation_loss_of_its_own() -> None:
    def loss(output: Tensor, y: Tensor, smoothing: Tensor) -> Tensor:
        return smoothed(output, y, smoothing)

    with pytest.raises(GradtuneError, match=r"cannot be called without \['smoothing'\].*val_loss"):
        Tuner(plain(), loss, hypers={"lr": 0.1, "smoothing": 0.1})
    tuner = Tuner(plain(), loss, hypers={"lr": 0.1, "smoothing": 0.1}, val_loss=cross_entropy)
    assert tuner.step(TRAIN).train_loss > 0


def test_groups_and_windows_have_columns() -> None:
    hypers = [
        Hyper("lr", 0.05, "log10", granularity="tensor"),
        Hyper("momentum", 0.5, "sigmoid", windows=2),
        Hyper("weight_decay", 0.01, "log10", granularity=(0, 0, 1, 1), windows=2),
    ]
    _, history = tune(plain(), cross_entropy, TRAIN, VAL, steps=6, hypers=hypers, method="fds")
    assert list(history.to_frame())[3:] == [
        *(f"lr[{n}]" for n in ("0.weight", "0.bias", "2.weight", "2.bias")),
        *("momentum[window 0]", "momentum[window 1]"),
        *(f"weight_decay[{g}, window {k}]" for g in (0, 1) for k in (0, 1)),
    ]
    per_weight = tune(plain(), cross_entropy, TRAIN, VAL, steps=10, hypers=LR, method="onepass_hdlr")[1].to_frame()
    assert list(per_weight)[3:] == ["lr[min]", "lr[median]", "lr[max]"]
    assert (per_weight["lr[min]"] < per_weight["lr[max]"]).all()


def test_what_is_not_named_has_torchs_default_and_what_is_fixed_stays() -> None:
    tuner = Tuner(plain(), cross_entropy, rule="adamw", hypers=LR, fixed={"weight_decay": 0.0, "beta1": 0.8})
    values = {n: b.hyper.value for n, b in tuner.hypers.blocks.items()}
    assert values == {"lr": 0.05, "weight_decay": 0.0, "beta1": 0.8, "beta2": 0.999}
    assert tuner.hypers.tuned == ("lr",) and list(tuner.hyperparameters) == ["lr"]


def test_a_number_gets_the_coordinate_of_its_method() -> None:
    def transforms(method: str, **more: Any) -> list[str]:
        tuner = Tuner(plain(), cross_entropy, hypers=LR, method=method, **more)
        return [b.hyper.transform for b in tuner.hypers.blocks.values()]

    assert transforms("onepass") == ["log10"] and transforms("metaoptimize_hf") == ["log"]
    assert transforms("oho") == transforms("hd", options={"lr": 0.1, "multiplicative": True}) == ["identity"]


def test_restarts_train_again_from_the_same_weights() -> None:
    """FDS: each training begins where the first did, with the hyperparameters the one before ended with."""
    hypers = [Hyper("lr", 0.01, "log10")]
    batches = [(X[k : k + 7], Y[k : k + 7]) for k in (0, 7, 14)]
    given: dict[str, Any] = {"steps": 3, "restarts": 2, "hypers": hypers, "method": "fds"}
    model, history = tune(net(dropout=0.0), cross_entropy, batches, VAL, **given)
    rates = history.to_frame()["lr"].tolist()
    assert history.to_frame()["step"].tolist() == [3, 6, 9] and len(set(rates)) == 3
    last, _ = tune(net(dropout=0.0), cross_entropy, batches, VAL, steps=3, hypers={"lr": rates[1]}, method="fixed")
    for a, b in zip(model.state_dict().values(), last.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# -- history and callbacks --------------------------------------------------------------------------------------------


def test_history_as_a_table_and_a_figure() -> None:
    import matplotlib.pyplot as plt

    _, history = tune(net(), cross_entropy, TRAIN, VAL, steps=45, every=10, hypers=THREE, method="onepass")
    frame = history.to_frame()
    assert list(frame) == ["step", "train_loss", "val_loss", *THREE]
    assert frame["step"].tolist() == [10, 20, 30, 40, 45]
    assert frame.notna().all(axis=None) and frame["momentum"].between(0, 1).all()
    figure = history.plot()
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == [*(f"{n} (log scale)" for n in ("loss", "lr", "weight_decay")), "momentum"]
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "log", "log", "linear"]
    lines = [line for axis in figure.axes for line in axis.lines]
    assert [list(line.get_xdata()) for line in lines] == [frame["step"].tolist()] * 5  # type: ignore[arg-type]
    plt.close(figure)
    with pytest.raises(GradtuneError, match="no row"):
        History(Hypers([], [1]), []).plot()


def test_a_row_needs_no_validation_data_where_the_method_needs_none() -> None:
    frame = tune(net(), cross_entropy, TRAIN, steps=5, hypers=LR, method="metaoptimize_hf")[1].to_frame()
    assert frame["val_loss"].isna().all() and len(frame) == 5


def test_callbacks_see_the_training_and_may_end_it() -> None:
    seen: list[tuple[int, float, dict[str, float]]] = []

    def watch(info: Info) -> bool:
        assert info.model is model and info.val_loss == info.val_loss
        seen.append((info.step, info.train_loss, info.hyperparameters))
        return info.step >= 8

    model = net()
    history = tune(model, cross_entropy, TRAIN, VAL, steps=40, hypers=LR, options={"every": 4}, callbacks=[watch])[1]
    frame = history.to_frame()
    assert [s for s, _, _ in seen] == frame["step"].tolist() == [4, 8]
    assert [loss for _, loss, _ in seen] == frame["train_loss"].tolist()
    assert seen[-1][2]["lr"] == pytest.approx(frame["lr"].iloc[-1], rel=1e-6)


# -- faults -----------------------------------------------------------------------------------------------------------


def item(output: Tensor, y: Tensor) -> Any:
    return cross_entropy(output, y).item()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": nn.ReLU()}, "ReLU has no parameters to train"),
        ({"model": plain().requires_grad_(False)}, "no parameters to train; expected at least one with requires_grad"),
        ({"model": net().eval()}, r"Sequential is in evaluation mode.*call model\.train\(\)"),
        ({"model": nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3).double())}, "several types or devices"),
        ({"rule": "sdg"}, r"unknown update rule 'sdg'; did you mean 'sgd'\?"),
        ({"method": "onepas"}, r"unknown method 'onepas'; did you mean 'onepass'\?"),
        ({"method": "random"}, r"random is a search.*gradtune\.search\.search\('random'"),
        ({"method": "metaoptimize"}, "use 'metaoptimize_hf'"),
        ({"method": "idbd"}, "idbd is derived for a linear model"),
        ({"options": {"look_bak": 3}}, r"unknown option of onepass 'look_bak'; did you mean 'look_back'\?"),
        ({"method": "greedy"}, r"greedy needs lr \(the rate of its outer SGD.*give options=\{'lr': \.\.\.\}"),
        ({"method": Method(), "options": {"lr": 1}}, "this one is made already"),
        ({"hypers": {"lr": 0.1, "momentun": 0.9}}, r"unknown hyperparameter 'momentun'; did you mean 'momentum'\?"),
        ({"hypers": {"lr": 0.1, "label_smoothing": 0.1}}, "unknown hyperparameter 'label_smoothing'"),
        ({"hypers": {"lr": 0.1}, "fixed": {"lr": 0.1}}, r"\['lr'\] are given in hypers and in fixed"),
        ({"hypers": {"lr": Hyper("momentum", 0.9)}}, "declares another name"),
        ({"hypers": [Hyper("lr", 0.1), Hyper("lr", 0.2)]}, "named twice"),
        ({"hypers": {"lr": -2.0}}, r"lr = -2 is outside \[1e-10, 1\]"),
        ({"hypers": {"lr": 0.1, "momentum": 1.0}}, r"momentum = 1 is outside \(0, 1\)"),
        ({"hypers": {"lr": 0.1, "weight_decay": 0.0}}, r"weight_decay = 0 is outside \(0, inf\)"),
        ({"hypers": {}, "fixed": LR}, "no hyperparameter is left to tune"),
        ({"hypers": {"momentum": 0.9}}, r"\['lr'\] are not given"),
        ({"hypers": THREE, "method": "hd", "options": {"lr": 0.1}}, "follows the learning rate alone"),
        ({"val": None}, "onepass updates the hyperparameters on validation data, and val is missing"),
        ({"loss": lambda o, y: cross_entropy(o, y, reduction="none")}, r"loss of a run has shape \[28\]"),
        ({"loss": item}, "the loss is a float; expected a tensor"),
        ({"loss": lambda o, y: cross_entropy(o.detach(), y)}, "no gradient with respect to the weights"),
        ({"loss": lambda o, y, tau: o.sum()}, r"takes \['tau'\], and no hyperparameter has that name"),
        ({"loss": lambda o, y, tau=0.1: tau * o.sum(), "hypers": LR | {"tau": 0.1}}, r"declare it as Hyper\('tau'"),
        ({"steps": 0}, "steps = 0; expected a whole number >= 1"),
        ({"restarts": -1}, "restarts = -1"),
        ({"batch_size": 29}, "a batch of 29 cannot be drawn from 28 rows"),
        ({"train": [(X, Y)], "batch_size": 3}, "has a batch size of its own"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": plain(), "loss": cross_entropy, "train": TRAIN, "val": VAL, "hypers": LR}
    given |= {"steps": 12, "method": "onepass"}
    with pytest.raises(GradtuneError, match=message) as caught:
        tune(**(given | change))
    assert "\n" not in str(caught.value)


def test_mistakes_in_a_loop_of_ones_own() -> None:
    tuner = Tuner(model := net(), cross_entropy, hypers=LR, options={"every": 2})
    assert not tuner.needs_val
    tuner.step(TRAIN)
    assert tuner.needs_val
    with pytest.raises(GradtuneError, match="no validation batch was given; hand over val_batch whenever needs_val"):
        tuner.step(TRAIN)
    with pytest.raises(GradtuneError, match=r"a tuple of 1; expected \(x, y\)"):
        tuner.step((X,), VAL)
    model.eval()
    with pytest.raises(GradtuneError, match=r"evaluation mode.*model\.train\(\) before the step"):
        tuner.step(TRAIN, VAL)
    model.train()
    assert tuner.step(TRAIN, VAL).updated and tuner.steps == 2  # nothing was lost


# -- the front door ---------------------------------------------------------------------------------------------------


def test_importing_the_package_is_light() -> None:
    code = "import sys, gradtune; assert not {'torch', 'pandas'} & set(sys.modules); print(dir(gradtune))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'Tuner'" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'tuna'"):
        gradtune.tuna  # noqa: B018


class Classifier(nn.Module):
    """A model that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": cross_entropy(self.head(self.body(x).tanh()), labels)}


def test_the_readmes_example_runs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "gradtune.tune(" in b]
    given: dict[str, Any] = {"model": plain(), "x": X, "y": Y, "x_val": VAL[0], "y_val": VAL[1], "val": VAL}
    given["loader"] = loader()
    given["texts"] = given["val_texts"] = [{"x": X[:8], "labels": Y[:8]}, {"x": X[8:16], "labels": Y[8:16]}]
    given["classifier"] = Classifier()
    short = re.sub(r"(steps|trials)=\d+", r"\1=20", example.replace("batch_size=64", "batch_size=8"))
    exec(short.replace("trials=20", "trials=2"), given)
    assert given["history"].to_frame()["step"].max() == 20 and given["tuner"].steps == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("method", CASES)
def test_on_a_gpu(method: str, tmp_path: Path) -> None:
    def train(seed: int) -> tuple[nn.Module, History]:
        model = net(seed).to("cuda")
        more: dict[str, Any] = {"steps": 9, "checkpoint": tmp_path / "run.pt"} | options(method)
        return tune(model, cross_entropy, loader(), loader(), **more)

    (model, history), (again, rows) = train(0), train(1)
    assert next(model.parameters()).is_cuda and history.to_frame().notna().all(axis=None)
    assert same(again, model) and rows.to_frame().equals(history.to_frame())
