"""C++ operations, compiled for this machine when they are first used.

They are an option: each has a form in torch beside it, to which callers fall back where there is no compiler.
torch's own builder is not used because it needs ninja and takes its headers along, half a minute for a file of one
second.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor

from gradhpo import environment, paths

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared")


@cache
def load(source: Path) -> ctypes.CDLL | None:
    """Load the C++ file as a shared library; None where it cannot be compiled or loaded.

    It is kept in the cache folder under a name made of its text, the compiler and the processor, so a folder that
    machines share does no harm; it appears there complete or not at all.
    """
    if (chosen := environment.compiler()) is None:
        return None
    made_of = "\n".join([source.read_text(encoding="utf-8"), *chosen, environment.processor(), *_FLAGS])
    file = paths.cache_root() / f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    try:
        if not file.is_file():
            _compile(chosen.path, source, file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError):
        return None


def call(function: ctypes._NamedFuncPointer, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    """Calls a function of a library with pointers to tensors, which must be contiguous and on the CPU, and 64-bit
    sizes."""
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    function(*pointers, *map(ctypes.c_int64, sizes))


def _compile(compiler: str, source: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        command = [compiler, *_FLAGS, str(source), "-o", str(made)]
        subprocess.run(command, capture_output=True, timeout=300, check=True)
        made.replace(file)
