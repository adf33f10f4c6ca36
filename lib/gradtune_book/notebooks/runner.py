"""Run notebooks through papermill: strictly, only when something changed, and with failures that name the cell.

* `run` executes one notebook with some parameters into a file of its own.
* `refresh` does the same for the book, and skips a notebook when nothing it depends on has changed since the last time.
* `store` executes a source notebook in place with its defaults, for the output that it is committed with.

`python -m gradtune_book.notebooks.runner [NAME...]` stores the named notebooks, or all of them.
"""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradtune import variables
from gradtune.errors import GradtuneError, unknown
from gradtune.nets import compiled
from gradtune_book import paths
from gradtune_book.data import manifest
from gradtune_book.notebooks import parameters
from gradtune_book.records import environment

STAMP = "gradtune"
"""Key of the notebook metadata in which `refresh` writes its `Execution`."""

_THAT_COUNT = ("OMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH", "CUDA", "CUBLAS", "MPL", "MATPLOTLIB", "PYTHONHASHSEED")
"""Beginnings of the names of environment variables that can change what a cell computes or draws."""


class NotebookFailed(GradtuneError):
    """A cell of a notebook failed.

    The arguments are attributes of the same names.

    Args:
        notebook: Name of the notebook.
        cell: Id of the cell, "?" where it is not known.
        number: Number of the cell in the source, counted from 1; 0 where it is not known.
        error: Name of the exception.
        message: Text of the exception.
        out: Where the half-run notebook lies.
    """

    exit_status = 1  # of the command line: not the user's mistake

    def __init__(self, notebook: str, cell: str, number: int, error: str, message: str, out: Path) -> None:
        self.notebook, self.cell, self.number = notebook, cell, number
        self.error, self.message, self.out = error, message, out
        what = textwrap.shorten(f"{error}: {message}".rstrip(": "), 400, placeholder=" ...")
        super().__init__(f"notebook {notebook} failed in cell {cell!r} (number {number}): {what}; half-run copy: {out}")


@dataclass(frozen=True)
class Execution:
    """What `refresh` did, or had done before.

    Attributes:
        notebook: Name of the notebook.
        key: Digest of all that the outputs depend on (`runner.key`).
        parameters: Value of each parameter that was set, by name.
        seconds: How long the execution took.
        date: When it began, in UTC and ISO 8601.
        fresh: Whether this call executed the notebook.
    """

    notebook: str
    key: str
    parameters: dict[str, Any]
    seconds: float
    date: str
    fresh: bool = True


def folder() -> Path:
    """Return the folder of the source notebooks."""
    return paths.ROOT / "notebooks"


def names() -> list[str]:
    """Return the names of the source notebooks, sorted."""
    return sorted(path.stem for path in folder().glob("*.ipynb"))


def find(notebook: str | Path) -> Path:
    """Return the absolute path of a notebook given by name or path.

    Raises:
        GradtuneError: There is no such notebook. The error suggests the nearest name.
    """
    path = Path(notebook)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    if path.stem in names() and str(notebook) in (path.stem, path.name):
        return folder() / f"{path.stem}.ipynb"
    raise unknown("notebook", str(notebook), names())


