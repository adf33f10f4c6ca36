"""Compile C++ operations for this machine when they are first used.

They are an option: each has a form in torch beside it, to which callers fall back where there is no compiler. torch's
own builder is not used, because it needs ninja and takes its headers along: half a minute for a file that compiles in
one second.

What lies in the cache is code that will run, so it is trusted only if it is this user's and whole: the folder and the
library belong to the user, nobody else may write to them, and the library has the digest that lies beside it. Anything
else is compiled again, in a folder of this process's own where the cache cannot be used.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gradtune import variables
from gradtune.errors import GradtuneWarning

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")


_BUILDING = "building-"  # folders that a killed process may leave
_fell_back: dict[str, str] = {}  # file -> why it is computed by torch


@cache
def load(source: Path, *flags: str) -> ctypes.CDLL | None:
    """Load a C++ file as a shared library, compiling it first where that has not been done.

    The library is kept in `cache_folder` under a name made of the file's text, the compiler, its flags, the processor
    and its instruction sets, so a folder that machines share does no harm. It appears there complete or not at all.
    Processes that need it at the same time wait for the one that compiles.

    Args:
        source: the C++ file.
        *flags: flags of the compiler, after those that every file has.

    Returns:
        The library, or None where there is no compiler, or the file cannot be compiled or loaded. The latter is a
        `GradtuneWarning`, unless there are flags, which a caller may do without.
    """
    if (chosen := compiler()) is None:
        return None
    try:
        text, machine = source.read_text(encoding="utf-8"), (processor(), _instructions())
        made_of = "\n".join([text, *chosen, *machine, *_FLAGS, *flags])
        name = f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
        return _loaded((chosen.path, *_FLAGS, *flags), source, _own_folder() / name)
    except (OSError, subprocess.SubprocessError) as error:
        if not flags:
            _fell_back[source.name] = _reason(error)
            warnings.warn(
                f"{source.name} cannot be compiled or loaded ({_reason(error)}); torch computes in its place, slower "
                "and with other last digits",
                GradtuneWarning,
                stacklevel=2,
            )
        return None


def in_use() -> str:
    """Return what computes the C++ operations, as records say it: the compiler, or "none" and why."""
    found = compiler()
    if found is None or not _fell_back:
        return "none" if found is None else found.version
    return "none: " + "; ".join(f"{file}: {reason}" for file, reason in sorted(_fell_back.items()))


def damaged() -> list[Path]:
    """Return the libraries in the cache folder that are not whole or not this user's alone, and so are never loaded.

    What has no digest beside it is of an earlier version, never loaded either, and left out.
    """
    try:
        known = [file for file in sorted(cache_folder().glob("*.so")) if _beside(file).exists()]
        return [file for file in known if not _is_whole(file)]
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return []


def _loaded(command: tuple[str, ...], source: Path, file: Path) -> ctypes.CDLL:
    """Load a library from the cache, or else compile it: once more where what lies there does not load."""
    if _is_whole(file):
        try:
            return ctypes.CDLL(str(file))
        except OSError:
            file.unlink()
    with _alone(file.parent):
        if not _is_whole(file):
            _compile(command, source, file)
    return ctypes.CDLL(str(file))


def _own_folder() -> Path:
    """Return the cache folder, or one of this process's own where the former cannot be written or is not only ours."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not _is_ours(folder):
            folder.chmod(0o700)  # only its owner can; what others have left in it is not ours either
        if _is_ours(folder) and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        pass
    return _private_folder()


@cache
def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gradtune-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_ours(path: Path) -> bool:
    """Return whether a file or folder is this user's and nobody else may write to it."""
    if sys.platform == "win32":
        return True  # a folder in the user's profile is the user's
    about = path.lstat()
    return about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(file: Path) -> bool:
    """Return whether a library is ours and has the digest that lies beside it."""
    try:
        expected = _beside(file).read_text(encoding="ascii")
        return _is_ours(file) and hashlib.sha256(file.read_bytes()).hexdigest() == expected
    except (OSError, ValueError):
        return False


def _beside(file: Path) -> Path:
    return file.with_suffix(".sha256")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Context: no other process compiles in the folder; what killed ones have left there is removed."""
    with (folder / ".lock").open("a") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in folder.glob(f"{_BUILDING}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def _reason(error: Exception) -> str:
    said = getattr(error, "stderr", None) or b""
    lines = [line for line in said.decode(errors="replace").splitlines() if "error" in line] or str(error).splitlines()
    return lines[0].strip()[:160] if lines else type(error).__name__


def call(function: ctypes._NamedFuncPointer, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    """Call a function of a library with pointers to tensors, followed by 64-bit sizes.

    Args:
        function: a function of what `load` returns.
        tensors: what the pointers point to; each must be contiguous and on the CPU, which is not checked.
        sizes: whole numbers, handed over after the pointers.
    """
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    function(*pointers, *map(ctypes.c_int64, sizes))


def _compile(command: tuple[str, ...], source: Path, file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=_BUILDING) as folder:
        made = Path(folder) / file.name
        subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, timeout=300, check=True)
        made.chmod(0o700)
        digest = Path(folder) / "digest"
        digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest(), encoding="ascii")
        digest.replace(_beside(file))
        made.replace(file)


def cache_folder() -> Path:
    """Return the folder of what has been compiled: `GRADTUNE_CACHE`, else `gradtune` in the user's cache folder."""
    if given := variables.read("CACHE"):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME", "").strip() or Path.home() / ".cache").expanduser() / "gradtune"


class Compiler(NamedTuple):
    """A C++ compiler.

    Attributes:
        path: where it is.
        version: the first line of what it prints for `--version`.
    """

    path: str
    version: str


@cache
def compiler() -> Compiler | None:
    """Find the C++ compiler: what `CXX` names, else the first there is of c++, g++ and clang++.

    Returns:
        The compiler, or None where there is none or `GRADTUNE_COMPILE` is 0.
    """
    if variables.read("COMPILE") == "0":
        return None
    for name in (os.environ.get("CXX", "").strip(), "c++", "g++", "clang++"):
        if (path := shutil.which(name)) and (says := _output(path, "--version")):
            return Compiler(path, says.split("\n")[0])
    return None


@cache
def processor() -> str:
    """Return the processor's model, or its architecture where the model is not known."""
    return _said_of_the_processor("model name") or platform.machine()


@cache
def _instructions() -> str:
    """Return the names of the processor's instruction sets: under a hypervisor the model's name may hide them."""
    return _said_of_the_processor("flags") or _said_of_the_processor("Features")


def _said_of_the_processor(name: str) -> str:
    try:
        found = re.findall(rf"^{name}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[0].strip() if found else ""


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
