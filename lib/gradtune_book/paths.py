"""Where things are: the repository, the data, the run records, the papers' numbers.

The roots of data and records can be moved by an environment variable each. It is read at each call, so that tests and
notebooks may set it at any time.
"""

import os
from pathlib import Path

from gradtune import variables
from gradtune.errors import GradtuneError

_CHECKOUT = Path(__file__).resolve().parents[2]

ROOT: Path = _CHECKOUT if (_CHECKOUT / "_toc.yml").is_file() else Path.cwd()
"""The repository's root when the book runs from a checkout, else the current folder."""

PACKAGES: tuple[Path, ...] = tuple(_CHECKOUT / "lib" / name for name in ("gradtune", "gradtune_book"))
"""Folders of the two packages: all code that a number of the book can depend on, but for the benchmarks."""


def _from_environment(variable: str, default: Path) -> Path:
    value = variables.read(variable)
    return _folder(value, variable) if value else default


def _folder(name: str, variable: str) -> Path:
    try:
        return Path(name.strip()).expanduser().resolve()
    except (RuntimeError, OSError, ValueError) as error:  # no such user, a circle of links, a zero byte
        raise GradtuneError(f"the folder {name!r} in {variables.PREFIX}{variable} cannot be found: {error}") from error


def data_root() -> Path:
    """Return the folder of the downloaded datasets: `GRADTUNE_DATA`, else `data/raw`."""
    return _from_environment("DATA", ROOT / "data" / "raw")


def records_root() -> Path:
    """Return the folder to which run records are written, the first of `records_roots`."""
    return records_roots()[0]


def records_roots() -> list[Path]:
    """Return the folders from which run records are read: those that `GRADTUNE_RECORDS` names, else `data/records`.

    Several names are separated as in `PATH`, by a colon (on Windows by a semicolon).
    """
    named = [name for name in variables.read("RECORDS").split(os.pathsep) if name.strip()]
    return [_folder(name, "RECORDS") for name in named] or [ROOT / "data" / "records"]


def published_root() -> Path:
    """Return the folder of the papers' numbers as CSV: `data/published`."""
    return ROOT / "data" / "published"
