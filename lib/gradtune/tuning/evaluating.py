"""Losses of a user's module on batches, computed with everything else of the module in place.

Batches are handed over step by step, and those that an estimator may look back to are kept. The module is called on
weights of our own with everything else in place (`nets.single`), so that it trains as in a loop with `torch.optim`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.nets import statistics as forms
from gradtune.nets.draws import Draws
from gradtune.nets.modules import draws_numbers
from gradtune.nets.single import Aside, Single
from gradtune.nets.surroundings import Noted
from gradtune.tuning.calling import Calling, Loss, own_loss
from gradtune.tuning.failing import noted
from gradtune.tuning.scaling import Scaling
from gradtune.tuning.streams import Batch
from gradtune.tuning.taking_again import Held, TakenAgain
from gradtune.tuning.window import Window

Mode = Callable[[], AbstractContextManager[Any]]


class Evaluating(TakenAgain):
    """Losses of one run of a module on batches that `give` hands over.

    A step that is computed again sees the buffers that it saw. Dropout and other random numbers are functions of
    (seed, t).

    Args:
        single: the model.
        loss: training loss, `loss(output, y)` and its hyperparameters by name; None for a model that returns its loss.
        val_loss: validation loss, `val_loss(output, y)` in evaluation mode; None as for `loss`. The training loss's own
            hyperparameters are not part of it.
        of_model: shapes of hyperparameters that the forward pass takes, by name.
        of_loss: shapes of hyperparameters that the training loss takes, by name.
        keep: how many steps an estimator looks back.
        seed: seed of the random numbers in the forward pass.
        scaling: the scale of the loss, for gradients in half precision.
        statistics: batch norm's statistics in the validation loss, one of `nets.statistics.FORMS`.
        replayed: whether the estimator takes steps again in order, from checkpoints.

    Attributes:
        stationary: False, as the losses depend on the step's batch.
        held: what the steps that can be computed again saw, by step.
        seen: training loss of the last step, a tensor without dimensions; None before the first.
        seen_val: validation loss of the last outer update; None before the first.
        calls: gradients and graphs of gradients computed so far.
        factor: what the step multiplies the learning rate by, as a tensor, while it is recorded; else None.
        random: whether the forward pass draws random numbers.
        window: what the steps since the last outer update saw, where they are taken again in order; else None.
    """

    stationary = False

    def __init__(
        self,
        single: Single,
        loss: Loss | None,
        val_loss: Loss | None,
        of_model: Mapping[str, tuple[int, ...]],
        of_loss: Mapping[str, tuple[int, ...]],
        keep: int,
        seed: int,
        scaling: Scaling | None = None,
        statistics: str = "following",
        replayed: bool = False,
    ) -> None:
        forms.check(statistics)
        self.statistics, self._norms = statistics, forms.layers(single.parts)
        self.single, self.layout, self.loss, self.val = single, single.layout, loss, val_loss
        self.of_model, self.of_loss, self.keep, self.seed, self.scaling = of_model, of_loss, keep, seed, scaling
        self._calling = Calling(single.module, tuple(of_model))
        self.held: dict[int, Held] = {}
        self._pending, self._first, self._looked, self._random_val, self._t = -1, True, False, False, 0
        self._noted: Noted = []
        self._frozen: list[Any] = []
        self._random = any(draws_numbers(m, bool(of_model)) for m in single.parts)
        self._val_batch: Batch | None = None
        self.seen: Tensor | None = None
        self.seen_val: Tensor | None = None
        self._autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.calls = 0
        self.factor: Tensor | None = None
        self.window = Window(keep) if replayed else None

    # -- batches -------------------------------------------------------------------------------------------------------

    def give(
        self, t: int, batches: list[Batch], val_batch: Batch | None, lr_factor: float = 1.0, unchanged: bool = False
    ) -> None:
        """Hand over the batches of step `t`, before it is taken.

        Args:
            t: number of the step.
            batches: the training batches.
            val_batch: the validation batch; None where the step needs none.
            lr_factor: what the step multiplies the learning rate by.
            unchanged: whether what is kept beside weights and buffers is known to be as it was at the last step.
        """
        keep = self.keep if self.window is None else 0
        held = {k: v for k, v in self.held.items() if k > t - keep} if keep else {}
        if self.window is not None:
            self.window.give(t, batches, lr_factor)
        if self._frozen and self._frozen != self.single.around.frozen_versions():
            self.single.around.moving = True  # somebody changes frozen weights between steps
        if not unchanged or self.single.around.moving:
            self._noted = self.single.around.note() if self.keep or not self._random else []
        buffers = self.single.buffers.renew(replace=self.keep > 1 and not self.single.aliased)
        self.held = held | {t: Held(batches, buffers, lr_factor, self._noted if self.keep else None)}
        self._pending, self._val_batch = t, val_batch

    def taken(self, seen: Tensor, seen_val: Tensor | None, calls: int) -> None:
        """Note that the step was taken by other means.

        Args:
            seen: its training loss.
            seen_val: its validation loss; None where there was none.
            calls: gradients that it has computed.
        """
        self._pending, self.seen, self.calls = -1, seen, self.calls + calls
        if seen_val is not None:
            self.seen_val = seen_val
        self._frozen = self.single.around.frozen_versions() if self.keep else []

    def back(self, t: int) -> None:
        """Bring the module back to where it was when step `t` was handed over."""
        self.single.back(self.held[t].buffers, self._noted)

    def validate(self, val_batch: Batch) -> None:
        """Hand over a validation batch by itself."""
        self._val_batch = val_batch

    def load(self, t: int, held: list[dict[str, Any]], device: torch.device) -> None:
        """Take over what the last steps before step `t` saw.

        Args:
            t: the step that is next.
            held: a dict with `batches`, `buffers` and `lr_factor` for each of the last steps, the oldest first.
            device: where the tensors are moved.
        """
        self.held = {}
        seen = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, held)
        if self.window is not None:
            self._load_window(self.window, seen)
            return
        for k, h in enumerate(seen):
            noted = None if h["noted"] is None else self.single.around.loaded(h["noted"])
            self.held[t - len(held) + k] = Held(**(h | {"noted": noted}))

    def saved(self, steps: Iterable[int]) -> list[dict[str, Any]]:
        """Return what the given steps saw, for a checkpoint; `load` takes it back."""
        if self.window is not None:
            return self._saved_window(self.window)
        found = [self.held[k] for k in steps]
        return [h._asdict() | {"noted": h.noted and self.single.around.saved(h.noted)} for h in found]

    def outside_autocast(self, kind: str) -> AbstractContextManager[Any]:
        """Return a context without autocast, in which model and loss are computed with the autocast in force now.

        Args:
            kind: type of the device.
        """
        if not torch.is_autocast_enabled(kind):
            self._autocast = nullcontext
            return nullcontext()
        self._autocast = partial(torch.autocast, kind, dtype=torch.get_autocast_dtype(kind))
        return torch.autocast(kind, enabled=False)

    # -- losses --------------------------------------------------------------------------------------------------------

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return the loss `[1]` on the batches of step `t`, without a trace in the module."""
        with self.single.at(w):
            return torch.stack(list(self._train(lam, t))).mean(0, keepdim=True)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return the validation loss `[1]` on the validation batch of the step."""
        return self.evaluate(w, lam, self._validation())

    def _validation(self) -> Batch:
        if self._val_batch is None:
            raise GradtuneError("this step needs a validation batch and has none; hand one over when needs_val is true")
        return self._val_batch

    def evaluate(self, w: Tensor, lam: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the validation loss `[1]` on any batch."""
        with self.single.at(w, apart=True):
            return self._evaluated(lam, batch, self._of_the_batch if self.statistics == "batch" else None)[None]

    def training_loss(self, w: Tensor, lam: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the training loss of any batch, without a trace in the module."""
        draws = Draws([self.seed], self._t) if self._random else None
        with torch.random.fork_rng(), self.single.at(w, apart=True):
            aside = Aside(self.single.buffers.read(), False)
            return self._called(batch, _part(lam, self.of_model), _part(lam, self.of_loss), self.loss, draws, aside)

    def _evaluated(self, lam: Mapping[str, Tensor], batch: Batch, mode: Mode | None) -> Tensor:
        """Return the validation loss, with random numbers of (seed, last step) where it draws any."""
        net_lam = _part(lam, self.of_model)
        before = None if self._random_val else random_state()
        draws = Draws([self.seed], self._t) if self._random_val else None
        loss = self._called(batch, net_lam, {}, self.val, draws, Aside(self.single.buffers.read(), True), mode)
        if before is not None and not same_state(before, random_state()):
            torch.set_rng_state(before)
            self._random_val = True
            return self._evaluated(lam, batch, mode)
        return loss

    def _validated(self, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return the loss on the validation batch of step `t`, with the statistics of batch norm that were chosen."""
        mode: Mode | None = None
        if self._norms and self.statistics != "running":
            mode = self._of_the_batch if self.statistics == "batch" else self._following(lam, t)
        return self._evaluated(lam, self._validation(), mode)

    @contextmanager
    def _of_the_batch(self) -> Iterator[None]:
        """Context: batch norm alone is in training mode; the call is one that leaves no trace."""
        for m in self._norms:
            m.training = True
        yield

    def _following(self, lam: Mapping[str, Tensor], t: int) -> Mode:
        """Return the context of a validation loss in which batch norm's running statistics follow the weights.

        Cost: a forward pass of a training batch.
        """
        held, net_lam, loss_lam = self.held[t], _part(lam, self.of_model), _part(lam, self.of_loss)
        draws = Draws([self.seed], t) if self._random else None
        moments: dict[str, list[forms.Moments]] = {}
        training = Aside(self.single.buffers.read(), False, held.noted)

        def collecting() -> AbstractContextManager[Any]:
            return forms.Collecting(self._running_means(), moments)

        self._called(held.batches[-1], net_lam, loss_lam, self.loss, draws, training, collecting)
        return lambda: forms.Following(self._running_means(), moments)

    def _running_means(self) -> dict[int, str]:
        return {id(b): n for n, b in self.single.buffers.read().items() if n.endswith("running_mean")}

    def _train(self, lam: Mapping[str, Tensor], t: int) -> Iterator[Tensor]:
        """Yield the training losses of a step's batches."""
        held = self.held[t]
        net_lam, loss_lam = _part(lam, self.of_model), _part(lam, self.of_loss)
        left = None if self.window is None or t != self.window.placed else self.window.found
        count, aside = len(held.batches), None if t == self._pending else Aside(held.buffers, False, held.noted, left)
        with nullcontext() if aside is None or count == 1 else self.single.aside(aside):
            for k, batch in enumerate(held.batches):
                draws = Draws([self.seed], t * count + k) if self._random else None
                apart = aside if count == 1 else None
                yield self._called(batch, net_lam, loss_lam, self.loss, draws, apart)

    def _called(
        self,
        batch: Batch,
        net_lam: dict[str, Tensor],
        loss_lam: dict[str, Tensor],
        loss: Loss | None,
        draws: Draws | None,
        aside: Aside | None = None,
        mode: Mode | None = None,
    ) -> Tensor:
        call = self._calling.of(batch, loss is not None)

        def compute() -> Any:
            with self._autocast(), noted((call.args, call.kwargs), call.target):
                output = self.single.module(*call.args, **call.kwargs, **net_lam)
                if loss is None:
                    return own_loss(output, type(self.single.module).__name__)
                if not self._looked:
                    self._look(output, call.target)
                return _applied(loss, output, call.target, loss_lam)

        return _one_number(self.single.call(draws, compute, aside, mode))

    def _look(self, output: Any, target: Any) -> None:
        """Warn of an output and a target that a loss would broadcast against each other."""
        self._looked = True
        if not (isinstance(output, Tensor) and isinstance(target, Tensor) and target.is_floating_point()):
            return
        long, short = (output, target) if output.dim() > target.dim() else (target, output)
        if long.dim() == short.dim() + 1 and long.shape[-1] == 1 and long.shape[:-1] == short.shape and len(short) > 1:
            warnings.warn(
                f"the model's output has shape {list(output.shape)} and the target {list(target.shape)}: a loss would "
                "compare every output with every target; give both the same shape, as by output.squeeze(-1)",
                GradtuneWarning,
                stacklevel=2,
            )


def _applied(loss: Loss, output: Any, target: Any, lam: dict[str, Tensor]) -> Any:
    """Call a loss; a dict that it cannot take is named."""
    try:
        return loss(output, target, **lam)
    except TypeError as error:
        if not isinstance(target, dict):
            raise
        raise GradtuneError(
            f"the loss gets the entries of the batch that the model does not take, {sorted(target)}, and fails on them "
            f"({str(error).splitlines()[0][:120]}); leave out of the batch what is no target, or give a loss that "
            "takes a dict"
        ) from error


def _part(lam: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the hyperparameters that a function takes, in their own shapes."""
    return {n: lam[n].reshape(shape) for n, shape in shapes.items() if n in lam}


def random_state() -> Tensor:
    """Return the state of torch's global generator, unseen by those who record operations."""
    with torch._C._DisableTorchDispatch():
        return torch.default_generator.get_state()


def same_state(a: Tensor, b: Tensor) -> bool:
    """Return whether two states of a generator are the same, unseen by those who record operations."""
    with torch._C._DisableTorchDispatch():
        return torch.equal(a, b)


def _one_number(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise GradtuneError(
            f"the loss is a {type(value).__name__}; expected a tensor of one number, with its gradient: leave out "
            ".item() and float()"
        )
    if value.numel() != 1:
        raise GradtuneError(
            f"the loss of a run has shape {list(value.shape)}; expected one number: reduce it over the batch"
        )
    return value.reshape(())
