"""Compute and record the runs of a study: resumable, shareable between processes, stoppable at any moment.

Runs are computed in chunks, which are cut from the study's full list before anything else is looked at. A resumed study
therefore runs the same batches as an uninterrupted one, and its numbers are the same to the last bit. A process claims
a chunk by a lock, which the kernel drops when the process dies in whatever way.

What computes a claimed chunk is an `Engine`: this process, each of several local ones (`workers`), or a cluster
(`cluster`). Claims, the clock and the records are the same for all of them (`work`).
"""

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gradtune.errors import GradtuneError
from gradtune_book import config, paths
from gradtune_book.records import environment, jsonl, locks, sittings, store, workers
from gradtune_book.records.chunks import WHOLE, Chunk, Job, Shard
from gradtune_book.records.engines import HERE, Engine, Pace
from gradtune_book.records.study import Study

_ELSEWHERE = "another process has the rest"


@dataclass(frozen=True)
class Summary:
    """How a call of `record` ended.

    Attributes:
        study: Name of the study.
        scale: One of `config.SCALES`.
        total: Number of runs that the study, or its shard, has at that scale.
        recorded: Number of runs that the call recorded.
        left: Number of runs that are still to do.
        reason: Why runs are left, "" where none is.
        shard: The part of the study that was asked for.
    """

    study: str
    scale: str
    total: int
    recorded: int
    left: int
    reason: str = ""
    shard: Shard = WHOLE

    @property
    def interrupted(self) -> bool:
        """True when Ctrl-C ended the call and left runs to do."""
        return self.reason == "interrupted"

    def sentence(self) -> str:
        """Return the summary as one sentence for people."""
        part = f"shard {self.shard} of " if self.shard.of > 1 else ""
        name = f"{part}{self.study} at scale {self.scale}"
        if not self.left:
            return f"{name} is complete: {self.recorded} recorded now, {self.total} in all"
        again = "run the same command to go on"
        return f"{name} stopped ({self.reason}): {self.recorded} recorded, {self.left} of {self.total} left; {again}"


def record(
    study: Study,
    scale: str,
    device: str = "cpu",
    minutes: float | None = None,
    jobs: int = 1,
    engine: Engine | None = None,
    shard: Shard = WHOLE,
    mixed: bool = False,
    methods: Sequence[str] = (),
) -> Summary:
    """Compute the runs of a study that are not recorded yet, and record them.

    Ctrl-C ends the call, which then returns too. It loses what unfinished chunks have computed, long ones only that
    since their last checkpoint (`sittings`), and nothing else.

    Args:
        study: The study, from `papers.get`.
        scale: One of `config.SCALES`.
        device: "cpu", "cuda" or "cuda:N".
        minutes: No chunk starts after this time, nor one that is not expected to end within it: every chunk is expected
            to take as long as the slowest that its worker has computed. None for no limit.
        jobs: Number of worker processes, fewer where there is not as much work, or not as many cores or memory; 1
            computes in this process. Every worker uses one thread, so that the number
            of workers does not change the numbers.
        engine: What computes the chunks in place of this process and `jobs`, such as `cluster.Ray`. None for these.
        shard: The part of the study's chunks to compute; all by default.
        mixed: Go on where a CPU has recorded runs of the study at this scale and a GPU is asked for, or the reverse.
        methods: The methods whose runs are computed; () stands for all.

    Returns:
        How the call ended.

    Raises:
        GradtuneError: Bad arguments, a full disk, a folder that cannot be written, a damaged record file, a worker that
            died, or runs are left and others are recorded on another kind of device.
        RuntimeError: Any other error in one of several workers; it holds the worker's traceback.
    """
    (engine or HERE).check(device)
    if jobs < 1 or (minutes is not None and not minutes > 0):
        raise GradtuneError(f"jobs must be at least 1 and minutes more than 0, not {jobs} and {minutes}")
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    job = Job(study, config.check_scale(scale), device, deadline, shard, tuple(methods))
    chunks = job.chunks()
    total, before = sum(len(chunk.keys) for chunk in chunks), _count(job, chunks)
    if before < total and not mixed:
        _refuse_mixture(job, chunks)
    added, reason = 0, _ELSEWHERE if minutes is None else "time is up"
    with _bar(job, chunks) as bar:
        bar.set_postfix_str(f"{before}/{total} runs")

        def progress(done: tuple[int, float]) -> None:
            nonlocal added
            added += done[0]
            bar.set_postfix_str(f"{before + added}/{total} runs", refresh=False)
            bar.update(done[1])

        try:
            if before < total:
                if engine is None and (needed := _workers(jobs, job, chunks)) > 1:
                    workers.share(work, job, needed, progress)
                else:
                    with closing(work(job, engine or HERE)) as finished:
                        for done in finished:
                            progress(done)
        except KeyboardInterrupt:
            reason = "interrupted"
    left = total - _count(job, chunks)
    if left and reason == _ELSEWHERE and _left_by_all(job, chunks):
        reason = "record files have changed meanwhile"
    return Summary(study.name, scale, total, added, left, reason if left else "", shard)


