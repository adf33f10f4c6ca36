"""Share work among processes that end with their parent and leave nothing behind."""

import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from tqdm import tqdm

from gradtune.errors import GradtuneError
from gradtune_book import worker


def share(work: Callable[[Any], Iterator[Any]], job: Any, jobs: int, progress: Callable[[Any], Any]) -> None:
    """Run `work(job)` in each of `jobs` new processes, which divide the work among themselves.

    All workers have ended when it returns or raises.

    Args:
        work: Function at the top of a module. Each value it yields, which must be picklable, is passed on to
            `progress`.
        job: Its picklable argument, the same for all processes.
        jobs: Number of processes.
        progress: Function called in this process.

    Raises:
        GradtuneError: A worker raised it, or a worker died.
        RuntimeError: Another error in a worker; it holds the worker's traceback.
        KeyboardInterrupt: After Ctrl-C.
    """
    workers: dict[Any, BaseProcess] = {}
    died = []
    try:
        workers.update(_start(work, job) for _ in range(jobs))
        running = dict(workers)
        while running:
            for pipe in connection.wait(list(running)):
                message = _receive(pipe)
                if isinstance(message, BaseException):
                    raise message
                if message is not None:
                    progress(message)
                elif code := _exit_code(running.pop(pipe)):
                    died.append(code)
    finally:
        with _interrupts_ignored():  # a second Ctrl-C: the workers end all the same
            for process in workers.values():
                process.terminate()
                process.join()
    if died:
        raise GradtuneError(
            f"{len(died)} of {jobs} workers died (exit code {died[0]}; -9 is mostly a lack of memory); what they had "
            "recorded is kept: run the same command, perhaps with fewer --jobs, to go on"
        )


def _start(work: Callable[[Any], Iterator[Any]], job: Any) -> tuple[Any, BaseProcess]:
    """Start a worker; return the pipe it reports through and its process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker.begin, args=(theirs,), daemon=True)
    with _interrupts_ignored():  # a child inherits it: Ctrl-C is for this process, which then ends its children
        process.start()
        theirs.close()
        ours.send((_worker, (work, job)))
    return ours, process


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the `with` block, in the main thread; a second one does not wait."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        waiting = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if waiting:
            signal.raise_signal(signal.SIGINT)


def _receive(pipe: Any) -> Any:
    """Return a worker's message, None where the worker has ended."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _exit_code(process: BaseProcess) -> int:
    process.join()
    return process.exitcode or 0


def _worker(task: tuple[Callable[[Any], Iterator[Any]], Any], pipe: Any) -> None:
    work, job = task
    tqdm.set_lock(
        threading.RLock()
    )  # its own lock is a semaphore of the system, which a terminated worker leaves behind
    try:
        for added in work(job):
            pipe.send(added)
    except GradtuneError as error:
        pipe.send(error)
    except Exception:
        pipe.send(RuntimeError(f"a worker failed\n{traceback.format_exc()}"))
