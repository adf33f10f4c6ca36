"""Every chapter stands where nothing is recorded: what it reads from records is shown as absent, and no cell fails."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from tools import ROOT

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))


def sections(path: Path) -> list[tuple[str, str, str]]:
    """Heading of its section, id and source of every code cell."""
    heading, found = "", []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next((line for line in source.splitlines()[::-1] if line.startswith("## ")), heading)
        elif cell["cell_type"] == "code":
            found.append((heading, cell["id"], source))
    return found


def is_live(heading: str) -> bool:
    return heading.startswith("## Live")


def names(source: str, kind: type) -> set[str]:
    return {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and isinstance(n.ctx, kind)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_print(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path))
    monkeypatch.delenv("GRADTUNE_DATA", raising=False)
    monkeypatch.chdir(ROOT / "notebooks")
    shell = InteractiveShell.instance()
    shell.reset(new_session=True)
    t0=time.time(); slow=[]
    for heading, name, source in sections(path):
        if is_live(heading):
            continue
        t=time.time()
        result = shell.run_cell(source, store_history=False)
        if time.time()-t>1: slow.append((name,round(time.time()-t,1)))
        assert result.success, (name, result.error_in_exec)
    print("TIME", path.stem, round(time.time()-t0,1), slow)
    rec=set()
    for h,n,s in sections(path):
        if h.startswith("## Recorded"): rec|=names(s, ast.Store)
    for h,n,s in sections(path):
        if is_live(h) and (bad := names(s, ast.Load)&rec): print("TAINT", path.stem, n, bad)
