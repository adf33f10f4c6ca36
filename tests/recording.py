"""What tests of recording share: the made-up study on a command line of its own, and what is recorded of it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from fake_study import SEEDS, STUDY
from gradtune_book.records import store
from tools import ROOT

SCALE = "laptop"
TOTAL = 2 * SEEDS[SCALE]
HERE = ROOT / "tests"
# what `gradtune` would run, with the made-up study known to it
COMMAND = (
    "import sys, fake_study; from gradtune_book import cli, papers; papers.get = lambda name: fake_study.STUDY;"
    "status = cli.main(sys.argv[1:]);"
    "found = {'papermill', 'nbformat', 'nbclient', 'jupyter_client', 'IPython'} & set(sys.modules);"
    "sys.exit(f'imported {found}' if found else status)"
)


def table() -> pd.DataFrame:
    """What is recorded, without what differs from call to call."""
    return store.load(STUDY, SCALE).drop(columns=["date", "peak_mb", "commit", "dirty"], errors="ignore")


def lines_on_disk(root: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in root.glob("*/*/*.jsonl"))


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def environment(**more: str) -> dict[str, str]:
    search = [str(ROOT / "lib"), str(HERE), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, **more, "PYTHONPATH": os.pathsep.join(search)}


@contextlib.contextmanager
def command(pids: Path, processes: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`gradtune record fake ...` in a process group of its own; its first chunk ends when `processes` are at work."""
    fake = {"FAKE_SECONDS": "0.2", "FAKE_PIDS": str(pids), "FAKE_PROCESSES": str(processes)}
    full = [sys.executable, "-c", COMMAND, "record", "fake", "--scale", SCALE, *arguments]
    with subprocess.Popen(
        full,
        env=environment(**fake),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
