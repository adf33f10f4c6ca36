"""Each study's smallest run on the pretended device has the CPU's numbers, and mixes no devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_imagenet
from book.devices.sizes import SMALLEST, smallest
from gradtune.nets import compiled
from gradtune_book import papers
from pretended import pretended

_TIMES = ("seconds", "incumbent_s", "evaluation_seconds", "at_seconds", "wall_s", "cpu_s")
# The CPU's optimiser has learning rates that are numbers, a device's tensors: equal up to rounding, and
# to a unit of the four digits that a series keeps
_ROUNDED = {
    *("metaoptimize_continual", "metaoptimize_imagenet", "metaoptimize_language", "metaoptimize_sensitivity"),
    *("metaoptimize_cifar", "metaoptimize_overhead"),
}


def test_every_study_is_here() -> None:
    assert set(SMALLEST) == set(papers.names())


@pytest.mark.parametrize("study", SMALLEST)
def test_the_smallest_run_of_a_study_has_the_cpus_numbers(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "load", lambda *args: None)  # the CPU has kernels of its own, which round elsewhere
    if study == "metaoptimize_imagenet":
        monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
        tiny_imagenet.write(tmp_path)
    config = smallest(study)
    wanted = papers.run_now(papers.get(study), [config]).iloc[0]
    with pretended() as log:
        found = papers.run_now(papers.get(study), [config], device="cuda").iloc[0]
    assert log.launches > 0
    numbers = _numbers(wanted)
    assert numbers
    for name, value in numbers.items():
        rtol = 1e-3 if study in _ROUNDED else 0.0
        np.testing.assert_allclose(_numbers(found)[name], value, rtol=rtol, err_msg=name)


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    timed = [n for n in dict(row) if n in _TIMES or n.startswith(("seconds ", "time "))]
    return {
        n: np.asarray(x, dtype=float)
        for n, x in dict(row).items()
        if n not in timed and isinstance(x, (int, float, np.number, list)) and not isinstance(x, bool)
    }
