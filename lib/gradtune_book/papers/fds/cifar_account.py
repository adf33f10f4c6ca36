"""What a search of the regret study has spent and found: its account of training steps, seconds and answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from gradtune_book.papers.fds.cifar_training import (
    DECAY,
    LR,
    MOMENTUM,
    Recipe,
)
from gradtune_book.records import environment


class Answer(NamedTuple):
    """What a method would answer from some moment on.

    Attributes:
        steps: training steps spent until then.
        seconds: seconds spent until then.
        accuracy: what the answer is worth, a test accuracy.
        recipe: the answer.
        hypergradient: hypergradients that led to it, divided by the horizon; empty for methods that keep none.
    """

    steps: int
    seconds: float
    accuracy: float
    recipe: Recipe
    hypergradient: tuple[float, ...] = ()


@dataclass
class Account:
    """What a run has spent. Its clock stands still during evaluation."""

    device: torch.device
    answers: list[Answer] = field(default_factory=list)
    training_steps: int = 0
    hypergradient_steps: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    _since: float | None = None
    _evaluating: float | None = None
    _before: float = 0.0
    _wall: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.resume()

    @property
    def wall_s(self) -> float:
        """Seconds by the clock so far, evaluation included."""
        return time.perf_counter() - self._wall

    def state(self) -> dict[str, Any]:
        """Return the account at this moment, as plain data; the clock goes on."""
        now = environment.busy_seconds(self.device)
        return {
            "answers": [
                [a.steps, a.seconds, a.accuracy, list(a.recipe.values), list(a.hypergradient)] for a in self.answers
            ],
            "steps": [self.training_steps, self.hypergradient_steps],
            "seconds": self.seconds + (0.0 if self._since is None else now - self._since),
            "evaluation_seconds": self.evaluation_seconds
            + (0.0 if self._evaluating is None else now - self._evaluating),
            "wall_s": self.wall_s,
        }

    def go_on(self, earlier: Mapping[str, Any]) -> None:
        """Go on from what `state` gave in an earlier sitting; the clock runs."""
        self.answers = [Answer(n, s, a, Recipe.of(of), tuple(h)) for n, s, a, of, h in earlier["answers"]]
        self.training_steps, self.hypergradient_steps = earlier["steps"]
        self.seconds, self.evaluation_seconds = earlier["seconds"], earlier["evaluation_seconds"]
        self._wall, self._before = time.perf_counter() - earlier["wall_s"], self.seconds
        self.caught_up()

    def caught_up(self) -> None:
        """Leave out what was done since `go_on`: a search that is told what it knew has cost that before."""
        self.seconds, self._since = self._before, environment.busy_seconds(self.device)

    def resume(self) -> None:
        self._since = environment.busy_seconds(self.device)

    def pause(self) -> None:
        if self._since is not None:
            self.seconds += environment.busy_seconds(self.device) - self._since
            self._since = None

    def answer(self, recipe: Recipe, worth: Callable[[], float], hypergradient: Sequence[float] = ()) -> None:
        """Take down an answer at the cost so far, and what it is worth at no cost."""
        self.pause()
        self.at(self.training_steps, self.seconds, recipe, worth, hypergradient)
        self.resume()

    def at(
        self, steps: int, seconds: float, recipe: Recipe, worth: Callable[[], float], hypergradient: Sequence[float]
    ) -> None:
        self._evaluating = environment.busy_seconds(self.device)
        found = Answer(steps, seconds, worth(), recipe, tuple(hypergradient))
        self.evaluation_seconds += environment.busy_seconds(self.device) - self._evaluating
        self._evaluating = None
        self.answers.append(found)

    def series(self) -> dict[str, list[float | None]]:
        """Return the answers as curves."""
        found: dict[str, Any] = {
            f"at_{n}": [getattr(a, n) for a in self.answers] for n in ("steps", "seconds", "accuracy")
        }
        for k in range(len(self.answers[0].recipe.lr)):
            found[f"answer_{LR}_{k}"] = [a.recipe.lr[k] for a in self.answers]
        for name in (MOMENTUM, DECAY):
            found[f"answer_{name}"] = [getattr(a.recipe, name) for a in self.answers]
        columns = [*(f"{LR}_{k}" for k in range(len(self.answers[0].recipe.lr))), MOMENTUM, DECAY]
        if any(a.hypergradient for a in self.answers):
            for k, name in enumerate(columns):
                found[f"hypergradient_{name}"] = [a.hypergradient[k] if a.hypergradient else None for a in self.answers]
        return found
