"""Attention whose gradient can be differentiated: the mathematical kernel, and torch's choice afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradtune.nets.attention import differentiable, mathematical
from gradtune.nets.second_order import wanted

MASK = torch.ones(5, 5).tril().bool()


def enabled() -> tuple[bool, ...]:
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


class Called(nn.Module):
    """Attention called in a forward pass, with options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.project, self.options = nn.Linear(4, 12), options

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 2)).movedim(-3, 0).transpose(-2, -3)
        return F.scaled_dot_product_attention(q, k, v, **self.options)


class Heads(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.heads, self.options = nn.MultiheadAttention(4, 2, batch_first=True), options

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(x, x, x, **self.options)[0]


MODULES: dict[str, Callable[[], nn.Module]] = {
    "plain": Called,
    "causal": lambda: Called(is_causal=True),
    "a mask": lambda: Called(attn_mask=MASK),
    "a mask of numbers": lambda: Called(attn_mask=torch.randn(5, 5, dtype=torch.float64)),
    "another scale": lambda: Called(scale=0.3),
    "heads": Heads,
    "heads without weights": lambda: Heads(need_weights=False),
    "causal heads": lambda: Heads(need_weights=False, is_causal=True, attn_mask=~MASK),
    "padded heads": lambda: Heads(need_weights=False, key_padding_mask=torch.arange(5).expand(3, 5) > 3),
    "an encoder": lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
    "a stack": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True), 2),
    "a decoder": lambda: Decoder(),
}


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x)


def written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention by its formula."""
    scores = q @ k.transpose(-2, -1) * (scale or q.shape[-1] ** -0.5)
    mask = MASK if is_causal else attn_mask
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def derivatives(net: nn.Module, x: Tensor) -> list[Tensor]:
    weights = list(net.parameters())
    with wanted(), differentiable():
        loss = net(x).square().sin().sum()
    grads = torch.autograd.grad(loss, weights, create_graph=True)
    return [loss, *grads, *torch.autograd.grad([g.sin().sum() for g in grads], weights)]


@pytest.mark.parametrize("name", MODULES)
def test_attention_has_its_second_derivative(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x, before = MODULES[name]().double(), torch.randn(3, 5, 4, dtype=torch.float64), enabled()
    found = derivatives(net, x)
    assert enabled() == before
    monkeypatch.setattr(F, "scaled_dot_product_attention", written_out)
    for a, b in zip(found, derivatives(net, x), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_without_curvature_torch_chooses() -> None:
    before = enabled()
    assert isinstance(differentiable(), nullcontext)
    with wanted(), differentiable():
        assert enabled() == (False, False, False, True)
    assert enabled() == before


def test_the_choice_before_is_restored_whatever_it_was() -> None:
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        with pytest.raises(KeyError), mathematical():
            with mathematical():
                assert enabled() == (False, False, False, True)
            assert enabled() == (False, False, False, True)
            raise KeyError
        assert enabled() == (False, True, False, False)


def test_threads_restore_what_was_chosen_before_both() -> None:
    before, first, second = enabled(), mathematical(), mathematical()
    first.__enter__()
    thread = threading.Thread(target=second.__enter__)
    thread.start()
    thread.join()
    first.__exit__()
    assert enabled() == (False, False, False, True)
    second.__exit__()
    assert enabled() == before
