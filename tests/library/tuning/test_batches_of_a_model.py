"""How batches reach a model of one's own, number types, what is skipped or said, and what can be read and set."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import gradtune
from gradtune import Tuner, tune
from gradtune.errors import GradtuneError, GradtuneWarning

RNG = torch.Generator().manual_seed(5)
A, B = torch.randn(24, 4, generator=RNG), torch.randn(24, 3, generator=RNG)
Y = torch.randint(0, 3, (24,), generator=RNG)
LR = {"lr": 0.1}


class Two(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.a(a) + self.b(b).tanh()


class Optional(Two):
    """The second input has a default."""

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        return super().forward(a, B[: len(a)] if b is None else b)


class Pair(Two):
    """One input that is a pair."""

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(*x)


class Scored(Two):
    """Returns its loss, as the models of Hugging Face do."""

    def forward(self, a: Tensor, b: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(a, b)
        return SimpleNamespace(loss=None if labels is None else cross_entropy(logits, labels), logits=logits)


def expected(steps: int = 6) -> Two:
    model = Two()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model(A, B), Y).backward()
        optimiser.step()
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.allclose(p, q, atol=1e-6) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "batch", "loss"),
    [
        (Two, (A, B, Y), cross_entropy),
        (Two, ((A, B), Y), cross_entropy),
        (Two, [A, B, Y], cross_entropy),
        (Optional, (A, B, Y), cross_entropy),
        (Optional, (A, Y), cross_entropy),
        (Pair, ((A, B), Y), cross_entropy),
        (Two, ({"a": A, "b": B}, Y), cross_entropy),
        (Two, {"a": A, "b": B, "labels": Y}, cross_entropy),
        (Two, {"a": A, "b": B, "anything": Y}, cross_entropy),
        (Two, UserDict({"a": A, "b": B, "labels": Y}), cross_entropy),
        (Scored, {"a": A, "b": B, "labels": Y}, None),
        (Scored, (A, B, Y), None),
        (Scored, {"a": A, "b": B, "labels": Y}, lambda out, y: cross_entropy(out.logits, y)),
        (Two, (A, B, (Y, torch.arange(24))), lambda out, y: cross_entropy(out, y[0])),
        (Two, {"a": A, "b": B, "y": Y, "i": Y}, lambda out, rest: cross_entropy(out, rest["y"])),
        (Two, (A.numpy(), B.numpy().astype(np.float64), Y.numpy()), cross_entropy),
    ],
)
@pytest.mark.parametrize("loader", [False, True])
def test_batches_of_any_structure(make: Any, batch: Any, loss: Any, loader: bool) -> None:
    data = [batch] if loader or isinstance(batch, list) else batch
    trained, _ = tune(make(), loss, data, data, steps=6, hypers=LR, method="fixed")
    assert same(trained, expected())
    _, history = tune(make(), loss, data, data, steps=6, hypers=LR, options={"every": 2})
    assert history.to_frame()["lr"].nunique() == 3


@pytest.mark.parametrize(
    ("batch", "loss", "message"),
    [
        ((A, Y), cross_entropy, r"Two\.forward takes \(a.*b.*\) and the batch gives it 1 by position.*\(a, b, y\)"),
        ({"x": A, "y": Y}, cross_entropy, r"Two\.forward takes \['a', 'b'\], and the batch has \['x', 'y'\]"),
        ({"a": A, "b": B}, cross_entropy, "nothing is left for the loss; name the target one of"),
        ((A, B), None, "loss=None expects Two to return its loss.*returned a Tensor without one"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_sentence(batch: Any, loss: Any, message: str) -> None:
    with pytest.raises(GradtuneError, match=r"in two ways; give \(a, b, y\)"):
        tune(Optional(), cross_entropy, ((A, B), Y), steps=2, hypers=LR, method="fixed")
    with pytest.raises(GradtuneError, match=r"model does not take, \['i', 'y'\], and fails on them"):
        tune(Two(), cross_entropy, {"a": A, "b": B, "y": Y, "i": Y}, steps=2, hypers=LR, method="fixed")
    with pytest.raises(GradtuneError, match=message):
        tune(Two(), loss, [batch], steps=2, hypers=LR, method="fixed")


def test_a_hyperparameter_of_the_model_beside_several_inputs() -> None:
    class Scaled(Two):
        def forward(self, a: Tensor, b: Tensor, scale: Tensor | float = 1.0) -> Tensor:
            return scale * super().forward(a, b)

    hyper = gradtune.Hyper("scale", 1.0, "log10")
    _, history = tune(Scaled(), cross_entropy, (A, B, Y), (A, B, Y), steps=20, hypers=[hyper], fixed=LR)
    assert history.to_frame()["scale"].iloc[-1] > 1.01


# -- number types ------------------------------------------------------------------------------------------------------


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


@pytest.mark.parametrize("method", ["onepass", "diff_through_opt", "oho", "metaoptimize_hf", "hd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tunes_as_float32_does(dtype: torch.dtype, method: str) -> None:
    options: dict[str, Any] = {"hd": {"lr": 0.05}, "oho": {"lr": 0.01}}.get(method, {})
    ends = {}
    for kind in (torch.float32, dtype):
        batch = (A.to(kind), Y)
        tuner = Tuner(net(kind), cross_entropy, hypers={"lr": 0.01}, method=method, options=options)
        for _ in range(60):
            tuner.step(batch, batch)
        ends[kind] = tuner.hyperparameters["lr"]
        assert tuner.raw.dtype == torch.float32
        assert {p.dtype for p in tuner.model.parameters()} == {kind}
    assert abs(ends[dtype] - ends[torch.float32]) < 0.2 * abs(ends[torch.float32] - 0.01)


def test_half_precision_trains_as_torch_does() -> None:
    """To rounding: the rule computes in float32 and rounds once a step."""
    model, expected = net(torch.bfloat16), net(torch.bfloat16)
    tuner = Tuner(model, cross_entropy, rule="adamw", hypers={"lr": 0.01}, method="fixed")
    optimiser = torch.optim.AdamW(expected.parameters(), lr=0.01)
    x = A.bfloat16()
    for _ in range(20):
        tuner.step((x, Y))
        optimiser.zero_grad()
        cross_entropy(expected(x), Y).backward()
        optimiser.step()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert float((p - q).abs().max()) < 0.02


def test_autocast_reaches_the_model_alone() -> None:
    kinds = []

    class Noted(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            kinds.append(y.dtype)
            return y

    model, expected = Noted(*net()), net()
    tuner = Tuner(model, cross_entropy, hypers=LR, options={"every": 2})
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        tuner.step((A, Y), (A, Y))
        cross_entropy(expected(A), Y).backward()
    optimiser.step()
    assert same(model, expected) and set(kinds) == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        tuner.step((A, Y), (A, Y))
    assert tuner.raw.dtype == torch.float32 and tuner.hyperparameters["lr"] != 0.1


def test_a_scaler_of_the_loss() -> None:
    """It skips a step that overflows, and else changes nothing; so does torch's own loop."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    expected = copy.deepcopy(model)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**118, growth_interval=4) for _ in range(2)]
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1, "momentum": 0.9}, method="fixed", scaler=scalers[0])
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for _ in range(12):
        tuner.step((1e4 * A, Y))
        optimiser.zero_grad()
        scalers[1].scale(cross_entropy(expected(1e4 * A), Y)).backward()
        scalers[1].step(optimiser)
        scalers[1].update()
    assert scalers[0].get_scale() == scalers[1].get_scale() < 2.0**118
    assert same(model, expected)


