"""Runs longer than a sitting: the state of the batch of runs under way, on file until its records are written.

A study says what its training goes on from, and when it may be saved::

    with sittings.current().part("training", lambda: {...}) as earlier:
        if earlier is not None:
            ...  # go on from there
        for step in ...:
            ...
            sittings.current().tick()

A run that is killed and started again gives the same record as one that is not, up to time and place. The file lies
beside the records, in `.unfinished/<study>/<scale>/`, under the key of the batch's first run. It is written whole or
not at all, at most once in `PAUSE` seconds, so that short runs never write one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm import tqdm

from gradtune import variables
from gradtune.errors import GradtuneError
from gradtune.training import checkpoints
from gradtune_book import paths
from gradtune_book.records import environment
from gradtune_book.records.environment import Stopwatch
from gradtune_book.records.store import Result, number

PAUSE = 60.0
"""Seconds from one save to the next; `GRADTUNE_CHECKPOINT_SECONDS` sets others, "never" none."""

_SHARE = 20  # a save that took long is followed by a pause of so many times as long
_WRITER = "gradtune record"
State = Mapping[str, Any]


@runtime_checkable
class Continued(Protocol):
    """What remembers something from step to step, beside what a loop hands on: a stopwatch, or a text that is read."""

    def state(self) -> Any:
        """Return what it remembers, as plain data."""
        ...

    def go_on(self, earlier: Any) -> None:
        """Remember what `state` gave in an earlier sitting."""
        ...


def remembered(each: object) -> Any:
    """Return the state of what is `Continued`, None for anything else."""
    return each.state() if isinstance(each, Continued) else None


def remind(each: object, earlier: Any) -> None:
    """Let what is `Continued` go on from what `remembered` gave of it."""
    if isinstance(each, Continued):
        each.go_on(earlier)


class Sitting:
    """The state of a batch of runs under way.

    Args:
        file: Where it is kept. None keeps nothing.
        of: What it is a state of, as text by topic: one that differs in any is not gone on from.
        pause: Least time in seconds between two saves.
    """

    def __init__(self, file: Path | None = None, of: Mapping[str, str] | None = None, pause: float = PAUSE) -> None:
        self.file, self.of, self.pause = file, dict(of or {}), pause
        self._states: dict[str, Callable[[], State]] = {}
        self._earlier: dict[str, State] = {}
        self._next, self._told = time.monotonic() + pause, False
        if file is not None:
            for part in file.parent.glob(f".{file.name}.*.part"):  # of a save that was killed
                part.unlink(missing_ok=True)
            if file.exists():
                self._earlier = self._read(file)

    @contextmanager
    def part(self, name: str, state: Callable[[], State]) -> Iterator[Any]:
        """Have a part's state saved with every save inside the `with` block.

        Args:
            name: Name of the part, one that no part around it has.
            state: Returns what it goes on from: dicts, lists, tensors, numbers and text. It is called at a `tick`.

        Yields:
            What an earlier sitting left of it, None where there is nothing.
        """
        assert name not in self._states, f"the part {name!r} stands within itself"
        self._states[name] = state
        try:
            yield self._earlier.pop(name, None)
        finally:
            del self._states[name]

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return self.file is not None and time.monotonic() >= self._next

    def tick(self, spent: Stopwatch | None = None) -> None:
        """Save the state of all parts, if it is time to.

        A disk that is full or a folder that cannot be written is told once, and costs no run: the last state stays.

        Args:
            spent: A stopwatch that runs, which stands still meanwhile.
        """
        if self._states and self.due:
            with spent.paused() if spent is not None else contextlib.nullcontext():
                self._save()

    def _save(self) -> None:
        assert self.file is not None
        begin = time.monotonic()
        parts = {**self._earlier, **{name: dict(state()) for name, state in self._states.items()}}
        try:
            checkpoints.save({"sitting": self.of, "parts": parts}, self.file)
        except GradtuneError as error:
            if not self._told:
                tqdm.write(f"{error}; the run goes on, and would start from its last checkpoint or anew")
            self._told = True
        end = time.monotonic()
        self._next = end + max(self.pause, _SHARE * (end - begin) if self.pause else 0.0)

    def _read(self, file: Path) -> dict[str, State]:
        """Return what an earlier sitting left, nothing where it is damaged or of something else, which is said."""
        try:
            state = checkpoints.load(file, torch.device("cpu"), "sitting", _WRITER)
            with checkpoints.expected(file):
                topics = dict.fromkeys([*self.of, *state["sitting"]])
                other = [topic for topic in topics if state["sitting"].get(topic) != self.of.get(topic)]
                if not other:
                    return dict(state["parts"])
                there, here = (str(each.get(other[0]))[:80] for each in (state["sitting"], self.of))
            why = f"{file} is of another {other[0]} ({there}) than this run ({here})"
        except GradtuneError as error:
            why = str(error).split(";", maxsplit=1)[0]
        aside = file.with_suffix(".aside")
        with contextlib.suppress(OSError):
            file.replace(aside)
        tqdm.write(f"{why}; it is set aside as {aside.name}, and the run starts anew")
        return {}


def one_after_another(batch: Sequence[Any], compute: Callable[[Any], Result]) -> list[Result]:
    """Return the results of a batch whose runs are computed one after the other; those that are done are kept.

    Args:
        batch: The configurations.
        compute: Computes one run.
    """
    done: list[Result] = []
    with current().part("results", lambda: {"done": [_plain(each) for each in done]}) as earlier:
        if earlier is not None:
            done += [Result(**each) for each in earlier["done"]]
        for each in batch[len(done) :]:
            done.append(compute(each))
    return done


def _plain(result: Result) -> dict[str, Any]:
    metrics = {name: number(value) for name, value in result.metrics.items()}
    series = {name: [number(value) for value in values] for name, values in result.series.items()}
    return {**vars(result), "metrics": metrics, "series": series}


_NOTHING = Sitting()
_current: ContextVar[Sitting] = ContextVar("sitting", default=_NOTHING)


def current() -> Sitting:
    """Return the sitting of the batch under way; outside of a recording one that keeps nothing."""
    return _current.get()


@contextmanager
def sitting(study: str, scale: str, keys: Sequence[str], device: torch.device) -> Iterator[Sitting]:
    """Let `current` be the sitting of a batch of recorded runs, inside the `with` block.

    Args:
        study: Name of the study.
        scale: One of `config.SCALES`.
        keys: Keys of the runs.
        device: Where they are computed.
    """
    code = environment.code()
    of = {"batch of runs": " ".join(keys), "device": environment.describe(device), "code": code["code"]}
    of["version"] = ", ".join(f"{name} {version}" for name, version in code.items() if name != "code")
    made = Sitting(path(study, scale, keys), of, pause())
    token = _current.set(made)
    try:
        yield made
    finally:
        _current.reset(token)


def path(study: str, scale: str, keys: Sequence[str]) -> Path:
    """Return the file that keeps the state of a batch of runs."""
    return paths.records_root() / ".unfinished" / study / scale / f"{keys[0]}.pt"


def remove(study: str, scale: str, keys: Sequence[str]) -> None:
    """Remove the state of a batch whose records are written."""
    with contextlib.suppress(OSError):
        path(study, scale, keys).unlink(missing_ok=True)


def pause() -> float:
    """Return the seconds between two saves: `GRADTUNE_CHECKPOINT_SECONDS`, else `PAUSE`; infinity for "never".

    Raises:
        GradtuneError: The variable is no such number.
    """
    given = variables.read("CHECKPOINT_SECONDS")
    if given == "never":
        return math.inf
    try:
        seconds = float(given or PAUSE)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise GradtuneError(f'GRADTUNE_CHECKPOINT_SECONDS is {given!r}; expected a number of seconds, or "never"')
    return seconds
