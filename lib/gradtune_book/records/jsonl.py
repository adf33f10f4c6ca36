"""Append-only JSON Lines files that survive a kill, a full disk and several writers.

A line is a JSON object with a string `key` and an object `config`. The last line is torn where the machine died while
it was written. `read` ignores a torn line, and the next `append` cuts it off.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradtune.errors import GradtuneError

Line = dict[str, Any]


def append(file: Path, lines: Sequence[Line]) -> int:
    """Append lines to a file and return how many of them were new.

    A key that the file already has is left as it is. The lines are one write, synced, under an exclusive lock: other
    processes see all of them or none.

    Args:
        file: The file. It and its folder are created where needed.
        lines: The lines; the first of a key counts.

    Raises:
        GradtuneError: The disk is full or the folder cannot be written (what the file held is kept), or the file holds
            an invalid line that is not its last.
    """
    try:
        with _locked(file) as descriptor:
            known, intact = parse(file, os.pread(descriptor, os.fstat(descriptor).st_size, 0))
            have = {line["key"] for line in known}
            new = [line for key, line in by_key(lines).items() if key not in have]
            text = "".join(json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n" for line in new)
            _write_behind(descriptor, intact, text.encode())
            return len(new)
    except OSError as error:
        raise GradtuneError(
            f"{file} cannot be written ({error.strerror}) and is left as it was; free space or set GRADTUNE_RECORDS to "
            "another folder, then run the same command to go on"
        ) from error


def read(file: Path) -> list[Line]:
    """Return the lines of one file, none where there is no file; a torn last line is left out.

    Raises:
        GradtuneError: A line other than the last is invalid (the error names file and line), or the file cannot be
            read.
    """
    try:
        return parse(file, file.read_bytes())[0]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise GradtuneError(f"{file} cannot be read ({error.strerror})") from error


def by_key(lines: Iterable[Line]) -> dict[str, Line]:
    """Return the lines by their key, in order; the first of a key counts."""
    found: dict[str, Line] = {}
    for line in lines:
        found.setdefault(line["key"], line)
    return found


def keys(file: Path) -> set[str]:
    """Return the keys that one file holds."""
    return {line["key"] for line in read(file)}


def torn(file: Path) -> bool:
    """Tell whether a file, which must exist, ends in a torn line."""
    content = file.read_bytes()
    return parse(file, content)[1] < len(content)


def parse(file: Path, content: bytes) -> tuple[list[Line], int]:
    """Split the content of a file into its lines.

    Args:
        file: The file, named in errors.
        content: What it holds.

    Returns:
        The lines, and the number of bytes that they fill. What lies behind is a torn last line.

    Raises:
        GradtuneError: A line other than the last is invalid.
    """
    lines: list[Line] = []
    intact = 0
    pieces = content.splitlines(keepends=True)
    for i, piece in enumerate(pieces, start=1):
        line = _line(piece)
        if line is not None:
            lines.append(line)
            intact += len(piece)
        elif i < len(pieces):
            raise GradtuneError(f"{file}, line {i} is not a run record; restore the file from git, or delete that line")
    return lines, intact


def _line(piece: bytes) -> Line | None:
    """Return what a line holds, None when it is torn or something else."""
    if not piece.endswith(b"\n"):
        return None
    try:
        line = json.loads(piece)
    except ValueError:
        return None
    whole = isinstance(line, dict) and isinstance(line.get("key"), str) and isinstance(line.get("config"), dict)
    return line if whole else None


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Open a file, created where needed, and hold its lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_behind(descriptor: int, intact: int, content: bytes) -> None:
    """Write `content` behind the first `intact` bytes of a file, or cut it to these and raise."""
    os.ftruncate(descriptor, intact)
    os.lseek(descriptor, intact, os.SEEK_SET)
    try:
        if content and os.write(descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except BaseException:  # an interrupt between write and sync leaves nothing half done either
        os.ftruncate(descriptor, intact)
        raise
