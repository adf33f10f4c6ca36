"""Pages of an earlier build say that they are old when a later build has failed."""

import datetime
import html
import re
from pathlib import Path

_BODY = re.compile(r"<body\b[^>]*>")
_NOTE = re.compile(r"<!-- old: begin -->.*?<!-- old: end -->", re.DOTALL)


def mark(folder: Path, reason: str) -> None:
    """Write on top of every page below a folder that it is of an earlier build, and why the last one stopped.

    Args:
        folder: Folder of the built pages; it may be absent.
        reason: Why the last build stopped, one sentence.
    """
    when = datetime.datetime.now(datetime.UTC).isoformat(" ", "minutes").removesuffix("+00:00")
    style = "padding: 0.6em 1em; border-bottom: 3px solid #b35900; background: #fff3e0; color: #000"
    note = (
        f'<!-- old: begin --><div role="alert" style="{style}"><strong>This page is old.</strong> The last build '
        f"({when} UTC) stopped: {html.escape(reason)}</div><!-- old: end -->"
    )
    for page in folder.rglob("*.html"):
        text = _NOTE.sub("", page.read_text(encoding="utf-8"))
        page.write_text(_BODY.sub(lambda body: body[0] + note, text, count=1), encoding="utf-8")


def unmark(folder: Path) -> None:
    """Take away what `mark` wrote: pages that a build leaves as they are have no part in an earlier failure."""
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if _NOTE.search(text):
            page.write_text(_NOTE.sub("", text), encoding="utf-8")
