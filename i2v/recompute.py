"""Memory for time: what a block computes is not kept for the backward pass but computed once more."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from i2v.model import VideoClassifier


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


def layers_that_keep(model: VideoClassifier) -> list[nn.Module]:
    """The modules, in order, that keep most of what the gradient needs."""
    if model.trunk is model.backbone:
        return list(model.trunk.transformer.resblocks)
    side = model.backbone.dist_net
    return [net for pair in zip(side.temporal_nets, side.integration_nets) for net in pair]


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
