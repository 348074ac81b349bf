"""TAdaConv: 2-D convolutions whose kernels adapt to every frame of a clip, to drop into any video network.

    W_t = alpha_t * W      alpha_t, one factor per input ("cin") or output ("cout") channel, computed from the clip

TAdaConv2d with RouteFuncMLP is from Huang et al. 2022, "TAda! Temporally-Adaptive Convolutions for Video
Understanding" (ICLR, section 3); TAdaConv2dV2 with RouteFuncwTransformer from Huang et al. 2023, "Temporally-Adaptive
Models for Efficient Video Understanding" (arXiv 2308.05787). Names and shapes of the parameters are the authors', so
that their checkpoints load as they are; a pre-trained 2-D convolution's weight and bias get two leading dimensions.

A 2-D convolution and batch norm in a residual block become, for features x of (B, C, T, H, W),

    self.conv = TAdaConv2dV2(64, 64, kernel_size=3, padding=1, head_dim=16)      # in __init__
    x = x + self.conv(x)                                                         # in forward

and with the first version, which has no normalisation of its own and starts as the plain convolution,

    self.route = RouteFuncMLP(64, ratio=4, kernels=(3, 3))
    self.conv = TAdaConv2d(64, 64, kernel_size=3, padding=1, bias=False)
    x = self.conv(x, self.route(x))

As convolution is linear, no kernel is ever built per frame: conv(x, alpha * W) is conv(alpha * x, W) when alpha scales
input channels, and alpha * conv(x, W) when it scales output channels.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from i2v.batchnorm import BatchNorm, normalised_sum


def conv_over_frames(conv, x):
    """A (k, 1, 1) nn.Conv3d, k odd, applied along axis 1 of (B, T, ..., Cin) -> (B, T, ..., Cout).

    All k taps are one matrix product; their results are shifted and added, zeros before and after the clip.
    """
    k, num_frames = conv.kernel_size[0], x.shape[1]
    if k == 1:
        return F.linear(x, conv.weight.flatten(1), conv.bias)
    taps = F.linear(x, rearrange(conv.weight, "o i k 1 1 -> (k o) i")).chunk(k, dim=-1)  # k of (B, T, ..., Cout)
    y = conv.bias.to(taps[0].dtype) if conv.bias is not None else 0
    for i, tap in enumerate(taps):
        edges = (0, 0) * (x.ndim - 2) + (k // 2, k // 2)
        y = y + F.pad(tap, edges)[:, i : i + num_frames]
    return y


def mean_of_three_frames(x):
    """(B, C, T, H, W): each frame averaged with its neighbours; beyond the clip's ends there are frames of zeros."""
    return MeanOfThreeFrames.apply(x)


class MeanOfThreeFrames(torch.autograd.Function):
    """Its gradient is the same mean. Left to torch, the gradients of the slices would be laid out channels first
    whatever the clip is: the backward pass of all that follows would then be strided, and twice as slow."""

    @staticmethod
    def forward(ctx, x):
        y = x.clone()
        y[:, :, 1:] += x[:, :, :-1]
        y[:, :, :-1] += x[:, :, 1:]
        return y.div_(3)

    @staticmethod
    def backward(ctx, gradient):
        return MeanOfThreeFrames.apply(gradient)


class RouteFuncMLP(nn.Module):
    """The first version's routing function: (B, C, T, H, W) -> alpha (B, C, T, 1, 1), all ones when fresh.

    alpha = 1 + b(relu(bn(a(mean over space + g(mean over the clip)))))

    `kernels` are the numbers of frames that a and b see, both odd. Raises ValueError when they are not, or when c_in
    is smaller than `ratio`.
    """

    def __init__(self, c_in, ratio, kernels, bn_eps=1e-5, bn_mmt=0.1):
        super().__init__()
        hidden = _routing_width(c_in, ratio, kernels)
        self.g = nn.Conv3d(c_in, c_in, 1)
        self.a = _frame_conv(c_in, hidden, kernels[0])
        self.bn = BatchNorm(hidden, eps=bn_eps, momentum=bn_mmt)
        self.b = _frame_conv(hidden, c_in, kernels[1], bias=False)
        nn.init.zeros_(self.b.weight)
        self.b.skip_init = True  # for networks that initialise every convolution after making it

    def forward(self, x):
        frames = rearrange(x.mean((3, 4)), "b c t -> b t c")
        frames = frames + conv_over_frames(self.g, frames.mean(1, keepdim=True))
        hidden = rearrange(conv_over_frames(self.a, frames), "b t c -> b c t 1 1")
        hidden = rearrange(F.relu(self.bn(hidden)), "b c t 1 1 -> b t c")
        return 1 + rearrange(conv_over_frames(self.b, hidden), "b t c -> b c t 1 1")


