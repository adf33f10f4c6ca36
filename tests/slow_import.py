"""Work whose module takes a minute to import, in a worker alone."""

import multiprocessing
import os
import time
from collections.abc import Iterator

if multiprocessing.parent_process() is not None:
    print(os.getpid(), flush=True)
    time.sleep(60)


def work(job: str) -> Iterator[int]:
    yield 1
