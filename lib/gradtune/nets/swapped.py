"""A module whose parameters and buffers are replaced by other tensors while it is called.

It is what `torch.func.functional_call` does, for one module that is called at every step of a training: where its
tensors lie is looked up once, not at every call. On the nets of UCI regression that halves the cost of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

_Table = dict[str, Tensor | None]


class Places:
    """Where the tensors of a module lie; to be made again when a tensor is added to the module or removed.

    Args:
        module: the module.

    Attributes:
        parameters: for each name, the tables `_parameters` that hold the tensor, with its key there; several for tied
            weights.
        buffers: for each name, the tables `_buffers` that hold the tensor, with its key there.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {n: _holding(module, "_parameters", p) for n, p in module.named_parameters()}
        self.buffers = {n: _holding(module, "_buffers", b) for n, b in module.named_buffers()}
        self._all = {**self.parameters, **self.buffers}

    def own_buffers(self) -> dict[str, Tensor]:
        """Return the module's buffers by name, as they are now."""
        found = {n: table[key] for n, ((table, key), *_) in self.buffers.items()}
        return {n: b for n, b in found.items() if b is not None}

    @contextmanager
    def swapped(self, *named: Mapping[str, Tensor]) -> Iterator[None]:
        """Put tensors in place of the module's own for a while; afterwards it is as it was.

        Each of `named` has tensors by the names of parameters or buffers.
        """
        before = []
        try:
            for group in named:
                for name, tensor in group.items():
                    for table, key in self._all[name]:
                        before.append((table, key, table[key]))
                        table[key] = tensor
            yield
        finally:
            for table, key, old in reversed(before):
                table[key] = old


def _holding(module: nn.Module, kind: str, tensor: Tensor) -> list[tuple[_Table, str]]:
    tables: list[_Table] = [getattr(m, kind) for m in module.modules()]
    return [(table, key) for table in tables for key, own in table.items() if own is tensor]
