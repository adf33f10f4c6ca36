"""Train a model of one's own and tune its hyperparameters in the same pass: `tune`.

For example::

    result = gradtune.tune(model, loss, (x, y), (x_val, y_val), steps=2000, batch_size=100)
    result.model, result.history.to_frame(), result.history.plot()

    gradtune.tune(..., method="onepass", hypers={"lr": 1e-3, "weight_decay": 1e-4})  # a paper's method, as it is

`gradtune.Tuner` does the same in a training loop of one's own.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from gradtune.errors import GradtuneError, GradtuneWarning, at_least, unknown
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Method
from gradtune.tuning import declared, defaults, kinds
from gradtune.tuning.assembly import copy_of
from gradtune.tuning.batches import rows
from gradtune.tuning.events import Race
from gradtune.tuning.guard import Best, Guard
from gradtune.tuning.history import History
from gradtune.tuning.judging import ends, first, sample
from gradtune.tuning.probe import race
from gradtune.tuning.schedule import Schedule, linear
from gradtune.tuning.streams import Loaded, Resident, steps_of, stream
from gradtune.tuning.training import Callback, Training, race_in
from gradtune.tuning.trials import mean_losses
from gradtune.tuning.tuner import Tuner

Data = Any
"""Tensors or arrays `(x, y)`, a dict of them, or a loader, see `streams` and `calling`."""


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
    loss: Callable[..., Tensor] | None,
    train: Data,
    val: Data | None = None,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    test: Data | None = None,
    rule: str | Rule | None = None,
    hypers: declared.Given | None = None,
    fixed: declared.Fixed | None = None,
    method: str | Method | None = None,
    options: Mapping[str, Any] | None = None,
    val_loss: Callable[..., Tensor] | None = None,
    batch_size: int | None = None,
    val_batch_size: int | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    schedule: Schedule | None = None,
    probe: bool | None = None,
    guard: bool | None = None,
    keep: str | None = None,
    scaler: GradScaler | None = None,
    statistics: str = "following",
    restarts: int = 0,
    seed: int = 0,
    every: int | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    in_place: bool = True,
    replay: bool | None = None,
) -> Result:
    """Train `model` for `steps` steps by `rule` while `method` tunes `hypers`.

    With neither method nor rule named, a recipe trains that needs no knowledge of rates: a race between learning rates
    (`probe`), AdamW with OnePass on the weight decay, a learning rate that falls in a straight line, a guard, and the
    best weights kept. `defaults` describes it. A method that is named runs as its paper has it, with the
    guard alone.

    Tensors are cut into batches. With a batch size, each epoch goes through the rows in an order drawn from `seed`, and
    rows that do not fill a batch are left out. In place of a DataLoader any iterable of pairs `(x, y)` will do that can
    be iterated over again. Its batches are moved to the model's device. Epochs follow one another until `steps` is
    reached.

    `by_search.tune_by_search` differs in that it trains many times, with hyperparameters that no gradient moves.

    Cost and memory: those of the method; of the recipe, about twice those of plain training. Where `val` is given, a
    row of the history whose step has no outer update on validation data costs a forward pass more.

    Args:
        model: module in training mode, see `Tuner`. Trained in place, it ends with the trained weights and buffers in
            tensors of its own.
        loss: `loss(output, y)`, one number with its gradient; None for a model that returns its loss, see `Tuner`.
        train: tensors or arrays `(x, y)`, or a DataLoader; for other structures see `streams`.
        val: the same for validation data. It is needed where the method uses validation data; each outer update takes
            its next batch. With other methods the history's validation loss is that of its first batch.
        steps: training steps of a training.
        epochs: passes through `train`, in place of `steps`.
        test: the same for data that nothing is tuned on. Its mean loss at the end is `history.test`; the validation
            loss is optimistic where it was tuned on.
        rule: name in `declared.RULES`, or a `Rule`. None stands for "adamw" where no method is named, and for "sgd"
            where one is, or a momentum.
        hypers: what is tuned: numbers by name, such as `{"lr": 1e-3}`; numbers by pattern of the parameters' names,
            such as `{"lr": {"head.*": 1e-3, "*": 1e-4}}`, see `declared`; or `Hyper` declarations. None stands for
            learning rate and weight decay from usual values, see `defaults`.
        fixed: the same for what stays as it is, such as `{"weight_decay": {"1d": 0.0}}`; no `Hyper` declarations.
        method: name in `methods.METHODS`, or a `loop.Method`; None for the recipe, or with options for "onepass".
        options: arguments of the function that makes the method of that name, such as `{"every": 5}`; without a
            name, of "onepass". Rates that depend on the number of steps have defaults in
            `defaults.options`.
        val_loss: `val_loss(output, y)` of validation batches, by default `loss`, see `Tuner`.
        batch_size: rows in a batch where `train` is tensors; None for all rows at each step. A loader has a batch size
            of its own.
        val_batch_size: the same for `val`.
        accumulate: batches whose gradients a step averages, see `Tuner`.
        clip_norm: largest length of the gradient, see `Tuner`.
        clip_value: largest size of an entry of the gradient, see `Tuner`.
        schedule: makes a scheduler of `torch.optim.lr_scheduler` of a `schedule.Factor`, such as
            `lambda factor: CosineAnnealingLR(factor, 1000)`. Its factor multiplies the tuned learning rate; it takes a
            step after each training step. None stands for `schedule.linear` in the recipe, else for a factor of 1
            (`schedule.constant`).
        probe: whether learning rates race for a few steps each before the training, which then starts anew from the one
            that wins, see `probe`, whatever rate was given. None: in the recipe.
        guard: whether the last good weights come back, with a lower learning rate, when the training diverges, see
            `guard.Guard`. `history.events` has every case. None: except where nothing is tuned.
        keep: "last", the weights after the last step; or "best", those of the step with the lowest validation loss, see
            `guard.Best`. None: "best" in the recipe, else "last".
        scaler: scale of the loss in half precision, see `Tuner`.
        statistics: batch norm's statistics in the validation loss: "following", "running" or "batch", see `Tuner`.
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
        replay: whether steps are recorded once and replayed, to the same bits in less time, see `Tuner`.

    Returns:
        The trained model and the history.

    Raises:
        GradtuneError: `Tuner` raises it; data are empty, have no batch left or are missing; a checkpoint cannot be read
            or written, or was saved with other data or another configuration.
    """
    kinds.check(locals())
    at_least(0, restarts=restarts, seed=seed)
    recipe = method is None and options is None
    method = None if recipe else method or "onepass"
    if keep not in (None, "best", "last"):
        raise unknown("choice of what is kept", keep, ["best", "last"])
    model = model if in_place else copy_of(model)
    like = next((p for p in model.parameters() if p.requires_grad), torch.empty(0))
    feed = stream(train, like, batch_size, 2 * seed, "the training data")
    steps = steps_of(steps, epochs, feed, accumulate)
    at_least(1, steps=steps, every=1 if every is None else every)
    val_feed = None if val is None else _validation(val, like, val_batch_size, seed, feed if recipe else None)
    chosen, tuned, held = defaults.chosen(rule, hypers, fixed or {}, method)
    arguments: dict[str, Any] = {"rule": chosen, "fixed": held, "val_loss": val_loss, "seed": seed, "horizon": steps}
    arguments |= {"accumulate": accumulate, "clip_norm": clip_norm, "clip_value": clip_value}
    arguments |= {"scaler": scaler, "statistics": statistics, "replay": replay}
    probe, keeps = recipe if probe is None else probe, keep == "best" or (keep is None and recipe)
    judged = _judged(feed, val_feed, steps) if probe or keeps else []
    found = _race(model, loss, {**arguments, "hypers": tuned}, feed, judged, steps, probe, checkpoint)
    if recipe:
        tuned = defaults.raced(tuned, found, chosen, held, steps)
        method, options = defaults.recipe(steps, tuned)
    assert method is not None
    tuner = Tuner(model, loss, hypers=tuned, method=method, options=options, **arguments)
    if found is not None and found.best is not None:
        tuner.lr = found.best
    how = tuner.method
    _check_val(
        "the default method" if recipe else f"the method {method if isinstance(method, str) else how}", how, val_feed
    )
    test_feed = stream(test, like, val_batch_size, 0, "the test data") if test is not None else None
    _warn_of_a_short_training(how, steps)
    stride = every or _stride(how.every, steps)
    schedule = linear(steps) if recipe and schedule is None else schedule
    training = Training(tuner, feed, val_feed, steps, restarts, stride, accumulate, schedule)
    training.history.race = found
    if how.estimator is not None or recipe if guard is None else guard:
        training.guard = Guard(tuner, steps, judged if recipe else ())
    if keeps and judged:
        training.best = Best(tuner, judged, steps)
    if checkpoint is not None:
        training.file, training.pause = Path(checkpoint), checkpoint_seconds
        training.resume()
    training.run([callbacks] if callable(callbacks) else callbacks)
    if training.best is not None and val_feed is not None:
        training.history.val = mean_losses([tuner], val_feed.once())[0]
    if test_feed is not None:
        training.history.test = mean_losses([tuner], test_feed.once())[0]
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return Result(model, training.history)


def _stride(cadence: int, steps: int) -> int:
    """Return the steps between two rows: a multiple of the outer updates' cadence that makes at most 200 rows.

    Where the cadence is longer than the training, the result makes fewer than 400 rows.
    """
    return cadence * max(1, -(-steps // (cadence * _ROWS))) if cadence <= steps else max(1, steps // _ROWS)


def _validation(val: Data, like: Tensor, size: int | None, seed: int, feed: Resident | Loaded | None) -> Any:
    """Return the batches of validation; with a stream of training batches, of as many rows as these where none is said.

    A validation gradient then costs no more than a training gradient.
    """
    found = stream(val, like, size, 2 * seed + 1, "the validation data")
    if size is not None or feed is None or not isinstance(found, Resident):
        return found
    of_train = rows(feed.at(0)) if isinstance(feed, Resident) else getattr(feed.loader, "batch_size", None)
    if not of_train or of_train >= rows(found.at(0)):
        return found
    return stream(val, like, of_train, 2 * seed + 1, "the validation data")


def _judged(feed: Resident | Loaded, val_feed: Resident | Loaded | None, steps: int) -> list[Any]:
    """Return the batches of validation that weights are judged by; none where there are none, or they end."""
    if val_feed is None or ends(val_feed):
        return []
    of_train = None if ends(feed) else rows(first(feed, 1)[0])
    return sample(val_feed, steps, of_train or rows(first(val_feed, 1)[0]))


def _race(
    model: nn.Module,
    loss: Callable[..., Tensor] | None,
    arguments: dict[str, Any],
    feed: Resident | Loaded,
    judged: list[Any],
    steps: int,
    wanted: bool,
    checkpoint: str | Path | None,
) -> Race | None:
    """Let learning rates race, where that is wanted and can be; a training that goes on takes its race over."""
    if checkpoint is not None and Path(checkpoint).exists():
        return race_in(Path(checkpoint))
    if not wanted or "lr" not in defaults.names(arguments["hypers"]):
        return None
    if ends(feed):
        warnings.warn(
            "the data come from an iterator, which cannot start again: the learning rate is not probed, and training "
            "starts from the one that was given; give a DataLoader, a list of batches or tensors",
            GradtuneWarning,
            stacklevel=3,
        )
        return None
    racer = Tuner(model, loss, method="fixed", **{**arguments, "scaler": copy.deepcopy(arguments["scaler"])})
    judged = judged or first(feed, 4)
    found = race(racer, defaults.name(arguments["rule"]), feed, judged, steps, arguments["accumulate"])
    if found.best is None:
        warnings.warn(
            f"the loss is not finite after {found.candidates[0].steps} steps with any of the learning rates "
            f"{found.candidates[0].lr:.3g} to {found.candidates[-1].lr:.3g}; look for a bad value in the data, or in "
            "the model's first output",
            GradtuneWarning,
            stacklevel=3,
        )
    return found


def _check_val(what: str, how: Method, val_feed: Resident | Loaded | None) -> None:
    if val_feed is None and how.estimator is not None and how.outer_loss == "validation":
        raise GradtuneError(
            f"{what} updates the hyperparameters on validation data, and val is missing; give tensors (x, y) or a "
            "loader, or a method on the training loss such as 'hd'"
        )


def _warn_of_a_short_training(how: Method, steps: int) -> None:
    first_update = -(-(how.warm_up + 1) // how.every) * how.every
    if how.estimator is not None and steps < first_update:
        warnings.warn(
            f"the first update of the hyperparameters comes after step {first_update}, and the training ends after "
            f"{steps}: nothing is tuned; train longer, or choose a smaller 'every' in options",
            GradtuneWarning,
            stacklevel=3,
        )
