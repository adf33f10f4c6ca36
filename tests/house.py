"""The house: which rooms there are, on which floor, and which rooms import which.

`python tests/house.py` prints the map of this checkout, `python tests/house.py FOLDER` that of the packages below any
folder, such as the `lib/` of an older commit. `test_house.py` holds the walls.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

LIB = Path(__file__).resolve().parents[1] / "lib"

# [the floors]
LIBRARY = (
    ("errors",),
    ("variables", "extras"),
    ("nets",),
    ("recursion",),
    ("estimators", "optim"),
    ("training",),
    ("search",),
    ("methods",),
    ("tuning",),
)
BOOK = (
    ("config", "paths", "worker", "papers.packages", "papers.restarts", "papers.published", "papers.sharing"),
    ("data", "records"),
    ("notebooks", "tasks", "checks", "papers.series"),
    ("claims",),
    ("papers.clip", "papers.fds", "papers.metaoptimize", "papers.oho", "papers.onepass", "papers.together"),
    ("papers",),
    ("pages",),
    ("cli",),
)
# [end of the floors]
"""Rooms from the ground floor up. A room imports from floors below it alone; the library nothing of the book."""

PACKAGES = {"gradtune": LIBRARY, "gradtune_book": BOOK}
Edges = dict[str, set[str]]


def modules(lib: Path = LIB) -> dict[str, Path]:
    """Full name -> file of every module below a folder."""
    files = (file for file in sorted(lib.rglob("*.py")) if "egg-info" not in str(file))
    return {".".join(file.relative_to(lib).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules among `known` that a file imports, wherever in it, for type checkers or not."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.module in known:
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                yield inner if inner in known else node.module


def edges(lib: Path = LIB) -> Edges:
    """Module -> the modules it imports."""
    known = modules(lib)
    return {name: {each for each in imports(file, known) if each != name} for name, file in known.items()}


def room(module: str, floors: Sequence[Sequence[str]]) -> str | None:
    """The room of a module below its package: the longest one that its name begins with; None for the front door."""
    inner = module.partition(".")[2]
    parts = inner.split(".")
    heads = [".".join(parts[:k]) for k in range(len(parts), 0, -1)]
    rooms = {name for floor in floors for name in floor}
    return next((head for head in heads if head in rooms), None)


def between_rooms(found: Edges, package: str) -> Edges:
    """Room -> the other rooms of the same package that its modules import."""
    floors = PACKAGES[package]
    out: Edges = {name: set() for floor in floors for name in floor}
    for module, targets in found.items():
        here = room(module, floors)
        if module.partition(".")[0] == package and here is not None:
            there = {room(each, floors) for each in targets if each.partition(".")[0] == package}
            out[here] |= {each for each in there if each is not None} - {here}
    return out


def circles(found: Edges) -> list[list[str]]:
    """Groups of names that import one another in a circle (Tarjan's strongly connected components of two or more)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for each in sorted(found.get(name, ())):
            if each not in index:
                visit(each)
            if each in stack:
                low[name] = min(low[name], low[each])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                out.append(sorted(group))

    for name in sorted(found):
        if name not in index:
            visit(name)
    return out


def heights(found: Edges) -> dict[str, int]:
    """How many modules lie below each one on the longest way down, the module itself counted; circles count once."""
    group = {name: name for name in found} | {name: g[0] for g in circles(found) for name in g}
    below: Edges = {}
    for name, targets in found.items():
        below.setdefault(group[name], set()).update(group[each] for each in targets if group[each] != group[name])
    known: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in known:
            known[name] = 1 + max(map(height, below[name]), default=0)
        return known[name]

    return {name: height(group[name]) for name in found}


def sketch(lib: Path) -> list[str]:
    """The map of the packages below a folder in lines of text."""
    found, files = edges(lib), modules(lib)
    lines = []
    for package in sorted({name.partition(".")[0] for name in found}):
        own = {name: {each for each in targets if each.startswith(package + ".") or each == package}
               for name, targets in found.items() if name.partition(".")[0] == package}  # fmt: skip
        size = sum(len(files[name].read_text(encoding="utf-8").splitlines()) for name in own)
        lines.append(
            f"{package}: {len(own)} modules, {size} lines, {sum(map(len, own.values()))} imports between them, "
            f"{max(heights(own).values())} floors of modules, circles: {circles(own) or 'none'}"
        )
        if package not in PACKAGES:
            continue
        rooms = between_rooms(found, package)
        for number, floor in reversed(list(enumerate(PACKAGES[package]))):
            lines += [f"  {number:2}  {name:16} <- {', '.join(sorted(rooms[name])) or '-'}" for name in floor]
    out = sorted(f"{a} -> {b}" for a, targets in found.items() for b in targets
                 if a.partition(".")[0] == "gradtune" and b.partition(".")[0] == "gradtune_book")  # fmt: skip
    return [*lines, f"arrows from the library into the book: {', '.join(out) or 'none'}"]


if __name__ == "__main__":
    print("\n".join(sketch(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else LIB)))
