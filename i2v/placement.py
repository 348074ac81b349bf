"""A model on its device: in which precision, compiled, with what it keeps for the backward pass."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from i2v.model import VideoClassifier
from i2v.vit import Attention, VisionTransformer


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: bf16 where the device has it in hardware, fp16 on older GPUs, float32 without one."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[precision]


def place(model: VideoClassifier, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to its device. Frozen matrices are stored in the dtype they are multiplied in; what is trained,
    and what normalises, stays float32."""
    model.to(device)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, Attention)):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
    if isinstance(model.trunk, VisionTransformer):
        patches = model.trunk.conv1
        patches.to(memory_format=torch.channels_last if patches.weight.ndim == 4 else torch.channels_last_3d)


def autocast_for(device: torch.device, dtype: torch.dtype):
    """A function that gives the context in which the model runs."""
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype)


def may_compile(wanted: bool | str, device: torch.device) -> tuple[bool, str]:
    """Whether blocks are to be compiled, and what to tell if that is not as wanted; wanted: train.compile.

    On a CPU compiling takes longer than it saves in most runs; and what torch.compile writes there is C++, on a GPU Triton,
    which needs a C compiler.
    """
    if wanted is False or (wanted == "auto" and device.type == "cpu"):
        return False, ""
    variable, names = ("CXX", ["g++"]) if device.type == "cpu" else ("CC", ["gcc", "clang"])
    names = [os.environ[variable]] if os.environ.get(variable) else names
    if any(map(shutil.which, names)):
        return True, ""
    return False, f"note: there is no {' or '.join(names)} here, so blocks are not compiled: install it for faster steps."


def compile_blocks(model: VideoClassifier, wanted: bool | str = True, **options) -> None:
    """torch.compile, block by block: identical blocks are compiled once, and parameter names stay as they are.

    So is what makes tokens of pixels. A backbone that owns its trunk (DiST) has a side network as well, which is compiled
    as a whole. wanted: as for may_compile; options: torch.compile's.
    """
    if wanted == "autotune":
        options["mode"] = "max-autotune-no-cudagraphs"
    for seen in (torch.empty(1), nn.Parameter(torch.empty(1))):
        rearrange(seen, "n -> n")  # einops remembers types; one more, and what is compiled would be compiled again
    model.trunk.embed = torch.compile(model.trunk.embed, dynamic=False, **options)
    for block in blocks_of(model.trunk):
        block.forward = torch.compile(block.forward, dynamic=False, **options)
    if model.trunk is not model.backbone:
        for part in model.backbone.children():
            if part is not model.trunk:
                part.compile(dynamic=False, **options)


def recompute_blocks(model: VideoClassifier, which: str) -> None:
    """Keep only what enters a block, and run it once more when its gradient is due: memory for time, the same numbers.

    which: "all" blocks, "half" of them (every other one), or "none". In DiST these are the layers of the side network: its
    trunk keeps nothing. Call it after compile_blocks: each run of a block is a compiled one.
    """
    if which == "none":
        return
    for block in layers_that_keep(model)[:: 2 if which == "half" else 1]:
        collects = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in block.modules())
        once = {"context_fn": partial(_once_counted, block)} if collects else {}
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, **once)


def blocks_of(trunk: nn.Module) -> list[nn.Module]:
    """The layers of an image model, in order."""
    return list(trunk.transformer.resblocks if isinstance(trunk, VisionTransformer) else trunk.blocks)


def layers_that_keep(model: VideoClassifier) -> list[nn.Module]:
    """The modules, in order, that keep most of what the gradient needs: the trunk's blocks, if a method does not say which."""
    return getattr(model.backbone, "keeping", None) or blocks_of(model.trunk)


def _once_counted(block: nn.Module):
    """Contexts of a block's first run and of its second, in which batch norms do not collect statistics again."""
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module):
    """Batch norms work as before, and what they collect stays as it is."""
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momentum, counts = [m.momentum for m in norms], [m.num_batches_tracked.clone() for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, before, count in zip(norms, momentum, counts):
            norm.momentum = before
            norm.num_batches_tracked.copy_(count)
