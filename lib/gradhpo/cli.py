"""The command `gradhpo`: list, run, record, book, data, check.

Every command imports what it needs when it is called: `gradhpo record` runs where neither Jupyter nor papermill is
installed, and `gradhpo --help` answers at once.
"""

import argparse
import itertools
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from gradhpo.errors import GradhpoError, unknown

LISTS = ("studies", "notebooks", "methods", "scales", "records")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 1 (a check failed), 2 (a mistake), 130 (Ctrl-C)."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.call(options)
    except GradhpoError as error:
        print(f"gradhpo: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("gradhpo: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradhpo", description="Gradient-based hyperparameter optimisation: studies, records and their book."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help=f"what there is: {', '.join(LISTS)}")
    command.add_argument("what", nargs="?", metavar="WHAT", help="one of these; all by default")
    command.add_argument("study", nargs="?", metavar="STUDY", help="with records: of this study alone")
    command.set_defaults(call=_list)

    command = commands.add_parser("run", help="execute one notebook, parameters strictly checked")
    command.add_argument("notebook", metavar="NOTEBOOK", help="name or path")
    command.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    command.add_argument("-o", dest="out", type=Path, help="executed copy to write")
    command.set_defaults(call=_run)

    _add_record(commands)

    command = commands.add_parser("book", help="execute what has changed and build the book")
    command.add_argument("--scale", default="smoke", help="smoke (default), laptop or paper")
    command.add_argument("--data", default="auto", help="auto (default), embedded, or a dataset's name")
    command.add_argument("--force", action="store_true", help="execute every notebook again")
    command.set_defaults(call=_book)

    command = commands.add_parser("data", help="datasets: what is there, what is missing, how to get it")
    command.add_argument("action", nargs="?", default="status", metavar="ACTION", help="status (default) or fetch")
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="datasets to fetch; all that are not there by default"
    )
    command.add_argument("--from", dest="base_url", metavar="URL", help="fetch from here instead of the public source")
    command.set_defaults(call=_data)

    command = commands.add_parser(
        "check", help="is the installation as pinned, the data intact, every record readable?"
    )
    command.set_defaults(call=_check)
    return parser


def _add_record(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("record", help="compute a study's runs and record them; goes on where it stopped")
    command.add_argument("study", metavar="STUDY")
    command.add_argument("--scale", required=True, help="smoke, laptop or paper")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    command.add_argument("--minutes", type=float, help="stop cleanly after this time")
    command.add_argument("--jobs", type=int, default=1, help="worker processes (default 1)")
    command.add_argument("--verify", type=int, metavar="N", help="record nothing; re-run N recorded runs and compare")
    command.set_defaults(call=_record)


def _list(options: argparse.Namespace) -> int:
    if options.what is not None and options.what not in LISTS:
        raise unknown("list", options.what, LISTS)
    if options.study is not None and options.what != "records":
        raise GradhpoError(
            f"`gradhpo list {options.what}` takes no further name; only `gradhpo list records STUDY` does"
        )
    for what in LISTS if options.what is None else [options.what]:
        if options.what:
            lines = _recorded(options.study) if what == "records" else _listed(what, wide=True)
        else:
            lines = [f"{what}:", *(f"  {line}" for line in _listed(what))]
        print("\n".join(lines))
    return 0


def _listed(what: str, wide: bool = False) -> list[str]:
    if what == "scales":
        from gradhpo import config

        return list(config.SCALES)
    if what == "notebooks":
        from gradhpo import paths

        return sorted(file.stem for file in (paths.ROOT / "notebooks").glob("*.ipynb"))
    if what == "methods":
        return _methods("method", "paper", "cost", "memory") if wide else _methods("method", "paper")[2:]
    if what == "records":
        return _recorded(None)
    from gradhpo import studies

    width = max((len(name) for name in studies.names()), default=0)
    return [f"{name:{width}}  {studies.get(name).title}" for name in studies.names()]


def _recorded(study: str | None) -> list[str]:
    """Recorded runs by study, scale, data set and method; of the studies' present runs only."""
    from gradhpo import config, records, studies

    lines = []
    for name in [studies.get(study).name] if study else studies.names():
        for scale in config.SCALES:
            frame = records.load(studies.get(name), scale)
            if len(frame):
                found = frame.groupby(["dataset", "method"], sort=False, dropna=False).size()
                lines += [f"{name}  {scale}  {dataset}  {method}: {n} runs" for (dataset, method), n in found.items()]
    return lines


def _methods(*columns: str) -> list[str]:
    """Columns of the method table in the terminal's width; a cell too long for its column goes on below, indented."""
    from gradhpo import methods

    rows = [columns, *methods.table()[list(columns)].itertuples(index=False, name=None)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    while sum(widths) + 2 * len(widths) > shutil.get_terminal_size((120, 24)).columns and max(widths) > 12:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in (rows[0], ["-" * width for width in widths], *rows[1:]):
        cells = [textwrap.wrap(cell, width, subsequent_indent="  ") for cell, width in zip(row, widths)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            lines.append("  ".join(f"{part:{width}}" for part, width in zip(parts, widths)).rstrip())
    return lines


def _run(options: argparse.Namespace) -> int:
    from gradhpo import notebooks

    print(notebooks.run(options.notebook, dict(options.parameters), options.out))
    return 0


def _record(options: argparse.Namespace) -> int:
    from gradhpo import recorder, studies

    study = studies.get(options.study)
    if options.verify is not None:
        return _verify(options)
    summary = recorder.record(study, options.scale, options.device, options.minutes, options.jobs)
    print(summary.sentence())
    return 130 if summary.interrupted else 0


def _verify(options: argparse.Namespace) -> int:
    from gradhpo import studies, verification

    same = True
    for each in verification.verify(studies.get(options.study), options.scale, options.device, options.verify):
        mark = "ok   " if each.same else "apart" if each.elsewhere else "WRONG"
        print(f"{mark} {each.sentence()}", flush=True)
        same = same and mark != "WRONG"  # long trainings amplify the last digit, which another processor rounds
    return 0 if same else 1


def _book(options: argparse.Namespace) -> int:
    from gradhpo import book, config

    book.build(config.check_scale(options.scale), options.data, options.force)
    return 0


def _data(options: argparse.Namespace) -> int:
    from gradhpo import data

    if options.action == "status" and options.names:
        raise GradhpoError(f"`gradhpo data status` takes no names; to get {options.names[0]} run `gradhpo data fetch`")
    if options.action not in ("status", "fetch"):
        raise unknown("action", options.action, ["status", "fetch"])
    if options.action == "status":
        table = data.status()
        print(table[["name", "state", "rows", "licence", "path"]].to_string(index=False))
        return 0
    chosen = [data.info(name) for name in options.names or data.DATASETS]  # a misspelt name fails before any download
    for name in (each.name for each in chosen if not each.embedded):
        fetched = data.fetch(name, base_url=options.base_url, progress=True)
        print(f"{name}: {len(data.files(name))} files, {fetched} of them fetched now")
    return 0


def _check(options: argparse.Namespace) -> int:
    from gradhpo import checks

    good = True
    for finding in checks.everything():
        print(f"{'ok   ' if finding.good else 'WRONG'} {finding.text}")
        good = good and finding.good
    return 0 if good else 1