class RouteFuncwTransformer(nn.Module):
    """The second version's routing function: (B, C, T, H, W) -> alpha, or [alpha, alpha_bias], each (B, C, T, 1, 1).

    y = qgelu(norm(a(mean over space)));  y = y + attention over frames(norm(y));  alpha = b(y), alpha_bias = b_bias(y)

    With `zero_init_cal` 1 is added to both, and they are all ones when fresh. Raises ValueError as RouteFuncMLP does,
    and when the routing width c_in // ratio is not a multiple of head_dim.
    """

    def __init__(self, c_in, ratio, kernels, with_bias_cal=False, zero_init_cal=True, head_dim=64):
        super().__init__()
        hidden = _routing_width(c_in, ratio, kernels)
        if type(head_dim) is not int or head_dim < 1 or hidden % head_dim:
            raise ValueError(
                f"the routing width {hidden} ({c_in} channels, ratio {ratio}) must be a multiple of the "
                f"routing head_dim, got {head_dim!r}: choose one that divides {hidden} (TAda's option route_head_dim)"
            )
        self.head_dim = head_dim
        self.offset = 1 if zero_init_cal else 0
        self.a = _frame_conv(c_in, hidden, kernels[0])
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.norm_transformer = nn.LayerNorm(hidden, eps=1e-6)
        self.qkv_proj = nn.Conv3d(hidden, 3 * hidden, 1)
        self.attn_out = nn.Conv3d(hidden, hidden, 1)
        self.b = _frame_conv(hidden, c_in, kernels[1], bias=False)
        self.b_bias = _frame_conv(hidden, c_in, kernels[1], bias=False) if with_bias_cal else None
        for conv in (self.a, self.qkv_proj, self.attn_out):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            nn.init.zeros_(conv.bias)
        for conv in filter(None, (self.b, self.b_bias)):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            if zero_init_cal:
                nn.init.zeros_(conv.weight)
                conv.skip_init = True

    def forward(self, x):
        y = self.norm(conv_over_frames(self.a, rearrange(x.mean((3, 4)), "b c t -> b t c")))
        y = y * torch.sigmoid(1.702 * y)  # QuickGELU
        y = y + self.attention(self.norm_transformer(y))
        alpha = self.offset + rearrange(conv_over_frames(self.b, y), "b t c -> b c t 1 1")
        if self.b_bias is None:
            return alpha
        return [alpha, self.offset + rearrange(conv_over_frames(self.b_bias, y), "b t c -> b c t 1 1")]

    def attention(self, y):
        """(B, T, C) -> (B, T, C), as released: the channels of q, k and v are read with the head as the fast index and
        those of the result written with it as the slow one, and the scale counts the channels of all heads."""
        qkv = conv_over_frames(self.qkv_proj, y)
        q, k, v = rearrange(qkv, "b t (three d heads) -> three b heads t d", three=3, d=self.head_dim)
        y = F.scaled_dot_product_attention(q, k, v, scale=y.shape[-1] ** -0.5)
        return conv_over_frames(self.attn_out, rearrange(y, "b heads t d -> b t (heads d)"))


