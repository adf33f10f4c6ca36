"""One run of a module, called as torch calls it: on weights of our own, with its own buffers and hooks in place.

`batched` (in `modules`) computes R runs side by side and leaves the module as it is. `Single` computes one run, and the
module lives on as it would in a loop with `torch.optim`: what `forward` writes to buffers, in place or by assigning
anew, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gradtune.errors import GradtuneError
from gradtune.nets import attention
from gradtune.nets.adjusted import Adjusted, uncompiled
from gradtune.nets.checkpointing import remembered
from gradtune.nets.draws import Draws
from gradtune.nets.layout import Layout
from gradtune.nets.second_order import granted, is_wanted, layers_in
from gradtune.nets.swapped import Places

Values = Mapping[str, Tensor | None]
_PLAIN = (bool, int, float, str, Tensor)


class Aside(NamedTuple):
    """What a call sees that leaves no trace in the module.

    Attributes:
        buffers: the buffers; the call gets copies.
        evaluating: whether all parts are in evaluation mode, else each is as its flag says.
        attributes: plain attributes of each part, see `Single.attributes`; None leaves those that it has.
    """

    buffers: Values
    evaluating: bool
    attributes: list[dict[str, Any]] | None = None


class Buffers:
    """All buffers of a module by name, those without a value and those that come later included.

    Args:
        module: the module; its submodules are looked up once.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tables = [(f"{prefix}." if prefix else "", m._buffers) for prefix, m in module.named_modules()]

    def read(self) -> dict[str, Tensor | None]:
        """Return the buffers as they are, by name; no copies."""
        return {prefix + key: b for prefix, table in self._tables if table for key, b in table.items()}

    def write(self, values: Values) -> None:
        """Put `values` in the places of the buffers; a buffer that has no value among them is removed."""
        for prefix, table in self._tables:
            if table:
                wanted = {key: values[prefix + key] for key in table if prefix + key in values}
                table.clear()
                table.update(wanted)
        names = {prefix + key for prefix, table in self._tables for key in table}
        for name in values.keys() - names:
            head, _, key = name.rpartition(".")
            next(table for prefix, table in self._tables if prefix == (f"{head}." if head else ""))[key] = values[name]

    def load(self, values: Values) -> None:
        """Give the module these buffers and no others; a buffer of the same type keeps its identity."""
        own, new = self.read(), dict(values)
        for name, value in values.items():
            mine = own.get(name)
            if mine is not None and value is not None and (mine.dtype, mine.device) == (value.dtype, value.device):
                mine.data = value
                new[name] = mine
        self.write(new)

    def renew(self, replace: bool) -> dict[str, Tensor | None]:
        """Give every buffer a copy of its memory, and return the values that it had, with the old memory.

        What is written to the buffers from here on does not reach the returned values.

        Args:
            replace: whether the buffers become other tensors, so that graphs that have saved them stay valid.
        """
        if replace:
            now = self.read()
            self.write(copied(now))
            return now
        own, copies, before = self.read(), dict[int, Tensor](), dict[str, Tensor | None]()
        for name, b in own.items():
            before[name] = None if b is None else copies.get(id(b))
            if b is not None and id(b) not in copies:
                before[name] = copies[id(b)] = b.detach()
                b.data = b.data.clone()
        return before


def copied(values: Values) -> dict[str, Tensor | None]:
    """Return copies of buffers by name; a tensor that has two names stays one tensor."""
    copies: dict[int, Tensor] = {id(b): b.detach().clone() for b in values.values() if b is not None}
    return {n: None if b is None else copies[id(b)] for n, b in values.items()}


