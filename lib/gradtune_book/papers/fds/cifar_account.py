"""What a search of the regret study has spent and found: its account of training steps, seconds and answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def __post_init__(self) -> None:
        self.resume()

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
        begin = environment.busy_seconds(self.device)
        self.answers.append(Answer(steps, seconds, worth(), recipe, tuple(hypergradient)))
        self.evaluation_seconds += environment.busy_seconds(self.device) - begin

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
