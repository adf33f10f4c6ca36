"""TinyStories' loader on a tiny folder in the form of the release: stories, tokens, what is kept, what is wrong."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from gradtune.errors import GradtuneError
from gradtune_book.data import manifest, tinystories
from gradtune_book.data.tinystories import BYTES, FILES, SEPARATOR

STORIES = ["Once upon a time, there was a cat.\n\nThe cat sat.", "Tom said, “Hello!”", "The end."]


def write(folder: Path, part: str, stories: list[str]) -> None:
    """Write stories as the release has them: each closed by a line with the separator."""
    text = "".join(f"{story}\n{SEPARATOR}\n" for story in stories)
    (folder / FILES[part]).write_bytes(text.encode("utf-8"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADTUNE_DATA", str(tmp_path))
    made = tmp_path / "tinystories"
    made.mkdir()
    write(made, "train", STORIES * 40)
    write(made, "valid", STORIES[:2])
    return made


def test_stories_are_told_apart_wherever_a_piece_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (64, 70, 2**20):
        monkeypatch.setattr(tinystories, "_LONGEST", size)
        assert list(tinystories.stories(folder / FILES["train"])) == STORIES * 40


def test_bytes_are_the_text_again_and_stay_on_the_disk(folder: Path) -> None:
    found = tinystories.load(BYTES)
    numbers = found.test.long().tolist()
    assert numbers[0] == 256 and numbers.count(256) == 2
    assert bytes(numbers[1 : numbers.index(256, 1)]).decode() == STORIES[0]
    assert found.train.dtype == torch.uint16 and found.vocabulary == 257
    place = folder / "tokens-257"
    assert (place / "train.uint16").stat().st_size == 2 * len(found.train)
    assert str(place / "train.uint16") in Path("/proc/self/maps").read_text()  # mapped, not read
    assert found.caption == f"TinyStories, {len(found.train)} training tokens, vocabulary 257"
    assert len(tinystories.load(BYTES, tokens=10, val_tokens=5).train) == 10


def test_tokens_are_made_once_and_anew_when_a_file_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tinystories.load(BYTES)
    with monkeypatch.context() as patched:
        patched.setattr(tinystories, "_make", None)
        assert tinystories.load(BYTES).sha256 == first.sha256
    write(folder, "valid", STORIES)
    changed = tinystories.load(BYTES)
    assert changed.sha256 != first.sha256 and len(changed.test) > len(first.test)
    expected, damaged = changed.test.tolist(), folder / "tokens-257" / "valid.uint16"
    damaged.write_bytes(bytes([7]) * damaged.stat().st_size)
    assert tinystories.load(BYTES).test.tolist() == expected
    (folder / "tokens-257" / "about.json").write_text("{")
    assert tinystories.load(BYTES).sha256 == changed.sha256
    assert not list(folder.glob("*/.*.part"))


def test_an_interrupt_leaves_nothing_that_a_later_call_trusts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object, stories: list[str]) -> list[list[int]]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tinystories.Bytes, "numbers", interrupted)
        tinystories.load(BYTES)
    assert not list((folder / "tokens-257").iterdir())
    assert len(tinystories.load(BYTES).test) > 0


def needs_tokenizers() -> None:
    if find_spec("tokenizers") is None:
        pytest.skip("the package tokenizers is not installed")


def test_bpe_is_trained_on_the_text_and_kept(folder: Path) -> None:
    needs_tokenizers()
    from tokenizers import Tokenizer

    found = tinystories.load(300)
    tokenizer = Tokenizer.from_file(str(folder / "tokens-300" / "tokenizer.json"))
    start = tokenizer.token_to_id(SEPARATOR)
    ids = found.test.long().tolist()
    assert ids[0] == start and ids.count(start) == 2 and found.vocabulary == tokenizer.get_vocab_size() <= 300
    assert tokenizer.decode(ids[1 : ids.index(start, 1)]) == STORIES[0]
    assert len(ids) < len(tinystories.load(BYTES).test)
    kept = (folder / "tokens-300" / "tokenizer.json").read_bytes()
    (folder / "tokens-300" / "about.json").unlink()
    assert tinystories.load(300).sha256 == found.sha256
    assert (folder / "tokens-300" / "tokenizer.json").read_bytes() == kept


def test_a_tokenizer_of_the_users_own_comes_first(folder: Path) -> None:
    needs_tokenizers()
    before = tinystories.load(300)
    kept = json.loads((folder / "tokens-300" / "tokenizer.json").read_text())
    kept["added_tokens"][0]["content"] = "<s>"  # as Llama's has it
    kept["model"]["vocab"] = {("<s>" if t == SEPARATOR else t): n for t, n in kept["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(kept))
    found = tinystories.load(300)
    assert found.test.tolist() == before.test.tolist() and found.sha256 != before.sha256
    with pytest.raises(GradtuneError, match=r"tokenizer.json has \d+ tokens; ask for a vocabulary of as many, not 258"):
        tinystories.load(258)
    kept["added_tokens"][0]["content"] = "<start>"
    kept["model"]["vocab"] = {("<start>" if t == "<s>" else t): n for t, n in kept["model"]["vocab"].items()}
    (folder / "tokenizer.json").write_text(json.dumps(kept))
    with pytest.raises(GradtuneError, match="none of them"):
        tinystories.load(300)
    (folder / "tokenizer.json").write_text("nothing")
    with pytest.raises(GradtuneError, match="is no tokenizer of the package tokenizers"):
        tinystories.load(300)


def test_what_is_absent_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tinystories.need() == "tinystories"
    with pytest.raises(GradtuneError, match="a vocabulary of 70000 was asked of TinyStories; expected 257"):
        tinystories.load(70_000)
    with pytest.raises(GradtuneError, match=r"1000000 tokens were asked of \d+ in .*train.uint16; expected 1 to"):
        tinystories.load(BYTES, 1_000_000)
    monkeypatch.setattr(tinystories, "find_spec", lambda name: None)
    with pytest.raises(GradtuneError, match="needs the package tokenizers, which is not installed; pip install tok"):
        tinystories.load(32_000)
    (folder / FILES["valid"]).unlink()
    with pytest.raises(GradtuneError, match=r"TinyStories is not in .*; download TinyStoriesV2-GPT4-valid.txt from"):
        tinystories.load(BYTES)


def test_what_is_wrong_with_a_file_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = folder / FILES["train"]
    train.write_bytes(b"\xff\xfe" + SEPARATOR.encode())
    with pytest.raises(GradtuneError, match=r"is not UTF-8 text \(byte 0 of the story"):
        tinystories.load(BYTES)
    train.write_bytes(b" \n")
    with pytest.raises(GradtuneError, match="has no story"):
        tinystories.load(BYTES)
    monkeypatch.setattr(tinystories, "_LONGEST", 100)
    train.write_bytes(b"word " * 100)
    with pytest.raises(GradtuneError, match="has a story of more than 100 bytes; expected stories that end with"):
        tinystories.load(BYTES)


def test_a_folder_that_cannot_be_written_is_said(folder: Path) -> None:
    (folder / "tokens-257").write_text("a file in the place of the folder")
    with pytest.raises(GradtuneError, match="tokens-257 cannot be written"):
        tinystories.load(BYTES)


def test_the_books_cache_sees_the_files(folder: Path) -> None:
    assert any(name == f"tinystories/{FILES['train']}" for name, _, _ in manifest.surface())
