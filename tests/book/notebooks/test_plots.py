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
