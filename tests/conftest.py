"""Fixtures that several test files share."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def book() -> Path:
    """Folder of the pages of this checkout's book, built once a test run, as `make book` does."""
    done = subprocess.run(
        [sys.executable, "-m", "gradhpo", "book"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"`gradhpo book` failed\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return ROOT / "_build" / "html"
