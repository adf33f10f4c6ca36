"""Datasets: real ones where present, small files in their format otherwise; faults; download from 127.0.0.1."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.data import datasets, manifest

# before any test moves it: where this machine has real data, if it has
REAL_ROOT = paths.data_root()
REAL_SETS = [n for n in datasets.DATASETS if not datasets.info(n).embedded and datasets.info(n).kind == "regression"]
FOLDER = "UCI_Datasets/yacht/data"
CONTENTS = {
    "data.txt": "1 2 3.5\n4 5 6.5\n7 8 9.5\n10 11 12.5\n",
    "index_features.txt": "0\n1\n",
    "index_target.txt": "2\n",
    "index_train_0.txt": "3\n0\n1\n",
    "index_test_0.txt": "2\n",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root."""
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path / "raw"))
    return tmp_path / "raw"


@pytest.fixture
def small(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a four-row set under the name of yacht, and the checksums that belong to it."""
    write(root)
    digests = {path: digest for path, digest in datasets.checksums().items() if not path.startswith(FOLDER)}
    digests |= {f"{FOLDER}/{name}": hashlib.sha256(text.encode()).hexdigest() for name, text in CONTENTS.items()}
    monkeypatch.setattr(datasets, "checksums", lambda: digests)
    return root


def write(root: Path) -> None:
    (root / FOLDER).mkdir(parents=True)
    for name, text in CONTENTS.items():
        (root / FOLDER / name).write_text(text)


@pytest.mark.parametrize("name", REAL_SETS)
def test_a_real_set_has_the_rows_it_should(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_DATA", str(REAL_ROOT))
    if datasets.state(name) != "present":
        pytest.skip(f"{name} is not on this machine; `gradtune data fetch {name}` gets it")
    known = datasets.info(name)
    for split in (0, datasets.SPLITS - 1):
        got = datasets.regression(name, split)
        assert got.x.shape == (known.rows, known.features)
        assert got.y.shape == (known.rows,)
        assert got.x.dtype == got.y.dtype == np.float64
        assert sorted([*got.train_index, *got.test_index]) == list(range(known.rows))  # no row on both sides
        assert len(got.test_index) == pytest.approx(known.rows / 10, abs=1)
    assert datasets.corrupted(name) == []


def test_checksums_cover_every_file_of_every_real_set() -> None:
    assert len(REAL_SETS) == 8
    for name in REAL_SETS:
        names = {Path(path).name for path in datasets.files(name)}
        splits = {f"index_{part}_{k}.txt" for part in ("train", "test") for k in range(datasets.SPLITS)}
        assert names == {"data.txt", "index_features.txt", "index_target.txt", "n_splits.txt"} | splits
    assert all(len(digest) == 64 for digest in datasets.checksums().values())


def test_columns_are_picked_by_the_index_files(small: Path) -> None:
    got = datasets.regression("yacht")
    assert got.x.tolist() == [[1, 2], [4, 5], [7, 8], [10, 11]]
    assert got.y.tolist() == [3.5, 6.5, 9.5, 12.5]
    assert (got.train_index.tolist(), got.test_index.tolist()) == ([3, 0, 1], [2])
    assert (len(got.sha256), got.embedded, got.name) == (64, False, "yacht")


@pytest.mark.parametrize("file", list(CONTENTS))
@pytest.mark.parametrize("fault", ["truncated", "altered"])
def test_a_damaged_file_is_named(small: Path, file: str, fault: str) -> None:
    path = small / FOLDER / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] if fault == "truncated" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(GradtuneError, match=r"gradtune data fetch yacht") as caught:
        datasets.regression("yacht")
    assert str(path) in str(caught.value)
    assert f"{len(path.read_bytes())} bytes" in str(caught.value)
    assert datasets.checksums()[f"{FOLDER}/{file}"][:12] in str(caught.value)
    assert datasets.corrupted("yacht") == [f"{FOLDER}/{file}"]
    assert datasets.status().set_index("name").state["yacht"] == "corrupted"


def test_a_file_that_is_gone_is_named(small: Path) -> None:
    (small / FOLDER / "index_test_0.txt").unlink()
    assert datasets.state("yacht") == "incomplete"
    with pytest.raises(GradtuneError, match=r"index_test_0\.txt cannot be read.*gradtune data fetch yacht"):
        datasets.regression("yacht")


def test_sets_of_other_kinds_are_not_rows_and_come_from_their_own_source(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[str, str]] = []
    monkeypatch.setattr(datasets.download, "save", lambda url, path, *_: got.append((url, path.name)))
    for name, kind, files in (("mnist", "images", 4), ("ptb", "text", 3)):
        with pytest.raises(GradtuneError, match=f"{name} holds {kind}, no rows for regression"):
            datasets.regression(name)
        got.clear()
        assert datasets.fetch(name) == files == len(got)
        assert all(url == f"{datasets.info(name).url}{file}" for url, file in got)
    datasets.fetch("ptb", base_url="http://localhost:1")
    assert got[-1][0] == "http://localhost:1/ptb/ptb.valid.txt"


def test_an_absent_set_says_how_to_get_it(root: Path) -> None:
    for call in (lambda: datasets.regression("energy"), lambda: datasets.resolve("energy", "energy", "diabetes")):
        with pytest.raises(GradtuneError, match=r"gradtune data fetch energy.*GRADTUNE_DATA.*data='embedded'"):
            call()


def test_unknown_names_and_splits() -> None:
    with pytest.raises(GradtuneError, match=r"unknown dataset 'enery'; did you mean 'energy'\?"):
        datasets.regression("enery")
    with pytest.raises(GradtuneError, match=r"did you mean 'auto'\?"):
        datasets.resolve("atuo", "energy", "diabetes")
    for split in (20, -1, True, 0.0):
        with pytest.raises(GradtuneError, match="split must be a whole number from 0 to 19"):
            datasets.regression("diabetes", split)  # type: ignore[arg-type]


def test_auto_falls_back_to_the_embedded_set_only_where_the_real_one_is_absent(small: Path) -> None:
    assert datasets.resolve("auto", "energy", "diabetes") == "diabetes"
    assert datasets.resolve("auto", "yacht", "diabetes") == "yacht"
    assert datasets.resolve("embedded", "yacht", "diabetes") == "diabetes"
    assert datasets.resolve("diabetes", "yacht", "diabetes") == "diabetes"
    assert datasets.resolve("yacht", "energy", "diabetes") == "yacht"


def test_captions_name_the_stand_in() -> None:
    assert datasets.caption("energy") == "UCI Energy, 768 rows"
    assert datasets.caption("diabetes") == "scikit-learn's diabetes (embedded stand-in), 442 rows"


def test_the_embedded_set_is_the_same_on_every_machine(root: Path) -> None:
    got = datasets.regression("diabetes")
    assert got.embedded
    assert got.x.shape == (442, 10)
    assert got.sha256 == "042296232fab423468489dee77e866af71f155b8772c7b7ec0905ce599b07be3"
    assert got.x[0].tolist() == [59.0, 2.0, 32.1, 101.0, 157.0, 93.2, 38.0, 4.0, 4.8598, 87.0]
    assert got.train_index[:5].tolist() == [362, 249, 271, 435, 400]
    assert sorted([*got.train_index, *got.test_index]) == list(range(442))
    assert len(got.test_index) == 44
    assert datasets.regression("diabetes", 1).train_index.tolist() != got.train_index.tolist()


def test_status_lists_every_set(small: Path) -> None:
    states = datasets.status().set_index("name").state
    assert list(states.index) == list(datasets.DATASETS)
    assert (states["yacht"], states["energy"], states["diabetes"]) == ("present", "missing", "embedded")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; promises more than it sends for the file `broken`."""

    broken = ""
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(Path(self.path).name)
        if self.broken and self.path.endswith(self.broken):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"1")
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A server on 127.0.0.1 with the small set's files, and its folder; the data root itself is empty."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    small.rename(folder)
    monkeypatch.setattr(Handler, "asked", [], raising=False)
    handler = lambda *args: Handler(*args, directory=str(folder))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.name not in CONTENTS]


