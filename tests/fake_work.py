"""Work for the tests of `gradtune_book.records.workers`; light, so that a spawned worker starts at once."""

import os
import signal
import time
from collections.abc import Iterator

from gradtune.errors import GradtuneError


def work(job: str) -> Iterator[int]:
    """Yield 1 and 2, then end as `job` says."""
    yield 1
    yield 2
    if job == "mistake":
        raise GradtuneError("a mistake")
    if job == "fault":
        raise ZeroDivisionError("a fault")
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "endless":
        print(os.getpid(), flush=True)
        time.sleep(1000)


if __name__ == "__main__":
    from gradtune_book.records import workers

    workers.share(work, "endless", 2, lambda runs: None)
