"""Text as word numbers: Penn Treebank, or a generated Markov language whose entropy is known and which needs no file.

A language model's loss is the mean cross entropy of the next word, in nats. Its perplexity is exp(loss), its bits per
word are loss / log 2. The losses `unigram` and `uniform` are marks that a working model must pass. The entropy of the
generated language is the one that no model can pass.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradtune.errors import GradtuneError, unknown
from gradtune_book.data import datasets

SETS = ("markov", "ptb")
UNKNOWN, END = "<unk>", "<eos>"


@dataclass(frozen=True)
class Text:
    """A text as word numbers, in three parts.

    Attributes:
        train: Word numbers `[N]` of the training part, below `vocabulary`.
        val: Word numbers of the validation part.
        test: Word numbers of the test part.
        vocabulary: Size of the vocabulary.
        caption: Name and size of the set, for captions.
        name: Name of the set, one of `SETS`.
        words: The words by number.
        entropy: Entropy of the next word given all before, in nats, for a generated language. No model has a lower
            expected loss. None for other texts.
        sha256: Digest of the set's files, "" for the generated language.
    """

    train: Tensor
    val: Tensor
    test: Tensor
    vocabulary: int
    caption: str
    name: str
    words: tuple[str, ...]
    entropy: float | None = None
    sha256: str = ""

    def merged(self) -> Text:
        """Return the text whose training part goes on with the validation part, which stays what it is."""
        return replace(self, train=torch.cat([self.train, self.val]))


def resolve(data: str) -> str:
    """Return the name of the set that a notebook uses.

    Args:
        data: "embedded" is the generated language. "auto" is Penn Treebank where any of its files is present, else the
            generated language. Otherwise a name in `SETS`.

    Raises:
        GradtuneError: `data` is an unknown name, or Penn Treebank is asked for by name and absent.
    """
    if data not in (*SETS, "auto", "embedded"):
        raise unknown("text", data, [*SETS, "auto", "embedded"])
    if data == "auto":
        return "markov" if datasets.state("ptb") == "missing" else "ptb"
    return datasets.resolve(data, data, "") if data == "ptb" else "markov"


def load(
    data: str,
    vocabulary: int | None = None,
    tokens: int | None = None,
    val_tokens: int | None = None,
    device: torch.device | str = "cpu",
) -> Text:
    """Load a text, cut to its first words.

    Args:
        data: Name of the set, as `resolve` takes it.
        vocabulary: Number of words that are known. Of Penn Treebank the commonest of all training words are kept, so
            that words of a cut training part are no better known than those of the others; the rest becomes `<unk>`.
            None stands for all 10,000, or for 200 of the generated language, which has at least 10.
        tokens: Number of training words. None stands for all, or for 20,000 of the generated language.
        val_tokens: Number of validation words, and of test words. None stands for all, or for 4,000 of the generated
            language.
        device: Device of the word numbers.

    Raises:
        GradtuneError: The name is unknown, files are absent, damaged or wrongly encoded, or a vocabulary or a length is
            asked for that the text does not have.
    """
    if resolve(data) == "markov":
        given = zip((vocabulary, tokens, val_tokens), (200, 20_000, 4_000))
        return _moved(_markov(*(default if x is None else x for x, default in given)), device)
    names = {Path(path).stem.split(".")[-1]: path for path in datasets.files("ptb")}
    train, val, test = (
        _words(datasets.content("ptb", names[part]), names[part]) for part in ("train", "valid", "test")
    )
    parts = [_cut(train, tokens), _cut(val, val_tokens), _cut(test, val_tokens)]
    words = commonest(train, vocabulary)
    number = {w: k for k, w in enumerate(words)}
    tensors = [numbers(part, number) for part in parts]
    size = f"{len(parts[0])} of its {len(train)}" if len(parts[0]) < len(train) else str(len(train))
    caption = f"Penn Treebank, {size} training words, vocabulary {len(words)}"
    return _moved(
        Text(tensors[0], tensors[1], tensors[2], len(words), caption, "ptb", words, None, datasets.digest("ptb")),
        device,
    )


def _moved(text: Text, device: torch.device | str) -> Text:
    return replace(text, train=text.train.to(device), val=text.val.to(device), test=text.test.to(device))


def _words(content: bytes, path: str) -> list[str]:
    """The words of a text file, every line closed by `<eos>`."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise GradtuneError(
            f"{path} is not UTF-8 text (byte {error.start}); expected one sentence a line, words separated by blanks"
        ) from error
    return list(chain.from_iterable([*line.split(), END] for line in lines))


def _cut(words: list[str], count: int | None) -> list[str]:
    if count is not None and not 1 <= count <= len(words):
        raise GradtuneError(f"{count} words were asked of a text of {len(words)}; expected 1 to {len(words)}, or None")
    return words[:count]


