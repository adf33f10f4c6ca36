"""Calls that name the pretended device: factories, generators, `.to`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pretended.log import CUDA, MixedDevices, State, identity, kind, leaves, log, mapped, on_cuda
from pretended.tensors import Pretended, execute, is_view, moved, name_of

_aten = torch.ops.aten
_RealGenerator = torch.Generator


class _OfGenerators(type):
    def __instancecheck__(cls, x: Any) -> bool:
        return isinstance(x, _RealGenerator)


class Generator(metaclass=_OfGenerators):
    """`torch.Generator`; one on the device is a CPU generator that says it is on the device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = _OnCuda() if kind(device) == "cuda" else _RealGenerator()
        if isinstance(made, _OnCuda):
            State.generators[identity(made)] = made
        return made


class _OnCuda(_RealGenerator):
    device = property(lambda self: CUDA)


class Functions(TorchFunctionMode):
    """Calls that name the device: factories, `.to`, `new_*`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("to", "cuda", "cpu", "type_as") and args and isinstance(args[0], Tensor):
            given = (args[0], name) if name in ("cuda", "cpu") else args
            return _to(given, kwargs)
        if name == "pin_memory":
            pinned = args[0].clone()
            pinned.is_pretended_pinned = True
            return pinned
        if name == "new_tensor" and _here(args[0]):
            log().sync("copy of Python numbers to the device (new_tensor)")
            return _hand_over(torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)))
        to_device = kwargs.get("device") is not None and kind(kwargs["device"]) == "cuda"
        generator = kwargs.get("generator")
        if generator is not None and on_cuda(generator) != to_device and "device" in kwargs:
            raise MixedDevices(f"{name}: the generator is on {generator.device}, the tensor on {kwargs['device']}")
        if not to_device:
            return func(*args, **kwargs)
        if name in ("as_tensor", "asarray", "tensor") and not isinstance(args[0], Pretended):
            del kwargs["device"]
            if not isinstance(args[0], Tensor):
                log().sync(f"copy of Python numbers to the device ({name})")
                return _hand_over(func(*args, **kwargs))
            return _to((args[0], "cuda"), {"dtype": kwargs.get("dtype")})
        kwargs["device"] = "meta"  # `Host` makes it
        return func(*args, **kwargs)


def _to(args: Any, kwargs: Any) -> Any:
    x, *rest = args
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for a in rest:
        if isinstance(a, Tensor):
            device, dtype = "cuda" if _here(a) else "cpu", a.dtype
        elif isinstance(a, (str, int, torch.device)) and not isinstance(a, bool):
            device = a
        elif isinstance(a, torch.dtype):
            dtype = a
    here, dtype = _here(x), dtype or x.dtype
    there = here if device is None else kind(device) == "cuda"
    if there == here:
        left = {k: v for k, v in kwargs.items() if k in ("copy", "memory_format")}
        return torch.Tensor.to(x, dtype=dtype, **left)
    moved(f"{list(x.shape)} {x.dtype}", there, kwargs.get("non_blocking", False) and hasattr(x, "is_pretended_pinned"))
    if there:
        return _hand_over(torch.Tensor.to(x, dtype), x.requires_grad and x.is_leaf)
    return x.detach().held.to(dtype)


def _here(x: Any) -> bool:
    return isinstance(x, Pretended) or (isinstance(x, Tensor) and x.device.type == "meta")


def _hand_over(x: Tensor, requires_grad: bool = False) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return Pretended(x.detach().clone() if x.requires_grad else x, requires_grad)


class Host(TorchDispatchMode):
    """Operations on the CPU alone, and those that only name the device: factories."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if any(isinstance(x, Pretended) for x in leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func is _aten._efficientzerotensor.default:  # forward AD's zero without memory, which operations read
            func = _aten.zeros.default
        if kwargs.get("device") is None or kind(kwargs["device"]) != "cuda":
            return func(*args, **kwargs)
        kwargs["device"] = torch.device("cpu")
        if not is_view(func):
            log().kernel(name_of(func))
        out = execute(func, args, kwargs)
        return mapped(out, lambda x: Pretended(x) if isinstance(x, Tensor) else x)
