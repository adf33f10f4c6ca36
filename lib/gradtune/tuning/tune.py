"""Train a model of one's own and tune its hyperparameters in the same pass: `tune`.

For example::

    result = gradtune.tune(model, loss, (x, y), (x_val, y_val), hypers={"lr": 1e-3, "weight_decay": 1e-4}, steps=2000)
    result.model, result.history.to_frame(), result.history.plot()

`gradtune.Tuner` does the same in a training loop of one's own.
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
    """The trained model and the history of its training.

    Attributes:
        model: the trained model.
        history: losses and hyperparameters over the steps.
    """

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
    """Train `model` for `steps` steps by `rule` while `method` tunes `hypers`.

    Tensors are cut into batches. With a batch size, each epoch goes through the rows in an order drawn from `seed`, and
    rows that do not fill a batch are left out. In place of a DataLoader any iterable of pairs `(x, y)` will do that can
    be iterated over again. Its batches are moved to the model's device. Epochs follow one another until `steps` is
    reached.

    `search.search` differs in that it trains many times, with hyperparameters that no gradient moves.

    Cost and memory: those of the method. Where `val` is given, a row of the history whose step has no outer update on
    validation data costs a forward pass more.

    Args:
        model: module in training mode, see `Tuner`. Trained in place, it ends with the trained weights and buffers in
            tensors of its own.
        loss: `loss(output, y)`, one number with its gradient, see `Tuner`.
        train: tensors `(x, y)` on the model's device, or a DataLoader.
        val: the same for validation data. It is needed where the method uses validation data; each outer update takes
            its next batch. With other methods the history's validation loss is that of its first batch.
        steps: training steps of a training.
        rule: name in `declared.RULES`, or a `Rule`.
        hypers: what is tuned, as numbers by name or as `Hyper` declarations, see `Tuner`.
        fixed: numbers by name for hyperparameters that stay as they are.
        method: name in `methods.METHODS`, or a `loop.Method`.
        options: arguments of the function that makes the method of that name.
        val_loss: `val_loss(output, y)` of validation batches, by default `loss`, see `Tuner`.
        batch_size: rows in a batch where `train` is tensors; None for all rows at each step. A loader has a batch size
            of its own.
        val_batch_size: the same for `val`.
        restarts: number of further trainings of `steps` steps from the initial weights and buffers. Each starts with
            the hyperparameters that the one before ended with. They are meant for FDS and other methods whose outer
            update comes at the end of a training.
        seed: seed of the order of the rows, of a loader's random numbers and of those in the forward pass.
        every: steps between two rows of the history. By default it is the number of steps between two outer updates, or
            a multiple of it that makes at most 200 rows a training (fewer than 400 where a training is too short for an
            outer update). A row's validation loss is that of the outer update, else the loss on the validation batch
            that is next.
        callbacks: function of an `Info`, or several, called after each row. Training ends early when one returns True.
        checkpoint: file to which the state is saved: at the first row that is `checkpoint_seconds` after the last save,
            and at the end. Where it exists already, training goes on from it, to the same bits on the same device and
            software. A training that has ended is trained further only where `steps` has grown and no callback ended
            it.
        checkpoint_seconds: least time in seconds between two saves before the end.
        in_place: whether the model itself is trained; False trains a copy of it.

    Returns:
        The trained model and the history.

    Raises:
        GradtuneError: `Tuner` raises it; data are empty, have no batch left or are missing; a checkpoint cannot be read
            or written, or was saved with other data or another configuration.
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
    """Return the steps between two rows: a multiple of the outer updates' cadence that makes at most 200 rows.

    Where the cadence is longer than the training, the result makes fewer than 400 rows.
    """
    return cadence * max(1, -(-steps // (cadence * _ROWS))) if cadence <= steps else max(1, steps // _ROWS)


@dataclass
class _Training:
    """The loop of `tune` and all that it keeps.

    `done` counts steps over all trainings, `updates` the outer updates on validation data, and `stopped` says whether a
    callback ended the training.
    """

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
        """Take one step of the tuner, with its batches."""
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
        """Go on from the file, if there is one."""
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
