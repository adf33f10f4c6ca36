"""The engine that hands chunks to a Ray cluster, which others start and stop.

Ray places the work, starts its processes and tells when one is lost; this module keeps as many chunks there as there is
room for, and returns what is lost to the queue. Every record is appended by the process that calls `recorder.record`.

Ray is imported by the first call that needs it: it comes with the book's extra `cluster`, not with the locked packages.
"""

import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from gradtune import extras
from gradtune.errors import GradtuneError, at_least
from gradtune_book import config
from gradtune_book.records import environment, jsonl, sittings
from gradtune_book.records.chunks import Chunk, Job
from gradtune_book.records.engines import Pace, Results, compute

TRIES = 3
"""How many workers a chunk may lose before it is given up."""

_INSTALL = "pip install -e 'lib[cluster]'"
_TICK = 1.0  # seconds after which the clock and the size of the cluster are looked at again
_REACHED = 5.0  # seconds within which an address answers; Ray itself would try for minutes


@dataclass
class _Task:
    """A chunk that Ray has: when and where it began, once it did."""

    chunk: Chunk
    began: float | None = None
    host: str = "an unknown node"


class Ray:
    """Computes chunks on a Ray cluster.

    Args:
        address: Address of the cluster, as Ray takes it ("10.0.0.1:6379"). "" stands for `RAY_ADDRESS`, else for the
            cluster that this machine is a node of.
        jobs: Number of chunks that Ray has at a time. None for as many as the cluster has cores, or GPUs where the
            study runs on these, whenever that is asked.

    Raises:
        GradtuneError: Ray is not installed, or `jobs` is no positive number.
    """

    def __init__(self, address: str = "", jobs: int | None = None) -> None:
        if jobs is not None:
            at_least(1, jobs=jobs)
        self.ray: Any = extras.needed("ray", "cluster", "the engine ray", _INSTALL)
        self.address, self.jobs = address, jobs

    def check(self, device: str) -> None:
        if device not in ("cpu", "cuda"):
            raise GradtuneError(f"the engine ray takes the device cpu or cuda, of which Ray chooses, not {device!r}")

    def results(self, job: Job, chunks: Iterator[Chunk], pace: Pace) -> Results:
        """Compute chunks on the cluster.

        A chunk whose worker or node is lost is handed out again, `TRIES` times at most. One that Ray has not begun when
        there is no more time is taken back, so that no chunk starts too late.

        Raises:
            GradtuneError: No cluster answers, a node has other code than this one, a worker raised it, or (at the end,
                when all else is done) chunks have lost too many workers.
            RuntimeError: Another error in a worker; it holds the worker's traceback.
        """
        with self._connected(job.device):
            yield from _Queue(self, job, chunks, pace).results()

    def room(self, device: str) -> int:
        """Return how many chunks of a device the cluster takes at a time, 0 where it has no such device."""
        return self.jobs or self.has(device)

    def has(self, device: str) -> int:
        """Return how many cores or GPUs the cluster has at present."""
        return int(self.ray.cluster_resources().get("GPU" if device == "cuda" else "CPU", 0))

    @contextmanager
    def _connected(self, device: str) -> Iterator[None]:
        """Be connected inside the `with` block; a connection that the caller has made is used, and kept."""
        ours = not self.ray.is_initialized()
        if ours:
            self._connect()
        try:
            if not self.has(device):
                kind = "GPU" if device == "cuda" else "core"
                raise GradtuneError(f"the Ray cluster has no {kind}; start a node that has, then run the same command")
            yield
        finally:
            if ours:
                self.ray.shutdown()

    def _connect(self) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        try:
            host, _, port = address.rpartition(":")
            if host and port.isdecimal() and "/" not in host:
                socket.create_connection((host, int(port)), _REACHED).close()
            options = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
            self.ray.init(address=address or "auto", **options)
        except Exception as error:  # Ray raises many kinds, and some bare ones
            reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
            raise GradtuneError(
                f"no Ray cluster can be used at {address or 'this machine'} ({reason}); start one with `ray start "
                "--head`, or run this on a node of one, with its --address HOST:PORT"
            ) from error