def test_fetch_gets_what_is_missing_and_only_that(server: tuple[str, Path], root: Path) -> None:
    assert datasets.fetch("yacht", base_url=server[0], any_source=True) == len(CONTENTS)
    assert datasets.state("yacht") == "present"
    assert datasets.regression("yacht").y.tolist() == [3.5, 6.5, 9.5, 12.5]
    (root / FOLDER / "data.txt").write_text("1 2")  # damaged: fetched again
    (root / FOLDER / "index_test_0.txt").unlink()
    Handler.asked.clear()
    assert datasets.fetch("yacht", base_url=server[0] + "/", any_source=True) == 2
    assert sorted(Handler.asked) == ["data.txt", "index_test_0.txt"]
    assert datasets.fetch("yacht", base_url="http://127.0.0.1:9", any_source=True) == 0  # nothing to do, nothing asked
    assert leftovers(root) == []


def test_an_interrupted_fetch_keeps_what_it_has_and_goes_on(
    server: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "broken", "index_target.txt")
    with pytest.raises(GradtuneError, match=r"index_target\.txt broke off.*gradtune data fetch yacht"):
        datasets.fetch("yacht", base_url=server[0], any_source=True)
    assert sorted(path.name for path in (root / FOLDER).iterdir()) == ["data.txt", "index_features.txt"]
    monkeypatch.setattr(Handler, "broken", "")
    assert datasets.fetch("yacht", base_url=server[0], any_source=True) == len(CONTENTS) - 2
    assert datasets.state("yacht") == "present"


