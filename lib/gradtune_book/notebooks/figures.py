"""Show a figure in a notebook with a caption and an alternative text that are known only at run time.

`show` sends two outputs. The first is the picture. Its output metadata carry caption, alternative text and name, from
which the book makes a numbered figure (`pages.figures`). The second is the caption as Markdown, for Jupyter and other
notebook viewers; the book leaves it out.

Tests of the notebooks compare the texts and never the picture, so both texts must be the same on every machine: name
the data in a caption, and put measured numbers in a table.
"""

import base64
import io
import re
import struct
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any

from gradtune.errors import GradtuneError
from gradtune_book.notebooks.tables import Table
from gradtune_book.records.store import NOTHING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METADATA_KEY = "gradtune_figure"
"""Key of the output metadata that marks both outputs of `show`."""

_DPI = 144
_CSS_DPI = 96  # a CSS pixel: the picture is stored at 1.5 times the size it is shown at, so that it is sharp
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def show(fig: "Figure | Callable[[], Figure]", caption: str, alt: str, name: str, of: Sized | None = None) -> None:
    """Display a figure below the cell, with its caption, and close it.

    Args:
        fig: The figure, or a function that draws it. It is drawn on white, which both themes of the book frame.
        caption: One paragraph of Markdown, formulas allowed. It names the data that the figure was made from.
        alt: What is to be seen, in plain text, for those who cannot see it.
        name: Label of the figure, unique in the book, such as `fig-clip-table`. Prose refers to it by the role
            `numref`.
        of: The runs that the figure shows. Where there are none, a sentence says so and nothing is drawn. None shows
            the figure in any case.

    Raises:
        GradtuneError: The caption or the alternative text is empty or has more than one paragraph, or the name is no
            label. Nothing of this is checked where there are no runs.
    """
    if of is not None and not len(of):
        print(NOTHING)
        return
    if callable(fig):
        fig = fig()
    caption, alt = _one_paragraph("caption", caption), _one_paragraph("alt", alt)
    if not _NAME.fullmatch(name):
        raise GradtuneError(
            f"a figure's name must be small letters and digits joined by hyphens, such as 'fig-loss', not {name!r}"
        )
    from IPython.display import display

    png = _png(fig)
    width, height = (round(pixels * _CSS_DPI / _DPI) for pixels in struct.unpack(">II", png[16:24]))
    mark = {"caption": caption, "alt": alt, "name": name}
    picture = {"image/png": base64.b64encode(png).decode(), "text/plain": alt}
    display(
        picture,
        raw=True,
        metadata={"image/png": {"width": width, "height": height, "alt": alt}, METADATA_KEY: mark},
    )
    display(
        {"text/markdown": f"**Figure.** {caption}", "text/plain": f"Figure. {caption}"},
        raw=True,
        metadata={METADATA_KEY: {"name": name}},
    )


def table(make: Callable[[], Any], of: Sized, caption: str = "", digits: int = 3) -> Any:
    """Return the table that `make` gives, or a sentence that says there are no runs.

    Args:
        make: Function without arguments, called only where there are runs.
        of: The runs that the table sums up.
        caption: What is in the table, see `tables.Table`; without one the table is returned as it is.
        digits: Significant digits of the numbers, with a caption.
    """
    if not len(of):
        return NOTHING
    return Table(make(), caption, digits) if caption else make()


def _one_paragraph(what: str, text: str) -> str:
    """Return `text` on one line; raise a GradtuneError when it is empty or has a blank line."""
    if not text.strip() or re.search(r"\n\s*\n", text.strip()):
        raise GradtuneError(f"a figure's {what} must be one paragraph of text, not {text!r}")
    return " ".join(text.split())


def _png(fig: "Figure") -> bytes:
    """Draw `fig` as PNG on white, without the metadata that name the program, and take it from pyplot's list."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(fig)  # else Jupyter's inline backend shows it once more at the end of the cell
    return buffer.getvalue()
