"""The notebook driver: strict parameters, failures that name the cell, nothing executed twice; and the notebooks."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

import standin
from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.notebooks import figures, parameters, runner
from gradtune_book.notebooks.runner import NotebookFailed
from tools import ROOT

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository in place of ours, with one library file and one dataset."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "PACKAGES", (tmp_path / "lib",))
    for variable in ("GRADTUNE_DATA", "GRADTUNE_RECORDS"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "core.py").write_text("ONE = 1\n")
    return tmp_path


# -- parameters -------------------------------------------------------------------------------------------------------

KNOWN = parameters.read(standin.PARAMETERS, "toy")


def test_parameters_are_read_with_type_default_and_comment() -> None:
    assert KNOWN["repeats"] == parameters.Parameter("repeats", "int | None", None, "overrides the scale")
    assert list(KNOWN) == ["scale", "data", "seed", "rate", "fast", "repeats"]


def test_a_comment_above_the_line_counts() -> None:
    assert parameters.read("# how many\nn: int = 3", "toy")["n"].comment == "how many"


def test_unknown_parameter_suggests_the_nearest() -> None:
    with pytest.raises(GradtuneError, match=r"unknown parameter of toy 'sede'; did you mean 'seed'\?"):
        parameters.check(KNOWN, {"sede": "3"}, "toy")


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("scale", "laptop", "laptop"),
        ("seed", "3", 3),
        ("seed", 3, 3),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("rate", 2, 2.0),
        ("fast", "true", True),
        ("fast", False, False),
        ("repeats", "none", None),
        ("repeats", None, None),
        ("repeats", "7", 7),
    ],
)
def test_values_become_the_declared_type(name: str, given: Any, taken: Any) -> None:
    value = parameters.check(KNOWN, {name: given}, "toy")[name]
    assert value == taken and type(value) is type(taken)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("seed", "three"),
        ("seed", "1.5"),
        ("seed", 1.0),
        ("seed", True),
        ("seed", None),
        ("rate", "fast"),
        ("rate", float("nan")),
        ("rate", "inf"),
        ("fast", "1"),
        ("fast", 1),
        ("scale", 3),
        ("repeats", "few"),
        ("repeats", [1]),
    ],
)
def test_wrong_type_is_named(name: str, given: Any) -> None:
    expected = re.escape(f"toy: parameter {name!r} must be {KNOWN[name].type}, not {type(given).__name__}: {given!r}")
    with pytest.raises(GradtuneError, match=expected):
        parameters.check(KNOWN, {name: given}, "toy")


@pytest.mark.parametrize("source", ["n = 3", "n: list = [3]", "n: None = None"])
def test_only_plain_types_can_be_set(source: str) -> None:
    with pytest.raises(GradtuneError, match="'n' cannot be set"):
        parameters.check(parameters.read(source, "toy"), {"n": 3}, "toy")


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("n: int = ", "no valid Python"),
        ("n: int = 2 * m", "plain value"),
        ("n: int = {[1]: 2}", "plain value"),
        ("n: int = " + "(" * 9999, "no valid Python"),
        ("n = '\x00'", "no valid Python"),
    ],
)
def test_a_bad_parameters_cell_is_named(source: str, wrong: str) -> None:
    with pytest.raises(GradtuneError, match=f"toy: .*{wrong}"):
        parameters.read(source, "toy")


# -- running ----------------------------------------------------------------------------------------------------------


def test_unknown_notebook_suggests_the_nearest(root: Path) -> None:
    standin.notebook(root / "notebooks" / "toy.ipynb")
    with pytest.raises(GradtuneError, match=r"unknown notebook 'toi'; did you mean 'toy'\?"):
        runner.find("toi")
    assert runner.find("toy") == runner.find("toy.ipynb") == root / "notebooks" / "toy.ipynb"


def test_a_wrong_parameter_stops_before_anything_runs(root: Path) -> None:
    standin.notebook(root / "notebooks" / "toy.ipynb")
    with pytest.raises(GradtuneError, match="did you mean 'rate'"):
        runner.run("toy", {"rat": 1.0}, root / "out.ipynb")
    assert not (root / "out.ipynb").exists()


def test_the_source_is_never_overwritten(root: Path) -> None:
    path = standin.notebook(root / "notebooks" / "toy.ipynb")
    with pytest.raises(GradtuneError, match="must not replace its source"):
        runner.run("toy", {}, path)


def test_a_file_that_is_no_notebook_is_named(root: Path) -> None:
    (root / "broken.ipynb").write_text("{")
    with pytest.raises(GradtuneError, match=r"broken\.ipynb is no valid notebook"):
        runner.run(root / "broken.ipynb", {})


@pytest.mark.parametrize(
    "content",
    [
        {"cells": 5},
        {"cells": ["a"]},
        {"cells": [{"cell_type": "code", "source": 3}]},
        {"cells": [{"cell_type": "code", "source": "", "metadata": {"tags": 3}}]},
        {"nbformat": 3, "worksheets": [], "cells": []},
        {"cells": [], "metadata": []},
        [],
    ],
)
def test_a_notebook_of_another_form_is_one_sentence(root: Path, content: Any) -> None:
    (root / "odd.ipynb").write_text(json.dumps(content))
    with pytest.raises(GradtuneError, match=r"odd\.ipynb is no valid notebook") as caught:
        runner.run(root / "odd.ipynb", {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "another notebook", "folder", "below a file", "proc"])
def test_nothing_is_written_over_that_is_no_executed_copy(root: Path, kind: str) -> None:
    toy = standin.notebook(root / "notebooks" / "toy.ipynb", "print(seed)")
    other = standin.notebook(root / "notebooks" / "other.ipynb", "print(seed)")
    (root / "README.md").write_text("# Ours")
    (root / "folder").mkdir()
    out = {
        "text": root / "README.md",
        "another notebook": other,
        "folder": root / "folder",
        "below a file": root / "README.md" / "out.ipynb",
        "proc": Path("/proc/out.ipynb"),
    }[kind]
    before = out.read_bytes() if out.is_file() else None
    with pytest.raises(GradtuneError, match=r"is left as it is|cannot be written") as caught:
        runner.run(toy, {}, out)
    assert "\n" not in str(caught.value) and (before is None or out.read_bytes() == before)


def test_an_executed_copy_is_written_over_and_by_force_anything(root: Path) -> None:
    standin.notebook(root / "notebooks" / "toy.ipynb", "print(seed)")
    out = runner.run("toy", {"seed": 1}, root / "out.ipynb")
    assert standin.outputs(runner.run("toy", {"seed": 2}, out)) == ["2\n"]
    out.write_text("mine")
    assert standin.outputs(runner.run("toy", {"seed": 3}, out, force=True)) == ["3\n"]


def test_run_injects_values_of_the_right_type(root: Path) -> None:
    standin.notebook(root / "notebooks" / "toy.ipynb", "print(seed + 1, rate, repeats, fast)")
    out = runner.run("toy", {"seed": "3", "rate": "1e-3", "repeats": "none", "fast": "true"})
    assert out == root / "_build" / "runs" / "toy.ipynb"
    assert standin.outputs(out) == ["4 0.001 None True\n"]


def test_a_failing_cell_is_named_and_the_half_run_copy_is_kept(root: Path) -> None:
    standin.notebook(root / "notebooks" / "toy.ipynb", "print('before')", "{}['key']", "print('after')")
    with pytest.raises(NotebookFailed, match=r"toy failed in cell 'step-2' \(number 4\): KeyError: 'key'") as caught:
        runner.run("toy", {"seed": 1}, root / "out.ipynb")
    error = caught.value
    assert (error.notebook, error.cell, error.number, error.error, error.exit_status) == (
        "toy",
        "step-2",
        4,
        "KeyError",
        1,
    )
    assert standin.outputs(error.out) == ["before\n"]


def test_a_dying_kernel_is_a_failure_of_its_cell(root: Path) -> None:
    standin.notebook(root / "notebooks" / "toy.ipynb", "import os", "os._exit(1)", "1", "2")
    with pytest.raises(NotebookFailed, match=r"cell 'step-2' \(number 4\): DeadKernelError"):
        runner.run("toy", {}, root / "out.ipynb")


# -- nothing is executed twice ----------------------------------------------------------------------------------------


def test_refresh_executes_only_what_changed(root: Path) -> None:
    standin.notebook(root / "notebooks" / "toy.ipynb", "print(seed)")
    out = root / "book" / "toy.ipynb"
    first = runner.refresh("toy", {"seed": 1}, out)
    written = out.stat().st_mtime_ns
    again = runner.refresh("toy", {"seed": 1}, out)
    assert first.fresh and not again.fresh and out.stat().st_mtime_ns == written
    assert (again.key, again.parameters, again.seconds, again.date) == (
        first.key,
        {"seed": 1},
        first.seconds,
        first.date,
    )
    assert runner.refresh("toy", {"seed": 2}, out).fresh
    assert standin.outputs(out) == ["2\n"]
    assert "papermill" not in out.read_text()  # no paths and times of this machine


def test_force_executes_and_a_failure_is_not_taken_for_done(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.notebook(root / "notebooks" / "toy.ipynb", "1 / 0")
    out, calls = root / "book" / "toy.ipynb", []
    with pytest.raises(NotebookFailed):
        runner.refresh("toy", {}, out)

    def pretend(source: Path, values: dict[str, Any], target: Path) -> None:
        calls.append(source)
        target.write_text(source.read_text())

    monkeypatch.setattr(runner, "_execute", pretend)
    for force in (False, False, True):
        runner.refresh("toy", {}, out, force=force)
    assert len(calls) == 2  # after the failure, and by force


def _edit(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _tag(path: Path, tag: str) -> None:
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["metadata"]["tags"] = [tag]
    path.write_text(json.dumps(notebook))


def test_the_key_covers_all_that_outputs_depend_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a notebook without the parameter `data` too: a study that it calls may read data."""
    toy = standin.notebook(root / "notebooks" / "toy.ipynb", "print(1)", parameters="seed: int = 0  # seed")
    raw, installed = root / "data" / "raw", runner._installed()
    keys = [runner.key(toy, {"seed": 1}), runner.key(toy, {"seed": 2})]
    changes = [
        lambda: _edit(root / "lib" / "core.py", "ONE = 2\n"),
        lambda: _edit(root / "lib" / "tasks" / "new.py", ""),
        lambda: _edit(root / "lib" / "kernel.cpp", "int one() { return 1; }\n"),
        lambda: _edit(root / "lib" / "list.txt", "1\n"),
        lambda: _edit(root / "benchmarks" / "rows.json", "{}\n"),
        lambda: _edit(root / "data" / "records" / "toy" / "smoke" / "sgd.jsonl", "{}\n"),
        lambda: _edit(root / "data" / "published" / "table.csv", "a,b\n"),
        lambda: _edit(raw / "UCI_Datasets" / "energy" / "data" / "data.txt", "1 2\n"),
        lambda: _edit(raw / "MNIST" / "raw" / "train-labels-idx1-ubyte", "x"),
        lambda: _edit(raw / "MNIST" / "raw" / "train-labels-idx1-ubyte", "xy"),
        lambda: _edit(raw / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte.gz", "x"),
        lambda: _edit(raw / "SVHN" / "train_32x32.mat", "x"),
        lambda: _edit(raw / "cifar10" / "train" / "cat" / "1.png", "x"),
        lambda: (raw / "cifar10" / "train" / "cat" / "1.png").rename(raw / "cifar10" / "train" / "cat" / "2.png"),
        lambda: _edit(root / "notebooks" / "matplotlibrc", "lines.linewidth: 9\n"),
        lambda: monkeypatch.setattr(runner, "_installed", lambda: [*installed, ("pandas", "99")]),
        lambda: monkeypatch.setattr(runner.platform, "python_version", lambda: "3.99.0"),
        lambda: monkeypatch.setattr(runner.environment, "versions", lambda: {"compiler": "another"}),
        lambda: monkeypatch.setenv("GRADTUNE_COMPILE", "0"),
        lambda: monkeypatch.setenv("OMP_NUM_THREADS", "17"),
        lambda: _tag(toy, "hide-input"),
        lambda: standin.notebook(toy, "print(2)", parameters="seed: int = 0  # seed"),
    ]
    for change in changes:
        change()
        keys.append(runner.key(toy, {"seed": 1}))
    assert len(set(keys)) == len(changes) + 2
    assert {"torch", "pandas", "papermill", "ipykernel", "scipy"} <= {name for name, _ in installed}


def test_the_key_ignores_outputs_caches_and_other_files_of_the_data_root(root: Path) -> None:
    toy = standin.notebook(root / "notebooks" / "toy.ipynb", "print(1)", parameters="seed: int = 0  # seed")
    before = runner.key(toy, {})
    stored = json.loads(toy.read_text())
    stored["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1\n"}]
    toy.write_text(json.dumps(stored))
    _edit(root / "lib" / "__pycache__" / "core.cpython-311.pyc", "x")
    _edit(root / "notebooks" / ".ipynb_checkpoints" / "toy-checkpoint.txt", "x")
    _edit(root / "data" / "raw" / "mine" / "notes.txt", "x")
    assert runner.key(toy, {}) == before


