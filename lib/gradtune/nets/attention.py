"""Attention whose gradient can be differentiated, for the Hessian products of a step.

`torch.nn.functional.scaled_dot_product_attention` chooses among several kernels, and only the mathematical one has a
second derivative. `nn.MultiheadAttention` and the layers of `nn.Transformer` call it. `differentiable()` leaves torch
no other choice where a graph over the gradient is built; gradients without curvature keep the fast kernels.

Attention that does not go through this function has kernels of its own, which this does not reach:
`torch.nn.attention.flex_attention` and packages for attention on a GPU. Those without a second derivative are found by
`curvature_check`.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

from torch.backends import cuda

from gradtune.nets.second_order import is_wanted

_lock = threading.Lock()


def differentiable() -> AbstractContextManager[object]:
    """Return `mathematical()` where a graph over the gradient is wanted, else a context without effect."""
    return mathematical() if is_wanted() else nullcontext()


class mathematical:
    """Context in which `scaled_dot_product_attention` takes the mathematical kernel, on CPUs and GPUs alike.

    It does what `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` does, in a fifth of the time (2 to 3 microseconds).
    The choice holds for the whole process, as torch keeps it there: the context that is entered first notes what was
    chosen before, and the one that is left last restores it, so that trainings in several threads do no harm.
    """

    _entered = 0
    _before = (True, True, True, True)

    __slots__ = ()

    def __enter__(self) -> None:
        with _lock:
            if mathematical._entered == 0:
                mathematical._before = (
                    cuda.flash_sdp_enabled(),
                    cuda.mem_efficient_sdp_enabled(),
                    cuda.cudnn_sdp_enabled(),
                    cuda.math_sdp_enabled(),
                )
            mathematical._entered += 1
            _choose(False, False, False, True)

    def __exit__(self, *_: object) -> None:
        with _lock:
            mathematical._entered -= 1
            if mathematical._entered == 0:
                _choose(*mathematical._before)


def _choose(flash: bool, efficient: bool, cudnn: bool, math: bool) -> None:
    cuda.enable_flash_sdp(flash)
    cuda.enable_mem_efficient_sdp(efficient)
    cuda.enable_cudnn_sdp(cudnn)
    cuda.enable_math_sdp(math)
