"""What the files of the real datasets must be: names, sizes, SHA-256.

Three lists lie beside this module. Names are relative to the data root. A file of which only what it holds is known, as
it may have been compressed anew, is listed by that alone.
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from gradtune_book import paths

FOLDERS = (
    *("UCI_Datasets", "MNIST", "FashionMNIST", "ptb", "SVHN"),
    *("cifar10", "cifar-10-batches-py", "cifar-100-python", "tinystories"),
)
"""Folders below the data root of all sets that a chapter may read (ImageNet is none of them)."""

_DEEPEST = 3  # levels of folders, as in cifar10/train/cat


@functools.cache
def checksums() -> dict[str, str]:
    """Return file (relative to the data root) -> SHA-256, from `checksums.sha256` (readable by `sha256sum -c`)."""
    return _listed("checksums.sha256")


@functools.cache
def sizes() -> dict[str, int]:
    """Return file (relative to the data root) -> bytes of the files in `checksums`, from `sizes.txt`."""
    return {path: int(size) for path, size in _listed("sizes.txt").items()}


@functools.cache
def plain() -> dict[str, str]:
    """Return file -> SHA-256 of what the compressed file holds, without `.gz` in its name, from `plain.sha256`."""
    return _listed("plain.sha256")


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, remembered as long as its size, its time and its number on the disk are the same.

    Raises:
        OSError: The file cannot be read.
    """
    about = path.stat()
    return _digest_of(path, about.st_size, about.st_mtime_ns, about.st_ino)


def surface() -> list[tuple[str, int, int]]:
    """Return name, size and time in nanoseconds of every file below the data root that a loader may read.

    It changes when a file appears, goes, or is written. Nothing is read.
    """
    root = paths.data_root()
    return sorted(each for folder in FOLDERS for each in _below(root / folder, folder, _DEEPEST))


def _below(folder: Path, name: str, deep: int) -> Iterator[tuple[str, int, int]]:
    """Go down through folders and links to folders; the depth ends a circle of links too."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as inside:
        for each in inside:
            if each.is_file():
                yield f"{name}/{each.name}", each.stat().st_size, each.stat().st_mtime_ns
            elif each.is_dir() and deep > 1:
                yield from _below(Path(each.path), f"{name}/{each.name}", deep - 1)


@functools.lru_cache(maxsize=2**12)
def _digest_of(path: Path, size: int, time: int, number: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(file: str) -> dict[str, str]:
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    return {path: first for first, path in (line.split(maxsplit=1) for line in lines)}
