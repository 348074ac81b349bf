"""LoRA (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1), the baseline of every table.

    y = W x + b + (alpha / rank) B A x      in the linear layers named in `targets`

It knows no time: every frame is treated alone, and the mean is taken over the finished features, as in `clip`. B starts at
zero, so a fresh model is the image model with pooled frames; merge() adds (alpha / rank) B A to W, and nothing is left to pay.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import nn

from i2v.rules import Count, between
from i2v.vit import Block, VisionTransformer

LINEARS = {"out": ("attn", "out_proj"), "fc1": ("mlp", "c_fc"), "fc2": ("mlp", "c_proj")}  # where a block has them
TARGETS = ("q", "k", "v", *LINEARS)


class LowRank(nn.Module):
    """(..., in) -> (..., out): scale B A dropout(x)."""

    def __init__(self, inside, outside, rank, scale, dropout):
        super().__init__()
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.lora_A = nn.Parameter(torch.empty(rank, inside))
        self.lora_B = nn.Parameter(torch.zeros(outside, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as the authors' code

    def forward(self, x):
        return F.linear(self.scale * F.linear(self.dropout(x), self.lora_A), self.lora_B)

    def product(self):
        """What it adds to a weight, (out, in) in float64."""
        return self.scale * self.lora_B.double() @ self.lora_A.double()


class LoRALinear(nn.Linear):
    """A linear layer of the trunk, under its own names, and what is added to it."""

    def __init__(self, inside, outside, *low_rank):
        super().__init__(inside, outside)
        self.low_rank = LowRank(inside, outside, *low_rank)

    def forward(self, x):
        return super().forward(x) + self.low_rank(x)


class LoRABlock(Block):
    """A block with low-rank updates in the layers of `targets`; low_rank: rank, scale and dropout."""

    def __init__(self, spec, layer, targets, low_rank):
        super().__init__(spec, layer)
        width = spec.width
        self.qkv_lora = nn.ModuleDict({name: LowRank(width, width, *low_rank) for name in "qkv" if name in targets})
        for name in targets:
            if name in LINEARS:
                part, linear = LINEARS[name]
                plain = getattr(getattr(self, part), linear)
                setattr(getattr(self, part), linear, LoRALinear(plain.in_features, plain.out_features, *low_rank))

    def forward(self, x, num_frames, wanted=None):
        y = self.ln_1(x)
        qkv = dict(zip("qkv", self.attn.qkv(y, wanted)))
        for name, update in self.qkv_lora.items():
            qkv[name] = qkv[name] + update(y[:, :wanted] if name == "q" else y)
        x = x[:, :wanted] + self.attn.attend(*qkv.values())
        return x + self.mlp(self.ln_2(x))

    @torch.no_grad()
    def merge(self):
        """Add every update to its weight, in float64, rounded once to the layer's dtype: afterwards the block holds none."""
        for name, rows in zip("qkv", self.attn.in_proj_weight.chunk(3)):
            if name in self.qkv_lora:
                rows.copy_(rows.double() + self.qkv_lora[name].product())
        self.qkv_lora = nn.ModuleDict()
        for part, linear in LINEARS.values():
            adapted = getattr(getattr(self, part), linear)
            if isinstance(adapted, LoRALinear):
                plain = nn.Linear(adapted.in_features, adapted.out_features).to(adapted.weight)
                plain.weight.copy_(adapted.weight.double() + adapted.low_rank.product())
                plain.bias.copy_(adapted.bias)
                setattr(getattr(self, part), linear, plain)


class LoRATransformer(VisionTransformer):
    """(B, 3, T, H, W) -> (B, width), for any T."""

    def forward(self, clips):
        frames = super().forward(rearrange(clips, "b c t h w -> (b t) c h w"))
        return reduce(frames, "(b t) c -> b c", "mean", t=clips.shape[2])


def build(
    spec,
    num_frames,
    *,
    rank: Count = 8,
    alpha: float = 16.0,
    targets=("q", "v"),
    dropout: Annotated[float, between(0, 1, below=True)] = 0.0,
    merged: bool = False,
):
    """The backbone; the low-rank updates train. Any number of frames works.

    rank: of the updates. alpha: they are multiplied by alpha / rank. targets: any of q, k, v, out (behind the attention), fc1
    and fc2 (the MLP's). dropout: of what enters A. merged: what merging leaves: no updates, all frozen. Raises ValueError on a
    value outside these.
    """
    if isinstance(targets, str) or not targets or set(targets) - set(TARGETS) or len(set(targets)) < len(targets):
        raise ValueError(f"targets must be a list of some of {', '.join(TARGETS)}, each once, got {targets!r}")
    if rank > spec.width:
        raise ValueError(f"rank must be at most the backbone's width {spec.width}, got {rank}")
    targets = () if merged else targets
    model = LoRATransformer(spec, lambda spec, layer: LoRABlock(spec, layer, targets, (rank, alpha / rank, dropout)))
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, LowRank):
            module.requires_grad_(True)
    return model
