"""Sphinx extension: buttons above a page that lead to how it is cited and, where an address is known, to its source.

The environment variable `GRADTUNE_REPOSITORY` has the address of the repository, such as
`https://github.com/owner/name`. It is off by default: a page then names no other host. The theme's own launch buttons
would open the executed copies below `book/executed`, which no repository holds; these open `notebooks/`.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from sphinx.application import Sphinx

from gradtune import variables
from gradtune.errors import GradtuneError
from gradtune_book import paths

_BRANCH = "HEAD"
_ADDRESS = re.compile(r"https://[\w.-]+/[\w.-]+/[\w.-]+")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the buttons; another address writes every page anew."""
    app.add_config_value("gradtune_repository", repository(), "html")
    app.connect("html-page-context", _add, priority=900)  # after the theme's own
    return {"version": "1", "parallel_read_safe": True}


def repository() -> str:
    """Return the address of the repository; empty where none is configured.

    Raises:
        GradtuneError: The variable holds no address of a repository.
    """
    address = variables.read("REPOSITORY").rstrip("/").removesuffix(".git")
    if address and not _ADDRESS.fullmatch(address):
        raise GradtuneError(
            f"GRADTUNE_REPOSITORY is {address!r}; expected the address of a repository such as "
            "https://github.com/owner/name, or leave it unset"
        )
    return address


def buttons(address: str, notebook: str = "") -> list[dict[str, str]]:
    """Return the buttons that lead out of the book, as the theme has them.

    Args:
        address: Address of the repository; empty for no button.
        notebook: Name of the notebook that a page shows; empty for other pages.
    """
    if not address:
        return []
    found = [_button("Source", "View the repository", address, "fas fa-code-branch")]
    if notebook:
        file = f"notebooks/{notebook}.ipynb"
        found[0]["url"] = f"{address}/blob/{_BRANCH}/{file}"
        owner = address.removeprefix("https://github.com/")
        place = f"gh/{owner}" if owner != address else f"git/{quote(address, safe='')}"
        binder = f"https://mybinder.org/v2/{place}/{_BRANCH}?urlpath=lab/tree/{file}"
        found.append(_button("Binder", "Run this notebook on Binder", binder, "fas fa-rocket"))
    return found


def _button(text: str, tooltip: str, url: str, icon: str) -> dict[str, str]:
    label = f"{text.lower()}-button"
    return {"type": "link", "text": text, "tooltip": tooltip, "url": url, "icon": icon, "label": label}


def _add(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    if "header_buttons" not in context or doctree is None:
        return
    name = pagename.removeprefix("executed/")
    notebook = name if name != pagename and (paths.ROOT / "notebooks" / f"{name}.ipynb").is_file() else ""
    cite = _button("Cite", "How to cite this book", context["pathto"]("cite"), "fas fa-quote-right")
    context["header_buttons"] += [cite, *buttons(app.config.gradtune_repository, notebook)]
