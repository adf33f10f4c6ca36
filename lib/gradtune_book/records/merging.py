"""Bring the records of several folders together: every line proven, and nothing decided between two that differ.

A folder is a root of records, such as a shard has written (`<study>/<scale>/<method>.jsonl` below it). All folders are
read before anything is written, and a file gets its new lines in one write: what is stopped goes on with the same call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.records import jsonl, proof, store
from gradtune_book.records.proof import Line

_GAVE = ("config", "dataset", "dataset_sha256", "metrics", "series")
"""What a run was and gave. Where, when and how fast it ran may differ between copies of it."""

_NAMED = 5  # copies that an error names


@dataclass(frozen=True)
class Merged:
    """What `merge` did.

    Attributes:
        files: Number of record files that it read.
        runs: Number of runs in them, copies counted.
        added: Number of runs that were new.
        torn: Files that end in a torn line, which was left out.
    """

    files: int
    runs: int
    added: int
    torn: tuple[Path, ...]

    def sentence(self) -> str:
        """Return what was done as one sentence for people."""
        cut = f"; left out the torn last lines of {', '.join(map(str, self.torn))}" if self.torn else ""
        kept = self.runs - self.added
        return f"{self.runs} runs in {self.files} files: {self.added} added, {kept} were there already{cut}"


def merge(folders: Sequence[Path]) -> Merged:
    """Add the runs of several folders to the records, `paths.records_root()`.

    Of copies of a run that say the same of it but for time and place, the first is kept: the one that is recorded
    already, else that of the folder named first.

    Args:
        folders: Roots of records.

    Returns:
        How many runs there were, and how many were new.

    Raises:
        GradtuneError: A folder has no record file, a line is neither proven by a digest nor by a seal, has been changed
            or stands in another file than it belongs in, or copies of a run differ. Nothing is written then. Or the
            records cannot be written, as `jsonl.append` says; the same call goes on.
    """
    files = [file for folder in folders for file in _files(folder)]
    have: dict[Path, dict[str, tuple[Path, Line]]] = {}
    new: dict[Path, list[Line]] = {}
    apart, torn, runs = [], [], 0
    for file in files:
        home = paths.records_root().joinpath(*file.parts[-3:])
        known = have.setdefault(home, _known(home))
        lines, whole = _proven(file)
        torn += [] if whole else [file]
        runs += len(lines)
        for line in lines:
            there, first = known.setdefault(line["key"], (file, line))
            if first is line:
                new.setdefault(home, []).append(line)
            elif wrong := [name for name in _GAVE if first[name] != line[name]]:
                apart.append(f"{_name(line)} in {there} and {file} ({', '.join(wrong)})")
    if apart:
        more = f" and {len(apart) - _NAMED} more" if len(apart) > _NAMED else ""
        raise GradtuneError(
            f"{len(apart)} copies of runs differ, and nothing was merged: {'; '.join(apart[:_NAMED])}{more}; find out "
            "why with `gradtune record STUDY --verify`, and name only the folder that is right"
        )
    return Merged(len(files), runs, sum(jsonl.append(home, lines) for home, lines in new.items()), tuple(torn))


def _files(folder: Path) -> list[Path]:
    if not (found := store.all_files(folder)):
        raise GradtuneError(f"{folder} has no record file (STUDY/SCALE/METHOD.jsonl); name the folders of the records")
    return found


def _known(home: Path) -> dict[str, tuple[Path, Line]]:
    """What is recorded of the runs of one file, by key, in all roots: where it stands, and the line."""
    return {line["key"]: (file, line) for file, line in reversed([*_everywhere(home)])}


def _everywhere(home: Path) -> Iterator[tuple[Path, Line]]:
    for root in paths.records_roots():
        file = root.joinpath(*home.parts[-3:])
        for line in jsonl.read(file):
            yield file, line


def _proven(file: Path) -> tuple[list[Line], bool]:
    """Return the lines of a file, each proven, and whether it ends in a whole line."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise GradtuneError(f"{file} cannot be read ({error.strerror})") from error
    lines, intact = jsonl.parse(file, content)
    store.check_home(file, lines)
    if bare := proof.unproven(file, content):
        raise GradtuneError(
            f"{file} has {bare} lines without digest or seal; nothing was merged; where they are good, seal them with "
            "`gradtune check --seal` and GRADTUNE_RECORDS set to that folder"
        )
    return lines, intact == len(content)


def _name(line: Line) -> str:
    cfg = line["config"]
    return f"{line['study']}/{line['scale']}/{cfg['method']} seed {cfg['seed']} ({line['key']})"
