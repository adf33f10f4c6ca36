"""Torch's checks of its optimisers, run on `gradtune.optim.MetaOptimize`, and the book's table of them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune.optim import MetaOptimize
from library.optim import checks_around, checks_hooks, checks_making, checks_processes, checks_state, checks_step
from library.optim.checks import CHECKS, counts, table
from library.optim.small import net, same, train, weights
from tools import ROOT

FILLED = (checks_making, checks_step, checks_hooks, checks_state, checks_around, checks_processes)
PAGE = ROOT / "book" / "optimiser_recipes.md"


@pytest.mark.parametrize("name", CHECKS)
def test_behaviour(name: str) -> None:
    check = CHECKS[name]
    if check.refused is None:
        check.run()
        return
    with pytest.raises(GradtuneError) as refusal:
        check.run()
    assert str(refusal.value) == check.refused


def test_torchs_own_inputs() -> None:
    """Of `torch.testing`: the mistakes of all optimisers in its own words, its arguments, its schedulers."""
    program = Path(__file__).with_name("torchs_own.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    tried = json.loads(done.stdout.splitlines()[-1])
    assert tried["mistakes"] >= 10 and tried["arguments"] >= 15 and tried["schedulers"] >= 3


@pytest.mark.skipif(not PAGE.is_file(), reason="the library's tests alone, without the book")
def test_the_page_has_the_table() -> None:
    """`PYTHONPATH=tests .venv/bin/python tests/library/optim/test_torch_behaviours.py` prints it."""
    text = PAGE.read_text(encoding="utf-8")
    held, refused = counts()
    assert f"{held + refused} behaviours: {held} hold, {refused} are refused" in text
    assert "\n".join(table()) in text


def earlier(state: dict[str, Any]) -> dict[str, Any]:
    """A state as an earlier version saved it: the learning rates in `state["meta"]`, groups without torch's flags."""
    old = copy.deepcopy(state)
    old["state"]["meta"] = old["param_groups"][0]["meta"]
    for group in old["param_groups"]:
        for name in ("meta", "foreach", "fused", "capturable", "differentiable"):
            del group[name]
    return old


@pytest.mark.parametrize("groups", ["scalar", "blockwise", "tensor"])
def test_a_state_of_an_earlier_version_goes_on_to_the_bit(groups: str) -> None:
    def make() -> tuple[Any, MetaOptimize]:
        model = net()
        parts = [{"params": model.first.parameters()}, {"params": model.last.parameters(), "lr": 0.02}]
        return model, MetaOptimize(parts, 0.01, meta="adam", groups=groups)

    model, optimizer = make()
    train(model, optimizer, 3)
    old = earlier(optimizer.state_dict())
    assert [name for name in old["state"] if isinstance(name, str)] == ["meta"]
    twin, its = make()
    twin.load_state_dict(model.state_dict())
    its.load_state_dict(old)
    assert set(its.state) == set(twin.parameters()) and "meta" in old["state"]
    for pair in ((model, optimizer), (twin, its)):
        train(*pair, 3, 3)
    assert torch.equal(weights(model), weights(twin)) and same(its.state_dict(), optimizer.state_dict())


def test_a_state_of_an_earlier_version_and_another_kind_is_refused() -> None:
    model = net()
    optimizer = MetaOptimize(model.parameters(), base="lion")
    train(model, optimizer, 1)
    with pytest.raises(
        GradtuneError, match="with base = 'lion', and this one has 'adamw'; load it into a MetaOptimize"
    ):
        MetaOptimize(net().parameters()).load_state_dict(earlier(optimizer.state_dict()))


def test_sharded_needs_processes() -> None:
    with pytest.raises(
        GradtuneError, match=r"sharded=True, and there is no process group; call torch\.distributed\.init"
    ):
        MetaOptimize(net().parameters(), sharded=True)


def test_a_cuda_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = MetaOptimize(model.parameters())
    train(model, optimizer, 1)
    before = weights(model)
    monkeypatch.setattr("gradtune.optim.metaoptimize._captured", lambda device: True)
    with pytest.raises(GradtuneError, match="a CUDA graph is being captured, and MetaOptimize cannot be part of it"):
        optimizer.step()
    assert torch.equal(weights(model), before)


if __name__ == "__main__":
    print(*table(), *counts(), sep="\n")
