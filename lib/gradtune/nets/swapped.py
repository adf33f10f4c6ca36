"""A module whose parameters and buffers are replaced by other tensors while it is called.

What `torch.func.functional_call` does, for one module that is called at every step of a training: where its tensors lie
is looked up once, not at every call. On the nets of UCI regression that halves the cost of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

_Table = dict[str, Tensor | None]


class Places:
    """Where the tensors of `module` lie: per name the tables `_parameters` or `_buffers` that hold it, several for tied
    weights. To be made again when a tensor is added to the module or removed."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {n: _holding(module, "_parameters", p) for n, p in module.named_parameters()}
        self.buffers = {n: _holding(module, "_buffers", b) for n, b in module.named_buffers()}
        self._all = {**self.parameters, **self.buffers}

    def own_buffers(self) -> dict[str, Tensor]:
        """The module's buffers by name, as they are now."""
        found = {n: table[key] for n, ((table, key), *_) in self.buffers.items()}
        return {n: b for n, b in found.items() if b is not None}

    @contextmanager
    def swapped(self, *named: Mapping[str, Tensor]) -> Iterator[None]:
        """The module with the tensors of these names in place of its own; afterwards as it was."""
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
