"""The recorder under every kind of interruption: whatever happens, the final table is that of an undisturbed study."""

import errno
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import fake_study
import fake_work
from fake_study import CHUNK, SEEDS, STUDY, FakeConfig
from gradtune.errors import GradtuneError
from gradtune.nets import compiled
from gradtune_book import papers, paths
from gradtune_book.records import jsonl, recorder, store, verification, workers
from gradtune_book.records.chunks import Job, cut
from recording import HERE, SCALE, TOTAL, alive, command, environment, lines_on_disk, table, wait_until


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of a study that was recorded in one go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADTUNE_RECORDS", str(tmp_path_factory.mktemp("undisturbed")))
        summary = recorder.record(STUDY, SCALE)
        assert (summary.recorded, summary.left, summary.total) == (TOTAL, 0, TOTAL)
        return table()


def assert_resumes(undisturbed: pd.DataFrame) -> None:
    """What is there is whole, and one more call makes it complete and equal to the undisturbed study, bit by bit."""
    before = len(table())
    for file in store.all_files():
        assert not jsonl.torn(file)
    summary = recorder.record(STUDY, SCALE)
    assert (summary.recorded, summary.left) == (TOTAL - before, 0)
    pd.testing.assert_frame_equal(table(), undisturbed, check_exact=True)
    lines = [line["key"] for file in store.all_files() for line in jsonl.read(file)]
    assert len(lines) == len(set(lines)) == TOTAL  # nothing twice


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    """A folder that gets a file for each process that computes something."""
    (tmp_path / "pids").mkdir()
    return tmp_path / "pids"


def test_chunks_agree_in_all_but_seed_and_keep_the_order() -> None:
    chunks = cut(STUDY, SCALE)
    assert [cfg for chunk in chunks for cfg in chunk.configs] == STUDY.runs(SCALE)
    assert [len(chunk.configs) for chunk in chunks] == [3, 3, 3, 1] * 2
    assert all(len({cfg.method for cfg in chunk.configs}) == 1 for chunk in chunks)
    assert [chunk.index for chunk in chunks] == list(range(8))


def test_a_second_call_has_nothing_to_do(undisturbed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    recorder.record(STUDY, SCALE)
    assert torch.get_num_threads() == threads
    monkeypatch.setenv("FAKE_FAIL", "0")  # a run would be noticed
    summary = recorder.record(STUDY, SCALE)
    assert (summary.recorded, summary.left) == (0, 0)
    assert summary.sentence() == "fake at scale laptop is complete: 0 recorded now, 20 in all"
    pd.testing.assert_frame_equal(table(), undisturbed, check_exact=True)
    assert undisturbed.loss.isna().sum() == 2  # the runs that diverge are among them


def test_a_chunk_recorded_in_part_is_run_whole_and_only_completed(undisturbed: pd.DataFrame, root: Path) -> None:
    recorder.record(STUDY, SCALE)
    for file in store.all_files():
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[i] for i in (0, 4, 5, 8)) + lines[9][:50])  # the last one is torn
    assert len(table()) == 8
    assert recorder.record(STUDY, SCALE).recorded == TOTAL - 8
    pd.testing.assert_frame_equal(table(), undisturbed, check_exact=True)


