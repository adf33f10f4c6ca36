"""Hypergradients in a training loop of one's own: `Tuner` replaces the optimiser and `loss.backward()`.

For example::

    tuner = gradtune.Tuner(model, loss, hypers={"lr": 1e-3, "weight_decay": 1e-4}, method="onepass")
    for batch in loader:
        tuner.step(batch, next(val_batches) if tuner.needs_val else None)

`gradtune.tune` is this loop with data, history, callbacks and checkpoints around it, and gives the same bits.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils._pytree import tree_flatten, tree_unflatten

from gradtune.errors import GradtuneError, at_least
from gradtune.nets.single import copied
from gradtune.recursion.rules import Rule
from gradtune.recursion.step import Step
from gradtune.training.loop import Method, Run
from gradtune.tuning import declared, reading
from gradtune.tuning.assembly import assembled, configuration, copy_of
from gradtune.tuning.failing import in_words
from gradtune.tuning.info import Info
from gradtune.tuning.looking_back import LookingBack
from gradtune.tuning.recorded import Given
from gradtune.tuning.replaying import Replay
from gradtune.tuning.schedule import Factor
from gradtune.tuning.streams import Batch, fits


class Tuner(reading.Readable, LookingBack):
    """Training of a model step by step, with hyperparameters tuned on the way.

    The model is trained in place. After every step its parameters and buffers are the trained ones, so it can be
    evaluated, saved or read at any time between two steps. Whatever changes its weights or buffers then, in place or by
    other tensors (`load_state_dict`, `p.data = ...`), changes what training goes on with. The parameters are views of
    one flat tensor, which each step replaces: `model.state_dict()` is a snapshot that later steps leave alone.
    Parameters that are frozen (`requires_grad=False`) when the tuner is made stay as they are, and so do those that the
    loss of a step does not reach, as in torch's optimisers. Hooks on parameters (`Tensor.register_hook`) act on their
    gradients, and hypergradients know of them.

    The loss may read the model's parameters (penalties), through the model or through a list made before.

    A batch is `(x, y)`, `(a, b, y)`, `((a, b), y)` or a dict, see `calling`. Inside `torch.autocast` model and loss are
    computed as it says, everything else in the type of the weights.

    Arguments of the loss beyond the first two, and of `model.forward` beyond the first, can be hyperparameters by name,
    such as the `smoothing` of `losses.cross_entropy` and the `keep` of `plain.Dropout`.

    Cost: that of the method, and nothing but one gradient at steps without an outer update or curvature.

    Memory: that of the method, and the batches of the steps that it looks back on.

    Args:
        model: any module in training mode, with one type and device for all weights.
        loss: `loss(output, y)`, one number with its gradient, such as a mean over the batch; None for a model that
            returns its loss.
        rule: name in `declared.RULES`, or a `Rule`. What the rule reads and nobody names has torch's default and stays.
        hypers: what is tuned: numbers by name, or by pattern of the parameters' names (`declared`), in the usual
            coordinates (`declared.coordinate`); or `Hyper` declarations.
        fixed: numbers by name, or by pattern, for hyperparameters that stay as they are.
        method: name in `methods.METHODS`, or a `loop.Method`.
        options: arguments of the function that makes the method of that name.
        val_loss: `val_loss(output, y)` of validation batches, in evaluation mode. By default it is the loss with its
            own hyperparameters left at their defaults (smoothed targets are for training).
        seed: seed of dropout and all other random numbers in the forward pass, which are functions of (seed, step).
        horizon: steps that the time windows of hyperparameters share. A method whose option `horizon` is needed and not
            given takes it too (FDS).
        accumulate: number of batches whose gradients a step averages; `step` then takes a list of as many. At a step
            without curvature only one batch's graph is in memory at a time.
        clip_norm: largest length of the gradient of all weights, as `torch.nn.utils.clip_grad_norm_` has it; None for
            no limit. Hypergradients know of it.
        clip_value: largest size of an entry of the gradient, as `clip_grad_value_` has it.
        scaler: keeps the scale of the loss where gradients are in half precision (`torch.autocast` with float16). A
            step whose gradient is not finite is left out, as in torch. Its use waits for the device.
        statistics: batch norm's statistics in the validation loss: "following" (running ones that follow the
            weights), "running" (as constants) or "batch", see `nets.statistics`.
        replay: whether steps are recorded once and replayed, to the same bits in less time, see `replaying`: None for
            when it pays on a CPU, False for never, True for as soon as possible, with an error where it is impossible.

    Attributes:
        model: the model.
        factor: what the learning rate is multiplied by, for a scheduler of torch, see `schedule.Factor`.
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
        loss: Callable[..., Tensor] | None,
        *,
        rule: str | Rule = "sgd",
        hypers: declared.Given,
        fixed: declared.Fixed | None = None,
        method: str | Method = "onepass",
        options: Mapping[str, Any] | None = None,
        val_loss: Callable[..., Tensor] | None = None,
        seed: int = 0,
        horizon: int | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        scaler: GradScaler | None = None,
        statistics: str = "following",
        replay: bool | None = None,
    ) -> None:
        self._arguments = {k: v for k, v in locals().items() if k not in ("self", "model", "__class__")}
        at_least(1, accumulate=accumulate)
        if torch.is_inference_mode_enabled():
            raise GradtuneError("a tuner needs gradients, which torch.inference_mode() switches off; make it outside")
        self.model, self.method = model, declared.method(method, options, horizon)
        self.factor, self._accumulate = Factor(), accumulate
        name = method if isinstance(method, str) else ""
        made = assembled(
            model,
            loss,
            val_loss=val_loss,
            rule=rule,
            hypers=hypers,
            fixed=fixed or {},
            method=self.method,
            name=name,
            seed=seed,
            horizon=horizon,
            clip_norm=clip_norm,
            clip_value=clip_value,
            scaler=scaler,
            statistics=statistics,
        )
        self._single, self._problem, self._loop, self.hypers = made.single, made.problem, made.loop, made.hypers
        self._layout = self._single.layout
        self._recent: deque[Step] = deque(maxlen=self.method.keep)
        w = self._layout.flatten(dict(self._single.module.named_parameters()))[None]
        self._run, self._checked = self._loop.start(w), not self.method.second_order
        self._replay = Replay(self._loop, self._problem, replay, horizon)
        self.configuration = configuration(
            model, w, rule, self.method, made, clip_norm, clip_value, accumulate, horizon, seed, statistics
        )
        self.sync()

    # -- one step ------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Training steps taken."""
        return self._run.t

    @property
    def needs_val(self) -> bool:
        """Whether the next step ends with an outer update on a validation batch."""
        return self.method.outer_loss == "validation" and self._loop.due(self._run.t)

    @property
    def replay(self) -> str:
        """Whether steps are replayed: "on", or "not yet: ..." or "off: ..." with the reason, see `replaying`."""
        return self._replay.status

    def step(self, batch: Batch, val_batch: Batch | None = None) -> Info:
        """Take one training step, and the outer update that belongs to it.

        Args:
            batch: training batch, see `calling`; with `accumulate` above 1 a list of as many.
            val_batch: validation batch. It is used when `needs_val` was true, and may be left out otherwise.

        Returns:
            What the step has done.

        Raises:
            GradtuneError: the model is in evaluation mode or has other parameters than before, the validation batch is
                missing, a batch does not fit the model or is of another type or device, or the loss is not one number
                or has no gradient.
        """
        if torch.is_inference_mode_enabled():
            raise GradtuneError("a step needs gradients, which torch.inference_mode() switches off; step outside of it")
        self._adopt()
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
        given = Given(self._batches(batch, w), val, self.factor.value)
        updated = self._loop.due(t)
        with in_words(), self._problem.outside_autocast(w.device.type), torch.enable_grad():
            if not self._checked or (self.method.second_order and self._loop.products.forward is None):
                self._problem.give(t, *given)
                of_loss = {n: v for n, v in self._lam().items() if n not in self._loop.rule.hypers}
                self._problem.check_curvature(w, of_loss, t, self._loop.products, self._checked)
                self._checked = True
            self._run = self._replay.step(self._run, self._recent, given)
        if "step" in vars(self.factor):  # a scheduler counts the steps
            self.factor.step()
        self.sync()
        assert self._problem.seen is not None
        return Info(t + 1, updated, self._problem.seen, self._problem.seen_val if needs_val else None, self)

    def _batches(self, batch: Any, w: Tensor) -> list[Batch]:
        if self._accumulate == 1:
            return [fits(batch, w, "the training batch")]
        if not isinstance(batch, (list, tuple)) or len(batch) != self._accumulate:
            raise GradtuneError(
                f"with accumulate={self._accumulate} a step takes a list of as many batches, and it was given "
                f"{len(batch) if isinstance(batch, (list, tuple)) else f'a {type(batch).__name__}'}"
            )
        return [fits(each, w, f"training batch {k}") for k, each in enumerate(batch)]

    def _adopt(self) -> None:
        """Take over weights that were changed between two steps by other means than writing in place."""
        if self._single.follows(self._run.state.w):
            return
        self._single.renew()
        own = self._single.own
        old = self._run.state.w
        if {(p.dtype, p.device) for p in own} != {(old.dtype, old.device)}:
            raise GradtuneError(
                f"the model's parameters were {old.dtype} on {old.device} when the tuner was made and are "
                f"{sorted({(str(p.dtype), str(p.device)) for p in own})} now; make a new Tuner after model.to(...)"
            )
        w = self._layout.flatten(dict(zip(self._layout.names, own, strict=True)))[None]
        self._run = self._run._replace(state=self._run.state._replace(w=w))
        self.sync()

    def sync(self) -> None:
        """Write the weights into the model.

        Every step does so. A call by hand is needed only to undo a change of the model's weights.

        Cost: no copy, the parameters become views.
        """
        self._single.show(self._run.state.w)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Return the validation loss of the model as it is on any batch, in evaluation mode and without a gradient.

        Cost: a forward pass.

        Args:
            batch: a batch, see `calling`.

        Returns:
            The loss, a scalar tensor.

        Raises:
            GradtuneError: the batch does not fit the model, or is of another type or device.
        """
        self._adopt()
        w = self._run.state.w
        with in_words(), self._problem.outside_autocast(w.device.type):
            return self._problem.evaluate(w, self._lam(), fits(batch, w, "the batch"))[0]

    @torch.no_grad()
    def training_loss(self, batch: Batch) -> Tensor:
        """Return the training loss of any batch at the weights as they are, without a trace in the model."""
        self._adopt()
        w = self._run.state.w
        with in_words(), self._problem.outside_autocast(w.device.type):
            return self._problem.training_loss(w, self._lam(), fits(batch, w, "the training batch"))

    def _lam(self) -> dict[str, Tensor]:
        return self.hypers.at(self._run.raw, self._run.fixed, max(self._run.t - 1, 0)).lam

    def restart(self) -> None:
        """Begin a new training from the weights and buffers that the model now has (FDS).

        The hyperparameters and the outer rule's state go on. The optimiser's buffers, the sensitivity and the step
        count start anew.
        """
        named = dict(self._single.module.named_parameters())
        start = self._loop.start(self._layout.flatten(named)[None])
        self._problem.held.clear()
        self._recent.clear()
        self._run = start._replace(raw=self._run.raw, outer=self._run.outer)
        self.sync()

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that continues, as nested dicts and lists of tensors, numbers and text.

        `torch.load(weights_only=True)` reads it from a file.

        Memory: tensors are shared with the tuner, which never writes to them, but for copies of the buffers.
        """
        t, run = self._run.t, self._run
        return {
            "configuration": dict(self.configuration),
            "t": t,
            "tensors": tree_flatten(run._replace(t=0, past=()))[0][1:],
            "past": [tree_flatten(state)[0] for state in run.past],
            "buffers": copied(self._single.buffers.read()),
            "held": self._problem.saved(range(t - len(run.past), t)),
            "around": self.surroundings(),
            "lr_factor": self.factor.value,
            "scaler": {} if self._problem.scaling is None else self._problem.scaling.state(),
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
        form = tree_flatten(self._loop.form_of_past(self._run))[1]
        past = tuple(tree_unflatten([x.to(like.device) for x in leaves], form) for leaves in state["past"])
        run: Run = tree_unflatten(parts, tree_flatten(start)[1])
        self._run = run._replace(t=t, past=past)
        self._recent.clear()
        self._problem.load(t, state["held"], like.device)
        self._single.buffers.load({n: b if b is None else b.to(like.device) for n, b in state["buffers"].items()})
        self.surround(state["around"])
        self.factor.value = state["lr_factor"]
        if self._problem.scaling is not None:
            self._problem.scaling.load(state["scaler"])
        self.sync()

    def __reduce__(self) -> Any:
        """Pickle the arguments, the model and the state.

        Raises:
            GradtuneError: an argument cannot be pickled.
        """
        try:
            pickle.dumps(self._arguments)
        except Exception as error:
            raise GradtuneError(
                f"this tuner cannot be pickled, as one of its arguments cannot ({error}); save tuner.state_dict() and "
                "load it into a tuner made of the same arguments"
            ) from error
        return _again, (copy_of(self.model), self._arguments, self.state_dict())


def _again(model: nn.Module, arguments: dict[str, Any], state: dict[str, Any]) -> Tuner:
    """Return the tuner that was pickled."""
    tuner = Tuner(model, **arguments)
    tuner.load_state_dict(state)
    return tuner
