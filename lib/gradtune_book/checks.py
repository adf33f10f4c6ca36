"""Checks of the installation, the data and the run records, as `gradtune check` prints them.

They answer three questions: is the installation as pinned, is the data intact, and is every record readable? Each
answer is a `Finding`, one line of text.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.nets import compiled
from gradtune_book import paths
from gradtune_book.data import datasets as data
from gradtune_book.data import image_sets
from gradtune_book.records import environment, jsonl, proof, store


class Finding(NamedTuple):
    """One line of `gradtune check`.

    Attributes:
        good: False where something is to be mended.
        text: What was found, and in places what to do.
    """

    good: bool
    text: str


def everything(deep: bool = False) -> Iterator[Finding]:
    """Check the environment and the compiler, then every dataset, then every record file.

    Args:
        deep: Decode every set of images that is there, too: tens of seconds for CIFAR-10 as image files. Prove what
            lies in the cache of compiled operations and compile what is missing there.
    """
    yield from packages()
    yield compiler()
    if deep:
        yield from operations()
    yield from datasets()
    if deep:
        yield from images()
    yield from record_files()


def packages() -> Iterator[Finding]:
    """Compare the installed versions with `requirements.lock`."""
    pinned, wrong = environment.differences()
    yield from (Finding(False, f"environment: {each}; `make setup` installs what is locked") for each in wrong)
    if not pinned:
        yield Finding(True, "environment: no requirements.lock here, versions not compared")
    elif not wrong:
        yield Finding(True, f"environment: Python {environment.versions()['python']}, {pinned} packages as locked")


def compiler() -> Finding:
    """Say what compiles the C++ operations; to have no compiler is no fault."""
    if (found := compiled.compiler()) is None:
        return Finding(True, "compiler: none, trainings on tables take up to four times as long")
    return Finding(True, f"compiler: {found.version}")


def operations() -> Iterator[Finding]:
    """Prove every library in the cache of compiled operations; load each C++ file, compiled anew where it has none."""
    for file in compiled.damaged():
        yield Finding(False, f"compiled: {file} is damaged or open to other users and is never loaded; remove it")
    if compiled.compiler() is None:
        return
    for source in sorted(file for root in paths.PACKAGES for file in root.rglob("*.cpp")):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", GradtuneWarning)
            library = compiled.load(source)
        wrong = str(said[0].message) if said else f"{source.name} cannot be compiled or loaded"
        yield Finding(library is not None, f"compiled: {wrong if library is None else source.name}")


def datasets() -> Iterator[Finding]:
    """Verify the checksum of every file of every dataset; an absent set is no fault."""
    for name in data.DATASETS:
        state, bad = data.state(name), data.corrupted(name)
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            yield Finding(False, f"data: {bad[0]}{more} truncated or altered; run `gradtune data fetch {name}`")
        elif state == "incomplete":
            yield Finding(False, f"data: {name} is incomplete; run `gradtune data fetch {name}`")
        else:
            yield Finding(True, f"data: {name} {state}")


def images() -> Iterator[Finding]:
    """Read every set of images that is there, as a study would."""
    for name in image_sets.TITLES:
        if image_sets.present(name):
            try:
                yield Finding(True, f"images: {image_sets.read(name).caption}")
            except GradtuneError as error:
                yield Finding(False, f"images: {error}")


def record_files() -> Iterator[Finding]:
    """Prove every line of every record file."""
    files = store.all_files()
    for file in files:
        try:
            content = file.read_bytes() if file.exists() else b""
            lines, intact = jsonl.parse(file, content) if content else (jsonl.read(file), 0)
            store.check_home(file, lines)
        except (GradtuneError, OSError) as error:
            yield Finding(False, f"records: {error}")
            continue
        name = f"records: {'/'.join(file.parts[-3:])}, {len(lines)} runs"
        if bare := proof.unproven(file, content):
            yield Finding(
                False, f"{name}, {bare} without digest or seal; where they are good, run `gradtune check --seal`"
            )
            continue
        end = ", a torn last line is ignored and run again" if intact < len(content) else ""
        yield Finding(True, name + _of_versions(lines) + end)
    if not files:
        yield Finding(True, "records: none yet")


def _of_versions(lines: list[proof.Line]) -> str:
    counts = Counter(each["config"].get("version", 0) for each in lines)
    return "" if len(counts) < 2 else ", of " + " and ".join(f"version {v}: {n}" for v, n in sorted(counts.items()))
