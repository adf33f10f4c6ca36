"""The script for the first hour on a GPU, in small on the CPU, without Jupyter and optuna."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import agreement, gpu_hour
from gradtune_book.records import jsonl, store
from tools import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_hour.sh"
HIDDEN = ("optuna", "IPython", "jupyter_client", "papermill", "nbformat", "ipykernel", "matplotlib", "seaborn")


def called(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRADTUNE_")} | variables
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=600, env=environment, check=False
    )


@pytest.fixture
def without_jupyter(tmp_path: Path) -> str:
    """A Python that finds neither Jupyter nor optuna, as a command."""
    place = tmp_path / "hidden"
    place.mkdir()
    (place / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({HIDDEN}))\n")
    command = tmp_path / "python"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{place}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    command.chmod(0o755)
    return str(command)


def test_the_dry_run_goes_from_start_to_end(tmp_path: Path, without_jupyter: str) -> None:
    out = tmp_path / "out"
    done = called(DEVICE="cpu", OUT=str(out), PYTHON=without_jupyter, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    ended = [line for line in done.stdout.splitlines() if line.endswith("status 0")]
    parts = ["versions", "agree", "speed", "fds_cifar_regret", "oho_resnet", "metaoptimize_cifar", "clip_ptb"]
    assert [line.split()[1].rstrip(":") for line in ended] == parts
    assert "all methods agree with the CPU" in done.stdout and "OnePass, UCI Energy, 3 runs at once" in done.stdout
    files = store.all_files(out / "records")
    assert {file.parts[-3] for file in files} == {*parts[3:]}
    assert all(line["scale"] == "smoke" for file in files for line in jsonl.read(file))
    assert "0 unfinished runs" in done.stdout


def test_a_python_without_a_package_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_hour, "find_spec", lambda name: None if name == "sklearn" else object())
    assert gpu_hour.main(["versions", "--device", "cpu"]) == 2
    assert "-m pip install 'scikit-learn'" in capsys.readouterr().out


def test_without_a_card_it_says_so_and_records_nothing(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    done = called(OUT=str(tmp_path / "out"), PYTHON=sys.executable)
    assert done.returncode == 2 and "torch sees 0 CUDA devices" in done.stdout
    assert not (tmp_path / "out" / "records").exists()


def test_every_method_of_the_table_is_compared() -> None:
    assert agreement.missing() == []


def test_a_device_that_computes_otherwise_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, calls = agreement._trained, []

    def wrong(method: str, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(method)
        w, raw = trained(method, *rest)  # type: ignore[arg-type]
        return (w * (1 + 1e-6), raw) if method == "oho" and calls.count("oho") == 1 else (w, raw)

    monkeypatch.setattr(agreement, "_trained", wrong)
    monkeypatch.setattr(agreement, "METHODS", {n: agreement.METHODS[n] for n in ("oho", "fixed")})
    assert gpu_hour.main(["agree", "--device", "cpu", "--quick"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said if line.endswith("APART")] == ["oho"]


def test_what_is_packed_is_code_data_and_the_commit(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this copy has no git")
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    (tmp_path / "data" / "ptb" / "ptb.test.txt").write_text("a b\n")
    file = tmp_path / "tree.tar"
    done = called("pack", str(file), GRADTUNE_DATA=str(tmp_path / "data"))
    assert done.returncode == 0 and "not packed, as it is not in" in done.stderr, done.stderr
    with tarfile.open(file) as tree:
        names = {name.removeprefix("gradtune/") for name in tree.getnames()}
        commit = tree.extractfile("gradtune/COMMIT")
        assert commit is not None and len(commit.read()) in (40, 46)
    assert {"lib/gradtune/__init__.py", "benchmarks/gpu_hour.sh", "data/raw/ptb/ptb.test.txt"} <= names
    assert not any(name.startswith(("data/records", "notebooks", "tests")) for name in names)
