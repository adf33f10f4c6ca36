"""A study of made-up runs for the tests of records and recorder; importable by spawned workers.

Every number depends on the whole chunk, so that a run computed in another batch than it belongs to is found out.
Environment variables steer it: FAKE_SECONDS (time per chunk), FAKE_PIDS (a folder that gets a file per process that
computes something), FAKE_PROCESSES (no chunk ends before so many processes are at work), FAKE_SHIFT (added to the
loss), FAKE_FAIL, FAKE_INTERRUPT and FAKE_KILL (a seed whose chunk raises, gets Ctrl-C, or ends its process). FAKE_FILE
names a file with more of them, which a process that runs already reads too.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gradtune_book.records.store import Result
from gradtune_book.records.study import Study

SEEDS = {"smoke": 4, "laptop": 10, "paper": 10}
CHUNK = 3


@dataclass(frozen=True)
class FakeConfig:
    method: str
    seed: int = 0
    version: int = 1
    rate: float = 0.5


def configs(seeds: int) -> list[FakeConfig]:
    # the method that sorts last comes first: the table's order is the study's, not the alphabet's
    return [FakeConfig(method=method, seed=seed) for method in ("slow", "fast") for seed in range(seeds)]


def run(configs: Sequence[FakeConfig], device: torch.device) -> list[Result]:
    seeds = [cfg.seed for cfg in configs]
    if folder := steered("PIDS"):
        _meet(Path(folder), int(steered("PROCESSES", "1")))
    time.sleep(float(steered("SECONDS", "0")))
    if int(steered("FAIL", "-1")) in seeds:
        raise RuntimeError("made to fail")
    if int(steered("INTERRUPT", "-1")) in seeds:
        signal.raise_signal(signal.SIGINT)
    if int(steered("KILL", "-1")) in seeds:
        os.kill(os.getpid(), signal.SIGKILL)
    return [_result(cfg, sum(seeds), device) for cfg in configs]


def run_short(configs: Sequence[FakeConfig], device: torch.device) -> list[Result]:
    """A study that loses results."""
    return run(configs, device)[:2]


def steered(name: str, default: str = "") -> str:
    """What the environment or FAKE_FILE says."""
    given = dict(os.environ)
    if (file := os.environ.get("FAKE_FILE")) and Path(file).is_file():
        given |= dict(line.split("=", 1) for line in Path(file).read_text().splitlines())
    return given.get(f"FAKE_{name}", default)


def _meet(folder: Path, processes: int) -> None:
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 100
    while len(list(folder.iterdir())) < processes and time.monotonic() < end:
        time.sleep(0.01)


def _result(cfg: FakeConfig, batch_sum: int, device: torch.device) -> Result:
    x = torch.linspace(0, 1, 120, dtype=torch.float64, device=device)
    curve = torch.exp(-cfg.rate * x * (1 + cfg.seed)) + 0.1 * len(cfg.method) + batch_sum / 7
    loss = float("nan") if cfg.seed == 3 else float(curve[-1]) + float(steered("SHIFT", "0"))
    return Result({"loss": loss, "steps": 120}, {"curve": curve.tolist()}, wall_s=0.25, dataset="none")


STUDY = Study("fake", FakeConfig, SEEDS, configs, run, chunk=CHUNK)
