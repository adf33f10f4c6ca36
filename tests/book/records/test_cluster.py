"""A cluster of several nodes on this machine: whatever dies, the table is that of a study recorded in one process."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fake_study
from fake_study import CHUNK, STUDY
from gradtune.errors import GradtuneError
from gradtune_book.records import cluster, jsonl, recorder, store
from gradtune_book.records import environment as place
from recording import SCALE, TOTAL, alive, command, environment, lines_on_disk, wait_until

pytest.importorskip("ray", reason="Ray is not installed (the extra `cluster` of lib/pyproject.toml)")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
APART = ("date", "wall_s", "cpu_s", "device", "peak_mb")  # time and place


class Nodes:
    """A cluster whose head computes nothing, and two nodes of one core; the file that steers the made-up study."""

    def __init__(self, folder: Path) -> None:
        self.file, self.pids = folder / "steer", folder / "pids"
        self.pids.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            more = {"FAKE_FILE": str(self.file), "RAY_USAGE_STATS_ENABLED": "0"}
            for name, value in environment(**more).items():
                patch.setenv(name, value)
            self.cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0})
            for _ in range(2):
                self.add()
        self.address = self.cluster.address

    def add(self, **more: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(FAKE_FILE=str(self.file), RAY_USAGE_STATS_ENABLED="0").items():
                patch.setenv(name, value)
            return self.cluster.add_node(**{**SMALL, **more})

    def steer(self, **variables: object) -> None:
        """Say what the made-up study does from now on; the processes that compute leave their numbers in `pids`."""
        for each in self.pids.iterdir():
            each.unlink()
        lines = [f"FAKE_{name}={value}\n" for name, value in {"PIDS": self.pids, **variables}.items()]
        self.file.with_suffix(".new").write_text("".join(lines))
        self.file.with_suffix(".new").replace(self.file)

    def at_work(self) -> list[str]:
        return [each.name for each in self.pids.iterdir() if alive(each.name)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    yield made
    made.cluster.shutdown()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> Path:
    nodes.steer()
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, jsonl.Line]:
    """The records of the study, computed in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADTUNE_RECORDS", str(tmp_path_factory.mktemp("local")))
        assert recorder.record(STUDY, SCALE).left == 0
        return recorded()


def recorded() -> dict[str, jsonl.Line]:
    """What is recorded by key, each line once, without what says when and where."""
    lines = [line for file in store.all_files() for line in store.at_home(file)]
    found = {line["key"]: {k: v for k, v in line.items() if k not in APART} for line in lines}
    assert len(found) == len(lines)
    return found


def on(nodes: Nodes, *arguments: str) -> tuple[str, ...]:
    return ("--engine", "ray", "--address", nodes.address, *arguments)


def test_records_are_those_of_one_process(nodes: Nodes, local: dict[str, jsonl.Line]) -> None:
    nodes.steer(PROCESSES=2)  # no chunk ends before two processes are at work
    summary = recorder.record(STUDY, SCALE, engine=cluster.Ray(nodes.address))
    assert (summary.recorded, summary.left, summary.reason) == (TOTAL, 0, "")
    assert recorded() == local
    names = {each.name for each in nodes.pids.iterdir()}
    assert len(names) >= 2 and str(os.getpid()) not in names
    nodes.steer(FAIL=0)  # a run would be noticed
    assert recorder.record(STUDY, SCALE, engine=cluster.Ray(nodes.address)).recorded == 0


def test_the_command(nodes: Nodes, tmp_path: Path, local: dict[str, jsonl.Line]) -> None:
    with command(tmp_path, 1, *on(nodes)) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "fake at scale laptop is complete: 20 recorded now, 20 in all\n"), err
    assert recorded() == local


def assert_goes_on(local: dict[str, jsonl.Line]) -> None:
    """What is there is whole, and one more call of the same kind makes it what one process records."""
    before = len(recorded())
    for file in store.all_files():
        assert not jsonl.torn(file)
    assert recorder.record(STUDY, SCALE).recorded == TOTAL - before
    assert recorded() == local


def test_a_node_that_dies_costs_nothing(nodes: Nodes, root: Path, tmp_path: Path, local: dict[str, jsonl.Line]) -> None:
    doomed = nodes.add()
    nodes.steer(SECONDS=5, PROCESSES=3)
    with command(tmp_path, 1, *on(nodes)) as process:
        wait_until(lambda: lines_on_disk(root) >= 3 * CHUNK)  # three chunks, which have ended together
        mark = time.time()
        wait_until(lambda: all(each.stat().st_mtime > mark for each in nodes.pids.iterdir()))  # three more are at work
        nodes.cluster.remove_node(doomed, allow_graceful=False)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert re.search(r"is lost \((NodeDied|WorkerCrashed)Error\); they are handed out again", err + out), err + out
    assert recorded() == local


