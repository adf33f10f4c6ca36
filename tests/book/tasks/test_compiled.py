"""C++ operations: compiled once, kept, and done without where that is impossible."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gradtune.nets import compiled
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
    (made,) = cache.iterdir()
    before = made.stat().st_mtime_ns
    compiled.load.cache_clear()
    assert isinstance(compiled.load(tmp_path / "twice.cpp"), ctypes.CDLL)
    assert [f.stat().st_mtime_ns for f in cache.iterdir()] == [before]


@needs_compiler
def test_another_text_is_another_library(cache: Path, tmp_path: Path) -> None:
    compiled.load(write(tmp_path))
    compiled.load.cache_clear()
    library = compiled.load(write(tmp_path, SOURCE.replace("2 * x[k]", "3 * x[k]")))
    x, y = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert library is not None
    compiled.call(library["twice"], (x, y), (1,))
    assert y.item() == 3 and len([*cache.iterdir()]) == 2


@needs_compiler
def test_other_flags_are_another_library(cache: Path, tmp_path: Path) -> None:
    source = write(tmp_path, SOURCE.replace("2 * x[k]", "FACTOR * x[k]"))
    assert compiled.load(source) is None and compiled.load(source, "-DFACTOR=2") is not None
    library = compiled.load(source, "-DFACTOR=5")
    x, y = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert library is not None
    compiled.call(library["twice"], (x, y), (1,))
    assert y.item() == 5 and len([*cache.iterdir()]) == 2


@needs_compiler
def test_no_home_is_no_error(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("GRADTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert compiled.load(write(tmp_path)) is None


@needs_compiler
def test_what_does_not_compile_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    assert compiled.load(write(tmp_path, "this is not C++")) is None
    assert not any(cache.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_no_error(cache: Path, tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert compiled.load(Path(relu_nets.__file__).with_suffix(".cpp")) is None
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_a_cache_that_is_a_file_is_no_error(cache: Path, tmp_path: Path) -> None:
    cache.write_text("")
    assert compiled.load(write(tmp_path)) is None


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
