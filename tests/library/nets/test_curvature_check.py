"""Functions without a second derivative are found and named; right ones and straight-through estimators pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradtune.errors import GradtuneError
from gradtune.nets.attention import differentiable
from gradtune.nets.curvature_check import check
from gradtune.nets.custom_functions import Call, fault_of_call, fault_of_node
from gradtune.nets.layout import Layout
from gradtune.nets.swapped import Places

Make = Callable[[], nn.Module]


class Right(torch.autograd.Function):
    """x^3, whose backward autograd can follow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class RightInTwoParts(torch.autograd.Function):
    """The same, with `setup_context`, a second output and arguments that are no tensors."""

    @staticmethod
    def forward(x: Tensor, k: int, unused: Tensor) -> tuple[Tensor, Tensor]:
        return x**k, x.argmax()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.k, _ = inputs
        ctx.save_for_backward(x)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.k * x ** (ctx.k - 1) * g, None, None


class Once(Right):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class Detached(Right):
    """The slope is a stored tensor: its derivative is lost, that by g is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 3 * x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return ctx.slope * g


class InNumpy(Right):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(3 * x.detach().numpy() ** 2 * g.detach().numpy())


class InNumpyAtOnce(Right):
    """NumPy refuses a tensor that needs a gradient."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * torch.from_numpy(g.numpy())


class Single(Detached):
    """It knows float32 alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return Detached.forward(ctx, x)


class SingleRight(Right):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return Right.forward(ctx, x)


class Constant(Once):
    """Marked, and then called where the gradient is constant: torch raises no error, and the curvature is lost."""


class Straight(torch.autograd.Function):
    """The sign, with the derivative of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Clipped(Straight):
    """The sign, with a derivative inside [-1, 1] alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x.abs() <= 1)


class Kinked(Straight):
    """ReLU of values many of which are exactly 0, written in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        x.clamp_(min=0)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return g * (y > 0)


class Noisy(Straight):
    """Dropout with a mask of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mask = (torch.rand_like(x) < 0.5).to(x.dtype)
        return x * ctx.mask

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.mask


class Reversed(Straight):
    """Gradient reversal with clipping."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -2 * g.clamp(-0.5, 0.5)


