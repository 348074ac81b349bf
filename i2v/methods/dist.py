"""DiST (Qing et al. 2023, "Disentangling Spatial and Temporal Learning for Efficient Image-to-Video Transfer
Learning", section 3): a side network learns motion from all frames and joins it to the features that a frozen CLIP
has of every alpha-th frame. Per selected CLIP layer, with temporal tokens x and integration tokens m, u, r:

    x = gelu(x + conv3x3(gelu(conv_t(LN(x)))))              temporal encoder, all T frames
    m = linear(CLIP tokens) + r                             integration branch, t = T / alpha frames
    u = m + [class token; strided conv_t(x)]
    r = mlp(LN(u)) + temporal_mlp(LN'(u))
    x = x + nearest(linear(patch tokens of m))

then adaptive pooling of r + u over space and time. CLIP runs without gradient, on the frames it is shown only. As in
the authors' code the last layer's integration2temporal net reaches no logit: it is kept, with zero gradients, so that
checkpoints, optimiser state and DDP need no exception.

Tokens are (B, T, N, C): read as a channels-last image (B, C, T, N), a (k, 1, 1) convolution is one conv2d, uncopied.
"""

from collections import OrderedDict
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from i2v.rules import ODD, Count, at_least
from i2v.vit import Attention, QuickGELU, VisionTransformer, class_and_patches, unused

TEMPLATES = ("{}",)  # the authors' prompt for a text head: the class name alone
TEXT_TOWER = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
OLD_NAMES = {  # of the first released checkpoints
    "input_map_feat_nets": "input_linears",
    "s2t_fuse_nets": "integration2temporal_nets",
    "t2s_fuse_nets": "temporal2integration_nets",
    "spatial_nets": "integration_nets",
    "final_temporal_nets": "adapooling_nets",
}


def conv_frames(x, conv):
    """A Conv3d with kernel (k, 1, 1) on tokens: (B, T, N, Cin) -> (B, T', N, Cout)."""
    image = x.permute(0, 3, 1, 2)  # (B, Cin, T, N)
    y = F.conv2d(image, conv.weight.squeeze(-1), conv.bias, conv.stride[:2], conv.padding[:2])
    return y.permute(0, 2, 3, 1)


