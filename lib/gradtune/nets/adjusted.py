"""What is set otherwise in a module while it computes, with the same numbers.

* Embeddings with `sparse=True`: their gradients are dense here, as all weights are one dense vector.
* Parts made by `torch.compile(module)` or `module.compile()`: they run uncompiled. A compiled function has no second
  derivative, and what it is compiled for changes with the contexts in which a module is called.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import nn

from gradtune.errors import GradtuneWarning


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module inside one that `torch.compile(module)` has made, else the module itself.

    The two share their weights. The names of the inner one's parameters do not begin with `_orig_mod.`.

    Args:
        module: the module.
    """
    while _is_wrapper(module):
        module = cast(nn.Module, module._orig_mod)
    return module


class Adjusted:
    """Contexts in which a module computes with dense gradients and uncompiled; made once for a module.

    With nothing to adjust, the context has no effect and costs nothing. A compiled part makes it cost about 10
    microseconds.

    Args:
        module: the module. Its parts are looked up once.

    Attributes:
        sparse: embeddings with `sparse=True`.
        compiled: whether there is a compiled part.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = list(module.modules())
        kinds = (nn.Embedding, nn.EmbeddingBag)
        self.sparse = [m for m in parts if isinstance(m, kinds) and m.sparse]
        names = sorted({type(uncompiled(m)).__name__ for m in parts if _is_compiled(m)})
        self.compiled = bool(names)
        if names:
            warnings.warn(
                f"{', '.join(names)} was compiled by torch.compile and runs uncompiled here, with the same results and "
                "more slowly; train the module without torch.compile to be rid of this warning",
                GradtuneWarning,
                stacklevel=2,
            )

    @property
    def any(self) -> bool:
        """Whether there is anything to adjust."""
        return bool(self.sparse) or self.compiled

    def context(self) -> AbstractContextManager[object]:
        """Return a context for one call of the module."""
        return self._entered() if self.sparse or self.compiled else nullcontext()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        eager = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with dense_embeddings(self.sparse), eager:
            yield


@contextmanager
def dense_embeddings(layers: Iterable[nn.Embedding | nn.EmbeddingBag]) -> Iterator[None]:
    """Context in which embeddings have dense gradients; afterwards each is as it was.

    Args:
        layers: the embeddings.
    """
    before = [(m, m.sparse) for m in layers]
    for m, _ in before:
        m.sparse = False
    try:
        yield
    finally:
        for m, sparse in before:
            m.sparse = sparse


def _is_wrapper(m: nn.Module) -> bool:
    """Return whether torch.compile(module) has made `m`; torch imports its compiler only where it is used."""
    return type(m).__module__.startswith("torch._dynamo") and hasattr(m, "_orig_mod")


def _is_compiled(m: nn.Module) -> bool:
    return _is_wrapper(m) or getattr(m, "_compiled_call_impl", None) is not None
