"""Tune a model of one's own by training it many times: `tune_by_search`, the searches beside the gradients of `tune`.

For example::

    space = {"lr": (1e-4, 1e-1), "weight_decay": (1e-6, 1e-2)}
    found = gradtune.tune_by_search(model, loss, (x, y), (x_val, y_val), space=space, steps=2000, trials=20)
    found.model, found.best, found.to_frame()

A trial is `tune` with `method="fixed"`, to the bit. `gradtune.search.search` does the same for problems of R runs side
by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from gradtune import methods
from gradtune.errors import GradtuneError, at_least
from gradtune.recursion.rules import Rule
from gradtune.search import METHODS, Configuration, Dimension, Grid, Result, Space, prepare
from gradtune.search import ledger as found_by
from gradtune.search.ledger import Cohort
from gradtune.tuning import kinds
from gradtune.tuning.assembly import copy_of
from gradtune.tuning.resumed import Resumed, topics
from gradtune.tuning.streams import steps_of, stream
from gradtune.tuning.trials import State, Trials, cloned, held, mean_losses

if TYPE_CHECKING:
    import pandas as pd

Range = tuple[float, float] | Dimension


class Found(NamedTuple):
    """What a search on a model has found.

    Attributes:
        model: the model with weights and buffers of the best evaluation; as it was given when every trial diverged.
        best: hyperparameters of that evaluation, natural units; None when every trial diverged. After population based
            training they are the last ones of a schedule.
        search: every evaluation, and why the search ended.
        test: mean loss of the model on the test data; None without test data.
    """

    model: nn.Module
    best: Configuration | None
    search: found_by.Result
    test: float | None = None

    @property
    def val_loss(self) -> float:
        """Validation loss of the best evaluation; NaN when every trial diverged."""
        return self.search.best_loss

    def to_frame(self) -> pd.DataFrame:
        """Return every evaluation as a table, see `gradtune.search.Result.to_frame`."""
        return self.search.to_frame()


def tune_by_search(
    model: nn.Module,
    loss: Callable[..., Tensor] | None,
    train: Any,
    val: Any,
    *,
    space: Mapping[str, Range],
    steps: int | None = None,
    epochs: int | None = None,
    trials: int | None = None,
    budget_steps: int | None = None,
    method: str = "random",
    options: Mapping[str, Any] | None = None,
    test: Any = None,
    rule: str | Rule = "sgd",
    fixed: Mapping[str, Any] | None = None,
    val_loss: Callable[..., Tensor] | None = None,
    batch_size: int | None = None,
    val_batch_size: int | None = None,
    val_batches: int | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    schedule: Callable[[Any], Any] | None = None,
    scaler: GradScaler | None = None,
    statistics: str | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    in_place: bool = True,
) -> Found:
    """Train copies of `model` by `rule`, and return the one of lowest validation loss and its hyperparameters.

    Every trial starts from the weights and buffers that the model has and sees the same batches and random numbers, so
    that trials differ by their hyperparameters alone. A trial that goes on after an evaluation takes no step twice. The
    same configuration, seed and data give the same weights as `tune(..., hypers={}, fixed=configuration,
    method="fixed")`, to the bit.

    Where it is interrupted (Ctrl-C, or "stop" in a notebook) after the first evaluation, it returns what it has found
    so far. With a checkpoint the same call goes on, after a kill too, to the result of an uninterrupted search.

    `tune` differs in that it trains once, and moves the hyperparameters by gradients on the way.

    Cost: plain training, `budget_steps` steps in all; and for each evaluation a pass through the validation data.

    Memory: the model as it was given, the best one, and one in training (with "pbt", or an option `batch`, as many as
    train side by side). An optimiser's buffers belong to each.

    Every search but "pbt" needs optuna, the extra `search`.

    Args:
        model: module in training mode, see `Tuner`. It ends with the best weights and buffers, in tensors of its own.
        loss: as in `tune`.
        train: as in `tune`.
        val: as in `tune`; needed. An evaluation's loss is the mean over one pass through it, in which a batch counts by
            its rows.
        space: what is searched: for each name the lowest and the highest value, or a `search.Dimension`. A pair is
            searched in the coordinate in which `tune` moves the hyperparameter (`declared.coordinate`): log10 for
            `lr` and `weight_decay`, log-odds for `momentum`, `beta1`, `beta2`, `smoothing` and `keep`; uniformly for
            hyperparameters of your own model and loss.
        steps: training steps of a full trial.
        epochs: passes through `train`, in place of `steps`.
        trials: full trainings that the budget pays for. Searches that stop trials early start more of them.
        budget_steps: training steps of all trials together, in place of `trials`. For "grid", neither has to be given:
            the budget is then that of all points.
        method: name in `search.METHODS`: "random", "grid", "bayes", "hyperband", "bohb", "asha", "pbt", ...
        options: options of the search, such as `{"points": 4}` for "grid"; its class in `gradtune.search` describes
            them.
        test: data on which nothing is chosen. The best model's mean loss on them is `Found.test`; the validation loss
            is optimistic, as it was chosen for.
        rule: as in `tune`.
        fixed: as in `tune`: values of hyperparameters that are not searched.
        val_loss: as in `tune`.
        batch_size: as in `tune`.
        val_batch_size: rows that are evaluated at once where `val` is given by rows; None for all. All rows count.
        val_batches: batches of a validation; None for one pass.
        accumulate: as in `tune`.
        clip_norm: as in `tune`.
        clip_value: as in `tune`.
        schedule: as in `tune`; each trial has one of its own.
        scaler: as in `tune`; each trial has a copy of its own.
        statistics: as in `tune`; None for its default.
        seed: seed of the search, and of the trials' batches and random numbers as in `tune`.
        checkpoint: file in which the search is kept: after the first evaluation that is `checkpoint_seconds` after the
            last save, and at the end. Where it exists already, the search goes on from it, with the trials as far as
            they were, to the same bits on the same device and software.
        checkpoint_seconds: least time in seconds between two saves before the end.
        in_place: whether `model` itself gets the best weights; False leaves it alone and returns a copy.

    Returns:
        The model, the best hyperparameters and the record of the search.

    Raises:
        GradtuneError: `Tuner` or `search.search` raises it; a range is empty; neither or both of `trials` and
            `budget_steps`, or of `steps` and `epochs`, are given; data are missing, empty or an iterator that cannot
            start again; the model cannot be copied; or a checkpoint cannot be read or written, or is one of another
            search.
    """
    kinds.check(locals() | {"method": None})
    at_least(0, seed=seed)
    at_least(1, accumulate=accumulate, trials=1 if trials is None else trials)
    made = Space({name: _dimension(name, given) for name, given in space.items()})
    _check(method, made, fixed or {}, train, val)
    like = next((p for p in model.parameters() if p.requires_grad), torch.empty(0))
    feed = stream(train, like, batch_size, 2 * seed, "the training data")
    val_feed = stream(val, like, val_batch_size, 2 * seed + 1, "the validation data")
    test_feed = None if test is None else stream(test, like, val_batch_size, 0, "the test data")
    steps = steps_of(steps, epochs, feed, accumulate)
    arguments: dict[str, Any] = {"rule": rule, "fixed": fixed, "val_loss": val_loss, "seed": seed}
    arguments |= {"accumulate": accumulate if accumulate > 1 else None, "clip_norm": clip_norm}
    arguments |= {"clip_value": clip_value, "scaler": scaler, "statistics": statistics}
    arguments = {n: v for n, v in arguments.items() if v is not None}
    trained = Trials(model, loss, feed, val_feed, steps, made, arguments, schedule, val_batches)
    budget = _budget(method, trials, budget_steps, steps, options or {}, len(made))
    kept: Trials | Resumed = trained
    if checkpoint is not None:
        of = topics(trained, method, budget, seed, options or {})
        kept = Resumed(trained, Path(checkpoint), checkpoint_seconds, of)
    result, best = _searched(method, kept, made, budget, seed, options or {})
    model = model if in_place else copy_of(model)
    if best is None:
        return Found(model, None, result)
    tuner = trained.restore(model, *best)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return Found(model, result.best, result, None if test_feed is None else mean_losses([tuner], test_feed.once())[0])


def _searched(
    method: str, trained: Trials | Resumed, space: Space, budget: int, seed: int, options: Mapping[str, Any]
) -> tuple[Result, tuple[Configuration, State] | None]:
    """Run a search; return its result, and configuration and state of the best trial when it was best."""
    found: list[tuple[Configuration, State]] = []

    def keep(cohort: Cohort, m: int) -> None:
        found[:] = [(dict(cohort.configs[m]), cloned(cohort.state[m].tuner.state_dict()))]

    strategy, ledger = prepare(method, trained, space, budget, seed, options)
    if isinstance(trained, Resumed):
        trained.ledger, ledger.on_best, trained.inner.tick = ledger, trained.keep, ledger.bar.update
    else:
        ledger.on_best, trained.tick = keep, ledger.bar.update
    try:
        with ledger:
            how = strategy.run(ledger, space)
    except KeyboardInterrupt:
        if not ledger.rows:
            raise
        how = "it was interrupted"
    if isinstance(trained, Resumed):
        trained.close(ledger.rows, ledger.best)
        found = [trained.best] if trained.best is not None else []
    return ledger.result(method, how, strategy.group), found[0] if found else None


def _dimension(name: str, given: Range) -> Dimension:
    if isinstance(given, Dimension):
        return given
    try:
        low, high = (float(x) for x in given)
    except (TypeError, ValueError):
        raise GradtuneError(
            f"space[{name!r}] is {given!r}; expected the lowest and the highest value, such as (1e-4, 1e-1), or a "
            "gradtune.search.Dimension"
        ) from None
    try:
        return Dimension(low, high, held(name, high, {}).transform)
    except GradtuneError as error:
        raise GradtuneError(f"space[{name!r}]: {error}; a Dimension(low, high) is searched uniformly") from None


def _check(method: str, space: Space, fixed: Mapping[str, Any], train: Any, val: Any) -> None:
    if method not in {s.name for s in METHODS} and method in {r.name for r in methods.METHODS}:
        raise GradtuneError(
            f"{method} moves hyperparameters by gradients within one training, and this is a search over many; use "
            f"gradtune.tune(..., method={method!r}), or one of {[s.name for s in METHODS]}"
        )
    twice = [n for n in space if n in fixed]
    if twice:
        raise GradtuneError(f"{twice} are given in space and in fixed; give each once")
    if val is None:
        raise GradtuneError("a search compares validation losses, and val is missing; give tensors (x, y) or a loader")
    for what, data in (("training", train), ("validation", val)):
        if isinstance(data, Iterator):
            raise GradtuneError(
                f"the {what} data are an iterator ({type(data).__name__}), which cannot start again for the next "
                "trial; give a DataLoader, a list of batches, or tensors (x, y)"
            )


def _budget(
    method: str, trials: int | None, budget: int | None, steps: int, options: Mapping[str, Any], dimensions: int
) -> int:
    if trials is None and budget is None and method == "grid":
        return steps * int(options.get("points", Grid.points)) ** dimensions
    if (trials is None) == (budget is None):
        raise GradtuneError(
            f"trials = {trials} and budget_steps = {budget}; give one of them: full trainings to pay for, or training "
            "steps of all trials together"
        )
    return steps * trials if trials is not None else int(budget or 0)
