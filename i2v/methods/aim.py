"""AIM (Yang et al. 2023, "AIM: Adapting Image Models for Efficient Video Action Recognition", section 3).

One frozen attention serves twice in a block, over the frames and over the tokens of a frame:

    x = x + T(attn(T_in(ln_1(x))))      over the frames, at every token position; T_in only with temporal_adapters=2
    x = x + S(attn(ln_1(x)))            over the tokens of each frame
    x = x + mlp(y) + scale M(y)         y = ln_2(x)

The adapters S and T_in add their input to their output, T and M do not; all start at zero, so a fresh model is CLIP
with pooled frames. drop_path drops whole clips, as stochastic depth is meant; the authors' code, whose first axis is
the tokens, drops the same token positions in all clips of a batch instead.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from i2v.rules import between, one_of
from i2v.video import FrameTransformer, from_mmaction
from i2v.vit import Block, DropPath

TILE = 128  # queries and keys


class Adapter(nn.Module):
    """(..., C) -> (..., C): a bottleneck of `hidden` channels with an exact GELU; `skip` adds the input.

    The second layer starts at zero: a fresh adapter is the identity with `skip` and zero without.
    """

    def __init__(self, width, hidden, skip):
        super().__init__()
        self.skip = skip
        self.D_fc1 = nn.Linear(width, hidden)  # the authors' names
        self.act = nn.GELU()
        self.D_fc2 = nn.Linear(hidden, width)
        nn.init.trunc_normal_(self.D_fc1.weight, std=0.02)
        for parameter in (self.D_fc1.bias, self.D_fc2.weight, self.D_fc2.bias):
            nn.init.zeros_(parameter)

    def forward(self, x):
        delta = self.D_fc2(self.narrow(x))
        return x + delta if self.skip else delta

    def narrow(self, x):
        """(..., C) -> (..., hidden), where whatever is done to the result is done to fewer channels."""
        return self.act(self.D_fc1(x))

    def widen(self, hidden, factor):
        """(N, L, hidden) -> (N, L, C), times factor, a number or (N, 1, 1)."""
        return F.linear(factor * hidden, self.D_fc2.weight) + factor * self.D_fc2.bias.to(hidden.dtype)


def attend_within(x, attn, tile=None):
    """Self-attention within each of many short sequences: (N, T, C) -> the same.

    A GPU's kernels work on tiles of 128 queries and keys, of which T = 8 would leave 15 in 16 empty; so as many sequences
    as fit a tile and divide N are read as one, uncopied, in which a token sees its own sequence only. tile: None takes
    the device's.
    """
    count, length, width = x.shape
    tile = tile or (TILE if x.device.type == "cuda" else length)
    fit = 1 if torch.compiler.is_exporting() else max(tile // length, 1)  # an exported program takes any batch
    together = (math.gcd(count, fit) if fit > 1 else 1) * length  # tokens that are one sequence
    q, k, v = (y.reshape(-1, together, width) for y in attn.qkv(x))
    own = torch.arange(together, device=x.device) // length
    mask = own[:, None] == own if together > length else None
    return attn.attend(q, k, v, mask, placed=False).reshape(x.shape)


class AIMBlock(Block):
    """A CLIP block with temporal, spatial and joint adaptation; drop_path is its probability, or None."""

    def __init__(self, spec, layer, hidden, temporal_adapters, scale, drop_path):
        super().__init__(spec, layer)
        self.scale = scale
        self.T_Adapter_in = Adapter(spec.width, hidden, skip=True) if temporal_adapters == 2 else nn.Identity()
        self.T_Adapter = Adapter(spec.width, hidden, skip=False)
        self.S_Adapter = Adapter(spec.width, hidden, skip=True)
        self.MLP_Adapter = Adapter(spec.width, hidden, skip=False)
        self.drop_path = None if drop_path is None else DropPath(drop_path)

    def forward(self, x, num_frames, wanted=None):
        x = x + self.over_frames(self.ln_1(x), num_frames)
        x = x[:, :wanted] + self.S_Adapter(self.attn(self.ln_1(x), wanted))
        y = self.ln_2(x)
        factor = self.scale * self.kept(y, num_frames)
        return x + self.mlp(y) + self.MLP_Adapter.widen(self.MLP_Adapter.narrow(y), factor)

    def over_frames(self, x, num_frames):
        """(B*T, L, C) -> (B*T, L, C): attention among the T tokens that share a position, between the adapters."""
        sequences = rearrange(x, "(b t) l c -> (b l) t c", t=num_frames)
        sequences = self.T_Adapter.narrow(attend_within(self.T_Adapter_in(sequences), self.attn))
        hidden = rearrange(sequences, "(b l) t c -> (b t) l c", l=x.shape[1])
        return self.T_Adapter.widen(hidden, self.kept(hidden, num_frames))

    def kept(self, x, num_frames):
        """The factor of what is added, with which clips are dropped: (B*T, 1, 1), or 1."""
        return self.drop_path.factor(x, num_frames) if self.drop_path is not None and self.training else 1


def build(
    spec,
    num_frames,
    *,
    temporal_adapters: Annotated[int, one_of(1, 2)] = 1,
    adapter_scale: float = 0.5,
    bottleneck_ratio: float = 0.25,
    drop_path: Annotated[float, between(0, 1, below=True)] = 0.0,
):
    """The backbone for clips of num_frames frames; the adapters, the temporal embedding and ln_post train.

    temporal_adapters: 1, or 2 to add T_in. adapter_scale: factor of the joint adapter. bottleneck_ratio: an adapter's
    inner width over the backbone's. drop_path: the last layer's probability of dropping a clip's temporal and joint
    adaptation, rising linearly from 0 in the first. Raises ValueError on a value outside these.
    """
    hidden = int(spec.width * bottleneck_ratio)
    if hidden < 1:
        raise ValueError(
            f"bottleneck_ratio must leave at least one of the backbone's {spec.width} channels, got {bottleneck_ratio!r}"
        )

    def block(spec, layer):
        probability = drop_path * layer / max(spec.layers - 1, 1) if drop_path else None
        return AIMBlock(spec, layer, hidden, temporal_adapters, adapter_scale, probability)

    return FrameTransformer(spec, block, num_frames).train_only(Adapter)


from_authors = from_mmaction  # the name in our model of a parameter in the authors' checkpoints
