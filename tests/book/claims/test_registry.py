"""The registry of claims: whole, shown once, true of the papers' own tables, and sensitive to the records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradtune.errors import GradtuneError
from gradtune_book.claims import inventory
from gradtune_book.claims.claim import Claim, Setting, answer
from gradtune_book.claims.estimates import Estimate, Estimates
from gradtune_book.claims.words import word_of
from gradtune_book.papers import registry
from tools import ROOT

CLAIMS = registry.CLAIMS
CHAPTERS = list(dict.fromkeys(claim.notebook for claim in CLAIMS))


def cells(notebook: str) -> list[dict[str, object]]:
    source = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in source["cells"]]


def test_claims_have_a_name_of_their_own_and_settings() -> None:
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.settings and claim.statement and claim.paper in inventory.PAPERS for claim in CLAIMS)


def test_claims_are_about_figures_and_tables_of_the_inventory() -> None:
    known = {(item.paper, item.item): item for item in inventory.items()}
    for claim in CLAIMS:
        for item in claim.items:
            assert known[claim.paper, item].result, claim.id


def test_the_inventory_holds_every_figure_and_table() -> None:
    items = inventory.items()
    assert len({(item.paper, item.item) for item in items}) == len(items) == 76
    assert {item.paper for item in items} == set(inventory.PAPERS)
    notebooks = {file.stem for file in (ROOT / "notebooks").glob("*.ipynb")}
    assert {item.chapter for item in items} - {""} <= notebooks
    assert all(bool(item.chapter) == bool(item.ours) for item in items)


def test_every_claim_is_shown_in_exactly_one_chapter_and_no_cell_judges() -> None:
    shown = {path.stem: re.findall(r"registry\.show\(\"(\w+)\"\)", path.read_text().replace('\\"', '"'))
             for path in (ROOT / "notebooks").glob("*.ipynb")}  # fmt: skip
    assert {name: found for name, found in shown.items() if found} == {name: [name] for name in CHAPTERS}


@pytest.mark.parametrize("notebook", CHAPTERS)
def test_a_verdict_cell_is_one_call_below_the_sections_it_covers(notebook: str) -> None:
    found = cells(notebook)
    at = next(k for k, cell in enumerate(found) if "registry.show" in str(cell["source"]))
    assert found[at]["source"] == f'registry.show("{notebook}")'
    places = {re.split(r",| on ", claim.place)[0] for claim in CLAIMS if claim.notebook == notebook}
    text = str(found[at - 1]["source"]).replace("Sections ", "Section ").replace("Appendices", "Appendix")
    numbers = {re.sub(r"^(Section|Appendix|Table|Figure) ", "", place) for place in places}
    assert [n for n in numbers if not re.search(rf"\b{re.escape(n)}\b", text, re.I)] == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_the_papers_own_numbers_do_not_refute_the_claim(claim: Claim) -> None:
    """A check that the paper's table fails is no claim of the paper."""
    for setting in claim.settings:
        if setting.paper is not None:
            assert answer(claim.check, setting.paper).word != "fails", setting.words


def decided() -> list[tuple[Claim, Setting]]:
    """Claims whose answer rests on the error of an estimate, hangs on one comparison, and is not all too clear."""
    found = []
    for judged in registry.answers():
        c, claim, setting = judged.ours.decisive, judged.claim, judged.setting
        if c is None or c.n <= 2 or claim.sanity or c.by.startswith(("count", "binomial", "Kendall")):
            continue
        if abs(c.size) > 9 * c.error:
            continue
        against = "fails" if claim.check(setting.ours()).every else "holds"
        if not re.search(rf"\b([2-9]|\d\d+) {against}", judged.ours.words):
            found.append((claim, setting))
    return found


@pytest.mark.parametrize(("claim", "setting"), decided(), ids=lambda each: getattr(each, "id", "data"))
def test_ten_standard_errors_in_one_number_change_the_answer(claim: Claim, setting: Setting) -> None:
    """Some one recorded number, moved by ten or more of its standard errors, changes what the claim is answered."""
    table = setting.ours()
    before, used = answer(claim.check, lambda: table).word, Reads(table)
    answer(claim.check, lambda: used)
    changed = (t for key in dict.fromkeys(used.keys) for t in moves(table, *key))
    assert any(answer(claim.check, lambda t=t: t).word != before for t in changed)  # type: ignore[misc]


class Reads(Estimates):
    """A table that notes which of its cells are read."""

    keys: list[tuple[str, str]]

    def __init__(self, table: Estimates) -> None:
        super().__init__(table.cells, table.paired, table.counts)
        object.__setattr__(self, "keys", [])

    def at(self, row: str, column: str) -> Estimate:
        self.keys.append((row, column))
        return super().at(row, column)


def moves(table: Estimates, row: str, column: str) -> Iterator[Estimates]:
    """The table with one number moved by ten of its own standard errors, and by ten of the largest in its column."""
    one = table.at(row, column)
    errors = [e.error for (_, c), e in table.cells.items() if c == column and e.error == e.error]
    for error in (one.error, max(errors)) if errors else ():
        for sign in (1, -1):
            yield table.changed(row, column, one.moved(sign * 10 * error))


def test_nothing_recorded_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_RECORDS", str(tmp_path))
    assert {judged.ours.word for judged in registry.answers()} == {"not run"}


@pytest.mark.parametrize("paper", inventory.PAPERS)
def test_an_opening_page_says_of_each_item_what_the_page_of_verdicts_says(paper: str) -> None:
    items, judged = [item for item in inventory.items() if item.paper == paper], registry.answers()
    shown, text = registry.opening(paper.lower()), registry.opening(paper)._repr_markdown_()
    assert [row[0] for row in shown.rows] == [item.item for item in items if item.chapter]
    for item in items:
        row = next((line for line in text.splitlines() if line.startswith(f"| {item.item} |")), "")
        assert (word_of(item, judged) in row and f"`/executed/{item.chapter}`" in row) if item.chapter else not row
        assert (item.item in text.rsplit("Not run:", 1)[-1]) or item.chapter or not item.result


def test_an_opening_page_of_no_paper_is_an_error() -> None:
    with pytest.raises(GradtuneError, match="did you mean 'clip'"):
        registry.opening("clib")
