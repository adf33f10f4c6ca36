"""Runs that are killed in their middle go on from their checkpoint, to the same record."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import fake_study
from gradtune.errors import GradtuneError
from gradtune.training import checkpoints
from gradtune_book import papers
from gradtune_book.records import engines, environment, jsonl, recorder, sittings, store
from gradtune_book.records.chunks import cut
from gradtune_book.records.sittings import Sitting
from killed import Killed, after, once, plain

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path))
    monkeypatch.setenv("GRADTUNE_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(checkpoints.os, "fsync", lambda descriptor: None)  # a process that is killed needs none
    return tmp_path


class Loop(NamedTuple):
    """Runs of a study in small: which, what is changed in them, and the chances to save at which each try is killed."""

    study: str
    which: dict[str, Any]
    changes: dict[str, Any]
    kills: tuple[int, ...]


_FDS, _META = "fds_cifar_regret", "metaoptimize_cifar"
LOOPS = {
    "text": Loop("clip_ptb", {"method": "Clip5"}, {}, (3, 4, 5)),
    "text, sensitivity forgotten": Loop("clip_ptb", {"method": "Unroll5"}, {}, (3, 4, 5)),
    "mnist": Loop("clip_mnist", {"method": "Clip10"}, {"steps": 300}, (3, 4, 2)),
    "OHO": Loop("oho_layerwise", {"sets": 6}, {}, (3, 4, 2)),
    "OHO, then fixed": Loop("oho_dynamics", {"part": "decay reset", "after": "fixed"}, {}, (3, 6, 2)),
    "OHO, falling": Loop("oho_dynamics", {"method": "Step"}, {}, (3, 4, 2)),
    "OHO, correlations": Loop("oho_dynamics", {"part": "norms"}, {}, (7, 20, 5)),
    "OHO's program": Loop("oho_dynamics", {"method": "program"}, {"epochs": 2}, (7, 50, 20)),
    "OHO's searches": Loop("oho_performance", {"search": "bayes"}, {}, (4, 10, 7)),
    "images": Loop("image_horizon", {"method": "WD+LR+M"}, {"steps": 80}, (2, 4, 2)),
    "images, again": Loop("image_horizon", {"trainings": 3}, {}, (2, 2)),
    "images, medium": Loop("image_horizon", {"method": "Medium-Diff-through-Opt"}, {}, (2, 2)),
    "images, one pass": Loop("onepass_resnet", {"method": "WD+LR+M"}, {"steps": 80, "readings": 4}, (2, 2)),
    "text, one pass": Loop("onepass_language", {"method": "WD+LR+M"}, {}, (2, 3, 2)),
    "text, a stepped rate": Loop("onepass_language", {"method": "Random-xLR"}, {}, (3, 2)),
    "text, the best of three": Loop("onepass_language", {"method": "Random-3-batched"}, {"steps": 30}, (2, 3)),
    "restarts": Loop(_FDS, {"method": "FDS"}, {"steps": 60}, (2, 4, 3)),
    "restarts, online": Loop(_FDS, {"method": "HD"}, {"batch": 16}, (2, 3, 2)),
    "a search": Loop(_FDS, {"method": "Random"}, {"steps": 60, "budget_steps": 200}, (2, 4, 3)),
    "a search by a model": Loop(_FDS, {"method": "BOHB"}, {"budget_steps": 70}, (3, 4, 5)),
    "restarts, reverse mode": Loop("fds_schedules", {"method": "FDS"}, {}, (2, 2)),
    "one training": Loop(_FDS, {"method": "Grid"}, {"steps": 160}, (2, 2)),
    "a module": Loop(_META, {"method": "MetaOptimize, scalar"}, {}, (3, 2, 4)),
    "a module in blocks": Loop(_META, {"method": "MetaOptimize, blocks"}, {}, (3, 2, 4)),
    "a module, falling": Loop(_META, {"method": "warm-up and cosine"}, {}, (3, 2, 4)),
    "words": Loop("metaoptimize_language", {"method": "MetaOptimize, scalar", "base": "Lion"}, {}, (3, 9, 4)),
    "tasks in turn": Loop("metaoptimize_continual", {}, {}, (7, 90, 40)),
    "sensitivity": Loop("metaoptimize_sensitivity", {}, {}, (7, 9, 4)),
}


def batch_of(loop: Loop) -> list[Any]:
    """The first batch of the study's runs in small that has these fields, changed, at most two runs of it."""
    chunks = cut(papers.get(loop.study), "smoke")
    fits = (c.configs for c in chunks if all(getattr(c.configs[0], n) == v for n, v in loop.which.items()))
    found = [replace(c, **loop.changes) for c in next(fits)[:2]]
    return 2 * found if loop.which.get("method") == "program" else found