def commonest(words: Sequence[str], vocabulary: int | None) -> tuple[str, ...]:
    """Return the words that a model knows, the commonest first and equally common ones in alphabetical order.

    Args:
        words: Words of a text.
        vocabulary: How many words are known. None stands for all that occur. If words have to be left out, `<unk>` is
            one of the `vocabulary` words, and the first.

    Raises:
        GradtuneError: The text does not have as many different words, or `vocabulary` is below 2.
    """
    counts = Counter(words)
    if vocabulary is not None and not 2 <= vocabulary <= len(counts):
        raise GradtuneError(
            f"a vocabulary of {vocabulary} words was asked of a text with {len(counts)} different ones; expected 2 to "
            f"{len(counts)}, or None for all"
        )
    order = sorted(counts, key=lambda w: (-counts[w], w))
    if vocabulary in (None, len(counts)):
        return tuple(order)
    kept = [w for w in order if w != UNKNOWN][: (vocabulary or len(order)) - 1]
    return (UNKNOWN, *kept)


def numbers(words: Sequence[str], number: dict[str, int]) -> Tensor:
    """Return word numbers `[N]`; words without one get that of `<unk>`.

    Args:
        words: Words of a text.
        number: Number of each word of the vocabulary.

    Raises:
        GradtuneError: A word has no number, and `<unk>` has none either.
    """
    rest = number.get(UNKNOWN)
    found = [number.get(w, rest) for w in words]
    if None in found:
        word = words[found.index(None)]
        raise GradtuneError(
            f"the word {word!r} is not among the {len(number)} of the vocabulary, and {UNKNOWN} is not either; "
            "ask for a smaller vocabulary, which has it"
        )
    return torch.tensor(found)


@lru_cache(maxsize=4)
def _markov(vocabulary: int, tokens: int, val_tokens: int) -> Text:
    """Generate a text from a first-order Markov chain.

    With probability 0.3 the next word is drawn from Zipf's law, p(k) ~ 1 / (k + 1), else uniformly from 8 successors of
    the word, which were themselves drawn from Zipf's law.
    """
    if vocabulary < 10 or min(tokens, val_tokens) < 1:
        raise GradtuneError(
            f"vocabulary = {vocabulary}, tokens = {tokens}, val_tokens = {val_tokens}; expected at least 10, 1 and 1"
        )
    random = np.random.RandomState(0)
    zipf = 1 / np.arange(1, vocabulary + 1)
    zipf /= zipf.sum()
    table = np.tile(0.3 * zipf, (vocabulary, 1))
    for row in table:
        np.add.at(row, random.choice(vocabulary, 8, p=zipf), 0.7 / 8)
    steps = np.minimum(np.cumsum(table, axis=1), 1.0)
    chain_of, word = np.empty(tokens + 2 * val_tokens, dtype=np.int64), 0
    for k, u in enumerate(random.uniform(size=len(chain_of))):
        word = min(int(np.searchsorted(steps[word], u, side="right")), vocabulary - 1)
        chain_of[k] = word
    train, val, test = np.split(chain_of, [tokens, tokens + val_tokens])
    caption = f"generated Markov language (embedded stand-in), {tokens} training words, vocabulary {vocabulary}"
    words = tuple(f"w{k}" for k in range(vocabulary))
    parts = [torch.from_numpy(part) for part in (train, val, test)]
    return Text(parts[0], parts[1], parts[2], vocabulary, caption, "markov", words, _entropy(table))


def _entropy(table: np.ndarray) -> float:
    """Entropy rate in nats of a chain with transition probabilities `table [V, V]`."""
    share = np.full(len(table), 1 / len(table))
    for _ in range(200):
        share = share @ table
    return float(-(share[:, None] * table * np.log(table)).sum())


def unigram(text: Text, part: str = "val") -> float:
    """Return the cross entropy in nats of a part under the word frequencies of the training part.

    Each count is raised by one. This is what a model that sees no context reaches.

    Args:
        text: The text.
        part: "train", "val" or "test".
    """
    counts = torch.bincount(text.train, minlength=text.vocabulary).double() + 1
    return float(-(counts / counts.sum()).log()[getattr(text, part)].mean())


def uniform(text: Text) -> float:
    """Return the cross entropy in nats of a model that knows nothing: log of the vocabulary."""
    return math.log(text.vocabulary)


def streams(tokens: Tensor, count: int) -> Tensor:
    """Cut a text into pieces of equal length, to be read side by side; the rest is left out.

    Args:
        tokens: Word numbers `[N]`.
        count: Number of pieces.

    Returns:
        The pieces, `[count, N // count]`.

    Raises:
        GradtuneError: A piece would have fewer than 2 words.
    """
    length = len(tokens) // count
    if length < 2:
        raise GradtuneError(
            f"{len(tokens)} words cannot be read as {count} streams of at least 2; use fewer streams or more words"
        )
    return tokens[: count * length].view(count, length)
