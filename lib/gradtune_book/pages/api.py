"""The book's API reference: which modules a reader meets, on which page, and the pages' text.

The pages only name the modules; `sphinx.ext.autodoc` fills them from the docstrings. A module is named here and nowhere
else: on a page, or among those behind the scenes.
"""

import ast
from dataclasses import dataclass
from fnmatch import fnmatch

from gradtune_book import paths


@dataclass(frozen=True)
class Page:
    """One page of the reference.

    Attributes:
        name: Name of its file, without the ending.
        title: Its heading.
        introduction: What it says before the first module, in MyST Markdown.
        modules: Full names of the modules that it shows, in order. `gradtune.nets.*` stands for all modules of a
            package.
    """

    name: str
    title: str
    introduction: str
    modules: tuple[str, ...]


PAGES = (
    Page(
        "tuning",
        "Your own model",
        "A user's module, loss and data on the training loop. `gradtune.tune`, `gradtune.Tuner`, "
        "`gradtune.hypergradient`, `gradtune.tune_by_search`, `gradtune.Hyper`, `gradtune.Info`, `gradtune.History` "
        "and `gradtune.optim.MetaOptimize` are the names to import. {doc}`/executed/your_own_model` uses them, and "
        "{doc}`/optimiser_recipes` uses the optimiser. {py:mod}`gradtune.tuning.calling` says what a batch may be, "
        "{py:mod}`gradtune.tuning.declared` what hyperparameters and their groups may be given as.",
        (
            "gradtune.tuning",
            *(f"gradtune.tuning.{name}" for name in ("tune", "tuner", "once", "by_search", "declared", "calling")),
            *(f"gradtune.tuning.{name}" for name in ("streams", "batches", "schedule", "reading", "info", "history")),
            "gradtune.tuning.*",
            "gradtune.optim",
            "gradtune.optim.metaoptimize",
        ),
    ),
    Page(
        "methods",
        "Methods and training",
        "A method is an estimator, an outer rule and a cadence; the loop trains with it. "
        "{doc}`/executed/one_recursion` shows the table of methods.",
        ("gradtune.methods", "gradtune.methods.*", "gradtune.training", "gradtune.training.*"),
    ),
    Page(
        "recursion",
        "Recursion and hyperparameters",
        "The state of a training, one step of it with its derivatives, the hyperparameters in their coordinates, the "
        "rules that move the weights and the hyperparameters, and the slow, independent computation that everything is "
        "tested against.",
        (
            "gradtune.recursion",
            *(f"gradtune.recursion.{name}" for name in ("step", "problems", "hypers", "groups", "rules", "adapted")),
            "gradtune.recursion.*",
            "gradtune.errors",
        ),
    ),
    Page(
        "estimators",
        "Estimators",
        "How a hypergradient is computed. All estimators have the members of "
        "{py:class}`~gradtune.estimators.Estimator`; only what differs is described. Whole trainings in memory that "
        'does not grow with them: {py:class}`~gradtune.estimators.reverse.Reverse` with `store="tree"`, counted by '
        "{py:func}`~gradtune.estimators.tree.tree_cost`.",
        ("gradtune.estimators", "gradtune.estimators.*"),
    ),
    Page(
        "nets",
        "Modules and networks",
        "From a module to its losses on flat weights, of one run or of several side by side; what of a module is "
        "adjusted, refused or checked for it; and the networks that the studies train.",
        (
            "gradtune.nets",
            *(f"gradtune.nets.{name}" for name in ("modules", "layout", "losses", "statistics", "single")),
            "gradtune.nets.*",
        ),
    ),
    Page(
        "search",
        "Searches",
        "The baselines without hypergradients: what is searched, by which method, and what each trial has cost. "
        "`gradtune.search` has the names that a search needs; its modules describe them. For a model of one's own "
        "there is {py:func}`~gradtune.tuning.by_search.tune_by_search`.",
        ("gradtune.search", "gradtune.search.*"),
    ),
    Page(
        "tasks",
        "The book: tasks and data",
        "What the studies train on. A task offers the two losses of {py:class}`~gradtune.recursion.problems.Problem`.",
        ("gradtune_book.tasks", "gradtune_book.tasks.*", "gradtune_book.data", "gradtune_book.data.*"),
    ),
    Page(
        "studies",
        "The book: studies",
        "What is run for each figure and table of OHO and Clip, and how it is summed up, drawn and judged.",
        (
            "gradtune_book.papers",
            *(
                f"gradtune_book.papers.{name}"
                for name in ("registry", "published", "restarts", "series", "sharing", "packages")
            ),
            *(f"gradtune_book.papers.{paper}{rest}" for paper in ("oho", "clip") for rest in ("", ".*")),
        ),
    ),
    Page(
        "more_studies",
        "The book: more studies",
        "What is run for each figure and table of FDS and MetaOptimize.",
        tuple(f"gradtune_book.papers.{paper}{rest}" for paper in ("fds", "metaoptimize") for rest in ("", ".*")),
    ),
    Page(
        "onepass_studies",
        "The book: studies of OnePass and of all papers",
        "What is run for each figure and table of OnePass, and for all papers together.",
        tuple(f"gradtune_book.papers.{paper}{rest}" for paper in ("onepass", "together") for rest in ("", ".*")),
    ),
    Page(
        "evidence",
        "The book: evidence",
        "What a study is and how its runs are recorded, what a claim is and how it is answered, what notebooks show. "
        "{doc}`/cluster` says how several machines record one study.",
        (
            "gradtune_book.claims",
            "gradtune_book.claims.*",
            "gradtune_book.config",
            "gradtune_book.records",
            "gradtune_book.records.study",
            "gradtune_book.records.store",
            "gradtune_book.records.engines",
            "gradtune_book.records.cluster",
            "gradtune_book.records.merging",
            "gradtune_book.notebooks",
            "gradtune_book.notebooks.*",
        ),
    ),
)