class Single:
    """Calls of one module on flat weights `w [1, D]`.

    Args:
        module: the module. A call leaves its parameters and its flags as they were.

    Attributes:
        module: the module, or what `torch.compile` was given where it is compiled: it runs uncompiled.
        layout: where the module's parameters lie in a row of `w`.
        buffers: the module's buffers.
        own: the module's trained parameters, in the order of the layout.
        substitute: whether tensors that are the module's own parameters, reached past the module (through a list made
            before, say), are replaced by the weights of the call. It costs every torch operation a little.

    Raises:
        GradtuneError: the module has no parameters to train.
    """

    def __init__(self, module: nn.Module) -> None:
        whole, module = module, uncompiled(module)
        self.module = module
        self.layout, self._adjustment = Layout.of(module), Adjusted(whole)
        self.buffers, self.substitute = Buffers(module), False
        self.renew()

    def renew(self) -> None:
        """Look up the module's tensors again, after some were replaced by others."""
        named = dict(self.module.named_parameters())
        self.own = tuple(named[n] for n in self.layout.names)
        self._places, self._lean = Places(self.module), layers_in(self.module)
        self._adjusted = bool(self._adjustment.sparse or self._adjustment.compiled)
        slots = [self._places.parameters[n] for n in self.layout.names]
        self._slots = [(table, key, k) for k, found in enumerate(slots) for table, key in found]
        self.parts = list(self.module.modules())
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in self.parts)
        self._lengths = [len(m._parameters) for m in self.parts]
        self._shown = -1
        self._frozen = [p for p in named.values() if not p.requires_grad]
        self._offsets = [0, *accumulate(self.layout.sizes)]
        self.buffers = Buffers(self.module)

    def follows(self, w: Tensor) -> bool:
        """Return whether the module's parameters are views of `w`, as `show` made them.

        They are not after `load_state_dict(assign=True)`, `p.data = ...`, `model.to(...)` and the like.

        Raises:
            GradtuneError: parameters have been added, removed, frozen or thawed since this was made.
        """
        place, size, same = w.data_ptr(), w.element_size(), True
        if list(self.module.modules()) != self.parts or self._lengths != [len(m._parameters) for m in self.parts]:
            raise self._changed("its modules or parameters are others")
        for table, key, k in self._slots:
            p = table.get(key)
            if p is None or not p.requires_grad:
                raise self._changed(f"{self.layout.names[k]} is gone or frozen")
            same = same and p is self.own[k] and (not p.numel() or p.data_ptr() == place + self._offsets[k] * size)
        if any(p.requires_grad for p in self._frozen):
            raise self._changed("a frozen parameter has become trainable")
        return same

    def _changed(self, what: str) -> GradtuneError:
        return GradtuneError(
            f"{type(self.module).__name__} has changed since the tuner was made: {what}; make a new Tuner for the "
            "changed model"
        )

    def show(self, w: Tensor) -> None:
        """Make the module's parameters views of `w [1, D]`. Cost: no copy."""
        for p, view in zip(self.own, self.layout.split(w.detach().squeeze(0)).values(), strict=True):
            p.data = view
        self._shown = w.data_ptr()

    def cut(self, w: Tensor, own: bool = False) -> tuple[nn.Parameter, ...]:
        """Return the weights of the row as parameters in the order of the layout, leaves of a graph.

        Args:
            w: weights `[1, D]`.
            own: whether the parameters share the memory of `w`, so that what a forward pass writes into them stays.
        """
        if own and w.data_ptr() == self._shown:  # the module's own parameters are views of it
            return tuple(nn.Parameter(p.data) for p in self.own)
        row = w.detach().squeeze(0) if own else w.detach().squeeze(0).clone()
        # .data has a version counter of its own: a write to one parameter is no write to the others
        return tuple(nn.Parameter(v.data) for v in self.layout.split(row).values())

    def join(self, parts: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
        """Return gradients by the parameters as one row `[1, D]`; None counts as zero."""
        flat = [_flat(g, p) for g, p in zip(parts, like, strict=True)]
        return (torch.cat(flat) if len(flat) > 1 else flat[0])[None]

    def take_over(self, leaves: Sequence[Tensor], w: Tensor) -> None:
        """Write into `w [1, D]` what a forward pass has put in place of its parameters' memory (`p.data = ...`)."""
        place, size = w.data_ptr(), w.element_size()
        for p, start in zip(leaves, self._offsets, strict=False):
            if p.numel() and p.data_ptr() != place + start * size:
                w[0, start : start + p.numel()] = p.detach().reshape(-1)

    def call(
        self,
        views: Sequence[Tensor],
        draws: Draws | None,
        compute: Callable[[], Any],
        aside: Aside | None = None,
        mode: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Any:
        """Return what `compute()` gives while the module has these weights and random numbers come from `draws`.

        Args:
            views: the parameters, see `cut`.
            draws: the random numbers of the step; None leaves torch's own generators in charge.
            compute: calls the module and the loss.
            aside: for a call that leaves no trace; None for one that lives on in the module.
            mode: returns a further context for the call.
        """

        @contextmanager
        def enter(number: int, draws: Draws | None) -> Iterator[None]:
            """Put in place all of the call, for a part of it that is computed once more."""
            trace = aside if aside is not None or number == 0 else Aside(self.buffers.read(), False)
            with nullcontext() if trace is None else self.aside(trace), self.inside(views, draws, mode):
                yield

        with nullcontext() if aside is None else self.aside(aside), remembered(enter, draws):
            if draws is None and mode is None and not (self.substitute or self._adjusted or is_wanted()):
                return self._swapped(views, compute)
            with self.inside(views, draws, mode):
                return compute()

    def _swapped(self, views: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        """Run `compute` on other weights: the shortest way, taken at every step without curvature."""
        before = [table[key] for table, key, _ in self._slots]
        for table, key, k in self._slots:
            table[key] = views[k]
        try:
            return compute()
        finally:
            for (table, key, _), old in zip(self._slots, before, strict=True):
                table[key] = old

    @contextmanager
    def inside(
        self,
        views: Sequence[Tensor],
        draws: Draws | None,
        mode: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Iterator[None]:
        """Context: the module has these weights, and random numbers come from `draws`."""
        with ExitStack() as stack:
            if draws is not None:
                stack.enter_context(draws.elsewhere(views[0].device))
                stack.enter_context(draws.inside(torch.zeros((), dtype=torch.int64)))
            stack.enter_context(self._places.swapped(dict(zip(self.layout.names, views, strict=True))))
            if self.substitute:
                stack.enter_context(Substituted(self.own, views))
            stack.enter_context(self._adjustment.context())
            stack.enter_context(attention.differentiable())
            if self._recurrent and is_wanted() and views[0].device.type == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # its LSTM has no second derivative
            stack.enter_context(granted(self._lean))
            if mode is not None:
                stack.enter_context(mode())
            yield

    def back(self, values: Values, attributes: list[dict[str, Any]] | None) -> None:
        """Bring the module back to where it was before a call, which is to be made again.

        Args:
            values: its buffers then, which are copied.
            attributes: the attributes of its parts then; None leaves them.
        """
        for m, kept in zip(self.parts, attributes or [], strict=False):
            _restore(m.__dict__, kept)
        self.buffers.load(copied(values))

    def attributes(self) -> list[dict[str, Any]]:
        """Return the plain attributes of the module's parts: numbers, text and tensors that `forward` may change."""
        return [{n: v for n, v in m.__dict__.items() if isinstance(v, _PLAIN) and n[0] != "_"} for m in self.parts]

    @contextmanager
    def aside(self, how: Aside) -> Iterator[None]:
        """Context: a call that leaves no trace in the module: neither in buffers nor in attributes."""
        before, attributes = self.buffers.read(), [dict(m.__dict__) for m in self.parts]
        self.buffers.write(copied(how.buffers))
        for m, own in zip(self.parts, how.attributes or (), strict=False):
            m.__dict__.update(own)
        if how.evaluating:
            for m in self.parts:
                m.training = False
        try:
            yield
        finally:
            self.buffers.write(before)
            for m, kept in zip(self.parts, attributes, strict=True):
                _restore(m.__dict__, kept)


def _flat(g: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(like.numel()) if g is None else (g.to_dense() if g.is_sparse else g).reshape(-1)


def _restore(table: dict[str, Any], kept: dict[str, Any]) -> None:
    for name in [n for n in table if n not in kept]:
        del table[name]
    for name, value in kept.items():
        if table.get(name, _ABSENT) is not value:
            table[name] = value


_ABSENT = object()


class Substituted(TorchFunctionMode):
    """Context in which every torch operation sees other tensors in place of some.

    Args:
        own: the tensors to be replaced.
        views: what replaces them, in the same order.
    """

    def __init__(self, own: Sequence[Tensor], views: Sequence[Tensor]) -> None:
        super().__init__()
        self._views = {id(p): v for p, v in zip(own, views, strict=True)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(lambda x: self._views.get(id(x), x), (args, kwargs or {}))
        return func(*args, **kwargs)
