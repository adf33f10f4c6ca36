"""Word-level language modelling by an LSTM with dropout, whose keep probability is a hyperparameter.

The task is that of the Clip paper, Section 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from gradtune.errors import GradtuneError
from gradtune.nets.draws import Draws
from gradtune.nets.plain import KEEP, LanguageModel
from gradtune.nets.stacked_lstm import StackedLanguageModel, State
from gradtune.recursion.problems import Problem
from gradtune_book.data.text import Text, streams

_STREAMS = 20  # that a text is read as when it is evaluated


class LanguageModelling:
    """Cross entropy (nats) of R LSTM language models on pieces of `unrolled` words of `batch_size` streams.

    The training loss is summed over the words of a piece and averaged over the streams, as learning rates and gradient
    norms of Zaremba et al. (2014) are meant. Validation and evaluation are averages over words.

    Piece t follows piece t - 1, and so does the LSTM's state, which is a constant there. After the last piece the text
    starts again, from the zero state (Zaremba et al. 2014). So steps must be taken in order; the last two can be taken
    again. Step 0 after later ones begins another training.

    The training loss reads the hyperparameter "keep". Its masks are a function of (seed of the run, t), hence coupled
    between keep probabilities. The validation loss has no dropout, and each of its pieces starts from the zero state.

    Args:
        text: The text.
        seeds: One a run, for its initial weights and its masks.
        hidden: Width of the embedding and of each LSTM layer.
        layers: Number of LSTM layers.
        unrolled: Number of words of a piece.
        batch_size: Number of streams that a text is read as, in training and validation.
        dtype: Type of the weights.

    Attributes:
        net: The R nets, a `StackedLanguageModel`.
        layout: Where each parameter lies in the weights of a net.
        stationary: False, as the losses depend on t.

    Raises:
        GradtuneError: The training or the validation part is too short for one piece.
    """

    stationary = False

    def __init__(
        self,
        text: Text,
        seeds: Sequence[int],
        hidden: int = 650,
        layers: int = 2,
        unrolled: int = 35,
        batch_size: int = 20,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.text, self.seeds, self.unrolled, self.dtype = text, list(seeds), unrolled, dtype
        self.net = StackedLanguageModel(text.vocabulary, hidden, layers)
        self.layout = self.net.layout
        self._train, self._val = (self._pieces(part, batch_size) for part in (text.train, text.val))
        self._states: dict[int, State] = {}
        self._drawn: tuple[int, list[Tensor]] | None = None

    def _pieces(self, tokens: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Pairs (words, words that follow them), each `[T, B]`, in the order of the text."""
        rows, length = streams(tokens, batch_size), self.unrolled
        count = (rows.shape[1] - 1) // length
        if not count:
            raise GradtuneError(
                f"{len(tokens)} words make {batch_size} streams of {rows.shape[1]}, too short for a piece of {length} "
                "and the word after it; use fewer streams or shorter pieces"
            )
        parts = (rows[:, k * length : (k + 1) * length + 1].T.contiguous() for k in range(count))
        return [(part[:-1], part[1:]) for part in parts]

    def init(self, bound: float = 0.05) -> Tensor:
        """Initial weights `[R, D]` from U(-bound, bound), a row for each seed; drawn on the CPU in float32."""
        rows = [torch.rand(sum(self.layout.sizes), generator=torch.Generator().manual_seed(s)) for s in self.seeds]
        return ((2 * torch.stack(rows) - 1) * bound).to(self.text.train.device, self.dtype)

    def pytorch_init(self) -> Tensor:
        """Initial weights `[R, D]` as PyTorch draws them, a row for each seed; drawn on the CPU in float32.

        Those of the embedding are normal, and of a layer of h units uniform between -1 / sqrt(h) and 1 / sqrt(h).
        """
        rows = []
        with torch.random.fork_rng(devices=[]):
            for seed in self.seeds:
                torch.manual_seed(seed)
                module = LanguageModel(self.text.vocabulary, self.net.hidden, self.net.layers)
                rows.append(self.layout.flatten(dict(module.named_parameters())).detach())
        return torch.stack(rows).to(self.text.train.device, self.dtype)

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Losses `[R]`, summed over the words, of piece t with dropout at `lam["keep"] [R, 1]` (without it: none).

        Raises:
            GradtuneError: The state before piece t is not known, as steps were not taken in order. Or a keep
                probability lies outside (0, 1], which is looked at on a CPU only.
        """
        tokens, targets = self._train[t % len(self._train)]
        uniforms = self._uniforms(tokens, t) if "keep" in lam else []
        losses, after = self._trained(w, lam, tokens, targets, self._state(w, tokens, t), uniforms)
        if t + 1 not in self._states:
            self.take_over(t + 1, after)
        return losses

    def _trained(
        self,
        w: Tensor,
        lam: Mapping[str, Tensor],
        tokens: Tensor,
        targets: Tensor,
        state: State,
        uniforms: list[Tensor],
    ) -> tuple[Tensor, State]:
        masks = self._masks(uniforms, lam["keep"]) if "keep" in lam else None
        losses, after = self.net(w, tokens, targets, state, masks)
        return self._over_words(losses, len(tokens)), (after[0].detach(), after[1].detach())

    def _over_words(self, losses: Tensor, words: int) -> Tensor:
        return losses * words

    def batch(self, t: int) -> tuple[Tensor, ...]:
        """Words and the words after them in training and validation, the state before, and the numbers of dropout."""
        tokens, targets = self._train[t % len(self._train)]
        like = tokens.new_empty(len(self.seeds), 0, dtype=self.dtype)
        state, uniforms = self._state(like, tokens, t), self._uniforms(tokens, t)
        return (tokens, targets, *self._val[t % len(self._val)], *state, *uniforms)

    def on(self, batch: tuple[Tensor, ...]) -> Problem:
        """The losses on the tensors of `batch`, whatever t."""
        return OnPiece(self, batch)

    def handed_on(self, step: Problem) -> tuple[Tensor, ...]:
        """The state after a step's piece."""
        assert isinstance(step, OnPiece) and step.after is not None
        return step.after

    def take_over(self, t: int, left: tuple[Tensor, ...]) -> None:
        """Go on at step t from the state after the step before."""
        kept = {k: s for k, s in self._states.items() if k >= t - 2}
        self._states = kept | {t: (left[0], left[1])}

    def _state(self, w: Tensor, tokens: Tensor, t: int) -> State:
        if t == 0 and max(self._states, default=0) > 2:  # further back than steps are taken again: another training
            self._states = {}
        if t % len(self._train) == 0:
            return self.net.zero_state(w, tokens.shape[1])
        if t not in self._states:
            raise GradtuneError(
                f"the state before piece {t} of the text is not known; take the steps in order from a piece whose "
                f"number is a multiple of {len(self._train)}, where the text starts"
            )
        return self._states[t]

    def _masks(self, uniforms: list[Tensor], keep: Tensor) -> list[Tensor]:
        KEEP.check(keep)
        keep = keep.detach().reshape(-1, 1, 1, 1)
        return [(u < keep).to(u.dtype) / keep for u in uniforms]

    def _uniforms(self, tokens: Tensor, t: int) -> list[Tensor]:
        """Numbers from `U[0, 1)` for each place of dropout `[R, T, B, hidden]`: those of the module under `batched`."""
        if self._drawn is None or self._drawn[0] != t:
            device = tokens.device
            generators = Draws(self.seeds, t).generators(device)
            shape = (*tokens.shape, self.net.hidden)
            draws = [
                torch.stack([torch.rand(shape, generator=g, dtype=self.dtype, device=device) for g in generators])
                for _ in range(self.net.layers + 1)
            ]
            self._drawn = t, draws
        return self._drawn[1]

    def state(self) -> dict[int, list[Tensor]]:
        """Return the LSTM's states before the last pieces, without which training does not go on in the middle."""
        return {t: list(each) for t, each in self._states.items()}

    def go_on(self, earlier: Mapping[int, Sequence[Tensor]]) -> None:
        """Go on in the middle of the text with what `state` gave."""
        device = self.text.train.device
        self._states = {t: (hidden.to(device), cell.to(device)) for t, (hidden, cell) in earlier.items()}

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        """Losses `[R]` of validation piece t, without dropout, from the zero state."""
        tokens, targets = self._val[t % len(self._val)]
        return self.net(w, tokens, targets, self.net.zero_state(w, tokens.shape[1]))[0]

    @torch.no_grad()
    def evaluate(self, w: Tensor, part: str, most: int | None = None) -> Tensor:
        """Mean cross entropy `[R]` on a part of the text, without dropout.

        The part is read as 20 streams, and the state goes on through it.

        Args:
            w: Weights `[R, D]`.
            part: "train", "val" or "test".
            most: Number of words, the first of the part. None stands for all.

        Raises:
            GradtuneError: There are fewer than 40 words.
        """
        rows = streams(getattr(self.text, part)[:most], _STREAMS)
        state, total, length = self.net.zero_state(w, _STREAMS), w.new_zeros(len(w)), rows.shape[1] - 1
        for start in range(0, length, self.unrolled):
            piece = rows[:, start : min(start + self.unrolled, length) + 1].T
            losses, state = self.net(w, piece[:-1], piece[1:], state)
            total += losses * (len(piece) - 1)
        return total / length


