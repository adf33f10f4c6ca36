"""C++ operations: compiled once, kept, and done without where that is impossible."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gradtune.errors import GradtuneWarning
from gradtune.nets import compiled
from gradtune_book.records import environment
from gradtune_book.tasks import relu_nets

needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler")
SOURCE = """
#include <cstdint>
extern "C" void twice(const double* x, double* y, std::int64_t n) {
  for (std::int64_t k = 0; k < n; ++k) y[k] = 2 * x[k];
}
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing remembered before or after."""
    monkeypatch.setenv("GRADTUNE_CACHE", str(tmp_path / "cache"))
    _forget()
    yield tmp_path / "cache"
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    compiled.load.cache_clear()
    compiled.compiler.cache_clear()
    compiled._fell_back.clear()


def write(folder: Path, text: str = SOURCE) -> Path:
    file = folder / "twice.cpp"
    file.write_text(text)
    return file


@needs_compiler
def test_a_file_is_compiled_once_and_called(cache: Path, tmp_path: Path) -> None:
    library = compiled.load(write(tmp_path))
    assert library is not None
    x, y = torch.arange(5.0, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    compiled.call(library["twice"], (x, y), (5,))
    assert torch.equal(y, 2 * x)
    (made,) = cache.glob("*.so")
    before = made.stat().st_mtime_ns
    compiled.load.cache_clear()
    assert isinstance(compiled.load(tmp_path / "twice.cpp"), ctypes.CDLL)
    assert [f.stat().st_mtime_ns for f in cache.glob("*.so")] == [before]


@needs_compiler
def test_another_text_is_another_library(cache: Path, tmp_path: Path) -> None:
    compiled.load(write(tmp_path))
    compiled.load.cache_clear()
    library = compiled.load(write(tmp_path, SOURCE.replace("2 * x[k]", "3 * x[k]")))
    x, y = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert library is not None
    compiled.call(library["twice"], (x, y), (1,))
    assert y.item() == 3 and len([*cache.glob("*.so")]) == 2


@needs_compiler
def test_other_flags_are_another_library(cache: Path, tmp_path: Path) -> None:
    source = write(tmp_path, SOURCE.replace("2 * x[k]", "FACTOR * x[k]"))
    assert compiled.load(source) is None and compiled.load(source, "-DFACTOR=2") is not None
    library = compiled.load(source, "-DFACTOR=5")
    x, y = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert library is not None
    compiled.call(library["twice"], (x, y), (1,))
    assert y.item() == 5 and len([*cache.glob("*.so")]) == 2


@needs_compiler
def test_no_home_and_the_form_is_the_same(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("GRADTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert compiled.load(write(tmp_path)) is not None


@needs_compiler
def test_what_does_not_compile_leaves_nothing_and_is_said(cache: Path, tmp_path: Path) -> None:
    before = environment.versions()["compiler"]
    with pytest.warns(GradtuneWarning, match=r"twice\.cpp cannot be compiled or loaded \(.*error.*torch computes"):
        assert compiled.load(write(tmp_path, "this is not C++")) is None
    assert [each.name for each in cache.iterdir()] == [".lock"]
    assert environment.versions()["compiler"].startswith("none: twice.cpp: ") and not before.startswith("none")


def damaged(content: bytes, how: str) -> bytes:
    half = len(content) // 2
    return {"empty": b"", "cut": content[:half], "short": content[:100], "zeros": content[:half] + bytes(half)}[how]


@needs_compiler
@pytest.mark.parametrize("how", ["empty", "short", "cut", "zeros"])
def test_a_damaged_library_is_compiled_again(cache: Path, tmp_path: Path, how: str) -> None:
    """Loading it would be an error, a bus error or a segmentation fault."""
    source = write(tmp_path)
    assert compiled.load(source) is not None
    (made,) = cache.glob("*.so")
    whole = made.read_bytes()
    made.unlink()  # this process has it mapped
    made.write_bytes(damaged(whole, how))
    code = f"from gradtune.nets import compiled; from pathlib import Path; print(compiled.load(Path({str(source)!r})))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CDLL" in done.stdout, done.stderr
    assert made.read_bytes() == whole


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
@pytest.mark.parametrize("what", ["folder", "library"])
def test_a_cache_that_others_may_write_is_not_trusted(cache: Path, tmp_path: Path, what: str) -> None:
    assert compiled.load(write(tmp_path)) is not None
    (made,) = cache.glob("*.so")
    assert not cache.stat().st_mode & 0o077 and compiled._is_whole(made)
    (cache if what == "folder" else made).chmod(0o777)
    assert compiled._is_whole(made) is (what == "folder")
    compiled.load.cache_clear()
    assert compiled.load(tmp_path / "twice.cpp") is not None
    assert not cache.stat().st_mode & 0o077 and compiled._is_whole(made)  # closed, or compiled again


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="no owners")
def test_a_cache_of_another_user_is_not_used(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiled.load(write(tmp_path)) is not None
    (planted,) = cache.glob("*.so")
    another, real = os.geteuid() + 1, Path.chmod

    def chmod(path: Path, mode: int) -> None:
        if path == cache:
            raise PermissionError(1, "Operation not permitted")
        real(path, mode)

    monkeypatch.setattr(Path, "chmod", chmod)
    monkeypatch.setattr(os, "geteuid", lambda: another)
    assert not compiled._is_whole(planted)
    assert compiled._own_folder() == compiled._private_folder() != cache


@needs_compiler
def test_processes_at_once_compile_once_and_sweep(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, log = compiled.compiler(), tmp_path / "log"
    assert real is not None
    script = tmp_path / "slow"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ echo >> {log}; sleep 1; }}\nexec {real.path} "$@"\n')
    script.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CXX", str(script))
    cache.mkdir(mode=0o700)
    (cache / "building-left").mkdir()  # of a process that was killed
    file = str(write(tmp_path))
    code = f"from gradtune.nets import compiled; from pathlib import Path; print(compiled.load(Path({file!r})))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert all("CDLL" in each.communicate(timeout=120)[0] for each in running)
    assert log.read_text() == "\n" and not (cache / "building-left").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_changes_no_form(cache: Path, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert compiled.load(Path(relu_nets.__file__).with_suffix(".cpp")) is not None
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@needs_compiler
def test_a_cache_that_is_a_file_changes_no_form(cache: Path, tmp_path: Path) -> None:
    cache.write_text("")
    assert compiled.load(write(tmp_path)) is not None


def test_without_a_compiler_there_is_no_library(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_COMPILE", "0")
    assert compiled.compiler() is None and compiled.load(write(tmp_path)) is None
    assert not cache.exists()


def test_cxx_names_the_compiler(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "mine"
    script.write_text("#!/bin/sh\necho 'my compiler 1.0'\necho more\n")
    script.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CXX", str(script))
    assert compiled.compiler() == compiled.Compiler(str(script), "my compiler 1.0")


@needs_compiler
def test_the_librarys_own_file_compiles_without_a_warning(tmp_path: Path) -> None:
    found = compiled.compiler()
    assert found is not None
    source = Path(relu_nets.__file__).with_suffix(".cpp")
    flags = (*compiled._FLAGS, "-Wall", "-Wextra", "-Werror")
    assert compiled._output(found.path, *flags, str(source), "-o", str(tmp_path / "made.so")) is not None
