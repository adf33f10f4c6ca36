"""One run of a module, called as torch calls it: on weights of our own, with its own buffers and hooks in place.

`batched` (in `modules`) computes R runs side by side and leaves the module as it is. `Single` computes one run, and the
module lives on as it would in a loop with `torch.optim`: what `forward` writes to buffers, in place or by assigning
anew, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune.nets import attention
from gradtune.nets.adjusted import Adjusted, uncompiled
from gradtune.nets.buffers import Buffers, Values, copied
from gradtune.nets.checkpointing import remembered
from gradtune.nets.draws import Draws
from gradtune.nets.layout import Layout
from gradtune.nets.second_order import granted, is_wanted, layers_in
from gradtune.nets.surroundings import Noted, Surroundings


class Aside(NamedTuple):
    """What a call sees that leaves no trace in the module.

    Attributes:
        buffers: the buffers; the call gets copies.
        evaluating: whether all parts are in evaluation mode, else each is as its flag says.
        noted: other state, see `Surroundings`; None leaves that which there is.
        left: takes the buffers and the other state as the call leaves them; None where nobody asks.
    """

    buffers: Values
    evaluating: bool
    noted: Noted | None = None
    left: list[tuple[dict[str, Tensor | None], Noted]] | None = None


class Single:
    """Calls of one module on flat weights `w [1, D]`.

    The module's own parameters are the leaves of every graph. For a call at other weights their memory is replaced for
    a while (`at`), so that whatever reaches them, through the module or past it, sees the weights of the call. A
    backward pass through a graph has to be inside `at` the same weights.

    Args:
        module: the module. A call leaves its parameters and its flags as they were.
        functions: what is called beside the module, such as losses.
        curvature: whether gradients are going to be differentiated.

    Attributes:
        functions: what is called beside the module.
        module: the module, or what `torch.compile` was given where it is compiled: it runs uncompiled.
        layout: where the module's parameters lie in a row of `w`.
        buffers: the module's buffers.
        own: the module's trained parameters, in the order of the layout.
        frozen: its other parameters.
        parts: the module's parts.
        around: what else a call may change.
        aliased: whether an attribute is one of the buffers.

    Raises:
        GradtuneError: the module has no parameters to train, or some share memory without being the same.
    """

    def __init__(self, module: nn.Module, functions: Sequence[Any] = (), curvature: bool = False) -> None:
        whole, module = module, uncompiled(module)
        self.curvature = curvature
        self.module, self.functions = module, functions
        self.layout, self._adjustment = Layout.of(module), Adjusted(whole)
        self.renew()

    def renew(self) -> None:
        """Look up the module's tensors again, after some were replaced by others.

        Raises:
            GradtuneError: parameters are gone, have another shape, or share memory.
        """
        named = dict(self.module.named_parameters())
        for name, shape in zip(self.layout.names, self.layout.shapes, strict=True):
            if name not in named or named[name].shape != shape:
                raise self._changed(f"{name} is gone, tied or of another shape")
        self.own = tuple(named[n] for n in self.layout.names)
        trained = {id(p) for p in self.own}
        self.frozen = [p for p in named.values() if not p.requires_grad]
        self._slots = _slots(self.module, self.own)
        self.parts, self._lean = list(self.module.modules()), layers_in(self.module)
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in self.parts)
        self._children = [(m._modules, [*m._modules.values()]) for m in self.parts if m._modules]
        self._childless = [m._modules for m in self.parts if not m._modules]
        self._lengths = [len(m._parameters) for m in self.parts]
        self._shown, self._offsets = -1, [0, *accumulate(self.layout.sizes)]
        self.buffers = Buffers(self.module)
        left = [p for p in named.values() if id(p) not in trained]
        self.around = Surroundings(self.parts, self.functions, left)
        buffers = {id(b) for b in self.buffers.read().values()}
        self.aliased = any(id(t) in buffers for _, t in self.around.tensors())
        self._refuse_shared_memory(named)

    def _refuse_shared_memory(self, named: dict[str, nn.Parameter]) -> None:
        """Check that no trained parameter shares memory with another tensor of the module.

        Parameters that are views of one flat row, as a tuner has left them, lie side by side.
        """
        own = {id(p) for p in self.own}
        others = {n: b for n, b in self.buffers.read().items() if b is not None}
        around = {f"the attribute {n}": t for n, t in self.around.tensors() if id(t) not in own}
        kept = {n: t for n, t in around.items() if t.layout == torch.strided}
        everything = {**named, **others, **kept}
        tensors = [(n, t.untyped_storage().data_ptr(), *_span(t), id(t) in own) for n, t in everything.items()]
        tensors = sorted((t for t in tensors if t[2] < t[3]), key=lambda t: (t[1], t[2]))
        for (one, place, _, end, first), (two, other, start, _, second) in pairwise(tensors):
            if place == other and start < end and (first or second):
                raise GradtuneError(
                    f"{one} and {two} of {type(self.module).__name__} share memory without being one parameter; tie "
                    f"weights as module.b.weight = module.a.weight, or give {two} memory of its own by .clone()"
                )

    def follows(self, w: Tensor) -> bool:
        """Return whether the module's parameters are views of `w`, as `show` made them.

        They are not after `load_state_dict(assign=True)`, `p.data = ...`, `model.to(...)` and the like.

        Raises:
            GradtuneError: parameters have been added, removed, frozen or thawed since this was made, or have hooks that
                would never run.
        """
        place, size, same = w.data_ptr(), w.element_size(), True
        if (
            any(self._childless)
            or any([*t.values()] != before for t, before in self._children)
            or self._lengths != [len(m._parameters) for m in self.parts]
        ):
            raise self._changed("its modules or parameters are others")
        for table, key, k in self._slots:
            p = table.get(key)
            if p is None or not p.requires_grad:
                raise self._changed(f"{self.layout.names[k]} is gone or frozen")
            if p._post_accumulate_grad_hooks:
                raise self._changed(f"{self.layout.names[k]} has a hook of register_post_accumulate_grad_hook")
            same = same and p is self.own[k] and (not p.numel() or p.data_ptr() == place + self._offsets[k] * size)
        if any(p.requires_grad for p in self.frozen):
            raise self._changed("a frozen parameter has become trainable")
        if self.curvature and any(m._backward_hooks or m._backward_pre_hooks for m in self.parts):
            raise self._changed("a part has a backward hook, which would act on Hessian products too")
        return same

    def _changed(self, what: str) -> GradtuneError:
        return GradtuneError(
            f"{type(self.module).__name__} has changed since the tuner was made: {what}; make a new Tuner for the "
            "changed model"
        )

    # -- weights -------------------------------------------------------------------------------------------------------

    def show(self, w: Tensor) -> None:
        """Make the module's parameters views of `w [1, D]`. Cost: no copy."""
        parts = w.detach().squeeze(0).split_with_sizes(self.layout.sizes)
        for p, part, shape in zip(self.own, parts, self.layout.shapes, strict=True):
            p.data = part.view(shape)
        self._shown = w.data_ptr()

    def hide(self) -> None:
        """Note that the module's parameters are no longer views of what `show` was given."""
        self._shown = -1

    @contextmanager
    def at(self, w: Tensor, apart: bool = False) -> Iterator[None]:
        """Context: the module's parameters have the weights `w [1, D]`.

        What a call writes into them does not reach `w`, unless these are the weights that the module shows.

        Args:
            w: the weights.
            apart: whether it is not to reach them even then.
        """
        if w.data_ptr() == self._shown and not apart:
            yield
            return
        before = [p.data for p in self.own]
        for p, view in zip(self.own, self.layout.split(w.detach().squeeze(0).clone()).values(), strict=True):
            p.data = view
        shown, self._shown = self._shown, -1
        try:
            yield
        finally:
            self._shown = shown
            for p, data in zip(self.own, before, strict=True):
                p.data = data

    @contextmanager
    def moved(self, w_dot: Tensor) -> Iterator[list[Tensor]]:
        """Context: the module's parameters are dual numbers with the tangent `w_dot [1, D]`.

        It is for the inside of a level of forward-mode differentiation. What reaches a parameter past the module does
        not see its tangent.
        """
        parts = self.layout.split(w_dot.detach().squeeze(0)).values()
        duals = [forward_ad.make_dual(p, part.contiguous()) for p, part in zip(self.own, parts, strict=True)]
        recurrent = [(m, m._flat_weights) for m in self.parts if isinstance(m, nn.RNNBase)]
        try:
            for table, key, k in self._slots:
                table[key] = duals[k]
            for m, _ in recurrent:
                m._flat_weights = [getattr(m, n) for n in m._flat_weights_names]
            yield duals
        finally:
            for table, key, k in self._slots:
                table[key] = self.own[k]
            for m, weights in recurrent:
                m._flat_weights = weights

    def join(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Return gradients by the parameters as one row `[1, D]`; None counts as zero."""
        flat = [_flat(g, p) for g, p in zip(parts, self.own, strict=True)]
        return (torch.cat(flat) if len(flat) > 1 else flat[0])[None]

    def take_over(self, w: Tensor) -> None:
        """Write into `w [1, D]` what a call has put in place of the parameters' memory (`p.data = ...`).

        Raises:
            GradtuneError: the call has put another parameter in the place of one.
        """
        for table, key, k in self._slots:
            if table.get(key) is not self.own[k]:
                raise GradtuneError(
                    f"the forward pass puts another parameter in the place of {self.layout.names[k]}, which no "
                    "optimiser would train; write to its .data, or assign it before the training"
                )
        place, size = w.data_ptr(), w.element_size()
        for p, start in zip(self.own, self._offsets, strict=False):
            if p.numel() and p.data_ptr() != place + start * size:
                w[0, start : start + p.numel()] = p.detach().reshape(-1)

    def versions(self) -> list[int]:
        """Return what grows when tensors that a graph may have saved are written to: it is void then."""
        return [p._version for p in self.own] + [t._version for _, t in self.around.tensors()]

    @property
    def hooked(self) -> bool:
        """Whether parameters have hooks (`Tensor.register_hook`)."""
        return any(p._backward_hooks for p in self.own)

    def check_memory(self) -> None:
        """Check again that nothing shares memory with the trained parameters, after a first call of the module.

        Raises:
            GradtuneError: something does.
        """
        self._refuse_shared_memory(dict(self.module.named_parameters()))

    @contextmanager
    def unhooked(self) -> Iterator[None]:
        """Context: no hook on a parameter runs (`Tensor.register_hook`)."""
        found = [(h, dict(h)) for p in self.own if (h := p._backward_hooks)]
        for hooks, _ in found:
            hooks.clear()
        try:
            yield
        finally:
            for hooks, own in found:
                hooks.update(own)

    # -- calls ---------------------------------------------------------------------------------------------------------

    def call(
        self,
        draws: Draws | None,
        compute: Callable[[], Any],
        aside: Aside | None = None,
        mode: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> Any:
        """Return what `compute()` gives while random numbers come from `draws`.

        Args:
            draws: the random numbers of the step; None leaves torch's own generators in charge.
            compute: calls the module and the loss.
            aside: for a call that leaves no trace; None for one that lives on in the module.
            mode: returns a further context for the call.
        """

        @contextmanager
        def enter(number: int, draws: Draws | None) -> Iterator[None]:
            """Put in place all of the call, for a part of it that is computed once more."""
            trace = aside if aside is not None or number == 0 else Aside(self.buffers.read(), False)
            with nullcontext() if trace is None else self.aside(trace), self.inside(draws, mode):
                yield

        with nullcontext() if aside is None else self.aside(aside), remembered(enter, draws):
            if draws is None and mode is None and not (self._adjustment.any or is_wanted()):
                return compute()
            with self.inside(draws, mode):
                return compute()

    @contextmanager
    def inside(
        self, draws: Draws | None, mode: Callable[[], AbstractContextManager[Any]] | None = None
    ) -> Iterator[None]:
        """Context of a call: random numbers come from `draws`, and every layer has a second derivative if wanted."""
        device = self.own[0].device
        with ExitStack() as stack:
            if draws is not None:
                stack.enter_context(draws.elsewhere(device))
                stack.enter_context(draws.inside(torch.zeros((), dtype=torch.int64)))
            stack.enter_context(self._adjustment.context())
            stack.enter_context(attention.differentiable())
            if self._recurrent and is_wanted() and device.type == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # its LSTM has no second derivative
            stack.enter_context(granted(self._lean))
            if mode is not None:
                stack.enter_context(mode())
            yield

    def back(self, values: Values, noted: Noted) -> None:
        """Bring the module back to where it was before a call, which is to be made again.

        Args:
            values: its buffers then, which are copied.
            noted: what else there was then.
        """
        self.around.bring_back(noted)
        self.buffers.load(copied(values))

    @contextmanager
    def aside(self, how: Aside) -> Iterator[None]:
        """Context: a call that leaves no trace in the module, but for what nobody can follow."""
        before, noted, flags = self.buffers.read(), self.around.note(), [m.training for m in self.parts]
        if self.aliased:  # the buffers keep their identity, and have other memory for a while
            memory = [(b, b.data) for b in before.values() if b is not None]
            self.buffers.load(copied(how.buffers))
        else:
            memory = []
            self.buffers.write(copied(how.buffers))
        self.around.put(noted if how.noted is None else how.noted)
        if how.evaluating:
            for m in self.parts:
                m.training = False
        try:
            yield
            if how.left is not None:
                buffers = {n: None if b is None else b.detach() for n, b in self.buffers.read().items()}
                how.left.append((buffers, self.around.note()))
        finally:
            self.buffers.write(before)
            self.around.bring_back(noted)
            for b, data in memory:
                b.data = data
            for m, flag in zip(self.parts, flags, strict=True):
                m.training = flag


_Slot = tuple[dict[str, nn.Parameter | None], str, int]


def _slots(module: nn.Module, own: Sequence[Tensor]) -> list[_Slot]:
    """Return where in the module each trained parameter lies: the table, its key there and its number."""
    number = {id(p): k for k, p in enumerate(own)}
    tables = [m._parameters for m in module.modules()]
    return [(table, key, number[id(p)]) for table in tables for key, p in table.items() if id(p) in number]


def _span(t: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor in its storage, and the one after its last."""
    if not t.numel() or t.is_sparse:
        return 0, 0
    last = sum((n - 1) * abs(step) for n, step in zip(t.shape, t.stride(), strict=True))
    start = int(t.storage_offset())
    return start * t.element_size(), (start + int(last) + 1) * t.element_size()


def _flat(g: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(like.numel()) if g is None else (g.to_dense() if g.is_sparse else g).reshape(-1)
