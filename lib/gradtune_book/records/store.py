"""Run records: one JSON line a run, one file per study, scale and method.

A record says what a run gave, and where, when and with what it was computed. Nothing is ever edited in a record. A
method whose code changes its numbers gets a higher `version` in its configuration, which retires the old lines. `jsonl`
is how lines reach the disk; this module is what they say.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from gradtune.errors import GradtuneError, unknown
from gradtune_book import config, paths
from gradtune_book.records import environment, jsonl
from gradtune_book.records.jsonl import Line

NOTHING = "not recorded yet"
"""What a chapter says in place of recorded runs where there is none."""

POINTS = 50
"""Largest number of points that a recorded series keeps."""

_COLUMNS = ("device", "dataset", "commit", "dirty", "date", "wall_s", "batch", "peak_mb")
_LATER = ("cpu_s",)  # columns that older records do not have
_PROVENANCE = (
    *("study", "scale", "method", "runs", "device", "commit", "dirty", "versions"),
    *("dataset", "first", "last", "minutes"),
)


@dataclass(frozen=True)
class Result:
    """What one run of a study gives back.

    Attributes:
        metrics: Final numbers by name. None, NaN and infinities are recorded as null and read back as NaN.
        series: Curves by name. They are recorded with at most `POINTS` points (see `thin`) and 7 digits.
        wall_s: Seconds of training, without evaluation and compilation.
        dataset: Name of the dataset in `data.datasets`, or of the generated problem.
        dataset_sha256: Digest of the data that was used, "" for a generated problem.
        cpu_s: The same as `wall_s` in seconds that the processor computed (`environment.busy_seconds`), which a busy
            machine does not lengthen. None where it was not measured.
        packages: Packages beside torch and numpy that decided the numbers, by their names on PyPI. The record keeps
            their versions.
    """

    metrics: dict[str, float | int | None]
    series: dict[str, list[float | None]] = field(default_factory=dict)
    wall_s: float = 0.0
    dataset: str = ""
    dataset_sha256: str = ""
    cpu_s: float | None = None
    packages: tuple[str, ...] = ()


class Study(Protocol):
    """The part of a study (`records.study.Study`) that says which runs there are, in order."""

    @property
    def name(self) -> str:
        """The study's name."""

    @property
    def config(self) -> type:
        """Type of a run's configuration."""

    def runs(self, scale: str) -> list[Any]:
        """Return the configurations of a scale, in order."""


def path(study: str, scale: str, method: str, root: Path | None = None) -> Path:
    """Return the file that holds the runs of one method.

    Args:
        study: Name of the study.
        scale: One of `config.SCALES`.
        method: Name of the method.
        root: Root of the records. None stands for `paths.records_root()`, to which new runs are written.

    Raises:
        GradtuneError: The scale is unknown.
    """
    return _roots(root)[0] / study / config.check_scale(scale) / f"{method}.jsonl"


def read(study: str, scale: str, method: str, root: Path | None = None) -> dict[str, Line]:
    """Return the recorded lines of one method by key, from all roots.

    Args:
        study: Name of the study.
        scale: One of `config.SCALES`.
        method: Name of the method.
        root: The only root to read. None stands for all of `paths.records_roots()`; the first line of a key counts.

    Raises:
        GradtuneError: The scale is unknown, or a file has an invalid line.
    """
    files = [path(study, scale, method, each) for each in _roots(root)]
    return jsonl.by_key(line for file in files for line in jsonl.read(file))


def among(study: str, scale: str, method: str, configs: Sequence[Any]) -> list[Any]:
    """Return those of a method's configurations that are recorded, in any root."""
    have = read(study, scale, method)
    return [c for c in configs if config.key(study, c) in have]


def all_files(root: Path | None = None) -> list[Path]:
    """Return every record file below `root`, by default below all of `paths.records_roots()`, sorted."""
    return [file for each in _roots(root) for file in sorted(each.glob("*/*/*.jsonl"))]


def at_home(file: Path) -> list[Line]:
    """Return the lines of a record file whose place says what it holds.

    Raises:
        GradtuneError: A line is of another study, scale or method than the file's path names, as in a copy under
            another name; or it is invalid.
    """
    lines = jsonl.read(file)
    check_home(file, lines)
    return lines


def check_home(file: Path, lines: Sequence[Line]) -> None:
    """Check that lines belong in the file that holds them.

    Raises:
        GradtuneError: One does not.
    """
    here = "/".join(file.parts[-3:])
    for i, each in enumerate(lines, start=1):
        home = f"{each['study']}/{each['scale']}/{each['config']['method']}.jsonl"
        if home != here:
            raise GradtuneError(f"{file}, line {i} belongs in {home}; remove the file if it is a copy, or rename it")


