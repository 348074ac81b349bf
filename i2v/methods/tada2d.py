"""TAda2D (Huang et al. 2022, "TAda! Temporally-Adaptive Convolutions for Video Understanding", ICLR, section 3.3).

A ResNet of bottlenecks (He et al. 2016) over frames, whose 3x3 convolutions adapt to every frame of the clip:

    y = relu(a_bn(a(x)))                                            a: 1x1
    y = b(alpha * y)                alpha = RouteFuncMLP(y);        b: 3x3, with the stride of the stage's first block
    y = relu(b_bn(y) + b_avgpool_bn(mean of the frames t-1, t, t+1 of y))
    x = relu(short_cut(x) + c_bn(c(y)))                             c: 1x1

It halves height and width in the first block of every stage, the first stage included, where ResNet has its max pool: a
fresh model, in which alpha is one and b_avgpool_bn zero, is the image model with that exchanged, and the ImageNet weights
are where training begins and no more than that.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from i2v.batchnorm import BatchNorm, normalised_sum
from i2v.rules import COLOURS, Count, check, counts
from i2v.tadaconv import RouteFuncMLP, TAdaConv2d, mean_of_three_frames

ADDED = ("b_rf", "b_avgpool_bn")  # what the image model does not have
DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


@dataclass(frozen=True)
class Spec:
    """A ResNet of bottlenecks: blocks of its four stages; channels of the stem and of what each stage gives, four times
    those inside its blocks; the size and the colours of its pictures."""

    depths: Annotated[tuple, counts(4)]
    dims: Annotated[tuple, counts(5)] = (64, 256, 512, 1024, 2048)
    image_size: Count = 224
    mean: Annotated[tuple, COLOURS] = (0.45, 0.45, 0.45)  # of red, green and blue from 0 to 1
    std: Annotated[tuple, COLOURS] = (0.225, 0.225, 0.225)
    step: ClassVar[int] = 1  # pictures may have any size that is a multiple of this

    def __post_init__(self):
        check(Spec, vars(self), "backbone {name} must be {rule}, got {value}")
        for name in ("depths", "dims", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if any(dim % 4 for dim in self.dims[1:]):
            raise ValueError(f"backbone dims must be multiples of 4 but for the stem's, got {self.dims}")


def named(name):
    """Spec of "resnet50", "resnet101" or "resnet152"."""
    if name not in DEPTHS:
        raise ValueError(f"backbone {name!r} is not a ResNet: use one of {', '.join(DEPTHS)}, or a dict with depths and dims")
    return Spec(DEPTHS[name])


class Branch(nn.Module):
    """What a block adds: (B, Cin, T, H, W) -> (B, C, T, H', W')."""

    def __init__(self, before, after, stride, route):
        super().__init__()
        inside = after // 4
        self.a, self.a_bn = nn.Conv3d(before, inside, 1, bias=False), BatchNorm(inside)
        self.b_rf = RouteFuncMLP(inside, **route)
        self.b = TAdaConv2d(inside, inside, 3, stride=(1, stride, stride), padding=(0, 1, 1), bias=False)
        self.b_bn, self.b_avgpool_bn = BatchNorm(inside), BatchNorm(inside)
        self.c, self.c_bn = nn.Conv3d(inside, after, 1, bias=False), BatchNorm(after)
        nn.init.zeros_(self.b_avgpool_bn.weight)

    def forward(self, x):
        y = F.relu(self.a_bn(conv(self.a, x)), inplace=True)
        y = self.b(y, self.b_rf(y))
        y = F.relu(normalised_sum((self.b_bn, y), (self.b_avgpool_bn, mean_of_three_frames(y))), inplace=True)
        return self.c_bn(conv(self.c, y))


class Bottleneck(nn.Module):
    """(B, Cin, T, H, W) -> (B, C, T, H', W'); with `stride`, the first of a stage, the short cut is a convolution too."""

    def __init__(self, before, after, stride, route):
        super().__init__()
        self.short_cut = self.short_cut_bn = None
        if stride:
            self.short_cut = nn.Conv3d(before, after, 1, stride=(1, stride, stride), bias=False)
            self.short_cut_bn = BatchNorm(after)
        self.conv_branch = Branch(before, after, stride or 1, route)

    def forward(self, x):
        short = x if self.short_cut is None else self.short_cut_bn(conv(self.short_cut, x))
        return F.relu(short + self.conv_branch(x), inplace=True)


class TAda2D(nn.Module):
    """(B, 3, T, H, W) -> (B, D), for any T, H and W; D is the last stage's width."""

    def __init__(self, spec, route):
        super().__init__()
        self.spec = spec
        stem = nn.Conv3d(3, spec.dims[0], (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.conv1 = nn.ModuleDict({"a": stem, "a_bn": BatchNorm(spec.dims[0])})
        for i, (depth, before, after) in enumerate(zip(spec.depths, spec.dims, spec.dims[1:])):
            blocks = {f"res_{j + 1}": Bottleneck(after if j else before, after, 0 if j else 2, route) for j in range(depth)}
            self.add_module(f"conv{i + 2}", nn.Sequential(OrderedDict(blocks)))
        for module in self.modules():
            if isinstance(module, nn.Conv3d) and not hasattr(module, "skip_init"):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def feature_dim(self):
        return self.spec.dims[-1]

    @property
    def blocks(self):
        """All blocks in order, each of which keeps much for the gradient and is compiled by itself."""
        return [block for stage in (self.conv2, self.conv3, self.conv4, self.conv5) for block in stage]

    def embed(self, clips):
        """(B, 3, T, H, W) -> (B, C, T, H/2, W/2): what enters the first stage."""
        return F.relu(self.conv1.a_bn(conv(self.conv1.a, clips)), inplace=True)

    def forward(self, clips):
        x = self.embed(clips)
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3, 4), dtype=self.conv1.a_bn.weight.dtype)


