"""`figures.show`: what it sends to a notebook, and how the book draws it."""

import base64
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from gradtune.errors import GradtuneError
from gradtune_book.notebooks import figures


@pytest.fixture
def fig() -> Iterator[Figure]:
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.plot([1, 2], [3, 4])
    yield fig
    plt.close(fig)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What was displayed, as (data, metadata)."""
    outputs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw, metadata: outputs.append((data, metadata)))
    return outputs


def test_show_sends_picture_and_caption(fig: Figure, sent: list[Any]) -> None:
    figures.show(fig, caption="Loss of\nUCI Energy.", alt="A falling line.", name="fig-loss")
    (picture, about), (caption, mark) = sent
    assert base64.b64decode(picture["image/png"]).startswith(b"\x89PNG")
    assert picture["text/plain"] == "A falling line."
    assert about[figures.METADATA_KEY] == {
        "caption": "Loss of UCI Energy.",
        "alt": "A falling line.",
        "name": "fig-loss",
    }
    assert about["image/png"]["alt"] == "A falling line."
    assert 300 < about["image/png"]["width"] < 400  # CSS pixels of about 4 inches
    assert caption["text/markdown"] == "**Figure.** Loss of UCI Energy."
    assert mark == {figures.METADATA_KEY: {"name": "fig-loss"}}


def test_show_closes_the_figure_so_that_it_is_not_shown_twice(fig: Figure, sent: list[Any]) -> None:
    figures.show(fig, caption="A caption.", alt="A line.", name="fig-a")
    assert fig.number not in plt.get_fignums()


def test_the_same_figure_is_the_same_file(fig: Figure, sent: list[Any]) -> None:
    for _ in range(2):
        figures.show(fig, caption="A caption.", alt="A line.", name="fig-a")
    assert sent[0] == sent[2]


@pytest.mark.parametrize("text", ["", " \n", "one\n\ntwo"])
@pytest.mark.parametrize("which", ["caption", "alt"])
def test_a_figure_needs_one_paragraph_of_each_text(fig: Figure, which: str, text: str) -> None:
    texts = {"caption": "A caption.", "alt": "A line.", which: text}
    with pytest.raises(GradtuneError, match=f"a figure's {which} must be one paragraph"):
        figures.show(fig, **texts, name="fig-a")


@pytest.mark.parametrize("name", ["", "Fig-1", "fig_1", "fig 1", "-fig", "fig--1"])
def test_a_figure_needs_a_label(fig: Figure, name: str) -> None:
    with pytest.raises(GradtuneError, match="small letters and digits joined by hyphens"):
        figures.show(fig, caption="A caption.", alt="A line.", name=name)


def test_without_runs_a_sentence_stands_in_the_place_of_a_figure_or_table(
    sent: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def never() -> Any:
        raise AssertionError("drawn without runs")

    figures.show(never, caption="A caption.", alt="A line.", name="fig-a", of=[])
    assert (capsys.readouterr().out, sent) == ("not recorded yet\n", [])
    assert figures.table(never, of=[]) == "not recorded yet"
    assert figures.table(lambda: 3, of=["a run"]) == 3


def test_a_function_draws_the_figure_of_runs(fig: Figure, sent: list[Any]) -> None:
    figures.show(lambda: fig, caption="A caption.", alt="A line.", name="fig-a", of=["a run"])
    assert len(sent) == 2 and fig.number not in plt.get_fignums()
