"""Memory: what a step on a CPU needs, counted before the first one, and what there is to do when it runs out."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from i2v.config import TrainConfig
from i2v.model import create_model

SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "alloc_failed")  # in libraries' errors
GIB = 2**30
ROOM = 0.8  # of the memory that is there, for what is kept: the backward pass makes gradients of it
KEPT = {"none": 1.0, "half": 0.5, "all": 0.0}  # train.recompute: of what the gradient needs, at least so much is kept


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, whoever raised it, says that there is no memory left: on a GPU or on the host."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error).lower() for sign in SIGNS)


def remedy(train: TrainConfig, micro_batch: int, group: int) -> str:
    """What to do where a forward pass of so many clips per device does not fit, as the end of a sentence. group: of how many
    clips a pass must be a multiple (mixed_together)."""
    if micro_batch <= group:
        what = "train.recompute=all, a lower model.num_frames or a smaller model.backbone"
        return f"train.micro_batch is {group} already, so set {what}"
    more = "" if train.recompute == "all" else ", or train.recompute=all, which is slower"
    half = max(group, micro_batch // 2 // group * group)
    return f"set train.micro_batch={half} (a step stays one of {train.batch_size} clips){more}"


def out_of_memory(train: TrainConfig, micro_batch: int, group: int) -> str:
    """The sentence for a run that has ended so; group: as for `remedy`."""
    what = remedy(train, micro_batch, group)
    return (
        f"Out of memory with {micro_batch} clips per device and forward pass: {what}; if it was in an evaluation, lower "
        "train.eval_batch; the same command goes on from the last checkpoint."
    )


def too_little_memory(train: TrainConfig, micro_batch: int, group: int, model: dict, processes: int) -> str | None:
    """A line if a step will clearly not fit into this machine, which may end the run without a word.

    group: as for `remedy`. model: arguments of create_model. processes: that share the memory.
    """
    per_clip, there = kept_per_clip(model) * KEPT[train.recompute] * processes, available()
    if there is None or per_clip * micro_batch <= there:
        return None
    fits = int(ROOM * there // per_clip) // group * group
    what = f"set train.micro_batch={fits}" if fits else remedy(train, group, group)
    return (
        f"WARNING: a forward pass of {micro_batch} clips keeps about {per_clip * micro_batch / GIB:.1f} GiB for its gradient, "
        f"and this machine has {there / GIB:.1f} GiB for it: {what}, or the system may end the run without a word."
    )


def kept_per_clip(model: dict) -> int:
    """Bytes in float32 that a forward pass keeps for its backward pass, counted on the meta device; nothing is computed."""
    with torch.device("meta"):
        built = create_model(**model).train()
        clip = torch.empty(1, 3, built.num_frames, *[built.spec.image_size] * 2)
    own = {tensor.untyped_storage()._cdata for tensor in [*built.parameters(), *built.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # kept alive: its address is its name
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _features = built.forward_features(clip)
    return sum(storage.nbytes() for name, storage in kept.items() if name not in own)


def available() -> int | None:
    """Bytes of memory that this machine, or the container's limit, leaves; None where the kernel does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(limit).read_text().strip() if os.access(limit, os.R_OK) else ""
        found += [int(text)] if text.isdigit() else []
    return min(found, default=None)
