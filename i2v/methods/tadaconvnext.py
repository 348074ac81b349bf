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

import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from i2v.colours import CLIP_MEAN, CLIP_STD
from i2v.rules import COLOURS, ODD, Count, at_least, between, check, counts, more_than, multiple_of, one_of
from i2v.tadaconv import RouteFuncwTransformer, TAdaConv2dV2, mean_of_three_frames
from i2v.vit import DropPath, LayerNorm, residual_stream

SHRINKS = 32  # of height and width, from the pixels to the last stage
ADDED = ("dwconv_rf", "norm_avgpool")  # what the image model does not have
SIZES = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "xxlarge": ((3, 4, 30, 3), (384, 768, 1536, 3072)),
}
CLIP_SIZES = {  # open_clip's names -> pixels
    "convnext_tiny": 224,
    "convnext_small": 224,
    "convnext_base": 224,
    "convnext_base_w": 256,
    "convnext_base_w_320": 320,
    "convnext_large": 224,
    "convnext_large_d": 256,
    "convnext_large_d_320": 320,
    "convnext_xlarge": 256,
    "convnext_xxlarge": 256,
    "convnext_xxlarge_320": 320,
}


@dataclass(frozen=True)
class Spec:
    """A ConvNeXt: blocks and channels of its four stages, its activation; the size and the colours of its pictures."""

    depths: Annotated[tuple, counts(4)]
    dims: Annotated[tuple, counts(4)]
    image_size: Annotated[int, multiple_of(SHRINKS)] = 224
    activation: Annotated[str, one_of("quick_gelu", "gelu")] = "quick_gelu"
    norm_eps: Annotated[float, more_than(0)] = 1e-6
    mean: Annotated[tuple, COLOURS] = (0.45, 0.45, 0.45)  # of red, green and blue from 0 to 1
    std: Annotated[tuple, COLOURS] = (0.225, 0.225, 0.225)
    step: ClassVar[int] = SHRINKS  # pictures may have any size that is a multiple of this

    def __post_init__(self):
        check(Spec, vars(self), "backbone {name} must be {rule}, got {value}")
        for name in ("depths", "dims", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def named(name):
    """Spec of "tiny", "small", "base", ..., as the authors use them, or of one of open_clip's, such as "convnext_base_w"."""
    if name in SIZES:
        depths, dims = SIZES[name]
        return Spec(depths, dims, norm_eps=1e-5 if name == "xxlarge" else 1e-6)
    if name in CLIP_SIZES:
        return replace(named(name.split("_")[1]), image_size=CLIP_SIZES[name], activation="gelu", mean=CLIP_MEAN, std=CLIP_STD)
    raise ValueError(
        f"backbone {name!r} is not a ConvNeXt: use one of {', '.join(SIZES)}, a name of open_clip's such as convnext_base_w, "
        "or a dict with depths and dims"
    )


class TAdaConvNeXtBlock(nn.Module):
    """(B, T, H, W, C) -> the same. drop_path: this block's probability, None for none."""

    def __init__(self, dim, spec, route, drop_path):
        super().__init__()
        self.activation = spec.activation
        self.dwconv = TAdaConv2dV2(
            dim, dim, 7, padding=3, groups=dim, cal_dim="cout", internal_rf_func=False, internal_temp_aggr=False
        )
        self.dwconv_rf = RouteFuncwTransformer(dim, with_bias_cal=True, **route)
        self.norm = LayerNorm(dim, spec.norm_eps)
        self.norm_avgpool = LayerNorm(dim, spec.norm_eps)
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
        self.downsample_layers = nn.ModuleList([nn.Sequential(stem, LayerNorm(dims[0], spec.norm_eps))])
        for before, after in pairwise(dims):
            halve = nn.Conv3d(before, after, (1, 2, 2), stride=(1, 2, 2))
            self.downsample_layers.append(nn.Sequential(LayerNorm(before, spec.norm_eps), halve))
        last = max(sum(spec.depths) - 1, 1)
        rates = (drop_path * i / last if drop_path else None for i in range(sum(spec.depths)))
        self.stages = nn.ModuleList(
            nn.ModuleList(TAdaConvNeXtBlock(dim, spec, route, next(rates)) for _ in range(depth))
            for depth, dim in zip(spec.depths, dims)
        )
        self.norm = nn.LayerNorm(dims[-1], spec.norm_eps)
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.Linear)) and not hasattr(module, "skip_init"):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def feature_dim(self):
        return self.spec.dims[-1]

    @property
    def blocks(self):
        """All blocks in order, each of which keeps much for the gradient and is compiled by itself."""
        return [block for stage in self.stages for block in stage]

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


def build(
    spec,
    num_frames,
    *,
    route_ratio: Count = 2,
    route_kernels=(3, 3),
    route_head_dim: Count | None = None,
    tubelet_size: Annotated[int, at_least(1), ODD] = 3,
    tubelet_stride: Count = 2,
    drop_path: Annotated[float, between(0, 1, below=True)] = 0.0,
    train: Annotated[str, one_of("all", "adapters")] = "all",
):
    """The backbone; everything trains, or with train="adapters" what the image model does not have, the rest being frozen.

    route_ratio: a stage's channels over those inside its routing, which are a multiple of route_head_dim (None: those of
    the first stage, which so has one head). route_kernels: frames that the routing's convolutions see, odd. tubelet_size,
    odd, and tubelet_stride: of the stem, in frames; a stem that is frozen as the image model's reads only every
    tubelet_stride-th frame. drop_path: the last block's probability of dropping a clip, rising linearly from 0 in the
    first. The number of frames is taken from each clip, so `num_frames` is not used. Raises ValueError on a value outside
    these.
    """
    head_dim = route_head_dim or max(spec.dims[0] // route_ratio, 1)
    route = dict(ratio=route_ratio, kernels=route_kernels, head_dim=head_dim)
    model = TAdaConvNeXt(spec, tubelet_size, tubelet_stride, route, drop_path).requires_grad_(train == "all")
    for block in model.blocks:
        block.dwconv_rf.requires_grad_(True)
        block.norm_avgpool.requires_grad_(True)
    return model


def from_authors(name):
    """The name in our model of a parameter in the authors' checkpoints."""
    return name.replace("head.out.", "head.fc.", 1)


TIMM = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}


def from_image(name):
    """The name in our model of a parameter of the image model, in FAIR's or timm's files; None for its classifier."""
    name = re.sub(r"^stem\.", "downsample_layers.0.", name)
    name = re.sub(r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", name)
    name = re.sub(r"^stages\.(\d+)\.blocks\.", r"stages.\1.", name)
    name = re.sub(r"\.(conv_dw|mlp\.fc1|mlp\.fc2)\.", lambda found: f".{TIMM[found[1]]}.", name)
    name = re.sub(r"^head\.norm\.", "norm.", name)
    return None if name.startswith("head.") else f"backbone.{name}"


def inflated(values, model):
    """The image model's tensors, under our names, in the shapes of ours: a kernel over space is one over a single frame, the
    stem's is the middle frame of tubelets."""
    before = model.backbone.downsample_layers[0][0].kernel_size[0] // 2

    def fit(name, value):
        if ".dwconv." in name:
            return value[None, None]
        if value.ndim == 4:
            value = value[:, :, None]
            return F.pad(value, (0, 0, 0, 0, before, before)) if name.startswith("backbone.downsample_layers.0.") else value
        return value

    return {name: fit(name, value) if isinstance(value, torch.Tensor) else value for name, value in values.items()}
