"""Checkpoints: whole or refused, and of this training or refused, with what differs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from gradtune import tune
from gradtune.errors import GradtuneError
from gradtune.training import checkpoints

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
VAL = X[:8], Y[:8]
BETA = 0.5


def net(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), activation or nn.Tanh(), nn.Linear(4, 3))


class Scaled(nn.Module):
    """A model with a setting of its own, and a count of its calls, which moves."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body, self.scale, self.calls = net(), scale, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.scale * self.body(x)
        return out


def smoothed(share: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(output, y, label_smoothing=share)

    return loss


def scaled_loss(output: Tensor, y: Tensor) -> Tensor:
    return BETA * cross_entropy(output, y)


GIVEN: dict[str, Any] = {"loss": cross_entropy, "train": (X, Y), "val": VAL, "batch_size": 8, "steps": 4}
GIVEN |= {"hypers": {"lr": 0.05}, "method": "onepass", "options": {"every": 2}, "every": 2}


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def train(path: Path, **changes: Any) -> nn.Module:
    return tune(**{"model": net(), **GIVEN, "checkpoint": path, **changes}).model


def loader(x: Tensor = X, size: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, Y), batch_size=size)


@pytest.mark.parametrize(
    ("before", "after", "topic"),
    [
        ({}, {"train": (X + 1e-6, Y)}, "data"),
        ({}, {"val": (X[8:16], Y[8:16])}, "data"),
        ({"train": loader(), "batch_size": None}, {"train": loader(2 * X), "batch_size": None}, "data"),
        ({"train": loader(), "batch_size": None}, {"train": loader(size=6), "batch_size": None}, "data"),
        ({"train": [(X, Y)], "batch_size": None}, {"train": [(-X, Y)], "batch_size": None}, "data"),
        ({}, {"loss": lambda out, y: cross_entropy(out, y, label_smoothing=0.1)}, "loss"),
        ({"loss": smoothed(0.1)}, {"loss": smoothed(0.2)}, "loss"),
        ({"loss": nn.CrossEntropyLoss()}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "loss"),
        (
            {"loss": functools.partial(cross_entropy, label_smoothing=0.1)},
            {"loss": functools.partial(cross_entropy, label_smoothing=0.3)},
            "loss",
        ),
        ({}, {"val_loss": smoothed(0.1)}, "validation loss"),
        ({}, {"model": net(nn.ReLU())}, "model"),
        ({"model": Scaled(1.0)}, {"model": Scaled(2.0)}, "model"),
        ({}, {"every": 4}, "interval between rows"),
        ({}, {"schedule": lambda f: torch.optim.lr_scheduler.StepLR(f, 2)}, "schedule"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    before: dict[str, Any], after: dict[str, Any], topic: str, tmp_path: Path
) -> None:
    train(tmp_path / "run.pt", **before)
    with pytest.raises(GradtuneError, match=rf"run\.pt was saved with other {topic} \(.* than given \(") as caught:
        train(tmp_path / "run.pt", **{**before, **after})
    assert "\n" not in str(caught.value)


def test_a_constant_beside_the_loss_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "run.pt", loss=scaled_loss)
    train(tmp_path / "run.pt", loss=scaled_loss)
    monkeypatch.setitem(globals(), "BETA", 0.25)
    with pytest.raises(GradtuneError, match="other loss"):
        train(tmp_path / "run.pt", loss=scaled_loss)


def test_what_moves_in_a_training_is_no_difference(tmp_path: Path) -> None:
    """The same model object, trained; and a longer training, whose interval and schedule follow from its length."""
    model = Scaled(1.0)
    first = train(tmp_path / "run.pt", model=model, steps=4)
    assert same(train(tmp_path / "run.pt", model=model, steps=4), first)
    longer = train(tmp_path / "run.pt", model=Scaled(1.0), steps=8, every=4)
    assert same(longer, train(tmp_path / "other.pt", model=Scaled(1.0), steps=8))
    with pytest.raises(GradtuneError, match=r"run\.pt was saved at step 8 .* has 4 here"):
        train(tmp_path / "run.pt", model=Scaled(1.0), steps=4, every=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.pt"
    train(path)
    return path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["flip", "overwrite", "cut", "zero", "add"]), st.data())
def test_any_damage_is_one_sentence(whole: Path, tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "overwrite":
        content[at : at + 64] = data.draw(st.binary(min_size=64, max_size=64))
    elif kind == "cut":
        del content[at:]
    elif kind == "zero":
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    else:
        content += data.draw(st.binary(min_size=1, max_size=8))
    file = tmp_path / "damaged.pt"
    file.write_bytes(content)
    if bytes(content) == whole.read_bytes():  # zeros over zeros
        return
    with pytest.raises(GradtuneError, match=r"damaged\.pt is no whole checkpoint \(.*\); remove it") as caught:
        checkpoints.load(file, torch.device("cpu"))
    assert "\n" not in str(caught.value)


PARTS = ("of", "tuner", "train", "val", "history", "happenings", "initial", "schedule", "guard", "best", "counts")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PARTS), st.sampled_from(["missing", None, 3, "text", [], {}, [1, 2]]))
def test_a_checkpoint_of_another_structure_is_one_sentence(whole: Path, tmp_path: Path, part: str, value: Any) -> None:
    """With a digest that is right: what an older or a later version might have written."""
    state, file = checkpoints.load(whole, torch.device("cpu")), tmp_path / "other.pt"
    if value == "missing":
        del state[part]
    else:
        state[part] = value
    checkpoints.save(state, file)
    try:
        train(file)
    except GradtuneError as error:
        assert "other.pt" in str(error) and "\n" not in str(error)
    else:
        assert state[part] == checkpoints.load(whole, torch.device("cpu"))[part]  # it was so before


@pytest.mark.parametrize("change", [{"t": -5}, {"t": 10**6}, {"tensors": []}, {"configuration": {}}])
def test_a_tuners_state_that_is_none_is_one_sentence(whole: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    state, file = checkpoints.load(whole, torch.device("cpu")), tmp_path / "other.pt"
    checkpoints.save({**state, "tuner": {**state["tuner"], **change}}, file)
    with pytest.raises(GradtuneError, match=r"other\.pt") as caught:
        train(file)
    assert "\n" not in str(caught.value)


def test_weights_of_another_shape_and_counts_beyond_the_end(whole: Path, tmp_path: Path) -> None:
    state, file = checkpoints.load(whole, torch.device("cpu")), tmp_path / "other.pt"
    tuner = state["tuner"]
    checkpoints.save(
        {**state, "tuner": {**tuner, "tensors": [torch.cat([x, x]) if x.dim() else x for x in tuner["tensors"]]}}, file
    )
    with pytest.raises(GradtuneError, match=r"other\.pt"):
        train(file)
    checkpoints.save({**state, "counts": [5, 1, 0]}, file)
    with pytest.raises(GradtuneError, match=r"other\.pt was saved at step 4 .*, 5 in all, .* has 4 here"):
        train(file)
