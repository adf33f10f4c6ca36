"""A tiny repository with notebooks and pages of its own, for tests of the drivers."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """\
scale: str = "smoke"  # size of the run
data: str = "embedded"  # dataset
seed: int = 0  # of the first run
rate: float = 0.1  # step size
fast: bool = False  # leave out the slow part
repeats: int | None = None  # overrides the scale
"""


def notebook(path: Path, *sources: str, parameters: str = PARAMETERS) -> Path:
    """Write a notebook: a heading, the parameters cell, then code cells with the ids `step-1`, `step-2`, ..."""
    cells = [
        new_markdown_cell("# A stand-in\n\nWith $x^2$.", id="heading"),
        new_code_cell(parameters.rstrip(), id="parameters", metadata={"tags": ["parameters"]}),
        *(new_code_cell(source, id=f"step-{i}") for i, source in enumerate(sources, 1)),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def repository(root: Path, notebooks: dict[str, str], pages: dict[str, str]) -> Path:
    """Write `_toc.yml`, `_config.yml`, the pages (name -> Markdown) and notebooks (name -> code of its only step)."""
    chapters = [f"  - file: executed/{name}" for name in notebooks] + [f"  - file: {name}" for name in pages]
    (root / "_toc.yml").write_text("\n".join(["format: jb-book", "root: intro", "chapters:", *chapters, ""]))
    (root / "_config.yml").write_text(
        "title: A stand-in\nonly_build_toc_files: true\nexecute:\n  execute_notebooks: 'off'\n"
    )
    for name, source in notebooks.items():
        notebook(root / "notebooks" / f"{name}.ipynb", source)
    (root / "book").mkdir()
    for name, text in {"intro": "# Introduction\n", **pages}.items():
        (root / "book" / f"{name}.md").write_text(text)
    return root


def outputs(path: Path) -> list[str]:
    """Return the texts that the code cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return [output.text for cell in cells if cell.cell_type == "code" for output in cell.outputs if "text" in output]
