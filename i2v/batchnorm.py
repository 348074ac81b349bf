"""Batch normalisation (Ioffe & Szegedy 2015) by the statistics of all processes' clips, on any device and while compiled.

Parameters, buffers and numbers are nn.BatchNorm3d's. torch's own SyncBatchNorm does not run on a CPU, cuts a compiled block
in pieces, and sends a message for each norm; here norms whose results are added together share one.
"""

from functools import reduce

import torch
import torch.distributed as dist
from torch import nn


class BatchNorm(nn.BatchNorm3d):
    """(B, C, T, H, W) -> the same. `shared`: in training, normalise by the clips of all processes, as share_batchnorms sets
    it; else by those of this one, as nn.BatchNorm3d does."""

    shared = False

    def forward(self, x):
        return normalised_sum((self, x)) if self.shared else super().forward(x)


def share_batchnorms(model: nn.Module) -> None:
    """Let a model's batch norms see the clips of all processes of the default process group together, from now on."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.shared = True


def normalised_sum(*parts):
    """The sum of norm(x) over pairs of a BatchNorm and its (B, C, T, H, W), which all have the same shape."""
    norms, xs = zip(*parts)
    # Run as they are written, torch's own kernels are faster; compiled, these lines become part of what stands around them.
    if not (norms[0].shared or torch.compiler.is_compiling()) or any(type(norm) is not BatchNorm for norm in norms):
        return reduce(torch.add, (norm(x) for norm, x in parts))
    if norms[0].training:
        count, *moments = Moments.apply(norms[0].shared, *xs)
        means, variances = moments[: len(xs)], moments[len(xs) :]
        for norm, mean, variance in zip(norms, means, variances):
            collect(norm, count, mean, variance)
    else:
        means, variances = [norm.running_mean for norm in norms], [norm.running_var for norm in norms]
    scales = [norm.weight * torch.rsqrt(variance + norm.eps) for norm, variance in zip(norms, variances)]
    total = over_channels(reduce(torch.add, (norm.bias - mean * scale for norm, mean, scale in zip(norms, means, scales))))
    for x, scale in zip(xs, scales):
        total = total + x * over_channels(scale)
    return total.to(xs[0].dtype)


@torch.no_grad()
def collect(norm: BatchNorm, count, mean, variance) -> None:
    """Move the running statistics, as nn.BatchNorm3d does: its running variance is the unbiased one."""
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    unbiased = variance * (count / (count - 1).clamp(min=1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)


def over_channels(x):
    """(C) -> (C, 1, 1, 1)"""
    return x[:, None, None, None]


class Moments(torch.autograd.Function):
    """(B, C, T, H, W) each -> how many values a channel has (), the mean of each input (C), the variance of each (C)."""

    @staticmethod
    def forward(ctx, shared, *xs):
        dtype = torch.promote_types(xs[0].dtype, torch.float32)
        variances, means = zip(*(torch.var_mean(x.to(dtype), (0, 2, 3, 4), correction=0) for x in xs))
        count = means[0].new_full((), xs[0].numel() // xs[0].shape[1])
        if shared:
            count, means, variances = of_all_processes(count, means, variances)
        ctx.shared = shared
        ctx.save_for_backward(count, *means, *xs)
        ctx.mark_non_differentiable(count)
        return count, *means, *variances

    @staticmethod
    def backward(ctx, _, *gradients):
        count, *saved = ctx.saved_tensors
        means, xs = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        gradients = torch.stack(gradients)  # (2 * norms, C)
        if ctx.shared:
            dist.all_reduce(gradients)
        by_mean, by_variance = (gradients / count).chunk(2)
        slopes = [2 * g for g in by_variance]
        offsets = [g - slope * mean for g, slope, mean in zip(by_mean, slopes, means)]
        return None, *(
            (over_channels(offset) + x * over_channels(slope)).to(x.dtype) for x, offset, slope in zip(xs, offsets, slopes)
        )


def of_all_processes(count, means, variances):
    """What Moments gives, of all processes' clips together (Chan et al. 1979); processes may have different numbers of them."""
    own = torch.cat((count[None], *means, *variances))
    parts = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(parts, own)
    counts, parts = parts.unflatten(0, (-1, len(own))).split((1, len(own) - 1), dim=1)
    means, variances = parts.unflatten(1, (2, len(means), -1)).unbind(1)  # (processes, norms, C)
    share = (counts / counts.sum())[..., None]
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    return counts.sum(), mean.unbind(), variance.unbind()
