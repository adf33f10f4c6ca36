"""The page of all verdicts: every figure and table of the five papers, its claims and their answers.

It is made from the inventory, the registry of claims and the records alone, at every build.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence

from gradtune_book.claims import inventory, judging
from gradtune_book.claims.claim import RULE, Judged
from gradtune_book.claims.inventory import OWN, PAPERS, Item
from gradtune_book.claims.words import about, as_markdown, summed_up, table, word_of
from gradtune_book.papers import registry

PICTURE = "verdicts.png"
WORDS = ("reproduced", "partly", "not", "within noise", "shown", "not run")
"""Verdicts of the items with a result, in the order of the table. "shown": recomputed, with no claim to judge."""

_COLOURS = ("#1b7837", "#a6dba0", "#762a83", "#e7d4e8", "#bababa", "#f7f7f7")

_EXPONENT = re.compile(r"(?<=\de)-(?=\d)")

_HOW = f"""\
A **claim** is a statement of a paper, in our words. It is put to the test on our records and, where the paper prints
the numbers, on the paper's own; both answers stand in a row. An answer is one of four:

* **holds** or **fails**: the numbers that the claim compares differ significantly (p < {judging.LEVEL:g}), in its
  direction or against it; where two should be near, their difference lies significantly inside a margin, or outside.
* **within noise**: so many runs do not decide. {judging.FEW} runs or fewer never do.
* **not run**: a number that it needs is not recorded, or not printed.

Means are compared by Welch's t-test, or run by run (paired t) where the runs of both share seeds or instances; medians
by the BCa bootstrap; shares by the binomial distribution; trends by Kendall's rank correlation, all from SciPy. The
p-values of a claim that makes several comparisons are corrected by Holm's method, and the row shows the comparison that
decides. A paper's numbers mostly carry no error: they are judged by value alone, and it is said. No claim here is
refuted by the paper's own table; what was, has been reworded to what the text says.

{RULE} An item that is recomputed but about which no claim can be judged is "shown".
"""
_OWN = "What this book says of its own library, judged by the same rules. None of it counts in the numbers above."


def page() -> str:
    """Return the page as MyST Markdown."""
    items, judged = inventory.items(), registry.answers()
    lines = ["# Verdicts", "", *_counts(items, judged), "", "## How a claim is judged", "", _HOW]
    for paper in PAPERS:
        mine = [j for j in judged if j.claim.paper == paper]
        lines += ["", f"## {paper}", "", *_overview([i for i in items if i.paper == paper], mine), "", *_claims(mine)]
    lines += ["", "## This book", "", _OWN, "", *_claims([j for j in judged if j.claim.paper == OWN])]
    # a browser would break a line at the hyphen of 1e-4
    return _EXPONENT.sub("\N{NON-BREAKING HYPHEN}", "\n".join(lines) + "\n")


def count(items: Sequence[Item], judged: Sequence[Judged]) -> dict[str, Counter[str]]:
    """Count the verdicts of each paper's figures and tables; what stands in brackets is left out."""
    out: dict[str, Counter[str]] = {paper: Counter() for paper in PAPERS}
    for item in items:
        out[item.paper][word_of(item, judged).split(" (")[0]] += 1
    return out


def picture() -> bytes:
    """Draw the counts of `count`, a bar for each paper, as PNG."""
    import matplotlib.pyplot as plt

    found = count(inventory.items(), registry.answers())
    fig, ax = plt.subplots(figsize=(7.5, 2.4), layout="constrained")
    left = dict.fromkeys(found, 0)
    for word, colour in zip(WORDS, _COLOURS):
        sizes = [found[paper][word] for paper in found]
        bars = ax.barh(list(found), sizes, left=list(left.values()), color=colour, edgecolor="black", label=word)
        ax.bar_label(bars, [str(n) if n else "" for n in sizes], label_type="center", color=_ink(colour))
        left = {paper: left[paper] + n for paper, n in zip(left, sizes)}
    ax.invert_yaxis()
    ax.set_xlabel("figures and tables with a result")
    fig.legend(loc="outside upper center", ncols=len(WORDS), fontsize="small", frameon=False)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    plt.close(fig)
    return buffer.getvalue()


def _ink(colour: str) -> str:
    """Return the ink that can be read on a colour."""
    return "white" if colour in ("#1b7837", "#762a83") else "black"


def _counts(items: Sequence[Item], judged: Sequence[Judged]) -> list[str]:
    found = count(items, judged)
    head = ["paper", *WORDS, "no result", "all"]
    body = [[p, *(str(c[w]) for w in [*WORDS, "no result"]), str(sum(c.values()))] for p, c in found.items()]
    total = sum(found.values(), Counter())
    body.append(["all", *(str(total[w]) for w in [*WORDS, "no result"]), str(len(items))])
    counted = [j for j in judged if not j.claim.sanity and j.claim.paper != OWN]
    answers = Counter(j.ours.word for j in counted)
    said = ", ".join(f"{answers[w]} *{w}*" for w in ("holds", "fails", "within noise", "not run"))
    claims = len({j.claim.id for j in counted})
    return [
        f"Every figure and table of the five papers, {len(items)} in all, with what our runs say about it. Every build "
        "of the book writes this page anew, from the run records.",
        "",
        table(head, body),
        "",
        f"```{{figure}} {PICTURE}",
        ":name: fig-verdicts",
        ":alt: A bar for each of the five papers, divided by the verdicts of its figures and tables.",
        "",
        "Verdicts of the figures and tables of each paper; the numbers are those of the table above.",
        "```",
        "",
        f"These verdicts rest on {claims} claims, some of them put to the test on several sets: {said}.",
    ]


def _overview(items: Sequence[Item], judged: Sequence[Judged]) -> list[str]:
    """Return the table of a paper's figures and tables."""
    body = []
    for item in items:
        of = about(item, judged)
        said = summed_up(of, item.item) if of else word_of(item, judged)
        where = f"{{doc}}`{item.chapter}`" if item.chapter else "–"
        ours = item.ours or (f"needs {item.needs}" if item.needs else "–")
        setting = f"{item.shows} ({item.setting})" if item.setting else item.shows
        body.append([item.item, setting, said, ours, where])
    return [table(["item", "shows", "verdict", "our runs", "chapter"], body)]


def _claims(judged: Sequence[Judged]) -> list[str]:
    """Return a table of claims below a heading for each figure or table, and for claims about none."""
    lines: list[str] = []
    groups = dict.fromkeys(j.items for j in judged)
    for group in groups:
        of = [j for j in judged if j.items == group]
        paper, name = of[0].claim.paper, " and ".join(group) or "no single figure or table"
        chapters = ", ".join(f"{{doc}}`{n}`" for n in dict.fromkeys(j.claim.notebook for j in of))
        title = f"{paper}: {name}" if paper != OWN else "The library"
        lines += [f"### {title}", "", f"Chapter: {chapters}.", "", as_markdown(of), ""]
    return lines or ["No claim of this paper has been put to the test yet."]
