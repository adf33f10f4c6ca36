"""What tables and figures of the FDS studies share: recorded runs, lines and legends."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from gradtune_book.notebooks import plots


def line(method: str) -> dict[str, Any]:
    """Return the method's colour and dash, without the marker: these figures draw curves over many steps."""
    return {k: v for k, v in plots.method_style(method).items() if k != "marker"}


def legend(fig: Figure, columns: int = 6) -> None:
    """Draw one legend for all panels below them, where it hides no curve.

    A label that several panels have appears once.

    Args:
        fig: the figure.
        columns: number of columns of the legend.
    """
    pairs = [zip(*ax.get_legend_handles_labels()) for ax in fig.axes]
    entries = {label: handle for panel in pairs for handle, label in panel}
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize="small")