_OF_RECORDS = (
    "chunks",
    "environment",
    "gpu",
    "jsonl",
    "locks",
    "outside",
    "proof",
    "recorder",
    "sittings",
    "told",
    "verification",
    "workers",
)
BEHIND_THE_SCENES = (
    *("gradtune", "gradtune.__main__", "gradtune.extras", "gradtune.variables"),
    *("gradtune.nets.compiled", "gradtune.nets.explained", "gradtune.nets.ranges", "gradtune.nets.second_order"),
    *(f"gradtune.optim.{name}" for name in ("foreach", "fused", "rates", "saved", "settings", "shards")),
    *("gradtune.search.asking", "gradtune.tuning.assembly", "gradtune.tuning.scaling", "gradtune.tuning.recorded"),
    *("gradtune.tuning.kept",),
    *(
        "gradtune.training.checkpoints",
        "gradtune.training.saved_runs",
        "gradtune.training.tracing",
        "gradtune.nets.watching",
    ),
    *("gradtune.training.recording", "gradtune.training.programs"),
    *("gradtune_book", "gradtune_book.checks", "gradtune_book.cli", "gradtune_book.paths"),
    "gradtune_book.worker",
    *("gradtune_book.data.download", "gradtune_book.notebooks.parameters", "gradtune_book.notebooks.runner"),
    *("gradtune_book.pages", "gradtune_book.pages.*"),
    *(f"gradtune_book.records.{name}" for name in _OF_RECORDS),
)
"""Modules that a reader of the book does not meet: they serve the command line, or only other modules."""


def modules() -> list[str]:
    """Return the full names of all modules of the two packages, packages included, without importing any."""
    files = [file.relative_to(root.parent).with_suffix("") for root in paths.PACKAGES for file in root.rglob("*.py")]
    return sorted(".".join(file.parts).removesuffix(".__init__") for file in files)


def hidden(name: str) -> bool:
    """Tell whether a module, given by its full name, is behind the scenes."""
    return any(fnmatch(name, each) for each in BEHIND_THE_SCENES)


def on_page(page: Page) -> list[str]:
    """Return the full names of the modules of a page that there are, in the page's order."""
    shown = [name for name in modules() if not hidden(name)]
    return list(dict.fromkeys(name for each in page.modules for name in shown if fnmatch(name, each)))


def pages() -> dict[str, str]:
    """Return the text of the reference's pages by name, the overview `index` first."""
    return {"index": _index()} | {page.name: _text(page) for page in PAGES if on_page(page)}


def _index() -> str:
    lines = [
        "# API reference",
        "",
        "The modules of the library `gradtune` and of the book `gradtune_book` on it, from the docstrings. "
        "{doc}`/extend` says how they fit together.",
        "",
    ]
    for page in PAGES:
        rows = [f"| {{py:mod}}`{name}` | {_summary(name)} |" for name in on_page(page)]
        lines += [f"## {{doc}}`{page.title} <{page.name}>`", "", "| module | what it has |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _summary(name: str) -> str:
    """Return the first paragraph of a module's docstring, for a cell of a Markdown table."""
    package, *rest = name.split(".")
    path = next(root for root in paths.PACKAGES if root.name == package).joinpath(*rest)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|").replace("$", "\\$")


def _text(page: Page) -> str:
    lines = [f"# {page.title}", "", page.introduction, ""]
    for name in on_page(page):
        lines += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "```", ""]
    return "\n".join(lines)
