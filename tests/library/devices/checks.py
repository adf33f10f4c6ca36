"""What every test of devices asks: the CPU's bits, and no more launches and waits than the table says."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pretended import plain, pretended
from tools import ROOT

Step = Callable[[int], Any]


@cache
def _table() -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = json.loads((ROOT / "benchmarks" / "launches.json").read_text("utf-8"))
    return found


def tensors(x: Any) -> list[Tensor]:
    return [y.detach() for y in tree_leaves(x) if isinstance(y, Tensor)]


def equal(a: Any, b: Any) -> bool:
    """Whether nested tensors have the same bits; NaN equals NaN."""
    a, b = tensors(a), tensors(b)
    alike = len(a) == len(b) and all((x.shape, x.dtype) == (y.shape, y.dtype) for x, y in zip(a, b, strict=True))
    return alike and all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(a, b, strict=True))


def allowed(row: str) -> tuple[float, float]:
    """Launches and waits a step that the table allows."""
    launches, waits = _table()[row]["now"]
    return launches, waits


def on_both(row: str, make: Callable[[str], Step], warm: int, steps: int) -> tuple[Any, Any]:
    """Train on the CPU and on the pretended device, count the last steps there, and return what both have left."""
    on_cpu = make("cpu")
    on_cpu(warm)
    wanted = on_cpu(steps)
    with pretended() as log:
        step = make("cuda")
        step(warm)
        log.clear()
        found = plain(step(steps))
        launches, waits = log.launches / steps, log.synced / steps
        lines = dict(log.syncs)
    most = allowed(row)
    assert waits <= most[1], f"{row} waits for the device {waits:g} times a step, by the table {most[1]:g}: {lines}"
    assert launches <= most[0], f"{row} launches {launches:g} kernels a step, by the table {most[0]:g}"
    return wanted, found
