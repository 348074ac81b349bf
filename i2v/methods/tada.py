"""TAdaFormer (Huang et al. 2023, "Temporally-Adaptive Models for Efficient Video Understanding", arXiv 2308.05787).

CLIP's image transformer with a TAdaConv on the patch tokens of every block, the class token passing unchanged:

    x = x + tada(x)             tada = up(qgelu(TAdaConv2dV2(down(x))))
    x = x + attn(ln_1(x))       within each frame
    x = x + tada2(x)            only with double=True
    x = x + mlp(ln_2(x))

The stem sees tubelets: conv1 spans `tubelet_size` frames at every `tubelet_stride`-th one, and loads from CLIP's image
kernel as its middle frame between zeros. As `up` starts at zero, a model fresh from CLIP is CLIP on frames 0, s, 2s,
... (s the stride) with their class tokens averaged before ln_post; on a still clip that equals CLIP on the image.

As in the authors' code no LayerNorm precedes tada, positions are spatial only, and the last layer's tada2 changes only
patch tokens that nothing reads any more: it is kept, never run, with zero gradients, so that checkpoints and optimiser
match; its batch norms' statistics stay as they are loaded.
The batch norms inside tada see all frames of a batch, those of all processes included.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import nn

from i2v.rules import ODD, Count, at_least, between, one_of
from i2v.tadaconv import TAdaConv2dV2, conv_over_frames
from i2v.video import onto_patches
from i2v.vit import Block, DropPath, QuickGELU, VisionTransformer, unused


class TAdaBlock(nn.Module):
    """(B*T, L, C) -> (B*T, L, C): what is added to the patch tokens, and zeros for the class token; zero when fresh.

    `temporal_enhance` lets the down projection see the frames before and after.
    """

    def __init__(self, spec, hidden, route, temporal_enhance):
        super().__init__()
        self.grid, self.prefix = spec.grid, spec.prefix
        self.temporal_enhance = temporal_enhance
        if temporal_enhance:  # the authors' names and shapes: (C', C, 3, 1, 1) and (C, C', 1, 1, 1)
            self.tada_pre_proj = nn.Conv3d(spec.width, hidden, (3, 1, 1), padding=(1, 0, 0))
            self.tada_proj = nn.Conv3d(hidden, spec.width, 1)
        else:
            self.tada_pre_proj = nn.Linear(spec.width, hidden)
            self.tada_proj = nn.Linear(hidden, spec.width)
        self.tadaconv = TAdaConv2dV2(hidden, hidden, 3, padding=1, groups=hidden, cal_dim="cout", **route)
        self.gelu = QuickGELU()
        nn.init.trunc_normal_(self.tada_pre_proj.weight, std=0.02)
        for parameter in (self.tada_pre_proj.bias, self.tada_proj.weight, self.tada_proj.bias):
            nn.init.zeros_(parameter)

    def forward(self, x, num_frames):
        x = rearrange(x, "(b t) l c -> b t l c", t=num_frames)
        # All tokens go through both products: see onto_patches.
        hidden = conv_over_frames(self.tada_pre_proj, x) if self.temporal_enhance else self.tada_pre_proj(x)
        hidden = rearrange(hidden[:, :, self.prefix :], "b t (h w) c -> b c t h w", h=self.grid)
        hidden = rearrange(self.gelu(self.tadaconv(hidden)), "b c t h w -> (b t) (h w) c")
        return onto_patches(self.tada_proj, hidden, self.prefix)


class TAdaFormerBlock(Block):
    """A CLIP block with one or two TAdaBlocks; drop_path is this layer's probability, None for none."""

    def __init__(self, spec, layer, double, drop_path, **tada):
        super().__init__(spec, layer)
        self.tada = TAdaBlock(spec, **tada)
        self.tada2 = TAdaBlock(spec, **tada) if double else None
        self.drop_path = None if drop_path is None else DropPath(drop_path)

    def forward(self, x, num_frames, wanted=None):
        x = x + self.drop(self.tada(x, num_frames), num_frames)
        x = x[:, :wanted] + self.drop(self.attn(self.ln_1(x), wanted), num_frames)
        if self.tada2 is not None:
            x = x + (self.drop(self.tada2(x, num_frames), num_frames) if wanted is None else unused(self.tada2))
        return x + self.drop(self.mlp(self.ln_2(x)), num_frames)

    def drop(self, x, num_frames):
        return x if self.drop_path is None else self.drop_path(x, num_frames)


