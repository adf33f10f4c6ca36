"""The book's API reference: which modules a reader meets, on which page, and the pages' text.

The pages only name the modules; `sphinx.ext.autodoc` fills them from the docstrings, by way of
`gradhpo.book_docstrings`. A module is named here and nowhere else: on a page, or among those behind the command line.
"""

import ast
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

_LIBRARY = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Page:
    """One page; `modules` are names below `gradhpo`, where `tasks.*` stands for all modules of a package."""

    name: str
    title: str
    introduction: str
    modules: tuple[str, ...]


PAGES = (
    Page(
        "recursion",
        "Recursion and hyperparameters",
        "The state of a training, one step of it with its derivatives, the hyperparameters in their coordinates, the "
        "rules that move the weights, and the slow, independent computation that everything is tested against.",
        ("core", "second_order", "hypers", "transforms", "rules", "oracle", "errors"),
    ),
    Page(
        "estimators",
        "Estimators",
        "How a hypergradient is computed. All estimators have the members of "
        "{py:class}`~gradhpo.estimators.Estimator`; only what differs is described.",
        ("estimators", "estimators.*"),
    ),
    Page(
        "methods",
        "Methods and training",
        "A method is an estimator, an outer rule and a cadence; the loop trains with it. "
        "{doc}`/executed/one_recursion` shows the table of methods.",
        ("methods", "train", "restarts", "outer", "metaoptimize", "optim"),
    ),
    Page(
        "tuning",
        "Your own model",
        "A user's module, loss and data on the training loop. `gradhpo.tune`, `gradhpo.Tuner`, `gradhpo.Hyper`, "
        "`gradhpo.Info` and `gradhpo.History` are the names to import; {doc}`/executed/your_own_model` uses them.",
        ("tuning", "tuner", "history", "declared", "streams", "supervised"),
    ),
    Page(
        "search",
        "Searches",
        "The baselines without hypergradients: what is searched, by which method, and what each trial has cost. "
        "`gradhpo.search` has the names that a search needs; its modules describe them.",
        ("search", "search.*"),
    ),
    Page(
        "tasks",
        "Tasks, networks and data",
        "What is trained. A task offers the two losses of {py:class}`~gradhpo.core.Problem`; networks are ordinary "
        "modules of PyTorch.",
        (
            "tasks",
            "tasks.*",
            "modules",
            "swapped",
            "nets",
            "nets_wrn",
            "stacked",
            "stacked_lstm",
            "losses",
            "draws",
            "data",
        ),
    ),
    Page(
        "studies",
        "Studies and evidence",
        "From a configuration to a figure: what is run, how it is recorded and summed up, and how it is drawn.",
        ("studies", "studies.*", "config", "records", "stats", "sharing", "plots", "figures", "published"),
    ),
)

BEHIND_THE_COMMANDS = (
    *("__main__", "book", "book_api", "book_docstrings", "book_figures", "checks", "cli", "download", "environment"),
    *(
        "checkpoints",
        "compiled",
        "foreach",
        "jsonl",
        "notebooks",
        "optim_settings",
        "parameters",
        "paths",
        "ranges",
        "recorder",
        "search.asking",
        "tracing",
        "verification",
        "workers",
    ),
)
"""Modules that a reader of the book does not meet: they serve the command line, or only other modules."""


def modules() -> list[str]:
    """Names of all modules below `gradhpo`, packages included, without importing any."""
    files = (file.relative_to(_LIBRARY).with_suffix("") for file in _LIBRARY.rglob("*.py"))
    names = {".".join(file.parts).removesuffix("__init__").rstrip(".") for file in files}
    return sorted(name for name in names if name and not any(part.startswith("_") for part in name.split(".")[:-1]))


def on_page(page: Page) -> list[str]:
    """The modules of a page that there are, in the page's order."""
    shown = [name for name in modules() if name not in BEHIND_THE_COMMANDS]
    return list(dict.fromkeys(name for each in page.modules for name in shown if fnmatch(name, each)))


def pages() -> dict[str, str]:
    """Name -> text of the reference's pages, its overview `index` first."""
    return {"index": _index()} | {page.name: _text(page) for page in PAGES if on_page(page)}


def _index() -> str:
    lines = [
        "# API reference",
        "",
        "The library's modules, from the docstrings. {doc}`/extend` says how they fit together.",
        "",
    ]
    for page in PAGES:
        rows = [f"| {{py:mod}}`gradhpo.{name}` | {_summary(name)} |" for name in on_page(page)]
        lines += [f"## {{doc}}`{page.title} <{page.name}>`", "", "| module | what it has |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _summary(name: str) -> str:
    """First paragraph of a module's docstring, on one line of a Markdown table."""
    path = _LIBRARY.joinpath(*name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|").replace("$", "\\$")


def _text(page: Page) -> str:
    lines = [f"# {page.title}", "", page.introduction, ""]
    for name in on_page(page):
        lines += [f"## gradhpo.{name}", "", "```{eval-rst}", f".. automodule:: gradhpo.{name}", "```", ""]
    return "\n".join(lines)
