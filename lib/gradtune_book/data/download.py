"""Download one file so that it is there whole and right, or not at all."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from gradtune.errors import GradtuneError

_TIMEOUT_S = 30


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def save(url: str, path: Path, sha256: str, advice: str) -> None:
    """Download `url` to `path`, which appears only once its checksum is `sha256`.

    Memory: the whole file.

    Args:
        url: Address of the file.
        path: Where to write it. Folders are created.
        sha256: Checksum it must have.
        advice: What to do when it fails, as the error's last words.

    Raises:
        GradtuneError: There is no network or no such file, the transfer breaks off, the checksum is wrong, or the
            folder cannot be written.
    """
    content = _get(url, advice)
    if digest(content) != sha256:
        raise GradtuneError(
            f"{url} gave {len(content)} bytes with checksum {digest(content)[:12]}, expected {sha256[:12]}; "
            f"nothing of it was kept, {advice}"
        )
    _write(path, content, advice)


def _get(url: str, advice: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            content: bytes = response.read()
            return content
    except urllib.error.HTTPError as error:
        raise GradtuneError(f"{url} answered {error.code} {error.reason}; {advice} or name another source") from error
    except http.client.IncompleteRead as error:
        raise GradtuneError(f"{url} broke off; files fetched before it are kept, {advice}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise GradtuneError(f"cannot reach {url} ({reason}); check the network and {advice}") from error


def _write(path: Path, content: bytes, advice: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise GradtuneError(
            f"{path} cannot be written ({error.strerror}); free space or set GRADTUNE_DATA to another folder, "
            f"then {advice}"
        ) from error
