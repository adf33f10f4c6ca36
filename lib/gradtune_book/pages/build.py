"""Build the book: execute the notebooks that changed, write the generated pages, run Jupyter Book.

The way from the table of contents to the book is::

    _toc.yml -> notebooks/NAME.ipynb -> book/executed/NAME.ipynb -> _build/html
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gradtune.errors import GradtuneError
from gradtune_book import config, paths
from gradtune_book.notebooks import runner
from gradtune_book.notebooks.runner import Execution
from gradtune_book.pages import api, old, verdicts
from gradtune_book.records import environment, locks, store

GENERATED = ("provenance", "verdicts")
"""Pages among the executed notebooks that no notebook is the source of."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Sphinx colours its messages even where no terminal shows them


def build(scale: str = "smoke", data: str = "auto", force: bool = False, device: str = "cpu") -> Path:
    """Build the book and return the path of its `index.html`.

    Args:
        scale: Size of the live runs, passed to every notebook that has the parameter `scale`.
        data: "auto", "embedded" or a dataset's name, passed to every notebook that has the parameter `data`.
        force: Execute every notebook, changed or not, and read every page anew.
        device: Where live runs are computed, passed to every notebook that has the parameter `device`.

    Raises:
        GradtuneError: The scale is unknown, the device is not there, another build is at work, the table of contents
            cannot be read or names a notebook that is not there, a file cannot be written, or Jupyter Book gave a
            warning or an error.
        NotebookFailed: A cell failed. No later notebook was executed and no page was built; the pages of an earlier
            build say from then on that they are old.
    """
    config.check_scale(scale)
    environment.device(device)
    wanted = {"scale": scale, "data": data, "device": device}
    try:
        with alone():
            old.unmark(html())
            try:
                return _build(wanted, force)
            except GradtuneError as error:
                old.mark(html(), str(error))
                raise
    except OSError as error:
        raise GradtuneError(f"{error.filename or 'a file'} cannot be read or written ({error.strerror})") from error


@contextmanager
def alone() -> Iterator[None]:
    """Context: no other process builds this checkout's book.

    Raises:
        GradtuneError: Another one does.
    """
    file = paths.ROOT / "_build" / ".building"
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not locks.claim(descriptor, 0):
            raise GradtuneError("another process builds this book; wait until it has ended, then build again")
        yield
    finally:
        os.close(descriptor)


def html() -> Path:
    """Return the folder of the built pages."""
    return paths.ROOT / "_build" / "html"


def _build(wanted: Mapping[str, str], force: bool) -> Path:
    executions = [_refresh(name, wanted, force) for name in contents()]
    _write_if_changed(executed() / "provenance.md", provenance_page(executions))
    if "executed/verdicts" in _entries():
        _write_verdicts()
    written = [_write_if_changed(executed() / "api" / f"{name}.md", text) for name, text in api.pages().items()]
    _jupyter_book(force or any(written))  # Sphinx takes a module that has moved for one that is described twice
    index = html() / "index.html"
    print(f"The book is at {index}")
    return index


def executed() -> Path:
    """Return the folder of the executed notebooks and generated pages, below the book's pages."""
    return paths.ROOT / "book" / "executed"


def contents() -> list[str]:
    """Return the names of the notebooks in the table of contents, in its order."""
    entries = [Path(entry) for entry in _entries()]
    return [entry.name for entry in entries if entry.parent.name == "executed" and entry.name not in GENERATED]


def _entries() -> list[str]:
    toc = paths.ROOT / "_toc.yml"
    try:
        return [str(name) for name in files(yaml.safe_load(toc.read_text(encoding="utf-8")))]
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise GradtuneError(f"the table of contents {toc} cannot be read ({reason}); restore it from git") from error


def _write_verdicts() -> None:
    """Write the page of verdicts and its picture."""
    _write_if_changed(executed() / "verdicts.md", verdicts.page())
    drawn, found = executed() / verdicts.PICTURE, verdicts.picture()
    if not drawn.is_file() or drawn.read_bytes() != found:
        drawn.write_bytes(found)


def files(node: Any) -> list[str]:
    """Return every `file` and the `root` below one node of the table of contents."""
    if isinstance(node, list):
        return [name for each in node for name in files(each)]
    if not isinstance(node, dict):
        return []
    own = [node[name] for name in ("root", "file") if name in node]
    return own + [name for value in node.values() for name in files(value)]


def _refresh(name: str, wanted: Mapping[str, str], force: bool) -> Execution:
    has = runner.declared(name)
    values = {key: value for key, value in wanted.items() if key in has}
    done = runner.refresh(name, values, executed() / f"{name}.ipynb", force)
    print(f"{name}: " + (f"executed in {done.seconds:.0f} s" if done.fresh else "unchanged"), flush=True)
    return done


def provenance_page(executions: list[Execution]) -> str:
    """Write the page on where the book's numbers come from: live cells of these executions, and the records."""
    live = [
        (
            f"[{e.notebook}]({e.notebook}.ipynb)",
            *(e.parameters.get(p, "-") for p in ("scale", "data", "device")),
            e.seconds,
            e.date,
        )
        for e in executions
    ]
    return "\n".join(
        [
            "# Provenance",
            "",
            "Every build of the book writes this page. A number in a chapter is either computed by a live cell of that",
            "build or read from a run record; both are listed here.",
            "",
            "## Live cells of this build",
            "",
            *_table(("notebook", "scale", "data", "device", "seconds", "executed (UTC)"), live),
            "",
            "## Run records",
            "",
            *_records_tables(),
            "",
        ]
    )


def _records_tables() -> list[str]:
    """Return a heading and a table for each study and scale of the records."""
    lines: list[str] = []
    for (study, scale), frame in store.provenance().groupby(["study", "scale"], sort=True):
        rest = frame.drop(columns=["study", "scale"])
        table = _table(tuple(map(str, rest.columns)), rest.itertuples(index=False, name=None))
        lines += [f"### `{study}`, {scale} scale", "", *table, ""]
    return lines or ["There is no record yet."]


def _table(head: tuple[str, ...], rows: Any) -> list[str]:
    """Return a Markdown table, one line an item."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]


def _cell(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("$", "\\$")


def _write_if_changed(path: Path, text: str) -> bool:
    """Write a page, but keep the file's time when the text is the same, so that Sphinx does not read it again.

    Returns:
        Whether it was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    other = not path.is_file() or path.read_text(encoding="utf-8") != text
    if other:
        path.write_text(text, encoding="utf-8")
    return other


def _jupyter_book(anew: bool) -> None:
    """Run Jupyter Book with warnings as errors; print its warnings when there are any.

    Args:
        anew: Read every page anew, changed or not.
    """
    out = paths.ROOT / "_build"
    if anew:
        shutil.rmtree(out / ".doctrees", ignore_errors=True)
    options = [
        "--path-output",
        ".",
        "--config",
        "_config.yml",
        "--toc",
        str(paths.ROOT / "_toc.yml"),
        "-W",
        "--keep-going",
    ]
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "book", *options]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        # Sphinx reads unchanged pages from its cache and would not repeat their warnings the next time.
        shutil.rmtree(out / ".doctrees", ignore_errors=True)
        print(_COLOUR.sub("", done.stderr or done.stdout), file=sys.stderr)
        raise GradtuneError("Jupyter Book gave a warning or an error (above); mend the page it names and build again")
