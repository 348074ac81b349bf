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
PR_SET_PDEATHSIG = 1  # Linux: prctl(2)


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def init_world(device: str = "auto") -> World:
    """Join the process group that torchrun describes. device: auto, cpu or gpu; each process takes one GPU."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_launcher()
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
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
    if size > 1 and not dist.is_initialized():
        # gloo carries the small host-side messages, nccl the gradients
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout=PATIENCE)
    return World(rank, size, torch.device("cuda", local) if use_gpu else torch.device("cpu"))


def end_with_launcher() -> None:
    """Let the kernel end this process when torchrun is gone: nobody else would, and a new start would write beside it.

    With SIGTERM a run would still save its state, while the next start may already read the one before.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def close_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def wait_for_all() -> None:
    """Until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def share_buffers(model: torch.nn.Module) -> None:
    """Give all ranks rank 0's buffers (BatchNorm's running statistics), so that they evaluate the same model."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def all_agree(fine: bool) -> bool:
    """Whether every rank says so. A message between hosts; devices do not wait."""
    if not dist.is_initialized():
        return fine
    troubles = torch.tensor(int(not fine))
    dist.all_reduce(troubles)
    return not troubles.item()


class StopSignal:
    """SIGTERM or Ctrl-C, agreed upon: all ranks see it after the same step, although it comes at different times.

    A second Ctrl-C stops at once.
    """

    def __init__(self):
        self._received = False
        self._pending = None  # (request, flag) of the vote that is under way
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def _receive(self, number, _):
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = True

    def __call__(self) -> bool:
        """Call once per step on every rank. The vote of a step is read at the next one, so that nobody waits for it."""
        if not dist.is_initialized():
            return self._received
        flag = torch.tensor(int(self._received))
        request = dist.all_reduce(flag, async_op=True)
        decided = False
        if self._pending is not None:
            self._pending[0].wait()
            decided = bool(self._pending[1])
        self._pending = (request, flag)
        return decided

    def close(self) -> None:
        if self._pending is not None:
            self._pending[0].wait()
