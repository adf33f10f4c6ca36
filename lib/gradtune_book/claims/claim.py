"""A claim of a paper as data, the settings in which we put it to the test, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from gradtune_book.claims.estimates import Estimates, Missing
from gradtune_book.claims.judging import Answer, Finding, decide

Kind = Literal["order", "equality", "shape", "count", "ratio"]
Check = Callable[[Estimates], Finding]
Source = Callable[[], Estimates]


@dataclass(frozen=True)
class Setting:
    """On what a claim is put to the test.

    Attributes:
        scale: Scale of the records, or what else says how large it is.
        data: Data, as a reader calls it, with what differs from the paper's.
        ours: Function that reads our numbers off the records; empty where nothing is recorded.
        paper: Function that gives what the paper prints about this setting, None where it prints nothing.
        items: Figures and tables that show this setting, where a claim is about several that differ in that.
    """

    scale: str
    data: str
    ours: Source
    paper: Source | None = None
    items: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """The size in words."""
        return SIZES.get(self.scale, self.scale)

    @property
    def words(self) -> str:
        """The setting in words."""
        return f"{self.data}, {self.size}"


SIZES = {"paper": "the paper's size", "laptop": "reduced size", "smoke": "toy size"}


@dataclass(frozen=True)
class Claim:
    """One statement of a paper.

    Attributes:
        id: Name, unique in the book.
        paper: Short name of the paper.
        place: Section, caption or appendix that makes the statement.
        items: Figures and tables of the inventory that it is about.
        statement: What it says, in our words.
        kind: What is asked: an order, an equality, a shape, a count or the size of a ratio.
        check: Function from a table of estimates to comparisons. It takes the paper's numbers as it takes ours.
        notebook: The chapter that shows it.
        settings: On what it is put to the test.
        sanity: Whether it is true by construction, so that it only guards our program and counts for nothing.
        note: What a reader must know beside the answer, such as a choice of ours that it depends on.
    """

    id: str
    paper: str
    place: str
    items: tuple[str, ...]
    statement: str
    kind: Kind
    check: Check
    notebook: str
    settings: tuple[Setting, ...]
    sanity: bool = False
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """A claim in one setting with its answers.

    Attributes:
        claim: The claim.
        setting: The setting.
        ours: The answer of our records.
        paper: The answer of the paper's own printed numbers; "not run" where it prints none of those that are needed.
    """

    claim: Claim
    setting: Setting
    ours: Answer
    paper: Answer

    @property
    def items(self) -> tuple[str, ...]:
        """The figures and tables that the answer counts for."""
        return self.setting.items or self.claim.items


def judge(claim: Claim) -> list[Judged]:
    """Answer a claim in each of its settings."""
    return [
        Judged(claim, s, answer(claim.check, s.ours), answer(claim.check, s.paper or Estimates)) for s in claim.settings
    ]


def answer(check: Check, source: Source) -> Answer:
    """Answer a claim from one source of estimates; "not run" where a number is missing."""
    try:
        return decide(check(source()))
    except Missing as missing:
        return Answer("not run", words=str(missing))


RULE = (
    'A figure or table is "reproduced" where every answer to a claim about it is "holds", and "partly" where some are. '
    'It is "not" reproduced where none is and at least one is "fails", "within noise" where no answer decides, and '
    '"not run" where nothing was run. Sanity checks do not count. The setting belongs to the verdict: what holds on '
    "other data or at reduced size holds there."
)
"""How the answers to an item's claims become its verdict."""


def verdict(answers: Sequence[Answer]) -> str:
    """Sum up the answers to the claims about a figure or table by `RULE`."""
    words = [a.word for a in answers if a.word != "not run"]
    if not words:
        return "not run"
    missing = len(answers) - len(words)
    if "holds" in words:
        word = "reproduced" if set(words) == {"holds"} and not missing else "partly"
    else:
        word = "not" if "fails" in words else "within noise"
    return word + (f" ({missing} of {len(answers)} answers not run)" if missing else "")
