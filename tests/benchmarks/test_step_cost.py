"""The benchmark of the cost of a step: every row has a goal, runs, is kept and read again; peers compute the same."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
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
from gradtune_book.papers.together import claims
from gradtune_book.records import jsonl, store
from tools import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.timing import Pair, Timing, Work, interleaved

from benchmarks import at_once, kept, peers, report, rows, step_cost

CPU = torch.device("cpu")


def test_every_row_has_a_goal_and_the_published_programs_have_rows() -> None:
    programs, names = kept.published(), [r.name for r in rows.ROWS]
    assert set(programs.index) <= set(names)
    assert all(r.goal is not None and r.ways for r in (*rows.ROWS, *rows.PEERS)) and not any(
        r.goal for r in rows.GROWTH
    )
    assert all(r.goal is None or r.goal < programs[r.name] for r in rows.ROWS if r.name in programs)
    keys = [r.key(way) for r in step_cost.ALL for way in r.ways]
    assert len(set(keys)) == len(keys)


def test_every_way_is_compared_with_its_like() -> None:
    """What the user calls with a bare loop, what is replayed with what is replayed, FDS's bare loop with a bare one."""
    for row in rows.ROWS:
        if row.study is not None:
            assert row.against["study"] == (rows.BARE if row.name.startswith("fds") else rows.REPLAYED)
        if row.tune is not None and not row.name.startswith("metaoptimize"):
            assert row.against["tune"] == rows.BARE


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


@pytest.mark.parametrize(
    ("name", "keys", "low", "high"),
    [
        ("baydin", {"baydin", "baydin-tune"}, 0.1, 20),
        ("fixed-adamw", {"fixed-adamw"}, 0.1, 20),
        ("metaoptimize-alone-fused", {"metaoptimize-alone-fused"}, 0.1, 50),
        ("peer-sgd-by-hand", {"peer-sgd-by-hand"}, 0.1, 20),
        ("fds-wrn", {"fds-wrn"}, 2, 200),
    ],
)
def test_other_rows_run(name: str, keys: set[str], low: float, high: float) -> None:
    found, _ = step_cost.measure(step_cost.chosen([name], False), 1, CPU, quick=True)
    assert set(found) == keys and all(low < timing.ratio < high for timing in found.values())


