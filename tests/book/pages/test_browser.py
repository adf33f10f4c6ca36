"""The built book in a browser without a network: Debian's chromium, driven by playwright.

Screenshots of every page in both themes are left in `_build/screenshots`.
"""

import functools
import http.server
import shutil
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageStat

from gradtune_book.pages import build as builder
from tools import ROOT

PAGES = builder.files(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
CHROMIUM = shutil.which("chromium")
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
KNOWN_ERRORS = ("Got invalid theme mode",)
"""What the theme logs by itself on a reader's first visit, when no theme has been chosen yet."""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: `apt-get install chromium` to test the pages"
)

# Resolves when MathJax, where the page has it, has set every formula; gives the milliseconds since the visit began.
TYPESET = "async () => { if (window.MathJax?.startup) await MathJax.startup.promise; return performance.now(); }"

# The text of the chapter without code and without what MathJax made.
PROSE = """() => {
  const article = document.querySelector('article').cloneNode(true);
  article.querySelectorAll('pre, code, mjx-container, script, style').forEach(each => each.remove());
  return article.textContent;
}"""

UNSET = "nodes => nodes.filter(node => !node.querySelector('mjx-container')).map(node => node.textContent)"

FIGURES = """figures => figures.map(figure => {
  const image = figure.querySelector('img'), caption = figure.querySelector('figcaption');
  return {drawn: image.naturalWidth, width: image.getBoundingClientRect().width, alt: image.alt.trim(),
          caption: caption?.innerText.trim() ?? '', room: figure.parentElement.clientWidth};
})"""

# Words of table cells on more than one line. A word may part after a hyphen, a dash or a slash, a number never.
BROKEN_WORDS = """cells => cells.flatMap(cell => {
  const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = [];
  for (let node; (node = walker.nextNode());) {
    if (node.parentElement.closest('mjx-container')) continue;
    for (const word of node.data.matchAll(/[^\\s]+/g)) {
      const parts = /^[\\d.,:e+\\u2212-]+$/i.test(word[0]) ? [word[0]] : word[0].split(/(?<=[-\\u2013\\u2014/])/);
      let at = word.index;
      for (const part of parts) {
        const range = document.createRange();
        range.setStart(node, at);
        range.setEnd(node, at += part.length);
        const tops = [...range.getClientRects()].filter(box => box.width > 0).map(box => box.top);
        if (Math.max(...tops) - Math.min(...tops) > 4) broken.push(part);
      }
    }
  }
  return broken;
})"""

# Tables that are wider than their place and cannot be scrolled there.
STUCK = """tables => tables.filter(table => {
  const box = table.closest('.text_html, .pst-scrollable-table-container') ?? table.parentElement;
  return table.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== 'auto';
}).map(table => table.innerText.slice(0, 80))"""

CONTRASTS = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(book: Path) -> Iterator[str]:
    """Address of the built book on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(book)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield launched
        launched.close()


class Visit:
    """One page in an empty browser profile: what it logged and asked for, and the time until all was set."""

    def __init__(self, browser: Any, address: str) -> None:
        self.context = browser.new_context(color_scheme="light", viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address, wait_until="load")
        self.milliseconds = float(self.page.evaluate(TYPESET))

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def unexpected_errors(self) -> list[str]:
        """Return the errors on the console but those the theme is known for."""
        return [error for error in self.errors if not error.startswith(KNOWN_ERRORS)]


@pytest.fixture(scope="module", params=PAGES)
def visit(request: pytest.FixtureRequest, browser: Any, site: str) -> Iterator[Visit]:
    """A visit to each page in turn; the tests of one page share it."""
    with Visit(browser, f"{site}/{request.param}.html") as visit:
        yield visit


def test_page_opens_without_errors_and_asks_no_other_host(visit: Visit, site: str) -> None:
    assert visit.unexpected_errors() == []
    assert [url for url in visit.requests if not url.startswith((f"{site}/", "data:"))] == []


def test_mathematics_is_typeset(visit: Visit) -> None:
    assert visit.page.eval_on_selector_all("article .math", UNSET) == []
    assert visit.page.locator("mjx-merror").count() == 0
    prose = visit.page.evaluate(PROSE)
    assert [sign for sign in ("$", "\\(", "\\[", "\\begin") if sign in prose] == []


def test_page_with_mathematics_loads_in_two_seconds(visit: Visit, browser: Any) -> None:
    if not visit.page.locator("mjx-container").count():
        return
    best = _best_time(visit, browser)
    if best >= 2000:  # the goal; processors differ, and shared ones by a factor of two from one minute to the next
        warnings.warn(f"{visit.page.url} took {best:.0f} ms, more than the 2000 ms that are the goal", stacklevel=1)
    if best >= 4000 and (others := _taken_by_others()) > 0.25:
        pytest.skip(f"took {best:.0f} ms while other programs took {others:.0%} of the processors: cannot judge")
    assert best < 4000


def _taken_by_others() -> float:
    """Share of all processors in use over half a second in which our browser rests (Linux; elsewhere 0)."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return 0.0

    def ticks() -> tuple[int, int]:
        counts = [int(each) for each in stat.read_text().splitlines()[0].split()[1:9]]
        return counts[3] + counts[4], sum(counts)  # idle and waiting for a disk; all

    idle, total = ticks()
    time.sleep(0.5)
    later_idle, later_total = ticks()
    return 1 - (later_idle - idle) / max(1, later_total - total)


