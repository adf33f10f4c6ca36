# mypy: disable-error-code="import-not-found"
"""`MetaOptimize` in the training loops of others, and any logger from a callback: the code of the book's page.

A recipe whose package is not installed is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

import gradtune
from gradtune.optim import MetaOptimize

RATE = 1e-3
x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


# --- The recipes ------------------------------------------------------------------------------------------------------


def lightning_recipe(model: nn.Module, data: Dataset[Any], folder: Path) -> tuple[Any, Any]:
    import lightning

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Tensor:
            self.log("lr", self.optimizers().param_groups[0]["lr"], prog_bar=True)
            return cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return MetaOptimize(self.parameters(), lr=RATE)

    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=folder, logger=False)
    trainer.fit(Training(), DataLoader(data, 16))
    return trainer, trainer.optimizers[0]


def transformers_recipe(model: nn.Module, data: Dataset[Any], folder: Path) -> tuple[Any, Any]:
    from transformers import Trainer, TrainingArguments

    optimizer = MetaOptimize(model.parameters(), lr=RATE)
    constant = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda step: 1.0)
    arguments = TrainingArguments(str(folder), num_train_epochs=2, logging_steps=4, report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, constant))
    trainer.train()
    return trainer, optimizer


def skorch_recipe(model: nn.Module, inputs: Any, labels: Any) -> Any:
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        model, optimizer=MetaOptimize, lr=RATE, optimizer__meta_step_size=0.01, criterion=nn.CrossEntropyLoss, verbose=0
    )
    return net.fit(inputs, labels)


def accelerate_recipe(model: nn.Module, data: Dataset[Any]) -> tuple[Any, Any]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(
        model, MetaOptimize(model.parameters(), lr=RATE), DataLoader(data, 16)
    )
    for inputs, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(cross_entropy(model(inputs), labels))
        optimizer.step()
    return accelerator, optimizer


def tensorboard_recipe(model: nn.Module, data: Dataset[Any], folder: Path) -> MetaOptimize:
    from torch.utils.tensorboard import SummaryWriter

    writer, optimizer = SummaryWriter(folder), MetaOptimize(model.parameters(), lr=RATE)
    for step, (inputs, labels) in enumerate(DataLoader(data, 16)):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        writer.add_scalar("lr", optimizer.lr[0], step)
    writer.close()
    return optimizer


def logger_recipe(model: nn.Module, writer: Any) -> gradtune.tuning.tune.Result:
    def log(info: gradtune.Info) -> None:
        writer.add_scalar("loss/train", info.train_loss, info.step)
        writer.add_scalar("loss/validation", info.val_loss, info.step)
        for name, value in info.hyperparameters.items():
            writer.add_scalar(name, value, info.step)

    data = (x[:48], y[:48]), (x[48:], y[48:])
    return gradtune.tune(
        model, cross_entropy, *data, hypers={"lr": 0.1}, method="onepass", steps=20, every=5, callbacks=log
    )


# --- What they do -----------------------------------------------------------------------------------------------------


class Rows(Dataset[Any]):
    """Rows as the Trainer takes them."""

    def __len__(self) -> int:
        return len(x)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"inputs": x[row], "labels": y[row]}


class WithLoss(nn.Module):
    """A model as the Trainer takes it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.model(inputs)
        return {"loss": cross_entropy(out, labels), "logits": out}


def check(model: nn.Module, lr: float) -> None:
    """The model has learned something, and the learning rate has moved by the meta rule's steps alone."""
    moves = np.log(lr / RATE) / 1e-3
    assert cross_entropy(model(x), y) < cross_entropy(network()(x), y) and abs(moves) > 0.9
    assert abs(moves - round(moves)) < 1e-3 or abs(moves) > 9


def test_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    model = network()
    trainer, optimizer = lightning_recipe(model, TensorDataset(x, y), tmp_path)
    check(model, optimizer.lr[0])
    assert trainer.logged_metrics["lr"] == pytest.approx(optimizer.lr[0], rel=2e-3)
    file = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(file)
    state = torch.load(file, weights_only=False)["optimizer_states"][0]
    again = MetaOptimize(network().parameters())
    again.load_state_dict(state)
    assert again.lr == optimizer.lr


def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = network()
    trainer, optimizer = transformers_recipe(WithLoss(model), Rows(), tmp_path)
    check(model, optimizer.lr[0])
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged and logged[-1] == pytest.approx(optimizer.lr[0], rel=5e-3)


def test_skorch() -> None:
    pytest.importorskip("skorch")
    net = skorch_recipe(network(), x.numpy(), y.numpy())
    assert net.history[-1]["train_loss"] < net.history[0]["train_loss"]
    assert net.optimizer_.lr[0] != RATE


def test_accelerate() -> None:
    pytest.importorskip("accelerate")
    model = network()
    _, optimizer = accelerate_recipe(model, TensorDataset(x, y))
    check(model, optimizer.optimizer.lr[0])


def test_accelerates_wrapper_is_looked_through() -> None:
    """A scheduler on the wrapped optimiser, as accelerate's examples make it, gives the warning too."""
    accelerate = pytest.importorskip("accelerate")
    model = network()
    optimizer = accelerate.Accelerator(cpu=True).prepare(MetaOptimize(model.parameters(), lr=RATE))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.warns(UserWarning, match="LambdaLR sets the learning rate"):
        for _ in range(3):
            cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = network()
    optimizer = tensorboard_recipe(model, TensorDataset(x, y), tmp_path)
    check(model, optimizer.lr[0])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    assert [each.step for each in events.Scalars("lr")] == [0, 1, 2, 3]
    assert events.Scalars("lr")[-1].value == pytest.approx(optimizer.lr[0])


class Writer:
    """A logger of one's own."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.rows.append((name, value, step))


def test_any_logger_from_a_callback() -> None:
    writer = Writer()
    result = logger_recipe(network(), writer)
    assert {name for name, _, _ in writer.rows} == {"loss/train", "loss/validation", "lr"}
    assert [step for name, _, step in writer.rows if name == "lr"] == [5, 10, 15, 20]
    assert cross_entropy(result.model(x), y) < cross_entropy(network()(x), y)


def test_tensorboard_from_a_callback(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        logger_recipe(network(), writer)
    assert any(tmp_path.iterdir())
