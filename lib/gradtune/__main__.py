"""The command `gradtune`.

The library by itself tells its version and its methods. What a checkout adds (studies, records, notebooks, the book)
registers itself as the entry point `command` in the group `gradtune.commands`, and takes over.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata

import gradtune

_USAGE = """usage: gradtune --version | list methods

The commands of the book (list, run, record, records, book, data, check) come with a checkout of the project, by
`make setup`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for each in metadata.entry_points(group="gradtune.commands", name="command"):
        status: int = each.load()(given)
        return status
    return _alone(given)


def _alone(given: list[str]) -> int:
    """Answer where only the library is installed."""
    if given in (["--version"], ["-V"]):
        print(f"gradtune {gradtune.__version__}")
        return 0
    if given == ["list", "methods"]:
        from gradtune import methods

        print("\n".join(f"{row['name']:24}  {row['method']}" for row in methods.rows()))
        return 0
    if not given or given[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    what = given[0] if given[0].isprintable() else repr(given[0])
    print(
        f"gradtune: `gradtune {what}` belongs to the book, which is part of a checkout of the project and not of the "
        "installed package; in a checkout run `make setup`",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
