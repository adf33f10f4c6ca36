"""Where things are: the repository, the data, the run records, the papers' numbers.

The roots of data and records can be moved by an environment variable each. It is read at each call, so that tests and
notebooks may set it at any time.
"""

from pathlib import Path

from gradtune import variables

_CHECKOUT = Path(__file__).resolve().parents[2]

ROOT: Path = _CHECKOUT if (_CHECKOUT / "_toc.yml").is_file() else Path.cwd()
"""The repository's root when the book runs from a checkout, else the current folder."""

PACKAGES: tuple[Path, ...] = tuple(_CHECKOUT / "lib" / name for name in ("gradtune", "gradtune_book"))
"""Folders of the two packages: all code that a number of the book can depend on, but for the benchmarks."""


def _from_environment(variable: str, default: Path) -> Path:
    value = variables.read(variable)
    return Path(value).expanduser().resolve() if value else default


def data_root() -> Path:
    """Return the folder of the downloaded datasets: `GRADTUNE_DATA`, else `data/raw`."""
    return _from_environment("DATA", ROOT / "data" / "raw")


def records_root() -> Path:
    """Return the folder of the run records: `GRADTUNE_RECORDS`, else `data/records`."""
    return _from_environment("RECORDS", ROOT / "data" / "records")


def published_root() -> Path:
    """Return the folder of the papers' numbers as CSV: `data/published`."""
    return ROOT / "data" / "published"
