"""ZeroI2V (Li et al. 2024, "ZeroI2V: Zero-Cost Adaptation of Pre-trained Transformers from Image to Video", section 3).

    x = x + A_out(attend(q, shift(k), shift(v)))        q, k, v = qkv(A_in(ln_1(x)))
    x = x + A_out(mlp(A_in(ln_2(x))))                   A(x) = x + scale fc2(fc1(x)), linear

shift moves some channels of the keys and values by a few frames, so that some heads look at other frames at no cost;
and as every adapter is linear and touches a linear layer of CLIP, merge() folds them all into it: what remains is
CLIP's transformer with the shift.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from i2v.rules import Count, between, one_of
from i2v.video import FrameTransformer, from_mmaction
from i2v.vit import Block

ADAPTERS = ("T_Adapter_in", "S_Adapter", "MLP_Adapter", "MLP_Adapter_out")  # the authors' names, in order of use
LONG = 2  # frames that the long shift reaches, whatever shift_stride is


class LinearAdapter(nn.Module):
    """(..., C) -> (..., C): x + scale fc2(dropout(fc1(x))); the second layer starts at zero, so a fresh one is x."""

    def __init__(self, width, hidden, scale, dropout):
        super().__init__()
        self.scale = scale
        self.D_fc1 = nn.Linear(width, hidden)  # the authors' names
        self.dropout = nn.Dropout(dropout)
        self.D_fc2 = nn.Linear(hidden, width)
        nn.init.trunc_normal_(self.D_fc1.weight, std=0.02)
        for parameter in (self.D_fc1.bias, self.D_fc2.weight, self.D_fc2.bias):
            nn.init.zeros_(parameter)

    def forward(self, x):
        # scale enters before the second product: scaling its result would read and write all channels once more, both ways.
        hidden, fc2 = self.scale * self.dropout(self.D_fc1(x)), self.D_fc2
        return x + F.linear(hidden, fc2.weight, self.scale * fc2.bias)

    def affine(self):
        """(W (C, C), b (C,)) in float64, with which this adapter is W x + b when nothing is dropped."""
        w1, b1, w2, b2 = (p.double() for fc in (self.D_fc1, self.D_fc2) for p in (fc.weight, fc.bias))
        identity = torch.eye(len(b2), dtype=w1.dtype, device=w1.device)
        return identity + self.scale * w2 @ w1, self.scale * (w2 @ b1 + b2)


def shift(x, shifts, num_frames):
    """(B*T, L, C) -> (B*T, L, C): each (channels, frames) of `shifts`, from channel 0 up, reads `frames` frames later.

    Where the clip has no such frame a frame keeps its own values. Slices and concatenations only, in the layout the
    tokens have, so that all of it becomes one kernel under torch.compile.
    """
    x = rearrange(x, "(b t) l c -> b t l c", t=num_frames)
    groups = x.split([channels for channels, _ in shifts], dim=-1)
    x = torch.cat([_from_frame(group, frames) for group, (_, frames) in zip(groups, shifts)], dim=-1)
    return rearrange(x, "b t l c -> (b t) l c")


def _from_frame(x, frames):
    """(B, T, L, C) -> the same, frame t being frame t + frames where there is one, else itself."""
    if frames == 0:
        return x
    reach, inside = abs(frames), max(x.shape[1] - abs(frames), 0)  # `inside` frames have one to read
    if frames < 0:
        return torch.cat((x[:, :reach], x[:, :inside]), dim=1)
    return torch.cat((x[:, reach:], x[:, inside:]), dim=1)


class ShiftBlock(Block):
    """A CLIP block with shifted keys and values and the adapters named in `adapters`; the others are the identity."""

    def __init__(self, spec, layer, shifts, adapters, make_adapter):
        super().__init__(spec, layer)
        self.shifts = shifts
        for name in ADAPTERS:
            setattr(self, name, make_adapter() if name in adapters else nn.Identity())

    def forward(self, x, num_frames, wanted=None):
        q, k, v = self.attn.qkv(self.T_Adapter_in(self.ln_1(x)), wanted)
        k, v = shift(k, self.shifts, num_frames), shift(v, self.shifts, num_frames)
        x = x[:, :wanted] + self.S_Adapter(self.attn.attend(q, k, v))
        return x + self.MLP_Adapter_out(self.mlp(self.MLP_Adapter(self.ln_2(x))))

    @torch.no_grad()
    def merge(self):
        """Fold every adapter into the linear layer before or after it, in float64, rounded once to the layer's dtype."""
        _fold_before(self.T_Adapter_in, self.attn.in_proj_weight, self.attn.in_proj_bias)
        _fold_after(self.S_Adapter, self.attn.out_proj.weight, self.attn.out_proj.bias)
        _fold_before(self.MLP_Adapter, self.mlp.c_fc.weight, self.mlp.c_fc.bias)
        if isinstance(self.MLP_Adapter_out, LinearAdapter):
            _fold_after(self.MLP_Adapter_out, self.mlp.c_proj.weight, self.mlp.c_proj.bias)
        for name in ADAPTERS:
            setattr(self, name, nn.Identity())


