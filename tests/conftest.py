"""Fixtures that several test files share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A test run started in the background inherits an ignored Ctrl-C, and so would every program that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: workers of many threads would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# The same inputs at every run; a machine under load is no failure.
settings.register_profile("gradtune", derandomize=True, deadline=None, database=None, print_blob=False)
settings.load_profile("gradtune")

NEED_THE_BOOK = {"test_api_pages.py", "test_book.py", "test_browser.py"}


@pytest.hookimpl(tryfirst=True)  # before the hook of pytest-xdist that reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file, and a notebook with its one kernel, stays on one worker; so do the files that share the built book."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("book" if item.path.name in NEED_THE_BOOK else item.path.name))


@pytest.fixture(scope="session")
def book() -> Path:
    """Folder of the pages of this checkout's book, built once a test run, as `make book` does."""
    done = subprocess.run(
        [sys.executable, "-m", "gradtune", "book"], cwd=ROOT, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"`gradtune book` failed\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return ROOT / "_build" / "html"
