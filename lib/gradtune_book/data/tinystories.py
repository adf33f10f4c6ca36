"""TinyStories as it is released: two text files of short stories, read as numbers of tokens, and never loaded whole.

The files `TinyStoriesV2-GPT4-train.txt` and `TinyStoriesV2-GPT4-valid.txt` lie in the folder `tinystories` below the
data root. Each story ends with `<|endoftext|>`. The first use writes the tokens of both files beside them, two bytes a
token; all uses map these into memory, so that a training reads from the disk what it draws.

A vocabulary of 257 is bytes and the separator, which needs nothing else. A larger one is byte-level BPE by the package
`tokenizers`: that of `tinystories/tokenizer.json` where the user has put one there, such as Llama's, and else one that
is trained on the first 100 MB of the training text.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gradtune.errors import GradtuneError
from gradtune_book import paths
from gradtune_book.data import manifest
from gradtune_book.data.text import Text

FOLDER, SEPARATOR, BYTES = "tinystories", "<|endoftext|>", 257
FILES = {"train": "TinyStoriesV2-GPT4-train.txt", "valid": "TinyStoriesV2-GPT4-valid.txt"}
SOURCE = "https://huggingface.co/datasets/roneneldan/TinyStories"

_LONGEST = 2**20  # bytes of a story; the longest of the release has a few thousand
_SAMPLE = 100 * 2**20  # bytes of the training text that BPE is trained on
_TOGETHER = 1000  # stories
_STARTS = (SEPARATOR, "<s>", "<bos>")  # tokens that may stand at the start of a story


class Tokenizer(Protocol):
    """What turns stories into tokens.

    Attributes:
        size: Number of different tokens.
        start: Number of the token that begins a story.
    """

    size: int
    start: int

    def numbers(self, stories: list[str]) -> list[list[int]]:
        """Return the tokens of each story, without the one that begins it."""


class Bytes:
    """A token a byte of UTF-8, and 256 for the start of a story."""

    size, start = BYTES, BYTES - 1

    def numbers(self, stories: list[str]) -> list[list[int]]:
        return [list(story.encode("utf-8")) for story in stories]


class BPE:
    """A tokenizer of the package `tokenizers`.

    Args:
        file: A `tokenizer.json`.

    Raises:
        GradtuneError: The file is no such thing, has no token for the start of a story, or more than two bytes count.
    """

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer as Read

        try:
            self._found = Read.from_file(str(file))
        except Exception as error:  # the package raises nothing narrower
            raise GradtuneError(f"{file} is no tokenizer of the package tokenizers ({error}); remove it") from error
        starts = [n for n in map(self._found.token_to_id, _STARTS) if n is not None]
        self.size = self._found.get_vocab_size()
        if not starts or self.size > 2**16:
            raise GradtuneError(
                f"{file} has {self.size} tokens, {'' if starts else 'none of them '}{' or '.join(_STARTS)}; "
                f"expected at most {2**16}, one of them for the start of a story"
            )
        self.start = starts[0]

    def numbers(self, stories: list[str]) -> list[list[int]]:
        return [each.ids for each in self._found.encode_batch(stories, add_special_tokens=False)]


def need() -> str:
    """Return the name of the set if its files are there.

    Raises:
        GradtuneError: One is absent. The error says how to get it.
    """
    absent = [name for name in FILES.values() if not (_folder() / name).is_file()]
    if absent:
        raise GradtuneError(
            f"TinyStories is not in {_folder()}; download {' and '.join(absent)} from {SOURCE} into that folder, "
            "or point GRADTUNE_DATA at a folder that has them"
        )
    return FOLDER


def load(vocabulary: int, tokens: int | None = None, val_tokens: int | None = None) -> Text:
    """Return the text; its parts are tensors of `torch.uint16` on the CPU that are mapped from files.

    The release has no test part: its second file both validates and tests.

    The first call for a vocabulary reads both files: some minutes, and two bytes of the disk for each of about 600
    million tokens. Later calls read the files once for their digests, some seconds.

    Args:
        vocabulary: Number of tokens at most: 257 for bytes, else up to 65,536.
        tokens: Number of training tokens, the first ones. None stands for all.
        val_tokens: Number of tokens of the other part. None stands for all.

    Raises:
        GradtuneError: The files are absent, are not what the release has, or cannot be written beside; the package
            `tokenizers` is needed and not installed; or more tokens are asked for than there are.
    """
    _check(vocabulary)
    place = _folder() / f"tokens-{vocabulary}"
    about = _about(place)
    if about is None:
        try:
            about = _make(place, vocabulary)
        except OSError as error:
            raise GradtuneError(
                f"{place} cannot be written ({error.strerror}); free space, or set GRADTUNE_DATA to a folder that can"
            ) from error
    train, valid = (
        _mapped(_tokens_file(place, part), about["tokens"][part], wanted)
        for part, wanted in (("train", tokens), ("valid", val_tokens))
    )
    caption = f"TinyStories, {len(train)} training tokens, vocabulary {about['vocabulary']}"
    return Text(train, valid, valid, about["vocabulary"], caption, FOLDER, (), None, about["digest"])


def stories(file: Path) -> Iterator[str]:
    """Yield the stories of a file in its order, without blanks around them; the file is read piece by piece.

    Raises:
        GradtuneError: A story has more than a million bytes, as where the separator is missing, or is not UTF-8; or
            there is none.
    """
    mark, rest, found = SEPARATOR.encode(), b"", False
    with file.open("rb") as source:
        while piece := source.read(_LONGEST):
            *whole, rest = (rest + piece).split(mark)
            for each in whole:
                if story := _decoded(each, file):
                    found = True
                    yield story
            if len(rest) > _LONGEST:
                raise GradtuneError(
                    f"{file} has a story of more than {_LONGEST} bytes; expected stories that end with {SEPARATOR}"
                )
    if story := _decoded(rest, file):
        found = True
        yield story
    if not found:
        raise GradtuneError(f"{file} has no story; download it again from {SOURCE}")


def _decoded(story: bytes, file: Path) -> str:
    try:
        return story.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise GradtuneError(
            f"{file} is not UTF-8 text (byte {error.start} of the story that begins {story[:20]!r}); "
            f"download it again from {SOURCE}"
        ) from error


def _folder() -> Path:
    return paths.data_root() / FOLDER


def _check(vocabulary: int) -> None:
    need()
    if not BYTES <= vocabulary <= 2**16:
        raise GradtuneError(
            f"a vocabulary of {vocabulary} was asked of TinyStories; expected {BYTES} (bytes) to {2**16}"
        )
    if vocabulary > BYTES and find_spec("tokenizers") is None:
        raise GradtuneError(
            f"a vocabulary of {vocabulary} needs the package tokenizers, which is not installed; "
            f"pip install tokenizers, or ask for {BYTES}, which is bytes"
        )
    if sys.byteorder != "little":
        raise GradtuneError("the tokens of TinyStories are kept with the low byte first, which this machine has last")


def _texts() -> dict[str, str]:
    """Digests of what the tokens are made from: the two files, and the user's tokenizer where there is one."""
    named = [*FILES.values(), "tokenizer.json"]
    return {name: manifest.digest_of(_folder() / name) for name in named if (_folder() / name).is_file()}


