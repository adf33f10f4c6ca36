"""What torch says of a missing second derivative, in the user's words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gradtune.errors import GradtuneError
from gradtune.nets.explained import explained, in_our_words

SAID = {
    "the derivative for '_cudnn_rnn_backward' is not implemented. Double backwards is not supported for CuDNN RNNs due "
    "to limitations in the CuDNN API.": r"_cudnn_rnn_backward.*torch\.backends\.cudnn\.flags\(enabled=False\)",
    "derivative for aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented": "mathematical",
    "trying to differentiate twice a function that was marked with @once_differentiable": "marked once_differentiable",
    "torch.compile with aot_autograd does not currently support double backward": "without torch.compile",
    "double backwards on roi_align not supported": "the gradient of roi_align has no derivative",
    "the derivative for 'grid_sampler_2d_backward' is not implemented.": "grid_sampler_2d_backward has no derivative",
}


@pytest.mark.parametrize("said", SAID)
def test_what_torch_says_is_explained(said: str) -> None:
    with pytest.raises(GradtuneError, match=SAID[said]), in_our_words():
        raise RuntimeError(said)


def test_other_errors_stay() -> None:
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    with pytest.raises(RuntimeError, match="shapes"), in_our_words():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_checkpoints_that_torch_complains_of_are_explained() -> None:
    w = torch.randn(3, requires_grad=True)
    with pytest.raises(GradtuneError, match="use_reentrant=False"), in_our_words():
        torch.autograd.grad(checkpoint(torch.tanh, w, use_reentrant=True).sum(), w)
    calls: list[int] = []

    def differs(w: Tensor) -> Tensor:
        calls.append(0)
        return w.tanh() if len(calls) > 1 else w[:2].tanh()

    with pytest.raises(GradtuneError, match="did something else"), in_our_words():
        torch.autograd.grad(checkpoint(differs, w, use_reentrant=False).sum(), w)


def test_a_compiled_function_is_explained() -> None:
    compiled = torch.compile(torch.sin, backend="aot_eager")
    w = torch.randn(3, requires_grad=True)
    with pytest.raises(GradtuneError, match=r"without torch\.compile"), in_our_words():
        (g,) = torch.autograd.grad(compiled(w).square().sum(), w, create_graph=True)
        torch.autograd.grad(g.sum(), w)