def _refuse_mixture(job: Job, chunks: Sequence[Chunk]) -> None:
    """Refuse to go on with what another kind of device has begun.

    Raises:
        GradtuneError: It has.
    """
    asked, keys = job.device.partition(":")[0], {key for chunk in chunks for key in chunk.keys}
    found = [store.read(job.study.name, job.scale, method) for method in {chunk.configs[0].method for chunk in chunks}]
    other = [
        line["device"] for lines in found for key, line in lines.items() if key in keys and store.kind(line) != asked
    ]
    if other:
        raise GradtuneError(
            f"{len(other)} runs of {job.study.name} at scale {job.scale} are recorded on another kind of device "
            f"({other[0]}), and tables would mix both; set GRADTUNE_RECORDS to a new folder to record all runs on "
            f"{asked}, or add --mixed to record the rest there"
        )


def _left_by_all(job: Job, chunks: Sequence[Chunk]) -> bool:
    """Return whether a chunk is neither recorded nor computed by another process."""
    undone = [chunk for chunk in chunks if not _is_recorded(job, chunk)]
    with _claims(job) as claim:
        return any(claim(chunk.index) and not _is_recorded(job, chunk) for chunk in undone)


def _workers(jobs: int, job: Job, chunks: Sequence[Chunk]) -> int:
    """Return how many of the processes asked for have work and room: one a chunk, and none beyond cores and memory."""
    have = {method: _keys(job, method) for method in {chunk.configs[0].method for chunk in chunks}}
    undone = sum(not have[chunk.configs[0].method].issuperset(chunk.keys) for chunk in chunks)
    room = environment.room_for_workers()
    if jobs > min(undone, room):
        tqdm.write(
            f"{min(jobs, undone, room)} of {jobs} workers start: {undone} chunks are left, {room} fit this machine"
        )
    return min(jobs, undone, room)


def work(job: Job, engine: Engine = HERE) -> Generator[tuple[int, float], None, None]:
    """Have every chunk computed that is neither recorded nor claimed by another process, and record it.

    Args:
        job: The job.
        engine: What computes; this process records.

    Yields:
        For each chunk the number of runs it added to the records, and its cost.
    """
    pace = Pace(job.deadline)
    with _claims(job) as claim, closing(engine.results(job, _claimed(job, claim, pace), pace)) as results:
        for chunk, lines in results:
            have = _keys(job, chunk.configs[0].method)
            with workers.interrupts_wait():  # what is computed is kept
                added = jsonl.append(_file(job, chunk), [line for line in lines if line["key"] not in have])
                sittings.remove(job.study.name, job.scale, chunk.keys)
            yield added, chunk.cost(job.study)


def _claimed(job: Job, claim: Callable[[int], bool], pace: Pace) -> Iterator[Chunk]:
    """Claim one chunk after the other that is not recorded yet, as they are asked for, while there is time."""
    for chunk in job.chunks():
        if _is_recorded(job, chunk) or not claim(chunk.index) or _is_recorded(job, chunk):
            continue
        if not pace.allows():
            return
        yield chunk


def _file(job: Job, chunk: Chunk) -> Path:
    return store.path(job.study.name, job.scale, chunk.configs[0].method)


def _is_recorded(job: Job, chunk: Chunk) -> bool:
    return _keys(job, chunk.configs[0].method).issuperset(chunk.keys)


def _keys(job: Job, method: str) -> set[str]:
    return {*store.read(job.study.name, job.scale, method)}


def _count(job: Job, chunks: Sequence[Chunk]) -> int:
    """Count the study's runs that are recorded, reading each file once."""
    have = {method: _keys(job, method) for method in {chunk.configs[0].method for chunk in chunks}}
    return sum(key in have[chunk.configs[0].method] for chunk in chunks for key in chunk.keys)


@contextmanager
def _claims(job: Job) -> Iterator[Callable[[int], bool]]:
    """Give a function that claims a chunk for this process: a lock on byte `index` of a file, held until the end."""
    file = paths.records_root() / ".locks" / f"{job.study.name}-{job.scale}.lock"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise GradtuneError(
            f"{file} cannot be written ({error.strerror}); set GRADTUNE_RECORDS to a folder that can"
        ) from error

    def claim(index: int) -> bool:
        return locks.claim(descriptor, index)

    try:
        yield claim
    finally:
        os.close(descriptor)


def _bar(job: Job, chunks: Sequence[Chunk]) -> Any:
    """A progress bar in units of cost: chunks may differ in it a hundredfold, and the time left should be right."""
    have = {method: _keys(job, method) for method in {chunk.configs[0].method for chunk in chunks}}
    costs = [(chunk.cost(job.study), have[chunk.configs[0].method].issuperset(chunk.keys)) for chunk in chunks]
    return tqdm(
        total=sum(cost for cost, _ in costs),
        initial=sum(cost for cost, done in costs if done),
        desc=f"{job.study.name}/{job.scale}",
        bar_format="{l_bar}{bar}| {postfix} [{elapsed}, {remaining} left]",
        smoothing=0,
        disable=None,
    )
