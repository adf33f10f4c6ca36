"""Locks on open files that the operating system drops when their process dies, in whatever way.

`fcntl` where there is one (Linux, macOS), else `msvcrt` (Windows).
"""

import os
from importlib import import_module
from typing import Any

_FAR = 2**30
"""Byte that stands for a whole file, and from which chunks are counted, on Windows: bytes in use cannot be read."""


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


_fcntl, _msvcrt = _module("fcntl"), _module("msvcrt")


def wait_for(descriptor: int) -> None:
    """Lock a file for this process alone, once no other process holds it; closing it lets go."""
    if _fcntl is not None:
        _fcntl.flock(descriptor, _fcntl.LOCK_EX)
        return
    os.lseek(descriptor, _FAR, os.SEEK_SET)
    while True:
        try:
            _msvcrt.locking(descriptor, _msvcrt.LK_LOCK, 1)  # gives up after ten seconds
        except OSError:
            continue
        return


def claim(descriptor: int, index: int) -> bool:
    """Lock byte `index` of a file for this process and return whether it did: another process may hold it."""
    try:
        if _fcntl is not None:
            _fcntl.lockf(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB, 1, index)
        else:
            os.lseek(descriptor, _FAR + index, os.SEEK_SET)
            _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    return True
