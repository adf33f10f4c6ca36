"""Where the parameter tensors of a module lie in one flat vector of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from gradtune.errors import GradtuneError


@dataclass(frozen=True)
class Layout:
    """Where each trained parameter tensor of a module lies in the flat weight vector of D entries.

    The tensors follow one another. Parameters that are frozen (`requires_grad=False`) have no place in the vector: the
    module's own values are used.

    Attributes:
        names: names of the tensors as in `named_parameters()`, in the order of the vector.
        shapes: their shapes, in the same order.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """Return the layout of a module's parameters that have `requires_grad=True`.

        Args:
            module: the module; it is not kept.

        Raises:
            GradtuneError: the module has no such parameter.
        """
        offered = {id(p) for p in module.parameters()}  # what an optimiser would be given
        named = [(n, p.shape) for n, p in module.named_parameters() if p.requires_grad and id(p) in offered]
        if not named:
            raise GradtuneError(
                f"the module {type(module).__name__} has no parameters to train; expected at least one with "
                "requires_grad=True"
            )
        return cls(tuple(n for n, _ in named), tuple(s for _, s in named))

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of entries of the tensors; their sum is D."""
        return [s.numel() for s in self.shapes]

    def split(self, w: Tensor) -> dict[str, Tensor]:
        """Return views of `w [..., D]` as named tensors `[..., *shape]`."""
        parts = torch.split(w, self.sizes, dim=-1)
        return {n: _shaped(p, s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return one vector `[D]`, without a graph, from a module's `named_parameters()` or an equal mapping."""
        return torch.cat([named[n].detach().reshape(-1) for n in self.names])


def _shaped(p: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 1:
        return p  # one node less in the graph, at each of its derivatives
    return p.unflatten(-1, shape) if shape else p.squeeze(-1)
