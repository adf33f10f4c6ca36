"""Train a model of one's own and tune its hyperparameters in the same pass: `tune`.

    result = gradtune.tune(model, loss, (x, y), (x_val, y_val), hypers={"lr": 1e-3, "weight_decay": 1e-4}, steps=2000)
    result.model, result.history.to_frame(), result.history.plot()

`gradtune.Tuner` is the same for a loop of one's own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gradtune.errors import GradtuneError, at_least
from gradtune.recursion.rules import Rule
from gradtune.training import checkpoints
from gradtune.training.loop import Method
from gradtune.tuning import declared
from gradtune.tuning.history import History, Row
from gradtune.tuning.streams import Loaded, Resident, stream
from gradtune.tuning.tuner import Info, Tuner

Data = tuple[Tensor, Tensor] | Iterable[Any]
Callback = Callable[[Info], "bool | None"]

_ROWS = 200


class Result(NamedTuple):
    """model: the trained model; history: losses and hyperparameters over the steps."""

    model: nn.Module
    history: History


def tune(
    model: nn.Module,
    loss: Callable[..., Tensor],
    train: Data,
    val: Data | None = None,
    *,
    steps: int,
    rule: str | Rule = "sgd",
    hypers: declared.Given,
    fixed: Mapping[str, float] | None = None,
    method: str | Method = "onepass",
    options: Mapping[str, Any] | None = None,
    val_loss: Callable[..., Tensor] | None = None,
    batch_size: int | None = None,
    val_batch_size: int | None = None,
    restarts: int = 0,
    seed: int = 0,
    every: int | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    in_place: bool = True,
) -> Result:
    """Trains `model` for `steps` steps by `rule` while `method` tunes `hypers`; returns the model and a history.

    model, loss, rule, hypers, fixed, method, options, val_loss, seed: see `Tuner`. The model itself is trained, and
        ends with the trained weights and buffers in tensors of its own; with in_place=False it is copied first.
    train, val: tensors (x, y) on the model's device, or a DataLoader (any iterable of pairs (x, y) that can be iterated
        over again), whose batches are moved there. Tensors are cut into batches of batch_size rows, in an order drawn
        from `seed` for each epoch, what does not fill a batch left out; None: all rows at each step. Epochs follow one
        another until `steps` is reached. val is needed where the method uses validation data, each outer update taking
        its next batch; other methods' val_loss is read on its first one.
    restarts: further trainings of `steps` steps from the initial weights, with the hyperparameters that the one before
        ended with (FDS and other methods whose outer update comes at the end of a training).
    every: steps between two rows of the history; by default as often as the hyperparameters are updated, or as makes
        200 rows. A row's val_loss is that of the outer update, else the loss on the validation batch that is next.
    callbacks: functions of an `Info`, called after each row; the training ends early when one returns True.
    checkpoint: a file to which the state is saved (at the first row that is checkpoint_seconds after the last save, and
        at the end). Where it exists already the training goes on from it, to the same bits on the same device and
        software; one that has ended is not trained further, unless `steps` has grown.

    Raises GradtuneError as `Tuner` does, and for data that is empty, has no batch left, or is missing.
    It differs from `search.search`, which trains many times with fixed hyperparameters. Cost and memory: those of
    the method; a row whose step has no outer update costs a forward pass where `val` is given.
    """
    at_least(1, steps=steps, every=1 if every is None else every)
    at_least(0, restarts=restarts)
    model = model if in_place else copy.deepcopy(model)
    tuner = Tuner(
        model,
        loss,
        rule=rule,
        hypers=hypers,
        fixed=fixed,
        method=method,
        options=options,
        val_loss=val_loss,
        seed=seed,
        horizon=steps,
    )
    like = next(p for p in model.parameters() if p.requires_grad)
    feed = stream(train, like, batch_size, 2 * seed, "the training data")
    val_feed = stream(val, like, val_batch_size, 2 * seed + 1, "the validation data") if val is not None else None
    if val_feed is None and tuner.method.estimator is not None and tuner.method.outer_loss == "validation":
        raise GradtuneError(
            f"the method {method if isinstance(method, str) else tuner.method} updates the hyperparameters on "
            "validation data, and val is missing; give tensors (x, y) or a loader, or a method on the training loss "
            "such as 'hd'"
        )
    training = _Training(tuner, feed, val_feed, steps, restarts, every or _stride(tuner.method.every, steps))
    if checkpoint is not None:
        training.file, training.pause = Path(checkpoint), checkpoint_seconds
        training.resume()
    training.run([callbacks] if callable(callbacks) else callbacks)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return Result(model, training.history)


def _stride(cadence: int, steps: int) -> int:
    """Steps between rows: a multiple of the outer updates' cadence that makes 200 rows at most."""
    return cadence * max(1, -(-steps // (cadence * _ROWS))) if cadence <= steps else max(1, steps // _ROWS)


@dataclass
class _Training:
    """The loop of `tune` and all that it keeps: `done` counts steps over all trainings, `updates` the outer updates."""

    tuner: Tuner
    train: Resident | Loaded
    val: Resident | Loaded | None
    steps: int
    restarts: int
    every: int
    file: Path | None = None
    pause: float = 0.0
    done: int = 0
    updates: int = 0
    stopped: bool = False
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.tuner.hypers, self.tuner.names)
        self.initial = [x.clone() for x in self._model()] if self.restarts else []
        self._saved = time.monotonic()

    def _model(self) -> list[Tensor]:
        return list(self.tuner.model.state_dict().values())

    def run(self, callbacks: Sequence[Callback]) -> None:
        total = self.steps * (1 + self.restarts)
        with tqdm(total=total, initial=self.done, unit="step", disable=None) as bar:
            while self.done < total and not self.stopped:
                info = self._step()
                bar.update()
                if self.done % self.every == 0 or self.done == total:
                    self.history.add(self._row(info))
                    self._save(force=False)
                    answers = [callback(info) for callback in callbacks]  # all are called
                    self.stopped = any(answer is True for answer in answers)
        self._save(force=True)

    def _step(self) -> Info:
        """One step of the tuner, with its batches."""
        if self.tuner.steps == self.steps:
            with torch.no_grad():
                for tensor, value in zip(self._model(), self.initial, strict=True):
                    tensor.copy_(value)
            self.tuner.restart()
        needs_val = self.tuner.needs_val
        val_batch = self.val.at(self.updates) if needs_val and self.val is not None else None
        info = self.tuner.step(self.train.at(self.done), val_batch)
        self.done, self.updates = self.done + 1, self.updates + needs_val
        return replace(info, step=self.done)

    def _row(self, info: Info) -> Row:
        val = info.val
        if val is None and self.val is not None:
            val = self.tuner.evaluate(self.val.at(self.updates))
        nan = torch.full_like(info.train, float("nan"))
        return Row(self.done, info.train, nan if val is None else val, self.tuner.raw)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _data(self) -> str:
        return f"training data {self.train}, validation data {self.val}"

    def _save(self, force: bool) -> None:
        if self.file is None or not (force or time.monotonic() - self._saved >= self.pause):
            return
        state = {
            "tuner": self.tuner.state_dict(),
            "data": self._data(),
            "train": self.train.state(),
            "val": self.val.state() if self.val is not None else {},
            "history": self.history.state(),
            "initial": self.initial,
            "counts": [self.done, self.updates, int(self.stopped)],
        }
        checkpoints.save(state, self.file)
        self._saved = time.monotonic()

    def resume(self) -> None:
        """Goes on from the file, if there is one."""
        if self.file is None or not self.file.exists():
            return
        state = checkpoints.load(self.file, self.tuner.raw.device)
        if state["data"] != self._data():
            raise GradtuneError(
                f"{self.file} was saved with other data ({state['data']}) than given ({self._data()}); give the same, "
                "choose another path, or remove the file"
            )
        try:
            self.tuner.load_state_dict(state["tuner"])
        except GradtuneError as error:
            raise GradtuneError(f"{self.file}: {error}") from None
        self.train.load(state["train"])
        if self.val is not None:
            self.val.load(state["val"])
        self.history.load(state["history"])
        self.initial = state["initial"]
        self.done, self.updates, self.stopped = state["counts"][0], state["counts"][1], bool(state["counts"][2])
