"""One step: forward and backward over its micro-batches, then the optimizer, unless a number is not finite."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from i2v.config import TrainConfig
from i2v.distributed import World, sum_over_ranks
from i2v.ema import Average
from i2v.finite import Guard, Seen
from i2v.losses import clip_losses
from i2v.mixing import draw_mix, mix, partners
from i2v.optim import finish_gradients


@dataclass(frozen=True)
class Passes:
    """How every step is made, and of what."""

    count: int  # micro-batches
    classes: int
    train: TrainConfig
    world: World
    autocast: Callable
    scaler: torch.amp.GradScaler
    repeats: int = 1  # how often a video follows itself in the stream
    class_weights: torch.Tensor | None = None  # (K,)


@dataclass(frozen=True)
class Taken:
    """How a step went: () tensors on the device."""

    loss: torch.Tensor  # the mean over the clips that count
    norm: torch.Tensor  # of the gradient, before clipping
    taken: torch.Tensor  # bool


def take_step(
    replica: nn.Module,
    batches: Iterator,
    passes: Passes,
    optimizer: torch.optim.Optimizer,
    guard: Guard,
    average: Average | None,
    samples: int,
    only: str = "",
) -> Taken:
    """One step from `samples` on; only: of the parameters whose names begin so. Nothing in it waits for the device.

    Whatever is raised when the next batch is asked for leaves the model as it was, and so does a step that is not taken.
    """
    train, scaler = passes.train, passes.scaler
    before = [(buffer, buffer.clone()) for buffer in statistics(replica)]
    try:
        totals, seen = add_gradients(replica, batches, passes, samples)
    except Exception:
        for buffer, value in before:
            buffer.copy_(value)
        raise
    sum_over_ranks(totals)
    counted = totals[0].clamp(min=1)
    forget_gradients(optimizer, only)
    # Clips in quarantine have weight 0: the mean is over the others. Usually this multiplies by exactly 1.
    norm = finish_gradients(optimizer, scaler, train.batch_size / counted, train.clip_grad)
    loss, scale = totals[1] / counted, scaler.scale(torch.ones_like(norm)) if scaler.is_enabled() else None
    taken = guard.judge(loss, norm, scale, seen)
    optimizer.found_inf = (~taken).float()  # the optimizer asks for it on the device
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    scaler.update()
    for buffer, value in before:
        buffer.copy_(torch.where(taken, buffer, value))
    if average is not None:
        average.update(taken)
    return Taken(loss, norm, taken)


def add_gradients(replica: nn.Module, batches: Iterator, passes: Passes, samples: int) -> tuple[torch.Tensor, list[Seen]]:
    """Forward and backward of one step. Gradients of the sum, over train.batch_size, are left in the parameters.

    Returns (2,) sums over this device's clips, of the weights and of the weighted losses, and what was seen.
    """
    train, world = passes.train, passes.world
    totals, seen = torch.zeros(2, device=world.device), []
    mixed = draw_mix(train, random.Random(f"mix {train.seed} {samples}"))  # the same on all devices
    for micro in range(passes.count):
        batch = next(batches)
        clips, targets, weights = batch.clips, batch.labels, batch.weights
        if mixed is not None:
            with_whom = partners(len(clips), passes.repeats).to(clips.device)
            clips, targets = mix(clips, targets, passes.classes, mixed, with_whom)
            weights = weights * weights[with_whom]  # a clip that counts for nothing spoils its partner
        torch.manual_seed(step_seed(train.seed, samples, micro, world.rank))  # dropout
        synchronise = micro == passes.count - 1 or world.size == 1
        with nullcontext() if synchronise else replica.no_sync():
            with passes.autocast():
                logits = replica(clips)
            losses = clip_losses(logits.float(), targets, batch.labels.ndim == 2, passes.class_weights, train.label_smoothing)
            loss = (losses * weights).sum()
            # DDP takes the mean over devices; with this factor it becomes the mean over the batch
            passes.scaler.scale(loss * (world.size / train.batch_size)).backward()
        totals += torch.stack((weights.sum(), loss.detach()))
        seen.append(Seen(batch.positions, batch.ids, (losses.detach() * weights).isfinite()))
    return totals, seen


def statistics(model: nn.Module) -> list[torch.Tensor]:
    """All that a forward pass changes: what batch norms collect."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers(recurse=False)]


def forget_gradients(optimizer: torch.optim.Optimizer, only: str) -> None:
    """Of all parameters but those whose names begin with `only`: the optimizer passes them over."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"]):
            if not name.startswith(only):
                parameter.grad = None


def step_seed(*where: int) -> int:
    """A seed that is a function of where the run is."""
    return int.from_bytes(hashlib.blake2b(repr(where).encode(), digest_size=8).digest(), "little") >> 1