def _fold_before(adapter, weight, bias):
    """weight (W x + b) + bias = (weight W) x + (weight b + bias)"""
    w, b = adapter.affine()
    bias.copy_(weight.double() @ b + bias.double())
    weight.copy_(weight.double() @ w)


def _fold_after(adapter, weight, bias):
    """W (weight x + bias) + b = (W weight) x + (W bias + b)"""
    w, b = adapter.affine()
    bias.copy_(w @ bias.double() + b)
    weight.copy_(w @ weight.double())


def build(
    spec,
    num_frames,
    *,
    mlp_adapters: Annotated[int, one_of(1, 2)] = 2,
    adapter_scale: float = 0.5,
    bottleneck_ratio: float = 0.25,
    adapter_dropout: Annotated[float, between(0, 1, below=True)] = 0.1,
    shift_div=12,
    shift_stride: Count = 1,
    long_shift_div=None,
    long_shift_right: bool = False,
    merged: bool = False,
):
    """The backbone for clips of num_frames frames; the adapters, the temporal embedding and ln_post train.

    mlp_adapters: 1 before the MLP, 2 to add the one after it. adapter_scale: factor of every adapter. bottleneck_ratio:
    an adapter's inner width over the backbone's. adapter_dropout: inside the adapters. shift_div: of the keys' and
    values' channels the first 1/shift_div come from shift_stride frames earlier, the next from as many later.
    long_shift_div: so for 2 frames earlier and, with long_shift_right, 2 later; None: no long shift. merged: what
    merging leaves: no adapters, all frozen, whatever the adapter options. Raises ValueError on a value outside these.
    """
    hidden = int(spec.width * bottleneck_ratio)
    if hidden < 1:
        raise ValueError(
            f"bottleneck_ratio must leave at least one of the backbone's {spec.width} channels, got {bottleneck_ratio!r}"
        )
    shifts = channel_shifts(spec.width, shift_div, shift_stride, long_shift_div, long_shift_right)
    adapters = () if merged else ADAPTERS[: 2 + mlp_adapters]

    def block(spec, layer):
        return ShiftBlock(
            spec, layer, shifts, adapters, lambda: LinearAdapter(spec.width, hidden, adapter_scale, adapter_dropout)
        )

    model = FrameTransformer(spec, block, num_frames)
    return model.requires_grad_(False) if merged else model.train_only(LinearAdapter)


def channel_shifts(width, shift_div, shift_stride, long_shift_div, long_shift_right):
    """[(channels, frames), ...] that cover the width, as shift() takes them: earlier, later, long ones, the rest."""
    near = _share(width, shift_div, "shift_div")
    shifts = [(near, -shift_stride), (near, shift_stride)]
    if long_shift_div is not None:
        far = _share(width, long_shift_div, "long_shift_div (null: no long shift)")
        shifts += [(far, -LONG), (far, LONG)] if long_shift_right else [(far, -LONG)]
    rest = width - sum(channels for channels, _ in shifts)
    if rest < 0:
        raise ValueError(
            f"the shifts take {width - rest} channels but the backbone has {width}: raise shift_div "
            f"({shift_div}) or long_shift_div ({long_shift_div})"
        )
    return [*shifts, (rest, 0)]


def _share(width, divisor, name):
    if type(divisor) is not int or not 1 <= divisor <= width:
        raise ValueError(f"{name} must be an integer from 1 to the backbone's width {width}, got {divisor!r}")
    return width // divisor


from_authors = from_mmaction  # the name in our model of a parameter in the authors' checkpoints