def declared(notebook: str | Path) -> dict[str, parameters.Parameter]:
    """Return the parameters of a notebook by name, none when it has no cell tagged `parameters`.

    Raises:
        GradtuneError: There is no such notebook, or it or its `parameters` cell cannot be read.
    """
    path = find(notebook)
    for cell in _read(path)["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            return parameters.read(_text(cell["source"]), path.stem)
    return {}


def run(notebook: str | Path, values: Mapping[str, Any], out: str | Path | None = None, force: bool = False) -> Path:
    """Execute a notebook with some parameters and return the path of the executed copy.

    Args:
        notebook: Name, such as `clip_quadratic`, or path.
        values: Values of parameters by name. Text is converted to the type that the notebook declares.
        out: Where to write, `_build/runs/NAME.ipynb` by default. It cannot be the notebook itself.
        force: Write over a file that is no executed copy of a notebook.

    Raises:
        GradtuneError: The notebook or a parameter is unknown, a value has the wrong type, or `out` is the notebook
            itself, a file that is no executed copy, or a place that cannot be written. Nothing has run then.
        NotebookFailed: A cell failed.
    """
    source = find(notebook)
    checked = parameters.check(declared(source), values, source.stem)
    target = Path(out).resolve() if out is not None else paths.ROOT / "_build" / "runs" / source.name
    if target == source:
        raise GradtuneError(
            f"the executed copy of {source.name} must not replace its source; choose another file with -o"
        )
    _make_room(target, force)
    _execute(source, checked, target)
    return target


def _make_room(target: Path, force: bool) -> None:
    """Remove an executed copy that is to be replaced, and see that the new one can be written."""
    if target.exists() and not force and not _is_executed_copy(target):
        raise GradtuneError(
            f"{target} is no executed copy of a notebook and is left as it is; choose another file with -o, or add "
            "--force"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.touch()
        target.unlink()
    except OSError as error:
        raise GradtuneError(f"{target} cannot be written ({error.strerror}); choose another file") from error


def _is_executed_copy(path: Path) -> bool:
    """Tell whether a file is what papermill or `refresh` wrote."""
    try:
        return not {"papermill", STAMP}.isdisjoint(_read(path)["metadata"])
    except (OSError, GradtuneError, UnicodeDecodeError):
        return False


def refresh(notebook: str | Path, values: Mapping[str, Any], out: Path, force: bool = False) -> Execution:
    """Execute a notebook into a file, unless the file holds just that already.

    Args:
        notebook: Name or path.
        values: Values of parameters by name, as for `run`.
        out: The file.
        force: Execute in any case.

    Returns:
        The execution, or the earlier one whose output the file holds.

    Raises:
        GradtuneError: As `run`.
        NotebookFailed: A cell failed.
    """
    source = find(notebook)
    checked = parameters.check(declared(source), values, source.stem)
    now = key(source, checked)
    before = _stamp(out)
    if not force and before is not None and before.key == now:
        return before
    start, date = time.perf_counter(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run(source, checked, out, force=True)
    done = Execution(source.stem, now, checked, round(time.perf_counter() - start, 1), date)
    executed = _without_timing(_read(out))
    executed["metadata"][STAMP] = {name: value for name, value in asdict(done).items() if name != "fresh"}
    _write(executed, out)
    return done


def store(notebook: str | Path) -> Path:
    """Execute a source notebook with its defaults, write the outputs into it and return its path.

    Raises:
        GradtuneError: There is no such notebook.
        NotebookFailed: A cell failed. The notebook is unchanged.
    """
    source = find(notebook)
    out = paths.ROOT / "_build" / "runs" / source.name
    executed = _without_timing(_read(run(source, {}, out, force=True)))
    _write(executed, source)
    return source


def key(notebook: Path, values: Mapping[str, Any]) -> str:
    """Return a digest of what a notebook's outputs depend on.

    It covers the notebook's cells with their tags, the other files beside it, every file of both packages and of the
    benchmarks, the parameters, the records, the published numbers, name, size and time of every data file that a loader
    may take, the versions of all installed packages and of the compiler, the processor, and environment variables that
    can change a result.

    Args:
        notebook: Path of the source notebook.
        values: Values of parameters by name.
    """
    libraries = (*paths.PACKAGES, paths.ROOT / "benchmarks")
    evidence = (*paths.records_roots(), paths.published_root())
    state = {
        "source": [(c["cell_type"], _text(c["source"]), c["metadata"]) for c in _read(notebook)["cells"]],
        "beside": environment.digest(notebook.parent, lambda path: path.suffix != ".ipynb"),
        "library": [environment.digest(root, lambda path: True) for root in libraries],
        "parameters": dict(values),
        "evidence": [environment.digest(root, lambda path: path.suffix in (".jsonl", ".csv")) for root in evidence],
        "versions": [platform.python_version(), _installed(), environment.versions(), compiled.processor()],
        "variables": _variables(),
        "data": [str(paths.data_root()), manifest.surface()],
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


@functools.cache
def _installed() -> list[tuple[str, str]]:
    """Names and versions of all installed packages."""
    return sorted({(each.metadata["Name"], each.version) for each in importlib.metadata.distributions()})


def _variables() -> dict[str, str]:
    """Environment variables that can change a result; folders of data, records and caches count by what they hold."""
    found = {name: value for name, value in os.environ.items() if name.startswith(_THAT_COUNT)}
    return found | {name: variables.read(name) for name in ("COMPILE",)}


def _execute(source: Path, values: Mapping[str, Any], out: Path) -> None:
    """Run papermill in the notebook's own folder, as Jupyter would; turn its exceptions into `NotebookFailed`."""
    import papermill
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it does not know `X | None` and warns of such parameters
    settings = {"kernel_name": "python3", "language": "python", "progress_bar": False, "cwd": source.parent}
    quiet = ["--log-level=CRITICAL"]  # the kernel else says at every start that it talks to us over TCP
    try:
        papermill.execute_notebook(source, out, parameters=dict(values), extra_arguments=quiet, **settings)
    except papermill.PapermillExecutionError as error:
        raise _failure(source, out, error.ename, error.evalue) from None
    except (DeadKernelError, CellExecutionError, CellTimeoutError) as error:
        raise _failure(source, out, type(error).__name__, str(error).strip().splitlines()[0]) from None


def _failure(source: Path, out: Path, error: str, message: str) -> NotebookFailed:
    """Find the failed cell in the half-run copy: the one with an error output, else the last that was started."""
    cells = [cell for cell in _read(out)["cells"] if cell["cell_type"] == "code"] if out.is_file() else []
    with_error = [c for c in cells if any(o["output_type"] == "error" for o in c["outputs"])]
    started = [c for c in cells if c["metadata"].get("papermill", {}).get("start_time") is not None]
    name = next((cell.get("id", "?") for cell in with_error + started[::-1]), "?")
    ids = [cell.get("id") for cell in _read(source)["cells"]]
    return NotebookFailed(source.stem, name, ids.index(name) + 1 if name in ids else 0, error, message, out)


def _stamp(out: Path) -> Execution | None:
    """Return what an earlier `refresh` wrote into `out`, None when there is no whole execution there."""
    try:
        return Execution(**_read(out)["metadata"][STAMP], fresh=False)
    except (OSError, GradtuneError, KeyError, TypeError):
        return None


def _without_timing(notebook: dict[str, Any]) -> dict[str, Any]:
    """Drop what differs from run to run and from machine to machine: paths, times, the patch version of Python."""
    notebook["metadata"].pop("papermill", None)
    notebook["metadata"].get("language_info", {}).pop("version", None)
    for cell in notebook["cells"]:
        for name in ("papermill", "execution"):
            cell["metadata"].pop(name, None)
        if not cell["metadata"].get("tags", True):
            del cell["metadata"]["tags"]
    return notebook


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _read(path: Path) -> dict[str, Any]:
    try:
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise GradtuneError(f"{path} is no valid notebook: {error}") from None
    if wrong := _wrong(notebook):
        raise GradtuneError(f"{path} is no valid notebook: {wrong}")
    return notebook


def _wrong(notebook: Any) -> str:
    """Say what of a notebook's form is not as it is needed here, "" where all is."""
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        return (
            "it has no cells" if not isinstance(notebook, dict) or "cells" not in notebook else "its cells are no list"
        )
    if notebook.get("nbformat", 4) != 4 or not isinstance(notebook.setdefault("metadata", {}), dict):
        return f"its format is {notebook.get('nbformat')}, not 4, or its metadata are no object"
    for number, cell in enumerate(notebook["cells"], start=1):
        whole = isinstance(cell, dict) and isinstance(cell.get("cell_type"), str)
        source, metadata = (cell.get("source"), cell.setdefault("metadata", {})) if whole else (None, None)
        if not isinstance(metadata, dict) or not isinstance(metadata.get("tags", []), list):
            return f"cell {number} has no type, or metadata or tags of another form"
        if not (isinstance(source, str) or (isinstance(source, list) and all(isinstance(x, str) for x in source))):
            return f"the source of cell {number} is no text"
    return ""


def _write(notebook: Mapping[str, Any], path: Path) -> None:
    """Write a notebook the way Jupyter formats it, whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    for each in sys.argv[1:] or names():
        print(f"stored {store(each).name}", flush=True)
