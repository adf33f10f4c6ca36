"""The page of all verdicts and its list in a terminal."""

from __future__ import annotations

import re
import struct

import pytest

from gradtune_book import cli
from gradtune_book.claims import inventory
from gradtune_book.pages import verdicts
from gradtune_book.papers import registry


@pytest.fixture(scope="module")
def text() -> str:
    page = verdicts.page()
    assert not re.search(r"\de-\d", page)  # which a browser would break
    return page.replace("\N{NON-BREAKING HYPHEN}", "-")


def test_every_item_stands_on_the_page_with_a_verdict(text: str) -> None:
    words = (*verdicts.WORDS, "no result")
    for item in inventory.items():
        section = text.split(f"\n## {item.paper}\n")[1].split("\n## ")[0]
        row = next(line for line in section.splitlines() if line.startswith(f"| {item.item} |"))
        assert any(f"| {word}" in row for word in words), row
        assert not item.chapter or f"{{doc}}`{item.chapter}`" in row


def test_the_counts_add_up(text: str) -> None:
    items, judged = inventory.items(), registry.answers()
    found = verdicts.count(items, judged)
    assert {p: sum(c.values()) for p, c in found.items()} == {
        "OHO": 10,
        "Clip": 8,
        "FDS": 8,
        "MetaOptimize": 16,
        "OnePass": 34,
    }
    assert {word for c in found.values() for word in c} <= {*verdicts.WORDS, "no result"}
    assert f"| all | {sum(c['reproduced'] for c in found.values())} |" in text


def test_every_claim_stands_on_the_page_once_for_each_setting(text: str) -> None:
    for judged in registry.answers():
        start = judged.claim.statement.split("|")[0].split("<")[0].split("*")[0]
        assert text.count(f"| {start}") >= len(judged.claim.settings), judged.claim.id


def test_the_books_own_claims_stand_apart_and_are_not_counted(text: str) -> None:
    papers, own = text.split("\n## This book\n")
    judged = [j for j in registry.answers() if not j.claim.sanity]
    ours = {j.claim.id: j.claim.statement for j in judged if j.claim.paper == inventory.OWN}
    others = {j.claim.id for j in judged} - set(ours)
    assert ours and all(s in own and s not in papers for s in ours.values())
    assert f"These verdicts rest on {len(others)} claims" in papers


def test_the_picture_is_a_small_png() -> None:
    drawn = verdicts.picture()
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", drawn[16:24])[0] < 1300
    assert drawn == verdicts.picture()


def test_the_list_in_a_terminal_has_every_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "claims"]) == 0
    out = capsys.readouterr().out
    for judged in registry.answers():
        assert f"    {judged.claim.id}: {judged.claim.paper}, {judged.claim.place}" in out
        assert f"{judged.ours.word}" in out
