"""How a GPU computes in studies, and what a record says of it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gradtune_book.records import outside

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it once, when a process first uses the GPU


def prepare() -> None:
    """Have cuBLAS give the same sums at every call; before a process's first operation on a GPU."""
    os.environ.setdefault(_WORKSPACE, ":4096:8")


@contextmanager
def exact() -> Iterator[None]:
    """Compute float32 as float32, and the same bits at every call, inside the `with` block.

    TF32, which rounds the factors of products to 10 bits, is off in matrix products, convolutions and recurrent layers.
    cuDNN takes deterministic algorithms and does not choose them by racing. Torch's own operations are deterministic
    where they have such a form, and warn where they have none.

    Afterwards all flags are the caller's again.
    """
    before = _flags()
    _set(("ieee", "ieee", "ieee"), (True, False), (True, True), False)
    try:
        yield
    finally:
        _set(*before)


_Flags = tuple[tuple[str, ...], tuple[bool, bool], tuple[bool, bool], bool]


def _places() -> tuple[Any, ...]:
    """Return where torch keeps the precision of matrix products, convolutions and recurrent layers."""
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


def _flags() -> _Flags:
    cudnn = torch.backends.cudnn
    return (
        tuple(place.fp32_precision for place in _places()),
        (cudnn.deterministic, cudnn.benchmark),
        (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


def _set(precisions: tuple[str, ...], cudnn: tuple[bool, bool], torchs: tuple[bool, bool], filled: bool) -> None:
    for place, precision in zip(_places(), precisions, strict=True):
        place.fp32_precision = precision
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
    torch.use_deterministic_algorithms(torchs[0], warn_only=torchs[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def described(device: torch.device) -> dict[str, Any] | None:
    """Return with what a GPU computes at this moment, None for a CPU.

    The names are card, capability, driver, cuda and cudnn (versions; torch's own is among those of every record), tf32
    (whether any product uses it), deterministic and benchmark (cuDNN chooses by racing), and cublas, its workspace.
    """
    if device.type != "cuda":
        return None
    precisions, (deterministic, benchmark), (all_deterministic, _), _ = _flags()
    return {
        "card": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "driver": driver(),
        "cuda": torch.version.cuda or "unknown",
        "cudnn": str(torch.backends.cudnn.version()),
        "tf32": any(precision != "ieee" for precision in precisions),
        "deterministic": deterministic and all_deterministic,
        "benchmark": benchmark,
        "cublas": os.environ.get(_WORKSPACE, ""),
    }


def driver(told: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the version of NVIDIA's driver, "unknown" where nothing tells it.

    Args:
        told: Where Linux tells it.
    """
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", told.read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found:
        return found[0]
    said = outside.output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0].strip() if said else "unknown"
