"""One look for every figure: size, grid, and one colour, dash and marker for each method throughout the book.

Colours are the colour-blind safe palette of seaborn; dashes and markers tell methods apart in grey.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from gradtune.errors import unknown

_PALETTE = sns.color_palette("colorblind").as_hex()
_DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1))]
_MARKERS = "osD^vPX*<>"
# a method's place decides its colour, dash and marker; it keeps this place for ever
_METHODS = (
    "Random",
    "Unroll1",
    "Unroll5",
    "Unroll10",
    "Clip2",
    "Clip5",
    "WD+LR",
    "WD+LR+M",
    "WD+HDLR+M",
    "Diff-through-Opt",
    "Forward",
    "Reverse",
    "Neumann",
    "OHO",
    "ClipR",
    "HD",
    "MetaOptimize",
    "Fixed",
    "OnePass",
)
METHODS = {
    name: {"color": _PALETTE[k % 10], "linestyle": _DASHES[k % 5], "marker": _MARKERS[k % 10]}
    for k, name in enumerate(_METHODS)
}
# methods of one study only, as (colour, dash, marker): they share those of another study's, as no figure has both
_LATER = {
    "Random-xLR": (1, 1, 6),
    "Random-3-batched": (2, 2, 7),
    "Lorraine": (3, 3, 8),
    "Baydin": (4, 4, 9),
    "Bayes": (5, 0, 4),
    "Long-Diff-through-Opt": (5, 1, 0),
    "Medium-Diff-through-Opt": (2, 2, 7),
    "Unroll1-gTgV": (9, 4, 9),
    "Clip10": (0, 0, 0),
    "Clip20": (4, 3, 4),
    "FDS": (2, 0, 0),
    "greedy": (1, 1, 6),
    "non-greedy": (9, 0, 7),
    "Hyperband": (3, 3, 8),
    "BOHB": (4, 4, 9),
    "Default": (0, 0, 0),
    "AdamW": (1, 1, 1),
    "SGD": (7, 1, 7),
    "MetaOptimize, SGD": (6, 3, 9),
    "ScheduleFree": (1, 4, 3),
    "full": (0, 0, 0),
    "2x2": (1, 1, 1),
    "L": (2, 2, 2),
    "Hessian-free": (3, 3, 3),
    "best fixed": (7, 1, 7),
    "MetaOptimize, scalar": (6, 0, 6),
    "MetaOptimize, blocks": (4, 3, 4),
    "MetaOptimize, 2 blocks": (4, 3, 4),
    "warm-up and cosine": (0, 2, 5),
    "Lion": (2, 4, 8),
    "Greedy": (8, 2, 2),
    "Per step": (9, 0, 7),
    "OnePass, AdamW": (3, 2, 3),
    "OnePass, rate a weight": (8, 3, 4),
    "MetaOptimize by tensor": (4, 3, 4),
    "AdamW 0.001": (7, 0, 5),
    "AdamW 0.001, cosine": (5, 3, 2),
    "SGD 0.1, cosine": (2, 1, 6),
    "Grid": (8, 1, 0),
    "ASHA": (9, 2, 1),
    "PBT": (4, 2, 8),
    "Prodigy": (8, 0, 6),
    "D-Adaptation": (9, 1, 3),
    "DoG": (6, 2, 4),
}
METHODS |= {
    name: {"color": _PALETTE[colour], "linestyle": _DASHES[dash], "marker": _MARKERS[marker]}
    for name, (colour, dash, marker) in _LATER.items()
}


def method_style(name: str) -> dict[str, Any]:
    """Return colour, dash and marker of a method, as keywords for `Axes.plot`.

    Raises:
        GradtuneError: The method is none of `METHODS`.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def use_style() -> None:
    """Set the book's look for all figures of this process."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    mpl.rcParams.update(
        {
            "figure.figsize": (7.5, 4.2),
            "figure.dpi": 110,
            "axes.titlesize": "medium",
            "legend.frameon": True,
            "lines.linewidth": 1.8,
        }
    )


def panels(count: int, width: float = 4.2, height: float = 3.8, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure with a row of axes and the space between them arranged.

    Args:
        count: Number of axes.
        width: Width of each, in inches.
        height: Height of the figure, in inches.
        **kwargs: Passed on to `matplotlib.pyplot.subplots`.

    Returns:
        The figure, and its axes from left to right.
    """
    fig, axes = plt.subplots(1, count, figsize=(width * count, height), layout="constrained", squeeze=False, **kwargs)
    return fig, list(axes[0])


def label_logarithms(ax: Axes) -> None:
    """Label logarithmic axes that span less than two decades with plain numbers.

    Matplotlib's own labels, like `2 x 10^1`, run into one another there. Labelled are 1, 2 and 5 of each decade, and 1
    to 9 where the axis spans no more than a factor of 5.
    """
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        if axis.get_scale() == "log" and high < 100 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 5 * low else range(1, 10)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())


_AROUND = ((5, 3, "left"), (5, -9, "left"), (-5, 3, "right"), (-5, -9, "right"), (0, 8, "center"), (0, -14, "center"))
"""Offsets of a label from its point, in points, and how it is aligned there."""


def label_points(ax: Axes, points: Mapping[str, tuple[float, float]], size: float = 7) -> None:
    """Write a name beside each point, where it covers no point and no other name if there is such a place.

    Call it when limits and scales of the axes are set.

    Args:
        ax: The axes, of a figure whose layout is "constrained" or fixed.
        points: Place of each name in the data's units.
        size: Font size in points.
    """
    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # arranges the axes, so that lengths on the page are known
    dot, spots = 4 * figure.dpi / 72, ax.transData.transform([*points.values()])
    taken = [Bbox.from_bounds(x - dot, y - dot, 2 * dot, 2 * dot) for x, y in spots]
    legend, frame = ax.get_legend(), ax.get_window_extent()
    taken += [legend.get_window_extent()] if legend is not None else []
    for name, place in points.items():
        options: list[tuple[int, int, Any, Bbox]] = []
        for dx, dy, align in (*_AROUND, *((dx, 2 * dy + 4, align) for dx, dy, align in _AROUND)):
            text = ax.annotate(name, place, (dx, dy), textcoords="offset points", fontsize=size, ha=align)
            box = text.get_window_extent()
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1)
            options.append((sum(box.overlaps(other) for other in taken) + 10 * outside, len(options), text, box))
        _, _, kept, box = min(options, key=lambda option: option[:2])
        taken.append(box)
        for _, _, text, _ in options:
            if text is not kept:
                text.remove()
