"""The walls: the library imports nothing of the book, no room imports from its own floor or one above, no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from house import LIB, PACKAGES, between_rooms, circles, edges, heights, modules, room
from tools import ROOT

FOUND = edges()
HEAVY = ("pandas", "matplotlib", "seaborn", "sklearn", "scipy", "torchvision", "optuna", "IPython", "papermill", "yaml")


def test_the_library_imports_nothing_of_the_book() -> None:
    out = {a: b for a, b in FOUND.items() if a.split(".")[0] == "gradtune"}
    assert [(a, c) for a, b in out.items() for c in b if c.split(".")[0] == "gradtune_book"] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_room(package: str) -> None:
    front = {package, f"{package}.__main__"}
    homeless = [m for m in FOUND if m.split(".")[0] == package and room(m, PACKAGES[package]) is None]
    assert set(homeless) <= front, "give it a room in tests/house.py"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_runs_up_or_along_a_floor(package: str) -> None:
    floors = PACKAGES[package]
    level = {name: k for k, floor in enumerate(floors) for name in floor}
    rooms = between_rooms(FOUND, package)
    assert [(a, b) for a, targets in rooms.items() for b in targets if level[b] >= level[a]] == []


def test_no_circle_of_modules() -> None:
    inner = {m: {t for t in targets if t not in PACKAGES} for m, targets in FOUND.items()}  # of the front doors below
    assert circles(inner) == []


def test_the_front_door_is_not_used_from_inside() -> None:
    """A room imports the room it needs; only the version is read off the package itself."""
    users = [m for m, targets in FOUND.items() if "gradtune" in targets and m.split(".")[0] == "gradtune"]
    assert users == ["gradtune.__main__"]


def test_what_the_map_says_of_a_made_up_house(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    files = {
        "__init__": "",
        "a": "",
        "b": "from p import a",
        "c": "import p.b\nfrom p import d",
        "d": "from p.c import x",
    }
    for name, text in files.items():
        (tmp_path / "p" / f"{name}.py").write_text(text + "\n")
    found = edges(tmp_path)
    assert found["p.b"] == {"p.a"} and found["p.c"] == {"p.b", "p.d"} and found["p.d"] == {"p.c"}
    assert circles(found) == [["p.c", "p.d"]]
    assert heights(found)["p.c"] == heights(found)["p.d"] == 3


@pytest.mark.parametrize("name", [m for m in modules() if m.split(".")[0] == "gradtune" and "__main__" not in m])
def test_the_library_needs_torch_numpy_and_tqdm_at_import(name: str) -> None:
    """Read off the source: heavy packages are imported by the calls that need them, never at the top."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8"))
    names = [a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)]
    assert {n.split(".")[0] for n in names} & set(HEAVY) == set()


def test_importing_all_of_the_library_loads_no_heavy_package() -> None:
    """In a process of its own: torch, numpy and tqdm are all there is."""
    library = [m for m in modules() if m.split(".")[0] == "gradtune"]
    code = (
        f"import sys, importlib; [importlib.import_module(m) for m in {library!r}]; "
        f"print([h for h in {HEAVY!r} if h in sys.modules], 'gradtune_book' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["[]", "False"]


def test_the_rooms_say_what_they_are() -> None:
    for file in LIB.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        assert "belong here" in text and "import" in text, f"{file.relative_to(ROOT)} does not say it"


def test_a_wheel_holds_every_file_of_the_library() -> None:
    """Files that are no Python are listed in pyproject.toml."""
    package = LIB / "gradtune"
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["gradtune"]
    there = {f for f in package.rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert there == {file for pattern in listed for file in package.glob(pattern)}


def test_files_stay_what_one_reader_can_hold() -> None:
    long = {name: n for name, file in modules().items() if (n := len(file.read_text().splitlines())) > 400}
    assert long == {}


def test_the_librarys_tests_need_no_book() -> None:
    """They run where the library alone is installed (`.ci/lowest`)."""
    helpers = {"problems", "tools", "traces", "toy", "house"}
    for file in (ROOT / "tests" / "library").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        heads = {name.split(".")[0] for name in names}
        local = {h for h in heads if (ROOT / "tests" / f"{h}.py").is_file()}
        assert "gradtune_book" not in heads and local <= helpers, file
    for name in helpers:
        assert "gradtune_book import" not in (text := (ROOT / "tests" / f"{name}.py").read_text()), name
        assert "from gradtune_book" not in text, name


def test_no_two_test_files_have_one_name() -> None:
    """Pytest imports a test file by its name alone, and refuses the second of that name."""
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
