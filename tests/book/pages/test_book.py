"""The build of the book: what stops it, and the pages it makes."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup, Tag

import standin
from gradtune.errors import GradtuneError
from gradtune_book import cli, paths
from gradtune_book.notebooks import figures, runner
from gradtune_book.pages import build as builder
from gradtune_book.pages import old
from gradtune_book.records import store
from tools import ROOT


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository in place of ours, without data and records."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    for variable in ("GRADTUNE_DATA", "GRADTUNE_RECORDS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


# -- what stops a build -----------------------------------------------------------------------------------------------


def test_a_failing_notebook_stops_the_build_with_cell_and_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    standin.repository(root, {"first": "1 / 0", "second": "print(1)"}, {})
    assert cli.main(["book"]) == 1
    assert "failed in cell 'step-1' (number 3): ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert not (root / "book" / "executed" / "second.ipynb").exists()
    assert not (root / "_build" / "html").exists()


def test_a_warning_fails_the_build_each_time(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    standin.repository(root, {}, {"page": "# A page\n\nSee [nothing](missing.md).\n"})
    builder.executed().mkdir()
    for _ in range(2):  # Sphinx would let the second pass, since it has read the page already
        with pytest.raises(GradtuneError, match="gave a warning or an error"):
            builder.build(data="embedded")
        assert "missing" in capsys.readouterr().err


def test_pages_are_read_anew_when_a_module_moves_between_pages_of_the_reference(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.repository(root, {}, {})
    asked: list[bool] = []
    monkeypatch.setattr(builder, "_jupyter_book", asked.append)
    for texts in ({"one": "a b", "two": "c"}, {"one": "a b", "two": "c"}, {"one": "a", "two": "b c"}):
        monkeypatch.setattr(builder.api, "pages", lambda texts=texts: texts)
        builder.build(data="embedded")
    assert asked == [True, False, True]


def test_after_a_failure_the_old_pages_say_that_they_are_old(root: Path) -> None:
    standin.repository(root, {"toy": "1 / 0"}, {})
    page = builder.html() / "executed" / "toy.html"
    page.parent.mkdir(parents=True)
    page.write_text("<html><body class='a'>1.5</body></html>")
    for _ in range(2):
        with pytest.raises(GradtuneError):
            builder.build(data="embedded")
        text = page.read_text()
        assert text.count("This page is old.") == 1 and "failed in cell &#x27;step-1&#x27;" in text
    old.unmark(builder.html())
    assert page.read_text() == "<html><body class='a'>1.5</body></html>"


def test_one_build_at_a_time(root: Path) -> None:
    standin.repository(root, {"toy": "print(1)"}, {})
    code = f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; from gradtune_book import paths; "
    code += f"paths.ROOT = Path({str(root)!r}); from gradtune_book.pages import build\n"
    code += "with build.alone(): print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"1\n"
        with pytest.raises(GradtuneError, match="another process builds this book"):
            builder.build(data="embedded")
        other.kill()
    with builder.alone():
        pass


@pytest.mark.parametrize("content", ["a: [", "\x00", None])
def test_a_broken_table_of_contents_is_one_sentence(root: Path, content: str | None) -> None:
    if content is not None:
        (root / "_toc.yml").write_text(content)
    with pytest.raises(GradtuneError, match=r"table of contents .* cannot be read") as caught:
        builder.build(data="embedded")
    assert "\n" not in str(caught.value)


def test_a_file_in_the_place_of_the_executed_notebooks_is_one_sentence(root: Path) -> None:
    standin.repository(root, {"toy": "print(1)"}, {})
    builder.executed().parent.mkdir(exist_ok=True)
    if builder.executed().is_dir():
        builder.executed().rmdir()
    builder.executed().write_text("a file")
    with pytest.raises(GradtuneError, match=r"executed.* cannot be (read or )?written"):
        builder.build(data="embedded")


def test_unknown_scale_is_refused_before_anything_runs(root: Path) -> None:
    with pytest.raises(GradtuneError, match="did you mean 'laptop'"):
        builder.build("latop")


def test_parameters_reach_the_notebooks_that_declare_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.repository(root, {"toy": "print(scale, data)"}, {})
    standin.notebook(root / "notebooks" / "toy.ipynb", parameters='scale: str = "smoke"  # size')
    given = {}
    monkeypatch.setattr(runner, "_execute", lambda source, values, out: (given.update(values), out.write_text("{}")))
    with pytest.raises(GradtuneError):  # our pretended execution writes no notebook
        builder.build("laptop", "embedded")
    assert given == {"scale": "laptop"}


def test_provenance_page_lists_executions_and_records(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"study": "clip_quadratic", "scale": "paper", "method": "clip2", "runs": 50, "versions": "a | b"}
    monkeypatch.setattr(store, "provenance", lambda: pd.DataFrame([row]))
    done = runner.Execution("toy", "0" * 64, {"scale": "smoke"}, 1.5, "2026-01-02T03:04:05+00:00")
    page = builder.provenance_page([done])
    assert "| [toy](toy.ipynb) | smoke | - | - | 1.5 | 2026-01-02T03:04:05+00:00 |" in page
    assert "### `clip_quadratic`, paper scale" in page
    assert "| clip2 | 50 | a \\| b |" in page


# -- the book of this checkout ----------------------------------------------------------------------------------------


@cache
def soup(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


@cache
def ids(page: Path) -> set[str]:
    return {str(tag["id"]) for tag in soup(page).find_all(id=True)}


def pages(book: Path) -> list[Path]:
    return sorted(page for page in book.rglob("*.html") if "_static" not in page.parts)


def chapters(book: Path) -> list[Path]:
    """Return the pages of the table of contents, in its order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [book / f"{name}.html" for name in builder.files(toc)]


