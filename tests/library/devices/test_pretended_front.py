"""`Tuner`, `tune`, `MetaOptimize`, restarts and both forms of a loop on the pretended device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradtune import tune
from gradtune.methods import making
from gradtune.recursion.hypers import Hyper
from gradtune.recursion.outer import SignHalving
from gradtune.recursion.rules import sgd
from gradtune.training.restarts import Restarts
from gradtune.training.restarts import Task as Outer
from library.devices import cases, front
from library.devices.checks import equal, on_both
from pretended import plain, pretended


@pytest.mark.parametrize("name", front.TUNERS)
def test_a_tuner_on_a_device_has_the_bits_of_the_cpu(name: str) -> None:
    wanted, found = on_both(f"Tuner: {name}", lambda d: front.tuner(name, d), front.SETTLED, front.STEPS)
    assert equal(wanted, found)


@pytest.mark.parametrize(("base", "meta"), front.OPTIMISERS)
def test_metaoptimize_on_a_device_is_that_of_the_cpu(base: str, meta: str) -> None:
    """The CPU has its own kernels, and learning rates that are numbers: equal up to rounding."""
    row = f"MetaOptimize: {base}, {meta}"
    (wanted, _), (found, _) = on_both(row, lambda d: front.optimiser(base, meta, d), 2, 2)
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["onepass", "oho", "hd", "diff_through_opt", "metaoptimize_hf", "fixed"])
def test_tune_on_a_device_has_the_bits_of_the_cpu(method: str, tmp_path: Path) -> None:
    def trained(device: str) -> Any:
        net, x, y = cases.drawn("convolutions", device)
        data = (x[:3].flatten(0, 1), y[:3].flatten(0, 1)), (x[3], y[3])
        more: dict[str, Any] = {"steps": 9, "batch_size": 6, "seed": 1, "checkpoint": tmp_path / f"{device}.pt"}
        model, history = tune(net, cross_entropy, *data, method=method, **more)
        assert isinstance(model, nn.Module)
        return [*model.parameters(), *model.buffers()], history.to_frame()

    wanted, rows = trained("cpu")
    with pretended():
        found, others = trained("cuda")
        found = plain(found)
    assert equal(wanted, found) and rows.equals(others)


def test_restarts_on_a_device_have_the_bits_of_the_cpu(tmp_path: Path) -> None:
    def trained(device: str) -> Any:
        def make(number: int) -> Outer:
            task = cases.Task("mlp", device)
            return Outer(task, task.w * (1 + number), task.layout.sizes)

        hypers = [Hyper("lr", 0.05, windows=2), Hyper("momentum", 0.3), Hyper("weight_decay", 1e-3)]
        search = Restarts(make, sgd(), hypers, lambda steps: making.fds(steps, SignHalving(0.1)), [2, 3])
        progress = search.advance(search.start(), 4)
        search.save(progress, tmp_path / device)
        return search.advance(progress)  # a file is loaded to a device by torch itself, which has none here

    wanted = trained("cpu")
    with pretended():
        found = plain(trained("cuda"))
    assert wanted.number == found.number == 1 and equal(wanted.run[1:], found.run[1:])
