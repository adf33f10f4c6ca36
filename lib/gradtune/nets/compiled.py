"""Compile C++ operations for this machine when they are first used.

They are an option: each has a form in torch beside it, to which callers fall back where there is no compiler. torch's
own builder is not used, because it needs ninja and takes its headers along: half a minute for a file that compiles in
one second.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from gradtune import variables

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared")


@cache
def load(source: Path, *flags: str) -> ctypes.CDLL | None:
    """Load a C++ file as a shared library, compiling it first where that has not been done.

    The library is kept in `cache_folder` under a name made of the file's text, the compiler, its flags, the processor
    and its instruction sets, so a folder that machines share does no harm. It appears there complete or not at all.

    Args:
        source: the C++ file.
        *flags: flags of the compiler, after those that every file has.

    Returns:
        The library, or None where the file cannot be compiled or loaded.
    """
    if (chosen := compiler()) is None:
        return None
    try:
        text, machine = source.read_text(encoding="utf-8"), (processor(), _instructions())
        made_of = "\n".join([text, *chosen, *machine, *_FLAGS, *flags])
        file = cache_folder() / f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
        if not file.is_file():
            _compile((chosen.path, *_FLAGS, *flags), source, file)
        return ctypes.CDLL(str(file))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: the user has no home
        return None


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
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        subprocess.run([*command, str(source), "-o", str(made)], capture_output=True, timeout=300, check=True)
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
