"""One process per device, started by torchrun, or a single process without it."""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# How long a rank waits for the others: longer than a store may take to fail, so that the rank that knows why speaks first.
PATIENCE = timedelta(hours=2)
CONNECTING = timedelta(minutes=1)  # how long torchrun's store is looked for
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
UNSET = "start it with torchrun, which sets them all, or unset RANK and WORLD_SIZE for one process"
PR_SET_PDEATHSIG = 1  # Linux: prctl(2)


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    store: dist.Store | None = None  # where ranks leave notes for each other

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init_world(device: str = "auto") -> World:
    """Join the process group that torchrun describes. device: auto, cpu or gpu; each process takes one GPU."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()
    rank, size, local = told_by_launcher()
    use_gpu = device == "gpu" or (device == "auto" and torch.cuda.is_available())
    if use_gpu:
        if not torch.cuda.is_available():
            raise ValueError("The device is gpu, but torch finds no CUDA device here: use cpu or auto.")
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"Process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} found): "
                "lower --nproc-per-node, or set data.device=cpu."
            )
        torch.cuda.set_device(local)
    store = None
    if size > 1 and not dist.is_initialized():
        # torchrun's store is there before its processes are. Where it is not, torchrun was killed while they were starting.
        by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        connecting = CONNECTING if by_torchrun else PATIENCE
        store, rank, size = next(dist.rendezvous("env://", rank, size, timeout=connecting))
        store.set_timeout(PATIENCE)
        # gloo carries the small host-side messages, nccl the gradients
        backend = "cpu:gloo,cuda:nccl" if use_gpu else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE, store=dist.PrefixStore("group", store), rank=rank, world_size=size)
    return World(rank, size, torch.device("cuda", local) if use_gpu else torch.device("cpu"), store)


def told_by_launcher() -> tuple[int, int, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK: 0, 1, 0 without a launcher. Raises ValueError for variables that would end in waiting
    for processes that nobody starts."""
    told = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))}
    wrong = next((name for name, value in told.items() if not value.isdecimal()), None)
    if wrong:
        raise ValueError(f"The environment variable {wrong} is {told[wrong]!r}, which is no number: {UNSET}.")
    rank, size, local = map(int, told.values())
    missing = [name for name in VARIABLES if name not in os.environ]
    if (rank, size) != (0, 1) and missing:
        there = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
        raise ValueError(f"The environment has {', '.join(there)} but not {', '.join(missing)}: {UNSET}.")
    if rank >= size:
        raise ValueError(f"The environment has RANK={rank} of WORLD_SIZE={size}, and ranks begin at 0: {UNSET}.")
    return rank, size, local


def end_with_launcher() -> None:
    """Let the kernel end this process when torchrun is gone: nobody else would, and a new start would write beside it.

    With SIGTERM a run would still save its state, while the next start may already read the one before.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def close_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def end_of_another(error: RuntimeError) -> bool:
    """Whether it says that a process of this run is gone."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "connection", "nccl"))


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def wait_for_all() -> None:
    """Until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def any_of(*flags: bool) -> list[bool]:
    """For each flag whether it is raised on any rank. A message between hosts; devices do not wait."""
    raised = torch.tensor([int(flag) for flag in flags])
    if dist.is_initialized():
        dist.all_reduce(raised)
    return [bool(count) for count in raised]


def all_agree(fine: bool) -> bool:
    """Whether every rank says so."""
    return not any_of(not fine)[0]
