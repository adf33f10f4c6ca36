"""One hypergradient, without training on: `hypergradient`, for a training loop of one's own.

For example, the derivative of the validation loss after two steps by log10 of the learning rate::

    found = gradtune.hypergradient(model, loss, [batch, batch_2], val_batch, hypers={"lr": 0.1})
    found.values["lr"], found.natural["lr"], found.cost
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from gradtune.errors import GradtuneError, unknown
from gradtune.estimators.reverse import Reverse
from gradtune.nets.second_order import Count, counting
from gradtune.recursion.outer import SGD
from gradtune.recursion.rules import Rule
from gradtune.training.loop import Method
from gradtune.tuning import declared, reading
from gradtune.tuning.kept import Asked, tuner_for
from gradtune.tuning.smoothness import Agreement, agreements
from gradtune.tuning.streams import Batch

_Parts = tuple[type[nn.Module], ...]
_tried: WeakKeyDictionary[nn.Module, tuple[_Parts, WeakSet[Any]]] = WeakKeyDictionary()


class Cost(NamedTuple):
    """What a hypergradient has cost.

    Attributes:
        gradients: gradients of training and validation losses.
        hessian_products: products of a Hessian, or of a mixed derivative, with a vector.
        seconds: time in seconds, the training steps included and `check_steps` not.
        replayed: training steps that were taken again without a graph, with the store "tree".
        states: the largest number of states kept at once, with the store "tree".
    """

    gradients: int
    hessian_products: int
    seconds: float
    replayed: int = 0
    states: int = 0


class Hypergradient(NamedTuple):
    """A hypergradient and its cost.

    Attributes:
        values: dL/draw by name: the derivative by the coordinate in which a hyperparameter is tuned, such as log10.
        natural: dL/dlam by name: the derivative by the value itself; infinite or NaN where the coordinate's slope is 0.
        val_loss: validation loss after the steps.
        weights: dL/dw0 by name of parameter, the derivative by the initial weights; None where it was not asked for.
        cost: what it has cost.
        replay: whether steps are replayed: "on", or "not yet: ..." or "off: ..." with the reason.
        agreement: finite steps beside the hypergradient, one for each of `check_steps`.
    """

    values: dict[str, float]
    natural: dict[str, float]
    val_loss: float
    weights: dict[str, Tensor] | None
    cost: Cost
    replay: str
    agreement: tuple[Agreement, ...] = ()


def hypergradient(
    model: nn.Module,
    loss: Callable[..., Tensor] | None,
    batches: Sequence[Batch],
    val_batch: Batch,
    *,
    hypers: declared.Given,
    fixed: Mapping[str, Any] | None = None,
    rule: str | Rule = "sgd",
    method: str | Method = "exact",
    options: Mapping[str, Any] | None = None,
    val_loss: Callable[..., Tensor] | None = None,
    statistics: str = "following",
    initial_weights: bool = False,
    seed: int = 0,
    replay: bool | None = None,
    check_steps: Sequence[float] = (),
) -> Hypergradient:
    """Return the derivative of the validation loss after some training steps by hyperparameters.

    The model takes the steps, from its weights and an optimiser without memory, and is brought back to where it was:
    its parameters, buffers and attributes are the same afterwards. The arguments are those of `Tuner` but for the
    following.

    Calls in a row for one model, with the same loss, rule and method, share what is made once (`kept`): from the third
    on only the numbers may differ, that is weights, buffers, batches, and values of hyperparameters. A loss, a `Rule`
    or a `Method` of one's own is the same if it is made once, outside of the loop. Where it pays, the steps are then
    replayed, to the same bits.

    A derivative tells of finite steps only where training is smooth. `check_steps` compares the two: the hypergradient
    g of the coordinates against central differences along its direction `v = g / |g|`::

        (f(raw + eps v) - f(raw - eps v)) / (2 eps)    against    g'v = |g|

    Where the ratio is near 1 over some decades of eps, the number can be trusted for steps of that size; where training
    is chaotic (a large learning rate, many steps) it is not near 1 for any.

    Cost: with "exact" a gradient with its graph and a Hessian product a step, and a validation gradient; else that of
    the method. `check_steps` costs two trainings and two validation losses an entry. Memory: with "exact" a graph a
    step, with `options={"store": "tree"}` the states of a few steps (`estimators.reverse.Reverse`). After a second call
    for a model, that model and the records of its steps are kept until a call for another one.

    Args:
        model: the model, as in `Tuner`.
        loss: training loss, as in `Tuner`.
        batches: the batch of each training step, one or more: a list, or any sequence that returns a batch by number.
            With the store "tree" the sequence is asked for a batch again when its step is taken again, and no batch is
            kept: it has to return the same bits.
        val_batch: the batch on which the validation loss is taken after the last step.
        hypers: what to differentiate by, and its values, as in `Tuner`.
        fixed: values of hyperparameters that are not differentiated by, as in `Tuner`.
        rule: update rule, as in `Tuner`.
        method: "exact" for reverse mode through all the steps, or a method on the validation loss, whose estimator is
            used with an update after the last step.
        options: arguments of the function that makes the method of that name; for "exact" those of
            `estimators.reverse.Reverse` but for `horizon`, such as `{"store": "tree", "branching": 8}`, or `{"mode":
            200.0}` for the mode that keeps less where the graphs exceed 200 MB. With a `folder` as well (`{"store":
            "tree", "on": "disk", "folder": path}`), a call that was interrupted goes on with what lies there when it is
            made again with the same arguments.
        val_loss: validation loss, as in `Tuner`.
        statistics: batch norm's statistics in validation, as in `Tuner`.
        initial_weights: whether to differentiate by the initial weights too (MAML); for "exact".
        seed: seed of the random numbers in the forward pass.
        replay: as in `Tuner`; False keeps nothing between two calls. The derivative by the initial weights is never
            replayed.
        check_steps: step lengths eps in the coordinates, such as `(1e-1, 1e-2, 1e-3)`, at which the hypergradient is
            compared with finite steps. Bounds do not hold for these steps. In float32 the smallest ones see rounding.

    Raises:
        GradtuneError: there is no batch, the method has no hypergradient on validation data, or `Tuner` raises it.
    """
    if not (hasattr(batches, "__getitem__") and hasattr(batches, "__len__")) or isinstance(batches, (Tensor, dict)):
        raise GradtuneError("batches is no list of batches; give one batch a training step, as in [(x, y), (x2, y2)]")
    if not len(batches) or isinstance(batches[0], Tensor):
        raise GradtuneError("batches is no list of batches; give one batch a training step, as in [(x, y), (x2, y2)]")
    exact, count = method == "exact", len(batches)
    how = _exact(options, count + initial_weights) if exact else declared.method(method, options, count)
    if how.estimator is None or how.outer_loss != "validation":
        raise GradtuneError(
            f"the method {method} has no hypergradient on validation data; use 'exact', or a method such as 'onepass'"
        )
    if initial_weights and not exact:
        raise GradtuneError("the derivative by the initial weights is that of method='exact'; leave out the method")
    how = replace(how, every=count + initial_weights, warm_up=0, outer=SGD(0.0))
    if replay and initial_weights:
        raise GradtuneError("replay=True was given, and the derivative by the initial weights is not replayed; choose")
    name, kept_on = method if isinstance(method, str) else "", False if initial_weights else replay
    asked = Asked(
        *(loss, val_loss, rule, hypers, fixed or {}, how, name, options or {}, statistics, seed, count, kept_on)
    )
    begun = time.perf_counter()
    with tuner_for(model, asked, keep=kept_on is not False) as kept:
        tuner, before = kept.tuner, kept.tuner.gradients
        tuner._checked = tuner._checked or _is_tried(model, loss)
        start = tuner.raw.clone()
        with counting() if kept.products is None else nullcontext(Count()) as products:
            tuner.recall(batches.__getitem__)
            for k in range(tuner.resume(), count):
                info = tuner.step(batches[k], val_batch)
            _note_tried(model, loss)
            if initial_weights:
                raw, w0, val = tuner.pulled_back(val_batch)
            else:
                raw, w0, val = tuner.raw_hypergradient, None, info.val_loss
        tuner.let_go()
        kept.products = products.count if kept.products is None else kept.products
        spent = Cost(tuner.gradients - before, kept.products, time.perf_counter() - begun, *(tuner.tree or (0, 0)))
    names, slopes = reading.columns(tuner.hypers, tuner.names), reading.slopes(tuner.hypers, start[None])
    values = dict(zip(names, raw.tolist(), strict=True))
    natural = dict(zip(names, (raw / slopes).tolist(), strict=True))
    found = Hypergradient(values, natural, val, w0, spent, tuner.replay)
    if not check_steps:
        return found
    declarations = [b.hyper for b in tuner.hypers.blocks.values()]
    return found._replace(
        agreement=agreements(model, asked, declarations, batches, val_batch, start, raw.clone(), check_steps)
    )


def _exact(options: Mapping[str, Any] | None, steps: int) -> Method:
    """Return the method of reverse mode through some steps."""
    options, known = dict(options or {}), [f.name for f in fields(Reverse) if f.name != "horizon"]
    for name in options:
        if name not in known:
            raise unknown("option of exact", name, known)
    return Method(Reverse(steps, **{"store": "graph", **options}), SGD(0.0), every=steps)


def _is_tried(model: nn.Module, loss: Any) -> bool:
    """Return whether the second derivative of a loss of a model, with these kinds of parts, has been tried before."""
    parts, losses = _tried.get(model, ((), WeakSet[Any]()))
    return parts == _parts(model) and _name(model, loss) in losses


def _note_tried(model: nn.Module, loss: Any) -> None:
    parts, losses = _tried.get(model, ((), WeakSet[Any]()))
    _tried[model] = _parts(model), losses if parts == _parts(model) else WeakSet()
    _tried[model][1].add(_name(model, loss))


def _parts(model: nn.Module) -> _Parts:
    return tuple(type(m) for m in model.modules())


def _name(model: nn.Module, loss: Any) -> Any:
    return type(model) if loss is None else loss
