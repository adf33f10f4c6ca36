"""What every chapter keeps to: folded cells that only show, captions, numbers that a reader can take in."""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
from types import ModuleType
from typing import Any

import pytest
from bs4 import BeautifulSoup

from gradtune_book.notebooks import runner
from tools import ROOT

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHOWS = re.compile(r"(figures\.(show|table)|((tables|common)\.)?Table|common\.where)\(")
LONGEST, MOST_DIGITS = 20, 5

chapters = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def code(path: Any) -> list[dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**c, "source": "".join(c["source"])} for c in found if c["cell_type"] == "code"]


def tags(cell: dict[str, Any]) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def texts(cell: dict[str, Any], kind: str) -> list[str]:
    found = [o.get("data", {}).get(kind) for o in cell["outputs"]]
    return ["".join(text) for text in found if text]


@chapters
def test_a_cell_that_only_shows_is_folded_and_short(path: Any) -> None:
    for cell in code(path):
        source = cell["source"]
        if SHOWS.match(source):
            assert "hide-input" in tags(cell), source
            assert source.count("\n") + 1 < LONGEST, source
        if "hide-input" in tags(cell):
            assert "parameters" not in tags(cell)


@chapters
def test_every_table_has_a_caption(path: Any) -> None:
    for cell in code(path):
        for text in texts(cell, "text/html"):
            assert all(table.caption for table in BeautifulSoup(text, "html.parser").find_all("table")), cell["source"]
        if "registry." not in cell["source"]:
            for text in texts(cell, "text/markdown"):
                assert "| ---" not in text or text.startswith("**Table.** "), cell["source"]


@chapters
def test_the_numbers_of_a_table_have_few_digits(path: Any) -> None:
    for cell in code(path):
        for text in texts(cell, "text/html"):
            for part in BeautifulSoup(text, "html.parser").find_all("td"):
                word = part.get_text().strip()
                assert word not in ("NaN", "nan", "None"), cell["source"]
                if re.fullmatch(r"[-\N{MINUS SIGN}]?\d*\.\d+", word):
                    digits = re.sub(r"\D", "", word).lstrip("0")
                    assert len(digits) <= MOST_DIGITS, (word, cell["source"])


@chapters
def test_recorded_results_come_before_live_ones(path: Any) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    heads = re.findall(r"^## (Recorded|Live)", "\n".join("".join(c["source"]) for c in cells), re.M)
    assert heads == sorted(heads, key=["Recorded", "Live"].index)


@chapters
def test_what_a_chapter_takes_from_a_module_is_there(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that a build skips, as a record lacks, name nothing that has been renamed either."""
    monkeypatch.syspath_prepend(str(ROOT))  # `benchmarks`
    known: dict[str, Any] = {}
    trees = [ast.walk(ast.parse(cell["source"])) for cell in code(path)]
    for node in itertools.chain.from_iterable(trees):
        if isinstance(node, ast.Import):
            known |= {n.asname or n.name: importlib.import_module(n.name) for n in node.names if "." not in n.name}
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
                known[name.asname or name.name] = getattr(module, name.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of = known.get(node.value.id)
            assert not isinstance(of, ModuleType) or hasattr(of, node.attr), f"{of.__name__}.{node.attr}"


@chapters
def test_live_runs_are_computed_on_the_device_that_is_asked_for(path: Any) -> None:
    sources = [cell["source"] for cell in code(path)]
    calls = [source for source in sources if "papers.run_now(" in source or "step_cost.measure(" in source]
    declared = runner.declared(path)
    assert ("device" in declared) == bool(calls)
    for source in calls:
        assert re.search(r"(run_now|measure)\(.*\bdevice\b.*\)", source), source
    if calls:
        assert declared["device"].default == "cpu" and declared["device"].type == "str"