class TAdaConv2d(nn.Module):
    """(B, Cin, T, H, W), alpha (B, C, T, 1, 1) -> (B, Cout, T, H', W'), C being Cin for cal_dim "cin", else Cout.

    kernel_size, stride, padding and dilation are an int, for height and width, or three as for nn.Conv3d whose first
    leaves the frames alone: (1, 3, 3), (1, 2, 2), (0, 1, 1). The bias is not calibrated. Raises ValueError for other
    values, for "cin" with groups, and in forward when alpha has another shape.
    """

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True, cal_dim="cin"
    ):
        super().__init__()
        if cal_dim not in ("cin", "cout"):
            raise ValueError(f"cal_dim must be 'cin' or 'cout', got {cal_dim!r}")
        if cal_dim == "cin" and groups != 1:
            raise ValueError(
                f"cal_dim 'cin' calibrates the input channels that all outputs share and cannot be used "
                f"with {groups} groups: use cal_dim='cout'"
            )
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"in_channels {in_channels} and out_channels {out_channels} must both be multiples of groups {groups}"
            )
        self.kernel_size = _spatial("kernel_size", kernel_size, 1)
        self.geometry = dict(
            stride=_spatial("stride", stride, 1),
            padding=_spatial("padding", padding, 0),
            dilation=_spatial("dilation", dilation, 1),
            groups=groups,
        )
        self.cal_dim = cal_dim
        self.calibrated = in_channels if cal_dim == "cin" else out_channels
        self.weight = nn.Parameter(torch.empty(1, 1, out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(1, 1, out_channels)) if bias else None
        self.initialise()

    def initialise(self):
        """As nn.Conv2d starts."""
        nn.init.kaiming_uniform_(self.weight[0, 0], a=math.sqrt(5))
        if self.bias is not None:
            bound = math.prod(self.weight.shape[3:]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def convolve(self, x, alpha):
        """The calibrated convolution, without bias."""
        expected = (len(x), self.calibrated, x.shape[2], 1, 1)
        if alpha.shape != expected:
            raise ValueError(
                f"alpha has shape {tuple(alpha.shape)} but cal_dim {self.cal_dim!r} takes {expected} "
                f"(B, C, T, 1, 1): use a routing function with {self.calibrated} channels"
            )
        if self.cal_dim == "cin":
            x = alpha * x
        frames = rearrange(x, "b c t h w -> (b t) c h w")  # a view when x is a view of channels-last tokens
        y = F.conv2d(frames, self.weight[0, 0], **self.geometry)
        y = rearrange(y, "(b t) c h w -> b c t h w", t=x.shape[2])
        return alpha * y if self.cal_dim == "cout" else y

    def forward(self, x, alpha):
        y = self.convolve(x, alpha)
        return y if self.bias is None else y + rearrange(self.bias.to(y.dtype), "1 1 c -> c 1 1 1")

    def extra_repr(self):
        cout, cin = self.weight.shape[2:4]
        groups = self.geometry["groups"]
        return f"{cin * groups}, {cout}, kernel_size={self.kernel_size}, groups={groups}, cal_dim={self.cal_dim!r}"


class TAdaConv2dV2(TAdaConv2d):
    """(B, Cin, T, H, W) -> (B, Cout, T, H', W'): routes by itself, calibrates the bias too, and aggregates over time.

    y_t = alpha_t * conv(x_t) + alpha_bias_t * bias      (the first product as cal_dim says)
    output = bn_a(y) + bn_b(mean of the frames t-1, t, t+1 of y)

    Any T is fine; the authors' average pool needs three. The batch norms see all frames of the batch; convert them with
    i2v.batchnorm.share_batchnorms to train in several processes. internal_rf_func=False leaves out the routing
    (pass alpha, or [alpha, alpha_bias], to forward), internal_temp_aggr=False the batch norms. rf_r, rf_k and head_dim
    are RouteFuncwTransformer's ratio, kernels and head_dim. Raises ValueError as TAdaConv2d and RouteFuncwTransformer
    do, and when routing inside with Cin != Cout.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        bias=True,
        cal_dim="cin",
        rf_r=4,
        rf_k=(3, 3),
        head_dim=64,
        internal_rf_func=True,
        internal_temp_aggr=True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, cal_dim)
        if internal_rf_func and in_channels != out_channels:
            raise ValueError(
                f"routing inside needs as many input as output channels, got {in_channels} and "
                f"{out_channels}: use internal_rf_func=False and pass alpha to forward"
            )
        self.rf_func = self.bn_a = self.bn_b = None
        if internal_rf_func:
            self.rf_func = RouteFuncwTransformer(in_channels, rf_r, rf_k, bias, zero_init_cal=False, head_dim=head_dim)
        if internal_temp_aggr:
            self.bn_a, self.bn_b = BatchNorm(out_channels), BatchNorm(out_channels)
            nn.init.zeros_(self.bn_b.weight)
            self.bn_b.skip_init = True

    def initialise(self):
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x, alpha=None):
        if alpha is None and self.rf_func is None:
            raise ValueError("this convolution has no routing function of its own (internal_rf_func=False): pass alpha")
        alpha = self.rf_func(x) if alpha is None else alpha
        alpha, alpha_bias = alpha if isinstance(alpha, (list, tuple)) else (alpha, 1)
        y = self.convolve(x, alpha)
        if self.bias is not None:
            y = y + alpha_bias * rearrange(self.bias.to(y.dtype), "1 1 c -> c 1 1 1")
        return y if self.bn_a is None else normalised_sum((self.bn_a, y), (self.bn_b, mean_of_three_frames(y)))


def _frame_conv(c_in, c_out, k, bias=True):
    return nn.Conv3d(c_in, c_out, (k, 1, 1), padding=(k // 2, 0, 0), bias=bias)


def _routing_width(c_in, ratio, kernels):
    """The channels inside a routing function; ValueError when its options are impossible."""
    if ratio < 1 or c_in < ratio:
        raise ValueError(f"the routing ratio must be from 1 to the number of channels, {c_in}, got {ratio!r}")
    pair = isinstance(kernels, (list, tuple)) and len(kernels) == 2
    if not pair or any(type(k) is not int or k < 1 or k % 2 == 0 for k in kernels):
        raise ValueError(
            f"the routing kernels must be two odd positive integers (an even kernel would change the "
            f"number of frames), got {kernels!r}"
        )
    return int(c_in // ratio)


def _spatial(name, value, over_frames):
    """(height, width) of an int or a triple whose first entry must be `over_frames`."""
    value = (over_frames, value, value) if isinstance(value, int) else tuple(value)
    if len(value) != 3 or value[0] != over_frames or min(value[1:]) < over_frames:
        raise ValueError(
            f"{name} must be an int or ({over_frames}, height, width), as a TAdaConv does not mix frames, got {value!r}"
        )
    return value[1:]
