"""What makes a line of a record file evidence: its digest, a key that is that of its configuration, whole fields.

A line ends with the digest of all that stands before it. Lines from before there were digests are covered by seals: the
file `sealed.txt` in the root of the records names, for each record file, how many bytes at its beginning have which
SHA-256. `gradtune check --seal` checks the lines without a digest as far as they can be and seals them.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from gradtune.errors import GradtuneError

Line = dict[str, Any]

SEALS = "sealed.txt"
"""Name of the file of seals, in the root of the records."""

_MARK, _DIGITS = b',"digest":"', 16
_END = len(_MARK) + _DIGITS + len(b'"}')
_NUMBER, _TEXT = (int, float), (str,)
_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("key", "study", "scale", "device", "dataset", "dataset_sha256", "date"), _TEXT),
    **dict.fromkeys(("config", "versions", "metrics", "series"), (dict,)),
    **{"commit": (str, type(None)), "dirty": (bool, type(None)), "wall_s": _NUMBER, "batch": (int,)},
    **{"peak_mb": (*_NUMBER, type(None))},
}
_LATER = {"cpu_s", "gpu"}  # what older lines do not have, and what only those of a GPU have


class Seal(NamedTuple):
    """What is known of the beginning of a record file.

    Attributes:
        size: Number of bytes.
        sha256: Their SHA-256.
    """

    size: int
    sha256: str


def write(line: Line) -> bytes:
    """Return a line as it is written: JSON, its digest last, and a newline."""
    text = json.dumps(line, allow_nan=False, separators=(",", ":"))[:-1].encode()
    return text + _MARK + _digest(text).encode() + b'"}\n'


def read(piece: bytes) -> Line:
    """Return what a line says, its digest left out, once it is proven.

    Args:
        piece: The line, with or without its end.

    Raises:
        ValueError: It is no JSON object.
        GradtuneError: It is one and no run record, or has been changed; half a sentence says what is wrong.
    """
    line, body = _parsed(piece), piece.rstrip(b"\r\n")
    if not isinstance(line, dict):
        raise GradtuneError("is not a run record")
    digest = line.pop("digest", None)
    if digest is not None and (not has_digest(piece) or _digest(body[:-_END]) != digest):
        raise GradtuneError("has been changed: its digest is not that of what it says")
    if wrong := _wrong(line):
        raise GradtuneError(wrong)
    return line


def read_sealed(content: bytes) -> list[Line]:
    """Return what sealed lines say, their digests left out; all at once takes less time than one by one."""
    lines: list[Line] = json.loads(b"[" + content.rstrip().replace(b"\n", b",") + b"]")
    for line in lines:
        line.pop("digest", None)
    return lines


def has_digest(piece: bytes) -> bool:
    """Tell whether a line ends with a digest, right or wrong."""
    body = piece.rstrip(b"\r\n")
    return body[-_END : -_END + len(_MARK)] == _MARK and body.endswith(b'"}')


def sealed(file: Path, content: bytes) -> int:
    """Return how many bytes at the beginning of a record file are sealed, once their digest is found right.

    Args:
        file: The file.
        content: What it holds.

    Raises:
        GradtuneError: The bytes are not those that were sealed.
    """
    if len(file.parents) < 3:
        return 0
    root = file.parents[2]
    seal = _seals(root / SEALS, _time(root / SEALS)).get("/".join(file.parts[-3:]))
    if seal is None:
        return 0
    if hashlib.sha256(content[: seal.size]).hexdigest() != seal.sha256:
        raise GradtuneError(
            f"{file}: its first {seal.size} bytes are not those that were sealed in {SEALS}; restore the file from git"
        )
    return seal.size


def unproven(file: Path, content: bytes) -> int:
    """Return how many lines of a record file have neither a digest nor a place within a seal."""
    return sum(not has_digest(piece) for piece in content[sealed(file, content) :].splitlines() if piece.endswith(b"}"))


def seal(root: Path) -> int:
    """Seal the lines of a root of records that have no digest, and return how many they are.

    Raises:
        GradtuneError: A line is no run record, or an earlier seal is broken.
    """
    kept, count = {}, 0
    for file in sorted(root.glob("*/*/*.jsonl")):
        content, size, at = file.read_bytes(), 0, 0
        sealed(file, content)
        for i, piece in enumerate(content.splitlines(keepends=True), start=1):
            at += len(piece)
            try:
                read(piece)
            except ValueError as error:
                raise GradtuneError(f"{file}, line {i} {error}") from error
            if not has_digest(piece):
                size, count = at, count + 1
        if size:
            kept["/".join(file.parts[-3:])] = Seal(size, hashlib.sha256(content[:size]).hexdigest())
    lines = [f"{each.sha256} {each.size} {name}\n" for name, each in kept.items()]
    (root / SEALS).write_text("".join(lines), encoding="utf-8")
    return count


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)
_ENCODER = json.JSONEncoder(sort_keys=True, allow_nan=False)


def _parsed(piece: bytes) -> Any:
    try:
        return _DECODER.decode(piece.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_DIGITS]


def _wrong(line: Line) -> str:
    """Say what is wrong with the fields of a line, "" where nothing is."""
    for name, kinds in _FIELDS.items():
        if name not in line:
            return f"is not a run record: it has no {name!r}"
        if type(line[name]) not in kinds:
            return f"is not a run record: its {name!r} is a {type(line[name]).__name__}"
    if other := sorted(line.keys() - _FIELDS.keys() - _LATER):
        return f"is not a run record: it has the unknown field {other[0]!r}"
    if type(line.get("gpu", {})) is not dict:
        return "is not a run record: its 'gpu' must say with what a GPU computed"
    cfg = line["config"]
    if type(cfg.get("method")) is not str or type(cfg.get("seed")) is not int or type(cfg.get("version", 0)) is not int:
        return "is not a run record: its configuration needs a method in text, and a seed and version in whole numbers"
    numbers = [line["wall_s"], line.get("cpu_s"), line["peak_mb"], *line["metrics"].values()]
    if not all(map(_is_number, numbers)):
        return "is not a run record: seconds, memory and metrics must be finite numbers or null"
    if not all(type(curve) is list and all(map(_is_number, curve)) for curve in line["series"].values()):
        return "is not a run record: a series must be a list of finite numbers and nulls"
    text = _ENCODER.encode([line["study"], cfg])
    if hashlib.sha256(text.encode()).hexdigest()[:12] != line["key"]:
        return f"has been changed: its key {line['key']!r} is not that of its configuration"
    return ""


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in _NUMBER and -sys.float_info.max <= value <= sys.float_info.max)


def _time(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=8)
def _seals(file: Path, time: int) -> dict[str, Seal]:
    """Read seals by the last three parts of a file's path; `time` tells a file that was written again."""
    lines = file.read_text(encoding="utf-8").splitlines() if time else []
    found = (line.split(" ", 2) for line in lines)
    return {name: Seal(int(size), digest) for digest, size, name in found}