class AveragedLanguageModelling(LanguageModelling):
    """The same, with a training loss that is averaged over the words of a piece as well as over the streams."""

    def _over_words(self, losses: Tensor, words: int) -> Tensor:
        return super()._over_words(losses, words) / words


class OnPiece:
    """The losses of a `LanguageModelling` on one piece of the text.

    Args:
        task: Whose losses they are.
        batch: As `task.batch` gives it.

    Attributes:
        stationary: True, as the losses do not depend on t.
        after: The state after the piece, at the weights at which the training loss was first asked for.
    """

    stationary = True

    def __init__(self, task: LanguageModelling, batch: tuple[Tensor, ...]) -> None:
        self.task, self.after = task, cast(State | None, None)
        self._tokens, self._targets, self._val_tokens, self._val_targets = batch[:4]
        self._state, self._uniforms = (batch[4], batch[5]), list(batch[6:])

    def train_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        losses, after = self.task._trained(w, lam, self._tokens, self._targets, self._state, self._uniforms)
        self.after = after if self.after is None else self.after
        return losses

    def val_loss(self, w: Tensor, lam: Mapping[str, Tensor], t: int) -> Tensor:
        zero = self.task.net.zero_state(w, self._val_tokens.shape[1])
        return self.task.net(w, self._val_tokens, self._val_targets, zero)[0]


def paper_size(vocabulary: int = 10_000) -> int:
    """Number of weights of the Clip paper's net, the medium one of Zaremba et al. (2014)."""
    with torch.device("meta"):
        return sum(p.numel() for p in LanguageModel(vocabulary, 650, 2).parameters())


def perplexity(loss: float) -> float:
    """Perplexity of a cross entropy in nats a word: its exponential."""
    return math.exp(loss)


def bits(loss: float) -> float:
    """Bits a word of a cross entropy in nats a word."""
    return loss / math.log(2)