def test_every_chapter_has_a_page_with_a_heading(book: Path) -> None:
    assert len(chapters(book)) >= 10
    for page in chapters(book):
        assert soup(page).select_one("article h1"), page


def test_a_second_build_executes_nothing(book: Path) -> None:
    command = [sys.executable, "-m", "gradtune", "book"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
    assert [line for line in again.splitlines() if "executed in" in line] == []
    assert again.count(": unchanged") == len(builder.contents())
    assert str(book / "index.html") in again


LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "link": "href",
}


def test_no_page_loads_anything_from_another_host(book: Path) -> None:
    foreign = [
        f"{page.relative_to(book)}: {tag}"
        for page in pages(book)
        for name, attribute in LOADED.items()
        for tag in soup(page).find_all(name)
        if re.match(r"(\w+:)?//", str(tag.get(attribute, "")))
    ]
    assert foreign == []


def test_no_inline_script_or_style_names_another_host(book: Path) -> None:
    inline = [
        (page.relative_to(book), found)
        for page in pages(book)
        for tag in soup(page).find_all(["script", "style"])
        for found in re.findall(r"https?://[^\s\"')]+", tag.get_text())
    ]
    assert inline == []


def test_no_style_sheet_loads_from_another_host(book: Path) -> None:
    sheets = [sheet for sheet in book.rglob("*.css") if "mathjax" not in sheet.parts]
    pattern = re.compile(r"(?:@import\s+|url\()\s*[\"']?(?:https?:)?//[^\s\"')]+")
    assert sheets and {sheet.name: found for sheet in sheets if (found := pattern.findall(sheet.read_text()))} == {}


def test_internal_links_resolve(book: Path) -> None:
    broken = [
        f"{page.relative_to(book)} -> {link['href']}"
        for page in chapters(book)
        for link in soup(page).select("a[href]")
        if not _resolves(page, str(link["href"]))
    ]
    assert broken == []


def _resolves(page: Path, href: str) -> bool:
    """Return whether a link leads out, or to a file of the book and, if it names one, to an element in it."""
    parts = urlsplit(href)
    if parts.scheme or parts.netloc or href == "#":
        return True
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return False
    anchor = unquote(parts.fragment)
    return not anchor or target.suffix != ".html" or anchor in ids(target)


def test_every_picture_is_a_numbered_figure_with_caption_and_alternative_text(book: Path) -> None:
    for page in chapters(book):
        for picture in soup(page).select("article img"):
            figure = picture.find_parent("figure")
            assert isinstance(figure, Tag), f"{page}: {picture}"
            caption = figure.find("figcaption")
            assert caption and re.match(r"Fig\. [\d.]+ \S+", caption.get_text().strip()), page
            assert len(str(picture.get("alt", ""))) >= 10, f"{page}: {picture}"
            assert figure.get("id"), page


def test_the_book_shows_every_figure_of_the_notebooks(book: Path) -> None:
    for name in builder.contents():
        cells = nbformat.read(builder.executed() / f"{name}.ipynb", as_version=4).cells
        outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
        marks = [output.metadata[figures.METADATA_KEY] for output in outputs if "image/png" in output.get("data", {})]
        drawn = [figure["id"] for figure in soup(book / "executed" / f"{name}.html").select("article figure")]
        assert [mark["name"] for mark in marks] == drawn
        assert "Figure." not in soup(book / "executed" / f"{name}.html").get_text(), (
            "the caption for Jupyter is left out"
        )


def test_numbers_with_an_exponent_stay_in_one_piece() -> None:
    from gradtune_book.pages.figures import in_one_piece

    def span(number: str) -> str:
        return f'<span class="number">{number}</span>'

    table = '<table id="1e-07"><th>from 1e-06 to 0.01</th><td>-2.6e-06 ± 1e+03</td><td>0.1</td></table> 1e-05'
    wanted = f'<table id="1e-07"><th>from {span("1e-06")} to 0.01</th><td>-{span("2.6e-06")} ± {span("1e+03")}</td>'
    assert in_one_piece(table) == wanted + "<td>0.1</td></table> 1e-05"
