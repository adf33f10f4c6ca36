"""The API reference: no public module is forgotten, and docstrings in Google style become sound pages."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from bs4 import BeautifulSoup
from docutils.utils import SystemMessage

from gradtune_book import paths
from gradtune_book.pages import api, build
from tools import ROOT

SHOWN = [name for page in api.PAGES for name in api.on_page(page)]


# -- which modules there are ------------------------------------------------------------------------------------------


def test_every_module_is_on_one_page_or_behind_the_scenes() -> None:
    hidden = [name for name in api.modules() if api.hidden(name)]
    assert sorted([*SHOWN, *hidden]) == api.modules(), "name each module once in pages/api.py"


def test_a_module_that_is_not_named_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("recursion/step.py", "recursion/__init__.py", "novel.py", "nets/__init__.py", "nets/plain.py"):
        (tmp_path / "gradtune" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "gradtune" / file).write_text('"""One thing, and another | of these.\n\nMore."""\n')
    monkeypatch.setattr(paths, "PACKAGES", (tmp_path / "gradtune",))
    recursion, nets = ("gradtune.recursion", "gradtune.recursion.step"), ("gradtune.nets", "gradtune.nets.plain")
    assert api.modules() == sorted([*nets, *recursion, "gradtune.novel"])
    assert [name for page in api.PAGES for name in api.on_page(page)] == [*recursion, *nets]
    assert list(api.pages()) == ["index", "recursion", "nets"]
    assert "| {py:mod}`gradtune.nets.plain` | One thing, and another \\| of these. |" in api.pages()["index"]


def test_every_page_is_in_the_table_of_contents() -> None:
    toc = build.files(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
    assert [name.removeprefix("executed/api/") for name in toc if "/api/" in name] == list(api.pages())


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions that a module defines and does not hide."""
    for name, each in vars(module).items():
        own = (inspect.isclass(each) or inspect.isfunction(each)) and each.__module__ == module.__name__
        if own and not name.startswith("_"):
            yield name, each


@pytest.mark.parametrize("name", SHOWN)
def test_every_public_object_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    generated = "Alias for field number", f"{name}("
    missing = [n for n, each in public(module) if not each.__doc__ or each.__doc__.startswith((*generated, f"{n}("))]
    assert missing == []  # a dataclass or tuple without one gets its signature


# -- docstrings as reStructuredText -----------------------------------------------------------------------------------


def test_docutils_reads_every_docstring_without_a_complaint() -> None:
    from docutils import nodes
    from docutils.core import publish_doctree
    from docutils.parsers.rst import roles
    from sphinx.ext.napoleon import Config, GoogleDocstring

    def code(role: Any, raw: Any, text: str, *rest: Any, **more: Any) -> Any:  # Sphinx's own makes links
        return [nodes.literal(raw, text)], []

    settings: Any = Config(napoleon_use_ivar=True)
    roles.register_local_role("py:obj", code)
    roles.register_local_role("", code)
    for name in api.modules():
        source = Path(importlib.import_module(name).__file__ or "").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                try:
                    publish_doctree(
                        f".. default-role:: py:obj\n\n{GoogleDocstring(text, settings)}",
                        settings_overrides={"report_level": 2, "halt_level": 2, "warning_stream": io.StringIO()},
                    )
                except SystemMessage as error:
                    pytest.fail(f"{name}, {getattr(node, 'name', 'module')}: {error}")


# -- the built pages --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recursion(book: Path) -> BeautifulSoup:
    return BeautifulSoup((book / "executed" / "api" / "recursion.html").read_text(encoding="utf-8"), "html.parser")


def described(page: BeautifulSoup, name: str) -> Any:
    return page.find(id=f"gradtune.recursion.{name}").parent  # type: ignore[union-attr]


def test_a_field_stands_in_the_signature_with_type_and_default(recursion: BeautifulSoup) -> None:
    state, hyper = described(recursion, "states.State"), described(recursion, "hypers.Hyper")
    assert "w: Tensor" in state.dt.get_text() and "buf: dict[str, Tensor]" in state.dt.get_text()
    assert "windows: int = 1" in hyper.dt.get_text()
    assert not recursion.find(id="gradtune.recursion.states.State.w") and not recursion.find(
        id="gradtune.recursion.hypers.Hyper.windows"
    )
    assert {"value", "bounds"} <= {each.get_text() for each in hyper.find_all("strong")}


def test_a_protocol_shows_its_members_and_is_never_called(recursion: BeautifulSoup) -> None:
    problem = described(recursion, "problems.Problem")
    assert problem.dt.get_text().split() == ["class", "Problem[source]#"]
    assert {dt["id"].split(".")[-1] for dt in problem.dd.find_all("dt", id=True)} == {
        "stationary",
        "train_loss",
        "val_loss",
    }


def test_private_members_are_hidden_and_types_are_linked(recursion: BeautifulSoup) -> None:
    ids = [str(each["id"]) for each in recursion.find_all(id=True)]
    assert not [each for each in ids if each.startswith("gradtune.") and "._" in each]
    assert described(recursion, "states.initial_state").dt.find("a", href="#gradtune.recursion.rules.Rule")


def test_formulas_stand_as_they_were_written(recursion: BeautifulSoup) -> None:
    blocks = [
        block.get_text() for block in recursion.select("#module-gradtune\\.recursion\\.step ~ div pre, section pre")
    ]
    assert any("Z_{t+1} = dPhi/dx Z_t + dPhi/draw" in block for block in blocks)
