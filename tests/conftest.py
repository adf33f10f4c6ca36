"""Fixtures that several test files share."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A test run started in the background inherits an ignored Ctrl-C, and so would every program that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def book() -> Path:
    """Folder of the pages of this checkout's book, built once a test run, as `make book` does."""
    done = subprocess.run(
        [sys.executable, "-m", "gradhpo", "book"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"`gradhpo book` failed\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return ROOT / "_build" / "html"
