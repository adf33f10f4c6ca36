"""How a worker process begins: light, so that it follows its parent before anything heavy is imported."""

import multiprocessing
import os
import threading
from multiprocessing import connection
from typing import Any


def begin(pipe: Any) -> None:
    """Take a function and its argument from a pipe and call `function(argument, pipe)`.

    The process ends when its parent is gone, even by kill -9 and while modules are imported: what the pipe holds is
    read, and its modules are imported, after the watch has begun.

    Args:
        pipe: Two-way connection to the parent.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function, argument = pipe.recv()
    function(argument, pipe)


def _end_with_parent() -> None:
    """End this process when its parent is gone, so that the chunk that it had is free again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