class _Queue:
    """The chunks of one call: those that Ray has, and those that it lost."""

    def __init__(self, engine: Ray, job: Job, chunks: Iterator[Chunk], pace: Pace) -> None:
        self.engine, self.job, self.chunks, self.pace, self.ray = engine, job, chunks, pace, engine.ray
        self.tasks: dict[Any, _Task] = {}  # by Ray's generator of what the task yields
        self.again: deque[Chunk] = deque()
        self.lost: Counter[int] = Counter()
        self.given_up: list[tuple[Chunk, str]] = []
        needs = {"num_cpus": 1, "num_gpus": 1 if job.device == "cuda" else 0}
        # Ray would try again by itself, without a word, and for ever where memory is what lacks
        self.remote = self.ray.remote(max_retries=0, num_returns="streaming", **needs)(_on_a_node)
        self.same = self.ray.put((job.study, job.scale, job.device, environment.code()))

    def results(self) -> Results:
        try:
            while self._fill():
                ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=_TICK)
                for each in ready:
                    if (lines := self._next(each)) is not None:
                        task = self.tasks.pop(each)
                        self.pace.took(task.began or time.monotonic())
                        yield task.chunk, lines
        finally:
            self._cancel(list(self.tasks), force=True)
        if self.given_up:
            raise GradtuneError(_given_up(self.job, self.given_up))

    def _fill(self) -> bool:
        """Hand out chunks where there is room, or take back what has not begun in time; tell whether Ray has any."""
        if not self.pace.allows():
            self._cancel([each for each, task in self.tasks.items() if task.began is None], force=False)
        else:
            room = max(1, self.engine.room(self.job.device))
            while len(self.tasks) < room and (chunk := self._chunk()) is not None:
                self.tasks[self.remote.remote(self.same, chunk)] = _Task(chunk)
        return bool(self.tasks)

    def _chunk(self) -> Chunk | None:
        return self.again.popleft() if self.again else next(self.chunks, None)

    def _next(self, each: Any) -> list[jsonl.Line] | None:
        """Take what a task has yielded: where it has begun, or its lines, which are returned."""
        errors, task = self.ray.exceptions, self.tasks[each]
        try:
            said = self.ray.get(next(each))
        except errors.RayTaskError as error:
            raise _plain(error) from None
        except (errors.RayError, StopIteration) as error:
            del self.tasks[each]
            self._return(task, type(error).__name__)
            return None
        if isinstance(said, list):
            return said
        task.began, task.host = time.monotonic(), said
        return None

    def _return(self, task: _Task, why: str) -> None:
        """Put a chunk that has lost its worker back, or give it up."""
        chunk = task.chunk
        self.lost[chunk.index] += 1
        lost, what = self.lost[chunk.index], f"{len(chunk.configs)} runs of {chunk.configs[0].method}"
        if lost < TRIES:
            self.again.append(chunk)
            tqdm.write(f"the worker of {what} on {task.host} is lost ({why}); they are handed out again")
        else:
            self.given_up.append((chunk, f"{why} on {task.host}"))
            tqdm.write(f"the worker of {what} on {task.host} is lost ({why}), the {lost}th; they are given up")

    def _cancel(self, those: list[Any], force: bool) -> None:
        for each in those:
            self.ray.cancel(each, force=force)
            del self.tasks[each]


def _on_a_node(same: tuple[Any, str, str, Mapping[str, str]], chunk: Chunk) -> Iterator[Any]:
    """Compute a chunk in a process of Ray; yield the node's name at once, then the records.

    Args:
        same: What all chunks of a call have in common: study, scale, device, and `environment.code()` of the caller.
        chunk: The chunk.
    """
    study, scale, device, code = same
    host = socket.gethostname()
    if other := differences(code, environment.code()):
        raise GradtuneError(
            f"the node {host} has {other}; install the same on all nodes, or take it out of the cluster"
        )
    yield host
    try:
        yield compute(study, scale, chunk, environment.device(device), kept=True)
        sittings.remove(study.name, scale, chunk.keys)
    except GradtuneError as error:
        raise GradtuneError(f"on the node {host}: {error}") from error


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """Return in words what a node has (`environment.code()`) that the caller has not, "" where all is the same."""
    names = [name for name in here if name != "code" and there.get(name) != here[name]]
    found = [f"{name} {there.get(name)} where {here[name]} is used here" for name in names]
    if not found and here["code"] != there.get("code"):
        found = ["other code of gradtune or gradtune_book than this checkout, under the same version"]
    return " and ".join(found)


def _plain(error: Any) -> Exception:
    """Return the error of a task: a user's mistake as it is, anything else with the worker's traceback."""
    if isinstance(error.cause, GradtuneError):
        return GradtuneError(str(error.cause))
    if missing := re.findall(r"No module named '([\w.]+)'", str(error)):  # of Ray's own errors this is all there is
        return GradtuneError(
            f"a node of the cluster cannot import {missing[0]}; every node needs this checkout and its packages"
        )
    return RuntimeError(f"a worker failed\n{error}")


def _given_up(job: Job, those: list[tuple[Chunk, str]]) -> str:
    (chunk, why), more = those[0], len(those) - 1
    named = [config.to_dict(each) for each in chunk.configs]
    return (
        f"{len(those)} chunks of {job.study.name} lost {TRIES} workers each, mostly for lack of memory: the runs "
        f"{named} (last: {why}){f' and {more} chunks more' if more else ''}; what else was computed is recorded: run "
        "the same command, perhaps with fewer --jobs, to go on"
    )
