"""The buffers of a module by name: read, replaced, copied."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Values = Mapping[str, Tensor | None]


class Buffers:
    """All buffers of a module by name, those without a value and those that come later included.

    Args:
        module: the module; its submodules are looked up once.
    """

    def __init__(self, module: nn.Module) -> None:
        self._tables = [(f"{prefix}." if prefix else "", m._buffers) for prefix, m in module.named_modules()]

    def read(self) -> dict[str, Tensor | None]:
        """Return the buffers as they are, by name; no copies."""
        return {prefix + key: b for prefix, table in self._tables if table for key, b in table.items()}

    def write(self, values: Values) -> None:
        """Put `values` in the places of the buffers; a buffer that has no value among them is removed."""
        for prefix, table in self._tables:
            if table:
                wanted = {key: values[prefix + key] for key in table if prefix + key in values}
                table.clear()
                table.update(wanted)
        names = {prefix + key for prefix, table in self._tables for key in table}
        for name in values.keys() - names:
            head, _, key = name.rpartition(".")
            next(table for prefix, table in self._tables if prefix == (f"{head}." if head else ""))[key] = values[name]

    def load(self, values: Values) -> None:
        """Give the module these buffers and no others; a buffer of the same type keeps its identity."""
        own, new = self.read(), dict(values)
        for name, value in values.items():
            mine = own.get(name)
            if mine is not None and value is not None and (mine.dtype, mine.device) == (value.dtype, value.device):
                mine.data = value
                new[name] = mine
        self.write(new)

    def renew(self, replace: bool) -> dict[str, Tensor | None]:
        """Give every buffer a copy of its memory, and return the values that it had, with the old memory.

        What is written to the buffers from here on does not reach the returned values.

        Args:
            replace: whether the buffers become other tensors, so that graphs that have saved them stay valid.
        """
        if replace:
            now = self.read()
            self.write(copied(now))
            return now
        own = self.read()
        before = {n: None if b is None else b.detach() for n, b in own.items()}
        for name, new in copied(own).items():
            b = own[name]
            if b is not None and new is not None:
                b.data = new
        return before


def copied(values: Values) -> dict[str, Tensor | None]:
    """Return copies of buffers by name; those that share memory share it again."""
    tensors = {id(b): b.detach() for b in values.values() if b is not None}
    places = [b.untyped_storage().data_ptr() for b in tensors.values()]
    if len(set(places)) == len(places):
        copies = {k: b.clone() for k, b in tensors.items()}
    else:
        memory = {b.untyped_storage().data_ptr(): b.untyped_storage() for b in tensors.values()}
        memory = {place: storage.clone() for place, storage in memory.items()}
        copies = {k: _view(b, memory[b.untyped_storage().data_ptr()]) for k, b in tensors.items()}
    return {n: None if b is None else copies[id(b)] for n, b in values.items()}


def _view(b: Tensor, storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=b.dtype, device=b.device).set_(storage, b.storage_offset(), b.shape, b.stride())
