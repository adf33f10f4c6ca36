"""The book's look."""

import pytest

from gradtune_book.notebooks import plots


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.39, 0.81, ["0.4", "0.5", "0.6", "0.7", "0.8"]),
        (18, 450, ["20", "50", "100", "200"]),
        (1e-6, 1e-5, ["1e-06", "2e-06", "5e-06", "1e-05"]),
    ],
)
def test_short_logarithmic_axes_have_plain_numbers(low: float, high: float, labels: list[str]) -> None:
    fig, (ax,) = plots.panels(1)
    ax.plot([low, high], [1, 1e6])
    ax.set(xscale="log", yscale="log", xlim=(low, high))
    plots.label_logarithms(ax)
    fig.canvas.draw()
    shown = [t.get_text() for t in ax.get_xticklabels() if low <= t.get_position()[0] <= high]
    assert shown == labels and not any(t.get_text() for t in ax.get_xticklabels(minor=True))
    assert "10^" in ax.get_yticklabels()[1].get_text()  # six decades keep their powers
    plots.plt.close(fig)


def test_names_beside_crowded_points_cover_neither_points_nor_each_other() -> None:
    fig, (ax,) = plots.panels(1, width=8, height=4.6)
    points = {f"a name of point {k}": (1 + 0.02 * k, 1 + 0.05 * (k % 3)) for k in range(8)} | {"far": (3.0, 2.0)}
    ax.scatter([x for x, _ in points.values()], [y for _, y in points.values()], label="points")
    ax.set(xlim=(0.5, 3.05), ylim=(0.5, 2.2), xscale="log")
    ax.legend(loc="upper left")
    plots.label_points(ax, points)
    fig.draw_without_rendering()
    assert sorted(text.get_text() for text in ax.texts) == sorted(points)
    boxes = [text.get_window_extent() for text in ax.texts]
    legend, frame = ax.get_legend(), ax.get_window_extent()
    assert legend is not None
    others = [legend.get_window_extent()]
    clashes = sum(a.overlaps(b) for k, a in enumerate(boxes) for b in [*boxes[:k], *others])
    assert clashes == 0
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)  # "far" stands left of its point
