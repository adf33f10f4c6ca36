"""The API reference: no public module is forgotten, and the library's docstrings become sound reStructuredText."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from bs4 import BeautifulSoup
from gradhpo import book, book_api
from gradhpo.book_docstrings import markup

ROOT = Path(__file__).resolve().parents[1]
SHOWN = [name for page in book_api.PAGES for name in book_api.on_page(page)]


# -- which modules there are ------------------------------------------------------------------------------------------


def test_every_module_is_on_one_page_or_behind_the_commands() -> None:
    named = [*SHOWN, *book_api.BEHIND_THE_COMMANDS]
    assert sorted(named) == book_api.modules(), "name each module of the library once in book_api.py"


def test_a_module_that_is_not_named_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks").mkdir()
    for file in ("core.py", "novel.py", "tasks/__init__.py", "tasks/images.py"):
        (tmp_path / file).write_text('"""One thing, and another | of these.\n\nMore."""\n')
    monkeypatch.setattr(book_api, "_LIBRARY", tmp_path)
    assert book_api.modules() == ["core", "novel", "tasks", "tasks.images"]
    assert [name for page in book_api.PAGES for name in book_api.on_page(page)] == ["core", "tasks", "tasks.images"]
    assert list(book_api.pages()) == ["index", "recursion", "tasks"]
    assert "| {py:mod}`gradhpo.tasks.images` | One thing, and another \\| of these. |" in book_api.pages()["index"]


def test_every_page_is_in_the_table_of_contents() -> None:
    toc = book.files(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
    assert [name.removeprefix("executed/api/") for name in toc if "/api/" in name] == list(book_api.pages())


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions that a module defines and does not hide."""
    for name, each in vars(module).items():
        own = (inspect.isclass(each) or inspect.isfunction(each)) and each.__module__ == module.__name__
        if own and not name.startswith("_"):
            yield name, each


@pytest.mark.parametrize("name", SHOWN)
def test_every_public_object_has_a_docstring(name: str) -> None:
    module = importlib.import_module(f"gradhpo.{name}")
    assert module.__doc__
    generated = "Alias for field number", f"{name}("
    missing = [n for n, each in public(module) if not each.__doc__ or each.__doc__.startswith((*generated, f"{n}("))]
    assert missing == []  # a dataclass or tuple without one gets its signature


# -- docstrings as reStructuredText -----------------------------------------------------------------------------------


def rst(text: str, *parameters: str, **targets: str) -> str:
    lines = "\n".join(markup(text.split("\n"), parameters, targets)).split("\n")
    return "\n".join(line for k, line in enumerate(lines) if line or (k and lines[k - 1])).strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a `b c` d", "a ``b c`` d"),
        ("`Step`s and x`y`", ":py:obj:`Step`\\ s and x\\ :py:obj:`y`"),
        ("``already`` code", ":py:obj:`already` code"),
        ("over `[R, A,\n1]` all", "over ``[R, A, 1]`` all"),
        ("lam* = |x| x_ w_t a\\b", "lam\\* = \\|x\\| x\\_ w_t a\\\\b"),
        ("the `Hyper` and `Hyper.name`", "the :py:obj:`Hyper <a.Hyper>` and :py:obj:`Hyper.name <a.Hyper.name>`"),
        ("`b` and `b.c`", ":py:obj:`b` and :py:obj:`b.c <g.b.c>`"),
        ("text\n\n    x* = `f` y\n\ntext", "text\n\n.. code-block:: text\n\n    x* = f y\n\ntext"),
        ("text\n        indented by accident", "text\nindented by accident"),
        ("first:\n* one\n  more\n* two", "first:\n\n* one\n  more\n* two"),
        ("rate: a number\nof them\nsize: two; last `[R]`: b", ":param rate: a number\n  of them\n:param size: two\n"
         ":param last: ``[R]`` b"),
        ("rate: a number\n    of them\nsize: one\n    or two\nIt ends.", ":param rate: a number\n  of them\n"
         ":param size: one\n  or two\n\nIt ends."),
        ("rate: a number. Cost: much.\nRaises E.", ":param rate: a number.\n\nCost: much.\n\nRaises E."),
        ("other: no parameter", "other: no parameter"),
        ("Args:\n    rate: `a b`.\n\nRaises:\n    E: x_ y", "Args:\n    rate: ``a b``.\n\nRaises:\n    E: x\\_ y"),
        ("Attributes:\n    rate: one.", "Args:\n    rate: one."),
    ],
)  # fmt: skip
def test_markup(text: str, expected: str) -> None:
    assert rst(text, "rate", "size", "last", **{"Hyper": "a.Hyper", "b.": "g.b"}) == expected


def test_docutils_reads_every_docstring_without_a_complaint() -> None:
    from docutils import nodes
    from docutils.core import publish_doctree
    from docutils.parsers.rst import roles
    from sphinx.ext.napoleon import GoogleDocstring

    roles.register_generic_role("py:obj", nodes.literal)  # Sphinx's own makes links
    for name in SHOWN:
        source = Path(importlib.import_module(f"gradhpo.{name}").__file__ or "").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                publish_doctree(
                    str(GoogleDocstring(markup(text.split("\n")))),
                    settings_overrides={"report_level": 2, "halt_level": 2},
                )


# -- the built pages --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recursion(book: Path) -> BeautifulSoup:
    return BeautifulSoup((book / "executed" / "api" / "recursion.html").read_text(encoding="utf-8"), "html.parser")


def described(page: BeautifulSoup, name: str) -> Any:
    return page.find(id=f"gradhpo.{name}").parent  # type: ignore[union-attr]


def test_a_field_stands_in_the_signature_with_type_and_default(recursion: BeautifulSoup) -> None:
    state, hyper = described(recursion, "core.State"), described(recursion, "hypers.Hyper")
    assert "w: Tensor" in state.dt.get_text() and "buf: dict[str, Tensor]" in state.dt.get_text()
    assert "windows: int = 1" in hyper.dt.get_text()
    assert not recursion.find(id="gradhpo.core.State.w") and not recursion.find(id="gradhpo.hypers.Hyper.windows")
    assert {"value", "bounds"} <= {each.get_text() for each in hyper.find_all("strong")}


def test_a_protocol_shows_its_members_and_is_never_called(recursion: BeautifulSoup) -> None:
    problem = described(recursion, "core.Problem")
    assert problem.dt.get_text().split() == ["class", "Problem[source]#"]
    assert {dt["id"].split(".")[-1] for dt in problem.dd.find_all("dt", id=True)} == {
        "stationary",
        "train_loss",
        "val_loss",
    }


def test_private_members_are_hidden_and_types_are_linked(recursion: BeautifulSoup) -> None:
    ids = [str(each["id"]) for each in recursion.find_all(id=True)]
    assert not [each for each in ids if each.startswith("gradhpo.") and "._" in each]
    assert described(recursion, "core.initial_state").dt.find("a", href="#gradhpo.rules.Rule")


def test_formulas_stand_as_they_were_written(recursion: BeautifulSoup) -> None:
    blocks = [block.get_text() for block in recursion.select("#module-gradhpo\\.core ~ div pre, section pre")]
    assert any("Z_{t+1} = dPhi/dx Z_t + dPhi/draw" in block for block in blocks)