def thin(values: Sequence[Any], points: int = POINTS) -> list[Any]:
    """Return at most `points` of the values, evenly spaced, first and last among them.

    Series of equal length keep the same positions, so curves stay aligned with their axis.
    """
    if len(values) <= points:
        return list(values)
    return [values[i] for i in np.linspace(0, len(values) - 1, points).round().astype(int)]


def number(value: Any) -> float | int | None:
    """Return a metric as it is recorded: a plain int or float, None for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if isinstance(value, (int, np.integer)) else float(value)


def line(study: str, scale: str, cfg: Any, result: Result, device: str, batch: int, peak_mb: float | None) -> Line:
    """Return the record of one run, in plain JSON values only.

    Args:
        study: Name of the study.
        scale: One of `config.SCALES`.
        cfg: The run's configuration.
        result: What the run gave.
        device: Where it ran, as people read it (`environment.describe`).
        batch: Number of runs computed together with it, itself included.
        peak_mb: Peak memory of that batch in MB (`environment.peak_mb`), None where it is not known.

    Raises:
        GradtuneError: A metric or series has the name of a field, of a column of `load` or of one another, or a field
            of `cfg` has the wrong type.
    """
    _refuse_clashes(cfg, result)
    commit, dirty = environment.commit()
    return {
        "key": config.key(study, cfg),
        "study": study,
        "scale": scale,
        "config": config.to_dict(config.check(cfg)),
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "versions": environment.versions(result.packages),
        "dataset": result.dataset,
        "dataset_sha256": result.dataset_sha256,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "wall_s": round(float(result.wall_s), 4),
        **({} if result.cpu_s is None else {"cpu_s": round(float(result.cpu_s), 4)}),
        "batch": batch,
        "peak_mb": None if peak_mb is None else round(peak_mb, 1),
        "metrics": {name: number(value) for name, value in result.metrics.items()},
        "series": {name: [_short(value) for value in thin(values)] for name, values in result.series.items()},
    }


def load(
    study: Study | str, scale: str, methods: Sequence[str] | None = None, root: Path | None = None
) -> pd.DataFrame:
    """Return the recorded runs of a study as a table.

    Order and content do not depend on when, or in which order, the runs were recorded.

    Args:
        study: A study (`papers.get`), or merely a study's name. A study gives its current runs in its own order: lines
            of runs that it no longer has, or of an older `version`, are left out. A name gives every line there is, of
            every version, sorted by method, seed and the other fields.
        scale: One of `config.SCALES`.
        methods: Only these, in this order. None stands for all.
        root: The only root to read. None stands for all of `paths.records_roots()`.

    Returns:
        One row per run. The columns are key, the configuration's fields, device, dataset, commit, dirty, date, wall_s,
        batch, peak_mb (a field of such a name takes that column's place), cpu_s (if recorded), metrics (float, NaN
        where null) and series (lists). Where no run is recorded the table is empty: it has no columns for cpu_s,
        metrics and series, and none for the fields where `study` is a name.

    Raises:
        GradtuneError: The scale is unknown, a method is none of the study's (a name alone is not checked for this), or
            a file has an invalid line.
    """
    config.check_scale(scale)
    lines = _by_name(study, scale, root) if isinstance(study, str) else _of_study(study, scale, methods, root)
    if methods is not None:
        order = {method: i for i, method in enumerate(methods)}
        lines = [each for each in lines if each["config"]["method"] in order]
        lines.sort(key=lambda each: order[each["config"]["method"]])
    return pd.DataFrame([_row(each) for each in lines], columns=None if lines else _columns(study))


def coverage(study: Study, scale: str, *fields: str) -> pd.DataFrame:
    """Return how many runs of a study are recorded of how many it has at a scale.

    Args:
        study: The study.
        scale: One of `config.SCALES`.
        *fields: Fields of the configuration that tell rows apart, beside `method`.

    Returns:
        One row per method and combination of values of `fields`, in the study's order. The columns are recorded and of.
    """
    columns, runs = ["method", *fields], study.runs(scale)
    have = set(load(study, scale)["key"])
    rows = [{c: getattr(each, c) for c in columns} for each in runs]
    found = pd.DataFrame(rows).assign(recorded=[config.key(study.name, each) in have for each in runs], of=1)
    return found.groupby(columns, sort=False, dropna=False)[["recorded", "of"]].sum().astype(int)


def so_far(study: Study, scale: str) -> str:
    """Return how much of a study is recorded at a scale, in words; `NOTHING` where nothing is."""
    recorded = len(load(study, scale))
    return f"{recorded} of {len(study.runs(scale))} runs are recorded" if recorded else NOTHING


def provenance(root: Path | None = None) -> pd.DataFrame:
    """Return one row per study, scale, method and version: how many runs, where, when and with what they were computed.

    Args:
        root: The only root to read. None stands for all of `paths.records_roots()`.

    Returns:
        The columns are study, scale, method (with its version, where there are several), runs, device, commit, dirty
        (true where any run is), versions, dataset, first and last (date of a run), and minutes (of training, summed).
        Different values of one method are joined by semicolons.
    """
    found: dict[tuple[str, str, str], list[Line]] = {}
    for file in all_files(root):
        for line in at_home(file):
            found.setdefault((line["study"], line["scale"], line["config"]["method"]), []).append(line)
    rows = [row for _, lines in sorted(found.items()) for row in _provenance_rows([*jsonl.by_key(lines).values()])]
    return pd.DataFrame(rows, columns=list(_PROVENANCE))


def _roots(root: Path | None) -> list[Path]:
    return paths.records_roots() if root is None else [root]


def _short(value: Any) -> float | int | None:
    """Round to seven digits, all a float32 has: this keeps a run near 1 kB."""
    plain = number(value)
    return float(f"{plain:.7g}") if isinstance(plain, float) else plain


def _refuse_clashes(cfg: Any, result: Result) -> None:
    names = [*result.metrics, *result.series]
    taken = {"key", *_COLUMNS, *_LATER, *config.to_dict(cfg)}
    if clashes := sorted({name for name in names if name in taken or names.count(name) > 1}):
        raise GradtuneError(
            f"metrics and series need names that no field of {type(cfg).__name__} and no column of a record has; "
            f"rename {', '.join(clashes)}"
        )


def _of_study(study: Study, scale: str, methods: Sequence[str] | None, root: Path | None) -> list[Line]:
    configs = study.runs(scale)
    known = dict.fromkeys(cfg.method for cfg in configs)
    for method in methods or ():
        if method not in known:
            raise unknown(f"method of {study.name} at scale {scale}", method, known)
    lines = {key: line for method in known for key, line in read(study.name, scale, method, root).items()}
    order = [config.key(study.name, cfg) for cfg in configs]
    return [lines[key] for key in order if key in lines]


def _by_name(study: str, scale: str, root: Path | None) -> list[Line]:
    files = [file for each in _roots(root) for file in sorted((each / study / scale).glob("*.jsonl"))]
    unique = jsonl.by_key(line for file in files for line in at_home(file))
    return sorted(unique.values(), key=_sort_key)


def _sort_key(record: Line) -> tuple[Any, ...]:
    fields = dict(record["config"])
    method, seed = fields.pop("method"), fields.pop("seed")
    # the type's name first, so that None and a number compare
    return method, seed, *((type(value).__name__, 0 if value is None else value) for value in fields.values())


def _columns(study: Study | str) -> list[str]:
    """Columns that a table of runs has even where there is none: those that do not depend on what a run measures."""
    names = [] if isinstance(study, str) else [field.name for field in dataclasses.fields(study.config)]
    return ["key", *names, *(name for name in _COLUMNS if name not in names)]


def _row(record: Line) -> Line:
    metrics = {name: math.nan if value is None else float(value) for name, value in record["metrics"].items()}
    columns = {name: record[name] for name in _COLUMNS if name not in record["config"]}
    columns |= {name: record[name] for name in _LATER if name in record}
    return {"key": record["key"], **record["config"], **columns, **metrics, **record["series"]}


def _provenance_rows(lines: list[Line]) -> list[Line]:
    """One row for each version among the lines of a method."""
    versions = sorted({each["config"].get("version", 0) for each in lines})
    rows = []
    for version in versions:
        row = _provenance_row([each for each in lines if each["config"].get("version", 0) == version])
        rows.append(row if len(versions) == 1 else row | {"method": f"{row['method']} (version {version})"})
    return rows


def _provenance_row(lines: list[Line]) -> Line:
    dates = sorted(each["date"] for each in lines)
    return {
        "study": lines[0]["study"],
        "scale": lines[0]["scale"],
        "method": lines[0]["config"]["method"],
        "runs": len(lines),
        "device": _distinct(each["device"] for each in lines),
        "commit": _distinct((each["commit"] or "unknown")[:10] for each in lines),
        "dirty": any(each["dirty"] for each in lines),
        "versions": _distinct(", ".join(f"{k} {v}" for k, v in each["versions"].items()) for each in lines),
        "dataset": _distinct(each["dataset"] for each in lines),
        "first": dates[0],
        "last": dates[-1],
        "minutes": round(sum(each["wall_s"] for each in lines) / 60, 2),
    }


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))