def test_ctrl_c_in_this_process(undisturbed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_INTERRUPT", "7")
    summary = recorder.record(STUDY, SCALE)
    assert (summary.interrupted, summary.recorded, summary.left) == (True, 2 * CHUNK, TOTAL - 2 * CHUNK)
    assert "6 recorded, 14 of 20 left; run the same command to go on" in summary.sentence()
    monkeypatch.delenv("FAKE_INTERRUPT")
    assert_resumes(undisturbed)


def test_ctrl_c_while_records_are_written_waits_for_them(
    undisturbed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def interrupted(descriptor: int) -> None:
        signal.raise_signal(signal.SIGINT)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        summary = recorder.record(STUDY, SCALE)
    assert (summary.interrupted, summary.recorded, len(table())) == (True, 0, CHUNK)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_resumes(undisturbed)


def test_ctrl_c_ends_the_workers_and_the_next_call_goes_on(undisturbed: pd.DataFrame, root: Path, pids: Path) -> None:
    with command(pids, 2, "--jobs", "2") as process:
        wait_until(lambda: lines_on_disk(root) >= CHUNK)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the workers too
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to go on" in out
    assert "Traceback" not in err
    assert not any(alive(pid.name) for pid in pids.iterdir())
    assert 0 < len(table()) < TOTAL
    assert_resumes(undisturbed)


def test_kill_9_frees_the_chunks_and_the_next_call_goes_on(undisturbed: pd.DataFrame, root: Path, pids: Path) -> None:
    with command(pids, 1) as process:
        wait_until(lambda: lines_on_disk(root) >= CHUNK)
        process.kill()
    assert 0 < len(table()) < TOTAL
    assert_resumes(undisturbed)


def test_two_processes_share_a_study(undisturbed: pd.DataFrame, root: Path, pids: Path) -> None:
    with command(pids, 2) as one, command(pids, 2) as two:
        said = [process.communicate(timeout=120) for process in (one, two)]
    assert 0 in (one.returncode, two.returncode) and {one.returncode, two.returncode} <= {0, 3}, said  # 3: not the last
    assert "have changed" not in f"{said}"
    assert {path.name for path in pids.iterdir()} == {str(one.pid), str(two.pid)}  # both had a part in it
    assert lines_on_disk(root) == TOTAL  # no run was recorded twice
    pd.testing.assert_frame_equal(table(), undisturbed, check_exact=True)  # the same batches, whoever runs them


def test_minutes_stop_between_chunks(undisturbed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    start = time.monotonic()
    summary = recorder.record(STUDY, SCALE, minutes=0.35 / 60)
    assert time.monotonic() - start < 0.35 + 0.1
    assert not summary.interrupted
    assert summary.recorded in (CHUNK, 2 * CHUNK, 3 * CHUNK)  # whole chunks, and the last one was expected to fit
    assert "stopped (time is up)" in summary.sentence()
    monkeypatch.delenv("FAKE_SECONDS")
    assert_resumes(undisturbed)


def test_no_chunk_starts_that_is_not_expected_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    assert recorder.record(STUDY, SCALE, minutes=0.5 / 60).recorded == CHUNK


def test_a_chunk_another_process_is_at_is_left_to_it(root: Path) -> None:
    lock = root / ".locks" / f"fake-{SCALE}.lock"
    lock.parent.mkdir(parents=True)
    code = f"import fcntl, sys; f = open({str(lock)!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 2); print(); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        summary = recorder.record(STUDY, SCALE)
        assert (summary.left, summary.reason) == (CHUNK, "another process has the rest")
        other.kill()
    assert recorder.record(STUDY, SCALE).recorded == CHUNK  # the claim is gone with its process


def test_records_that_went_meanwhile_are_not_said_to_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    append = jsonl.append

    def lost(file: Path, lines: list[jsonl.Line]) -> int:
        added = append(file, lines)
        file.unlink()
        return added

    monkeypatch.setattr(jsonl, "append", lost)
    summary = recorder.record(STUDY, SCALE)
    assert summary.left > 0 and summary.reason == "record files have changed meanwhile"


def test_workers_are_as_many_as_there_are_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(recorder.environment, "room_for_workers", lambda: 50)
    monkeypatch.setattr(workers, "share", lambda work, job, jobs, progress: asked.append(jobs))
    recorder.record(STUDY, SCALE, jobs=10_000)
    monkeypatch.setattr(recorder.environment, "room_for_workers", lambda: 2)
    recorder.record(STUDY, SCALE, jobs=10_000)
    assert asked == [len(cut(STUDY, SCALE)), 2]


def test_a_full_disk_is_reported_and_the_next_call_goes_on(
    undisturbed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter(range(2))
    write = os.write

    def small_disk(descriptor: int, content: bytes) -> int:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", small_disk)
        with pytest.raises(GradtuneError, match=r"slow\.jsonl cannot be written \(No space left on device\)"):
            recorder.record(STUDY, SCALE)
    assert len(table()) == 2 * CHUNK
    assert_resumes(undisturbed)


def test_a_run_that_raises_stops_the_call_and_is_named(
    undisturbed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAIL", "4")
    with pytest.raises(RuntimeError, match="made to fail") as caught:
        recorder.record(STUDY, SCALE)
    assert "'method': 'slow', 'seed': 4" in caught.value.__notes__[0]
    assert len(table()) == CHUNK
    monkeypatch.delenv("FAKE_FAIL")
    assert_resumes(undisturbed)


@pytest.mark.parametrize("name", papers.names())
def test_every_study_can_travel_to_workers(name: str) -> None:
    job = Job(papers.get(name), "smoke", "cpu", None)
    assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.parametrize(
    ("job", "error", "words"),
    [
        ("mistake", GradtuneError, "^a mistake$"),
        ("fault", RuntimeError, r"(?s)a worker failed.*fake_work\.py.*ZeroDivisionError: a fault"),
        ("killed", GradtuneError, r"2 of 2 workers died \(exit code -9;.*run the same command"),
    ],
)
def test_a_worker_that_fails_is_reported(job: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        workers.share(fake_work.work, job, 2, lambda runs: None)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(how: signal.Signals, group: bool) -> None:
    full = [sys.executable, str(HERE / "fake_work.py")]
    with subprocess.Popen(
        full, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        started = [process.stdout.readline().strip() for _ in range(2)]
        assert all(alive(pid) for pid in started)
        os.killpg(process.pid, how) if group else os.kill(process.pid, how)
        wait_until(lambda: not any(alive(pid) for pid in started), 60)
        _, err = process.communicate(timeout=60)
    assert err.count("Traceback") == (how is signal.SIGINT)  # the parent's KeyboardInterrupt, none of the workers'


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_that_still_import_end_with_their_parent(how: signal.Signals) -> None:
    code = (
        "import slow_import; from gradtune_book.records import workers; workers.share(slow_import.work, '', 2, print)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        started = [process.stdout.readline().strip() for _ in range(2)]
        since = time.monotonic()
        os.kill(process.pid, how)
        wait_until(lambda: not any(alive(pid) for pid in started), 30)
        assert time.monotonic() - since < 30
        _, err = process.communicate(timeout=60)
    assert "leaked" not in err and "Traceback" not in err


def test_workers_report_and_end() -> None:
    got: list[int] = []
    workers.share(fake_work.work, "", 2, got.append)
    assert sorted(got) == [1, 1, 2, 2]

    def interrupt(runs: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.share(fake_work.work, "endless", 2, interrupt)
    assert not multiprocessing.active_children()


def test_a_study_that_loses_results_is_found_out() -> None:
    with pytest.raises(GradtuneError, match="gave 2 results for 3 runs"):
        recorder.record(replace(STUDY, run=lambda configs, device: fake_study.run(configs, device)[:2]), SCALE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": "paperr"}, "unknown scale 'paperr'; did you mean 'paper'"),
        ({"scale": SCALE, "device": "gpu"}, "unknown device 'gpu'"),
        ({"scale": SCALE, "jobs": 0}, "jobs must be at least 1"),
        ({"scale": SCALE, "minutes": -1.0}, "minutes more than 0"),
        ({"scale": SCALE, "minutes": float("nan")}, "minutes more than 0"),
    ],
)
def test_bad_arguments_record_nothing(arguments: dict[str, Any], words: str, root: Path) -> None:
    with pytest.raises(GradtuneError, match=words):
        recorder.record(STUDY, **arguments)
    assert not root.exists()


def test_verify_agrees_with_what_this_machine_recorded() -> None:
    recorder.record(STUDY, SCALE)
    before = {file: file.read_bytes() for file in store.all_files()}
    found = list(verification.verify(STUDY, SCALE, count=TOTAL))
    assert len(found) == TOTAL
    assert all(each.same and each.difference == 0 for each in found)  # NaN equals NaN
    assert {file: file.read_bytes() for file in store.all_files()} == before


def test_verify_draws_at_random() -> None:
    recorder.record(STUDY, SCALE)
    draws = [{each.key for each in verification.verify(STUDY, SCALE, count=2, draw=random.Random(i))} for i in range(9)]
    assert all(len(draw) == 2 for draw in draws)
    assert len(set().union(*draws)) > 4


@pytest.mark.parametrize(("shift", "same"), [("1e-9", True), ("1e-4", False), ("nan", False)])
def test_verify_finds_other_numbers(shift: str, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.record(STUDY, SCALE)
    monkeypatch.setenv("FAKE_SHIFT", shift)
    found = [each for each in verification.verify(STUDY, SCALE, count=TOTAL) if each.seed != 3]
    assert len(found) == TOTAL - 2
    assert all(each.same == same and each.metric == "loss" and each.difference > 0 for each in found)


def test_verify_says_when_torch_computed_what_cpp_does_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations with two forms differ in their last digits: a record says which form it is of."""
    monkeypatch.setattr(compiled, "in_use", lambda: "none: relu_nets.cpp: no space left")
    recorder.record(STUDY, SCALE)
    assert {line["versions"]["compiler"] for file in store.all_files() for line in jsonl.read(file)} == {
        "none: relu_nets.cpp: no space left"
    }
    assert all(not each.elsewhere for each in verification.verify(STUDY, SCALE, count=TOTAL))
    monkeypatch.setattr(compiled, "in_use", lambda: "c++ 12.2.0")
    monkeypatch.setenv("FAKE_SHIFT", "1e-5")
    found = [each for each in verification.verify(STUDY, SCALE, count=TOTAL) if each.seed != 3]
    assert all(each.elsewhere == "compiler" and not each.same for each in found)
    assert all(each.sentence().endswith("recorded with another compiler)") for each in found)


def test_verify_finds_a_metric_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder.record(STUDY, SCALE)
    result = store.Result({"steps": 120})
    other = replace(STUDY, run=lambda configs, device: [result] * len(configs))
    assert not any(each.same for each in verification.verify(other, SCALE, count=3))


def test_verify_needs_something_recorded() -> None:
    with pytest.raises(GradtuneError, match=r"no run of fake is recorded at scale laptop; run `gradtune record` first"):
        list(verification.verify(STUDY, SCALE))
    with pytest.raises(GradtuneError, match="at least 1 run"):
        list(verification.verify(STUDY, SCALE, count=0))


def test_a_bumped_version_is_recorded_beside_the_old_lines() -> None:
    recorder.record(STUDY, SCALE)
    newer = replace(STUDY, configs=lambda sizes: [FakeConfig("slow", seed, version=2) for seed in range(4)])
    assert recorder.record(newer, SCALE).recorded == 4
    assert len(jsonl.read(store.path("fake", SCALE, "slow"))) == SEEDS[SCALE] + 4
    assert list(store.load(newer, SCALE).version) == [2] * 4


def test_lock_files_stay_out_of_the_records() -> None:
    recorder.record(STUDY, SCALE)
    assert [file.name for file in store.all_files()] == ["fast.jsonl", "slow.jsonl"]
    assert (paths.records_root() / ".locks").is_dir()
