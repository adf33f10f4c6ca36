"""Checks of the installation, the data and the run records, as `gradtune check` prints them.

They answer three questions: is the installation as pinned, is the data intact, and is every record readable? Each
answer is a `Finding`, one line of text.
"""

from collections.abc import Iterator
from typing import NamedTuple

from gradtune.errors import GradtuneError
from gradtune.nets import compiled
from gradtune_book.data import datasets as data
from gradtune_book.records import environment, jsonl, store


class Finding(NamedTuple):
    """One line of `gradtune check`.

    Attributes:
        good: False where something is to be mended.
        text: What was found, and in places what to do.
    """

    good: bool
    text: str


def everything() -> Iterator[Finding]:
    """Check the environment and the compiler, then every dataset, then every record file."""
    yield from packages()
    yield compiler()
    yield from datasets()
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


def record_files() -> Iterator[Finding]:
    """Parse every record file."""
    files = store.all_files()
    for file in files:
        try:
            runs, torn = len(jsonl.read(file)), jsonl.torn(file)
        except GradtuneError as error:
            yield Finding(False, f"records: {error}")
            continue
        note = ", a torn last line is ignored and run again" if torn else ""
        yield Finding(True, f"records: {'/'.join(file.parts[-3:])}, {runs} runs{note}")
    if not files:
        yield Finding(True, "records: none yet")
