"""The benchmark of the cost of a step: every row has a goal, runs, is kept and read again; peers compute the same."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError
from gradtune_book.records import store
from tools import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.timing import Pair, Timing, Work, interleaved

from benchmarks import at_once, kept, peers, report, rows, step_cost

CPU = torch.device("cpu")


def test_every_row_has_a_goal_and_a_published_figure() -> None:
    programs = kept.published()
    assert [r.name for r in rows.ROWS] == list(programs.index)
    assert all(r.goal is not None and r.goal < programs[r.name] for r in rows.ROWS)
    assert all(r.goal == 1.0 for r in rows.PEERS) and not any(r.goal for r in rows.GROWTH)
    assert len({r.name for r in step_cost.ALL}) == len(step_cost.ALL)


def test_timing_is_interleaved_and_the_first_calls_do_not_count() -> None:
    calls: list[str] = []
    pair = Pair(Work(lambda: calls.append("base"), 2), Work(lambda: calls.append("method"), 1))
    timing = interleaved(pair, 3, CPU)
    assert calls == ["base", "method", "method", "base", "base", "method", "method", "base"]
    assert len(timing.base) == len(timing.method) == 3
    assert Timing([1.0, 2.0, 4.0], [3.0, 4.0, 4.0]).ratio == 2.0


def test_a_quick_run_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert step_cost.main(["--rows", "fds-5", "columns-2", "--quick", "--repeats", "2"]) == 0
    out = capsys.readouterr().out
    line = next(text for text in out.splitlines() if text.startswith("FDS, LeNet"))
    assert "<= 5" in line and "6.4" in line and line.split()[-1] in ("yes", "no")
    assert "CPU time, 1 thread, 2 repeats, quick" in out
    assert next(text for text in out.splitlines() if text.startswith("forward mode")).count("<=") == 0


@pytest.mark.parametrize(("name", "low", "high"), [("baydin", 0.1, 10), ("fds-wrn", 2, 200)])
def test_other_rows_run(name: str, low: float, high: float) -> None:
    found, _ = step_cost.measure(step_cost.chosen([name], False), 1, CPU, quick=True)
    assert low < found[name].ratio < high


def test_an_absent_library_skips_its_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "higher" else find(n, *a))
    assert step_cost.main(["--rows", "peer-higher", "--quick", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "peer-higher: skipped, higher is not installed (pip install higher)" in out and "not run" in out


def test_a_missed_goal_is_explained() -> None:
    row = rows.Row("slow", "a slow row", lambda device, quick: _slow(), goal=1.5)
    _, notes = step_cost.measure([row], 2, CPU)
    assert notes[0].startswith("slow: ") and "misses the goal of 1.5; of the method's time: aten::mm " in notes[0]


def _slow() -> Pair:
    x = torch.randn(200, 200)
    return Pair(Work(lambda: x + x, 1), Work(lambda: x @ x @ x, 1))


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--rows", "ohoo"], "unknown row 'ohoo'; did you mean 'oho'?"),
        (["--repeats", "0"], "repeats = 0; expected a whole number >= 1"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_mistakes_are_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert step_cost.main(argv) == 2
    assert sentence in capsys.readouterr().err


def test_a_quick_run_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        step_cost.main(["--quick", "--record"])
    assert "leave out --quick or --record" in capsys.readouterr().err


def test_measurements_are_kept_and_read_again(tmp_path: Path) -> None:
    row = rows.ROWS[0]
    for method in ([4.0, 5.0, 6.0], [3.0, 4.0, 5.0]):
        file = kept.keep(row, Timing([1.0, 1.0, 1.0], method), CPU, tmp_path)
    assert file == tmp_path / "step_cost" / "paper" / "oho.jsonl"
    last = kept.load(root=tmp_path).loc["oho"]
    assert (last["seed"], last["ratio"], last["base_ms"], last["method_ms"]) == (1, 4.0, 1000.0, 4000.0)
    assert last["ratios"] == [3.0, 4.0, 5.0] and last["repeats"] == 3 and last["machine"].startswith("cpu: ")
    assert store.provenance(tmp_path).loc[0, ["study", "method", "runs"]].tolist() == ["step_cost", "oho", 2]
    shown = report.table(rows.ROWS[:2], {"oho": last}).reset_index()
    assert shown["met"].tolist() == ["yes", ""] and shown["cost"].tolist() == ["4.00 (3.00 to 5.00)", "not run"]
    assert kept.load(root=tmp_path / "none").empty


def test_the_recorded_table_is_whole() -> None:
    """Every row with a goal that needs nothing but the library has been measured, ten times at least."""
    found = kept.load()
    wanted = [r.name for r in (*rows.ROWS, *rows.GROWTH)]
    assert set(wanted) <= set(found.index)
    assert (found.loc[[r.name for r in rows.ROWS], "repeats"] >= 10).all()
    assert not found["dirty"].any()


# --- peers ------------------------------------------------------------------------------------------------------------


def same(name: str) -> None:
    subject = peers.classifier(peers.mlp([784, 16, 10]), [784], 20, CPU)
    l2 = torch.tensor(peers.L2, requires_grad=True)
    theirs = peers.PEERS[name](subject, l2)
    assert torch.allclose(peers.ours(subject, trace=False)().squeeze(), theirs, rtol=1e-4) and theirs.abs() > 1e-6


def test_unrolled_autograd_is_ours() -> None:
    same("unrolled")


def _stand_in(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(members)
    return module


@contextmanager
def _innerloop(net: nn.Module, optimiser: torch.optim.Optimizer) -> Iterator[tuple[Any, Any]]:
    """What `higher.innerloop_ctx` does, for plain SGD."""
    params = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}

    class Patched:
        def __call__(self, x: Tensor) -> Tensor:
            return torch.func.functional_call(net, params, (x,))

        def parameters(self) -> Any:
            return params.values()

    def step(loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
        lr = optimiser.param_groups[0]["lr"]
        params.update({n: p - lr * g for (n, p), g in zip(params.items(), grads, strict=True)})

    yield Patched(), SimpleNamespace(step=step)


class _MetaSGD:
    """What `torchopt.MetaSGD` does to the weights of a module."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        self.net, self.lr = net, lr

    def step(self, loss: Tensor) -> None:
        held = [(m, n, p) for m in self.net.modules() for n, p in m._parameters.items() if p is not None]
        grads = torch.autograd.grad(loss, [p for *_, p in held], create_graph=True)
        for (m, n, p), g in zip(held, grads, strict=True):
            m._parameters[n] = p - self.lr * g  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "members"), [("higher", {"innerloop_ctx": _innerloop}), ("torchopt", {"MetaSGD": _MetaSGD})]
)
def test_peers_get_the_same_problem(name: str, members: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, _stand_in(name, **members))
    same(name)


@pytest.mark.parametrize("name", ["higher", "torchopt"])
def test_installed_peers_compute_the_same(name: str) -> None:
    pytest.importorskip(name)
    same(name)


def test_runs_at_once_are_prepared_for_any_device() -> None:
    work = at_once.wide(2, CPU, batch=2)
    work.call()
    assert work.steps == 1 and at_once.energy(3, CPU).steps == 200


def test_an_unknown_row_is_an_error() -> None:
    with pytest.raises(GradtuneError, match="unknown row"):
        step_cost.chosen(["onepas"], False)
