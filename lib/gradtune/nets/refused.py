"""What of a module cannot be honoured, named before the first step.

A module is trained on other weights than its own, put in place for each call. That does not reach weights that live
outside of Python or on other machines. And a Hessian product is a second pass through the graph of the gradient, in
which hooks that changed the gradient in the first pass would act again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torchs
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from gradtune.errors import GradtuneError
from gradtune.nets.explained import WITHOUT_CURVATURE


def refuse(module: nn.Module, curvature: bool) -> None:
    """Raise an error if the module has a part that cannot be honoured.

    Cost: a walk over the parts and tensors of the module; call it once.

    Args:
        module: the module.
        curvature: whether gradients of its loss are going to be differentiated.

    Raises:
        GradtuneError: the module is or has a `torch.jit.ScriptModule`, a wrapper for several processes or GPUs, a
            quantised layer, a tensor without values, a trained weight of a special tensor type or in a sparse layout,
            or a hook that would be passed over or act twice.
    """
    named = dict(module.named_modules())
    for found in (_parts(named), _tensors(module), _hooks(named) if curvature else ()):
        for sentence in found:
            raise GradtuneError(sentence)


# --- parts ------------------------------------------------------------------------------------------------------------


def _parts(named: dict[str, nn.Module]) -> Iterator[str]:
    for name, m in named.items():
        what = f"{_of(name)} is a {type(m).__name__}"
        if isinstance(m, torch.jit.ScriptModule):
            yield f"{what} of torch.jit, whose weights cannot be replaced in a call; give the module it was made from"
        if _is_a(m, "torch.nn.parallel.distributed", "DistributedDataParallel"):
            yield f"{what}, which averages gradients where no derivative is taken; give the module inside it, .module"
        if _is_a(m, "torch.distributed.fsdp", "FullyShardedDataParallel", "FSDPModule"):
            yield f"{what}, which holds a part of its weights alone; give a module that is whole on one device"
        if isinstance(m, nn.DataParallel) and len(m.device_ids) > 1:
            yield f"{what} on {len(m.device_ids)} devices, and a training is on one; give the module inside it, .module"
        if isinstance(m, nn.SyncBatchNorm) and _several_processes():
            yield f"{what}, whose statistics several processes share, and a training is in one; use nn.BatchNorm"
        if _is_quantised(type(m)):
            yield f"{what} with quantised weights, through which no gradient goes; train it first and quantise it then"


def _of(name: str) -> str:
    return f"the part {name}" if name else "the module"


def _is_a(x: object, module: str, *names: str) -> bool:
    """Return whether x is of one of these classes, without importing what nobody has imported."""
    home = sys.modules.get(module)
    kinds = (getattr(home, n, None) for n in names)
    return any(isinstance(k, type) and isinstance(x, k) for k in kinds)


def _several_processes() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _is_quantised(kind: type) -> bool:
    places = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
    return any(c.__module__.startswith(places) for c in kind.__mro__)


# --- tensors ----------------------------------------------------------------------------------------------------------


def _tensors(module: nn.Module) -> Iterator[str]:
    trained = [(f"the parameter {n}", p) for n, p in module.named_parameters() if p.requires_grad]
    everything = [*trained, *((f"the buffer {n}", b) for n, b in module.named_buffers())]
    everything += [(f"the parameter {n}", p) for n, p in module.named_parameters() if not p.requires_grad]
    for what, tensor in everything:
        if is_lazy(tensor):
            yield f"{what} of a lazy layer has no values yet; run one batch through the module first"
        elif tensor.is_inference():
            yield f"{what} was made inside torch.inference_mode(), where nothing can be trained; make the model outside"
        elif tensor.is_meta:
            yield f"{what} is on the device meta and has no values; load its values onto a device first"
    for what, p in trained:
        yield from _trained(what, p)


def _trained(what: str, p: Tensor) -> Iterator[str]:
    if _is_a(p, "torch.distributed.tensor", "DTensor"):
        yield f"{what} is a DTensor, spread over devices; give a module that is whole on one device"
    elif is_traceable_wrapper_subclass(p):
        yield f"{what} is a {type(p).__name__}, which plain tensors cannot stand in for; make it a plain tensor"
    elif p.layout != torch.strided:
        yield f"{what} has the layout {p.layout}; train it as a dense tensor, p.to_dense()"
    elif any("multi_grad" in getattr(h, "__qualname__", "") for h in (p._backward_hooks or {}).values()):
        yield (
            f"{what} has a hook of torch.autograd.graph.register_multi_grad_hook, which works inside backward() alone; "
            "remove it, or register hooks one by one"
        )
    elif getattr(p, "_post_accumulate_grad_hooks", None):
        yield (
            f"{what} has a hook of register_post_accumulate_grad_hook, which would never run, as no .grad is "
            "accumulated; remove it, or write what it does into the loss or the rule"
        )


# --- hooks ------------------------------------------------------------------------------------------------------------


def _hooks(named: dict[str, nn.Module]) -> Iterable[str]:
    everywhere = bool(torchs._global_backward_hooks or torchs._global_backward_pre_hooks)
    found = [_of(name) for name, m in named.items() if m._backward_hooks or m._backward_pre_hooks]
    if everywhere or found:
        yield (
            f"{found[0] if found else 'every module'} has a backward hook, which acts on a gradient once and would act "
            f"on its Hessian products as well; remove it, {WITHOUT_CURVATURE}"
        )
