"""The attentive probe of V-JEPA (Bardes et al. 2024, section 4.2) and V-JEPA 2 (Assran et al. 2025, section 5), a baseline.

A frozen image model gives the tokens of every frame, all of them, normalised; what is trained reads them together:

    x = x + attn(LN(x)); x = x + mlp(LN(x))         depth - 1 times, over all tokens of the clip
    q = q + cross(q, LN(x)); q = q + mlp(LN(q))     one learned query, without an output projection

As in the authors' code heads have width / heads channels, nothing tells frames apart but what the trunk saw in them, weights
start as truncated normal 0.02, and those that write into the stream are divided by sqrt(2 layer).
"""

from dataclasses import replace
from typing import Annotated

import torch
from einops import rearrange
from torch import nn

from i2v.rules import Count, at_least
from i2v.vit import Block, LayerNorm, VisionTransformer, mlp


class CrossAttention(nn.Module):
    """Queries (B, Q, C) gather tokens (B, N, C), and an MLP follows: -> (B, Q, C)."""

    def __init__(self, spec):
        super().__init__()
        self.heads = spec.heads
        self.norm1, self.norm2 = LayerNorm(spec.width, spec.norm_eps), LayerNorm(spec.width, spec.norm_eps)
        self.q, self.kv = nn.Linear(spec.width, spec.width), nn.Linear(spec.width, 2 * spec.width)
        self.mlp = mlp(spec)

    def forward(self, query, x):
        qkv = self.q(query), *self.kv(self.norm1(x)).chunk(2, dim=-1)
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in qkv)
        gathered = nn.functional.scaled_dot_product_attention(q, k, v)
        query = query + rearrange(gathered, "b h n d -> b n (h d)")
        return query + self.mlp(self.norm2(query))


class Pooler(nn.Module):
    """(B, N, C) -> (B, C)."""

    def __init__(self, spec, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block(spec) for _ in range(depth - 1))
        self.cross = CrossAttention(spec)
        self.query = nn.Parameter(torch.empty(1, 1, spec.width))
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        for layer, block in enumerate(self.blocks, 1):
            for weight in (block.attn.out_proj.weight, block.mlp.c_proj.weight):
                weight.div_((2 * layer) ** 0.5)
        self.cross.mlp.c_proj.weight.div_((2 * max(len(self.blocks), 1)) ** 0.5)

    def forward(self, x):
        for block in self.blocks:
            x = block(x, num_frames=1)
        return self.cross(self.query.to(x.dtype).expand(len(x), -1, -1), x)[:, 0]


class AttentiveProbe(VisionTransformer):
    """(B, 3, T, H, W) -> (B, width), for any T."""

    def __init__(self, spec, pooler):
        super().__init__(spec)
        self.requires_grad_(False)
        self.pooler = pooler

    @property
    def keeping(self):
        """The modules, in order, that keep what the gradient needs: the trunk keeps nothing."""
        return [*self.pooler.blocks, self.pooler.cross]

    def forward(self, clips):
        tokens = self.ln_post(self.encode(self.embed(rearrange(clips, "b c t h w -> (b t) c h w"))))
        return self.pooler(rearrange(tokens, "(b t) l c -> b (t l) c", t=clips.shape[2]))


def build(spec, num_frames, *, depth: Annotated[int, at_least(1)] = 4, heads: Count = 16):
    """The frozen backbone with its pooler, which trains. Any number of frames works.

    depth: layers of the pooler, the last being the one that reads with a query: 1 in V-JEPA, 4 in V-JEPA 2. heads: of its
    attention. Raises ValueError on a value that does not fit.
    """
    if spec.width % heads:
        raise ValueError(f"heads must divide the backbone's width {spec.width}, got {heads}")
    plain = dict(activation="gelu", mlp_width=None, rotary=None, attn_norm=False, mlp_norm=False)
    return AttentiveProbe(spec, Pooler(replace(spec, heads=heads, **plain), depth))
