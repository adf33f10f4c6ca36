"""Run records: what a line says, how it reaches the disk, and what a table shows after any accident."""

import errno
import itertools
import json
import math
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import fake_study
from fake_study import FakeConfig
from gradtune.errors import GradtuneError
from gradtune_book.records import environment, jsonl, store
from gradtune_book.records.store import Result


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


def line(method: str = "slow", seed: int = 0, version: int = 1, loss: float | None = 0.5) -> dict[str, Any]:
    cfg = FakeConfig(method=method, seed=seed, version=version)
    result = Result({"loss": loss, "steps": 120}, {"curve": [1.0, math.nan, 3.0]}, 1.5, "energy", "ab" * 32)
    return store.line("fake", "smoke", cfg, result, "cpu: a processor", batch=3, peak_mb=12.345)


def put(*lines: dict[str, Any]) -> Path:
    file = store.path("fake", "smoke", lines[0]["config"]["method"])
    jsonl.append(file, lines)
    return file


def test_a_line_says_all_the_design_asks_for(root: Path) -> None:
    put(line())
    text = (root / "fake" / "smoke" / "slow.jsonl").read_text()
    assert text.endswith("\n")
    got = json.loads(text)
    assert got["config"] == {"method": "slow", "seed": 0, "version": 1, "rate": 0.5}
    assert (got["study"], got["scale"], got["device"], got["batch"]) == ("fake", "smoke", "cpu: a processor", 3)
    assert (got["dataset"], got["dataset_sha256"], got["wall_s"], got["peak_mb"]) == ("energy", "ab" * 32, 1.5, 12.3)
    assert set(got["versions"]) == {"python", "torch", "numpy", "gradtune", "compiler"}
    assert {"commit", "dirty"} < set(got)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", got["date"])
    assert got["metrics"] == {"loss": 0.5, "steps": 120}
    assert got["series"] == {"curve": [1.0, None, 3.0]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_finite_is_null_and_read_as_nan(value: float | None) -> None:
    file = put(line(loss=value))
    assert json.loads(file.read_text(), parse_constant=pytest.fail)["metrics"]["loss"] is None
    assert math.isnan(store.load("fake", "smoke").loss[0])


def test_metrics_keep_every_digit() -> None:
    put(line(loss=0.1 + 0.2))
    assert store.load("fake", "smoke").loss[0] == 0.1 + 0.2


def test_series_are_thinned_evenly_and_keep_their_ends() -> None:
    values = list(range(1001))
    thinned = store.thin(values)
    assert (len(thinned), thinned[0], thinned[-1]) == (50, 0, 1000)
    assert {b - a for a, b in itertools.pairwise(thinned)} <= {20, 21}
    assert store.thin(values[:50]) == values[:50]
    result = Result({"loss": 0.0}, {"curve": [x / 3 for x in values]})
    got = store.line("fake", "smoke", FakeConfig("slow"), result, "cpu", 1, None)
    assert got["series"]["curve"][:2] == [0.0, 6.666667]
    assert len(got["series"]["curve"]) == 50


@pytest.mark.parametrize(
    ("metrics", "series", "name"),
    [({"seed": 1.0}, {}, "seed"), ({"wall_s": 1.0}, {}, "wall_s"), ({"loss": 1.0}, {"loss": [1.0]}, "loss")],
)
def test_names_that_clash_are_refused(metrics: dict[str, Any], series: dict[str, Any], name: str) -> None:
    with pytest.raises(GradtuneError, match=f"rename {name}"):
        store.line("fake", "smoke", FakeConfig("slow"), Result(metrics, series), "cpu", 1, None)


def test_a_key_is_recorded_once() -> None:
    file = put(line(seed=0, loss=1.0), line(seed=0, loss=2.0))
    assert jsonl.append(file, [line(seed=0, loss=3.0), line(seed=1)]) == 1
    assert [got["metrics"]["loss"] for got in jsonl.read(file)] == [1.0, 0.5]


def tear_in_the_middle(content: bytes) -> bytes:
    return content[:-40]


def zeros_at_the_end(content: bytes) -> bytes:
    return content[: content.index(b"\n") + 1] + bytes(100)


def garbage_line_at_the_end(content: bytes) -> bytes:
    return content[: content.index(b"\n") + 1] + b'{"key": \n'


@pytest.mark.parametrize("tear", [tear_in_the_middle, zeros_at_the_end, garbage_line_at_the_end])
def test_a_torn_last_line_is_ignored_then_cut_and_run_again(tear: Callable[[bytes], bytes]) -> None:
    file = put(line(seed=0), line(seed=1))
    whole = file.read_bytes()
    file.write_bytes(tear(whole))
    assert jsonl.torn(file)
    assert list(store.load("fake", "smoke").seed) == [0]
    assert jsonl.append(file, [line(seed=0), line(seed=1)]) == 1
    assert not jsonl.torn(file)
    assert list(store.load("fake", "smoke").seed) == [0, 1]


def test_a_whole_last_line_without_its_newline_counts() -> None:
    file = put(line(seed=0), line(seed=1))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])  # as some editors do
    assert not jsonl.torn(file) and list(store.load("fake", "smoke").seed) == [0, 1]
    assert jsonl.append(file, [line(seed=1), line(seed=2)]) == 1
    assert file.read_bytes().startswith(whole) and list(store.load("fake", "smoke").seed) == [0, 1, 2]