class TAdaFormer(VisionTransformer):
    """(B, 3, T, H, W) -> (B, D), for any T: there are T' = ceil(T / stride) tubelets; D as in VisionTransformer."""

    def __init__(self, spec, block, project, tubelet_size, tubelet_stride):
        super().__init__(spec, block, project)
        image_kernel, p = self.conv1.weight, spec.patch_size
        self.conv1 = nn.Conv3d(
            3,
            spec.width,
            (tubelet_size, p, p),
            stride=(tubelet_stride, p, p),
            padding=(tubelet_size // 2, 0, 0),
            bias=spec.patch_bias,
        )
        self.conv1.weight = nn.Parameter(inflate(image_kernel.detach(), tubelet_size))
        if spec.patch_bias:
            nn.init.zeros_(self.conv1.bias)

    def tokenize(self, clips):
        """(B, 3, T, H, W) -> tokens (B*T', L, C): class token and patches, with their positions."""
        size = self.spec.image_size
        if clips.shape[1] != 3 or clips.shape[3:] != (size, size):
            raise ValueError(
                f"clips are {tuple(clips.shape[1:])} (C, T, H, W) but the backbone takes (3, T, {size}, "
                f"{size}): resize or crop the clips, or create the model with their image_size"
            )
        # conv1 as a product of whole tubelets, which overlap in time: no library has a good convolution of 3 channels.
        (k, p, _), (stride, *_) = self.conv1.kernel_size, self.conv1.stride
        patches = rearrange(clips, "b c t (h p) (w q) -> b t (h w) (p q c)", p=p, q=p)
        tubelets = F.pad(patches, (0, 0, 0, 0, k // 2, k // 2)).unfold(1, k, stride)  # (B, T', L-1, p*p*3, k)
        weight = rearrange(self.conv1.weight, "o c k p q -> o (k p q c)")
        patches = F.linear(rearrange(tubelets, "b t l d k -> (b t) l (k d)"), weight, self.conv1.bias)
        return self.with_prefix(patches)

    def forward(self, clips):
        tokens = self.embed(clips)  # (B*T', L, C)
        tubelets = -(-clips.shape[2] // self.conv1.stride[0])  # T'
        summary = self.summary(tokens, tubelets)  # (B*T', C)
        return self.finish(reduce(summary, "(b t) c -> b c", "mean", t=tubelets))


def inflate(kernel, frames):
    """(C, 3, p, p) -> (C, 3, frames, p, p): the kernel in the middle frame, zeros around it; `frames` is odd."""
    return F.pad(kernel[:, :, None], (0, 0, 0, 0, frames // 2, frames // 2))


def build(
    spec,
    num_frames,
    *,
    reduction: Count = 2,
    route_ratio: Count = 2,
    route_kernels=(3, 3),
    route_head_dim: Count = 64,
    temporal_enhance: bool = False,
    double: bool = False,
    tubelet_size: Annotated[int, at_least(1), ODD] = 3,
    tubelet_stride: Count = 2,
    drop_path: Annotated[float, between(0, 1, below=True)] = 0.0,
    project: bool = False,
    train: Annotated[str, one_of("all", "adapters")] = "all",
):
    """The backbone; everything trains, or with train="adapters" the TAdaBlocks alone, CLIP and its stem being frozen.

    reduction: width over TAdaConv's width. route_ratio: TAdaConv's width over the routing's, which is a multiple of
    route_head_dim. route_kernels: frames that the routing's convolutions see, odd. temporal_enhance: down projections
    over three frames. double: a second TAdaBlock after the attention. tubelet_size, odd, and tubelet_stride: of the
    stem, in frames. drop_path: the last layer's probability of dropping a clip, rising linearly from 0 in the first.
    project: apply CLIP's projection to the features. The number of frames is taken from each clip, so `num_frames` is
    not used. A stem that is frozen as CLIP's reads only every tubelet_stride-th frame: with train="adapters" stride 1
    uses all. Raises ValueError on a value outside these.
    """
    hidden = spec.width // reduction
    if hidden < 1:
        raise ValueError(f"reduction must leave at least one of the backbone's {spec.width} channels, got {reduction}")
    route = dict(rf_r=route_ratio, rf_k=route_kernels, head_dim=route_head_dim)

    def block(spec, layer):
        probability = drop_path * layer / max(spec.layers - 1, 1) if drop_path else None
        return TAdaFormerBlock(spec, layer, double, probability, hidden=hidden, route=route, temporal_enhance=temporal_enhance)

    model = TAdaFormer(spec, block, project, tubelet_size, tubelet_stride).requires_grad_(train == "all")
    for module in model.modules():
        if isinstance(module, TAdaBlock):
            module.requires_grad_(True)
    return model


def from_authors(name):
    """The name in our model of a parameter in the authors' checkpoints."""
    return name.replace("backbone.layers.", "backbone.transformer.resblocks.", 1).replace("head.out.", "head.fc.", 1)


def from_clip(state, model):
    """CLIP's tensors, under our names, in the shapes of this model: the stem's kernel becomes that of tubelets."""
    stem = state.get("backbone.conv1.weight")
    if not isinstance(stem, torch.Tensor) or stem.ndim != 4:
        return state  # not CLIP's, as will be said where shapes are compared
    return {**state, "backbone.conv1.weight": inflate(stem, model.backbone.conv1.kernel_size[0])}


def layer_of(name, layers):
    """How deep a parameter of our model sits, for layer-wise learning rates: 0 for the stem (with the embeddings and
    ln_pre), i + 1 for block i, layers + 1 for what follows them (ln_post, proj, head)."""
    inner = name.removeprefix("backbone.")
    if inner.startswith("transformer.resblocks."):
        return int(inner.split(".")[2]) + 1
    stem = ("conv1.", "class_embedding", "register_embedding", "positional_embedding", "ln_pre.")
    return 0 if inner.startswith(stem) else layers + 1
