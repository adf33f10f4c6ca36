"""A user's module and loss as a `problems.Problem`.

Batches are handed over step by step, and those that an estimator may look back to are kept. The module is called on
weights of our own with everything else in place (`nets.single`), so that it trains as in a loop with `torch.optim`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.nets import curvature_check
from gradtune.nets import statistics as forms
from gradtune.nets.draws import Draws
from gradtune.nets.modules import draws_numbers
from gradtune.nets.single import Aside, Single
from gradtune.recursion.adapted import hooked, only, scaled
from gradtune.recursion.problems import Gradient
from gradtune.recursion.rules import Rule
from gradtune.tuning.calling import Calling, Loss, own_loss
from gradtune.tuning.scaling import Scaling
from gradtune.tuning.streams import Batch


class Held(NamedTuple):
    """What a step saw.

    Attributes:
        batches: the batches of the step, whose gradients are averaged.
        buffers: the module's buffers before the step, by name.
        lr_factor: what the step multiplies the learning rate by.
        attributes: plain attributes of the module's parts before the step, see `Single.attributes`; None where no
            estimator looks back.
    """

    batches: list[Batch]
    buffers: dict[str, Tensor | None]
    lr_factor: float = 1.0
    attributes: list[dict[str, Any]] | None = None


class Supervised:
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

    Attributes:
        stationary: False, as the losses depend on the step's batch.
        held: what the steps that can be computed again saw, by step.
        seen: training loss of the last step, a tensor without dimensions; None before the first.
        seen_val: validation loss of the last outer update; None before the first.
        autocast: returns the context in which model and loss are computed.
        calls: gradients and graphs of gradients computed so far.
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
    ) -> None:
        forms.check(statistics)
        self.statistics, self._norms = statistics, forms.layers(single.parts)
        self.single, self.layout, self.loss, self.val = single, single.layout, loss, val_loss
        self.of_model, self.of_loss, self.keep, self.seed, self.scaling = of_model, of_loss, keep, seed, scaling
        self._calling = Calling(single.module, tuple(of_model))
        self.held: dict[int, Held] = {}
        self._pending, self._first, self._looked = -1, True, False
        self._random = any(draws_numbers(m, bool(of_model)) for m in single.parts)
        self._val_batch: Batch | None = None
        self.seen: Tensor | None = None
        self.seen_val: Tensor | None = None
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.calls = 0

    # -- batches -------------------------------------------------------------------------------------------------------

    def give(self, t: int, batches: list[Batch], val_batch: Batch | None, lr_factor: float = 1.0) -> None:
        """Hand over the batches of step `t`, before it is taken."""
        held = {k: v for k, v in self.held.items() if k > t - self.keep} if self.keep else {}
        attributes = self.single.attributes() if self.keep else None
        buffers = self.single.buffers.renew(replace=self.keep > 1)
        self.held = held | {t: Held(batches, buffers, lr_factor, attributes)}
        self._pending, self._val_batch = t, val_batch

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
        seen = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, held)
        self.held = {t - len(held) + k: Held(**h) for k, h in enumerate(seen)}

    # -- losses --------------------------------------------------------------------------------------------------------

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return the loss `[1]` on the batches of step `t`, without a trace in the module."""
        losses = self._train(self.single.cut(w), lam, t)
        return torch.stack(list(losses)).mean(0, keepdim=True)

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return the validation loss `[1]` on the validation batch of the step."""
        if self._val_batch is None:
            raise GradtuneError("this step needs a validation batch and has none; hand one over when needs_val is true")
        return self.evaluate(w, lam, self._val_batch)

    def evaluate(self, w: Tensor, lam: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the validation loss `[1]` on any batch."""
        return self._evaluated(self.single.cut(w), lam, batch)[None]

    def _evaluated(self, views: Sequence[Tensor], lam: Mapping[str, Tensor], batch: Batch) -> Tensor:
        net_lam = _part(lam, self.of_model)
        aside = Aside(self.single.buffers.read(), True)
        mode = self._of_the_batch if self.statistics == "batch" and self._norms else None
        return self._called(views, batch, net_lam, {}, self.val, None, aside, mode)

    @contextmanager
    def _of_the_batch(self) -> Iterator[None]:
        """Context: batch norm alone is in training mode; the call is one that leaves no trace."""
        for m in self._norms:
            m.training = True
        yield

    def _following(self, views: Sequence[Tensor], lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Return the validation loss where batch norm's running statistics follow the weights."""
        assert self._val_batch is not None
        batch, net_lam, loss_lam = self.held[t].batches[-1], _part(lam, self.of_model), _part(lam, self.of_loss)
        draws = Draws([self.seed], t) if self._random else None
        moments: dict[str, list[forms.Moments]] = {}
        own = self.single.buffers.read()
        collect = lambda: forms.Collecting(self._running_means(), moments)  # noqa: E731
        self._called(views, batch, net_lam, loss_lam, self.loss, draws, Aside(own, False), collect)
        follow = lambda: forms.Following(self._running_means(), moments)  # noqa: E731
        return self._called(views, self._val_batch, net_lam, {}, self.val, None, Aside(own, True), follow)

    def _running_means(self) -> dict[int, str]:
        return {id(b): n for n, b in self.single.buffers.read().items() if n.endswith("running_mean")}

    def _train(self, views: Sequence[Tensor], lam: Mapping[str, Tensor], t: int) -> Iterator[Tensor]:
        """Yield the training losses of a step's batches."""
        held = self.held[t]
        net_lam, loss_lam = _part(lam, self.of_model), _part(lam, self.of_loss)
        count, aside = len(held.batches), None if t == self._pending else Aside(held.buffers, False, held.attributes)
        with nullcontext() if aside is None or count == 1 else self.single.aside(aside):
            for k, batch in enumerate(held.batches):
                draws = Draws([self.seed], t * count + k) if self._random else None
                apart = aside if count == 1 else None
                yield self._called(views, batch, net_lam, loss_lam, self.loss, draws, apart)

    def _called(
        self,
        views: Sequence[Tensor],
        batch: Batch,
        net_lam: dict[str, Tensor],
        loss_lam: dict[str, Tensor],
        loss: Loss | None,
        draws: Draws | None,
        aside: Aside | None = None,
        mode: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Tensor:
        call = self._calling.of(batch, loss is not None)

        def compute() -> Any:
            with self.autocast():
                output = self.single.module(*call.args, **call.kwargs, **net_lam)
                if loss is None:
                    return own_loss(output, type(self.single.module).__name__)
                if not self._looked:
                    self._look(output, call.target)
                return loss(output, call.target, **loss_lam)

        return _one_number(self.single.call(views, draws, compute, aside, mode))

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

    # -- gradients -----------------------------------------------------------------------------------------------------

    def train_gradient(
        self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor], rule: Rule, graph: bool
    ) -> Gradient:
        """Differentiate the training loss of step `t`; see `problems.WithGradient`.

        The first time, the module's buffers are left as the forward pass leaves them.
        """
        pending = t == self._pending
        with self._watching(pending) as again:
            parts, of_lam, loss = self._differentiated(w, lam, t, by, graph)
        if again:
            parts, of_lam, loss = self._differentiated(w, lam, t, by, graph)
        self.calls += 1
        reached = [p is not None for p in parts]
        if not any(reached):
            raise _no_gradient()
        g, leaves = self.single.join(parts, self._views), self._views
        if pending:
            self.single.take_over(leaves, w.detach())
            self._pending, self._first, self.seen = -1, False, loss.detach()
        taken = not pending or self.scaling is None or self.scaling.fits(g.detach())
        if self.scaling is not None:
            g, of_lam = self.scaling.unscaled(g), [x if x is None else self.scaling.unscaled(x) for x in of_lam]
        adapted, factor = self._rule(rule, t, reached, taken)
        return Gradient(g, tuple(of_lam), adapted, factor, leaves)

    def _differentiated(
        self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor], graph: bool
    ) -> tuple[list[Tensor | None], list[Tensor | None], Tensor]:
        """Return the mean gradients over the step's batches, by weight tensor and by `by`, and the mean loss."""
        self._views = views = self.single.cut(w, own=t == self._pending)
        own = () if self.single.substitute else self.single.own
        count, mean = len(self.held[t].batches), torch.zeros((), device=w.device)
        total: list[Tensor | None] = []
        for loss in self._train(views, lam, t):
            share = loss if count == 1 else loss / count
            _with_gradient(share)
            scale = None if self.scaling is None else self.scaling.scale(share)
            found = torch.autograd.grad(share, (*views, *by, *own), scale, create_graph=graph, allow_unused=True)
            if any(x is not None for x in found[len(views) + len(by) :]):
                raise _Again  # the loss reaches parameters past the module
            total = [_sum(a, b) for a, b in zip(total, found, strict=True)] if total else list(found)
            mean = share.detach() if count == 1 else mean + share.detach()
        return total[: len(views)], total[len(views) : len(views) + len(by)], mean

    @contextmanager
    def _watching(self, pending: bool) -> Iterator[list[bool]]:
        """Context: find out whether the step has to be computed again, and bring the module back for it.

        That is so where the step draws random numbers that no layer shows, or where the loss reaches the module's
        parameters past the module. Both are remembered.
        """
        again: list[bool] = []
        held = self.held[self._pending] if pending else None
        before = torch.get_rng_state() if pending and not self._random else None
        attributes = [dict(m.__dict__) for m in self.single.parts] if pending and self._first else None
        try:
            yield again
        except _Again:
            self.single.substitute = True
            again.append(True)
        if before is not None and not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            self._random = True
            again.append(True)
        if again and held is not None:
            self.single.back(held.buffers, attributes)

    def _rule(self, rule: Rule, t: int, reached: list[bool], taken: bool) -> tuple[Rule, float]:
        """Return the update rule of the step and the factor of its learning rate."""
        factor = self.held[t].lr_factor
        if factor != 1.0 and "lr" in rule.hypers:
            rule = scaled(rule, factor)
        if any(p._backward_hooks for p in self.single.own):
            rule = hooked(rule, self._through_hooks)
        if not (taken and all(reached)):
            mask = torch.tensor([r and taken for r in reached], device=self._views[0].device)
            rule = only(rule, torch.repeat_interleave(mask, torch.tensor(self.layout.sizes, device=mask.device))[None])
        return rule, factor

    def _through_hooks(self, g: Tensor) -> Tensor:
        """Return the gradient `[D]` as the hooks on parameters leave it (`Tensor.register_hook`)."""
        parts = []
        for p, part in zip(self.single.own, self.layout.split(g).values(), strict=True):
            for hook in (p._backward_hooks or {}).values():
                part = part.clone()
                new = hook(part)
                part = part if new is None else new
            parts.append(part.reshape(-1))
        return torch.cat(parts)

    def check_curvature(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> None:
        """Check that the training loss of step `t` has a second derivative; nothing is left behind.

        Cost: a gradient with its graph and a Hessian product.

        Raises:
            GradtuneError: it has none, or one that is silently zero.
        """
        pending, self._pending = self._pending, -1
        try:
            curvature_check.check(lambda x: _with_gradient(next(self._train(self._differentiable(x), lam, t))), w)
        finally:
            self._pending = pending

    def _differentiable(self, w: Tensor) -> list[Tensor]:
        """Return the pieces of the row with their graph."""
        return [p.clone() for p in self.layout.split(w.squeeze(0)).values()]

    def val_gradient(self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor]) -> list[Tensor]:
        """Differentiate the validation loss; see `problems.WithGradient`."""
        if self._val_batch is None:
            raise GradtuneError("this step needs a validation batch and has none; hand one over when needs_val is true")
        self.calls += 1
        views = self.single.cut(w)
        own = () if self.single.substitute else self.single.own
        follows = self.statistics == "following" and self._norms
        loss = self._following(views, lam, t) if follows else self._evaluated(views, lam, self._val_batch)
        _with_gradient(loss)
        scale = None if self.scaling is None else self.scaling.scale(loss)
        found = torch.autograd.grad(loss, (*views, *by, *own), scale, allow_unused=True)
        if any(x is not None for x in found[len(views) + len(by) :]):
            self.single.substitute = True
            return self.val_gradient(w, lam, t, by)
        self.seen_val = loss.detach()
        g = self.single.join(found[: len(views)], views)
        grads = [g, *(torch.zeros_like(b) if x is None else x for x, b in zip(found[len(views) :], by, strict=False))]
        return grads if self.scaling is None else [self.scaling.unscaled(x) for x in grads]


class _Again(Exception):
    """The step has to be computed again."""


def _part(lam: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return the hyperparameters that a function takes, in their own shapes."""
    return {n: lam[n].reshape(shape) for n, shape in shapes.items() if n in lam}


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


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


def _with_gradient(loss: Tensor) -> Tensor:
    if not loss.requires_grad:
        raise _no_gradient()
    return loss


def _no_gradient() -> GradtuneError:
    return GradtuneError(
        "the loss has no gradient with respect to the weights; look for .detach(), .data, torch.no_grad() or an "
        "argmax between the model's weights and the loss"
    )