@pytest.mark.parametrize("bad", ["not json", '{"key": 3}', "[]", ""])
def test_an_invalid_line_elsewhere_is_named(bad: str) -> None:
    file = put(line(seed=0), line(seed=1), line(seed=2))
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], bad, lines[2]]) + "\n")
    before = file.read_bytes()
    calls: list[Callable[[], Any]] = [
        lambda: store.load("fake", "smoke"),
        lambda: jsonl.append(file, [line(seed=3)]),
        store.provenance,
    ]
    for call in calls:
        with pytest.raises(GradtuneError, match=r"slow\.jsonl, line 2 is not a run record"):
            call()
    assert file.read_bytes() == before


def disk_full(descriptor: int, content: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def half_a_write(descriptor: int, content: bytes) -> int:
    os.pwrite(descriptor, content[: len(content) // 2], os.lseek(descriptor, 0, os.SEEK_CUR))
    return len(content) // 2


@pytest.mark.parametrize("write", [disk_full, half_a_write])
def test_a_full_disk_leaves_the_file_as_it_was(write: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(line(seed=0))
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(GradtuneError, match=r"slow\.jsonl cannot be written \(No space left.*free space"):
            jsonl.append(file, [line(seed=1), line(seed=2)])
    assert file.read_bytes() == before
    assert jsonl.append(file, [line(seed=1)]) == 1


def test_a_file_that_may_not_grow_is_not_called_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of the user's: a part is written, and the next write says why no more is."""
    file, calls = put(line(seed=0)), []

    def write(descriptor: int, content: bytes) -> int:
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return len(content) // 2

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(GradtuneError, match=r"cannot be written \(File too large\)"):
        jsonl.append(file, [line(seed=1)])


def test_a_failed_sync_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(line(seed=0))
    before = file.read_bytes()

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(GradtuneError, match="Input/output error"):
        jsonl.append(file, [line(seed=1)])
    assert file.read_bytes() == before


def test_a_folder_that_cannot_be_made(root: Path) -> None:
    root.write_text("a file where the folder should be")
    with pytest.raises(GradtuneError, match=r"cannot be written.*GRADTUNE_RECORDS"):
        put(line())


def test_many_writers_at_once_lose_nothing() -> None:
    file = store.path("fake", "smoke", "slow")
    file.parent.mkdir(parents=True)
    lines = [line(seed=seed) for seed in range(60)]
    with ThreadPoolExecutor(8) as pool:  # each opens the file for itself, so the lock holds between them
        added = list(pool.map(lambda i: jsonl.append(file, lines[i // 2 : i // 2 + 3]), range(2 * len(lines))))
    assert sum(added) == len(lines)
    assert sorted(got["config"]["seed"] for got in jsonl.read(file)) == list(range(60))


def test_nothing_recorded_is_an_empty_table() -> None:
    assert store.load("fake", "smoke").empty
    assert store.load(fake_study.STUDY, "smoke").empty
    assert store.provenance().empty
    assert list(store.provenance().columns[:4]) == ["study", "scale", "method", "runs"]


def test_the_table_does_not_depend_on_the_order_of_recording() -> None:
    put(*(line("fast", seed) for seed in (2, 0, 3, 1)))
    put(*(line("slow", seed) for seed in (3, 1)))
    by_study = store.load(fake_study.STUDY, "smoke")
    runs = [("slow", 1), ("slow", 3), ("fast", 0), ("fast", 1), ("fast", 2), ("fast", 3)]
    assert list(zip(by_study.method, by_study.seed)) == runs  # the study's order
    by_name = store.load("fake", "smoke")
    assert list(zip(by_name.method, by_name.seed)) == runs[2:] + runs[:2]  # the alphabet's
    chosen = store.load("fake", "smoke", methods=["slow", "fast"])
    assert list(zip(chosen.method, chosen.seed)) == runs
    assert set(store.load(fake_study.STUDY, "smoke", methods=["fast"]).method) == {"fast"}


def test_columns_of_the_table() -> None:
    put(line())
    table = store.load(fake_study.STUDY, "smoke")
    fields, metrics, series = ["method", "seed", "version", "rate"], ["loss", "steps"], ["curve"]
    where = ["device", "dataset", "commit", "dirty", "date", "wall_s", "batch", "peak_mb"]
    assert list(table.columns) == ["key", *fields, *where, *metrics, *series]
    assert pd.api.types.is_float_dtype(table.steps)
    assert table.curve[0] == [1.0, None, 3.0]


def test_a_study_has_its_own_version_and_a_name_all_of_them() -> None:
    put(line(seed=0, loss=1.0), line(seed=1, loss=1.0), line(seed=0, version=99, loss=2.0))
    by_name = store.load("fake", "smoke")
    assert list(zip(by_name.version, by_name.loss)) == [(1, 1.0), (99, 2.0), (1, 1.0)]  # an unknown one hides nothing
    found = store.provenance()
    assert list(zip(found.method, found.runs)) == [("slow (version 1)", 2), ("slow (version 99)", 1)]
    newer = replace(fake_study.STUDY, configs=lambda sizes: [FakeConfig("slow", seed, 99) for seed in range(2)])
    assert list(store.load(newer, "smoke").loss) == [2.0]
    assert list(store.load(fake_study.STUDY, "smoke").loss) == [1.0, 1.0]


def test_unknown_scale_and_method() -> None:
    with pytest.raises(GradtuneError, match="did you mean 'smoke'"):
        store.load("fake", "smok")
    with pytest.raises(GradtuneError, match=r"unknown method of fake at scale smoke 'slo'; did you mean 'slow'\?"):
        store.load(fake_study.STUDY, "smoke", methods=["slo"])


def test_provenance_sums_up_each_method() -> None:
    put(line("fast", 0), {**line("fast", 1), "device": "cuda: a card", "date": "2001-01-01T00:00:00Z", "dirty": True})
    put(line("slow", 0))
    table = store.provenance().set_index("method")
    assert list(table.runs) == [2, 1]
    assert table.device["fast"] == "cpu: a processor; cuda: a card"
    assert table["first"]["fast"] == "2001-01-01T00:00:00Z"
    assert table.dirty["fast"]
    assert table.minutes["fast"] == pytest.approx(2 * 1.5 / 60, abs=0.005)
    assert "torch " in table.versions["slow"]


def test_devices_that_are_not_there() -> None:
    assert environment.device("cpu").type == "cpu"
    assert environment.describe(environment.device("cpu")).startswith("cpu: ")
    for name, words in {"gpu": "unknown device 'gpu'", "cuda:77": "torch sees", "meta": "not supported"}.items():
        with pytest.raises(GradtuneError, match=words):
            environment.device(name)


def test_a_study_without_a_record_has_a_table_with_columns() -> None:
    table = store.load(fake_study.STUDY, "smoke")
    assert table.empty and {"key", "method", "seed", "rate", "device", "date"} <= set(table.columns)
    assert table.groupby("method").size().empty
    assert store.so_far(fake_study.STUDY, "smoke") == store.NOTHING


def test_coverage_counts_recorded_runs_by_method() -> None:
    put(line("fast", 0), line("fast", 1))
    found = store.coverage(fake_study.STUDY, "smoke")
    assert list(found.index) == ["slow", "fast"] and found.loc["fast"].tolist() == [2, 4]
    assert found.loc["slow"].tolist() == [0, 4]
    assert store.coverage(fake_study.STUDY, "smoke", "rate").loc[("fast", 0.5)].tolist() == [2, 4]
    assert store.so_far(fake_study.STUDY, "smoke") == "2 of 8 runs are recorded"


def test_coverage_counts_runs_whose_field_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fake_study.STUDY.runs("smoke")
    monkeypatch.setattr(fake_study.FakeConfig, "extra", property(lambda self: self.seed or None), raising=False)
    found = store.coverage(fake_study.STUDY, "smoke", "extra")
    assert found["of"].sum() == len(runs) and found.index.get_level_values("extra").isna().sum() == 2