def _tokens_file(place: Path, part: str) -> Path:
    return place / f"{part}.uint16"


def _about(place: Path) -> dict[str, Any] | None:
    """Return what is written about tokens that are whole and belong to the files as they are now, else None."""
    try:
        about: dict[str, Any] = json.loads((place / "about.json").read_text(encoding="utf-8"))
        digests = {part: manifest.digest_of(_tokens_file(place, part)) for part in FILES}
        belongs = about["texts"] == _texts() and about["digest"] == _digest(about["texts"], digests)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if belongs else None


def _digest(texts: dict[str, str], tokens: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([texts, tokens], sort_keys=True).encode()).hexdigest()


def _make(place: Path, vocabulary: int) -> dict[str, Any]:
    """Write the tokens of both files; `about.json` comes last, so that what an interrupt leaves is made anew."""
    place.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(place, vocabulary)
    counts, digests = {}, {}
    for part, name in FILES.items():
        counts[part], digests[part] = _write(_tokens_file(place, part), _folder() / name, tokenizer)
    texts = _texts()
    about = {"texts": texts, "tokens": counts, "vocabulary": tokenizer.size, "digest": _digest(texts, digests)}
    with _replaced(place / "about.json") as part_file:
        part_file.write_text(json.dumps(about, indent=1), encoding="utf-8")
    return about


def _tokenizer(place: Path, vocabulary: int) -> Tokenizer:
    """Return bytes, the user's tokenizer, or one that is trained on the start of the training text and kept."""
    if vocabulary == BYTES:
        return Bytes()
    given = _folder() / "tokenizer.json"
    if given.is_file():
        if (found := BPE(given)).size > vocabulary:
            raise GradtuneError(f"{given} has {found.size} tokens; ask for a vocabulary of as many, not {vocabulary}")
        return found
    with _replaced(place / "tokenizer.json") as part_file:
        _trained(_first(stories(_folder() / FILES["train"]), _SAMPLE), vocabulary).save(str(part_file))
    return BPE(place / "tokenizer.json")


def _trained(texts: Iterable[str], vocabulary: int) -> Any:
    """Return byte-level BPE that is trained on texts; the same texts give the same tokenizer."""
    from tokenizers import Tokenizer as Empty
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = Empty(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return made


def _first(texts: Iterable[str], size: int) -> Iterator[str]:
    for each in texts:
        yield each
        size -= len(each)
        if size <= 0:
            return


def _write(file: Path, source: Path, tokenizer: Tokenizer) -> tuple[int, str]:
    """Write the tokens of a text; return how many, and their digest."""
    count, digest = 0, hashlib.sha256()
    texts = iter(tqdm(stories(source), desc=f"tokens of {source.name}", unit=" stories", disable=None))
    with _replaced(file) as part_file, part_file.open("wb") as out:
        while some := list(islice(texts, _TOGETHER)):
            numbers = [n for each in tokenizer.numbers(some) for n in (tokenizer.start, *each)]
            content = np.array(numbers, dtype="<u2").tobytes()
            count += len(numbers)
            digest.update(content)
            out.write(content)
    return count, digest.hexdigest()


@contextmanager
def _replaced(file: Path) -> Iterator[Path]:
    """Give a name to write under; what was written gets the file's name if all goes well, and else is removed."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _mapped(file: Path, count: int, wanted: int | None) -> Tensor:
    if wanted is not None and not 1 <= wanted <= count:
        raise GradtuneError(f"{wanted} tokens were asked of {count} in {file}; expected 1 to {count}, or None")
    return torch.from_file(str(file), shared=False, size=wanted or count, dtype=torch.uint16)
