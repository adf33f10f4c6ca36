"""Claims and answers as text: the numbers that an answer rests on, and a chapter's rows as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from gradtune_book.claims.claim import Judged, verdict
from gradtune_book.claims.inventory import Item
from gradtune_book.claims.judging import ALONE, Answer
from gradtune_book.notebooks.stats import PLUS_MINUS


def figure(value: float, digits: int = 3) -> str:
    """Write a number with few digits and a proper minus sign."""
    return f"{float(f'{value:.{digits}g}') + 0.0:g}".replace("-", "\N{MINUS SIGN}")


def rests_on(answer: Answer) -> str:
    """Write what an answer rests on: the number that is compared, its error, p-value, method and n."""
    c = answer.decisive
    if c is None:
        return answer.words
    size = figure(c.size) + ("" if math.isnan(c.error) else f"{PLUS_MINUS}{figure(c.error, 2)}")
    parts = [f"{c.what}: {size}"]
    if not math.isnan(answer.p):
        parts.append("p < 0.001" if answer.p < 0.001 else f"p = {figure(answer.p, 2)}")
    parts += [c.by, *([f"n = {c.n}"] if c.n else []), *([answer.words] if answer.words else [])]
    return ", ".join(parts)


def paper_says(answer: Answer) -> str:
    """Write the answer of the paper's own numbers."""
    if answer.decisive is None:
        return "–"
    c = answer.decisive
    return f"{answer.word} ({c.what}: {figure(c.size)}{', value alone' if c.by == ALONE else ''})"


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Write a table of text as Markdown; what Markdown would take for a mark is escaped, but for code and roles."""
    lines = [head, ["---"] * len(head), *(map(_escaped, row) for row in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escaped(text: str) -> str:
    for mark, written in (("|", "\\|"), ("$", "\\$"), ("*", "\\*"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(mark, written)
    return text


def rows(judged: Sequence[Judged]) -> pd.DataFrame:
    """Return the answers as a table of text, one row a claim and setting."""
    return pd.DataFrame(
        [
            {
                "claim": j.claim.statement + (f" ({j.claim.note})" if j.claim.note else ""),
                "place": j.claim.place,
                "tested on": j.setting.words,
                "the paper's numbers": paper_says(j.paper),
                "ours": rests_on(j.ours),
                "answer": j.ours.word + (", by construction" if j.claim.sanity else ""),
            }
            for j in judged
        ],
        columns=["claim", "place", "tested on", "the paper's numbers", "ours", "answer"],
    )


def as_markdown(judged: Sequence[Judged]) -> str:
    """Write the answers as a table in Markdown."""
    found = rows(judged)
    return table(list(found.columns), found.itertuples(index=False))


def lines(judged: Sequence[Judged]) -> list[str]:
    """Return the answers as text for a terminal: a paragraph for each claim and setting, what is in `rows`."""
    out = []
    for j, row in zip(judged, rows(judged).itertuples(index=False)):
        claim, place, tested, paper, ours, word = map(str, row)
        about = ", ".join(j.items) or "no single figure or table"
        out += [f"{word}: {claim}", f"    {j.claim.id}: {j.claim.paper}, {place} ({about})"]
        out += [f"    {tested}: {ours}", *([f"    the paper's numbers: {paper}"] if j.paper.decisive else [])]
    return out


def summed_up(judged: Sequence[Judged], item: str) -> str:
    """Write the verdict of a figure or table, and on what each verdict rests where its settings differ."""
    of = [j for j in judged if item in j.items and not j.claim.sanity]
    found: dict[tuple[str, str], list[str]] = {}
    for data, size in dict.fromkeys((j.setting.data, j.setting.size) for j in of):
        here = [j.ours for j in of if (j.setting.data, j.setting.size) == (data, size)]
        found.setdefault((verdict(here), size), []).append(f"{data}{runs(here)}")
    parts = [f"{word} on {'; '.join(data)}; {size}" for (word, size), data in found.items()]
    whole = verdict([j.ours for j in of])
    return parts[0] if len(parts) == 1 else f"{whole}: {'. '.join(part[0].upper() + part[1:] for part in parts)}"


def about(item: Item, judged: Sequence[Judged]) -> list[Judged]:
    """Return the answers that count for a figure or table."""
    return [j for j in judged if j.claim.paper == item.paper and item.item in j.items and not j.claim.sanity]


def word_of(item: Item, judged: Sequence[Judged]) -> str:
    """Return the verdict of a figure or table in a word or two.

    It is a word of `claim.verdict`; "no result" where the item shows none, "not run" where no chapter recomputes it,
    and "shown" where one does and no claim is about it.
    """
    if not item.result:
        return "no result"
    if not item.chapter:
        return "not run"
    answers = [j.ours for j in about(item, judged)]
    return verdict(answers) if answers else "shown"


def tested_on(judged: Sequence[Judged]) -> str:
    """Write on what claims were put to the test, and on how many runs: "UCI Energy (n = 200), the paper's size"."""
    found: dict[str, list[str]] = {}
    for data, size in dict.fromkeys((j.setting.data, j.setting.size) for j in judged):
        here = [j.ours for j in judged if (j.setting.data, j.setting.size) == (data, size)]
        found.setdefault(size, []).append(f"{data}{runs(here)}")
    return ". ".join(f"{'; '.join(data)}, {size}" for size, data in found.items())


def runs(answers: Sequence[Answer]) -> str:
    """Write the numbers of runs that answers rest on, as " (n = 3 to 50)"; nothing where none is known."""
    n = sorted({a.decisive.n for a in answers if a.decisive is not None and a.decisive.n})
    return f" (n = {n[0]}" + (f" to {n[-1]})" if len(n) > 1 else ")") if n else ""


class Shown:
    """A chapter's claims, as a notebook shows them: the verdict of each item, and a row for each answer."""

    def __init__(self, judged: Sequence[Judged]) -> None:
        self.items = list(dict.fromkeys(item for j in judged for item in j.items))
        self.judged = judged

    def __repr__(self) -> str:
        lines = [f"{j.ours.word}: {j.claim.statement} [{j.setting.words}]" for j in self.judged]
        return "\n".join([*self._verdicts(), *lines])

    def _repr_markdown_(self) -> str:
        found = [f"* {line}" for line in self._verdicts()]
        return "\n".join([*found, "", as_markdown(self.judged)])

    def _verdicts(self) -> list[str]:
        return [f"{item}: {summed_up(self.judged, item)}" for item in self.items]


class Opening:
    """What the opening page of a paper shows: its figures and tables, one a row, and what came out.

    Args:
        items: The figures and tables of one paper.
        judged: The answers to its claims.
    """

    def __init__(self, items: Sequence[Item], judged: Sequence[Judged]) -> None:
        self.rows = [
            [item.item, item.shows, word_of(item, judged), tested_on(about(item, judged)) or item.ours, item.chapter]
            for item in items
            if item.chapter
        ]
        self.missing = [item.item for item in items if word_of(item, judged) == "not run" and not item.chapter]

    def __repr__(self) -> str:
        return "\n".join([*(f"{name}: {word} [{ours}]" for name, _, word, ours, _ in self.rows), *self._left_out()])

    def _repr_markdown_(self) -> str:
        head = ["item", "shows", "verdict", "our runs", "chapter"]
        body = [[*row[:-1], f"{{doc}}`/executed/{row[-1]}`"] for row in self.rows]
        return "\n".join([table(head, body), "", *self._left_out()])

    def _left_out(self) -> list[str]:
        return [f"Not run: {', '.join(self.missing)}."] if self.missing else []
