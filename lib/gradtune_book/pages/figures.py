"""Turn what `notebooks.figures.show` leaves in an executed notebook into numbered figures; keep numbers in one piece.

This is a plugin of myst-nb, found through the entry point `myst_nb.mime_renderers` in `lib/pyproject.toml`. It alone
knows how the book draws a figure; only the build of the book imports it.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from docutils import nodes
from myst_nb.core.render import MimeData, NbElementRenderer, create_figure_context

from gradtune_book.notebooks.figures import METADATA_KEY

_CELL = re.compile(r"(?<=<t[dh]>)[^<]+")
_EXPONENT = re.compile(r"[\d.]+e[-+]\d+|\d{4}-\d\d-\d\d")


class FigureRenderer:
    """Render the outputs of `show`: picture, caption and label as one figure, the caption's own output as nothing.

    In the tables of pandas dates and numbers with an exponent stay in one piece.
    """

    mime_priority_overrides: ClassVar[Sequence[tuple[str, str, int | None]]] = ()

    @staticmethod
    def handle_mime(renderer: NbElementRenderer, data: MimeData, inline: bool) -> list[nodes.Element] | None:
        """Return the nodes for one output, or None where there is nothing to change; myst-nb then renders it as usual.

        Args:
            renderer: What is rendering the notebook.
            data: One type of the output, with the output's metadata.
            inline: Whether the output stands in a line of text, where a figure cannot.
        """
        if data.mime_type == "text/html" and not inline and _EXPONENT.search(data.string):
            return renderer.render_text_html(dataclasses.replace(data, content=in_one_piece(data.string)))
        mark = data.output_metadata.get(METADATA_KEY)
        if mark is None or inline:
            return None
        if data.mime_type == "image/png" and "caption" in mark:
            _add_figure(renderer, data, mark)
        return []  # the figure is in the document by now; the other types would repeat its texts


def in_one_piece(table: str) -> str:
    """Mark numbers with an exponent, and dates, in an HTML table: a browser would break `1e-06` at its hyphen."""
    return _CELL.sub(lambda cell: _EXPONENT.sub(r'<span class="number">\g<0></span>', cell[0]), table)


def _add_figure(renderer: NbElementRenderer, data: MimeData, mark: dict[str, Any]) -> None:
    """Add a figure with caption and label to the document that the renderer is building."""
    options = {"caption": mark["caption"], "name": mark["name"], "align": "center"}
    with create_figure_context(renderer.renderer, options, data.line or 0):
        images = renderer.render_image(data)
        for image in images:
            image["alt"] = mark["alt"]
            image.attributes.pop("height", None)  # the page may narrow the picture; its height has to follow
        renderer.renderer.current_node.extend(images)