def test_store_is_reproducible_and_leaves_a_failing_source_alone(root: Path) -> None:
    toy = standin.notebook(root / "notebooks" / "toy.ipynb", "print(seed)")
    first = runner.store("toy").read_bytes()
    assert runner.store("toy").read_bytes() == first
    assert standin.outputs(toy) == ["0\n"] and str(root) not in first.decode()
    broken = standin.notebook(root / "notebooks" / "broken.ipynb", "1 / 0").read_bytes()
    with pytest.raises(NotebookFailed):
        runner.store("broken")
    assert (root / "notebooks" / "broken.ipynb").read_bytes() == broken


# -- the notebooks of the book ----------------------------------------------------------------------------------------


@pytest.fixture(params=SOURCES, ids=lambda path: path.stem)
def source(request: pytest.FixtureRequest) -> Any:
    return nbformat.read(request.param, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert SOURCES


def test_stored_notebook_is_valid_and_was_executed_from_top_to_bottom(source: Any) -> None:
    nbformat.validate(source)
    assert [cell.execution_count for cell in code(source)] == list(range(1, len(code(source)) + 1))


def test_stored_notebook_has_no_error_and_no_warning(source: Any) -> None:
    outputs = [output for cell in code(source) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_stored_parameters_are_annotated_commented_and_at_their_smallest(source: Any) -> None:
    cell = code(source)[0]
    assert cell.metadata.get("tags") == ["parameters"]
    found = parameters.read(cell.source, "stored")
    assert found and not [each.name for each in found.values() if not each.type or not each.comment]
    assert parameters.check(found, {name: each.default for name, each in found.items()}, "stored")
    assert found["scale"].default == "smoke"
    assert "data" not in found or found["data"].default == "embedded"


def test_stored_cell_ids_are_readable_and_unique(source: Any) -> None:
    ids = [cell.id for cell in source.cells]
    assert len(set(ids)) == len(ids)
    assert not [
        each for each in ids if not re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", each) or re.fullmatch(r"[0-9a-f]{8}", each)
    ]


def test_stored_notebook_has_prose_before_every_code_cell(source: Any) -> None:
    before = [left.cell_type for left, right in zip(source.cells, source.cells[1:]) if right.cell_type == "code"]
    assert source.cells[0].cell_type == "markdown" and set(before) == {"markdown"}


def test_stored_cells_are_short(source: Any) -> None:
    assert not [cell.id for cell in code(source) if len(cell.source.splitlines()) > 30]


def test_stored_figures_have_caption_and_alternative_text(source: Any) -> None:
    pictures = [output for cell in code(source) for output in cell.outputs if "image/png" in output.get("data", {})]
    marks = [picture.metadata.get(figures.METADATA_KEY, {}) for picture in pictures]
    assert all(mark.get("caption") and mark.get("alt") for mark in marks)
    assert len({mark["name"] for mark in marks}) == len(marks)