# -- what is not finite, and what is said -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["onepass", "diff_through_opt", "oho", "clip_r"])
def test_a_bad_validation_batch_costs_one_update(method: str) -> None:
    good, bad = (A, Y), (A * float("inf"), Y)
    options = {"clip_r": {"radius": 1.0}}.get(method, {})
    with pytest.warns(
        GradtuneWarning, match=r"update\(s\) of the hyperparameters had a hypergradient that is not fini"
    ):
        model, history = tune(
            net(), cross_entropy, good, [good, bad, good, good], steps=40, hypers=LR, method=method, options=options
        )
    frame = history.to_frame()
    assert history.skipped == (10 if method in ("oho", "clip_r") else 1)
    assert np.isfinite(frame["lr"]).all() and frame["lr"].iloc[-1] != 0.1
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_diverged_training_is_said() -> None:
    with pytest.warns(GradtuneWarning, match="the training loss is (nan|inf) at step .*has diverged"):
        tune(nn.Linear(4, 1), mse_loss, (100 * A, A[:, :1]), steps=60, hypers={"lr": 1.0}, method="fixed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5}, r"first update of the hyperparameters comes after step 10, and the training ends after 5"),
        ({"steps": 12, "hypers": [gradtune.Hyper("lr", 0.1)]}, "bounds"),
    ],
)
def test_what_would_go_wrong_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.warns(GradtuneWarning, match=message):
        tune(net(), cross_entropy, (A, Y), (A, Y), **({"hypers": LR, "method": "onepass"} | options))


