"""CLIP's image transformer (Radford et al. 2021, section 2.4), with CLIP's parameter names; it knows nothing of video.

Tokens are (N, L, C) with the class token first; for video N = B*T with the frame index fastest (n = b*T + t).
A video method subclasses Block, writes its own short forward, and hands it to VisionTransformer(spec, block=...).
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from i2v.rules import Count, check, one_of


@dataclass(frozen=True)
class ViTSpec:
    """The geometry of a CLIP image tower; `embed_dim` is the width of the joint image-text space.

    OpenAI's weights need activation "quick_gelu"; most of open_clip's own need "gelu".
    """

    image_size: Count
    patch_size: Count
    width: Count
    layers: Count
    heads: Count
    embed_dim: Count
    activation: Annotated[str, one_of("quick_gelu", "gelu")] = "quick_gelu"
    mean: ClassVar[tuple] = (0.48145466, 0.4578275, 0.40821073)
    std: ClassVar[tuple] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self):
        check(ViTSpec, vars(self), "backbone {name} must be {rule}, got {value}")
        if self.image_size % self.patch_size:
            raise ValueError(f"backbone image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"backbone width {self.width} is not a multiple of heads {self.heads}")

    @property
    def grid(self):
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def pictures(self):
        """What a loader must know of the trunk, as options of build_loader."""
        return {"size": self.image_size, "mean": self.mean, "std": self.std}


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class LayerNorm(nn.LayerNorm):
    """In float32 inside, under autocast too, and in its input's dtype outside: what follows reads no more than it needs."""

    def forward(self, x):
        return super().forward(x).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over the middle axis of (N, L, C); qkv and attend are separate so that a method can
    change the keys and values between them."""

    def __init__(self, spec):
        super().__init__()
        self.heads = spec.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * spec.width, spec.width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * spec.width))
        self.out_proj = nn.Linear(spec.width, spec.width)

    def qkv(self, x, wanted=None):
        """(N, L, C) -> q (N, wanted, C) of the first tokens (None: all), k and v (N, L, C), the heads side by side in C."""
        if wanted is None:
            return F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        (wq, wkv), (bq, bkv) = (p.split((x.shape[-1], 2 * x.shape[-1])) for p in (self.in_proj_weight, self.in_proj_bias))
        return F.linear(x[:, :wanted], wq, bq), *F.linear(x, wkv, bkv).chunk(2, dim=-1)

    def attend(self, q, k, v, mask=None):
        """softmax(q k^T / sqrt(d)) v per head, then the output projection: q (N, Q, C), k, v (N, L, C) -> (N, Q, C).

        mask: (Q, L), true where a query may look.
        """
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, heads, L, d)
        x = F.scaled_dot_product_attention(q, k, v, mask)
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (N, Q, C)

    def forward(self, x, wanted=None):
        return self.attend(*self.qkv(x, wanted))


class Block(nn.Module):
    """One pre-norm transformer layer; methods subclass it, add their modules and override forward(x, num_frames, wanted).

    (N, L, C) -> the first `wanted` tokens (N, wanted, C), None being all. After the last layer only the class token is
    read, so there a forward computes what only the others would need neither for queries nor behind the attention.
    """

    def __init__(self, spec, layer=0):
        super().__init__()
        activation = QuickGELU() if spec.activation == "quick_gelu" else nn.GELU()
        self.ln_1 = LayerNorm(spec.width)
        self.attn = Attention(spec)
        self.ln_2 = LayerNorm(spec.width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(spec.width, 4 * spec.width), activation=activation, c_proj=nn.Linear(4 * spec.width, spec.width)
            )
        )

    def forward(self, x, num_frames, wanted=None):
        x = x[:, :wanted] + self.attn(self.ln_1(x), wanted)
        return x + self.mlp(self.ln_2(x))


def residual_stream(tokens):
    """Tokens in the dtype that autocast computes in: every layer reads and writes them several times, in both directions.

    Without autocast as they are. The sums of a layer are rounded to it; norms and the head compute in float32.
    """
    device = tokens.device.type
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    return tokens.to(torch.get_autocast_dtype(device)) if autocast else tokens


def unused(module):
    """Zero, which gives every trained parameter of a module that reaches no logit a gradient, of zeros: checkpoints,
    optimizer and DDP need no exception for it. Nothing of the module is run or read."""
    return sum(p.flatten()[:0].sum() for p in module.parameters() if p.requires_grad)


class DropPath(nn.Module):
    """(B*T, L, C) -> the same, in training with whole clips at zero with `probability` and the others scaled up.

    The probability is a tensor because a float would make torch.compile build every layer's block anew.
    """

    def __init__(self, probability):
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0 - probability), persistent=False)

    def forward(self, x, num_frames):
        if not self.training:
            return x
        kept = torch.rand(len(x) // num_frames, device=x.device) < self.keep  # (B,)
        factor = (kept / self.keep).to(x.dtype).repeat_interleave(num_frames)  # (B*T,)
        return x * factor[:, None, None]


class VisionTransformer(nn.Module):
    """CLIP's image tower: (N, 3, H, W) -> (N, D), with D = embed_dim if `project` else width.

    `block(spec, layer_index)` makes each layer. Raises ValueError when the images are not image_size square.
    """

    def __init__(self, spec, block=Block, project=False):
        super().__init__()
        self.spec = spec
        self.conv1 = nn.Conv2d(3, spec.width, spec.patch_size, stride=spec.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(spec.width))
        self.positional_embedding = nn.Parameter(torch.empty(spec.grid**2 + 1, spec.width))
        self.ln_pre = nn.LayerNorm(spec.width)
        # A dict gives the parameters CLIP's names: transformer.resblocks.N...
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(block(spec, i) for i in range(spec.layers))})
        self.ln_post = nn.LayerNorm(spec.width)
        self.proj = nn.Parameter(torch.empty(spec.width, spec.embed_dim)) if project else None
        self._initialise()

    @property
    def feature_dim(self):
        """The width D of what forward returns."""
        return self.spec.width if self.proj is None else self.spec.embed_dim

    @torch.no_grad()
    def _initialise(self):
        """Only CLIP's own parameters; what a method adds is initialised where it is made.

        conv1: fan_in^-0.5 | embeddings, proj, in_proj: C^-0.5 | c_fc: (2C)^-0.5 | out_proj, c_proj, which write into
        the residual stream: (2 C layers)^-0.5 | biases: 0 | LayerNorms: 1 and 0
        """
        width, residual_std = self.spec.width, (2 * self.spec.width * self.spec.layers) ** -0.5
        nn.init.normal_(self.conv1.weight, std=(3 * self.spec.patch_size**2) ** -0.5)
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            if parameter is not None:
                nn.init.normal_(parameter, std=width**-0.5)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)
            for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
                nn.init.zeros_(bias)

    def tokenize(self, images):
        """(N, 3, H, W) -> tokens (N, L, C): class token and patches, with their positions, not yet normalised."""
        size = self.spec.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"frames are {tuple(images.shape[1:])} (C, H, W) but the backbone takes (3, {size}, "
                f"{size}): resize or crop the clips, or create the model with their image_size"
            )
        # conv1 is a product of whole patches: no library has a good convolution of 3 channels.
        p, weight = self.spec.patch_size, self.conv1.weight.permute(0, 2, 3, 1).flatten(1)  # (C, p*p*3)
        patches = images.unflatten(2, (-1, p)).unflatten(4, (-1, p))  # (N, 3, h, p, w, p)
        patches = F.linear(patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), weight)  # (N, L-1, C)
        class_token = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        return torch.cat((class_token, patches), dim=1) + self.positional_embedding

    def embed(self, images):
        """(N, 3, H, W) -> tokens (N, L, C): what enters the first layer; a method may add to tokenize before ln_pre."""
        return residual_stream(self.ln_pre(self.tokenize(images)))

    def encode(self, tokens, num_frames=1, wanted=None):
        """Tokens (N, L, C) through every layer -> the first `wanted` of them, (N, wanted, C); None: all."""
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            tokens = block(tokens, num_frames)
        return last(tokens, num_frames, wanted)

    def class_tokens(self, tokens, num_frames=1):
        """Tokens (N, L, C) through every layer -> (N, C), the class tokens alone, in ln_post's dtype."""
        return self.encode(tokens, num_frames, wanted=1)[:, 0].to(self.ln_post.weight.dtype)

    def features(self, images, num_frames=1):
        """(N, 3, H, W) -> the tokens (N, L, C) after each layer, as a list."""
        tokens, per_layer = self.embed(images), []
        for block in self.transformer.resblocks:
            tokens = block(tokens, num_frames)
            per_layer.append(tokens)
        return per_layer

    def forward(self, images):
        x = self.ln_post(self.class_tokens(self.embed(images)))  # (N, C)
        return x if self.proj is None else x @ self.proj
