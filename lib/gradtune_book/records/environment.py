"""What a run was computed with: commit, versions, device, memory; and how the installation departs from the pins."""

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Self, TypedDict

import torch

import gradtune
from gradtune import variables
from gradtune.errors import GradtuneError
from gradtune.nets import compiled
from gradtune_book import paths
from gradtune_book.records import gpu, outside

_WORKER_MB = 600  # torch, imported, and a small study
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt


@cache
def commit() -> tuple[str | None, bool | None]:
    """Return the checkout's commit, and whether the files of the two packages (the folder `lib`) differ from it.

    Git is asked once per process. A copy without git has the commit that `GRADTUNE_COMMIT` names, 40 hexadecimal digits
    with "-dirty" behind them where the files differed from it; whether they were changed since then is not known. What
    nobody can tell is None.

    Raises:
        GradtuneError: `GRADTUNE_COMMIT` is needed and names no commit.
    """
    library = str(paths.ROOT / "lib")
    head = outside.output("git", "-C", library, "rev-parse", "HEAD") if (paths.ROOT / ".git").exists() else None
    if head is None:
        return _named_commit()
    changed = outside.output("git", "-C", library, "status", "--porcelain", "--", ".")
    return head, None if changed is None else bool(changed)


def _named_commit() -> tuple[str | None, bool | None]:
    named = variables.read("COMMIT")
    if not (found := re.fullmatch(r"([0-9a-f]{40})(-dirty)?|", named)):
        raise GradtuneError(
            f"GRADTUNE_COMMIT is {named!r}; expected the 40 digits of `git rev-parse HEAD`, or these and -dirty"
        )
    return found[1], True if found[2] else None


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions that a record keeps, by name.

    The names are python, torch, numpy, gradtune and compiler. The last is the C++ compiler of `nets.compiled`, "none"
    where there is none, and "none: ..." with the reason where torch has computed in its place. A package that is not
    installed has the version "unknown".

    Args:
        others: Further packages that a run has used, by their names on PyPI.
    """
    found = {name: _version(name) or "unknown" for name in others}
    return {**_packages(), **found, "compiler": compiled.in_use()}


@cache
def _packages() -> dict[str, str]:
    """Python and packages, as found once per process."""
    names = ("torch", "numpy", "gradtune")
    found = {name: _version(name) or "unknown" for name in names}
    if found["gradtune"] == "unknown":  # a copy that is not installed
        found["gradtune"] = gradtune.__version__
    return {"python": platform.python_version(), **found}


def code() -> dict[str, str]:
    """Return by name what machines must have in common to share a study: their records differ in time and place alone.

    The names are python, torch, numpy and gradtune, with their versions ("2.15.0" for "2.15.0+cpu": the same release,
    built for another device), and code, a digest of the two packages' files.
    """
    return {**{name: version.split("+")[0] for name, version in _packages().items()}, "code": _code()}


@cache
def _code() -> str:
    return "-".join(digest(root, lambda path: True)[:12] for root in paths.PACKAGES)


def digest(root: Path, counts: Callable[[Path], bool]) -> str:
    """Return one digest over names and contents of those files below `root` that count; what Python leaves does not."""
    total = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and counts(path)):
        name = path.relative_to(root)
        left = any(part.startswith((".", "__pycache__")) or part.endswith(".egg-info") for part in name.parts)
        if not left and path.suffix != ".pyc":
            total.update(f"{name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def device(name: str) -> torch.device:
    """Return the device of a name, such as "cpu", "cuda" or "cuda:1".

    Raises:
        GradtuneError: The device is unknown, is neither a CPU nor a CUDA device, or is not there.
    """
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise GradtuneError(f"unknown device {name!r}; expected cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise GradtuneError(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    if chosen.type == "cuda":
        gpu.prepare()
    if chosen.type not in ("cpu", "cuda"):
        raise GradtuneError(f"device {name!r} is not supported; expected cpu, cuda or cuda:N")
    return chosen


def describe(chosen: torch.device) -> str:
    """Return the device as people read it, such as "cpu: AMD EPYC 7B13" or "cuda: NVIDIA H100"."""
    model = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else compiled.processor()
    return f"{chosen.type}: {model}"


def reset_peak(chosen: torch.device) -> None:
    """Start measuring peak memory afresh; on a CPU only where Linux allows it."""
    if chosen.type == "cuda":
        torch.cuda.reset_peak_memory_stats(chosen)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets this process's own high-water mark


def peak_mb(chosen: torch.device) -> float | None:
    """Return the peak of memory since `reset_peak`, in MB of 2^20 bytes.

    It counts the allocated tensors on CUDA, and the process's resident set on a CPU. Where Linux does not tell the
    latter, it is the peak since the process began. None where the system does not tell that either, as on Windows.
    """
    if chosen.type == "cuda":
        return float(torch.cuda.max_memory_allocated(chosen)) / 2**20
    try:
        return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024
    except (OSError, IndexError):
        return _peak_since_start_mb()


def _peak_since_start_mb() -> float | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others count kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def room_for_workers() -> int:
    """Return how many worker processes this machine has room for: twice its cores, and 600 MB of free memory each."""
    cores = 2 * (os.cpu_count() or 1)
    try:
        free = int(re.findall(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[0]) // 1024
    except (OSError, IndexError):
        return cores
    return max(1, min(cores, free // _WORKER_MB))


@contextlib.contextmanager
def as_recorded(chosen: torch.device | None = None) -> Iterator[None]:
    """Compute as studies are recorded, inside the `with` block.

    * Torch uses one thread, so that sums have one order on any number of cores.
    * Numbers below 1e-38 (float32) are rounded to zero where the processor can. A weight decay that a method has driven
      up takes the weights of whole nets below 1e-38, where arithmetic is many times slower: a batch of Lorraine's runs
      on Kin8nm took 210 seconds in place of 50, and gave the same metrics.
    * Freed memory is kept for the next allocation (`keep_freed_memory`).
    * A GPU computes without TF32 and, where torch has them, by deterministic algorithms (`gpu.exact`).

    Afterwards threads, rounding and the GPU's flags are the caller's again. Memory is kept for good.

    Args:
        chosen: Where it is computed. None stands for the CPU.
    """
    threads, flushed = torch.get_num_threads(), _flushes()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    try:
        with gpu.exact() if chosen is not None and chosen.type == "cuda" else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory for the next allocation instead of handing it back.

    A training step frees and allocates the same large tensors again and again. Without this every one of them costs the
    page faults of fresh memory, up to four fifths of a step. Numbers do not change.

    Memory: the process keeps its peak. Where the C library is not glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _flushes() -> bool:
    """Tell whether this thread rounds denormal numbers to zero."""
    return (torch.tensor(1e-38) / 10).item() == 0


def busy_seconds(chosen: torch.device) -> float:
    """Return a reading, in seconds, of how long this process has computed; only differences have a meaning.

    On a CPU it is the processor's time of this process, which other programs do not lengthen. On CUDA it is the clock,
    read once the device is idle.
    """
    if chosen.type == "cuda":
        torch.cuda.synchronize(chosen)
        return time.perf_counter()
    return time.process_time()


class Seconds(TypedDict):
    """Seconds of a run, as a `store.Result` takes them."""

    wall_s: float
    cpu_s: float


class Stopwatch:
    """Seconds of training, by the clock and by the processor; it runs inside `with` and adds up.

    Attributes:
        wall_s: seconds by the clock so far.
        cpu_s: seconds that the process computed so far (`busy_seconds`).

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.wall_s, self.cpu_s = device, 0.0, 0.0
        self._since = 0.0, 0.0

    def __enter__(self) -> Self:
        self._since = busy_seconds(self.device), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_s += busy_seconds(self.device) - self._since[0]
        self.wall_s += time.perf_counter() - self._since[1]

    def state(self) -> Seconds:
        """Return the seconds so far, as they are kept while it stands still."""
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s}

    def go_on(self, earlier: Seconds) -> None:
        """Begin with the seconds of an earlier sitting, before it first runs."""
        self.wall_s, self.cpu_s = earlier["wall_s"], earlier["cpu_s"]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still for a moment, inside `with`: evaluation is no training."""
        self.__exit__()
        yield
        self.__enter__()

    def share(self, runs: int) -> Seconds:
        """Return the seconds of one of `runs` runs that were computed together, as keywords of a `Result`."""
        return {"wall_s": self.wall_s / runs, "cpu_s": self.cpu_s / runs}


def differences() -> tuple[int, list[str]]:
    """Compare the installed packages with `requirements.lock`, for this Python and system.

    Returns:
        How many packages are locked there (0 where there is no such file), and one sentence for each that is absent or
        of another version.
    """
    from packaging.requirements import Requirement

    file = paths.ROOT / "requirements.lock"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pins = [Requirement(line.rstrip("\\ ")) for line in lines if line[:1].isalnum()]
    wanted = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    found = [(pin.name, str(pin.specifier).removeprefix("=="), _version(pin.name)) for pin in wanted]
    here = [each for each in found if each[2] is not None or not _only_for_cuda(each[0])]
    absent = [f"{name} {pin} is not installed" for name, pin, version in here if version is None]
    # "2.15.0+cpu" is the same release as the locked "2.15.0", built for another device
    other = [f"{n} is {v}, locked is {pin}" for n, pin, v in here if v is not None and v.split("+")[0] != pin]
    return len(here), absent + other


def _only_for_cuda(package: str) -> bool:
    """Whether a package serves torch's CUDA build alone, and torch here is another build."""
    return torch.version.cuda is None and package.startswith(("nvidia-", "cuda-", "triton"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
