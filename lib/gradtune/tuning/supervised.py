"""A user's module and loss as a `problems.Problem`.

Batches are handed over step by step, and those that an estimator may look back to are kept. The module is called on
weights of our own with everything else in place (`nets.single`), so that it trains as in a loop with `torch.optim`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.nets import curvature_check
from gradtune.nets.second_order import wanted
from gradtune.nets.single import Single
from gradtune.recursion.adapted import hooked, only, scaled
from gradtune.recursion.problems import Gradient
from gradtune.recursion.products import Products
from gradtune.recursion.rules import Rule
from gradtune.tuning.evaluating import Evaluating, random_state, same_state


class Supervised(Evaluating):
    """Losses of one run of a module, and their gradients: a `problems.Problem` and `problems.WithGradient`."""

    # -- gradients -----------------------------------------------------------------------------------------------------

    def train_gradient(
        self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor], rule: Rule, graph: bool
    ) -> Gradient:
        """Differentiate the training loss of step `t`; see `problems.WithGradient`.

        The first time, the module's buffers and attributes are left as the forward pass leaves them.
        """
        first = self._first
        pending, hooked_ones = t == self._pending, self.single.hooked
        if hooked_ones and graph and len(self.held[t].batches) > 1:
            raise GradtuneError(
                "hooks on parameters act on the gradient of each of several batches, and a method that differentiates "
                "the step needs them to act once; use accumulate=1, or a method without curvature"
            )
        self._hooks = [list((p._backward_hooks or {}).values()) for p in self.single.own] if hooked_ones else []
        with self.single.at(w), self.single.unhooked() if hooked_ones else nullcontext():
            with self._watching(pending) as again:
                parts, of_lam, loss = self._differentiated(lam, t, by, graph, hooked_ones)
            if again:
                parts, of_lam, loss = self._differentiated(lam, t, by, graph, hooked_ones)
            if pending:
                self.single.take_over(w.detach())
                self._frozen = self.single.around.frozen_versions() if self.keep else []
                if first:
                    self.single.check_memory()
            elif self.window is not None and t == self.window.placed:
                self.single.take_over(w.detach())  # as the step did when it was taken the first time
            place = _At(self.single, w) if graph else None
        self.calls += 1
        reached = [p is not None for p in parts]
        if not any(reached):
            raise _no_gradient()
        g = self.single.join(parts)
        if pending:
            self._pending, self.seen = -1, loss.detach()
        taken = not pending or self.scaling is None or self.scaling.fits(g.detach())
        if self.scaling is not None:
            g, of_lam = self.scaling.unscaled(g), [x if x is None else self.scaling.unscaled(x) for x in of_lam]
        hooks = hooked_ones and len(self.held[t].batches) == 1
        adapted, factor = self._rule(rule, t, reached, taken, hooks)
        return Gradient(g, tuple(of_lam), adapted, factor, self.single.own, place)

    def _differentiated(
        self, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor], graph: bool, hooked_ones: bool
    ) -> tuple[list[Tensor | None], list[Tensor | None], Tensor]:
        """Return the mean gradients over the step's batches, by parameter and by `by`, and the mean loss."""
        own, count, mean = self.single.own, len(self.held[t].batches), torch.zeros((), device=self.single.own[0].device)
        total: list[Tensor | None] = []
        for loss in self._train(lam, t):
            share = _with_gradient(loss if count == 1 else loss / count)
            scale = None if self.scaling is None else self.scaling.scale(share)
            found = list(_differentiated(share, (*own, *by), scale, graph))
            if hooked_ones and count > 1:  # as torch does: on the gradient of each batch
                found[: len(own)] = [_through(h, g) for h, g in zip(self._hooks, found, strict=False)]
            total = [_sum(a, b) for a, b in zip(total, found, strict=True)] if total else found
            mean = share.detach() if count == 1 else mean + share.detach()
        return total[: len(own)], total[len(own) :], mean

    @contextmanager
    def _watching(self, pending: bool) -> Iterator[list[bool]]:
        """Context: find out what a step changes beside weights and buffers.

        Where it draws random numbers that no layer shows, it has to be computed again with those of (seed, step): the
        module is brought back for it.
        """
        again: list[bool] = []
        watched = pending and not self._random
        before = _random_states(self.single.own[0].device, self._first) if watched else []
        versions = self.single.around.frozen_versions() if pending and not self.single.around.moving else []
        others = random.getstate() if pending and self._first and self.keep else None
        yield again
        if versions and versions != self.single.around.frozen_versions():
            self.single.around.moving = True
        if others is not None and others != random.getstate():
            self.single.around.moving = True
        after = _random_states(self.single.own[0].device, self._first) if watched else []
        if not all(same_state(a, b) for a, b in zip(before, after, strict=True)):
            torch.set_rng_state(before[0])
            for state in before[1:]:
                torch.cuda.set_rng_state(state, self.single.own[0].device)
            self._random = True
            again.append(True)
            self.single.back(self.held[self._pending].buffers, self._noted)
        self._first = self._first and not pending

    def _rule(self, rule: Rule, t: int, reached: list[bool], taken: bool, hooks: bool) -> tuple[Rule, float | Tensor]:
        """Return the update rule of the step and the factor of its learning rate."""
        factor: float | Tensor = self.held[t].lr_factor
        if factor != 1.0 and "lr" in rule.hypers:
            factor = factor if self.factor is None else self.factor
            rule = scaled(rule, factor)
        if hooks:
            rule = hooked(rule, partial(self._through_hooks, self._hooks, reached))
        if not (taken and all(reached)):
            device = self.single.own[0].device
            mask = torch.tensor([r and taken for r in reached], device=device)
            rule = only(rule, torch.repeat_interleave(mask, torch.tensor(self.layout.sizes, device=device))[None])
        return rule, factor

    def _through_hooks(self, hooks: list[list[Any]], reached: list[bool], g: Tensor) -> Tensor:
        """Return the gradient `[D]` as the hooks on parameters leave it (`Tensor.register_hook`)."""
        scale = 1.0 if self.scaling is None else self.scaling.last
        parts = [
            _through(own, part * scale if self.scaling else part) if here else part
            for own, part, here in zip(hooks, self.layout.split(g).values(), reached, strict=True)
        ]
        flat = torch.cat([p.reshape(-1) for p in parts if p is not None])
        return flat / scale if self.scaling else flat

    def train_tangent(
        self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor], w_dot: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Differentiate the training loss of a step that was taken over dual numbers; see `products.WithTangent`.

        Raises:
            GradtuneError: weights reach the loss past the module.
        """
        own, count, total = self.single.own, len(self.held[t].batches), list[Tensor | None]()
        self.calls += 1
        moved = nullcontext(list(own)) if w_dot is None else self.single.moved(w_dot)
        with self.single.at(w), self.single.unhooked(), moved as duals:
            for loss in self._train(lam, t):
                share = _with_gradient(loss if count == 1 else loss / count)
                found = _differentiated(share, (*duals, *own, *by), None, False)
                total = [_sum(a, b) for a, b in zip(total, found, strict=True)] if total else list(found)
        parts, whole, of_lam = total[: len(own)], total[len(own) : 2 * len(own)], total[2 * len(own) :]
        if w_dot is not None and not all(_same(a, b) for a, b in zip(parts, whole, strict=True)):
            raise GradtuneError(
                "weights reach the loss past the model's modules, where forward mode does not follow them; "
                "use mode='reverse'"
            )
        return self.single.join(parts), of_lam

    def check_curvature(
        self, w: Tensor, lam: Mapping[str, Tensor], t: int, products: Products, tried: bool = False
    ) -> None:
        """Check that the training loss of step `t` has a second derivative; nothing is left behind.

        Where it is not known in which mode Hessian products are taken, this is found out.

        Cost: a gradient with its graph and a Hessian product, and a forward pass. In forward mode the forward pass
        alone: what has no derivative there says so at the first product.

        Args:
            w: weights `[1, D]`.
            lam: hyperparameters of the loss.
            t: number of the step.
            products: the mode.
            tried: whether it is known that there is a second derivative.

        Raises:
            GradtuneError: it has none, or one that is silently zero; or the loss is another when it is computed again.
        """
        pending, self._pending, around = self._pending, -1, self.single.around
        around.moving, moving = True, around.moving
        held = self.held[t]
        self.held[t] = held._replace(noted=around.note())
        try:
            with self.single.at(w, apart=True), self.single.unhooked():
                products.decide(lambda: self._graph(lam, t), self.single.own)
                if not (products.forward or tried):
                    curvature_check.check(lambda: _with_gradient(next(self._train(lam, t))), self.single.own)
                values = [self._again(lam, t) for _ in range(2)]
                if not _close(*values):  # another thread may have drawn random numbers
                    values = [values[1], self._again(lam, t)]
        finally:
            self._pending, around.moving, self.held[t] = pending, moving, held
        if not _close(*values):
            raise GradtuneError(
                f"the loss of one batch is {values[0]:g} and, computed again, {values[1]:g}: the model or the loss "
                "keeps a state that cannot be followed, and the method computes losses more than once; keep it in "
                'buffers or attributes of the model, or choose a method that does not, such as "fixed" or "hd"'
            )

    def _graph(self, lam: Mapping[str, Tensor], t: int) -> Any:
        with torch.enable_grad(), wanted():
            return [_differentiated(loss, self.single.own, None, True) for loss in self._train(lam, t)]

    def _again(self, lam: Mapping[str, Tensor], t: int) -> float:
        device = self.single.own[0].device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return float(next(self._train(lam, t)).detach())

    def val_gradient(self, w: Tensor, lam: Mapping[str, Tensor], t: int, by: Sequence[Tensor]) -> list[Tensor]:
        """Differentiate the validation loss; see `problems.WithGradient`."""
        self._t, own = t, self.single.own
        self.calls += 1
        with self.single.at(w, apart=True), self.single.unhooked():
            loss = self._validated(lam, t)
            scale = None if self.scaling is None else self.scaling.scale(loss)
            found = _differentiated(_with_gradient(loss), (*own, *by), scale, False)
        self.seen_val = loss.detach()
        g = self.single.join(found[: len(own)])
        grads = [g, *(torch.zeros_like(b) if x is None else x for x, b in zip(found[len(own) :], by, strict=True))]
        return grads if self.scaling is None else [self.scaling.unscaled(x) for x in grads]


def _through(hooks: list[Any], g: Tensor | None) -> Tensor | None:
    """Return the gradient of one parameter as its hooks leave it."""
    for hook in hooks if g is not None else ():
        g = cast(Tensor, g).clone()
        new = hook(g)
        g = g if new is None else new
    return g


class _At:
    """The weights at which the graph of a step was made; see `problems.Place`."""

    def __init__(self, single: Single, w: Tensor) -> None:
        self._single, self._w, self._versions = single, w.detach(), single.versions()

    @contextmanager
    def inside(self) -> Iterator[None]:
        with self._single.at(self._w), self._single.unhooked():
            yield

    def valid(self) -> bool:
        return self._versions == self._single.versions()


def _close(a: float, b: float) -> bool:
    return not abs(a - b) > 1e-3 * abs(a)


def _random_states(device: torch.device, first: bool) -> list[Tensor]:
    """Return the states of torch's global generators; that of a GPU, which costs more, at the first step alone."""
    states = [random_state()]
    return [*states, torch.cuda.get_rng_state(device)] if first and device.type == "cuda" else states


def _differentiated(
    loss: Tensor, inputs: Sequence[Tensor], scale: Tensor | None, graph: bool
) -> Sequence[Tensor | None]:
    """Return the gradient of a loss by inputs; None for what it does not reach, or what requires no gradient now."""
    asked = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(loss, asked, scale, create_graph=graph, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(*(forward_ad.unpack_dual(x).primal for x in (a, b)))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _with_gradient(loss: Tensor) -> Tensor:
    if not loss.requires_grad:
        raise _no_gradient()
    return loss


def _no_gradient() -> GradtuneError:
    return GradtuneError(
        "the loss has no gradient with respect to the weights; look for .detach(), .data, torch.no_grad() or an "
        "argmax between the model's weights and the loss"
    )
