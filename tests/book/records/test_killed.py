"""Recordings that SIGKILL ends three times in the middle of a run, for a study of each kind of loop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gradtune_book.records import jsonl, store
from killed import TIMES
from tools import ROOT

# a process that has recorded a run forks one that records it too and is killed, again and again; then the next study
DRIVER = """
import os, sys
from pathlib import Path
import torch
from dataclasses import replace
from gradtune_book import papers
from gradtune_book.records import recorder, sittings
import killed

torch.set_num_threads(1)
whole, broken = sys.argv[1:]
RUNS = {
    "clip_ptb": (lambda c: c.method == "Clip5", {}, (3, 4, 5)),
    "fds_cifar_regret": (lambda c: c.method == "FDS", {"steps": 4, "validation": 20}, (2, 3, 2)),
    "oho_performance": (lambda c: c.search == "bayes", {"epochs": 2}, (2, 3, 2)),
    "image_onepass": (lambda c: c.method == "Bayes", {"trials": 6, "steps": 20}, (2, 1, 3)),
    "metaoptimize_cifar": (lambda c: c.method == "MetaOptimize, blocks", {}, (3, 2, 4)),
}

def recorded(name, root, ticks):
    os.environ["GRADTUNE_RECORDS"] = root
    os.environ["GRADTUNE_CHECKPOINT_SECONDS"] = "0" if ticks else "never"
    study, (wanted, changes, _) = papers.get(name), RUNS[name]
    chosen = [replace(c, **changes) for c in study.runs("smoke") if wanted(c)][:1]
    study = replace(study, configs=lambda sizes: chosen)
    if ticks and ticks > 0:
        with killed.after(ticks, signalled=True):
            recorder.record(study, "smoke")
    else:
        recorder.record(study, "smoke")

def forked(*arguments):
    if not (child := os.fork()):
        recorded(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for name, (_, _, kills) in RUNS.items():
    recorded(name, whole, 0)
    print(name, *(forked(name, broken, ticks) for ticks in kills), forked(name, broken, -1))
"""


def test_a_recording_killed_three_times_equals_one_that_was_not(tmp_path: Path) -> None:
    search = os.pathsep.join([str(ROOT / "lib"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    places = [tmp_path / "whole", tmp_path / "broken"]
    command = [sys.executable, "-c", DRIVER, *map(str, places)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": search}, check=False
    )
    ended = [line.split() for line in done.stdout.splitlines()]
    assert [line[1:] for line in ended] == 5 * [["-9", "-9", "-9", "0"]], done.stderr
    whole, broken = ([line for file in store.all_files(place) for line in jsonl.read(file)] for place in places)
    assert len(whole) == len(broken) == 5
    for one, other in zip(whole, broken, strict=True):
        for part in ("key", "config", "dataset", "dataset_sha256", "batch", "metrics", "series"):
            said = [{n: v for n, v in x[part].items() if n not in TIMES} if type(x[part]) is dict else x[part]
                    for x in (one, other)]  # fmt: skip
            assert said[0] == said[1], (one["study"], part)
        assert one["wall_s"] > 0 and other["wall_s"] > 0
    assert not list(tmp_path.rglob("*.pt"))
