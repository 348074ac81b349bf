"""TAdaConvNeXtV2 (Huang et al. 2023, "Temporally-Adaptive Models for Efficient Video Understanding", arXiv 2308.05787).

ConvNeXt (Liu et al. 2022) whose depthwise convolutions adapt to every frame; features x are (B, T, H, W, C):

    y = alpha * dwconv(x) + alpha_bias * bias           alpha, alpha_bias = RouteFuncwTransformer(x)
    y = norm(y) + norm_avgpool(mean of the frames t-1, t, t+1 of y)
    x = x + gamma * pwconv2(act(pwconv1(y)))

The stem sees tubelets of `tubelet_size` frames at every `tubelet_stride`-th one, and loads from the image model's as its
middle frame between zeros. norm_avgpool starts at zero and alpha at one: a fresh model is the image model on frames 0, s,
2s, ... (s the stride), with the features of all of them averaged before the last norm.

The authors use QuickGELU although the ImageNet weights come from a ConvNeXt with the exact GELU; so does "tiny", and any
other backbone that does not say activation: gelu. CLIP's ConvNeXts of open_clip, which their paper does not use, keep GELU.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from i2v.rules import ODD, Count, at_least, between, check, one_of
from i2v.tadaconv import RouteFuncwTransformer, TAdaConv2dV2, mean_of_three_frames
from i2v.vit import DropPath, LayerNorm, residual_stream

SHRINKS = 32  # of height and width, from the pixels to the last stage
ADDED = ("dwconv_rf", "norm_avgpool")  # what the image model does not have


@dataclass(frozen=True)
class Spec:
    """A ConvNeXt: blocks and channels of its four stages, the activation; the size and normalisation of its pictures."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    image_size: Count = 224
    activation: Annotated[str, one_of("quick_gelu", "gelu")] = "quick_gelu"
    mean: tuple[float, ...] = (0.45, 0.45, 0.45)
    std: tuple[float, ...] = (0.225, 0.225, 0.225)


class TAdaConvNeXtBlock(nn.Module):
    """(B, T, H, W, C) -> the same. drop_path: this block's probability, None for none."""

    def __init__(self, dim, activation, route, drop_path):
        super().__init__()
        self.activation = activation
        self.dwconv = TAdaConv2dV2(
            dim, dim, 7, padding=3, groups=dim, cal_dim="cout", internal_rf_func=False, internal_temp_aggr=False
        )
        self.dwconv_rf = RouteFuncwTransformer(dim, with_bias_cal=True, **route)
        self.norm = LayerNorm(dim, eps=1e-6)
        self.norm_avgpool = LayerNorm(dim, eps=1e-6)
        nn.init.zeros_(self.norm_avgpool.weight)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6))
        self.drop_path = None if drop_path is None else DropPath(drop_path)

    def forward(self, x):
        frames = rearrange(x, "b t h w c -> b c t h w")  # a view
        y = self.dwconv(frames, self.dwconv_rf(frames))
        mean = rearrange(mean_of_three_frames(y), "b c t h w -> b t h w c")
        y = self.mlp(self.norm(rearrange(y, "b c t h w -> b t h w c")) + self.norm_avgpool(mean))
        return x + (y if self.drop_path is None else self.drop_path(y.flatten(1, 3), 1).view_as(y))

    def mlp(self, y):
        """gamma * pwconv2(act(pwconv1(y))), with gamma, and QuickGELU's factor in x sigmoid(1.702 x), in the matrices:
        what is four times as wide as x is then read and written once."""
        factor = 1.702 if self.activation == "quick_gelu" else 1
        y = F.linear(y, factor * self.pwconv1.weight, factor * self.pwconv1.bias)
        y = F.gelu(y) if self.activation == "gelu" else F.silu(y)
        return F.linear(y, (self.gamma / factor)[:, None] * self.pwconv2.weight, self.gamma * self.pwconv2.bias)


class TAdaConvNeXt(nn.Module):
    """(B, 3, T, H, W) -> (B, D), for any T and any H and W that are multiples of 32; D is the last stage's width."""

    def __init__(self, spec, tubelet_size, tubelet_stride, route, drop_path):
        super().__init__()
        self.spec, dims = spec, spec.dims
        stem = nn.Conv3d(3, dims[0], (tubelet_size, 4, 4), (tubelet_stride, 4, 4), (tubelet_size // 2, 0, 0))
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, LayerNorm(dims[0], eps=1e-6))])
        for before, after in zip(dims, dims[1:]):
            halve = nn.Conv3d(before, after, (1, 2, 2), stride=(1, 2, 2))
            self.downsample_layers.append(nn.Sequential(LayerNorm(before, eps=1e-6), halve))
        rates = iter([None] * sum(spec.depths) if not drop_path else torch.linspace(0, drop_path, sum(spec.depths)).tolist())
        self.stages = nn.ModuleList(
            nn.ModuleList(TAdaConvNeXtBlock(dim, spec.activation, route, next(rates)) for _ in range(depth))
            for depth, dim in zip(spec.depths, dims)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)) and not hasattr(module, "skip_init"):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def feature_dim(self):
        return self.spec.dims[-1]

    def embed(self, clips):
        """(B, 3, T, H, W) -> (B, T', H/4, W/4, C): what enters the first stage."""
        height, width = clips.shape[3:]
        if clips.shape[1] != 3 or height % SHRINKS or width % SHRINKS:
            raise ValueError(
                f"clips are {tuple(clips.shape[1:])} (C, T, H, W) but the backbone takes 3 channels and a height and width "
                f"that are multiples of {SHRINKS}: resize or crop the clips"
            )
        stem, norm = self.downsample_layers[0]
        # A product of whole tubelets, which overlap in time: no library has a good convolution of 3 channels.
        (k, p, _), (stride, *_) = stem.kernel_size, stem.stride
        patches = rearrange(clips, "b c t (h p) (w q) -> b t h w (p q c)", p=p, q=p)
        tubelets = F.pad(patches, (0, 0) * 3 + (k // 2, k // 2)).unfold(1, k, stride)  # (B, T', H/4, W/4, p*q*3, k)
        weight = rearrange(stem.weight, "o c k p q -> o (k p q c)")
        return residual_stream(norm(F.linear(rearrange(tubelets, "b t h w d k -> b t h w (k d)"), weight, stem.bias)))

    def forward(self, clips):
        x = self.embed(clips)
        for i, stage in enumerate(self.stages):
            if i:
                norm, halve = self.downsample_layers[i]
                x = rearrange(norm(x), "b t (h p) (w q) c -> b t h w (p q c)", p=2, q=2)
                x = F.linear(x, rearrange(halve.weight, "o c 1 p q -> o (p q c)"), halve.bias)
            for block in stage:
                x = block(x)
        return self.norm(x.mean((1, 2, 3), dtype=self.norm.weight.dtype))
