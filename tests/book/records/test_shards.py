"""Studies recorded in parts, and the parts brought together: nothing twice, nothing left out or decided unsaid."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from fake_study import STUDY
from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.records import chunks, jsonl, merging, proof, recorder, store
from gradtune_book.records.chunks import Shard
from recording import SCALE, TOTAL, table


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


def shards(folder: Path, of: int, *numbers: int) -> list[Path]:
    """Record some shards, each in a folder of its own."""
    made = [folder / f"shard-{number}" for number in numbers or range(1, of + 1)]
    for number, each in zip(numbers or range(1, of + 1), made):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GRADTUNE_RECORDS", str(each))
            assert recorder.record(STUDY, SCALE, shard=Shard(number, of)).left == 0
    return made


def pieces(folder: Path) -> list[bytes]:
    """The lines below a folder, as they are on disk."""
    return [piece for file in store.all_files(folder) for piece in file.read_bytes().splitlines()]


def change(file: Path, **metrics: float) -> None:
    """Give the first run of a file other numbers, with a right digest: evidence against evidence."""
    first, *rest = jsonl.read(file)
    file.write_bytes(b"".join(proof.write(line) for line in [first | {"metrics": first["metrics"] | metrics}, *rest]))


@pytest.mark.parametrize("of", [1, 2, 3, 8, 11])
def test_shards_are_disjoint_and_complete_whatever_is_recorded(of: int) -> None:
    def parts() -> list[list[int]]:
        jobs = [chunks.Job(STUDY, SCALE, "cpu", None, Shard(number, of)) for number in range(1, of + 1)]
        return [[chunk.index for chunk in job.chunks()] for job in jobs]

    before = parts()
    assert sorted(index for part in before for index in part) == [chunk.index for chunk in chunks.cut(STUDY, SCALE)]
    recorder.record(STUDY, SCALE, shard=Shard(of, of))
    assert parts() == before


@pytest.mark.parametrize(
    "text", ["", "1", "0/2", "3/2", "-1/2", "1/0", "a/b", "1/2/3", "1.0/2", " 1/2", "1/" + "9" * 5000]
)
def test_what_is_no_shard_is_one_sentence(text: str) -> None:
    with pytest.raises(GradtuneError, match=r"^a shard is K/N with K from 1 to N, such as 2/8, not "):
        Shard.parse(text)
    assert Shard.parse("2/8") == Shard(2, 8)


def test_a_shard_says_what_it_is_and_how_much_of_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.2")
    first = recorder.record(STUDY, SCALE, minutes=0.1 / 60, shard=Shard(2, 3))
    assert first.sentence().startswith("shard 2/3 of fake at scale laptop stopped (time is up)")
    monkeypatch.delenv("FAKE_SECONDS")
    rest = recorder.record(STUDY, SCALE, shard=Shard(2, 3))
    assert first.recorded + rest.recorded == first.total == rest.total == 3 + 3 + 1  # chunks 1, 4 and 7 of 0 to 7
    assert rest.sentence() == f"shard 2/3 of fake at scale laptop is complete: {rest.recorded} recorded now, 7 in all"
    assert recorder.record(STUDY, SCALE, shard=Shard(20, 20)).total == 0  # more shards than chunks


def test_merged_shards_are_the_study(tmp_path: Path, root: Path) -> None:
    parts = shards(tmp_path, 3)
    merged = merging.merge(parts)
    assert merged.sentence() == f"{TOTAL} runs in {merged.files} files: {TOTAL} added, 0 were there already"
    whole = table()
    lines = {piece for file in store.all_files() for piece in file.read_bytes().splitlines()}
    assert lines == {
        piece for part in parts for file in store.all_files(part) for piece in file.read_bytes().splitlines()
    }
    again = merging.merge(parts)
    assert (again.runs, again.added) == (TOTAL, 0)
    assert recorder.record(STUDY, SCALE).recorded == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADTUNE_RECORDS", str(tmp_path / "alone"))
        recorder.record(STUDY, SCALE)
        pd.testing.assert_frame_equal(table(), whole, check_exact=True)


def test_of_equal_copies_the_first_is_kept(tmp_path: Path, root: Path) -> None:
    (one,), (two,) = shards(tmp_path / "a", 2, 1), shards(tmp_path / "b", 2, 1)
    for file in store.all_files(two):  # computed again, at another time and place
        lines = [
            line | {"date": "2031-01-01T00:00:00Z", "wall_s": 9.0, "device": "cpu: another"}
            for line in jsonl.read(file)
        ]
        file.write_bytes(b"".join(map(proof.write, lines)))
    merged = merging.merge([two, one])
    assert merged.runs == 2 * merged.added
    kept = [line for file in store.all_files() for line in jsonl.read(file)]
    assert {line["device"] for line in kept} == {"cpu: another"} and len(kept) == merged.added
    assert merging.merge([one]).added == 0


@pytest.mark.parametrize("recorded", [True, False])
def test_copies_that_differ_are_named_and_nothing_is_written(tmp_path: Path, root: Path, recorded: bool) -> None:
    (one,), (two,) = shards(tmp_path / "a", 2, 1), shards(tmp_path / "b", 2, 1)
    (three,) = shards(tmp_path / "c", 2, 2)
    if recorded:
        merging.merge([one])
    before = {file: file.read_bytes() for file in store.all_files()}
    changed = two / "fake" / SCALE / "slow.jsonl"
    change(changed, loss=7.0)
    there = root if recorded else one
    with pytest.raises(GradtuneError) as caught:
        merging.merge([three, one, two])
    assert str(caught.value).startswith(f"1 copies of runs differ, and nothing was merged: fake/{SCALE}/slow seed 0 (")
    assert f"in {there}/fake/{SCALE}/slow.jsonl and {changed} (metrics)" in str(caught.value)
    assert {file: file.read_bytes() for file in store.all_files()} == before


def test_every_line_is_proven(tmp_path: Path) -> None:
    one, two = shards(tmp_path, 2)
    file = two / "fake" / SCALE / "fast.jsonl"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"steps":120', b'"steps":121', 1))
    with pytest.raises(GradtuneError, match=r"shard-2/fake/laptop/fast\.jsonl, line 1 has been changed"):
        merging.merge([one, two])
    bare = [{k: v for k, v in json.loads(piece).items() if k != "digest"} for piece in content.splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in bare))
    with pytest.raises(GradtuneError, match=r"lines without digest or seal.*nothing was merged"):
        merging.merge([one, two])
    assert not store.all_files()
    proof.seal(two)
    assert merging.merge([one, two]).added == TOTAL
    file.write_bytes(content)
    (two / proof.SEALS).unlink()
    file.rename(file.with_name("other.jsonl"))
    with pytest.raises(GradtuneError, match=r"belongs in fake/laptop/fast\.jsonl"):
        merging.merge([two])


def test_a_torn_line_is_left_out_and_told(tmp_path: Path) -> None:
    (one,) = shards(tmp_path, 2, 1)
    file = one / "fake" / SCALE / "slow.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    merged = merging.merge([one])
    assert merged.torn == (file,) and f"left out the torn last lines of {file}" in merged.sentence()
    assert recorder.record(STUDY, SCALE).recorded == TOTAL - merged.added


def test_a_merge_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = shards(tmp_path, 2)
    fsync, calls = os.fsync, iter(range(1))

    def full(descriptor: int) -> None:
        if next(calls, None) is None:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(GradtuneError, match="cannot be written"):
            merging.merge(parts)
    assert len(table()) == TOTAL / 2  # one file whole, the other not begun
    assert merging.merge(parts).added == TOTAL / 2


def test_what_other_roots_have_counts_as_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = shards(tmp_path, 2)
    monkeypatch.setenv("GRADTUNE_RECORDS", os.pathsep.join([str(tmp_path / "new"), str(one)]))
    merged = merging.merge([one, two])
    assert merged.added == sum(len(jsonl.read(file)) for file in store.all_files(two))
    assert paths.records_root() == tmp_path / "new" and len(table()) == TOTAL


@pytest.mark.parametrize("name", ["nothing", "empty", "\x00"])
def test_a_folder_without_records_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(GradtuneError, match=r"has no record file \(STUDY/SCALE/METHOD\.jsonl\)"):
        merging.merge([tmp_path / name])
