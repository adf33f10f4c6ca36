"""Hypergradients in a training loop of one's own: `Tuner` replaces the optimiser and `loss.backward()`.

For example::

    tuner = gradtune.Tuner(model, loss, hypers={"lr": 1e-3, "weight_decay": 1e-4}, method="onepass")
    for batch in loader:
        tuner.step(batch, next(val_batches) if tuner.needs_val else None)

`gradtune.tune` is this loop with data, history, callbacks and checkpoints around it, and gives the same bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from gradtune.errors import GradtuneError
from gradtune.recursion.hypers import Hypers
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import State, Step
from gradtune.training.loop import Loop, Method, Run
from gradtune.tuning import declared, history
from gradtune.tuning.streams import Batch, fits
from gradtune.tuning.supervised import Supervised


@dataclass(frozen=True)
class Info:
    """What a step has done, for callbacks and print-outs.

    `train_loss` and `val_loss` are the losses as numbers; reading them waits for the device.

    Attributes:
        step: steps taken so far; in `gradtune.tune`, over all its trainings.
        updated: whether the hyperparameters moved.
        train: loss of the step's batch before the step, a scalar tensor on the model's device.
        val: loss of the validation batch after the step, a scalar tensor on the model's device; None where none was
            used.
        tuner: the tuner that took the step.
    """

    step: int
    updated: bool
    train: Tensor
    val: Tensor | None
    tuner: Tuner = field(repr=False)

    @property
    def train_loss(self) -> float:
        """Loss of the step's batch, before the step."""
        return float(self.train)

    @property
    def val_loss(self) -> float:
        """Validation loss after the step, NaN where none was computed."""
        return float("nan") if self.val is None else float(self.val)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Natural values after the step, see `Tuner.hyperparameters`."""
        return self.tuner.hyperparameters

    @property
    def model(self) -> nn.Module:
        """The model, with the weights after the step."""
        return self.tuner.model


class Tuner:
    """Training of a model step by step, with hyperparameters tuned on the way.

    The model is trained in place. After every step its parameters and buffers are the trained ones, so it can be
    evaluated, saved or read at any time between two steps, and writing to its parameters changes the weights that
    training goes on with. The parameters are views of one flat tensor, which each step replaces: `model.state_dict()`
    is a snapshot that later steps leave alone. Parameters that are frozen (`requires_grad=False`) when the tuner is
    made stay as they are. Buffers follow where the forward pass writes to them in place, as torch's layers do.

    Arguments of the loss beyond the first two, and of `model.forward` beyond the first, can be hyperparameters by name,
    such as the `smoothing` of `losses.cross_entropy` and the `keep` of `plain.Dropout`.

    Cost: that of the method, and nothing but one gradient at steps without an outer update or curvature.

    Memory: that of the method, and the batches of the steps that it looks back on.

    Args:
        model: any module in training mode, with one type and device for all weights.
        loss: `loss(output, y)`, one number with its gradient, such as a mean over the batch.
        rule: name in `declared.RULES`, or a `Rule`. What the rule reads and nobody names has torch's default and stays.
        hypers: what is tuned: numbers by name, in the usual coordinates (`declared.coordinate`), or `Hyper`
            declarations.
        fixed: numbers by name for hyperparameters that stay as they are.
        method: name in `methods.METHODS`, or a `loop.Method`.
        options: arguments of the function that makes the method of that name.
        val_loss: `val_loss(output, y)` of validation batches, in evaluation mode. By default it is the loss with its
            own hyperparameters left at their defaults (smoothed targets are for training).
        seed: seed of dropout and all other random numbers in the forward pass, which are functions of (seed, step).
        horizon: steps that the time windows of hyperparameters share. A method whose option `horizon` is needed and not
            given takes it too (FDS).

    Attributes:
        model: the model.
        method: the method, a `loop.Method`.
        hypers: the declared hyperparameters, a `hypers.Hypers`.
        configuration: text by topic that tells tuners apart; `load_state_dict` compares it.

    Raises:
        GradtuneError: the model has no trainable parameters or is in evaluation mode, a name is unknown, a value is
            outside its bounds, a batch has another type or device, the loss is not one number or has no gradient, or a
            validation batch is missing. One sentence says which.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        *,
        rule: str | Rule = "sgd",
        hypers: declared.Given,
        fixed: Mapping[str, float] | None = None,
        method: str | Method = "onepass",
        options: Mapping[str, Any] | None = None,
        val_loss: Callable[..., Tensor] | None = None,
        seed: int = 0,
        horizon: int | None = None,
    ) -> None:
        self.model, self.method = model, declared.method(method, options, horizon)
        parameters = _trained(model)
        of_model, of_loss = declared.keywords(model, 1), declared.keywords(loss, 2)
        name = method if isinstance(method, str) else ""
        made = declared.rule_and_hypers(rule, hypers, fixed or {}, [*of_model, *of_loss], self.method, name)
        self._rule, hyper_list = made
        self._check_functions(of_model, of_loss, [h.name for h in hyper_list], val_loss is not None)
        self._problem = Supervised(
            model, loss, val_loss or loss, tuple(of_model), tuple(of_loss), self.method.keep, seed
        )
        self._layout = self._problem.layout
        self.hypers = Hypers(hyper_list, self._layout.sizes, horizon)
        self._loop = Loop(self._problem, self._rule, self.hypers, self.method)
        self._recent: deque[Step] = deque(maxlen=self.method.keep)
        w = self._layout.flatten(parameters)[None]
        self._problem.read(w)
        self._run = self._loop.start(w)
        self._places = _places(model, self._layout.names)
        self.configuration = {
            "model": f"{type(model).__name__} of {w.shape[1]} weights in {len(self._layout.names)} tensors, {w.dtype}",
            "rule": rule if isinstance(rule, str) else f"{rule.name} {list(rule.hypers)}",
            "method": str(self.method),
            "hyperparameters": ", ".join(map(str, hyper_list))
            + f", windows over {horizon} steps" * self.hypers.windowed,
            "seed": str(seed),
        }
        self.sync()

    @staticmethod
    def _check_functions(model: dict[str, bool], loss: dict[str, bool], names: list[str], own_val: bool) -> None:
        missing = [n for n, needed in (model | loss).items() if needed and n not in names]
        if missing:
            raise GradtuneError(
                f"the model or the loss takes {missing}, and no hyperparameter has that name; declare it in hypers, or "
                "give the argument a default"
            )
        needed = [n for n in loss if loss[n] and n in names]
        if needed and not own_val:
            raise GradtuneError(
                f"the loss cannot be called without {needed}, hyperparameters of training; give the argument a default "
                "for validation, or hand over val_loss=..."
            )

    # -- one step ------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Training steps taken."""
        return self._run.t

    @property
    def needs_val(self) -> bool:
        """Whether the next step ends with an outer update on a validation batch."""
        return self.method.outer_loss == "validation" and self._loop.due(self._run.t)

    def step(self, batch: Batch, val_batch: Batch | None = None) -> Info:
        """Take one training step, and the outer update that belongs to it.

        Args:
            batch: training batch, a pair `(x, y)`.
            val_batch: validation batch, a pair `(x, y)`. It is used when `needs_val` was true, and may be left out
                otherwise.

        Returns:
            What the step has done.

        Raises:
            GradtuneError: the model is in evaluation mode, the validation batch is missing, a batch is no pair or of
                another type or device than the model, or the loss is not one number or has no gradient.
        """
        w, t, needs_val = self._run.state.w, self._run.t, self.needs_val
        if not self.model.training:
            raise GradtuneError(
                f"{type(self.model).__name__} is in evaluation mode, in which dropout and batch norm do not train; "
                "call model.train() before the step"
            )
        if needs_val and val_batch is None:
            raise GradtuneError(
                f"step {t} ends with an update of the hyperparameters on validation data, and no validation batch was "
                "given; hand over val_batch whenever needs_val is true"
            )
        val = fits(val_batch, w, "the validation batch") if needs_val else None
        self._problem.give(t, fits(batch, w, "the training batch"), val)
        updated = self._loop.due(t)
        self._run = self._loop.step(self._run, self._recent)
        self.sync()
        assert self._problem.seen is not None
        seen_val = self._problem.seen_val[0] if needs_val and self._problem.seen_val is not None else None
        return Info(t + 1, updated, self._problem.seen[0], seen_val, self)

    def sync(self) -> None:
        """Write weights and buffers into the model.

        Every step does so. A call by hand is needed only after the model's tensors were replaced by others.

        Cost: no copy, the parameters become views.
        """
        for tensor, value in zip(self._places, self._tensors(), strict=True):
            tensor.data = value

    def _tensors(self) -> Iterator[Tensor]:
        yield from self._layout.split(self._run.state.w[0]).values()
        yield from (b[0] for b in self._problem.buffers.values())

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Return the validation loss of the model as it is on any batch, in evaluation mode and without a gradient.

        Cost: a forward pass.

        Args:
            batch: a pair `(x, y)`.

        Returns:
            The loss, a scalar tensor.

        Raises:
            GradtuneError: the batch is no pair, or of another type or device than the model.
        """
        batch = fits(batch, self._run.state.w, "the batch")
        return self._problem.evaluate(self._run.state.w, self._lam(), batch)[0]

    def _lam(self) -> dict[str, Tensor]:
        return self.hypers.at(self._run.raw, self._run.fixed, max(self._run.t - 1, 0)).lam

    @property
    def raw(self) -> Tensor:
        """Raw coordinates `[P]` of the tuned hyperparameters."""
        return self._run.raw[0]

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Natural values of the tuned hyperparameters; names of groups and windows as in `history.read_out`."""
        columns = history.read_out(self.hypers, self._layout.names, self._run.raw)
        return {n: float(v[0]) for n, v in columns.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trained parameter tensors."""
        return self._layout.names

    def restart(self) -> None:
        """Begin a new training from the weights and buffers that the model now has (FDS).

        The hyperparameters and the outer rule's state go on. The optimiser's buffers, the sensitivity and the step
        count start anew.
        """
        named = dict(self.model.named_parameters())
        start = self._loop.start(self._layout.flatten(named)[None])
        self._problem.read(start.state.w)
        self._problem.held.clear()
        self._recent.clear()
        self._run = start._replace(raw=self._run.raw, outer=self._run.outer)
        self.sync()

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that continues, as nested dicts and lists of tensors, numbers and text.

        `torch.load(weights_only=True)` reads it from a file.

        Memory: tensors are shared with the tuner, which never writes to them.
        """
        t, run = self._run.t, self._run
        looked_back = [self._problem.held[k] for k in range(t - len(run.past), t)]
        return {
            "configuration": dict(self.configuration),
            "t": t,
            "tensors": tree_flatten(run._replace(t=0, past=()))[0][1:],
            "past": [tree_flatten(state)[0] for state in run.past],
            "buffers": self._problem.buffers,
            "held": [{"batch": list(h.batch), "buffers": h.buffers} for h in looked_back],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict()` was taken, to the same bits on the same device; the model gets the weights.

        Args:
            state: what `state_dict()` returned.

        Raises:
            GradtuneError: the state was taken from a tuner of another configuration.
        """
        for what, own in self.configuration.items():
            saved = state["configuration"].get(what)
            if saved != own:
                raise GradtuneError(
                    f"the saved state does not fit, {what}: {saved} there and {own} here; use the same arguments, or "
                    "start anew"
                )
        like, t = self._run.state.w, state["t"]
        start = self._run._replace(t=0, past=())
        parts = [0, *(x.to(like.device) for x in state["tensors"])]
        past = tuple(self._state([x.to(like.device) for x in leaves]) for leaves in state["past"])
        run: Run = tree_unflatten(parts, tree_flatten(start)[1])
        self._run = run._replace(t=t, past=past)
        self._recent.clear()
        self._problem.load(t, state["buffers"], state["held"], like.device)
        self.sync()

    def _state(self, leaves: list[Tensor]) -> State:
        state: State = tree_unflatten(leaves, tree_flatten(self._run.state)[1])
        return state


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's parameters that are trained, checked."""
    if not model.training:
        raise GradtuneError(
            f"{type(model).__name__} is in evaluation mode, in which dropout and batch norm do not train; call "
            "model.train() first (parts that shall stay as they are can be in evaluation mode)"
        )
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    kinds = {(str(p.dtype), str(p.device)) for p in trained.values()}
    if len(kinds) > 1:
        raise GradtuneError(
            f"the model's parameters have several types or devices, {sorted(kinds)}; expected one, as after "
            "model.to(device, dtype)"
        )
    if trained and not next(iter(trained.values())).is_floating_point():
        raise GradtuneError(f"the model's parameters are {kinds.pop()[0]}; expected a real floating-point type")
    return dict(trained)


def _places(model: nn.Module, names: tuple[str, ...]) -> list[Tensor]:
    """Return the tensors that `sync` writes: parameters by name, then all buffers."""
    parameters = dict(model.named_parameters())
    return [*(parameters[n] for n in names), *(b for _, b in model.named_buffers())]
