"""What a record says of a GPU, how studies compute there, and that two kinds of device do not mix unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fake_study
from gradtune.errors import GradtuneError
from gradtune_book.records import environment, gpu, jsonl, outside, proof, recorder, store, verification
from gradtune_book.records.store import Result

CUDA = torch.device("cuda")
CARD: dict[str, Any] = {
    **{"card": "A Card", "capability": "9.0", "driver": "570.1", "cuda": "12.8", "cudnn": "91002"},
    **{"tf32": False, "deterministic": True, "benchmark": False, "cublas": ":4096:8"},
}


def line(card: dict[str, Any] | None = CARD, seed: int = 0) -> jsonl.Line:
    cfg, device = fake_study.FakeConfig("slow", seed), "cpu: a processor" if card is None else f"cuda: {card['card']}"
    return store.line("fake", "smoke", cfg, Result({"loss": 1.0}), device, 1, None, card)


def test_tf32_and_nondeterministic_algorithms_are_off_on_a_gpu_alone_and_come_back() -> None:
    before = gpu._flags()
    assert gpu._flags()[0] != ("ieee", "ieee", "ieee") and not before[1][0] and not before[2][0]
    with pytest.raises(KeyError), environment.as_recorded(CUDA):
        assert gpu._flags() == (("ieee", "ieee", "ieee"), (True, False), (True, True), False)
        raise KeyError
    assert gpu._flags() == before
    for chosen in (None, torch.device("cpu")):
        with environment.as_recorded(chosen):
            assert gpu._flags() == before


def test_a_gpus_record_says_with_what_it_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A Card")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(gpu, "driver", lambda: "570.1")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with environment.as_recorded(CUDA):
        assert gpu.described(CUDA) == CARD
    outside_it = gpu.described(CUDA)
    assert outside_it is not None and outside_it["tf32"] and not outside_it["deterministic"]
    assert gpu.described(torch.device("cpu")) is None and "gpu" not in line(None)
    assert proof.read(proof.write(line()))["gpu"] == CARD


def test_the_driver_is_what_linux_or_its_own_program_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "version"
    told.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 2025\nGCC version: 12.2.0\n"
    )
    assert gpu.driver(told) == "570.124.06"
    monkeypatch.setattr(outside, "output", lambda *command: "580.2\n580.2" if command[0] == "nvidia-smi" else None)
    assert gpu.driver(tmp_path / "absent") == "580.2"
    monkeypatch.setattr(outside, "output", lambda *command: None)
    assert gpu.driver(tmp_path / "absent") == "unknown"


def test_a_line_with_another_kind_of_gpu_field_is_refused() -> None:
    with pytest.raises(GradtuneError, match="'gpu' must say with what"):
        proof.read(proof.write(line() | {"gpu": "a card"}))


def test_verification_names_what_differs_between_devices() -> None:
    assert verification._compare(line(None), line()).elsewhere == "device"
    assert verification._compare(line(), line(CARD | {"driver": "580.2", "tf32": True})).elsewhere == "driver and tf32"
    assert verification._compare(line(), line()).elsewhere == ""


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path))
    return tmp_path


def begun_on_a_gpu() -> None:
    first = fake_study.STUDY.runs("smoke")[0]
    made = store.line("fake", "smoke", first, Result({"loss": 1.0}), "cuda: A Card", 1, None, CARD)
    jsonl.append(store.path("fake", "smoke", first.method), [made])


def test_a_cpu_does_not_go_on_where_a_gpu_has_begun_unless_it_is_asked_to(records: Path) -> None:
    begun_on_a_gpu()
    with pytest.raises(
        GradtuneError, match=r"1 runs of fake at scale smoke .* \(cuda: A Card\).*GRADTUNE_RECORDS.*--mixed"
    ):
        recorder.record(fake_study.STUDY, "smoke")
    assert recorder.record(fake_study.STUDY, "smoke", mixed=True).left == 0
    assert recorder.record(fake_study.STUDY, "smoke").sentence().startswith("fake at scale smoke is complete")


def test_lines_without_the_field_are_of_the_device_that_they_name(records: Path) -> None:
    assert [store.kind(each) for each in (line(None), line())] == ["cpu", "cuda"]
    recorder.record(fake_study.STUDY, "smoke")
    assert all("gpu" not in each for file in store.all_files() for each in jsonl.read(file))


@pytest.mark.parametrize(
    ("given", "expected"), [("", (None, None)), ("a" * 40, ("a" * 40, None)), ("b" * 40 + "-dirty", ("b" * 40, True))]
)
def test_a_copy_without_git_has_the_commit_that_it_is_told(
    given: str, expected: tuple[str | None, bool | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.paths, "ROOT", tmp_path)
    monkeypatch.setenv("GRADTUNE_COMMIT", given)
    assert environment.commit.__wrapped__() == expected


def test_what_is_no_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.paths, "ROOT", tmp_path)
    monkeypatch.setenv("GRADTUNE_COMMIT", "main")
    with pytest.raises(GradtuneError, match="GRADTUNE_COMMIT is 'main'; expected the 40 digits"):
        environment.commit.__wrapped__()


def test_some_methods_alone_are_recorded(records: Path) -> None:
    assert recorder.record(fake_study.STUDY, "smoke", methods=["fast"]).total == fake_study.SEEDS["smoke"]
    assert {file.stem for file in store.all_files()} == {"fast"}
    with pytest.raises(GradtuneError, match=r"unknown method of fake at scale smoke.*fast"):
        recorder.record(fake_study.STUDY, "smoke", methods=["fsat"])