def test_an_absent_library_skips_its_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "higher" else find(n, *a))
    assert step_cost.main(["--rows", "peer-sgd-higher", "--quick", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "peer-sgd-higher: skipped, higher is not installed (pip install higher)" in out and "not run" in out


def test_a_missed_goal_is_explained() -> None:
    row = rows.Row("slow", "a slow row", tune=lambda device, quick: _slow(), goal=1.5)
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
    oho = next(r for r in rows.ROWS if r.name == "oho")
    for method in ([4.0, 5.0, 6.0], [3.0, 4.0, 5.0]):
        file = kept.keep(oho, "study", Timing([1.0, 1.0, 1.0], method), CPU, tmp_path)
    kept.keep(oho, "tune", Timing([1.0, 1.0], [5.5, 5.5]), CPU, tmp_path)
    assert file == tmp_path / "step_cost" / "paper" / "oho.jsonl"
    found = kept.load(root=tmp_path)
    last = found.loc["oho"]
    assert (last["seed"], last["ratio"], last["base_ms"], last["method_ms"]) == (1, 4.0, 1000.0, 4000.0)
    assert last["ratios"] == [3.0, 4.0, 5.0] and last["repeats"] == 3 and last["machine"].startswith("cpu: ")
    assert found["against"].to_dict() == {"oho": rows.REPLAYED, "oho-tune": rows.BARE}
    assert store.provenance(tmp_path).set_index("method")["runs"].to_dict() == {"oho": 2, "oho-tune": 1}
    shown = report.table([oho, rows.ROWS[0]], found.to_dict("index")).reset_index()
    assert shown["in a study"].tolist() == ["4.00 (3.00 to 5.00)", ""]
    assert shown["through tune"].tolist() == ["5.50 (5.50 to 5.50)", "not run"]
    assert shown["met"].tolist() == ["no", ""] and shown["ms a step"].tolist()[0] == "5,500 / 1,000"
    assert kept.load(root=tmp_path / "none").empty


def test_a_measurement_against_something_else_does_not_count(tmp_path: Path) -> None:
    """Lines from before `against` are relative to a bare loop, which is no like of a replayed one."""
    row = rows.Row("old", "old", study=lambda device, quick: _slow(), goal=2.0)
    file = kept.keep(row, "study", Timing([1.0], [1.5]), CPU, tmp_path)
    assert report.met(row, kept.load(root=tmp_path).to_dict("index")) is True
    each = jsonl.read(file)[0]
    del each["config"]["against"]
    named = json.dumps([each["study"], each["config"]], sort_keys=True)
    each["key"] = hashlib.sha256(named.encode()).hexdigest()[:12]
    file.unlink()
    jsonl.append(file, [each])
    found = kept.load(root=tmp_path)
    assert found.loc["old", "against"] == rows.BARE
    assert report.met(row, found.to_dict("index")) is None
    assert report.table([row], found.to_dict("index"))["in a study"].tolist() == ["not run"]


def test_the_recorded_table_is_whole() -> None:
    """Every row with a goal that needs nothing but the library has been measured, ten times at least."""
    recorded = kept.load()
    found = recorded.to_dict("index")
    assert [r.name for r in (*rows.ROWS, *rows.GROWTH) if report.measured(r, r.judged, found) is None] == []
    for row in rows.ROWS:
        assert all((m := report.measured(row, way, found)) and m["repeats"] >= 10 for way in row.ways), row.name
    assert not recorded["dirty"].any()


def test_the_goals_of_the_claims_are_those_of_the_rows_and_rest_on_the_same_measurements() -> None:
    goals = {name: goal for group in claims.GOALS.values() for name, goal in group.items()}
    assert goals == {row.key(row.judged): row.goal for row in (*rows.ROWS, *rows.PEERS)}
    found, table = kept.load().to_dict("index"), claims.step_costs()
    for row in (*rows.ROWS, *rows.PEERS, *rows.GROWTH):
        metrics = report.measured(row, row.judged, found)
        assert metrics and table.at(row.key(row.judged), claims.COST).value == pytest.approx(metrics["ratio"])


def test_the_readme_quotes_what_is_recorded(tmp_path: Path) -> None:
    """`step_cost.py --record` writes the paragraph; what a user gets, and no row of a study."""
    quote = report.quote(rows.ROWS, kept.load().to_dict("index"))
    assert f"{report.MARKS[0]}\n{quote}\n{report.MARKS[1]}" in (ROOT / "README.md").read_text(encoding="utf-8")
    metrics = {"fixed-sgd": {"ratio": 1.234}, "onepass": {"ratio": 9.0}, "onepass-tune": {"ratio": 1.5}}
    quote = report.quote(rows.ROWS, metrics)
    assert "MLP 784-128x3-10, batch 100: fixed SGD 1.23;" in quote and "UCI Energy: OnePass WD+LR+M 1.50." in quote
    assert report.quoted(f"a\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\nb", "new").splitlines()[2] == "new"


# --- peers ------------------------------------------------------------------------------------------------------------


def same(name: str) -> None:
    """Compare a peer's hypergradient with ours, in double precision."""
    if name == "hypertorch":
        (train, val), model = peers.features(CPU), peers.Linear()
        l2 = torch.ones(peers.FEATURES, requires_grad=True)
        theirs, found = peers.with_hypertorch(train, val, l2), peers.ours_of_features(model, train, val)
        assert torch.allclose(found, theirs, rtol=1e-3, atol=1e-7) and (theirs.abs() > 1e-6).all()
        return
    subject = peers.classifier(peers.mlp([784, 16, 10]).double(), [784], 20, CPU)
    subject.train, subject.val = ((x.double(), y) for x, y in (subject.train, subject.val))
    decay = torch.tensor(peers.DECAY, dtype=torch.float64, requires_grad=True)
    by = {"sgd-by-hand": peers.unrolled, "sgd-higher": peers.with_higher, "adam-torchopt": peers.with_torchopt}
    theirs = by[name](subject, decay)
    assert torch.allclose(peers.ours(subject, name.split("-")[0]).to(theirs), theirs, rtol=1e-4)
    assert theirs.abs() > 1e-6


def test_unrolled_autograd_is_ours() -> None:
    same("sgd-by-hand")


def _stand_in(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(members)
    return module


@contextmanager
def _innerloop(net: nn.Module, optimiser: torch.optim.Optimizer, override: Any) -> Iterator[tuple[Any, Any]]:
    """What `higher.innerloop_ctx` does, for SGD with a weight decay."""
    params = {n: p.detach().clone().requires_grad_() for n, p in net.named_parameters()}
    lr, decay = optimiser.param_groups[0]["lr"], override["weight_decay"][0]

    def step(loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
        params.update({n: p - lr * (g + decay * p) for (n, p), g in zip(params.items(), grads, strict=True)})

    yield lambda x: torch.func.functional_call(net, params, (x,)), SimpleNamespace(step=step)


class _MetaAdam:
    """What `torchopt.MetaAdam` does to the weights of a module."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        self.net, self.lr, self.k = net, lr, 0
        self.moments: list[tuple[Tensor | float, Tensor | float]] = []

    def step(self, loss: Tensor) -> None:
        held = [(m, n, p) for m in self.net.modules() for n, p in m._parameters.items() if p is not None]
        grads = torch.autograd.grad(loss, [p for *_, p in held], create_graph=True)
        self.k, before = self.k + 1, self.moments or [(0.0, 0.0)] * len(held)
        self.moments = [(0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g) for (m, v), g in zip(before, grads, strict=True)]
        for (module, n, p), (m, v) in zip(held, self.moments, strict=True):
            root = (v / (1 - 0.999**self.k)).sqrt()  # type: ignore[union-attr]
            module._parameters[n] = p - self.lr * m / (1 - 0.9**self.k) / (root + 1e-8)  # type: ignore[assignment]


def _reverse(history: Any, hparams: Any, maps: Any, outer: Any, set_grad: bool) -> list[Tensor]:
    """What `hypergrad.reverse` does, for one weight and one hyperparameter."""
    weights = [w.detach().requires_grad_() for (w,) in history]
    (alpha,), total = torch.autograd.grad(outer([weights[-1]], hparams), weights[-1:]), torch.zeros_like(hparams[0])
    for w, step in zip(weights[-2::-1], maps, strict=True):
        alpha, share = torch.autograd.grad(step([w], hparams), [w, *hparams], [alpha])
        total = total + share
    return [total]


STAND_INS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd-higher": ("higher", {"innerloop_ctx": _innerloop}),
    "adam-torchopt": ("torchopt", {"MetaAdam": _MetaAdam}),
    "hypertorch": ("hypergrad", {"reverse": _reverse}),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_peers_get_the_same_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library, members = STAND_INS[name]
    monkeypatch.setitem(sys.modules, library, _stand_in(library, **members))
    same(name)


@pytest.mark.parametrize("name", STAND_INS)
def test_installed_peers_compute_the_same(name: str) -> None:
    try:
        peers.PEERS[name].library()
    except peers.Absent as absent:
        pytest.skip(str(absent))
    same(name)


def test_a_library_of_the_same_name_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypergrad", _stand_in("hypergrad"))
    with pytest.raises(peers.Absent, match="pip install git"):
        peers.PEERS["hypertorch"].library()


def test_runs_at_once_are_prepared_for_any_device() -> None:
    work = at_once.wide(2, CPU, batch=2)
    work.call()
    assert work.steps == 1 and at_once.energy(3, CPU).steps == 200


def test_an_unknown_row_is_an_error() -> None:
    with pytest.raises(GradtuneError, match="unknown row"):
        step_cost.chosen(["onepas"], False)