class Inner(Right):
    """Its backward calls autograd without a graph, as invertible layers do."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad((x**3), x, g)[0]


class Applied(nn.Module):
    """A layer that calls a function between two linear layers."""

    def __init__(self, function: Any, before: Any = torch.tanh) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 2)
        self.function, self.before = getattr(function, "apply", function), before

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.before(self.first(x)))
        return self.second(y[0] if isinstance(y, tuple) else y)


def tried(net: nn.Module, x: Tensor | None = None, reduce: Any = None) -> None:
    layout, places = Layout.of(net), Places(net)
    w = layout.flatten(dict(net.named_parameters()))[None].requires_grad_()
    x = torch.randn(7, 5, dtype=layout_type(net)) if x is None else x

    def loss_of() -> Tensor:
        with places.swapped(layout.split(w[0])), differentiable():
            y = net(x)
        return (reduce or (lambda y: y.square().sum()))(y)

    check(loss_of, [w])


def layout_type(net: nn.Module) -> torch.dtype:
    return next(net.parameters()).dtype


TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

RIGHT = (Right, Straight, Clipped, Kinked, Noisy, Reversed)
WRONG = (Detached, InNumpy, InNumpyAtOnce, Inner)


@TYPES
@pytest.mark.parametrize("kind", RIGHT, ids=lambda k: k.__name__)
def test_right_functions_and_straight_through_estimators_pass(kind: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    forward = vars(kind).get("forward")
    for before in (torch.tanh, torch.relu, lambda x: 3 * x, torch.sign):
        tried(Applied(kind, lambda x, f=before: f(x).clone()).to(dtype))  # a function may write into its argument
    assert vars(kind).get("forward") is forward


@TYPES
@pytest.mark.parametrize("kind", WRONG, ids=lambda k: k.__name__)
def test_a_derivative_that_is_lost_is_found(kind: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with pytest.raises(GradtuneError, match=rf"the gradient of {kind.__name__} in Applied .*torch operations.*fixed"):
        tried(Applied(kind).to(dtype))


@TYPES
@pytest.mark.parametrize("reduce", [None, torch.sum], ids=["curved", "constant"])
def test_what_is_marked_once_differentiable_is_named(reduce: Any, dtype: torch.dtype) -> None:
    with pytest.raises(GradtuneError, match=r"the gradient of Once in Applied \(its backward is marked once_diff"):
        tried(Applied(Once).to(dtype), reduce=reduce)


def test_arguments_that_are_no_tensors_and_other_outputs_are_handed_on() -> None:
    tried(Applied(lambda x: RightInTwoParts.apply(x, 3, torch.ones(2))))


def test_a_function_of_one_number_type_is_tried_in_its_own() -> None:
    tried(Applied(SingleRight))
    with pytest.raises(GradtuneError, match="the gradient of Single in Applied"):
        tried(Applied(Single))


def test_weights_of_zero_are_moved_as_well() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            return x + Detached.apply(self.scale)

    with pytest.raises(GradtuneError, match="the gradient of Detached in Scaled"):
        tried(Scaled())


def test_half_precision_is_judged_in_double_precision() -> None:
    tried(Applied(Right).bfloat16())
    with pytest.raises(GradtuneError, match="the gradient of Detached"):
        tried(Applied(Detached).bfloat16())


def test_one_graph_has_many_right_functions_and_one_wrong_one() -> None:
    net = nn.Sequential(Applied(Right), nn.Linear(2, 5), Applied(Straight), nn.Linear(2, 5), Applied(Inner))
    with pytest.raises(GradtuneError, match="the gradient of Inner"):
        tried(net)


def test_a_function_that_cannot_be_called_alone_is_judged_by_its_node() -> None:
    x = torch.randn(3, requires_grad=True)
    lonely = Call((x.detach(), "unexpected"), (True, False), "")
    assert fault_of_call(Right, lonely) is None
    assert fault_of_node(Right.apply(x).grad_fn) is None and fault_of_node(x.sin().grad_fn) is None
    assert isinstance(fault_of_node(InNumpy.apply(x).grad_fn), str)
    assert isinstance(fault_of_node(Once.apply(x).grad_fn), RuntimeError)


# --- torch's own layers -----------------------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 5, mode=mode), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_embedding_bags_are_refused_with_a_way_out(mode: str) -> None:
    with pytest.raises(GradtuneError, match=r"_embedding_bag_backward has no derivative.*use nn\.Embedding"):
        tried(Words(mode), torch.randint(9, (4, 3)))


def test_layers_of_torch_pass() -> None:
    torch.manual_seed(0)
    tried(nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Dropout(0.3), nn.Linear(6, 3)))
    tried(nn.TransformerEncoderLayer(6, 2, 5, dropout=0.0), torch.randn(4, 3, 6))
    tried(nn.LSTM(5, 4), torch.randn(4, 3, 5), reduce=lambda y: y[0].square().sum())
    tried(nn.Sequential(nn.Linear(5, 1)), reduce=torch.sum)  # no curvature at all


class Attends(nn.Module):
    """Attention with the kernel of its own choice."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.project(x)[None, None]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, q, q)


def test_a_kernel_that_the_module_insists_on_is_named() -> None:
    with pytest.raises(GradtuneError, match=r"flash_attention.*leave out torch\.nn\.attention\.sdpa_kernel"):
        tried(Attends())


def test_flex_attention_is_named() -> None:
    flex_attention = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention
    with pytest.raises(GradtuneError, match=r"FlexAttention has no derivative.*scaled_dot_product_attention"):
        tried(Applied(lambda x: flex_attention(*[x[None, None, :, :]] * 3)))


# --- operations of users ----------------------------------------------------------------------------------------------

_numbers = itertools.count()


def operation(backward: Any) -> Callable[[Tensor], Tensor]:
    @torch.library.custom_op(f"gradtune_tests::cube{next(_numbers)}", mutates_args=())
    def cube(x: Tensor) -> Tensor:
        return x**3

    if backward is not None:

        def keep(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        cube.register_autograd(backward, setup_context=keep)
    return cube


def test_custom_operations() -> None:
    tried(Applied(operation(lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g)))
    with pytest.raises(GradtuneError, match=r"cube\d+ has no gradient; give it one with torch.library.register_aut"):
        tried(Applied(operation(None)))
    with pytest.raises(GradtuneError, match=r"the gradient of gradtune_tests_cube\d+\w* in Applied has steps"):
        tried(Applied(operation(lambda ctx, g: 3 * ctx.saved_tensors[0].detach() ** 2 * g)))


def test_an_operation_without_a_gradient_in_a_backward() -> None:
    square = operation(None)

    class Calls(Right):
        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return square(ctx.saved_tensors[0]) * g

    with pytest.raises(GradtuneError, match=r"the operation gradtune_tests\.cube\d+ has no gradient"):
        tried(Applied(Calls))


def test_random_numbers_go_on_as_if_nothing_had_been_tried() -> None:
    net, state = Applied(Noisy), torch.get_rng_state()
    x = torch.ones(7, 5)
    tried(net, x)
    assert torch.equal(torch.get_rng_state(), state)
