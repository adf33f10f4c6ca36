"""All claims of the book, and their answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from gradtune.errors import unknown
from gradtune_book import paths
from gradtune_book.claims import inventory
from gradtune_book.claims.claim import Claim, Judged, judge
from gradtune_book.claims.words import Opening, Shown
from gradtune_book.papers.clip import claims as clip
from gradtune_book.papers.fds import claims as fds
from gradtune_book.papers.metaoptimize import claims as metaoptimize
from gradtune_book.papers.oho import claims as oho
from gradtune_book.papers.onepass import claims as onepass
from gradtune_book.papers.together import claims as together
from gradtune_book.papers.together import horizon_claims

CLAIMS: tuple[Claim, ...] = (
    *(*oho.CLAIMS, *clip.CLAIMS, *fds.CLAIMS, *metaoptimize.CLAIMS, *onepass.CLAIMS),
    *together.CLAIMS,
    *horizon_claims.CLAIMS,
)
"""The claims of all papers, in the order of the chapters, and the book's own."""


def answers(notebook: str | None = None) -> list[Judged]:
    """Return the claims that a chapter shows, or all, with the answers of our records and of the papers' numbers."""
    chosen = [claim for claim in CLAIMS if notebook in (None, claim.notebook)]
    return [judged for claim in chosen for judged in _judged(claim.id, tuple(paths.records_roots()))]


@cache
def _judged(name: str, roots: tuple[Path, ...]) -> list[Judged]:
    """Judge a claim once, as long as the records stay where they are."""
    return judge(next(claim for claim in CLAIMS if claim.id == name))


def show(notebook: str) -> Shown:
    """Return what a chapter shows: the verdicts of its figures and tables, and a row for each answer."""
    return Shown(answers(notebook))


def opening(paper: str) -> Opening:
    """Return what the opening page of a paper shows: each figure and table, its verdict, our runs and its chapter.

    Args:
        paper: Short name of the paper, in capitals or not.

    Raises:
        GradtuneError: There is no such paper; names the nearest.
    """
    known = {name.lower(): name for name in inventory.PAPERS}
    if paper.lower() not in known:
        raise unknown("paper", paper, known)
    name = known[paper.lower()]
    mine = [item for item in inventory.items() if item.paper == name]
    claims = [claim for claim in CLAIMS if claim.paper == name]
    return Opening(mine, [judged for claim in claims for judged in _judged(claim.id, tuple(paths.records_roots()))])
