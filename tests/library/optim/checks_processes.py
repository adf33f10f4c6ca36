"""Torch's checks of an optimiser whose parameters several processes train: two of them, over gloo, on the CPU.

All run one after the other in the same two processes. The first check to be asked for starts them.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as saving
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from gradtune.errors import GradtuneError
from gradtune.optim import MetaOptimize
from library.optim.checks import check
from library.optim.small import relative

LIMIT = 120  # seconds for all of them
Case = Callable[[Path], None]
CASES: dict[str, Case] = {}


def two(name: str, refused: str | None = None) -> Callable[[Case], Case]:
    """A check that runs in both processes, on a folder that they share."""

    def enter(case: Case) -> Case:
        CASES[name] = case
        check("several processes", name, refused)(partial(_answer, name))
        return case

    return enter


def _answer(name: str) -> None:
    for error in _answers()[name]:
        if isinstance(error, GradtuneError):
            raise error
        assert error is None, error


@cache
def _answers() -> dict[str, list[Any]]:
    """What each process says of each check: None, a refusal, or a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        processes = mp.start_processes(_work, (folder,), nprocs=2, join=False, start_method="spawn")
        end = time.monotonic() + LIMIT
        while time.monotonic() < end and any(p.is_alive() for p in processes.processes):
            time.sleep(0.1)
        for p in processes.processes:
            p.terminate()
        files = [Path(folder) / f"{rank}.pt" for rank in range(2)]
        said = [torch.load(file, weights_only=False) if file.exists() else {} for file in files]
    return {name: [each.get(name, "it was not reached, or did not end") for each in said] for name in CASES}


def _work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    wait = timedelta(seconds=40)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=wait)
    said: dict[str, Any] = {}
    for k, (name, case) in enumerate(CASES.items()):
        try:
            case(Path(folder) / str(k))
            said[name] = None
        except GradtuneError as error:
            said[name] = error
        except Exception:
            said[name] = traceback.format_exc()
        torch.save(said, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


# --- What they train --------------------------------------------------------------------------------------------------


def model(width: int = 7) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4)).double()


def optimise(module: nn.Module, **arguments: Any) -> MetaOptimize:
    params = list(module.parameters())
    parts = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
    return MetaOptimize(parts, 0.01, **{"meta": "adam", "meta_step_size": 0.01, **arguments})


def train(module: nn.Module, optimizer: Any, first: int, last: int, divided: bool = True, clip: float = 0.0) -> None:
    """Steps on a batch, of which each process has a half if it is `divided`."""
    for t in range(first, last):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(t)).double()
        x = x[dist.get_rank() :: 2] if divided else x
        optimizer.zero_grad()
        module(x).square().mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()


def whole(steps: int, clip: float = 0.0, width: int = 7, **arguments: Any) -> tuple[list[Tensor], list[Any]]:
    """The weights and learning rates of undivided training."""
    module = model(width)
    optimizer = optimise(module, **arguments)
    train(module, optimizer, 0, steps, divided=False, clip=clip)
    return [p.detach() for p in module.parameters()], optimizer.lr


def full(module: nn.Module) -> list[Tensor]:
    return [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in module.parameters()]


