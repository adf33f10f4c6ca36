"""A pretended CUDA device on a machine that has none: real numbers, no GPU.

`Pretended` is a tensor subclass around a CPU tensor. To Python it says `device("cuda:0")`, to C++ `meta`, a device
that autograd, vmap and forward-mode differentiation accept without a driver. Each aten operation runs on the CPU tensor
inside, so that results are those of the CPU to the bit, and is checked and counted as CUDA would see it:

    mixed      tensors with dimensions on two devices are an error, as on CUDA
    sync       .item(), float(), bool(), tolist(), .cpu(), blocking copies to the device, nonzero, x[mask], unique,
               equal; a CPU index of `x[index]` is legal, and a copy to the device
    launch     every other operation that is no view: one kernel, at the least

`graphs` adds CUDA graphs: a replayed graph is one launch, and what a capture forbids is an error.

    with pretended() as log:
        ...                       # device="cuda" everywhere
    log.launches, log.syncs       # a number; a Counter of (what, file:line)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils import _pytree

from gradtune.nets import watching
from gradtune.tuning import recorded
from pretended.calls import Functions, Generator, Host
from pretended.graphs import graphs
from pretended.log import Log, MixedDevices, State
from pretended.tensors import Pretended

__all__ = ["Log", "MixedDevices", "plain", "pretended"]


def _patches(own: Log) -> Iterator[Any]:
    def value(what: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: what

    def waits(*args: Any, **kwargs: Any) -> None:
        own.sync("torch.cuda.synchronize")

    from torch.fx.experimental import proxy_tensor

    def state(device: Any = None) -> torch.Tensor:
        return torch.default_generator.get_state()

    names: dict[str, Any] = {
        **{"device_count": value(1), "current_device": value(0), "get_device_name": value("pretended")},
        **{"synchronize": waits, "_lazy_init": value(None), "device": lambda d: contextlib.nullcontext()},
        **{"manual_seed": value(None), "get_rng_state": state, "set_rng_state": value(None)},
        **{"reset_peak_memory_stats": value(None), "max_memory_allocated": value(0), "is_available": value(True)},
        **graphs(own),
    }
    yield from (mock.patch.object(torch.cuda, name, it) for name, it in names.items())
    yield mock.patch.object(torch, "Generator", Generator)
    yield mock.patch.object(watching, "_TRUSTED", watching._TRUSTED | {"pretended"})  # as torch is
    yield mock.patch.object(recorded, "PLAIN", (*recorded.PLAIN, Pretended))
    yield mock.patch.object(proxy_tensor, "HANDLED_TYPES", (*proxy_tensor.HANDLED_TYPES, Pretended))


@contextlib.contextmanager
def pretended() -> Iterator[Log]:
    """Context in which there is a device "cuda"; yields what happens on it."""
    before, own = State.log, Log()
    with contextlib.ExitStack() as stack:
        for patch in _patches(own):
            stack.enter_context(patch)
        State.log = own
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that is moved stays itself
        try:
            with Host(), Functions():
                yield own
        finally:
            State.log = before
            torch.__future__.set_swap_module_params_on_conversion(swaps)
            State.generators.clear()


def plain(x: Any) -> Any:
    """Nested tuples, lists and dicts with the CPU tensors inside, for comparisons; no sync is counted."""
    return _pytree.tree_map(lambda y: y.detach().held if isinstance(y, Pretended) else y, x)  # type: ignore[attr-defined]
