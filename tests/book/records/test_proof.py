"""Records prove themselves: what was changed in a line, copied, or left out is named, by loading and by the check."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fake_study
from fake_study import FakeConfig
from gradtune.errors import GradtuneError
from gradtune_book import checks, config, paths
from gradtune_book.records import jsonl, proof, recorder, store
from gradtune_book.records.store import Result


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "records"))
    return tmp_path / "records"


def line(seed: int = 0, method: str = "slow") -> dict[str, Any]:
    cfg, result = FakeConfig(method, seed), Result({"loss": 0.5, "steps": 12}, {"curve": [1.0, None]}, 1.5, "energy")
    return store.line("fake", "smoke", cfg, result, "cpu: a processor", batch=3, peak_mb=12.5)


def put(*seeds: int, method: str = "slow") -> Path:
    file = store.path("fake", "smoke", method)
    jsonl.append(file, [line(seed, method) for seed in seeds])
    return file


def bare(content: bytes) -> bytes:
    """The lines as they were written before there were digests."""
    lines = [json.loads(piece) for piece in content.splitlines()]
    return b"".join(json.dumps({k: v for k, v in x.items() if k != "digest"}).encode() + b"\n" for x in lines)


def wrong() -> list[str]:
    return [finding.text for finding in checks.record_files() if not finding.good]


def test_a_line_ends_with_the_digest_of_what_stands_before_it() -> None:
    body, _, rest = put(0).read_bytes().partition(b',"digest":"')
    assert rest == hashlib.sha256(body).hexdigest()[:16].encode() + b'"}\n'
    assert jsonl.read(store.path("fake", "smoke", "slow")) == [line(0) | {"date": jsonl.read(put(0))[0]["date"]}]
    assert wrong() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"loss":0.5', b'"loss":5.0'), (b'"seed":0', b'"seed":77'), (b'"loss":0.5', b'"loss":NaN'), (b"1.5", b'"x"')],
)
def test_a_changed_line_is_named_by_loading_and_by_the_check(old: bytes, new: bytes) -> None:
    file = put(0, 1)
    file.write_bytes(file.read_bytes().replace(old, new, 1))
    calls: list[Callable[[], Any]] = [
        lambda: store.load("fake", "smoke"),
        lambda: store.load(fake_study.STUDY, "smoke"),
        store.provenance,
        lambda: jsonl.append(file, [line(2)]),
    ]
    for call in calls:
        with pytest.raises(
            GradtuneError, match=r"slow\.jsonl, line 1 (has been changed|is not a run record)"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert len(wrong()) == 1 and "slow.jsonl, line 1" in wrong()[0]


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda x: {k: v for k, v in x.items() if k != name}


def _rekeyed(x: dict[str, Any]) -> dict[str, Any]:
    return x | {"config": x["config"] | {"seed": 77}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((_without(name), f"has no '{name}'") for name in ("metrics", "date", "versions", "key", "config", "study")),
        (lambda x: x | {"wall_s": "1.5"}, "its 'wall_s' is a str"),
        (lambda x: x | {"config": x["config"] | {"version": "1"}}, "version in whole numbers"),
        (lambda x: x | {"metrics": [1.0]}, "its 'metrics' is a list"),
        (lambda x: x | {"metrics": {"loss": 10**400}}, "must be finite numbers"),
        (lambda x: x | {"metrics": {"loss": "0.5"}}, "must be finite numbers"),
        (lambda x: x | {"series": {"curve": 3}}, "a series must be a list"),
        (lambda x: x | {"dioest": "0"}, "unknown field 'dioest'"),
        (_rekeyed, "its key '[0-9a-f]{12}' is not that of its configuration"),
    ],
)
def test_a_line_of_another_form_is_named(change: Callable[[dict[str, Any]], dict[str, Any]], words: str) -> None:
    """With a digest that is right, and without one."""
    for write in (proof.write, lambda x: json.dumps(x).encode() + b"\n"):
        file = put(0)
        file.write_bytes(write(change(line(1))) + write(line(2)))
        with pytest.raises(GradtuneError, match=rf"slow\.jsonl, line 1 .*{words}") as caught:
            store.load("fake", "smoke")
        assert "\n" not in str(caught.value) and "line 1" in wrong()[0]
        file.unlink()


def test_nested_deep_and_a_number_without_end() -> None:
    for bad in (b"[" * 100_000 + b"]" * 100_000, b'{"key": ' + b"1" * 5000 + b"}", b'{"key": 1e999, "config": {}}'):
        file = put(0)
        file.write_bytes(bad + b"\n" + file.read_bytes())
        with pytest.raises(GradtuneError, match=r"slow\.jsonl, line 1 is not a run record"):
            jsonl.read(file)
        assert len(wrong()) == 1
        file.unlink()


def test_a_copy_is_refused_and_a_link_to_nothing_is_named() -> None:
    file = put(0, 1)
    copy = file.with_name("slow (copy).jsonl")
    copy.write_bytes(file.read_bytes())
    for call in (store.provenance, lambda: store.load("fake", "smoke")):
        with pytest.raises(GradtuneError, match=r"slow \(copy\)\.jsonl, line 1 belongs in fake/smoke/slow\.jsonl"):
            call()
    assert len(wrong()) == 1
    copy.unlink()
    copy.symlink_to("nowhere.jsonl")
    assert len(wrong()) == 1 and "is a link to what is not there" in wrong()[0]


def test_several_versions_are_reported() -> None:
    file = put(0)
    newer = store.line("fake", "smoke", FakeConfig("slow", 1, 99), Result({}), "cpu", 1, None)
    jsonl.append(file, [newer])
    assert [f.text for f in checks.record_files()] == [
        "records: fake/smoke/slow.jsonl, 2 runs, of version 1: 1 and version 99: 1"
    ]


def test_lines_without_a_digest_are_sealed_and_held_to_it(root: Path) -> None:
    file = put(0, 1, 2)
    file.write_bytes(bare(file.read_bytes()))
    said = "records: fake/smoke/slow.jsonl, 3 runs, 3 without digest or seal; where they are good, run"
    assert wrong() == [f"{said} `gradtune check --seal`"]
    before = file.read_bytes()
    assert proof.seal(root) == 3 and file.read_bytes() == before and wrong() == []
    assert proof.seal(root) == 3  # again: the same
    assert put(3) == file and wrong() == [] and list(store.load("fake", "smoke").seed) == [0, 1, 2, 3]
    file.write_bytes(file.read_bytes().replace(b'"loss": 0.5', b'"loss": 0.6', 1))
    for call in (lambda: store.load("fake", "smoke"), lambda: proof.seal(root), lambda: jsonl.append(file, [])):
        with pytest.raises(GradtuneError, match=r"slow\.jsonl: its first \d+ bytes are not those that were sealed"):
            call()
    assert len(wrong()) == 1


def test_sealing_refuses_what_is_no_record(root: Path) -> None:
    file = put(0)
    file.write_bytes(bare(file.read_bytes()).replace(b'"seed": 0', b'"seed": 9'))
    with pytest.raises(GradtuneError, match=r"slow\.jsonl, line 1 has been changed"):
        proof.seal(root)
    assert not (root / proof.SEALS).exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["flip", "overwrite", "cut", "swap"]), st.data())
def test_any_damage_is_named_or_loses_the_last_line(root: Path, kind: str, data: st.DataObject) -> None:
    file = store.path("fake", "smoke", "slow")
    file.unlink(missing_ok=True)
    put(0, 1, 2)
    whole, good = file.read_bytes(), jsonl.read(file)
    content = bytearray(whole)
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "overwrite":
        content[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    elif kind == "cut":
        del content[at : at + data.draw(st.integers(1, len(content)))]
    else:
        other = data.draw(st.integers(0, len(content) - 1))
        content[at], content[other] = content[other], content[at]
    file.write_bytes(content)
    try:
        found = jsonl.read(file)
    except GradtuneError as error:
        assert "slow.jsonl, line " in str(error) and "\n" not in str(error)
    else:
        assert found in (good, good[:2], good[:1], []) or (kind == "cut" and all(each in good for each in found))
    # nothing that a run did not give is ever read


def test_the_repositorys_own_records_are_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADTUNE_RECORDS")
    assert wrong() == [] and len(store.all_files()) > 100


def test_a_second_root_is_read_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the advice after a full disk says: nothing is computed again, and all of it is there."""
    old, new = tmp_path / "records", tmp_path / "elsewhere"
    first = recorder.record(fake_study.STUDY, "smoke")
    for file in store.all_files():
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:2]))  # half of the study
    before = {file: file.read_bytes() for file in store.all_files()}
    monkeypatch.setenv("GRADTUNE_RECORDS", os.pathsep.join([str(new), str(old)]))
    assert paths.records_root() == new and paths.records_roots() == [new, old]
    again = recorder.record(fake_study.STUDY, "smoke")
    assert (again.recorded, again.left, again.total) == (first.total - 4, 0, first.total)
    assert {file: file.read_bytes() for file in before} == before
    assert len(store.load(fake_study.STUDY, "smoke")) == len(store.load("fake", "smoke")) == first.total
    assert store.provenance().runs.sum() == first.total
    assert recorder.record(fake_study.STUDY, "smoke").recorded == 0


def test_the_advice_after_a_full_disk_names_both_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(GradtuneError, match=rf"set GRADTUNE_RECORDS to another folder{os.pathsep}{root} \(new runs"):
        put(0)


def test_the_key_is_the_one_that_configurations_have() -> None:
    assert line(3)["key"] == config.key("fake", FakeConfig("slow", 3))
    assert proof.read(proof.write(line(3)))["key"] == line(3)["key"]
