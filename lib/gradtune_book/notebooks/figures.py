"""Show a figure in a notebook with a caption and an alternative text that are known only at run time.

`show` sends two outputs. The first is the picture; its output metadata carry caption, alternative text and name, from
which the book makes a numbered figure (`gradtune_book.pages.figures`). The second is the caption as Markdown, for
Jupyter and other notebook viewers; the book leaves it out. Notebook tests compare the texts and never the picture, so both texts
must be the same on every machine: name the data in a caption, put measured numbers in a table.
"""

import base64
import io
import re
import struct
from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Any

from gradtune.errors import GradtuneError

from gradtune_book.records.store import NOTHING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METADATA_KEY = "gradtune_figure"
"""Key of the output metadata that marks both outputs of `show`."""

_DPI = 144
_CSS_DPI = 96  # a CSS pixel: the picture is stored at 1.5 times the size it is shown at, so that it is sharp
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def show(fig: "Figure | Callable[[], Figure]", caption: str, alt: str, name: str, of: Sized | None = None) -> None:
    """Display `fig` below the cell, with its caption, and close it.

    Args:
        fig: the figure, or a function that draws it. It is drawn on white, which both themes of the book frame.
        caption: one paragraph of Markdown, formulas allowed; names the data the figure was made from.
        alt: what is to be seen, in plain text, for those who cannot see it.
        name: the figure's label, unique in the book, such as `fig-clip-table`; prose refers to it by
            ``{numref}`fig-clip-table` ``.
        of: the runs that the figure shows. Where there are none, a sentence says so and nothing is drawn.

    Raises:
        GradtuneError: caption or alt is empty or has more than one paragraph, or name is no label.
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


def table(make: Callable[[], Any], of: Sized) -> Any:
    """Return what `make` gives, a table mostly, or the sentence that there is nothing to show.

    Args:
        make: called only where there are runs.
        of: the runs that the table sums up.
    """
    return make() if len(of) else NOTHING


def _one_paragraph(what: str, text: str) -> str:
    """Return `text` on one line; raise when there is nothing in it or a blank line."""
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