def conv(layer, x):
    """A convolution over space, nn.Conv3d with a kernel (1, k, k), as one over images: libraries have better ones.

    (B, Cin, T, H, W) -> (B, Cout, T, H', W')
    """
    y = F.conv2d(
        rearrange(x, "b c t h w -> (b t) c h w"), layer.weight[:, :, 0], layer.bias, layer.stride[1:], layer.padding[1:]
    )
    return rearrange(y, "(b t) c h w -> b c t h w", t=x.shape[2])


def build(spec, num_frames, *, route_ratio: Count = 4, route_kernels=(3, 3)):
    """The backbone, all of which trains.

    route_ratio: channels that the routing of a block is for, over those inside it. route_kernels: frames that its
    convolutions see, odd. The number of frames is taken from each clip, so `num_frames` is not used. Raises ValueError on a
    value outside these.
    """
    return TAda2D(spec, dict(ratio=route_ratio, kernels=route_kernels))


def from_authors(name):
    """The name in our model of a parameter in the authors' checkpoints."""
    return name.replace("head.out.", "head.fc.", 1)


PARTS = {"conv1": "a", "bn1": "a_bn", "conv2": "b", "bn2": "b_bn", "conv3": "c", "bn3": "c_bn"}


def from_image(name):
    """The name in our model of a tensor of torchvision's ResNet, or timm's; None for its classifier."""
    if name.startswith("fc."):
        return None
    stage, block, rest = re.fullmatch(r"(?:layer(\d)\.(\d+)\.)?(.*)", name).groups()
    if stage is None:  # the stem
        part, _, kind = rest.partition(".")
        return f"backbone.conv1.{PARTS[part]}.{kind}" if part in ("conv1", "bn1") else f"backbone.{rest}"
    part, _, kind = rest.rpartition(".")
    short = {"downsample.0": "short_cut", "downsample.1": "short_cut_bn"}.get(part)
    inner = short or f"conv_branch.{PARTS.get(part, part)}"
    return f"backbone.conv{int(stage) + 1}.res_{int(block) + 1}.{inner}.{kind}"


def inflated(values, model):
    """The image model's tensors, under our names, in the shapes of ours: a kernel over space is one over a single frame."""

    def fit(name, value):
        if not isinstance(value, torch.Tensor) or value.ndim != 4:
            return value
        return value[None, None] if name.endswith(".conv_branch.b.weight") else value[:, :, None]

    return {name: fit(name, value) for name, value in values.items()}
