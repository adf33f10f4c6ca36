"""What torch checks of its optimisers, by name: filled by the modules `checks_*`, run by `test_torch_behaviours.py`.

A check is a function that fails where `MetaOptimize` does not behave so. One that is refused raises a GradtuneError,
with the sentence that stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One behaviour: what tries it, and the sentence that refuses it (None: it holds)."""

    area: str
    run: Callable[[], None]
    refused: str | None


CHECKS: dict[str, Check] = {}
AREAS = ("construction", "step", "state", "with other tools", "several processes")


def check(area: str, name: str, refused: str | None = None) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def enter(run: Callable[[], None]) -> Callable[[], None]:
        assert name not in CHECKS
        CHECKS[name] = Check(area, run, refused)
        return run

    return enter


def table() -> list[str]:
    """The lines of the book's table."""
    words = {name: f"refused: {each.refused}" if each.refused else "holds" for name, each in CHECKS.items()}
    ordered = sorted(CHECKS.items(), key=lambda each: AREAS.index(each[1].area))
    rows = [f"| {each.area} | {name} | {words[name]} |" for name, each in ordered]
    return ["| area | behaviour | MetaOptimize |", "|---|---|---|", *rows]


def counts() -> tuple[int, int]:
    """How many behaviours hold, and how many are refused."""
    refused = sum(c.refused is not None for c in CHECKS.values())
    return len(CHECKS) - refused, refused
