"""What torch says where a gradient cannot be differentiated, in a sentence that names what it was and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.checkpoint import CheckpointError

from gradtune.errors import GradtuneError
from gradtune.nets.checkpointing import REENTRANT

WITHOUT_CURVATURE = 'or choose a method without curvature, such as "hd", "metaoptimize_hf" or "fixed"'

FOLLOWED = "write its backward in torch operations that autograd can follow"
_MARKED = f"a torch.autograd.Function has a backward marked once_differentiable; {FOLLOWED}, {WITHOUT_CURVATURE}"
_COMPILED = (
    "the gradient of a function compiled by torch.compile has no derivative; call it without torch.compile, as inside "
    f'torch.compiler.set_stance("force_eager"), {WITHOUT_CURVATURE}'
)
_NOT_THE_SAME = (
    "a function inside torch.utils.checkpoint did something else when it ran again in the backward pass; let it depend "
    "on its arguments and the module alone, or call it without the checkpoint"
)
_NO_GRADIENT = (
    "the operation {0} has no gradient; give it one with torch.library.register_autograd, in torch operations that "
    "autograd can follow"
)
_SPARSE = (
    "a gradient is sparse, as of embedding(..., sparse=True), and its derivative needs dense ones; call it with "
    f"sparse=False, {WITHOUT_CURVATURE}"
)
_INFERENCE = (
    "a tensor was made inside torch.inference_mode() and takes part in a gradient; make the batch outside of it, or "
    "give batch.clone()"
)
_NO_ARGUMENT = (
    "torch's {0} has no derivative by its argument {1}, which a tuned hyperparameter is; write it in operations that "
    "have one (for weights of classes, gradtune.nets.losses.cross_entropy)"
)
_SENTENCES = (
    (r"use_reentrant=True.*\.grad\(\)", REENTRANT),
    (r"marked with @once_differentiable", _MARKED),
    (r"aot_autograd does not currently support double backward", _COMPILED),
    (r"reshape is not implemented for sparse", _SPARSE),
    (r"Inference tensors cannot be saved for backward", _INFERENCE),
    (r"function '(\w+)' is not differentiable with respect to argument '(\w+)'", _NO_ARGUMENT),
    (r"[Tt]rying to backward through (\S+?)(?:\.default)? but no autograd formula", _NO_GRADIENT),
)
"""What torch says as a pattern, and the sentence with what its group matches."""

_NAMED = (
    r"(FlexAttention) does not support backward",
    r"derivative for '?(?:aten::)?([\w:.]+?)'? is not implemented",
    r"[Dd]ouble backwards? (?:is )?(?:on|for) (\S+) (?:is )?not supported",
    r"([\w:.]+)[^.]{0,40}(?:does not|doesn't) support double[ -]backward",
)
"""What torch says of an operation without a second derivative; the group is its name."""

_WAYS_OUT = (
    (r"flex_?attention", "use torch.nn.functional.scaled_dot_product_attention"),
    (r"attention", "let torch choose its mathematical kernel: leave out torch.nn.attention.sdpa_kernel"),
    (r"cudnn_rnn|miopen_rnn|CuDNN", "train within torch.backends.cudnn.flags(enabled=False)"),
    (r"embedding_bag", "use nn.Embedding and the sum, mean or maximum over each bag in place of nn.EmbeddingBag"),
)


def explained(error: RuntimeError) -> GradtuneError | None:
    """Return (not raise) an error in the user's words for one that torch raised where a gradient is differentiated.

    Args:
        error: what torch raised in `torch.autograd.grad`, in the first pass or a later one.

    Returns:
        The error; None for one of another kind.
    """
    said = str(error)
    for pattern, sentence in _SENTENCES:
        if found := re.search(pattern, said, re.DOTALL):
            return GradtuneError(sentence.format(*found.groups()) if found.groups() else sentence)
    if isinstance(error, CheckpointError):
        return GradtuneError(_NOT_THE_SAME)
    for pattern in _NAMED:
        if found := re.search(pattern, said):
            return no_second_derivative(f"the gradient of {found[1]}", found[1])
    return None


def no_second_derivative(what: str, name: str = "", way: str = "leave it out") -> GradtuneError:
    """Return (not raise) the error for something without a second derivative.

    Args:
        what: what it is, as the sentence begins.
        name: the name of the operation, by which a better way out may be known.
        way: the way out.
    """
    known = [way for pattern, way in _WAYS_OUT if re.search(pattern, name, re.IGNORECASE)]
    return GradtuneError(
        f"{what} has no derivative, and the method needs one; {known[0] if known else way}, {WITHOUT_CURVATURE}"
    )


@contextmanager
def in_our_words() -> Iterator[None]:
    """Context around passes through a graph: what torch says of a missing derivative becomes a `GradtuneError`."""
    try:
        yield
    except RuntimeError as error:
        told = explained(error)
        if told is None:
            raise
        raise told from error
