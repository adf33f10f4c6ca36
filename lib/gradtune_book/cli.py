"""The command `gradtune`: list, run, record, records, book, data, check.

Every command imports what it needs when it is called: `gradtune record` runs where neither Jupyter nor papermill is
installed, and `gradtune --help` answers at once.
"""

import argparse
import itertools
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gradtune
from gradtune.errors import GradtuneError, unknown

if TYPE_CHECKING:
    from gradtune_book.records import cluster

LISTS = ("studies", "notebooks", "methods", "scales", "records", "claims")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: What follows `gradtune`. None takes it from `sys.argv`.

    Returns:
        0; 1 where a check or a notebook failed; 2 after a mistake; 3 where `record` has left runs to do (time is up,
        or another process has them); 130 after Ctrl-C; or 141 where the reader of the output, such as `head`, has
        closed it.

    Raises:
        SystemExit: From argparse: after `--help` and `--version` (status 0), or for arguments it cannot read (2).
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.call(options)
        sys.stdout.flush()
    except GradtuneError as error:
        print(f"gradtune: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C: this is the end already
        print("gradtune: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
        return 141  # as a shell reports a program that SIGPIPE ended
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradtune", description="Gradient-based hyperparameter optimisation: studies, records and their book."
    )
    parser.add_argument("-V", "--version", action="version", version=f"gradtune {gradtune.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help=f"what there is: {', '.join(LISTS)}")
    command.add_argument("what", nargs="?", metavar="WHAT", help="one of these; all by default")
    command.add_argument("study", nargs="?", metavar="STUDY", help="with records: of this study alone")
    command.set_defaults(call=_list)

    command = commands.add_parser("run", help="execute one notebook, parameters strictly checked")
    command.add_argument("notebook", metavar="NOTEBOOK", help="name or path")
    command.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    command.add_argument("-o", dest="out", type=Path, help="executed copy to write")
    command.add_argument("--force", action="store_true", help="write over a file that is no executed copy")
    command.set_defaults(call=_run)

    _add_record(commands)

    command = commands.add_parser("book", help="execute what has changed and build the book")
    command.add_argument("--scale", default="smoke", help="smoke (default), laptop or paper")
    command.add_argument("--data", default="auto", help="auto (default), embedded, or a dataset's name")
    command.add_argument("--device", default="cpu", help="of live runs: cpu (default), cuda or cuda:N")
    command.add_argument("--force", action="store_true", help="execute every notebook again")
    command.set_defaults(call=_book)

    command = commands.add_parser("data", help="datasets: what is there, what is missing, how to get it")
    command.add_argument("action", nargs="?", default="status", metavar="ACTION", help="status (default) or fetch")
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="datasets to fetch; all that are not there by default"
    )
    command.add_argument("--from", dest="base_url", metavar="URL", help="fetch from here instead of the public source")
    command.add_argument("--any-source", action="store_true", help="with --from: http: and file: too, not only https:")
    command.set_defaults(call=_data)

    command = commands.add_parser(
        "check", help="is the installation as pinned, the data intact, every record readable?"
    )
    command.add_argument("--deep", action="store_true", help="decode all images and prove the compiled operations, too")
    command.add_argument("--seal", action="store_true", help="first seal the record lines that have no digest")
    command.set_defaults(call=_check)
    return parser


def _add_record(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("record", help="compute a study's runs and record them; goes on where it stopped")
    command.add_argument("study", metavar="STUDY")
    command.add_argument("--scale", required=True, help="smoke, laptop or paper")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    command.add_argument("--minutes", type=float, help="stop cleanly after this time")
    command.add_argument("--jobs", type=int, help="worker processes (default 1; with ray, all that it has room for)")
    command.add_argument("--engine", default="local", help="local (default), or ray: on the nodes of a Ray cluster")
    command.add_argument("--address", help="with ray: address of the cluster (default: the one this machine is in)")
    command.add_argument("--shard", metavar="K/N", help="only part K of N; every batch of runs is in one part")
    command.add_argument("--methods", nargs="+", metavar="NAME", default=(), help="only runs of these methods")
    command.add_argument("--mixed", action="store_true", help="record the rest on another kind of device")
    command.add_argument("--verify", type=int, metavar="N", help="record nothing; re-run N recorded runs and compare")
    command.set_defaults(call=_record)

    command = commands.add_parser("records", help="bring the records of several folders together")
    command.add_argument("action", metavar="ACTION", help="merge")
    command.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="such as a shard has written")
    command.set_defaults(call=_records)


def _list(options: argparse.Namespace) -> int:
    if options.what is not None and options.what not in LISTS:
        raise unknown("list", options.what, LISTS)
    if options.study is not None and options.what != "records":
        raise GradtuneError(
            f"`gradtune list {options.what}` takes no further name; only `gradtune list records STUDY` does"
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
        from gradtune_book import config

        return list(config.SCALES)
    if what == "notebooks":
        from gradtune_book import paths

        return sorted(file.stem for file in (paths.ROOT / "notebooks").glob("*.ipynb"))
    if what == "methods":
        return _methods("method", "paper", "cost", "memory") if wide else _methods("method", "paper")[2:]
    if what == "records":
        return _recorded(None)
    if what == "claims":
        return _claims(wide)
    from gradtune_book import papers

    width = max(map(len, papers.STUDIES))
    return [f"{name:{width}}  {entry.title}" for name, entry in papers.STUDIES.items()]


def _claims(judged: bool) -> list[str]:
    """List the claims of the papers: with their answers, as the book's page of verdicts has them, or by name alone."""
    from gradtune_book.claims import words
    from gradtune_book.papers import registry

    if judged:
        return words.lines(registry.answers())
    return [f"{claim.id}  {claim.statement}" for claim in registry.CLAIMS]


def _recorded(study: str | None) -> list[str]:
    """Count the recorded runs by study, scale, dataset and method; of the studies' present runs only."""
    from gradtune_book import config, papers
    from gradtune_book.records import store

    lines = []
    for name in [papers.get(study).name] if study else papers.names():
        for scale in config.SCALES:
            frame = store.load(papers.get(name), scale)
            if len(frame):
                found = frame.groupby(["dataset", "method"], sort=False, dropna=False).size()
                lines += [f"{name}  {scale}  {dataset}  {method}: {n} runs" for (dataset, method), n in found.items()]
    return lines or [f"no run of {study or 'any study'} is recorded"]


def _methods(*columns: str) -> list[str]:
    """Fit columns of the method table into the terminal's width; too long a cell goes on below, indented."""
    from gradtune import methods

    rows = [columns, *([row[column] for column in columns] for row in methods.rows())]
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
    from gradtune_book.notebooks import runner

    print(runner.run(options.notebook, dict(options.parameters), options.out, options.force))
    return 0


def _record(options: argparse.Namespace) -> int:
    from gradtune_book import papers
    from gradtune_book.records import chunks, recorder

    study, engine = papers.get(options.study), _engine(options)
    if options.verify is not None:
        return _verify(options)
    shard = chunks.WHOLE if options.shard is None else chunks.Shard.parse(options.shard)
    jobs = 1 if engine is not None or options.jobs is None else options.jobs
    summary = recorder.record(
        study, options.scale, options.device, options.minutes, jobs, engine, shard, options.mixed, options.methods
    )
    print(summary.sentence())
    return 130 if summary.interrupted else 3 if summary.left else 0


def _engine(options: argparse.Namespace) -> "cluster.Ray | None":
    """What computes, None for this machine's processes."""
    if options.engine not in ("local", "ray"):
        raise unknown("engine", options.engine, ["local", "ray"])
    if options.verify is not None and (options.engine != "local" or options.shard is not None):
        raise GradtuneError("--verify draws from the whole study and computes here; leave out --engine and --shard")
    if options.engine == "local":
        if options.address is not None:
            raise GradtuneError("--address is that of a Ray cluster; add --engine ray, or leave it out")
        return None
    from gradtune_book.records import cluster

    return cluster.Ray(options.address or "", options.jobs)


def _records(options: argparse.Namespace) -> int:
    from gradtune_book.records import merging

    if options.action != "merge":
        raise unknown("action", options.action, ["merge"])
    print(merging.merge(options.folders).sentence())
    return 0


def _verify(options: argparse.Namespace) -> int:
    from gradtune_book import papers
    from gradtune_book.records import verification

    same = True
    for each in verification.verify(papers.get(options.study), options.scale, options.device, options.verify):
        mark = "ok   " if each.same else "apart" if each.elsewhere else "WRONG"
        print(f"{mark} {each.sentence()}", flush=True)
        same = same and mark != "WRONG"  # long trainings amplify the last digit, which another processor rounds
    return 0 if same else 1


def _book(options: argparse.Namespace) -> int:
    from gradtune_book import config
    from gradtune_book.pages import build

    build.build(config.check_scale(options.scale), options.data, options.force, options.device)
    return 0


def _data(options: argparse.Namespace) -> int:
    from gradtune_book.data import datasets

    if options.action == "status" and options.names:
        raise GradtuneError(
            f"`gradtune data status` takes no names; to get {options.names[0]} run `gradtune data fetch`"
        )
    if options.action not in ("status", "fetch"):
        raise unknown("action", options.action, ["status", "fetch"])
    if options.action == "status":
        table = datasets.status()
        print(table[["name", "state", "rows", "licence", "path"]].to_string(index=False))
        return 0
    # a misspelt name fails before any download
    chosen = [datasets.info(name) for name in options.names or datasets.DATASETS]
    for name in (each.name for each in chosen if not each.embedded):
        fetched = datasets.fetch(name, base_url=options.base_url, progress=True, any_source=options.any_source)
        print(f"{name}: {len(datasets.files(name))} files, {fetched} of them fetched now")
    return 0


def _check(options: argparse.Namespace) -> int:
    from gradtune_book import checks, paths
    from gradtune_book.records import proof

    for root in paths.records_roots() if options.seal else ():
        print(f"{root}: {proof.seal(root)} lines without a digest are sealed")
    good = True
    for finding in checks.everything(options.deep):
        print(f"{'ok   ' if finding.good else 'WRONG'} {finding.text}")
        good = good and finding.good
    return 0 if good else 1
