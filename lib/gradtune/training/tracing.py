"""A pure function of tensors, recorded once as a straight list of tensor operations and replayed.

Training small models is bound by the bookkeeping around each operation, and differentiating a training step multiplies
it: a step of the quadratic toy spends most of its time in the autograd engine. `make_fx` runs the function once,
gradients and Hessian products included, and notes every tensor operation. What is replayed afterwards is those
operations alone. Parts that do not depend on the inputs' values are computed at recording time and repeated parts are
shared, so the arithmetic on the inputs stays the same, operation by operation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.utils import _pytree as pytree

_aten = torch.ops.aten
_SHAPE_ONLY = {
    _aten.ones_like.default,
    _aten.zeros_like.default,
    _aten.arange.default,
    _aten.ones.default,
    _aten.zeros.default,
    _aten.full_like.default,
}


def record(f: Callable[..., Any], example: tuple[Any, ...]) -> Callable[..., Any]:
    """Record `f` once and return a function that replays its tensor operations.

    Cost: one slow run of `f` (about 2 ms per operation); afterwards, on small problems, 20 to 40 % of the time that `f`
    itself takes.

    Args:
        f: the function. Its results are tensors nested in tuples and dicts. It must not draw random numbers, write into
            its arguments or branch on tensor values.
        example: the arguments of the recorded run, tensors in any nesting.

    Returns:
        A function of arguments with the shapes, types and nesting of `example`, which takes and returns tensors without
        a graph.
    """
    leaves, spec = pytree.tree_flatten(example)
    result_spec: list[Any] = []

    def flat(*xs: Tensor) -> list[Tensor]:
        out, tree = pytree.tree_flatten(f(*pytree.tree_unflatten(list(xs), spec)))
        result_spec[:] = [tree]
        return out

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds, and warns of torch's own deprecations

        leaves = [x.clone() for x in leaves]  # an argument given twice must stay two arguments
        module = make_fx(flat)(*leaves)
        if any(_writes(node) for node in module.graph.nodes):
            module = make_fx(functionalize(module))(*leaves)
        _simplify(module, leaves)

    @torch.no_grad()
    def replay(*args: Any) -> Any:
        return pytree.tree_unflatten(module(*pytree.tree_leaves(args)), result_spec[0])

    return replay


def _writes(node: fx.Node) -> bool:
    """Return whether an operation writes in place.

    Some derivative formulas do so on their own intermediate results. Folding must not see such writes.
    """
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _simplify(module: fx.GraphModule, leaves: list[Tensor]) -> None:
    """Drop operations that change nothing, fold what does not depend on the inputs' values, share repeated parts."""
    from torch.fx.passes.dialect.common.cse_pass import CSEPass

    values = _evaluate(module, leaves)
    for node in list(module.graph.nodes):
        if _changes_nothing(node, values):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    _fold(module, values)
    _share_constants(module)
    shared = CSEPass()(module)
    assert shared is not None
    module.graph = shared.graph_module.graph
    module.graph.eliminate_dead_code()
    module.recompile()


def _evaluate(module: fx.GraphModule, leaves: list[Tensor]) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}

    class Evaluate(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            values[n] = super().run_node(n)
            return values[n]

    with torch.no_grad():
        Evaluate(module).run(*leaves)
    return values


def _changes_nothing(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    """Return whether a node is an alias, an expansion to the shape it has, or a copy in the layout it has."""
    if node.target == _aten.alias.default:
        return True
    if node.target not in (_aten.expand.default, _aten._to_copy.default):
        return False
    before, after = values[node.args[0]], values[node]  # type: ignore[index]
    return (before.shape, before.stride(), before.dtype, before.device) == (
        after.shape,
        after.stride(),
        after.dtype,
        after.device,
    )


def _fold(module: fx.GraphModule, values: dict[fx.Node, Any]) -> None:
    """Replace every operation on constants by its value, kept as a buffer of the module."""
    constant: set[fx.Node] = set()
    for node in list(module.graph.nodes):
        inputs = node.all_input_nodes
        known = (
            node.op == "get_attr" or node.target in _SHAPE_ONLY or (bool(inputs) and all(i in constant for i in inputs))
        )
        if not known or node.op == "output" or not isinstance(values[node], Tensor):
            continue
        constant.add(node)
    for number, node in enumerate(n for n in list(module.graph.nodes) if n in constant and n.op != "get_attr"):
        if not any(user not in constant for user in node.users):
            continue
        module.register_buffer(f"_folded{number}", values[node], persistent=False)
        with module.graph.inserting_before(node):
            new = module.graph.get_attr(f"_folded{number}")
        node.replace_all_uses_with(new)


def _share_constants(module: fx.GraphModule) -> None:
    """Leave one node for equal constants, at the top of the graph."""
    module.graph.eliminate_dead_code()
    first: list[tuple[Tensor, fx.Node]] = []
    top = next(n for n in module.graph.nodes if n.op != "placeholder")
    for node in [n for n in module.graph.nodes if n.op == "get_attr"]:
        value = getattr(module, node.target)
        for known, representative in first:
            same = (known.dtype, known.device, known.stride()) == (value.dtype, value.device, value.stride())
            if same and torch.equal(known, value):
                node.replace_all_uses_with(representative)
                module.graph.erase_node(node)
                break
        else:
            if node is not top:
                top.prepend(node)
            first.append((value, node))
