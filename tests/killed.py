"""Runs that are killed in their middle and go on, for the tests of checkpoints."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from gradtune_book import config
from gradtune_book.records import environment, sittings
from gradtune_book.records.store import Result, number
from gradtune_book.records.study import Study

TIMES = ("seconds", "evaluation_seconds", "at_seconds", "sampler_s", "trial_s")
"""Metrics and series that are times."""


class Killed(BaseException):
    """What ends a run in place of a signal."""


@contextmanager
def after(ticks: int, signalled: bool = False) -> Iterator[None]:
    """End the run under way at its n-th chance to save, before it does: by `Killed`, or by SIGKILL."""
    left, tick = ticks, sittings.Sitting.tick

    def counted(self: sittings.Sitting, spent: Any = None) -> None:
        nonlocal left
        left -= 1
        if not left and signalled:
            os.kill(os.getpid(), signal.SIGKILL)
        if not left:
            raise Killed
        tick(self, spent)

    sittings.Sitting.tick = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        sittings.Sitting.tick = tick  # type: ignore[method-assign]


def once(study: Study, batch: Sequence[Any]) -> list[Result]:
    """Compute a batch as it is recorded, from where it stopped last time."""
    device, keys = torch.device("cpu"), [config.key(study.name, c) for c in batch]
    with environment.as_recorded(device), sittings.sitting(study.name, "smoke", keys, device):
        return study.run(batch, device)


def plain(results: Sequence[Result]) -> list[Any]:
    """Return what results say but for times."""
    out = []
    for each in results:
        said = {**each.metrics, **each.series}
        out.append([each.dataset, {n: _exact(v) for n, v in said.items() if n not in TIMES}])
    return out


def _exact(value: Any) -> Any:
    return [repr(number(x)) for x in value] if isinstance(value, list) else repr(number(value))
