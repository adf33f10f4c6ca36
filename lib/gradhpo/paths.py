"""Where things are: the repository, the data, the run records, the papers' numbers.

Every root but the repository's can be moved by an environment variable, read at each call so that tests and
notebooks may set it at any time.
"""

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]

ROOT: Path = _CHECKOUT if (_CHECKOUT / "_toc.yml").is_file() else Path.cwd()
"""The repository's root when the library runs from a checkout, else the current folder."""


def _from_environment(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "").strip()
    return Path(value).expanduser().resolve() if value else default


def data_root() -> Path:
    """Folder of the downloaded datasets: `GRADHPO_DATA`, else `data/raw`."""
    return _from_environment("GRADHPO_DATA", ROOT / "data" / "raw")


def records_root() -> Path:
    """Folder of the run records: `GRADHPO_RECORDS`, else `data/records`."""
    return _from_environment("GRADHPO_RECORDS", ROOT / "data" / "records")


def cache_root() -> Path:
    """Folder of what can be made again: `GRADHPO_CACHE`, else `gradhpo` in the user's cache folder."""
    return _from_environment("GRADHPO_CACHE", _from_environment("XDG_CACHE_HOME", Path.home() / ".cache") / "gradhpo")


def published_root() -> Path:
    """Folder of the papers' numbers as CSV: `data/published`."""
    return ROOT / "data" / "published"