def near(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return all(relative(a.detach(), b.detach()) < 1e-12 for a, b in zip(mine, theirs))


def rates_near(mine: list[Any], theirs: list[Any]) -> bool:
    """And the same in both processes, to the bit."""
    flat = torch.tensor(mine, dtype=torch.float64).flatten()
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    moved = (flat / torch.tensor([0.01, 0.02]).double().repeat_interleave(len(flat) // 2) - 1).abs() > 1e-3
    return (
        relative(flat, torch.tensor(theirs, dtype=torch.float64).flatten()) < 1e-12
        and torch.equal(*both)
        and bool(moved.all())
    )


def sharded(mesh: DeviceMesh | None = None) -> nn.Sequential:
    module = model()
    mesh = mesh or init_device_mesh("cpu", (2,))
    fully_shard(module[0], mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


GROUPS = ("scalar", "blockwise", "tensor")

# --- The checks -------------------------------------------------------------------------------------------------------


@two("DistributedDataParallel: the same weights and learning rates in all processes")
def _replicas(folder: Path) -> None:
    for groups in GROUPS:
        module = nn.parallel.DistributedDataParallel(model())
        optimizer = optimise(module, groups=groups)
        train(module, optimizer, 0, 5)
        weights, lr = whole(5, groups=groups)
        assert near(list(module.parameters()), weights) and rates_near(optimizer.lr, lr)


@two("fully_shard (FSDP2): DTensors train as the whole tensors do")
def _shards(folder: Path) -> None:
    cases: list[dict[str, Any]] = [{"groups": groups} for groups in GROUPS]
    for arguments in (*cases, {"base": "lion", "form": "package"}):
        module = sharded()
        optimizer = optimise(module, **arguments)
        train(module, optimizer, 0, 5)
        weights, lr = whole(5, **arguments)
        assert near(full(module), weights) and rates_near(optimizer.lr, lr)
        assert all(isinstance(s["trace"], DTensor) for s in optimizer.state.values())


@two("fully_shard over a mesh of replicas (HSDP)")
def _mesh(folder: Path) -> None:
    for shape in ((2, 1), (1, 2)):
        module = sharded(init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")))
        optimizer = optimise(module, groups="blockwise")
        train(module, optimizer, 0, 5)
        weights, lr = whole(5, groups="blockwise")
        assert near(full(module), weights) and rates_near(optimizer.lr, lr)


@two("fully_shard with gradients that are clipped by norm")
def _clipped(folder: Path) -> None:
    module = sharded()
    optimizer = optimise(module)
    train(module, optimizer, 0, 5, clip=0.05)
    weights, lr = whole(5, clip=0.05)
    assert near(full(module), weights) and rates_near(optimizer.lr, lr)


@two("fully_shard with a layer without gradients")
def _frozen(folder: Path) -> None:
    module, single = sharded(), model()
    optimizers = []
    for each, divided in ((module, True), (single, False)):
        each[2].requires_grad_(False)
        optimizers.append(optimise(each, groups="blockwise"))
        train(each, optimizers[-1], 0, 4, divided)
    assert near(full(module), list(single.parameters())) and optimizers[0].lr[1] == 0.02
    assert abs(optimizers[0].lr[0] / optimizers[1].lr[0] - 1) < 1e-12


@two("tensor parallelism: parameters of different placements")
def _tensor_parallel(folder: Path) -> None:
    for groups in GROUPS:
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        module = parallelize_module(model(8), init_device_mesh("cpu", (2,)), plan)
        optimizer = optimise(module, groups=groups)
        train(module, optimizer, 0, 5, divided=False)
        weights, lr = whole(5, width=8, groups=groups)
        assert near(full(module), weights) and rates_near(optimizer.lr, lr)


def _resumed(folder: Path, flat: bool) -> None:
    options = saving.StateDictOptions(flatten_optimizer_state_dict=flat)

    def states(module: nn.Module, optimizer: MetaOptimize) -> dict[str, Any]:
        state = saving.get_optimizer_state_dict(module, optimizer, options=options)
        return {"model": saving.get_model_state_dict(module), "optimizer": state}

    for groups in GROUPS:
        at = str(folder / groups)
        module = sharded()
        optimizer = optimise(module, groups=groups)
        train(module, optimizer, 0, 3)
        dcp.save(states(module, optimizer), checkpoint_id=at)
        train(module, optimizer, 3, 6)

        again = sharded()
        its = optimise(again, groups=groups)
        loaded = states(again, its)
        dcp.load(loaded, checkpoint_id=at)
        saving.set_model_state_dict(again, loaded["model"])
        saving.set_optimizer_state_dict(again, its, loaded["optimizer"], options=options)
        train(again, its, 3, 6)
        assert all(map(torch.equal, full(again), full(module))) and its.lr == optimizer.lr


@two("torch.distributed.checkpoint: saved, loaded, gone on to the bit")
def _checkpoint(folder: Path) -> None:
    _resumed(folder, flat=False)


@two("torch.distributed.checkpoint with a flattened optimiser state")
def _flat_checkpoint(folder: Path) -> None:
    _resumed(folder, flat=True)


@two("a full state on process 0, and from there to all")
def _full_state(folder: Path) -> None:
    module = sharded()
    optimizer = optimise(module, groups="tensor")
    train(module, optimizer, 0, 3)
    gather = saving.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, state = saving.get_state_dict(module, optimizer, options=gather)
    again = sharded()
    its = optimise(again, groups="tensor")
    spread = saving.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    saving.set_model_state_dict(again, weights, options=spread)
    saving.set_optimizer_state_dict(again, its, state, options=spread)
    train(module, optimizer, 3, 6)
    train(again, its, 3, 6)
    assert all(map(torch.equal, full(again), full(module))) and its.lr == optimizer.lr


@two("a checkpoint of two processes goes on in one")
def _resharded(folder: Path) -> None:
    module = sharded()
    optimizer = optimise(module)
    train(module, optimizer, 0, 3)
    weights, state = saving.get_state_dict(module, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=str(folder))
    train(module, optimizer, 3, 6)
    single = model()
    its = optimise(single)
    weights, state = saving.get_state_dict(single, its)
    loaded: dict[str, Any] = {"model": weights, "optimizer": state}
    dcp.load(loaded, checkpoint_id=str(folder), no_dist=True)
    saving.set_state_dict(single, its, model_state_dict=weights, optim_state_dict=loaded["optimizer"])
    train(single, its, 3, 6, divided=False)
    assert near(list(single.parameters()), full(module)) and rates_near(optimizer.lr, its.lr)


@two("ZeroRedundancyOptimizer, with sharded=True")
def _zero(folder: Path) -> None:
    for groups in GROUPS:
        given: dict[str, Any] = {"groups": groups, "meta": "adam", "meta_step_size": 0.01}
        ends = []
        for divided in (True, False):
            module = nn.parallel.DistributedDataParallel(model())
            params: Any = [{"params": list(part.parameters())} for part in (module.module[0], module.module[2])]
            if divided:
                optimizer: Any = ZeroRedundancyOptimizer(
                    params, MetaOptimize, lr=0.01, sharded=groups != "tensor", **given
                )
            else:
                optimizer = MetaOptimize(params, 0.01, **given)
            train(module, optimizer, 0, 5)
            ends.append((list(module.parameters()), [float(group["lr"]) for group in optimizer.param_groups]))
            if divided:
                optimizer.consolidate_state_dict(0)
                if dist.get_rank() == 0:
                    assert set(optimizer.state_dict()["state"]) == {0, 1, 2, 3}
        assert near(ends[0][0], ends[1][0])
        assert groups == "tensor" or relative(ends[0][1], ends[1][1]) < 1e-12


@two(
    "FullyShardedDataParallel (FSDP1) without sharded=True",
    "parameter 0 of group 0 is flattened by FullyShardedDataParallel, which does not say how it is divided; "
    "give sharded=True, or use fully_shard",
)
def _flattened(folder: Path) -> None:
    MetaOptimize(FullyShardedDataParallel(model(), device_id=torch.device("cpu")).parameters())


@two("FullyShardedDataParallel (FSDP1), with sharded=True")
def _flattened_and_said(folder: Path) -> None:
    for original in (True, False):
        module = FullyShardedDataParallel(model(), device_id=torch.device("cpu"), use_orig_params=original)
        optimizer = MetaOptimize(module.parameters(), 0.01, meta="adam", sharded=True)
        train(module, optimizer, 0, 5)
        single = model()
        its = MetaOptimize(single.parameters(), 0.01, meta="adam")
        train(single, its, 0, 5, divided=False)
        x = torch.ones(2, 6).double()
        assert relative(module(x).detach(), single(x).detach()) < 1e-12
        assert relative(optimizer.lr, its.lr) < 1e-12 and optimizer.lr[0] != 0.01


@two("sharded=True with DTensors is an error")
def _twice(folder: Path) -> None:
    try:
        optimise(sharded(), sharded=True)
    except GradtuneError as error:
        assert str(error) == (
            "parameter 0 of group 0 is a DTensor, which says by itself how it is divided; leave sharded out"
        )
    else:
        raise AssertionError("it was taken")
