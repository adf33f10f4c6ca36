"""The buttons that lead to the repository, which are off unless an address is configured."""

from __future__ import annotations

import pytest

from gradtune.errors import GradtuneError
from gradtune_book.pages import links


def test_without_an_address_no_button_leads_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADTUNE_REPOSITORY", raising=False)
    assert links.repository() == "" and links.buttons("", "clip_mnist") == []


def test_buttons_open_the_notebook_that_the_repository_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_REPOSITORY", "https://github.com/owner/book.git")
    address = links.repository()
    source, binder = links.buttons(address, "clip_mnist")
    assert source["url"] == "https://github.com/owner/book/blob/HEAD/notebooks/clip_mnist.ipynb"
    assert binder["url"] == ("https://mybinder.org/v2/gh/owner/book/HEAD?urlpath=lab/tree/notebooks/clip_mnist.ipynb")
    assert [b["url"] for b in links.buttons(address)] == [address]


def test_another_host_is_named_whole() -> None:
    binder = links.buttons("https://git.example.org/owner/book", "clip_mnist")[1]
    assert "/v2/git/https%3A%2F%2Fgit.example.org%2Fowner%2Fbook/HEAD?" in binder["url"]


@pytest.mark.parametrize("wrong", ["github.com/owner/book", "https://github.com/owner", "https://a/b/c?d=e"])
def test_what_is_no_address_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_REPOSITORY", wrong)
    with pytest.raises(GradtuneError, match="expected the address of a repository"):
        links.repository()