def _best_time(visit: Visit, browser: Any) -> float:
    """Milliseconds until all is set: the best of up to five visits, each with an empty profile."""
    times = [visit.milliseconds]
    while min(times) >= 2000 and len(times) < 5:
        with Visit(browser, visit.page.url) as again:
            times.append(again.milliseconds)
    return min(times)


def test_figures_are_drawn_and_described(visit: Visit) -> None:
    for each in visit.page.eval_on_selector_all("article figure", FIGURES):
        assert each["drawn"] > 0 and each["alt"] and each["caption"]
        assert 200 < each["width"] <= each["room"] + 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_theme_is_readable(visit: Visit, book: Path, theme: str) -> None:
    page = visit.page
    page.emulate_media(color_scheme=theme)
    page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
    page.wait_for_function("() => document.getAnimations().every(each => each.playState !== 'running')")
    shot = book.parent / "screenshots" / f"{Path(page.url).stem}-{theme}.png"
    page.screenshot(path=shot, full_page=True)
    assert [(round(ratio, 1), what) for ratio, what in page.evaluate(CONTRASTS) if ratio < 4.5] == []
    mean = ImageStat.Stat(Image.open(shot).convert("L")).mean[0]
    assert mean > 190 if theme == "light" else mean < 120, mean


def test_a_narrow_screen_needs_no_sideways_scrolling(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 390, "height": 800})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 391


@pytest.mark.parametrize("width", [1000, 1400])
def test_no_table_breaks_a_word_or_a_number(visit: Visit, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 900})
    assert visit.page.eval_on_selector_all("article :is(td, th)", BROKEN_WORDS) == []
    assert visit.page.eval_on_selector_all("article table", STUCK) == []
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width + 1


def test_broken_words_are_found(browser: Any) -> None:
    page = browser.new_context(viewport={"width": 800, "height": 600}).new_page()
    cell = "<table style='width: 40px; table-layout: fixed'><td style='overflow-wrap: anywhere'>{}</td></table>"
    page.set_content(cell.format("0.11641 Diff-through-Opt reproduced"))
    found = page.eval_on_selector_all("td", BROKEN_WORDS)
    assert "0.11641" in found and "reproduced" in found and "Diff-" not in found
    page.set_content("<table><td>0.11641 Diff-through-Opt reproduced</td></table>")
    assert page.eval_on_selector_all("td", BROKEN_WORDS) == []


def test_search_finds_the_hypergradient(browser: Any, site: str) -> None:
    with Visit(browser, f"{site}/search.html?q=hypergradient") as visit:
        visit.page.wait_for_selector("#search-results ul.search li a", timeout=10_000)
        assert visit.page.locator("#search-results ul.search li").count() >= 3
        assert visit.unexpected_errors() == []


def test_there_is_one_search_field_to_see(browser: Any, site: str) -> None:
    with Visit(browser, f"{site}/{PAGES[0]}.html") as visit:
        shown = "nodes => nodes.filter(node => node.checkVisibility()).length"
        assert visit.page.eval_on_selector_all(".search-button, .search-button-field", shown) == 1
