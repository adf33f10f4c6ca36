"""The command line: what each command prints, and that a mistake is one sentence and exit status 2."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fake_study
import gradtune
from gradtune import methods, variables
from gradtune.errors import GradtuneError
from gradtune.nets import compiled
from gradtune_book import cli, config, papers, paths
from gradtune_book.data import datasets
from gradtune_book.records import environment, jsonl, store
from tools import ROOT

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "records"))
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path / "raw"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `gradtune` and return its status, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            status = cli.main(arguments)
        except SystemExit as stop:  # argparse's way
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every study name mean the made-up one."""
    monkeypatch.setattr(papers, "get", lambda name: fake_study.STUDY)
    monkeypatch.setattr(papers, "STUDIES", {"fake": papers.Entry("nowhere", "Made-up runs")})


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Callable[..., Any]) -> None:
    """Put a module of made-up functions in the place of the one of this full name."""
    module = types.ModuleType(name)
    for function, value in functions.items():
        setattr(module, function, value)
    package, _, last = name.rpartition(".")
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.import_module(package), last, module, raising=False)


def assert_one_sentence(status: int, err: str, *words: str) -> None:
    assert status == 2
    assert err.startswith("gradtune: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["record", "clip_quadratc", "--scale", "smoke"], ["unknown study", "did you mean 'clip_quadratic'?"]),
        (["record", "clip_quadratic", "--scale", "smok"], ["unknown scale", "did you mean 'smoke'?"]),
        (["record", "clip_quadratic", "--scale", "smoke", "--device", "gpu"], ["unknown device 'gpu'"]),
        (
            ["record", "clip_quadratic", "--scale", "smoke", "--engine", "rya"],
            ["unknown engine", "did you mean 'ray'?"],
        ),
        (["record", "clip_quadratic", "--scale", "smoke", "--address", "a:1"], ["add --engine ray"]),
        (["record", "clip_quadratic", "--scale", "smoke", "--shard", "3/2"], ["a shard is K/N", "'3/2'"]),
        (["record", "clip_quadratic", "--scale", "smoke", "--shard", "1/2", "--verify", "1"], ["leave out --engine"]),
        (["records", "mrege", "a"], ["unknown action", "did you mean 'merge'?"]),
        (["records", "merge", "nowhere"], ["nowhere has no record file"]),
        (["list", "study"], ["unknown list", "did you mean 'studies'?"]),
        (["data", "fecth"], ["unknown action", "did you mean 'fetch'?"]),
        (["data", "fetch", "energy", "yatch"], ["unknown dataset", "did you mean 'yacht'?"]),
        (["data", "status", "energy"], ["takes no names"]),
        (["data", "fetch", "energy", "--from", "http://127.0.0.1:9", "--any-source"], ["cannot reach", "energy"]),
        (["book", "--scale", "papre"], ["unknown scale", "did you mean 'paper'?"]),
    ],
)
def test_mistakes(run: Run, arguments: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    status, out, err = run(*arguments)
    assert_one_sentence(status, err, *words)
    assert not out


WORDS: tuple[str, ...] = (
    "list",
    "run",
    "data",
    "check",
    "record",
    "book",
    "records",
    "fetch",
    "status",
    "nowhere",
    "--scale",
    "smoke",
)
WORDS += (
    "nowhere",
    "--scale",
    "smoke",
    "--jobs",
    "0",
    "-1",
    "1" * 400,
    "--minutes",
    "nan",
    "inf",
    "-p",
    "seed",
    "-o",
    "/proc/x",
    "--force",
    "--from",
)
WORDS += ("--engine", "ray", "--address", "--shard", "1/2", "merge")
WORDS += ("--verify", "--device", "cuda:99", "ftp://x", "", "~nosuchuser/x", "one_recursion", "yacht", "\x00")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(WORDS), max_size=7))
def test_any_command_line_is_answered_in_words(
    run: Run, fake: None, tmp_path_factory: pytest.TempPathFactory, arguments: list[str]
) -> None:
    """No exception leaves `main`; what would take long is stood in for, what comes before it is not."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA", "RECORDS"):
            patch.setenv(f"GRADTUNE_{name}", "~nosuchuser/x" if "~nosuchuser/x" in arguments else "/nonexistent/x")
        patch.setattr("gradtune_book.notebooks.runner._execute", lambda *_: None)
        patch.setattr("gradtune_book.pages.build._build", lambda *_: None)
        patch.setattr("gradtune_book.checks.everything", lambda deep: iter(()))
        patch.setattr("gradtune_book.data.download._get", lambda *_: b"")
        patch.setattr("gradtune_book.records.recorder.work", lambda job, engine: (_ for _ in ()))
        patch.setattr(paths, "ROOT", tmp_path_factory.getbasetemp())
        status, _, err = run(*arguments)
    assert status in (0, 1, 2, 3) and "Traceback" not in err
    assert status != 2 or err.splitlines()[-1].startswith("gradtune")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["record", "fake"], "required: --scale"),
        (["record", "fake", "--scale", "smoke", "--minutes", "soon"], "invalid float value: 'soon'"),
        (["record", "fake", "--scale", "smoke", "--jobs", "1.5"], "invalid int value: '1.5'"),
        (["run", "one_recursion", "-p", "seed"], "expected 2 arguments"),
        (["recrod"], "recrod"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_exits_with_2(run: Run, arguments: list[str], words: str) -> None:
    status, _, err = run(*arguments)
    assert status == 2
    assert words in err
    assert "Traceback" not in err


def test_list_says_what_there_is(run: Run, fake: None, monkeypatch: pytest.MonkeyPatch) -> None:

    row = {"method": "clip2", "paper": "Clip", "cost": "1 Hessian product", "memory": "P D", "outer": "SGD"}
    stand_in(monkeypatch, "gradtune.methods", rows=lambda: [row])
    assert run("list", "scales") == (0, "smoke\nlaptop\npaper\n", "")
    assert run("list", "studies") == (0, "fake  Made-up runs\n", "")
    assert "clip2" in run("list", "methods")[1]
    status, out, _ = run("list")
    assert status == 0
    for heading in cli.LISTS:
        assert f"{heading}:" in out


@pytest.mark.parametrize("width", [120, 80])
def test_list_methods_fits_the_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    status, out, _ = run("list", "methods")
    head, rule, *lines = out.splitlines()
    assert status == 0
    assert head.split() == ["method", "paper", "cost", "memory"]
    assert max(map(len, out.splitlines())) <= width
    starts = [column.start() for column in re.finditer("-+", rule)]
    for start, end, name in zip(starts, [*starts[1:], None], head.split()):  # nothing is cut off
        column = "".join(line[start:end] for line in lines)
        assert "".join(column.split()) == "".join("".join(methods.table()[name]).split())


def test_list_alone_names_every_method_in_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = run("list")[1].split("methods:\n")[1].split("scales:")[0].splitlines()
    assert [line.split("  ")[1] for line in out] == list(methods.table()["method"])


def test_list_notebooks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "clip_quadratic.ipynb").touch()
    monkeypatch.setattr("gradtune_book.paths.ROOT", tmp_path)
    assert run("list", "notebooks") == (0, "clip_quadratic\n", "")


def test_record_then_verify(run: Run, fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = run("record", "fake", "--scale", "smoke")
    assert (status, out) == (0, "fake at scale smoke is complete: 8 recorded now, 8 in all\n")
    status, out, _ = run("record", "fake", "--scale", "smoke", "--verify", "2")
    assert status == 0
    assert [line[:5] for line in out.splitlines()] == ["ok   "] * 2
    assert out.count(": identical\n") == 2
    monkeypatch.setenv("FAKE_SHIFT", "1")
    status, out, _ = run("record", "fake", "--scale", "smoke", "--verify", "8")
    assert status == 1
    assert out.count("WRONG") == out.count("loss differs by") == 6  # the two runs that are NaN stay NaN
    assert len(store.load(fake_study.STUDY, "smoke")) == 8


def test_verify_on_another_processor_says_how_far_and_does_not_fail(
    run: Run, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("record", "fake", "--scale", "smoke")
    monkeypatch.setenv("FAKE_SHIFT", "1")
    monkeypatch.setattr("gradtune_book.records.environment.describe", lambda device: "cpu: another one")
    status, out, _ = run("record", "fake", "--scale", "smoke", "--verify", "8")
    assert status == 0 and out.count("apart") == 6
    assert out.count("; recorded with another device)") == 6


def test_list_records_counts_runs(run: Run, fake: None) -> None:
    assert run("list", "records") == (0, "no run of any study is recorded\n", "")
    run("record", "fake", "--scale", "smoke")
    lines = ["fake  smoke  none  slow: 4 runs", "fake  smoke  none  fast: 4 runs"]
    assert run("list", "records", "fake")[1].splitlines() == lines
    assert_one_sentence(*run("list", "methods", "fake")[::2], "takes no further name", "gradtune list records STUDY")


def test_record_reports_ctrl_c(run: Run, fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_INTERRUPT", "3")
    status, out, _ = run("record", "fake", "--scale", "smoke")
    assert status == 130
    assert out == (
        "fake at scale smoke stopped (interrupted): 3 recorded, 5 of 8 left; run the same command to go on\n"
    )


def test_record_minutes(run: Run, fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.2")
    status, out, _ = run("record", "fake", "--scale", "smoke", "--minutes", "0.001")
    assert status == 3  # so that `record && book` can tell
    assert "stopped (time is up): 3 recorded, 5 of 8 left" in out


def test_record_a_shard_then_merge(run: Run, fake: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for shard, runs in (("1/2", 6), ("2/2", 2)):
        monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / shard[0]))
        status, out, _ = run("record", "fake", "--scale", "smoke", "--shard", shard)
        assert (status, out) == (
            0,
            f"shard {shard} of fake at scale smoke is complete: {runs} recorded now, {runs} in all\n",
        )
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path / "all"))
    status, out, _ = run("records", "merge", str(tmp_path / "1"), str(tmp_path / "2"))
    assert (status, out) == (0, "8 runs in 4 files: 8 added, 0 were there already\n")
    assert run("record", "fake", "--scale", "smoke")[1].endswith("complete: 0 recorded now, 8 in all\n")


def test_without_ray_one_sentence_names_the_extra(run: Run, fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    command = "pip install -e 'lib[cluster]'"
    assert_one_sentence(*run("record", "fake", "--scale", "smoke", "--engine", "ray")[::2], "needs ray", f"`{command}`")
    extras = tomllib.loads((ROOT / "lib" / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [re.split("[<>=]", each)[0] for each in extras["cluster"]] == ["ray"]
    assert "\nray==" not in (ROOT / "requirements.lock").read_text()


def test_ray_is_imported_only_where_it_is_asked_for() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; from gradtune_book.records import cluster, recorder; import fake_study;"
        "sys.exit(recorder.record(fake_study.STUDY, 'smoke').left)"
    )
    search = os.pathsep.join([str(ROOT / "lib"), str(ROOT / "tests")])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={**os.environ, "PYTHONPATH": search})


def test_run_passes_names_and_values(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    got: list[Any] = []

    def fake_run(*arguments: object) -> Path:
        got.append(arguments)
        return tmp_path / "out.ipynb"

    stand_in(monkeypatch, "gradtune_book.notebooks.runner", run=fake_run)
    status, out, _ = run("run", "clip_quadratic", "-p", "seed", "3", "-p", "rate", "1e-3", "-o", "out.ipynb")
    assert (status, out) == (0, f"{tmp_path / 'out.ipynb'}\n")
    assert got == [("clip_quadratic", {"seed": "3", "rate": "1e-3"}, Path("out.ipynb"), False)]


def test_book_passes_its_options_and_a_failure_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[Any] = []
    stand_in(monkeypatch, "gradtune_book.pages.build", build=lambda *arguments: got.append(arguments))
    assert run("book")[0] == 0
    assert run("book", "--scale", "laptop", "--data", "embedded", "--force", "--device", "cuda")[0] == 0
    assert got == [("smoke", "auto", False, "cpu"), ("laptop", "embedded", True, "cuda")]

    class NotebookFailed(GradtuneError):
        exit_status = 1

    def fail(*arguments: object) -> None:
        raise NotebookFailed("clip_quadratic, cell table-1: NameError")

    stand_in(monkeypatch, "gradtune_book.pages.build", build=fail)
    assert run("book") == (1, "", "gradtune: clip_quadratic, cell table-1: NameError\n")


def test_data_status_and_fetch(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = run("data")
    assert status == 0
    for name in datasets.DATASETS:
        assert name in out
    assert "missing" in out
    got: list[str] = []

    def fetch(name: str, **options: object) -> int:
        got.append(name)
        return 3

    monkeypatch.setattr(datasets, "fetch", fetch)
    status, out, _ = run("data", "fetch", "energy")
    assert (status, out) == (0, "energy: 44 files, 3 of them fetched now\n")
    run("data", "fetch")
    assert got == ["energy", *(name for name in datasets.DATASETS if not datasets.info(name).embedded)]


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that is as locked."""
    monkeypatch.setattr(environment, "differences", lambda: (20, []))