@pytest.mark.parametrize("name", LOOPS)
def test_a_run_that_is_killed_goes_on_to_the_same_result(
    name: str, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, batch = LOOPS[name], batch_of(LOOPS[name])
    study = papers.get(loop.study)
    with monkeypatch.context() as patch, chances() as all_of_them:
        patch.setenv("GRADTUNE_CHECKPOINT_SECONDS", "never")
        expected = once(study, batch)
    for ticks in loop.kills:
        with pytest.raises(Killed), after(ticks):
            once(study, batch)
        assert len(list(records.rglob("*.pt"))) == 1
    with chances() as left:
        found = once(study, batch)
    assert plain(found) == plain(expected)
    assert len(left) == len(all_of_them) - sum(ticks - 1 for ticks in loop.kills)  # no step was taken twice


@contextmanager
def chances() -> Iterator[list[int]]:
    """Note how often a run could have been saved inside the `with` block."""
    noted: list[int] = []
    tick = Sitting.tick

    def counting(self: Sitting, spent: Any = None) -> None:
        noted.append(1)
        tick(self, spent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sitting, "tick", counting)
        yield noted


def counted(batch: Sequence[Any], device: torch.device) -> list[store.Result]:
    """A made-up study that counts to thirty."""
    number, log = 0, Path(os.environ["COUNTED"])
    with sittings.current().part("number", lambda: {"number": number}) as earlier:
        number = 0 if earlier is None else earlier["number"]
        while number < 30:
            number += 1
            with log.open("a") as file:
                file.write(f"{number}\n")
            sittings.current().tick()
    return [store.Result({"number": number}, dataset="none") for _ in batch]


COUNTING = replace(fake_study.STUDY, name="counting", run=counted, chunk=4)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "log"
    monkeypatch.setenv("COUNTED", str(file))
    return file


def numbers(log: Path) -> list[int]:
    found = [int(line) for line in log.read_text().split()]
    log.unlink()
    return found


def checkpoint(records: Path) -> Path:
    (file,) = records.rglob("*.pt")
    return file


def test_recording_goes_on_where_it_was_killed_and_leaves_no_checkpoint(log: Path, records: Path) -> None:
    with pytest.raises(Killed), after(20):
        recorder.record(COUNTING, "smoke")
    assert numbers(log) == list(range(1, 21)) and checkpoint(records).parent == records / ".unfinished/counting/smoke"
    assert not store.all_files()
    assert recorder.record(COUNTING, "smoke").left == 0
    assert numbers(log)[:12] == [*range(20, 31), 1]  # 19 were saved
    assert not list(records.rglob("*.pt"))


def test_verification_neither_reads_nor_leaves_one(log: Path, records: Path) -> None:
    chunk = cut(COUNTING, "smoke")[0]
    with pytest.raises(Killed), after(20):
        recorder.record(COUNTING, "smoke")
    log.unlink()
    engines.compute(COUNTING, "smoke", chunk, CPU)
    assert numbers(log)[0] == 1 and checkpoint(records)


def test_a_short_run_writes_nothing(log: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADTUNE_CHECKPOINT_SECONDS")
    with pytest.raises(Killed), after(20):
        recorder.record(COUNTING, "smoke")
    assert not (records / ".unfinished").exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another program's"])
def test_a_damaged_checkpoint_is_named_and_the_run_starts_anew(
    damage: str, log: Path, records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Killed), after(20):
        recorder.record(COUNTING, "smoke")
    file, content = checkpoint(records), checkpoint(records).read_bytes()
    log.unlink()
    if damage == "another program's":
        checkpoints.save({"tuner": 1}, file)
    else:
        made = {"cut": content[:-70], "changed": content[:200] + b"x" + content[201:], "empty": b""}
        file.write_bytes(made[damage])
    recorder.record(COUNTING, "smoke")
    said = capsys.readouterr()
    assert f"{file} is no" in said.out + said.err and "set aside as" in said.out + said.err
    assert numbers(log)[0] == 1 and file.with_suffix(".aside").exists()


@pytest.mark.parametrize("topic", ["device", "code", "version", "batch of runs"])
def test_a_checkpoint_of_something_else_is_set_aside(
    topic: str, log: Path, records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Killed), after(20):
        recorder.record(COUNTING, "smoke")
    log.unlink()
    if topic == "device":
        monkeypatch.setattr(environment, "describe", lambda device: "cuda: A Card")
    elif topic == "batch of runs":
        file = checkpoint(records)
        state = checkpoints.load(file, CPU, "sitting")
        state["sitting"][topic] = "0123456789ab"
        checkpoints.save(state, file)
    else:
        here = environment.code()
        changed = {"code": "123-456"} if topic == "code" else {"torch": "2.99.0"}
        monkeypatch.setattr(environment, "code", lambda: {**here, **changed})
    recorder.record(COUNTING, "smoke")
    said = capsys.readouterr()
    assert f"is of another {topic} (" in said.out + said.err
    assert numbers(log)[0] == 1


def test_a_full_disk_is_told_once_and_costs_nothing_computed(
    log: Path, records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Killed), after(20):
        recorder.record(COUNTING, "smoke")
    log.unlink()
    before = checkpoint(records).read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.os, "fsync", full)
        patch.setattr(jsonl.os, "write", full)
        with pytest.raises(GradtuneError, match="cannot be written"):
            recorder.record(COUNTING, "smoke")
    said = capsys.readouterr()
    assert (said.out + said.err).count("the run goes on, and would start from its last checkpoint") == 1
    assert numbers(log) == list(range(20, 31)) and checkpoint(records).read_bytes() == before
    assert recorder.record(COUNTING, "smoke").left == 0
    assert numbers(log)[0] == 20


def test_what_a_killed_save_leaves_is_removed(records: Path) -> None:
    part = records / ".a.pt.123.part"
    part.touch()
    Sitting(records / "a.pt")
    assert not part.exists()


def test_a_part_that_is_not_reached_yet_keeps_its_state(records: Path) -> None:
    file = records / "a.pt"

    def killed(inner: bool) -> None:
        sitting = Sitting(file, pause=0)
        with sitting.part("outer", lambda: {"x": 1}) as outer:
            if inner:
                with sitting.part("inner", lambda: {"y": torch.ones(2)}):
                    sitting.tick()
            else:
                assert outer == {"x": 1}
                sitting.tick()

    killed(True)
    killed(False)
    with Sitting(file).part("inner", dict) as earlier:
        assert torch.equal(earlier["y"], torch.ones(2))


def test_a_save_takes_a_twentieth_of_the_time_at_most(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(sittings.time, "monotonic", lambda: now)
    saved: list[float] = []

    def slow(state: Any, path: Path) -> None:
        nonlocal now
        saved.append(now)
        now += 10.0

    monkeypatch.setattr(checkpoints, "save", slow)
    sitting = Sitting(records / "a.pt", pause=60.0)
    with sitting.part("a", dict):
        while now < 1000:
            sitting.tick()
            now += 1.0
    assert saved == [60.0, 270.0, 480.0, 690.0, 900.0]


def test_seconds_of_earlier_sittings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = environment.Stopwatch(CPU), environment.Stopwatch(CPU)
    first.wall_s, first.cpu_s = 100.0, 50.0
    second.go_on(first.state())
    with second:
        pass
    assert 100.0 <= second.wall_s < 101.0 and 50.0 <= second.cpu_s < 51.0


@pytest.mark.parametrize(("given", "expected"), [("", 60.0), ("0.5", 0.5), ("never", math.inf)])
def test_the_pause_can_be_set(given: str, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_CHECKPOINT_SECONDS", given)
    assert sittings.pause() == expected


@pytest.mark.parametrize("given", ["-1", "often", "inf", "nan"])
def test_a_pause_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_CHECKPOINT_SECONDS", given)
    with pytest.raises(GradtuneError, match=r"GRADTUNE_CHECKPOINT_SECONDS is .*; expected a number of seconds"):
        sittings.pause()
