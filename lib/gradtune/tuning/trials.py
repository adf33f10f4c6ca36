"""Trainings of copies of a module at hyperparameters that stay fixed: what a search on a model of one's own trains."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hyper
from gradtune.search import MULTIPLIER, Dimension
from gradtune.tuning import declared
from gradtune.tuning.assembly import copy_of
from gradtune.tuning.batches import rows as rows_of
from gradtune.tuning.streams import Batch, Loaded, Resident
from gradtune.tuning.tuner import Tuner

State = dict[str, Any]
_STEPPED = 10  # steps between two multiplications of the learning rate in random xLR


@dataclass
class Trial:
    """A trial in training.

    Attributes:
        tuner: trains it.
        train: its batches.
        config: its configuration, natural units.
        schedule: scheduler of its learning rate, or None.
    """

    tuner: Tuner
    train: Resident | Loaded
    config: Mapping[str, float]
    schedule: Any = None


@dataclass
class Trials:
    """Training of copies of a module, as a `search.Copyable`.

    Every trial starts from the weights and buffers of the module, and sees the same batches and random numbers.
    `search.Training` differs in that its runs are computed side by side. Here one is trained after the other.

    Cost: plain training. Memory: a copy of the module and the rule's buffers for each trial in training.

    Attributes:
        model: the module, which is left as it is.
        loss: its loss, see `Tuner`.
        train: batches of training.
        val: batches of validation.
        steps: training steps of a full trial.
        space: dimensions by name, for the coordinates of hyperparameters of the user's own.
        arguments: further arguments of `Tuner`.
        schedule: makes a scheduler of a `schedule.Factor`, see `tune`.
        val_batches: batches of a validation; None for one pass.
        tick: called with 1 after each step.

    Raises:
        GradtuneError: `Tuner` raises it, the module cannot be copied, or a learning rate is to be stepped that is not
            searched. When trials advance side by side: their loader serves one at a time.
    """

    model: nn.Module
    loss: Callable[..., Tensor] | None
    train: Resident | Loaded
    val: Resident | Loaded
    steps: int
    space: Mapping[str, Dimension] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    schedule: Callable[[Any], Any] | None = None
    val_batches: int | None = None
    tick: Callable[[int], Any] = int

    def start(self, configs: Sequence[Mapping[str, float]], seeds: Sequence[int]) -> list[Trial]:
        return [self._trial(c, self.train.again()) for c in configs]

    def advance(self, members: list[Trial], steps: int) -> list[Trial]:
        if len(members) > 1 and getattr(getattr(self.train, "loader", None), "persistent_workers", False):
            raise GradtuneError(
                f"{len(members)} trials are trained side by side, and the training data are a DataLoader with "
                "persistent_workers=True, which serves one at a time; leave persistent_workers out, or choose another "
                "search"
            )
        for trial in members:
            for _ in range(steps):
                self._step(trial)
                self.tick(1)
        return members

    def _step(self, trial: Trial) -> None:
        count = int(self.arguments.get("accumulate", 1))
        first = trial.tuner.steps * count
        trial.tuner.step(trial.train.at(first) if count == 1 else [trial.train.at(first + k) for k in range(count)])
        if trial.schedule is not None:
            trial.schedule.step()

    def val_loss(self, members: list[Trial]) -> list[float]:
        return mean_losses([trial.tuner for trial in members], islice(self.val.once(), self.val_batches))

    def select(self, members: list[Trial], rows: Sequence[int], configs: Sequence[Mapping[str, float]]) -> list[Trial]:
        if MULTIPLIER in configs[0]:
            raise GradtuneError(f"trials whose learning rate is stepped cannot be copied; search without {MULTIPLIER}")
        chosen = []
        for m, (row, config) in enumerate(zip(rows, configs, strict=True)):
            same = row == m and config == members[m].config
            # all streams are equal and at the same place, so that a copy goes on with that of the trial it replaces
            chosen.append(members[m] if same else self._copy(members[row], members[m].train, config))
        return chosen

    def _copy(self, donor: Trial, train: Resident | Loaded, config: Mapping[str, float]) -> Trial:
        """Return a trial with the donor's weights, buffers and steps and another configuration."""
        trial, begun = self._trial(config, train), self._trial(donor.config, train).tuner.state_dict()
        if trial.schedule is not None:
            trial.schedule.load_state_dict(copy.deepcopy(donor.schedule.state_dict()))
        state = _transplanted(donor.tuner.state_dict(), begun, trial.tuner.state_dict())
        trial.tuner.load_state_dict(cloned(state))
        return trial

    def restore(self, model: nn.Module, config: Mapping[str, float], state: State) -> Tuner:
        """Give a model the weights and buffers of a trial's state, and return its tuner."""
        tuner = self._tuner(model, config)
        tuner.load_state_dict(state)
        return tuner

    def _trial(self, config: Mapping[str, float], train: Resident | Loaded) -> Trial:
        tuner = self._tuner(copy_of(self.model), config)
        return Trial(tuner, train, dict(config), self.schedule(tuner.factor) if self.schedule is not None else None)

    def _tuner(self, model: nn.Module, config: Mapping[str, float]) -> Tuner:
        arguments: dict[str, Any] = {"hypers": [*self._declared(config)], "method": "fixed", "horizon": self.steps}
        arguments |= self.arguments
        if "scaler" in arguments:
            arguments["scaler"] = copy.deepcopy(arguments["scaler"])  # it follows one training
        return Tuner(model, self.loss, **arguments)

    def _declared(self, config: Mapping[str, float]) -> Iterator[Hyper]:
        """Yield the declarations of a configuration, none of which is tuned."""
        if MULTIPLIER in config and "lr" not in config:
            raise GradtuneError(f"{MULTIPLIER} steps the learning rate, and 'lr' is not in the space; search it too")
        for name, value in config.items():
            if name == "lr" and MULTIPLIER in config:
                times = torch.arange(self.steps, dtype=torch.float64) // _STEPPED
                yield Hyper(name, value * config[MULTIPLIER] ** times, "log10", windows=self.steps, tuned=False)
            elif name != MULTIPLIER:
                yield held(name, value, self.space)