def test_check_of_a_sound_installation(run: Run, fake: None, locked: None) -> None:
    run("record", "fake", "--scale", "smoke")
    status, out, _ = run("check")
    assert status == 0
    assert "20 packages as locked" in out
    assert "data: diabetes embedded" in out
    assert "data: energy missing" in out  # no fault: the embedded set stands in
    assert "records: fake/smoke/slow.jsonl, 4 runs\n" in out
    assert all(line.startswith("ok   ") for line in out.splitlines())


def test_check_finds_a_damaged_record_and_accepts_a_torn_one(run: Run, fake: None, locked: None) -> None:
    run("record", "fake", "--scale", "smoke")
    slow, fast = (store.path("fake", "smoke", method) for method in ("slow", "fast"))
    fast.write_bytes(fast.read_bytes()[:-5])
    slow.write_text("nonsense\n" + slow.read_text())
    status, out, _ = run("check")
    assert status == 1
    assert f"WRONG records: {slow}, line 1 is not a run record" in out
    assert "ok    records: fake/smoke/fast.jsonl, 3 runs, a torn last line is ignored" in out


def test_check_finds_damaged_and_incomplete_data(run: Run, locked: None, tmp_path: Path) -> None:
    for file, name in {"energy/data/data.txt": "energy", "yacht/data/n_splits.txt": "yacht"}.items():
        path = tmp_path / "raw" / "UCI_Datasets" / file
        path.parent.mkdir(parents=True)
        path.write_text("20\n" if name == "yacht" else "not the data")
    status, out, _ = run("check")
    assert status == 1
    assert "WRONG data: UCI_Datasets/energy/data/data.txt truncated or altered; run `gradtune data fetch energy`" in out
    assert "WRONG data: yacht is incomplete" in out