def test_shapes_that_broadcast_are_said() -> None:
    def squares(out: Tensor, y: Tensor) -> Tensor:
        return ((out - y) ** 2).mean()

    with pytest.warns(GradtuneWarning, match=r"output has shape \[24, 1\] and the target \[24\]"):
        tune(nn.Linear(4, 1), squares, (A, A[:, 0]), steps=1, hypers=LR, method="fixed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tune(nn.Linear(4, 1), squares, (A, A[:, :1]), steps=1, hypers=LR, method="fixed")


def test_without_gradients() -> None:
    tuner, expected = Tuner(net(), cross_entropy, hypers=LR), Tuner(net(), cross_entropy, hypers=LR)
    with torch.no_grad():
        tuner.step((A, Y))
    expected.step((A, Y))
    assert same(tuner.model, expected.model)
    with torch.inference_mode(), pytest.raises(GradtuneError, match="inference_mode"):
        tuner.step((A, Y))


# -- what can be read and set -----------------------------------------------------------------------------------------


def test_hyperparameters_can_be_set() -> None:
    model, expected = net(), net()
    tuner = Tuner(model, cross_entropy, hypers={"lr": 0.1, "momentum": 0.5}, options={"every": 50})
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.5)
    for k in range(6):
        if k == 3:
            tuner.hyperparameters["lr"] = 0.03
            optimiser.param_groups[0]["lr"] = 0.03
        tuner.step((A, Y))
        optimiser.zero_grad()
        cross_entropy(expected(A), Y).backward()
        optimiser.step()
    assert same(model, expected) and tuner.hyperparameters["lr"] == pytest.approx(0.03)
    values = tuner.hyperparameters
    values.update(momentum=0.7)
    assert tuner.hyperparameters["momentum"] == pytest.approx(0.7) == values["momentum"]
    for name, value, message in [("lr", 7.0, r"outside \[1e-10, 1\]"), ("lrr", 1.0, "unknown tuned hyperparameter")]:
        with pytest.raises(GradtuneError, match=message):
            tuner.hyperparameters[name] = value
    with pytest.raises(GradtuneError, match="cannot be removed"):
        del tuner.hyperparameters["lr"]


def test_groups_by_name_have_names_to_read_and_set() -> None:
    hypers = {"lr": {"0.*": 0.1, "*": 0.2}, "weight_decay": {"*": 1e-3}}
    tuner = Tuner(net(), cross_entropy, hypers=hypers, fixed={"weight_decay": {"1d": 0.0}}, options={"every": 2})
    assert list(tuner.hyperparameters) == ["lr[0.*]", "lr[*]", "weight_decay[*]"]
    tuner.hyperparameters["lr[*]"] = 0.05
    for _ in range(4):
        tuner.step((A, Y), (A, Y))
    assert set(tuner.hypergradient) == {"lr[0.*]", "lr[*]", "weight_decay[*]"}
    assert 0.03 < tuner.hyperparameters["lr[*]"] < 0.08 < tuner.hyperparameters["lr[0.*]"]


def test_all_can_be_pickled() -> None:
    result = tune(net(), cross_entropy, (A, Y), (A, Y), steps=20, hypers={"lr": 0.1, "momentum": 0.5})
    again = pickle.loads(pickle.dumps(result))
    assert again.history.to_frame().equals(result.history.to_frame()) and same(again.model, result.model)
    tuner = Tuner(net(), cross_entropy, rule="adamw", hypers={"lr": 0.01}, method="diff_through_opt")
    for _ in range(13):
        tuner.step((A, Y), (A, Y))
    twin = pickle.loads(pickle.dumps(tuner))
    for each in (tuner, twin):
        for _ in range(9):
            each.step((A, Y), (A, Y))
    assert twin.steps == 22 and torch.equal(tuner.raw, twin.raw)
    assert all(torch.equal(p, q) for p, q in zip(tuner.model.parameters(), twin.model.parameters(), strict=True))
    with pytest.raises(GradtuneError, match=r"cannot be pickled.*tuner\.state_dict\(\)"):
        pickle.dumps(Tuner(net(), lambda out, y: cross_entropy(out, y), hypers=LR))
    assert copy.deepcopy(result).history.skipped == 0


def test_epochs_and_a_third_split() -> None:
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(A, Y), batch_size=8)
    model, history = tune(net(), cross_entropy, data, (A, Y), test=(A[:9], Y[:9]), epochs=3, hypers=LR, every=1)
    assert len(history) == 9
    model.eval()
    with torch.no_grad():
        assert history.test == pytest.approx(float(cross_entropy(model(A[:9]), Y[:9])), rel=1e-6)
    wrongs: tuple[dict[str, Any], ...] = ({}, {"steps": 3, "epochs": 1})
    for wrong in wrongs:
        with pytest.raises(GradtuneError, match="give one of the two"):
            tune(net(), cross_entropy, data, (A, Y), hypers=LR, **wrong)


def test_an_interrupted_training_with_everything_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    """A schedule, accumulation, a scaler, buffers assigned anew and a plain counter."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(4, 3)
            self.register_buffer("n", torch.zeros(()))
            self.n: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.n = self.n + 1
            return self.linear(x) * (1 + 0.1 * (self.n % 3))

    def train(steps: int, **more: Any) -> Any:
        torch.manual_seed(0)
        return tune(
            Counting(),
            cross_entropy,
            (A, Y),
            (A, Y),
            batch_size=5,
            steps=steps,
            every=1,
            hypers=LR,
            method="diff_through_opt",
            options={"every": 4, "horizon": 3},
            accumulate=2,
            clip_norm=1.0,
            schedule=lambda factor: torch.optim.lr_scheduler.CosineAnnealingLR(factor, 30),
            scaler=torch.amp.GradScaler("cpu"),
            **more,
        )

    straight, history = train(14)
    train(6, checkpoint=tmp_path / "run.pt")
    resumed, again = train(14, checkpoint=tmp_path / "run.pt")
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values()))
    assert history.to_frame().equals(again.to_frame())