def held(name: str, value: float, space: Mapping[str, Dimension]) -> Hyper:
    """Return the declaration of a value that is not tuned, in the usual coordinate, or that of a dimension."""
    try:
        return declared.coordinate(name, value, tuned=False)
    except GradtuneError:  # one of the user's own
        return Hyper(name, value, space[name].transform if name in space else "identity", tuned=False)


def mean_losses(tuners: Sequence[Tuner], batches: Iterable[Batch]) -> list[float]:
    """Return each tuner's mean validation loss over some batches, in which a batch counts by its rows.

    Args:
        tuners: the tuners.
        batches: the batches, at least one.
    """
    losses: list[list[Tensor]] = [[] for _ in tuners]
    counts = []
    for batch in batches:
        counts.append(rows_of(batch))
        for tuner, own in zip(tuners, losses, strict=True):
            own.append(tuner.evaluate(batch).detach())
    if len(counts) == 1:
        return [float(own[0]) for own in losses]
    weights = torch.tensor(counts, dtype=torch.float64)
    return [float((torch.stack(own).double().cpu() * weights).sum() / weights.sum()) for own in losses]


def cloned(state: Any) -> Any:
    """Return nested dicts and sequences with tensors of their own."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {n: cloned(v) for n, v in state.items()}
    return type(state)(map(cloned, state)) if type(state) in (list, tuple) else state


def _transplanted(state: Any, begun: Any, other: Any) -> Any:
    """Return a tuner's state at other hyperparameters.

    What two tuners that have taken no step differ in is their hyperparameters. There the other's is taken, and the
    state everywhere else.

    Args:
        state: the state of a tuner.
        begun: the state of a tuner of the same arguments that has taken no step.
        other: the state of a tuner at other hyperparameters that has taken no step.
    """
    if isinstance(state, dict):
        return {n: _transplanted(v, begun[n], other[n]) if n in begun and n in other else v for n, v in state.items()}
    if type(state) in (list, tuple):
        if not len(state) == len(begun) == len(other):
            return state
        return type(state)(_transplanted(*each) for each in zip(state, begun, other, strict=True))
    if isinstance(state, Tensor):
        return state if torch.equal(begun, other) else other
    return state if begun == other else other
