"""Modules that cannot be trained on other weights are named, and what can be set otherwise is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradtune.errors import GradtuneError, GradtuneWarning
from gradtune.nets.adjusted import Adjusted, dense_embeddings, uncompiled
from gradtune.nets.layout import Layout
from gradtune.nets.refused import refuse
from gradtune.nets.swapped import Places

Make = Callable[[], nn.Module]


def net(*more: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), *more)


def hooked(register: Callable[[nn.Sequential], object]) -> nn.Module:
    module = net()
    register(module)
    return module


def parallel() -> nn.Module:
    module = nn.DataParallel(net())
    module.device_ids = [0, 1]
    return module


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning", "ignore:.*deprecated:FutureWarning")
def scripted() -> nn.Module:
    return torch.jit.script(nn.Linear(3, 3))


def sparse() -> nn.Module:
    module = net()
    module[0].weight = nn.Parameter(torch.eye(3, 4).to_sparse())
    return module


REFUSED: dict[str, tuple[Make, str]] = {
    "a scripted part": (lambda: net(scripted()), r"the part 2 is a \w+ of torch\.jit.*the module it was made from"),
    "a scripted module": (scripted, r"the module is a \w+ of torch\.jit"),
    "a traced part": (
        lambda: net(torch.jit.trace(nn.Linear(3, 3), torch.ones(2, 3))),
        r"the part 2 is a \w+ of torch\.jit",
    ),
    "several devices": (parallel, r"the module is a DataParallel on 2 devices.*\.module"),
    "lazy": (
        lambda: net(nn.LazyLinear(2)),
        r"the parameter 2\.weight of a lazy layer has no values yet; run one batch through the module first",
    ),
    "lazy norm": (
        lambda: nn.Sequential(nn.LazyBatchNorm1d(affine=False), nn.Linear(4, 3)),
        "the buffer 0.running_mean",
    ),
    "without values": (lambda: net().to("meta"), "the parameter 0.weight is on the device meta and has no values"),
    "a sparse layout": (sparse, r"the parameter 0\.weight has the layout torch\.sparse_coo"),
    "a hook after accumulation": (
        lambda: hooked(lambda m: m.get_parameter("0.bias").register_post_accumulate_grad_hook(lambda p: None)),
        r"the parameter 0\.bias has a hook of register_post_accumulate_grad_hook, which would never run",
    ),
}


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("curvature", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_named(name: str, curvature: bool) -> None:
    make, sentence = REFUSED[name]
    module = make()
    with pytest.raises(GradtuneError, match=sentence):
        refuse(module, curvature)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantised_layers_are_named() -> None:
    quantised = pytest.importorskip("torch.ao.nn.quantized.dynamic")
    with pytest.raises(GradtuneError, match="the part 2 is a Linear with quantised weights"):
        refuse(net(quantised.Linear(3, 3)), False)


BACKWARD_HOOKS: list[Callable[[nn.Sequential], object]] = [
    lambda m: m[1].register_full_backward_hook(lambda *_: None),
    lambda m: m[1].register_full_backward_pre_hook(lambda *_: None),
]


@pytest.mark.parametrize("register", BACKWARD_HOOKS)
def test_backward_hooks_are_refused_where_there_is_curvature(register: Callable[[nn.Sequential], object]) -> None:
    module = hooked(register)
    refuse(module, False)
    with pytest.raises(GradtuneError, match=r"the part 1 has a backward hook.*\"fixed\""):
        refuse(module, True)


def test_backward_hooks_of_all_modules_are_refused() -> None:
    handle = nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        with pytest.raises(GradtuneError, match="every module has a backward hook"):
            refuse(net(), True)
    finally:
        handle.remove()
    refuse(net(), True)


ALLOWED: dict[str, Make] = {
    "plain": net,
    "forward hooks": lambda: hooked(lambda m: m[0].register_forward_hook(lambda *_: None)),
    "hooks on parameters": lambda: hooked(lambda m: m.get_parameter("0.weight").register_hook(lambda g: g)),
    "parametrised": lambda: net(parametrizations.weight_norm(nn.Linear(3, 3))),
    "one device": lambda: nn.DataParallel(net()),
    "synchronised norm of one process": lambda: net(nn.SyncBatchNorm(3)),
    "lazy and filled": lambda: filled(nn.Sequential(nn.LazyLinear(2))),
    "frozen and sparse": lambda: hooked(lambda m: setattr(m[0], "weight", frozen(torch.eye(3, 4).to_sparse()))),
}


def filled(module: nn.Sequential) -> nn.Sequential:
    module(torch.ones(2, 4))
    return module


def frozen(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x, requires_grad=False)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("name", ALLOWED)
def test_other_modules_pass(name: str) -> None:
    refuse(ALLOWED[name](), True)


@pytest.fixture
def group() -> Iterator[None]:
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch without distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_modules_of_several_processes_are_named(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GradtuneError, match=r"the module is a DistributedDataParallel.*give the module inside it"):
        refuse(nn.parallel.DistributedDataParallel(net()), False)
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    with pytest.raises(GradtuneError, match=r"the module is a FullyShardedDataParallel, which holds a part"):
        refuse(fsdp.FullyShardedDataParallel(net(), device_id=torch.device("cpu")), False)
    mesh = distributed.init_device_mesh("cpu", (1,))
    sharded = net()
    fsdp.fully_shard(sharded[0], mesh=mesh)
    with pytest.raises(GradtuneError, match=r"the part 0 is a FSDPLinear, which holds a part"):
        refuse(sharded, False)
    spread = distributed.tensor.distribute_module(net(), mesh)
    with pytest.raises(GradtuneError, match=r"the parameter 0\.weight is a DTensor"):
        refuse(spread, False)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    with pytest.raises(GradtuneError, match="the part 2 is a SyncBatchNorm"):
        refuse(net(nn.SyncBatchNorm(3)), False)


def test_tensors_of_a_special_kind_are_named() -> None:
    two = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    module = net()
    module[0].weight = nn.Parameter(two(torch.eye(3, 4), torch.eye(3, 4)))
    with pytest.raises(GradtuneError, match=r"the parameter 0\.weight is a (TwoTensor|Parameter), which plain tensors"):
        refuse(module, False)


# --- embeddings with sparse gradients ---------------------------------------------------------------------------------


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.one, self.bag = nn.Embedding(6, 3, sparse=sparse), nn.EmbeddingBag(6, 3, mode="sum", sparse=sparse)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).sum(1) * self.bag(x)


def test_sparse_embeddings_have_dense_gradients_with_the_same_numbers() -> None:
    x, found = torch.tensor([[0, 1, 1], [2, 5, 0]]), []
    for sparse in (False, True):
        torch.manual_seed(0)
        module = Words(sparse)
        adjusted, layout = Adjusted(module), Layout.of(module)
        assert adjusted.sparse == ([module.one, module.bag] if sparse else []) and not adjusted.compiled
        w = layout.flatten(dict(module.named_parameters())).requires_grad_()
        with adjusted.context(), Places(module).swapped(layout.split(w)):
            loss = module(x).square().sum()
        found.append(torch.autograd.grad(loss, w)[0])
        assert module.one.sparse is sparse and module.bag.sparse is sparse
        loss = module(x).square().sum()  # outside of the context its gradients are as before
        (g,) = torch.autograd.grad(loss, module.one.weight)
        assert g.is_sparse is sparse
    assert torch.equal(*found)


def test_embeddings_are_put_back_after_an_error() -> None:
    layer = nn.Embedding(3, 2, sparse=True)
    with pytest.raises(KeyError), dense_embeddings([layer]):
        assert not layer.sparse
        raise KeyError
    assert layer.sparse


# --- compiled modules -------------------------------------------------------------------------------------------------


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="aot_eager")  # type: ignore[return-value] # it is one


def compiled_whole() -> nn.Module:
    return compiled(net())


def compiled_part() -> nn.Module:
    return net(compiled(nn.Linear(3, 3)))


def compiled_in_place() -> nn.Module:
    module = net()
    module.compile(backend="aot_eager")
    return module


@pytest.mark.parametrize("make", [compiled_whole, compiled_part, compiled_in_place])
def test_compiled_modules_run_uncompiled(make: Make) -> None:
    torch.manual_seed(0)
    module = make()
    with pytest.warns(GradtuneWarning, match=r"(Sequential|Linear) was compiled by torch\.compile and runs uncompiled"):
        adjusted = Adjusted(module)
    module = uncompiled(module)
    layout = Layout.of(module)
    assert adjusted.compiled and layout.names[0] == "0.weight"
    w = layout.flatten(dict(module.named_parameters())).requires_grad_()
    with adjusted.context(), Places(module).swapped(layout.split(w)):
        loss = module(torch.randn(5, 4)).square().sum()
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    (h,) = torch.autograd.grad(g, w, torch.ones_like(w))  # a compiled one has no second derivative
    assert h.abs().sum() > 0


def test_a_compiled_module_and_the_one_inside_share_their_weights() -> None:
    inner = net()
    outer = compiled(inner)
    assert uncompiled(outer) is inner and uncompiled(inner) is inner
    assert next(outer.parameters()) is next(inner.parameters())


def test_nothing_to_adjust_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adjusted = Adjusted(net())
    with adjusted.context() as nothing:
        assert nothing is None
