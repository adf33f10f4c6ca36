"""Append-only JSON Lines files that survive a kill, a full disk and several writers.

A line is a JSON object that proves itself (`proof`). The last line is torn where the machine died while it was written.
`read` ignores a torn line, and the next `append` cuts it off.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.records import locks, proof
from gradtune_book.records.proof import Line


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
            content = _whole(descriptor)
            known, intact = parse(file, content)
            have = {line["key"] for line in known}
            new = [proof.write(line) for key, line in by_key(lines).items() if key not in have]
            ended = not intact or content[intact - 1 : intact] == b"\n"
            _write_behind(descriptor, intact, (b"" if ended or not new else b"\n") + b"".join(new))
            return len(new)
    except OSError as error:
        raise GradtuneError(
            f"{file} cannot be written ({error.strerror}) and is left as it was; free space or set GRADTUNE_RECORDS to "
            f"{os.pathsep.join(['another folder', *map(str, _roots(file))])} (new runs go to the first folder, all are "
            "read), then run the same command to go on"
        ) from error


def read(file: Path) -> list[Line]:
    """Return the lines of one file, none where there is no file; a torn last line is left out.

    Raises:
        GradtuneError: A line is invalid or has been changed (the error names file and line), or the file cannot be
            read.
    """
    try:
        return parse(file, file.read_bytes())[0]
    except FileNotFoundError as error:
        if file.is_symlink():
            raise GradtuneError(f"{file} is a link to what is not there; mend or remove it") from error
        return []
    except OSError as error:
        raise GradtuneError(f"{file} cannot be read ({error.strerror})") from error


def by_key(lines: Iterable[Line]) -> dict[str, Line]:
    """Return the lines by their key, in order; the first of a key counts."""
    found: dict[str, Line] = {}
    for line in lines:
        found.setdefault(line["key"], line)
    return found


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
        GradtuneError: A line is invalid, and not merely a torn last one, or has been changed.
    """
    intact = proof.sealed(file, content)
    lines = proof.read_sealed(content[:intact])
    pieces, before = content[intact:].splitlines(keepends=True), len(lines)
    for i, piece in enumerate(pieces, start=before + 1):
        try:
            lines.append(proof.read(piece))
        except GradtuneError as error:
            raise GradtuneError(f"{file}, line {i} {error}; restore the file from git, or delete that line") from None
        except ValueError:
            if i == before + len(pieces):
                break  # torn
            raise GradtuneError(
                f"{file}, line {i} is not a run record; restore the file from git, or delete that line"
            ) from None
        intact += len(piece)
    return lines, intact


def _roots(file: Path) -> list[Path]:
    roots = paths.records_roots()
    return roots if roots[0] in file.parents else [file.parents[2]]


def _whole(descriptor: int) -> bytes:
    """Read an open file from its beginning to its end."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    return b"".join(iter(lambda: os.read(descriptor, 2**24), b""))


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Open a file, created where needed, and hold its lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        locks.wait_for(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _write_behind(descriptor: int, intact: int, content: bytes) -> None:
    """Write `content` behind the first `intact` bytes of a file, or cut it to these and raise."""
    os.ftruncate(descriptor, intact)
    os.lseek(descriptor, intact, os.SEEK_SET)
    try:
        while content:  # where less was written than asked for, the next write says why
            if not (written := os.write(descriptor, content)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            content = content[written:]
        os.fsync(descriptor)
    except BaseException:  # an interrupt between write and sync leaves nothing half done either
        os.ftruncate(descriptor, intact)
        raise
