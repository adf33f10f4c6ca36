"""The tensors of the pretended device."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from pretended.log import CUDA, MixedDevices, kind, leaves, log, mapped

_aten = torch.ops.aten
_SET_DATA: Any = getattr(torch.Tensor.data, "__set__")  # noqa: B009


class Pretended(torch.Tensor):
    """A tensor on the pretended device, around one on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Pretended:
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device("meta"),
            requires_grad=requires_grad,
        )
        made.held = inner
        return made

    def __init__(self, inner: Tensor, requires_grad: bool = False) -> None:
        pass

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def get_device(self) -> int:
        return 0

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Pretended({self.held})"

    def __deepcopy__(self, memo: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
            new: Any = Pretended(self.held.detach().clone(), self.requires_grad)
        if isinstance(self, torch.nn.Parameter) or getattr(self, "_is_param", False):
            new = torch.nn.Parameter(new, self.requires_grad)
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> Any:
        log().sync("pickle")
        return _again, (self.detach().held.detach(), self.requires_grad)  # type: ignore[attr-defined]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == torch.Tensor.tolist:
            log().sync("tolist")
            return args[0].detach().held.tolist()
        if func == torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        if func == _SET_DATA and isinstance(args[1], Pretended):
            args[0].held = args[1].held
        return out

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _again(inner: Tensor, requires_grad: bool) -> Tensor:
    return Pretended(inner, requires_grad)


_SYNC = {
    *(_aten._local_scalar_dense.default, _aten.equal.default, _aten.nonzero.default, _aten.masked_select.default),
    *(_aten._unique2.default, _aten.unique_dim.default, _aten.is_nonzero.default, _aten.unique_consecutive.default),
    *(_aten.repeat_interleave.Tensor, _aten.bincount.default),
}
_FREE = {  # no kernel, though the schema is no view
    *(_aten.detach.default, _aten.empty_like.default, _aten.new_empty.default, _aten.lift_fresh.default),
    *(_aten.new_empty_strided.default, _aten.empty_strided.default, _aten.empty.memory_format),
    *(_aten._reshape_alias.default, _aten.alias.default, _aten.view.default, _aten._unsafe_view.default),
    *(_aten.lift.default, _aten.set_.source_Tensor, _aten.is_same_size.default),
    *(_aten._has_same_storage_numel.default, _aten._new_zeros_with_same_feature_meta.default),
}
_MANY = {"convolution_backward": 2, "native_batch_norm_backward": 2, "native_batch_norm": 2}  # kernels, about
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)


@cache
def is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns) or func in _FREE


def name_of(func: Any) -> str:
    return str(func._schema.name.rpartition("::")[2])


def _unwrap(x: Any) -> Any:
    return x.held if isinstance(x, Pretended) else x


def _check(func: Any, flat: list[Any], args: Any) -> None:
    """Refuse tensors of two devices; an index may come from the CPU."""
    others = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Pretended)]
    if func in _INDEXED and isinstance(args[0], Pretended):
        for x in others:
            log().sync(f"copy of an index {list(x.shape)} to the device ({name_of(func)})")
        return
    wide = [list(x.shape) for x in others if x.dim() > 0]
    if wide and func not in (_aten.copy_.default, _aten._to_copy.default):
        raise MixedDevices(f"{name_of(func)}: expected all tensors on one device, found cuda:0 and cpu {wide}")


def _count(func: Any, args: Any) -> None:
    """Count the launches of an operation, or the sync that it is."""
    name = name_of(func)
    masked = func is _aten.index.Tensor and any(x is not None and x.dtype is torch.bool for x in args[1])
    if func in _SYNC or masked:
        log().sync("x[mask]" if masked else name)
        log().kernel(name, int(func is not _aten._local_scalar_dense.default))
    elif name.startswith("_foreach") and name != "_foreach_norm":
        lists = [x for x in args if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
        count = len(lists[0]) if lists else 1
        slow = any(isinstance(x, Tensor) and x.dim() == 0 and x.dtype != lists[0][0].dtype for x in args[1:])
        log().kernel(name + " (slow: dtype of the scalar)" * slow, count if slow else max(1, -(-count // 100)))
    elif not is_view(func):
        log().kernel(name, _MANY.get(name, 1))


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the tensors inside, and count it."""
    flat = leaves((args, kwargs))
    if func.namespace == "gradtune":
        from torch._library.custom_ops import OPDEFS

        return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
    _check(func, flat, args)
    if func is _aten._to_copy.default:
        return _copied(func, args, kwargs)
    crossing = func is _aten.copy_.default and isinstance(args[0], Pretended) != isinstance(args[1], Pretended)
    if crossing:
        moved(f"{list(args[1].shape)} {args[1].dtype}", isinstance(args[0], Pretended), len(args) > 2 and args[2])
    else:
        _count(func, args)
    kwargs = {**kwargs, "device": torch.device("cpu")} if kwargs.get("device") is not None else kwargs
    a, k = mapped((args, kwargs), _unwrap)
    out = execute(func, a, k)
    known = {id(x.held): x for x in flat if isinstance(x, Pretended)}  # what is written in place comes back as it is

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return known[id(x)] if id(x) in known else Pretended(x)

    return mapped(out, wrapped)


def execute(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on CPU tensors, and note it in the graph that is being captured, if there is one."""
    capture = log().capture
    if capture is None:
        return func(*args, **kwargs)
    return capture.noted(func, args, kwargs)


def _copied(func: Any, args: Any, kwargs: Any) -> Any:
    here = isinstance(args[0], Pretended)
    to = kwargs.get("device")
    there = here if to is None else kind(to) == "cuda"
    left = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
    if here != there:
        moved(f"{list(args[0].shape)} {args[0].dtype}", there, kwargs.get("non_blocking", False))
    else:
        log().kernel(name_of(func))
    inner = execute(func, (_unwrap(args[0]),), left)
    return Pretended(inner) if there else inner


def moved(what: str, to_device: bool, non_blocking: bool = False) -> None:
    if to_device and non_blocking:
        log().kernel("copy to the device")
    else:
        log().sync(f"copy to the {'device' if to_device else 'host'} {what}")
