"""Whether the gradient of a `torch.autograd.Function` that somebody wrote can be differentiated.

Its backward is a function of the inputs x and of the cotangents g of the outputs, `B(x, g)`. Autograd differentiates B
by following the operations in it. What B does outside of autograd's sight (NumPy, detached or stored tensors, kernels
of its own) is lost: the second derivative is silently zero, in part or in full. So B is differentiated both by autograd
and by central differences, where the function was called.

B is compared with itself alone. A straight-through estimator passes: its backward is not the derivative of its forward,
on purpose, and autograd does differentiate that backward correctly. Where B jumps within a difference, nothing is said.
Where it is constant and autograd finds a slope, that is taken to be meant as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Kind = type[torch.autograd.Function]
Fault = str | RuntimeError  # a sentence's predicate, or what torch raised in the second pass

LOST = "has steps that autograd does not see, so that its derivative is lost in part or in full and nothing says so"


class Call(NamedTuple):
    """A call of a custom function.

    Attributes:
        args: its arguments, without the graph that led to them.
        needs: for each argument, whether it is a tensor that takes part in derivatives.
        caller: name of the class of the module that called, "" where none did.
    """

    args: tuple[Any, ...]
    needs: tuple[bool, ...]
    caller: str


class _Scale(NamedTuple):
    """How a difference is taken: the number type (None: that of the call), two widths and a tolerance."""

    dtype: torch.dtype | None
    widths: tuple[float, float]
    tolerance: float


_SCALES = (_Scale(torch.float64, (1e-6, 1e-7), 1e-3), _Scale(None, (1e-2, 3e-3), 5e-2))
_SHARES = (1.0, 0.25, 0.05)  # of the entries, moved at a time: the fewer, the fewer kinks are met


@contextmanager
def recorded(kinds: Iterable[Kind]) -> Iterator[dict[Kind, Call]]:
    """Context that notes the first call of each custom function inside it.

    Args:
        kinds: the functions.
    """
    calls: dict[Kind, Call] = {}
    with ExitStack() as stack:
        for kind in kinds:
            own = vars(kind).get("forward")
            kind.forward = staticmethod(_noting(kind, kind.forward, calls))  # type: ignore[method-assign]
            stack.callback(_restore, kind, own)
        yield calls


def _restore(kind: Kind, own: Any) -> None:
    if own is None:
        del kind.forward
    else:
        kind.forward = own  # type: ignore[method-assign]


def _noting(kind: Kind, forward: Callable[..., Any], calls: dict[Kind, Call]) -> Callable[..., Any]:
    with_context = kind.setup_context is torch.autograd.Function.setup_context

    def noted(*args: Any, **kwargs: Any) -> Any:
        if kind not in calls:
            given = args[1:] if with_context else args
            needs = tuple(isinstance(a, Tensor) and a.is_floating_point() and a.requires_grad for a in given)
            kept = tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in given)
            calls[kind] = Call(kept, needs, _calling_module())
        return forward(*args, **kwargs)

    return noted


def _calling_module() -> str:
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if isinstance(found := frame.f_locals.get("self"), nn.Module):
            return type(found).__name__
    return ""


def fault_of_call(kind: Kind, call: Call) -> Fault | None:
    """Return what is wrong with the second derivative of a custom function where it was called.

    Cost: some 50 gradients of the function alone. It seeds torch's generators of the CPU and the GPU at work.

    Args:
        kind: the function.
        call: a call of it.

    Returns:
        The fault; None where none is found, which includes a function that cannot be called on its own.
    """
    for scale in _SCALES:
        try:
            trial = _Trial(kind, call, scale)
            judged = [trial.judge(share, by) for share in _SHARES for by in ("x", "g")]
        except Exception:  # a function may refuse another number type, or to be called on its own
            continue
        for each in judged:
            if isinstance(each, RuntimeError):
                return each
        if False in judged:
            return LOST
        if any(judged):
            return None
    return None


def fault_of_node(node: Any) -> Fault | None:
    """Return what is wrong with the second derivative of a custom function, as far as its node in a graph shows it.

    Its gradient is linear in the cotangents, so that it must depend on them; how it depends on what was saved is not
    seen. This runs its backward once.

    Args:
        node: the node that autograd made for the function, in a graph that is not needed any more.
    """
    run = node.apply if isinstance(node, torch.autograd.function.BackwardCFunction) else node
    cotangents = [
        torch.randn(tuple(m.shape), dtype=m.dtype).to(m.device).requires_grad_()
        for m in node._input_metadata
        if m.dtype.is_floating_point or m.dtype.is_complex
    ]
    if len(cotangents) < len(node._input_metadata):
        return None
    try:
        with torch.enable_grad():
            found = run(*cotangents)
            found = [y for y in (found if isinstance(found, tuple) else (found,)) if isinstance(y, Tensor)]
            if found and not any(y.requires_grad for y in found):
                return LOST
            _check_marks(found)
            found = [y for y in found if y.requires_grad]
            torch.autograd.grad(found, cotangents, [torch.ones_like(y) for y in found], allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return error
    return None


class _Trial:
    """B(x, g) of one call, with random directions.

    Args:
        kind: the function.
        call: the call.
        scale: how differences are taken.

    Attributes:
        exact: whether B is computed in the number type of `scale`.
    """

    def __init__(self, kind: Kind, call: Call, scale: _Scale) -> None:
        self._kind, self._call, self._scale = kind, call, scale
        self._rng = torch.Generator().manual_seed(0)
        moved = [self._cast(a) for a, need in zip(call.args, call.needs, strict=True) if need]
        self._x = [a if a.any() else self._normal(a) / 10 for a in moved]
        self._g = [self._normal(y) for y in self._outputs([a.detach().requires_grad_() for a in self._x])]
        found = self._backward(self._x, self._g, False)
        self._weights = [None if b is None else self._normal(b) for b in found]
        self.exact = scale.dtype is None or all(b is None or b.dtype == scale.dtype for b in found)

    def judge(self, share: float, by: str) -> bool | RuntimeError | None:
        """Return whether autograd's slope of B is that of differences, None where that cannot be said.

        Args:
            share: how many of the entries of x or g are moved, as a share.
            by: "x" or "g".
        """
        if not self.exact:
            return None
        way = [a * self._normal(a) * self._some(a, share) for a in (self._x if by == "x" else self._g)]
        try:
            own = self._slope(way, by)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            return error
        wide, narrow = (self._difference(way, by, h) for h in self._scale.widths)
        near = self._scale.tolerance * max(abs(wide[0]), abs(narrow[0])) + narrow[1]
        if not abs(wide[0] - narrow[0]) <= near:  # it jumps, or is not a number
            return None
        return abs(narrow[0]) <= narrow[1] or abs(own - narrow[0]) <= self._scale.tolerance * abs(own) + near

    def _slope(self, way: Sequence[Tensor], by: str) -> float:
        x, g = ([a.clone().requires_grad_() for a in group] for group in (self._x, self._g))
        found = self._backward(x, g, True)
        _check_marks([b for b in found if b is not None])
        total = [(b * u).sum() for b, u in zip(found, self._weights, strict=True) if b is not None and u is not None]
        total = [t for t in total if t.requires_grad]
        if not total:
            return 0.0
        slopes = torch.autograd.grad(total, x if by == "x" else g, allow_unused=True)
        return float(sum(_dot(s, d) for s, d in zip(slopes, way, strict=True) if s is not None))

    def _difference(self, way: Sequence[Tensor], by: str, h: float) -> tuple[float, float]:
        """Return the central difference of the weighted sum of B, and how far rounding may carry it."""
        sides = []
        for width in (h, -h):
            moved = [a + width * d for a, d in zip(self._x if by == "x" else self._g, way, strict=True)]
            x, g = (moved, self._g) if by == "x" else (self._x, moved)
            found = self._backward(x, g, False)
            pairs = [(b, u) for b, u in zip(found, self._weights, strict=True) if b is not None and u is not None]
            size = sum(float((b.double() * u.double()).square().sum()) for b, u in pairs) ** 0.5
            sides.append((sum(_dot(b, u) for b, u in pairs), size))
        epsilon = max((torch.finfo(b.dtype).eps for b in found if b is not None), default=0.0)
        return (sides[0][0] - sides[1][0]) / (2 * h), 8 * epsilon * max(s[1] for s in sides) / h

    def _backward(self, x: Sequence[Tensor], g: Sequence[Tensor], graph: bool) -> tuple[Tensor | None, ...]:
        """Return B(x, g), with the same random numbers at every call."""
        x = x if graph else [a.detach().requires_grad_() for a in x]
        torch.default_generator.manual_seed(0)
        if x[0].is_cuda:
            with torch.cuda.device(x[0].device):
                torch.cuda.manual_seed(0)
        with torch.enable_grad():
            return torch.autograd.grad(self._outputs(x), x, g, create_graph=graph, allow_unused=True)

    def _outputs(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Return the outputs of the function that take part in derivatives; it may write into its arguments."""
        moved = iter(x)
        args = [
            next(moved).clone() if need else self._cast(a)
            for a, need in zip(self._call.args, self._call.needs, strict=True)
        ]
        with torch.enable_grad():
            out = self._kind.apply(*args)
        outs = out if isinstance(out, (tuple, list)) else (out,)
        return [y for y in outs if isinstance(y, Tensor) and y.requires_grad]

    def _cast(self, a: Any) -> Any:
        """Return an argument in the number type of the trial, as a copy."""
        if not isinstance(a, Tensor):
            return a
        return a.to(self._scale.dtype if a.is_floating_point() else None, copy=True)

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._rng, dtype=torch.float64).to(like.device, like.dtype)

    def _some(self, like: Tensor, share: float) -> Tensor:
        return (torch.rand(like.shape, generator=self._rng) < share).to(like.device, like.dtype)


def _check_marks(found: Iterable[Tensor]) -> None:
    """Raise the error that hides in gradients of a backward marked once_differentiable."""
    if any(type(b.grad_fn).__name__ == "Error" for b in found):
        raise RuntimeError("the backward is marked once_differentiable")


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
