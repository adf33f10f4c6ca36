"""A search inside a recorded run that goes on where an earlier sitting stopped.

A search draws its configurations and decides by losses alone, and a trial is a function of its configuration and seed.
So the same search, told the losses that are known, asks for the same trials without training any of them; from there it
trains on. `tuning.resumed` does the same for a user's model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gradtune.search.trainable import Configs
from gradtune_book.records import sittings
from gradtune_book.records.environment import Stopwatch

Tick = Callable[[Any, Stopwatch | None], None]


class Resumable(Protocol):
    """A `search.Trainable` whose trials can be saved, one cohort at a time."""

    @property
    def steps(self) -> int:
        """Training steps of a full-length trial."""
        ...

    def start(self, configs: Configs, seeds: Sequence[int]) -> Any:
        """Return untrained trials."""
        ...

    def advance(self, members: Any, steps: int, tick: Tick) -> Any:
        """Return the trials after `steps` more steps; `tick` sees them now and then, with a stopwatch that runs."""
        ...

    def val_loss(self, members: Any) -> Sequence[float]:
        """Return the validation loss of every trial."""
        ...

    def state(self, members: Any) -> Mapping[str, Any]:
        """Return what the trials, and this object, go on from; with None, this object alone."""
        ...

    def restored(self, members: Any, earlier: Mapping[str, Any]) -> Any:
        """Let this object go on from what `state` gave, and return the trials in training then (None: there are none).

        Args:
            members: The same trials, untrained.
            earlier: What `state` gave.
        """
        ...

    def age(self, members: Any) -> int:
        """Return how many steps the trials have taken."""
        ...


class _Members:
    """Trials of one cohort, made when they are first trained or evaluated anew."""

    def __init__(self, configs: Configs, seeds: Sequence[int]) -> None:
        self.configs, self.seeds = configs, seeds
        self.made: Any = None
        self.age = 0  # in steps, of the last evaluation


class Told:
    """Trials for `search.search` whose losses and training are kept by the current sitting. Use it inside `with`.

    Args:
        trials: What is trained.
        caught_up: Called once, when an earlier sitting is caught up with: what the sampler did until then has been
            counted there.

    Attributes:
        seconds: Seconds by the clock since the search began at each evaluation that followed training, in order; those
            of earlier sittings among them.
    """

    def __init__(self, trials: Resumable, caught_up: Callable[[], None] = lambda: None) -> None:
        self.trials, self.seconds, self._caught_up = trials, list[float](), caught_up
        self._before: float | None = None  # seconds of earlier sittings, until they are caught up with
        self._losses: list[list[float]] = []
        self._at = 0  # evaluations so far
        self._live: _Members | None = None
        self._earlier: Mapping[str, Any] | None = None
        self._begin = time.perf_counter()
        self._part = sittings.current().part("search", self._state)

    def __enter__(self) -> Told:
        earlier = self._part.__enter__()
        if earlier is not None:
            self._losses, self.seconds = [*earlier["losses"]], [*earlier["at"]]
            self._before = earlier["seconds"]
            self._earlier = earlier["trials"]
            self.trials.restored(None, earlier["trials"])
        return self

    def __exit__(self, *exception: Any) -> None:
        self._part.__exit__(*exception)

    def catch_up(self) -> None:
        """Take the clock of the earlier sitting over; after a search, all of which it was told, too."""
        if self._before is not None:
            self._begin, self._before = time.perf_counter() - self._before, None
            self._caught_up()

    @property
    def steps(self) -> int:
        return self.trials.steps

    def start(self, configs: Configs, seeds: Sequence[int]) -> _Members:
        return _Members(configs, seeds)

    def advance(self, members: _Members, steps: int) -> _Members:
        goal = members.age + steps
        if self._at == len(self._losses):
            self._train(members, goal)
        members.age = goal
        return members

    def val_loss(self, members: _Members) -> list[float]:
        if self._at == len(self._losses):
            self._make(members)
            self._losses.append([float(x) for x in self.trials.val_loss(members.made)])
            if members.age:
                self.seconds.append(time.perf_counter() - self._begin)
        self._at += 1
        return list(self._losses[self._at - 1])

    def _make(self, members: _Members) -> None:
        """Have the trials in memory: new ones, or as the earlier sitting left them."""
        self.catch_up()
        if members.made is None:
            members.made = self.trials.start(members.configs, members.seeds)
            if self._earlier is not None and self._earlier["first"] == self._first(members):
                members.made = self.trials.restored(members.made, self._earlier)
            self._earlier = None
        self._live = members

    def _train(self, members: _Members, goal: int) -> None:
        self._make(members)

        def tick(now: Any, spent: Stopwatch | None) -> None:
            members.made = now
            sittings.current().tick(spent)

        members.made = self.trials.advance(members.made, goal - self.trials.age(members.made), tick)

    def _first(self, members: _Members) -> int:
        return int(members.seeds[0])

    def _state(self) -> dict[str, Any]:
        trials = self._earlier
        if trials is None:
            live = self._live
            trials = {**self.trials.state(None if live is None else live.made)}
            trials["first"] = -1 if live is None else self._first(live)
        seconds = time.perf_counter() - self._begin if self._before is None else self._before
        return {"losses": self._losses, "at": self.seconds, "seconds": seconds, "trials": trials}
