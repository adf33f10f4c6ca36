"""A decoder in the style of Llama: RMSNorm, rotary positions, SwiGLU, no biases, and one matrix for words in and out.

It is the architecture of Karpathy's llama2.c, which MetaOptimize trains (Section 7.4): 288 wide, 6 layers, 6 heads and
256 words at most are its 15 million weights. It is an ordinary module; attention takes the backend that torch chooses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from gradtune.errors import GradtuneError


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        vocabulary: Number of words.
        width: Length of a word's vector, a multiple of twice `heads`.
        layers: Number of layers.
        heads: Attention heads of a layer.
        context: Number of words that are seen at most.
    """

    vocabulary: int
    width: int = 288
    layers: int = 6
    heads: int = 6
    context: int = 256

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.width, self.layers, self.heads, self.context) < 1 or self.width % (2 * self.heads):
            raise GradtuneError(f"{self}: expected positive numbers, and a width that is a multiple of 2 heads")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward part: 8/3 of the width, up to the next multiple of 32, as in llama2.c."""
        return -(-int(8 * self.width / 3) // 32) * 32


def rotations(context: int, length: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[context, length / 2]` of the angles `position 10000^(-2 k / length)`."""
    speeds = 10_000.0 ** (-torch.arange(0, length, 2, dtype=torch.float64) / length)
    angles = torch.arange(context, dtype=torch.float64)[:, None] * speeds
    return angles.cos().float(), angles.sin().float()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbouring coordinates of `x [..., words, length]` by its angle."""
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Causal self-attention with rotary positions.

    Args:
        shape: Sizes of the decoder.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.queries, self.keys, self.values, self.out = (
            nn.Linear(shape.width, shape.width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return `[rows, words, width]` for as much."""
        q, k, v = (
            each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.queries, self.keys, self.values)
        )
        mixed = scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v, is_causal=True)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return out


class SwiGLU(nn.Module):
    """The feed-forward part: `down(silu(gate(x)) up(x))`.

    Args:
        shape: Sizes of the decoder.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., width]` for as much."""
        out: Tensor = self.down(silu(self.gate(x)) * self.up(x))
        return out


class Layer(nn.Module):
    """Attention and the feed-forward part, each on normed vectors and added to what it was given.

    Args:
        shape: Sizes of the decoder.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.norm_attention, self.norm_forward = (nn.RMSNorm(shape.width, eps=1e-5) for _ in range(2))
        self.attention, self.forward_part = Attention(shape), SwiGLU(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return `[rows, words, width]` for as much."""
        x = x + self.attention(self.norm_attention(x), cos, sin)
        out: Tensor = x + self.forward_part(self.norm_forward(x))
        return out


class Decoder(nn.Module):
    """Words in, a number for each word that may follow out.

    Weights are drawn with a deviation of 0.02, those that end a layer's parts with `0.02 / sqrt(2 layers)`.

    Args:
        shape: Its sizes.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.words = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.next = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.next.weight = self.words.weight
        cos, sin = rotations(shape.context, shape.width // shape.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / ((2 * shape.layers) ** 0.5 if last else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[rows, words, vocabulary]` for word numbers `[rows, words]`.

        Raises:
            GradtuneError: There are more words than the context.
        """
        words = x.shape[1]
        if words > self.shape.context:
            raise GradtuneError(f"{words} words were given to a decoder that sees at most {self.shape.context}")
        h = self.words(x)
        for layer in self.layers:
            h = layer(h, self.cos[:words], self.sin[:words])
        out: Tensor = self.next(self.norm(h))
        return out
