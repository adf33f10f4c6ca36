"""What the library is without the book: its command, its version, its extras and variables."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest

import gradtune
from gradtune import __main__ as command
from gradtune import extras, methods, variables
from gradtune.errors import GradtuneError
from tools import ROOT


def test_the_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command._alone(["--version"]) == 0
    assert capsys.readouterr().out == f"gradtune {gradtune.__version__}\n"
    assert command._alone(["list", "methods"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(methods.METHODS)
    assert command._alone([]) == 0
    assert capsys.readouterr().out.startswith("usage: gradtune")


@pytest.mark.parametrize("verb", ["book", "record", "run", "data", "check", "list", "no-such-verb"])
def test_verbs_of_the_book_answer_with_one_sentence(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command._alone([verb, "more"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"`gradtune {verb}` belongs to the book" in err


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(GradtuneError, match=r"needs pandas.*pip install 'gradtune\[plot\]'"):
        methods.table()
    with pytest.raises(ModuleNotFoundError):  # a package that is there, and lacks one of its own
        monkeypatch.setattr(extras, "import_module", _lacking)
        extras.needed("pandas", "plot", "a table")


def _lacking(name: str) -> None:
    raise ModuleNotFoundError("No module named 'other'", name="other")


def test_the_extras_that_errors_name_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = "".join(file.read_text() for file in (ROOT / "lib" / "gradtune").rglob("*.py"))
    named = set(re.findall(r'needed\("[\w.]+", "(\w+)"', sources)) | set(re.findall(r"gradtune\[(\w+)\]", sources))
    assert named == set(project["optional-dependencies"])
    assert [re.split("[<>=]", each)[0] for each in project["dependencies"]] == ["torch", "numpy", "tqdm"]


def test_only_the_former_name_of_a_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADTUNE_CACHE", raising=False)
    former = variables._FORMER_PREFIX + "CACHE"
    assert variables.read("CACHE") == ""
    monkeypatch.setenv(former, "somewhere")
    with pytest.raises(GradtuneError, match=f"{former} is no longer read; rename it to GRADTUNE_CACHE"):
        variables.read("CACHE")
    monkeypatch.setenv("GRADTUNE_CACHE", " here ")
    assert variables.read("CACHE") == "here"