def test_a_wrong_file_from_the_server_is_not_kept(server: tuple[str, Path], root: Path) -> None:
    (server[1] / FOLDER / "data.txt").write_text("<html>sorry</html>")
    with pytest.raises(
        GradtuneError, match=r"data\.txt gave 18 bytes with checksum .* expected .*nothing of it was kept"
    ):
        datasets.fetch("yacht", base_url=server[0], any_source=True)
    assert datasets.state("yacht") == "missing"
    assert leftovers(root) == []


def test_a_file_the_server_does_not_have(server: tuple[str, Path], root: Path) -> None:
    with pytest.raises(GradtuneError, match="answered 404"):
        datasets.fetch("yacht", base_url=server[0] + "/elsewhere", any_source=True)


def test_a_server_that_sends_too_much_or_too_slowly(
    server: tuple[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (server[1] / FOLDER / "data.txt").write_bytes(bytes(2**22))
    with pytest.raises(GradtuneError, match=rf"data\.txt sends more than the {manifest.sizes()[f'{FOLDER}/data.txt']}"):
        datasets.fetch("yacht", base_url=server[0], any_source=True)
    write_one = server[1] / FOLDER / "data.txt"
    write_one.write_text(CONTENTS["data.txt"])
    monkeypatch.setattr("gradtune_book.data.download._TOTAL_S", -1)
    with pytest.raises(GradtuneError, match=r"data\.txt has not ended after"):
        datasets.fetch("yacht", base_url=server[0], any_source=True)
    assert leftovers(root) == []


@pytest.mark.parametrize("source", ["http://127.0.0.1:9", "file:///etc", "ftp://127.0.0.1", "etc", "data:,1"])
def test_only_https_without_an_explicit_word(root: Path, source: str) -> None:
    with pytest.raises(GradtuneError, match=r"no address that begins with https:.*--any-source"):
        datasets.fetch("yacht", base_url=source)
    if not source.startswith(("http:", "file:")):
        with pytest.raises(GradtuneError, match="no address that begins with https:"):
            datasets.fetch("yacht", base_url=source, any_source=True)


def test_no_network_is_one_sentence(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (small / FOLDER / "data.txt").unlink()
    with pytest.raises(GradtuneError, match=r"cannot reach .*data\.txt .*refused.*check the network") as caught:
        datasets.fetch("yacht", base_url="http://127.0.0.1:9", any_source=True)  # the discard port: nobody listens
    assert "\n" not in str(caught.value)


def test_a_root_that_cannot_be_written(server: tuple[str, Path], root: Path) -> None:
    root.write_text("a file where the folder should be")
    with pytest.raises(GradtuneError, match="cannot be written"):
        datasets.fetch("yacht", base_url=server[0], any_source=True)


def test_embedded_sets_need_no_fetch() -> None:
    assert datasets.fetch("diabetes", base_url="http://127.0.0.1:9") == 0


def test_reading_never_downloads(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("a download in a run"))
    assert datasets.resolve("auto", "energy", "diabetes") == "diabetes"
    with pytest.raises(GradtuneError):
        datasets.regression("energy")
