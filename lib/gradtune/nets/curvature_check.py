"""What has no second derivative is found before the first step, and named.

Torch itself notices a missing second derivative only in part. Its own operations raise an error in the second pass. A
`torch.autograd.Function` or an extension may give a second derivative that is silently zero. That includes backwards
marked `once_differentiable`: the error that they promise is raised by `backward()`, and `torch.autograd.grad(g, w)`,
which takes a Hessian product, passes it by. So `check` walks the graph of a loss for such functions and tries each on
its own (`custom_functions`), then tries a Hessian product of the whole loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradtune.errors import GradtuneError
from gradtune.nets.custom_functions import Fault, Kind, fault_of_call, fault_of_node, recorded
from gradtune.nets.explained import FOLLOWED, WITHOUT_CURVATURE, explained, in_our_words, no_second_derivative
from gradtune.nets.second_order import wanted

# modules whose functions are right, raise an error themselves, or talk to other processes
_PASSED_BY = ("gradtune.", "torch.utils.checkpoint.", "torch._functorch.", "torch.distributed.", "torch.nn.parallel.")


def check(loss_of: Callable[[], Tensor], leaves: Sequence[Tensor]) -> None:
    """Raise an error if the gradient of a loss has no second derivative, or one that is silently zero.

    What is written in torch's operations is known to be right or to raise an error. Functions with a backward of their
    own are compared with central differences.

    Cost: a gradient with a graph and a Hessian product; with such functions, a forward pass and some 50 gradients of
    each of them more.

    Args:
        loss_of: returns the loss, of one or more numbers, at the leaves; the same at every call. It is called once or
            twice, where a graph over the gradient is wanted (`second_order.wanted`). What it leaves behind (buffers,
            hooks) is the caller's to undo, but for torch's random numbers.
        leaves: the weights, of any values at which the loss is finite.

    Raises:
        GradtuneError: names the function and a way out.
    """
    device = leaves[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _check(loss_of, leaves)


def _check(loss_of: Callable[[], Tensor], leaves: Sequence[Tensor]) -> None:
    with torch.enable_grad(), wanted(), in_our_words():
        loss = loss_of()
    kinds, extensions = _with_own_backward(loss)
    if kinds or extensions:
        _check_each(loss_of, kinds)
    leaves = [x for x in leaves if x.requires_grad]  # a forward pass may have frozen some
    with in_our_words():
        grads = torch.autograd.grad(loss.sum(), leaves, create_graph=True, allow_unused=True)
    found = [g for g in grads if g is not None and g.requires_grad]
    if not found:
        return
    try:
        torch.autograd.grad(found, leaves, [torch.randn(g.shape).to(g) for g in found], allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise (explained(error) or no_second_derivative(f"the gradient of the loss ({_line(error)})")) from error


def _with_own_backward(loss: Tensor) -> tuple[dict[Kind, Any], list[Any]]:
    """Return what in the graph of a loss has a backward that torch does not vouch for.

    Returns:
        Functions written in Python, each with one of its nodes, and nodes of functions written in C++.
    """
    kinds: dict[Kind, Any] = {}
    extensions: dict[str, Any] = {}
    for node in _nodes(loss):
        if isinstance(node, BackwardCFunction):
            kind = node._forward_cls  # type: ignore[attr-defined]
            if not f"{kind.__module__}.".startswith(_PASSED_BY):
                kinds.setdefault(kind, node)
        elif "CppNode<" in node.name():
            extensions.setdefault(node.name(), node)
    return kinds, list(extensions.values())


def _nodes(loss: Tensor) -> set[Any]:
    found: set[Any] = set()
    left = [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left.extend(following for following, _ in node.next_functions)
    return found


def _check_each(loss_of: Callable[[], Tensor], kinds: dict[Kind, Any]) -> None:
    with torch.enable_grad(), wanted(), recorded(kinds) as calls:
        loss = loss_of()
    nodes, extensions = _with_own_backward(loss)  # a second graph, so that trying its nodes leaves the first as it is
    for kind in kinds:
        if kind in calls:
            _report(kind.__name__, calls[kind].caller, fault_of_call(kind, calls[kind]))
        if kind in nodes:
            _report(kind.__name__, calls[kind].caller if kind in calls else "", fault_of_node(nodes[kind]))
    for node in extensions:
        _report(node.name().partition("CppNode<")[2].rstrip(">"), "", fault_of_node(node))


def _report(name: str, caller: str, fault: Fault | None) -> None:
    if fault is None:
        return
    name = name.removeprefix("GeneratedBackwardFor_")
    what = f"the gradient of {name}" + (f" in {caller}" if caller else "")
    if isinstance(fault, RuntimeError):
        marked = "once_differentiable" in str(fault)
        if not marked and (told := explained(fault)):
            raise told from fault
        why = "its backward is marked once_differentiable" if marked else _line(fault)
        raise no_second_derivative(f"{what} ({why})", name, FOLLOWED) from fault
    raise GradtuneError(f"{what} {fault}; {FOLLOWED}, {WITHOUT_CURVATURE}")


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200].rstrip(".")
