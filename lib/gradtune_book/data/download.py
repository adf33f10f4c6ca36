"""Download one file so that it is there whole and right, or not at all."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from gradtune.errors import GradtuneError

_TIMEOUT_S = 30  # without a byte
_TOTAL_S = 600  # for one file, however slowly it drips
_PIECE = 2**16


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def save(url: str, path: Path, sha256: str, advice: str, most: int, any_source: bool = False) -> None:
    """Download `url` to `path`, which appears only once its checksum is `sha256`.

    Memory: at most `most` bytes. Time: at most ten minutes.

    Args:
        url: Address of the file.
        path: Where to write it. Folders are created.
        sha256: Checksum it must have.
        advice: What to do when it fails, as the error's last words.
        most: Largest number of bytes that are taken.
        any_source: Take addresses that begin with http: or file: too, not only https:.

    Raises:
        GradtuneError: The address is of a kind that is not taken, there is no network or no such file, the transfer
            breaks off, is too long or too slow, the checksum is wrong, or the folder cannot be written.
    """
    _check_scheme(url, any_source)
    content = _get(url, advice, most, any_source)
    if digest(content) != sha256:
        raise GradtuneError(
            f"{url} gave {len(content)} bytes with checksum {digest(content)[:12]}, expected {sha256[:12]}; "
            f"nothing of it was kept, {advice}"
        )
    _write(path, content, advice)


def _check_scheme(url: str, any_source: bool) -> None:
    scheme = url.partition(":")[0].lower() if ":" in url else ""
    if scheme != "https" and not (any_source and scheme in ("http", "file")):
        raise GradtuneError(
            f"{url} is no address that begins with https:; use one, or add --any-source to take http: and file: too"
        )


def _get(url: str, advice: str, most: int, any_source: bool) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            _check_scheme(response.url, any_source)  # a redirect may lead elsewhere
            return _bounded(response, url, advice, most)
    except GradtuneError:
        raise
    except urllib.error.HTTPError as error:
        raise GradtuneError(f"{url} answered {error.code} {error.reason}; {advice} or name another source") from error
    except http.client.IncompleteRead as error:
        raise GradtuneError(f"{url} broke off; files fetched before it are kept, {advice}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise GradtuneError(f"cannot reach {url} ({reason}); check the network and {advice}") from error


def _bounded(response: Any, url: str, advice: str, most: int) -> bytes:
    """Read a response to its end, which must come within `most` bytes and `_TOTAL_S` seconds."""
    content, until, announced = bytearray(), time.monotonic() + _TOTAL_S, response.length
    while piece := response.read1(_PIECE):
        content += piece
        if len(content) > most:
            raise GradtuneError(f"{url} sends more than the {most} bytes of the file; name another source, {advice}")
        if time.monotonic() > until:
            raise GradtuneError(f"{url} has not ended after {_TOTAL_S} seconds; {advice} or name another source")
    if announced is not None and len(content) < announced:
        raise http.client.IncompleteRead(bytes(content), announced - len(content))
    return bytes(content)


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
