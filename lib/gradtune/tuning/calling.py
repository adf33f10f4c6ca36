"""How a batch becomes a call of the model and of the loss.

A batch is one of these, where the last part of a sequence is the target:

* `(x, y)`: `loss(model(x), y)`;
* `(a, b, y)`: `loss(model(a, b), y)`;
* `((a, b), y)`: `loss(model(a, b), y)` where the forward pass needs as many inputs, else `loss(model((a, b)), y)`;
  where it can take either, an error asks for `(a, b, y)`;
* `(x, (y, i))`: `loss(model(x), (y, i))`;
* a dict: what the forward pass names is handed to it by name, and the loss gets the rest: the one tensor that is left,
  a dict of several, or an entry `labels` (or `label`, `target`, `targets`, `y`) that the forward pass takes too.

Without a loss (`loss=None`) the model gets all of the batch and returns its loss: a number, an object with `.loss`, a
dict with `"loss"`, or a tuple whose first part it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from gradtune.errors import GradtuneError

TARGETS = ("labels", "label", "target", "targets", "y")
"""Names of a dict's entry that the loss gets even where the forward pass takes it as well."""

Loss = Callable[..., Tensor]


class Call(NamedTuple):
    """A call of the model and what the loss is to see.

    Attributes:
        args: inputs by position.
        kwargs: inputs by name.
        target: the target; None where the model returns its loss.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any


class Calling:
    """Calls of one model.

    Args:
        model: the model.
        hypers: names of hyperparameters that the forward pass takes.
    """

    def __init__(self, model: nn.Module, hypers: Sequence[str] = ()) -> None:
        self.model, self._name = model, type(model).__name__
        found = _parameters(model)
        self._hypers = tuple(hypers)
        self._open = any(p.kind in (p.VAR_KEYWORD,) for p in found)
        self._inputs = [p for p in found if p.name not in self._hypers]
        self._signature = inspect.Signature([p.replace(kind=p.kind) for p in self._inputs])
        self._names = {p.name for p in self._inputs if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self._checked: set[Any] = set()

    def of(self, batch: Any, with_target: bool) -> Call:
        """Return the call that a batch stands for.

        Args:
            batch: the batch.
            with_target: whether a loss is to be called; if not, the model gets all of the batch.

        Raises:
            GradtuneError: the batch has no target, or does not fit the forward pass.
        """
        if isinstance(batch, Mapping):
            call = self._by_name(batch, with_target)
        elif not with_target:
            call = Call(tuple(batch) if isinstance(batch, (tuple, list)) else (batch,), {}, None)
        elif isinstance(batch, (tuple, list)) and len(batch) > 1:
            *inputs, target = batch
            call = self._by_position(inputs, target)
        else:
            raise GradtuneError(
                f"a batch is a {type(batch).__name__}{f' of {len(batch)}' if isinstance(batch, (tuple, list)) else ''};"
                " expected (x, y), (a, b, y) or a dict with inputs and target, or loss=None for a model that returns "
                "its loss"
            )
        key = (len(call.args), tuple(call.kwargs))
        if key not in self._checked:
            self._check(call)
            self._checked.add(key)
        return call

    def _by_position(self, inputs: list[Any], target: Any) -> Call:
        if len(inputs) > 1:
            return Call(tuple(inputs), {}, target)
        x = inputs[0]
        if isinstance(x, Mapping) and self._binds((), x) and not (self._takes_one and not self._names & set(x)):
            return Call((), dict(x), target)
        if isinstance(x, (tuple, list)) and self._binds(tuple(x), {}) and not self._takes_a_sequence:
            if self._takes_one and len(x) > 1:
                raise GradtuneError(
                    f"((a, b), y) can be handed to {self._name}.forward{self._signature} in two ways; give (a, b, y) "
                    "for several inputs, or annotate the first input as a tuple for one"
                )
            return Call(tuple(x), {}, target)
        return Call((x,), {}, target)

    @property
    def _takes_one(self) -> bool:
        return self._binds((None,), {})

    @property
    def _takes_a_sequence(self) -> bool:
        """Whether the first input is annotated as a sequence of several."""
        note = str(self._inputs[0].annotation).lower() if self._inputs else ""
        return any(word in note for word in ("tuple", "list", "sequence"))

    def _by_name(self, batch: Mapping[str, Any], with_target: bool) -> Call:
        if not with_target:
            return Call((), dict(batch), None)
        taken = {n: v for n, v in batch.items() if n in self._names or (self._open and n not in TARGETS)}
        rest = {n: v for n, v in batch.items() if n not in taken}
        if not taken:
            raise GradtuneError(
                f"{self._name}.forward takes {sorted(self._names)}, and the batch has {sorted(batch)}; give the inputs "
                "of the batch the names of the forward pass, or hand over (x, y)"
            )
        if rest:
            return Call((), taken, next(iter(rest.values())) if len(rest) == 1 else rest)
        named = [n for n in TARGETS if n in batch]
        if not named:
            raise GradtuneError(
                f"{self._name}.forward takes all of the batch, {sorted(batch)}, and nothing is left for the loss; name "
                f"the target one of {list(TARGETS)}, or give loss=None for a model that returns its loss"
            )
        return Call((), taken, batch[named[0]])

    def _binds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    def _check(self, call: Call) -> None:
        if not self._inputs or self._binds(call.args, call.kwargs):
            return
        given = f"{len(call.args)} by position" if call.args else f"{sorted(call.kwargs)}"
        needed = [p.name for p in self._inputs if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        raise GradtuneError(
            f"{self._name}.forward takes {self._signature} and the batch gives it {given}; expected inputs for "
            f"{needed} in the batch, such as (a, b, y), a default in the forward pass, or a hyperparameter of that "
            "name in hypers"
        )


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def own_loss(output: Any, name: str) -> Tensor:
    """Return the loss that a model has computed itself.

    Args:
        output: what the model returned.
        name: the model's name in a message.

    Raises:
        GradtuneError: there is no loss in the output.
    """
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    found = output if found is None else found
    if isinstance(found, Tensor) and found.numel() == 1:
        return found
    raise GradtuneError(
        f"loss=None expects {name} to return its loss, a number or an object with .loss, and it returned a "
        f"{type(output).__name__} without one; hand the model its labels, or give a loss(output, y)"
    )
