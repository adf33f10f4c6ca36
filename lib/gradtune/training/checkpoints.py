"""One file that holds a state whole: written at once or not at all, read without running anything in it.

The file is what `torch.save` writes, followed by `SEAL` and the SHA-256 of all that stands before. A file that does not
end so, or with another digest, is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from gradtune.errors import GradtuneError

SEAL = b"\nsha256 of the checkpoint before this line: "
"""What stands before the digest at the end of a file."""

_DIGITS = 64
_DAMAGED = (RuntimeError, EOFError, KeyError, IndexError, AttributeError, TypeError, ValueError, pickle.UnpicklingError)


def save(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`, whole or not at all: a reader of `path` sees the file before or after, never half of it.

    Args:
        state: dicts, lists, tensors, numbers and text.
        path: the file; its folder is made where it is missing.

    Raises:
        GradtuneError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                sealed = _Hashing(file)
                torch.save(state, cast("IO[bytes]", sealed))
                file.write(SEAL + sealed.digest.hexdigest().encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise GradtuneError(
            f"the checkpoint {path} cannot be written ({error}); free space or choose another path"
        ) from error


def load(path: Path, device: torch.device, key: str = "tuner", writer: str = "gradtune.tune") -> dict[str, Any]:
    """Read what `save` wrote.

    Args:
        path: the file.
        device: where the tensors shall be.
        key: a key that the state has to hold, which tells who wrote it.
        writer: who writes states with this key, as it reads in the message of the error.

    Returns:
        The state, with its tensors on `device`.

    Raises:
        GradtuneError: the file cannot be read, is no whole state, or lacks `key`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GradtuneError(f"{path} cannot be read ({error.strerror}); choose another path") from error
    body, seal, digest = content[: -len(SEAL) - _DIGITS], content[-len(SEAL) - _DIGITS : -_DIGITS], content[-_DIGITS:]
    if seal != SEAL:
        raise GradtuneError(f"{path} is no whole checkpoint (it does not end with its digest); remove it to start anew")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise GradtuneError(f"{path} is no whole checkpoint (its content has changed); remove it to start anew")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except _DAMAGED as error:
        reason = str(error).split("\n")[0][:120]
        raise GradtuneError(f"{path} is no whole checkpoint ({reason}); remove it to start anew") from error
    if not isinstance(state, dict) or key not in state:
        raise GradtuneError(f"{path} is no checkpoint of {writer}; choose another path, or remove the file")
    return state


@contextmanager
def expected(path: Path) -> Iterator[None]:
    """Context: takes over what a file holds; a part that is missing or of another form is an error in one sentence.

    Raises:
        GradtuneError: the code inside met such a part.
    """
    try:
        yield
    except GradtuneError:
        raise
    except _DAMAGED as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no more is known'}"
        raise GradtuneError(
            f"{path} is no checkpoint of this version: a part is missing or of another form ({reason}); remove it to "
            "start anew"
        ) from error


class _Hashing(io.RawIOBase):
    """A file that is written, and hashed while it is."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self.digest = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self._file.write(content)
