"""Other machines: no fcntl, no resource, another unit of memory, folders that cannot be named."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.records import environment, jsonl, locks


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """A machine with msvcrt in place of fcntl; the byte locks that are held, by file and byte."""
    held: list[tuple[int, int]] = []

    def locking(descriptor: int, mode: int, count: int) -> None:
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in held:
            raise OSError(36, "Resource deadlock avoided")
        held.append(place)

    fake = types.SimpleNamespace(locking=locking, LK_LOCK=1, LK_NBLCK=2)
    monkeypatch.setattr(locks, "_fcntl", None)
    monkeypatch.setattr(locks, "_msvcrt", fake)
    monkeypatch.delattr(os, "pread")
    yield held


def test_recording_needs_no_fcntl(tmp_path: Path, windows: list[tuple[int, int]]) -> None:
    descriptor = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    assert locks.claim(descriptor, 3) and locks.claim(descriptor, 4) and not locks.claim(descriptor, 3)
    os.close(descriptor)
    windows.clear()  # as closing does there
    assert jsonl.append(tmp_path / "fake" / "smoke" / "b.jsonl", []) == 0 and len(windows) == 1


def test_the_recorder_is_imported_where_neither_is() -> None:
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None; "
        "from gradtune_book.records import environment, locks, recorder, workers; "
        "print(locks._fcntl, environment._peak_since_start_mb())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["None", "None"]


@pytest.mark.parametrize(("platform", "mb"), [("linux", 3.0), ("darwin", 3 / 1024)])
def test_peak_memory_has_the_unit_of_the_system(platform: str, mb: float, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: types.SimpleNamespace(ru_maxrss=3 * 1024))
    monkeypatch.setitem(sys.modules, "resource", fake)
    monkeypatch.setattr(sys, "platform", platform)
    assert environment._peak_since_start_mb() == mb
    monkeypatch.setitem(sys.modules, "resource", None)
    assert environment._peak_since_start_mb() is None


def test_workers_are_no_more_than_there_is_work_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= environment.room_for_workers() <= 2 * (os.cpu_count() or 1)
    monkeypatch.setattr(environment, "_WORKER_MB", 10**9)
    assert environment.room_for_workers() == 1


@pytest.mark.parametrize("name", ["DATA", "RECORDS"])
def test_a_folder_of_an_unknown_user_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GRADTUNE_{name}", "~nosuchuser/data")
    with pytest.raises(GradtuneError, match=rf"'~nosuchuser/data' in GRADTUNE_{name} cannot be found"):
        paths.data_root() if name == "DATA" else paths.records_root()
