"""Texts: the generated language, and Penn Treebank from small files in its format; what is wrong with a file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.data import datasets, text
from gradtune_book.tasks.language import LanguageModelling

REAL_ROOT = paths.data_root()  # before any test moves it
FILES = {
    "ptb.train.txt": "the cat saw the dog\nthe dog saw <unk> cat and the N\n",
    "ptb.valid.txt": "the cat and the dog\n",
    "ptb.test.txt": "a dog saw the cat\n",
}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes small files in place of Penn Treebank's, with the checksums that belong to them."""
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))

    def files(**changed: bytes) -> Path:
        (tmp_path / "ptb").mkdir(exist_ok=True)
        contents = {n: changed.get(n.split(".")[1], t.encode()) for n, t in FILES.items()}
        for name, content in contents.items():
            (tmp_path / "ptb" / name).write_bytes(content)
        digests = {f"ptb/{n}": hashlib.sha256(c).hexdigest() for n, c in contents.items()}
        monkeypatch.setattr(datasets, "checksums", lambda: digests)
        return tmp_path / "ptb"

    return files


def test_lines_are_closed_and_words_are_numbered_by_frequency(write: Write) -> None:
    write(test=b"the dog saw the cat\n")
    got = text.load("ptb")
    assert got.words == ("the", "<eos>", "cat", "dog", "saw", "<unk>", "N", "and")
    assert got.train.tolist() == [0, 2, 4, 0, 3, 1, 0, 3, 4, 5, 2, 7, 0, 6, 1]
    assert got.val.tolist() == [0, 2, 7, 0, 3, 1]
    assert (got.vocabulary, got.name, len(got.sha256)) == (8, "ptb", 64)
    assert got.caption == "Penn Treebank, 15 training words, vocabulary 8"
    cut = text.load("ptb", tokens=6, val_tokens=3, vocabulary=4)
    assert cut.words == ("<unk>", "the", "<eos>", "cat")
    assert cut.train.tolist() == [1, 3, 0, 1, 0, 2] and cut.val.tolist() == [1, 3, 0]
    assert cut.caption == "Penn Treebank, 6 of its 15 training words, vocabulary 4"


def test_a_vocabulary_that_the_text_does_not_have(write: Write) -> None:
    write()
    with pytest.raises(GradtuneError, match=r"vocabulary of 9 words .* with 8 different ones; expected 2 to 8"):
        text.load("ptb", vocabulary=9)
    with pytest.raises(GradtuneError, match="16 words were asked of a text of 15; expected 1 to 15"):
        text.load("ptb", tokens=16)


def test_a_word_beyond_the_vocabulary_where_nothing_stands_for_it(write: Write) -> None:
    write(train=b"the cat saw the dog\n")
    with pytest.raises(GradtuneError, match=r"the word 'and' is not among the 5 .* and <unk> is not either"):
        text.load("ptb")
    assert text.load("ptb", vocabulary=4).words[0] == "<unk>"  # a smaller vocabulary has it


@pytest.mark.parametrize("fault", ["truncated", "gone", "altered"])
def test_a_damaged_file_is_named(write: Write, fault: str) -> None:
    path = write() / "ptb.valid.txt"
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if fault == "truncated" else b"The cat and the dog\n")
    wrong = "cannot be read" if fault == "gone" else "is truncated or altered"
    with pytest.raises(GradtuneError, match=rf"ptb\.valid\.txt {wrong}.*gradtune data fetch ptb"):
        text.load("ptb")


def test_a_wrongly_encoded_file_is_named(write: Write) -> None:
    write(train="the café\n".encode("latin-1"))
    with pytest.raises(GradtuneError, match=r"ptb\.train\.txt is not UTF-8 text \(byte 7\)"):
        text.load("ptb")


def test_an_absent_text_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    with pytest.raises(GradtuneError, match=r"gradtune data fetch ptb.*data='embedded'"):
        text.load("ptb")
    assert text.resolve("auto") == text.resolve("embedded") == "markov"
    with pytest.raises(GradtuneError, match="unknown text 'pbt'; did you mean 'ptb'"):
        text.resolve("pbt")


def test_the_real_text_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADTUNE_DATA", str(REAL_ROOT))
    if datasets.state("ptb") != "present":
        pytest.skip("Penn Treebank is not on this machine; `gradtune data fetch ptb` gets it")
    got = text.load("ptb")
    assert [len(x) for x in (got.train, got.val, got.test)] == [929589, 73760, 82430]
    assert got.vocabulary == 10_000 and got.words[:3] == ("the", "<unk>", "<eos>")
    assert math.exp(text.unigram(got)) == pytest.approx(700, rel=0.1)


def test_the_generated_language_is_the_same_everywhere() -> None:
    got = text.load("embedded")
    assert got.train[:12].tolist() == MARKOV and (len(got.train), len(got.val)) == (20_000, 4_000)
    assert "embedded" in got.caption and got.vocabulary == 200
    with pytest.raises(GradtuneError, match="vocabulary = 5"):
        text.load("embedded", vocabulary=5)
    for name in ("vocabulary", "tokens", "val_tokens"):
        with pytest.raises(GradtuneError, match=f"{name} = 0"):
            text.load("embedded", **{name: 0})  # type: ignore[arg-type]


MARKOV = [105, 6, 1, 161, 166, 2, 61, 2, 61, 108, 70, 13]


def test_nothing_predicts_the_generated_language_better_than_its_entropy() -> None:
    """The law that generated it reaches its entropy; what sees no context lies between that and the uniform model."""
    got = text.load("embedded", 40, 200_000, 50_000)
    counts = torch.zeros(40, 40, dtype=torch.float64)
    counts.index_put_((got.train[:-1], got.train[1:]), torch.ones(1, dtype=torch.float64), accumulate=True)
    law = (counts + 0.01) / (counts + 0.01).sum(1, keepdim=True)
    bigram = float(-law.log()[got.val[:-1], got.val[1:]].mean())
    assert got.entropy is not None
    assert bigram == pytest.approx(got.entropy, abs=0.02)
    assert got.entropy < bigram + 0.01 < text.unigram(got) - 0.1 < text.uniform(got) - 0.2
    frequent = torch.bincount(got.train, minlength=40).double()
    slope = np.polyfit(np.log(np.arange(1, 41)), np.log(np.sort(frequent.numpy())[::-1]), 1)[0]
    assert -1.6 < slope < -0.7  # Zipf


def test_streams_are_read_side_by_side() -> None:
    assert text.streams(torch.arange(11), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(GradtuneError, match="5 words cannot be read as 3 streams"):
        text.streams(torch.arange(5), 3)
    with pytest.raises(GradtuneError, match="too short for a piece of 10"):
        LanguageModelling(text.load("embedded", 20, 40, 40), [0], 4, 1, 10, 4)
