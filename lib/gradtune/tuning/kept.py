"""The tuner of `hypergradient`, which the next call for the same model takes again.

Making a tuner and recording its steps (`replaying`) pays when many hypergradients of one model are asked for, as in an
outer loop of one's own. So the tuner of the last model that was asked for twice in a row is kept, without weights. It
serves calls that differ in the numbers alone: weights, buffers, batches, and values of the hyperparameters.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.nets.adjusted import uncompiled
from gradtune.nets.buffers import copied
from gradtune.recursion.hypers import Hyper, Hypers
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Method
from gradtune.training.programs import same_bits
from gradtune.tuning import declared
from gradtune.tuning.replaying import Replay
from gradtune.tuning.tuner import Tuner


class Asked(NamedTuple):
    """What a hypergradient is asked for, but for the numbers.

    Attributes:
        loss: training loss.
        val_loss: validation loss; None for the training loss.
        rule: update rule.
        hypers: what is differentiated by, in a user's words.
        fixed: what is not, in a user's words.
        method: the method.
        name: what the method is called; empty if it is one of a user's own.
        options: options of the method of that name.
        statistics: batch norm's statistics in validation.
        seed: seed of the random numbers.
        steps: number of steps.
        replay: as `Tuner` has it.
    """

    loss: Callable[..., Tensor] | None
    val_loss: Callable[..., Tensor] | None
    rule: str | Rule
    hypers: declared.Given
    fixed: Mapping[str, Any]
    method: Method
    name: str
    options: Mapping[str, Any]
    statistics: str
    seed: int
    steps: int
    replay: bool | None

    def is_like(self, other: Asked) -> bool:
        """Return whether another call was asked for the same, but for the hyperparameters."""
        own = self.name, self.statistics, self.seed, self.steps, self.replay
        if own != (other.name, other.statistics, other.seed, other.steps, other.replay):
            return False
        same = self.loss is other.loss and self.val_loss is other.val_loss
        if not same or not _equal(self.rule, other.rule):
            return False
        return _equal(self.options, other.options) if self.name else _equal(self.method, other.method)


class Kept:
    """A tuner of a model, ready to take the same steps from wherever the model is.

    Args:
        model: the model.
        asked: what is asked for.

    Attributes:
        tuner: the tuner.
        products: Hessian products of one call; None before it is known.
    """

    def __init__(self, model: nn.Module, asked: Asked) -> None:
        self.tuner = Tuner(
            model,
            asked.loss,
            rule=asked.rule,
            hypers=asked.hypers,
            fixed=asked.fixed,
            method=asked.method,
            val_loss=asked.val_loss,
            statistics=asked.statistics,
            seed=asked.seed,
            horizon=asked.steps,
            replay=False,
        )
        loop, problem = self.tuner._loop, self.tuner._problem
        self.tuner._replay = Replay(loop, problem, asked.replay, None)
        self.products: int | None = None
        self._asked, self._form = asked, _form([b.hyper for b in self.tuner.hypers.blocks.values()])
        self._kind = _kind(model)

    def begin(self, model: nn.Module, asked: Asked) -> bool:
        """Go to the weights that the model has and to the values that are asked for.

        Returns:
            Whether this tuner can do what is asked.
        """
        tuner, single = self.tuner, self.tuner._single
        if not asked.is_like(self._asked) or _kind(model) != self._kind:
            return False
        of_model = declared.keywords(model, 1), {} if asked.loss is None else declared.keywords(asked.loss, 2)
        names = [*of_model[0], *of_model[1]]
        given = declared.rule_and_hypers(asked.rule, asked.hypers, asked.fixed, names, asked.method, "")[1]
        if _form(given) != self._form:
            return False
        layout = single.layout
        w = layout.flatten(dict(zip(layout.names, single.own, strict=True)))[None]
        single.show(w)
        try:
            if not single.follows(w):
                return False
        except GradtuneError:  # the model has other parts or parameters now
            return False
        hypers = Hypers(given, layout.sizes, asked.steps, names=layout.names, shapes=layout.shapes)
        tuner._run = tuner._loop.start(w, hypers)
        return True

    def rest(self) -> None:
        """Let go of weights, graphs and batches."""
        run = self.tuner._run
        empty = run.state._replace(w=run.state.w[:, :0].clone(), buf={})
        self.tuner._recent.clear()
        self.tuner._problem.held.clear()
        self.tuner._problem.forget()
        self.tuner.recall(None)
        self.tuner._run = run._replace(state=empty, past=(), memory=())
        self.tuner._single.hide()


_last: list[tuple[weakref.ref[nn.Module], Kept | None]] = []


@contextmanager
def tuner_for(model: nn.Module, asked: Asked, keep: bool) -> Iterator[Kept]:
    """Context: a tuner of a model as it is, which leaves no trace in the model.

    Args:
        model: the model.
        asked: what is asked for.
        keep: whether the next call may take the same tuner.
    """
    own = [(p, p.data) for p in model.parameters()]
    before = _last.pop() if _last and keep else None
    again = before is not None and before[0]() is model
    kept: Kept | None = None
    try:
        if again and before is not None and before[1] is not None and before[1].begin(model, asked):
            kept = before[1]
        else:
            kept = Kept(model, asked)
        with _untouched(kept):
            yield kept
        if keep:
            _last.append((weakref.ref(model), kept if again else None))
    finally:
        for p, data in own:
            p.data = data
        if kept is not None:
            kept.rest()


@contextmanager
def _untouched(kept: Kept) -> Iterator[None]:
    """Context: buffers are copies, and what else the calls change in the model comes back."""
    single = kept.tuner._single
    buffers, noted = single.buffers.read(), single.around.note()
    frozen = [] if kept.products is not None and not single.around.moving else single.frozen
    content = [p.detach().clone() for p in frozen]
    single.buffers.write(copied(buffers))
    try:
        yield
    finally:
        single.buffers.write(buffers)
        single.around.bring_back(noted)
        with torch.no_grad():
            for p, data in zip(frozen, content, strict=True):
                if not same_bits(p, data):
                    p.copy_(data)


def _kind(model: nn.Module) -> Any:
    """Return what of a model is compared between two calls, beside what `Single.follows` compares."""
    module = uncompiled(model)
    parts = [type(m) for m in module.modules()]
    return parts, [(p.dtype, p.device, p.shape) for p in module.parameters()]


def _form(hypers: list[Hyper]) -> list[Any]:
    """Return declarations without their values."""
    found: list[Any] = []
    for h in hypers:
        keys = list(h.value) if isinstance(h.value, Mapping) else type(h.value).__name__
        found.append([keys, *(repr(getattr(h, f.name)) for f in fields(h) if f.name != "value")])
    return found


def _equal(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # tensors inside
        return False