def test_a_worker_that_is_killed_costs_nothing(nodes: Nodes, root: Path, tmp_path: Path, local: Any) -> None:
    nodes.steer(SECONDS=1)
    with command(tmp_path, 1, *on(nodes)) as process:
        wait_until(lambda: bool(nodes.at_work()))
        os.kill(int(nodes.at_work()[0]), signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "is lost (WorkerCrashedError); they are handed out again" in err + out
    assert recorded() == local


def test_a_chunk_that_kills_every_worker_is_named_and_all_else_recorded(nodes: Nodes, local: Any) -> None:
    nodes.steer(KILL=7)
    with pytest.raises(
        GradtuneError, match=r"2 chunks of fake lost 3 workers each.*'seed': 6.*1 chunks more"
    ) as caught:
        recorder.record(STUDY, SCALE, engine=cluster.Ray(nodes.address))
    assert "run the same command" in str(caught.value)
    assert recorded() == {key: line for key, line in local.items() if line["config"]["seed"] not in (6, 7, 8)}
    nodes.steer()
    assert_goes_on(local)


def test_kill_9_of_the_driver(nodes: Nodes, root: Path, tmp_path: Path, local: Any) -> None:
    nodes.steer(SECONDS=0.5)
    with command(tmp_path, 1, *on(nodes)) as process:
        wait_until(lambda: lines_on_disk(root) >= CHUNK)
        process.kill()
    assert 0 < len(recorded()) < TOTAL
    wait_until(lambda: not nodes.at_work())
    nodes.steer()
    with command(tmp_path, 1, *on(nodes)) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert recorded() == local


def test_ctrl_c(nodes: Nodes, root: Path, tmp_path: Path, local: Any) -> None:
    nodes.steer(SECONDS=0.5)
    with command(tmp_path, 1, *on(nodes)) as process:
        wait_until(lambda: lines_on_disk(root) >= CHUNK)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "stopped (interrupted)" in out and "Traceback" not in err
    wait_until(lambda: not nodes.at_work())
    assert 0 < len(recorded()) < TOTAL
    assert_goes_on(local)


def test_minutes_end_it_and_what_has_begun_is_kept(nodes: Nodes, local: Any) -> None:
    nodes.steer(SECONDS=1)
    recorder.record(STUDY, SCALE, minutes=0.001 / 60, engine=cluster.Ray(nodes.address))
    assert not recorded()
    start = time.monotonic()
    summary = recorder.record(STUDY, SCALE, minutes=12 / 60, engine=cluster.Ray(nodes.address, jobs=50))
    assert time.monotonic() - start < 40
    if summary.left:  # a busy machine
        assert summary.reason == "time is up" and "run the same command" in summary.sentence()
    assert_goes_on(local)


def test_chunks_that_cannot_begin_are_given_back(nodes: Nodes, root: Path, tmp_path: Path, local: Any) -> None:
    """More chunks than cores, each of which takes all of the time: those that wait are not waited for."""
    nodes.steer(SECONDS=20)
    with command(tmp_path, 1, *on(nodes, "--jobs", "50", "--minutes", str(30 / 60))) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 3, out + err
    assert re.search(r"stopped \(time is up\): \d+ recorded, \d+ of 20 left", out)
    assert CHUNK <= len(recorded()) <= 2 * CHUNK
    nodes.steer()
    assert_goes_on(local)


def test_an_error_of_the_study_stops_the_call_and_is_named(nodes: Nodes, local: Any) -> None:
    nodes.steer(FAIL=4)
    with pytest.raises(RuntimeError, match=r"(?s)a worker failed.*made to fail.*'seed': 4"):
        recorder.record(STUDY, SCALE, engine=cluster.Ray(nodes.address))
    nodes.steer()
    assert_goes_on(local)


def test_a_mistake_is_one_sentence_and_names_the_node(nodes: Nodes) -> None:
    other = replace(STUDY, run=fake_study.run_short)
    with pytest.raises(GradtuneError, match=r"^on the node \S+: study 'fake' gave 2 results for 3 runs$"):
        recorder.record(other, SCALE, engine=cluster.Ray(nodes.address))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"torch": "0.1", "python": "2.7"},
            r"has python \S+ where 2.7 is used here and torch \S+ where 0.1 is used here",
        ),
        ({"code": "0"}, "has other code of gradtune or gradtune_book than this checkout, under the same version"),
    ],
)
def test_a_node_with_other_code_is_refused(
    nodes: Nodes, changed: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {**place.code(), **changed}
    monkeypatch.setattr(place, "code", lambda: code)
    with pytest.raises(GradtuneError, match=rf"^the node \S+ {words}.*; install the same on all nodes"):
        recorder.record(STUDY, SCALE, engine=cluster.Ray(nodes.address))
    assert not recorded()


def test_a_node_that_lacks_the_study_is_refused(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("from fake_study import *\ndef run(configs, device):\n    return []\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    with pytest.raises(GradtuneError, match="a node of the cluster cannot import only_here; every node needs"):
        recorder.record(replace(STUDY, run=only_here.run), SCALE, engine=cluster.Ray(nodes.address))


@pytest.mark.parametrize(("address", "words"), [("127.0.0.1:1", "refused"), ("nowhere.invalid:6379", ""), ("?", "")])
def test_an_address_where_nothing_is_costs_seconds(address: str, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(
        GradtuneError, match=rf"^no Ray cluster can be used at {re.escape(address)} \(.*{words}.*\); start"
    ):
        recorder.record(STUDY, SCALE, engine=cluster.Ray(address))
    assert time.monotonic() - start < 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_gpus(nodes: Nodes) -> None:
    with pytest.raises(GradtuneError, match="takes the device cpu or cuda, of which Ray chooses, not 'cuda:1'"):
        recorder.record(STUDY, SCALE, "cuda:1", engine=cluster.Ray(nodes.address))
    with pytest.raises(GradtuneError, match="the Ray cluster has no GPU; start a node that has"):
        recorder.record(STUDY, SCALE, "cuda", engine=cluster.Ray(nodes.address))
    node = nodes.add(num_gpus=1)
    try:
        with pytest.raises(GradtuneError, match=r"^on the node \S+: device 'cuda' was asked for, but torch sees 0"):
            recorder.record(STUDY, SCALE, "cuda", engine=cluster.Ray(nodes.address))
    finally:
        nodes.cluster.remove_node(node, allow_graceful=False)