def time_conv(in_dim, out_dim, kernel=1):
    return nn.Conv3d(in_dim, out_dim, (kernel, 1, 1), padding=(kernel // 2, 0, 0))


def mlp(dim, ratio):
    hidden = int(dim * ratio)
    return nn.Sequential(OrderedDict(c_fc=nn.Linear(dim, hidden), gelu=QuickGELU(), c_proj=nn.Linear(hidden, dim)))


class TemporalNet(nn.Module):
    """Time, then space: (B, T, H*W, C) -> the same."""

    def __init__(self, grid, dim, kernel, ratio):
        super().__init__()
        self.grid, self.gelu = grid, QuickGELU()
        self.ln = nn.LayerNorm(dim)
        self.temporal_net = nn.ModuleDict(
            {"c_fc1": time_conv(dim, int(dim * ratio), kernel), "c_fc2": nn.Conv3d(int(dim * ratio), dim, (1, 3, 3))}
        )

    def forward(self, x):
        net = self.temporal_net
        y = self.gelu(conv_frames(self.ln(x), net.c_fc1))
        y = rearrange(y, "b t (h w) c -> (b t) c h w", h=self.grid)  # a view, channels-last
        y = F.conv2d(y, net.c_fc2.weight.squeeze(2), net.c_fc2.bias, padding=1)
        return self.gelu(x + rearrange(y, "(b t) c h w -> b t (h w) c", t=x.shape[1]))


class IntegrationNet(nn.Module):
    """An MLP on every token and one that also mixes frames: (B, t, L, D) -> the same."""

    def __init__(self, dim, kernel, ratio, temporal_ratio):
        super().__init__()
        hidden = int(dim * temporal_ratio)
        self.ln, self.ln_temporal, self.gelu = nn.LayerNorm(dim), nn.LayerNorm(dim), QuickGELU()
        self.ffn = mlp(dim, ratio)
        self.temporal_ffn = nn.ModuleDict(
            {"c_fc1": time_conv(dim, hidden), "c_fc2": time_conv(hidden, hidden, kernel), "c_proj": time_conv(hidden, dim)}
        )

    def forward(self, u):
        net = self.temporal_ffn
        y = conv_frames(conv_frames(self.ln_temporal(u), net.c_fc1), net.c_fc2)  # no activation between these two
        return self.ffn(self.ln(u)) + conv_frames(self.gelu(y), net.c_proj)


class TemporalToIntegration(nn.Module):
    """(B, T, H*W, C) -> (B, t, 1 + H*W, D): alpha frames become one; a learned class token per frame goes in front."""

    def __init__(self, temporal_dim, dim, alpha, frames):
        super().__init__()
        self.linear_fuse = nn.Conv3d(temporal_dim, dim, (alpha, 1, 1), stride=(alpha, 1, 1))
        self.cls_token = nn.Parameter(torch.empty(1, 1, frames, dim))

    def forward(self, x):
        patches = conv_frames(x, self.linear_fuse)
        class_token = rearrange(self.cls_token, "1 1 t d -> 1 t 1 d").to(patches.dtype)
        return torch.cat((class_token.expand(len(x), -1, -1, -1), patches), dim=2)


class IntegrationToTemporal(nn.Module):
    """(B, t, 1 + H*W, D) -> (B, T, H*W, C): patch tokens, each frame repeated alpha times."""

    def __init__(self, dim, temporal_dim, alpha):
        super().__init__()
        self.alpha = alpha
        self.linear_fuse = nn.Linear(dim, temporal_dim)

    def forward(self, m):
        return self.linear_fuse(m[:, :, 1:]).repeat_interleave(self.alpha, dim=1)


class CrossAttention(nn.Module):
    """Queries (N, 1, D) attend to tokens (N, L, D) -> (N, 1, D); one LayerNorm serves both."""

    def __init__(self, dim):
        super().__init__()
        self.attn, self.ln_1 = Attention(dim, dim // 64), nn.LayerNorm(dim)

    def forward(self, query, tokens):
        dim = tokens.shape[-1]
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        q = F.linear(self.ln_1(query), weight[:dim], bias[:dim])
        k, v = F.linear(self.ln_1(tokens), weight[dim:], bias[dim:]).chunk(2, dim=-1)
        return self.attn.attend(q, k, v)


class AdaPooling(nn.Module):
    """One query per frame gathers its tokens, then one per clip gathers the frames' queries."""

    def __init__(self, dim, frames):
        super().__init__()
        self.spatial_transformer, self.temporal_transformer = CrossAttention(dim), CrossAttention(dim)
        self.positional_embedding = nn.Parameter(torch.empty(1, frames, dim))
        self.ln_out_spat_cls_token, self.ln_out_temp_cls_token = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.output_map_spatial_cls_token, self.output_map_cls_token = mlp(dim, 4), mlp(dim, 4)

    def forward(self, tokens, clip, frame):
        """tokens (B*t, L, D), clip (B, 1, D), frame (B*t, 1, D) -> new clip and frame."""
        frame = frame + self.spatial_transformer(frame, tokens)
        frame = frame + self.output_map_spatial_cls_token(self.ln_out_spat_cls_token(frame))
        frames = rearrange(frame, "(b t) 1 d -> b t d", t=self.positional_embedding.shape[1]) + self.positional_embedding
        clip = clip + self.temporal_transformer(clip, frames)
        clip = clip + self.output_map_cls_token(self.ln_out_temp_cls_token(clip))
        return clip, frame


class SideNetwork(nn.Module):
    """All that DiST trains: clips (B, 3, T, H, W) and CLIP's tokens per layer (B, t, L, C) -> (B, embed_dim)."""

    def __init__(
        self,
        spec,
        num_frames,
        layers,
        alpha,
        integration_dim,
        temporal_dim,
        temporal_patch_size,
        temporal_kernel_size,
        temporal_mlp_ratio,
        integration_mlp_ratio,
        integration_temporal_mlp_ratio,
        pooling_layers,
    ):
        super().__init__()
        dim, frames, patch = integration_dim, num_frames // alpha, spec.patch_size

        def per_layer(make):
            return nn.ModuleList(make() for _ in range(layers))

        self.temporal_stem = nn.Conv3d(3, temporal_dim, (temporal_patch_size, patch, patch))
        self.input_linears = per_layer(lambda: nn.Linear(spec.width, dim))
        self.temporal_nets = per_layer(lambda: TemporalNet(spec.grid, temporal_dim, temporal_kernel_size, temporal_mlp_ratio))
        self.integration_nets = per_layer(
            lambda: IntegrationNet(dim, temporal_kernel_size, integration_mlp_ratio, integration_temporal_mlp_ratio)
        )
        self.temporal2integration_nets = per_layer(lambda: TemporalToIntegration(temporal_dim, dim, alpha, frames))
        self.integration2temporal_nets = per_layer(lambda: IntegrationToTemporal(dim, temporal_dim, alpha))
        self.adapooling_nets = nn.ModuleList(AdaPooling(dim, frames) for _ in range(pooling_layers))
        self.aggregated_cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.aggregated_spatial_cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.proj_spatial_cls_token = nn.Linear(spec.width, dim)
        self.ln_post = nn.LayerNorm(dim)
        self.proj = nn.Parameter(torch.empty(dim, spec.embed_dim))
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        """As the authors: proj N(0, D^-0.5) | in_proj xavier | other weights, tokens, positions: truncated normal 0.02
        | biases 0 | LayerNorms 1 and 0. Nothing starts at zero, so a fresh DiST is not CLIP."""
        for name, parameter in self.named_parameters():
            if name == "proj":
                nn.init.normal_(parameter, std=len(parameter) ** -0.5)
            elif name.endswith("in_proj_weight"):
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, clips, features):
        batch, frames = features[0].shape[:2]
        x, r, last = self.stem(clips), 0, len(features) - 1
        for i, tokens in enumerate(features):
            x = self.temporal_nets[i](x)  # (B, T, H*W, temporal_dim)
            m = self.input_linears[i](tokens) + r  # (B, t, L, D)
            u = m + self.temporal2integration_nets[i](x)
            r = self.integration_nets[i](u)
            if i < last:
                x = x + self.integration2temporal_nets[i](m)
        pooled = self.pool((r + u).flatten(0, 1), batch, frames)
        spatial = self.proj_spatial_cls_token(features[-1][:, :, 0].mean(dim=1))  # CLIP's class token, (B, D)
        dead = unused(self.integration2temporal_nets[last])
        return self.ln_post(pooled + spatial + dead) @ self.proj

    def stem(self, clips):
        """A convolution of Tp frames x one patch, over patches as vectors: (B, 3, T, H, W) -> (B, T, H*W, C)."""
        patch, pad = self.temporal_stem.kernel_size[1], self.temporal_stem.kernel_size[0] // 2
        patches = rearrange(clips, "b c t (h p) (w q) -> b t (h w) (p q c)", p=patch, q=patch).permute(0, 3, 1, 2)
        weight = rearrange(self.temporal_stem.weight, "o c t p q -> o (p q c) t 1")
        return F.conv2d(patches, weight, self.temporal_stem.bias, padding=(pad, 0)).permute(0, 2, 3, 1)

    def pool(self, tokens, batch, frames):
        """(B*t, L, D) -> (B, D)"""
        clip = self.aggregated_cls_token.expand(batch, -1, -1)
        frame = self.aggregated_spatial_cls_token.expand(batch * frames, -1, -1)
        for net in self.adapooling_nets:
            clip, frame = net(tokens, clip, frame)
        return clip[:, 0]


class DiST(nn.Module):
    """A frozen CLIP and its side network: (B, 3, T, H, W) -> (B, embed_dim), for T = num_frames only."""

    def __init__(self, spec, num_frames, alpha, selected_layers, **sizes):
        super().__init__()
        self.spec, self.feature_dim = spec, spec.embed_dim
        self.num_frames, self.alpha, self.selected_layers = num_frames, alpha, selected_layers
        self.visual = VisionTransformer(spec).requires_grad_(False)
        self.dist_net = SideNetwork(spec, num_frames, len(selected_layers), alpha, **sizes)

    @property
    def keeping(self):
        """The modules, in order, that keep what the gradient needs: the trunk keeps nothing."""
        return [net for pair in zip(self.dist_net.temporal_nets, self.dist_net.integration_nets) for net in pair]

    def forward(self, clips):
        if clips.shape[2] != self.num_frames:
            raise ValueError(
                f"the clips have {clips.shape[2]} frames but this DiST model has learned embeddings for "
                f"{self.num_frames}: sample that many, or create the model with another num_frames"
            )
        return self.dist_net(clips, self.clip_features(clips))

    @torch.no_grad()
    def clip_features(self, clips):
        """CLIP's tokens (B, t, L, C) of frames 0, alpha, 2 alpha, ... after each selected layer."""
        tokens, features = self.visual.embed(rearrange(clips[:, :, :: self.alpha], "b c t h w -> (b t) c h w")), []
        frames = clips.shape[2] // self.alpha
        for i, block in enumerate(self.visual.transformer.resblocks[: self.selected_layers[-1] + 1]):
            tokens = block(tokens, frames)
            if i in self.selected_layers:
                features.append(class_and_patches(tokens, self.spec).unflatten(0, (-1, frames)))
        return features


def build(
    spec,
    num_frames,
    *,
    alpha: Count = 2,
    selected_layers=None,
    integration_dim: Count = 384,
    temporal_dim: Count = 96,
    temporal_patch_size: Annotated[int, at_least(1), ODD] = 5,
    temporal_kernel_size: Annotated[int, at_least(1), ODD] = 3,
    temporal_mlp_ratio: float = 1.0,
    integration_mlp_ratio: float = 1.0,
    integration_temporal_mlp_ratio: float = 0.25,
    pooling_layers: Count = 2,
):
    """The backbone: CLIP frozen, the whole side network trained.

    `num_frames` counts the frames of a clip, of which CLIP sees every `alpha`-th; `selected_layers` are the CLIP layers
    whose tokens are used, counted from 0 and ascending (None: all). Raises ValueError on a value that does not fit.
    """
    sizes = dict(
        integration_dim=integration_dim,
        temporal_dim=temporal_dim,
        temporal_patch_size=temporal_patch_size,
        temporal_kernel_size=temporal_kernel_size,
        pooling_layers=pooling_layers,
    )
    if num_frames % alpha:
        raise ValueError(
            f"num_frames {num_frames} is not a multiple of alpha {alpha}: num_frames counts all frames of "
            "a clip, of which CLIP sees every alpha-th"
        )
    if integration_dim < 64 or integration_dim % (integration_dim // 64):
        raise ValueError(
            f"integration_dim {integration_dim} does not divide into heads of about 64 channels "
            "(integration_dim // 64 of them): use a multiple of 64"
        )
    ratios = {
        "temporal_mlp_ratio": (temporal_mlp_ratio, temporal_dim),
        "integration_mlp_ratio": (integration_mlp_ratio, integration_dim),
        "integration_temporal_mlp_ratio": (integration_temporal_mlp_ratio, integration_dim),
    }
    for name, (ratio, dim) in ratios.items():
        if dim * ratio < 1:
            raise ValueError(f"{name} must be a number that leaves at least one of {dim} channels, got {ratio!r}")
    layers = list(range(spec.layers))
    if selected_layers is not None:
        layers = [i for i in layers if isinstance(selected_layers, (list, tuple)) and i in selected_layers]
        if not layers or layers != list(selected_layers):
            raise ValueError(
                "selected_layers must be None (all) or ascending layer numbers from 0 to "
                f"{spec.layers - 1}, got {selected_layers!r}"
            )
    return DiST(spec, num_frames, alpha, layers, **sizes, **{name: ratio for name, (ratio, _) in ratios.items()})


def from_authors(name):
    """The name in our model of a parameter in the authors' checkpoints, old and new; None for the text tower and for
    CLIP's own projection, which DiST does not use."""
    inner = name.removeprefix("backbone.base_encoder.")
    if inner.startswith("ladder_net."):
        inner = ".".join(["dist_net", *(OLD_NAMES.get(part, part) for part in inner.split(".")[1:])])
    if inner.startswith(TEXT_TOWER) or inner == "visual.proj":
        return None
    return "head.logit_scale" if inner == "logit_scale" else f"backbone.{inner}"
