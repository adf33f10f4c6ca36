"""The bibliography: every entry is cited and says where to find it, every citation has an entry."""

from __future__ import annotations

import json
import re

from tools import ROOT

TEXT = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", TEXT, re.M | re.S))
NOWHERE = {"anonymous2018clip", "sutton1992idbd", "williams1996gp"}
"""Entries without a DOI, an arXiv number or an address of their own."""


def cited() -> set[str]:
    """Keys of all citations in the pages and in the notebooks' prose."""
    texts = [page.read_text(encoding="utf-8") for page in (ROOT / "book").glob("*.md")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    found = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", "\n".join(texts))
    return {key.strip() for keys in found for key in keys.split(",")}


def test_every_entry_is_cited_and_every_citation_has_an_entry() -> None:
    assert len(ENTRIES) == TEXT.count("\n@")
    assert cited() == set(ENTRIES)


def test_every_entry_says_where_to_find_it() -> None:
    lost = {key for key, entry in ENTRIES.items() if not re.search(r"^  (doi|eprint|url) ", entry, re.M)}
    assert lost == NOWHERE


def test_identifiers_are_well_formed_and_used_once() -> None:
    found = re.findall(r"^  (?:doi|eprint) += \{(.+)\},?$", TEXT, re.M)
    assert len(set(found)) == len(found)
    assert [x for x in found if not re.fullmatch(r"\d{4}\.\d{4,5}|10\.\d{4,9}/\S+", x)] == []
