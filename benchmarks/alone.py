"""Measurements that need a process of their own, such as its peak memory, and their records."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gradtune.errors import GradtuneError
from gradtune_book.records import environment, jsonl, store


def measured(script: str, row: Any, words: str) -> dict[str, float]:
    """Measure a row by a script that takes it as JSON after `--one` and prints its metrics as JSON.

    Args:
        script: The script's file.
        row: What is measured, a dataclass.
        words: How errors call it.

    Raises:
        GradtuneError: The process has failed.
    """
    command = [sys.executable, str(Path(script).resolve()), "--one", json.dumps(asdict(row))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GradtuneError(f"{words} has failed: {done.stderr.strip()[-400:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def append(file: Path, study: str, scale: str, row: Any, number: int, result: store.Result) -> Path:
    """Append a measurement on the CPU to a file of records, and return the file.

    Args:
        file: The file.
        study: Name of the study.
        scale: Scale of the study.
        row: Identity of the measurement, a dataclass with a `seed`.
        number: Number of the measurement among those of its row, which becomes its seed.
        result: What was measured.
    """
    device = environment.describe(torch.device("cpu"))
    jsonl.append(file, [store.line(study, scale, replace(row, seed=number), result, device, 1, None)])
    return file
