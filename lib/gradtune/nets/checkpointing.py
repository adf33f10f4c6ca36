"""Activation checkpoints inside a module whose weights are replaced while it is called.

A function in `torch.utils.checkpoint(..., use_reentrant=False)` runs a second time in the backward pass, to make again
what was not stored. At that time the call of the module is over and the module restored: the function would see the
module's own weights and buffers, its own training flags, torch's random numbers and torch's second derivatives. Then
gradients would be those at other weights, and nothing would say so.

`remembered` is active during the call. Every checkpoint that starts inside it keeps what is needed to put the same
state in place whenever its function runs again. That happens once in the backward pass of the gradient and once more in
each Hessian product. `checkpoint_sequential`, the wrappers of `torch.distributed` and the models of Hugging Face make
their checkpoints by the same function.

Random numbers from torch's global generators (see `draws`) are restored by torch itself, unless a checkpoint is made
with `preserve_rng_state=False`. Those of `Draws` are restored in any case.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint as own

from gradtune.errors import GradtuneError
from gradtune.nets.draws import Draws
from gradtune.nets.second_order import is_wanted, wanted

Enter = Callable[[int, Draws | None], AbstractContextManager[object]]


class _Memory(NamedTuple):
    """What a checkpoint that starts now keeps; `number` is that of the repetition in which it starts, 0 outside."""

    enter: Enter
    draws: Draws | None
    number: int


_memory: ContextVar[_Memory | None] = ContextVar("memory", default=None)


class remembered:
    """Context around a module's call: checkpoints inside it can repeat their functions in the same state.

    Where no graph is built (`torch.no_grad()`) and where there are no checkpoints it has no effect.

    Args:
        enter: `enter(number, draws)` returns a context that puts in place all that was in place in the call. It is
            entered around each repetition of a checkpoint's function, maybe in another thread, and left even when torch
            ends the repetition early. Whether a graph over the gradient is wanted (`second_order.is_wanted`) has been
            restored by then, and `remembered` itself is in force again.

            * `number` counts the repetitions of a checkpoint from 0. In repetition 0, torch's loop would write to the
              module's buffers (running statistics) as in the call itself; later repetitions belong to Hessian products
              and must leave no trace: give them copies.
            * `draws` stands where the numbers of the call stood when the checkpoint started; None where `remembered`
              was given none.

            It lives as long as the graph. So it must hold no tensor that is computed inside the call (views of the
            weights are fine): a circle through a graph is invisible to Python's garbage collector.
        draws: the random numbers that the call draws from.

    Raises:
        GradtuneError: inside the context, a checkpoint is made with `use_reentrant=True`, or under `torch.func.vmap`;
            or this version of torch makes its checkpoints in an unknown way.
    """

    __slots__ = ("_new", "_token")

    def __init__(self, enter: Enter, draws: Draws | None = None) -> None:
        self._new = _Memory(enter, draws, 0)
        self._token: Token[_Memory | None] | None = None

    def __enter__(self) -> None:
        _install()
        self._token = _memory.set(self._new)

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _memory.reset(self._token)


class _Repeated:
    """The function of one checkpoint, to be run again in the state in which it ran first.

    Args:
        function: the function.
        memory: what was in force when the checkpoint started.
    """

    def __init__(self, function: Callable[..., Any], memory: _Memory) -> None:
        self._function, self._enter, self._number = function, memory.enter, memory.number
        self._draws = memory.draws.again() if memory.draws is not None else None
        self._wanted = is_wanted()

    def __call__(self, *args: Any) -> None:
        number, self._number = self._number, self._number + 1
        draws = self._draws.again() if self._draws is not None else None
        token = _memory.set(_Memory(self._enter, draws, number))
        try:
            with wanted() if self._wanted else nullcontext(), self._enter(number, draws):
                self._function(*args)
        finally:
            _memory.reset(token)


# --- what is changed in torch, once a process; without effect outside of `remembered` ---------------------------------

_lock = threading.Lock()
_installed = False


def _install() -> None:
    global _installed
    if _installed:
        return
    with _lock:
        if not _installed:
            _follow_frames(getattr(own, "_CheckpointFrame", None))
            _refuse_reentrant(own.CheckpointFunction)
            _installed = True


def _follow_frames(frame: Any) -> None:
    """Hand `_Repeated` to torch where it notes the function that a checkpoint will repeat.

    torch makes a `_CheckpointFrame` for every checkpoint without reentrant autograd, and calls its `recompute_fn`.
    """
    if frame is None:
        _refuse(("checkpoint", "_checkpoint_impl", "_checkpoint_without_reentrant_generator"))
        return
    original = frame.__init__

    @functools.wraps(original)
    def started(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        memory = _memory.get()
        if memory is None or not torch.is_grad_enabled():
            return
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise GradtuneError(
                "torch.utils.checkpoint does not work under torch.func.vmap, where several runs are computed side by "
                "side; train one run at a time, or call the module without checkpoints"
            )
        if not hasattr(self, "recompute_fn"):
            raise _unknown_way()
        self.recompute_fn = _Repeated(self.recompute_fn, memory)

    frame.__init__ = started


def _refuse_reentrant(function: Any) -> None:
    """Say at the call, not in the backward pass, that a reentrant checkpoint cannot be differentiated."""

    def apply(cls: Any, *args: Any) -> Any:
        if _memory.get() is not None and torch.is_grad_enabled():
            raise GradtuneError(REENTRANT)
        return super(function, cls).apply(*args)

    function.apply = classmethod(apply)


def _refuse(names: Sequence[str]) -> None:
    """Let every function that makes checkpoints say that it is not supported."""
    for name in names:
        if (function := getattr(own, name, None)) is not None:
            setattr(own, name, _refusing(function))


def _refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def refused(*args: Any, **kwargs: Any) -> Any:
        if _memory.get() is not None and torch.is_grad_enabled():
            raise _unknown_way()
        return function(*args, **kwargs)

    return refused


def _unknown_way() -> GradtuneError:
    return GradtuneError(
        f"torch {torch.__version__} makes its checkpoints in a way that is not known here; call the module without "
        "torch.utils.checkpoint, or use an older version of torch"
    )


REENTRANT = (
    "torch.utils.checkpoint with use_reentrant=True cannot be differentiated by torch.autograd.grad; make it with "
    'use_reentrant=False (of Hugging Face models: gradient_checkpointing_kwargs={"use_reentrant": False})'
)