def test_a_deep_check_proves_the_compiled_operations(
    run: Run, locked: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "load", lambda source: None if source.stem == "fused" else object())
    monkeypatch.setattr(compiled, "compiler", lambda: compiled.Compiler("c++", "c++ 1"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "old-0.so").write_bytes(b"cut")
    (tmp_path / "cache" / "old-0.sha256").write_text("0" * 64)
    (tmp_path / "cache" / "earlier-0.so").write_bytes(b"of a version without digests, never loaded")
    status, out, _ = run("check", "--deep")
    assert status == 1
    assert "old-0.so is damaged or open to other users and is never loaded; remove it" in out
    assert "ok    compiled: relu_nets.cpp\n" in out and "earlier-0" not in out
    assert "WRONG compiled: fused.cpp cannot be compiled or loaded\n" in out
    assert "compiled" not in run("check")[1]


def test_check_seals_what_is_older_than_digests(run: Run, fake: None, locked: None) -> None:
    run("record", "fake", "--scale", "smoke")
    file = store.path("fake", "smoke", "slow")
    old = [{k: v for k, v in json.loads(piece).items() if k != "digest"} for piece in file.read_bytes().splitlines()]
    file.write_text("".join(json.dumps(each) + "\n" for each in old))
    assert run("check")[0] == 1
    status, out, _ = run("check", "--seal")
    assert status == 0 and "4 lines without a digest are sealed" in out
    assert run("check", "--deep")[0] == 0
    file.write_bytes(file.read_bytes().replace(b"0", b"1", 1))
    assert run("check")[0] == 1


def test_check_compares_versions_with_the_lock(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradtune_book.paths.ROOT", tmp_path)
    assert "not compared" in run("check")[1]
    installed = environment.versions()["numpy"]
    lines = [f"numpy=={installed} \\\\", "    --hash=sha256:00", "pandas==0.0.1", "no-such-package==1.0"]
    lines += ["numpy==0.1 ; python_full_version < '3'", "nvidia-nothing==1 ; sys_platform == 'atari'"]
    (tmp_path / "requirements.lock").write_text("\n".join(["# locked", *lines, ""]))
    status, out, _ = run("check")
    assert status == 1
    assert "environment: pandas is " in out
    assert "locked is 0.0.1" in out
    assert "no-such-package 1.0 is not installed" in out
    assert "numpy" not in out and "nvidia" not in out  # as locked; not for this system


def test_no_records_is_no_fault(run: Run, locked: None) -> None:
    assert jsonl.read(store.path("fake", "smoke", "slow")) == []
    assert "ok    records: none yet" in run("check")[1]


def commands() -> list[str]:
    """Every `gradtune` command in the README and the prose pages: in shell blocks, and in running text."""
    found = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "book").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        inline = [code for code in re.findall(r"`([^`\n]+)`", text) if "..." not in code and code.count(" ") > 1]
        found += [re.sub(r"^\S*bin/", "", code).partition("  #")[0] for code in [*lines, *inline]]
    return sorted({code for code in found if re.match(r"gradtune [a-z-]", code)})


def test_the_pages_show_commands() -> None:
    assert sum("--engine ray" in each for each in commands()) >= 3 and any("--shard" in each for each in commands())


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_pages_can_be_read(command: str) -> None:
    options = cli._parser().parse_args(shlex.split(command.replace("STUDY", "clip_quadratic"))[1:])
    for name, known in (("study", papers.STUDIES), ("scale", config.SCALES), ("action", ["status", "fetch", "merge"])):
        assert getattr(options, name, None) in (None, *known), command


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"gradtune {gradtune.__version__}\n", "")


def test_a_reader_that_stops_reading_is_no_error() -> None:
    """As `gradtune list | head -1` is: one line, and not a word on the error stream."""
    code = "import sys; from gradtune.__main__ import main; sys.exit(main(['list', 'methods']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


@pytest.mark.parametrize("name", ["DATA", "RECORDS"])
def test_a_variable_of_the_former_name_is_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.delenv(f"GRADTUNE_{name}", raising=False)
    monkeypatch.setenv(variables._FORMER_PREFIX + name, str(tmp_path))
    status, _, err = run("check")
    assert_one_sentence(status, err, "is no longer read", f"rename it to GRADTUNE_{name}")
    monkeypatch.setenv(f"GRADTUNE_{name}", str(tmp_path))  # the new one counts where both are set
    assert run("check")[2] == ""
