"""The image transformer of CLIP (Radford et al. 2021, section 2.4) and of its relatives, with CLIP's parameter names.

It knows nothing of video. Tokens are (N, L, C): class token, registers, patches, of which a trunk may lack the first two;
for video N = B*T with the frame index fastest (n = b*T + t). What differs between families is data in the ViTSpec.
A video method subclasses Block, writes its own short forward, and hands it to VisionTransformer(spec, block=...).
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from i2v.colours import CLIP_MEAN, CLIP_STD
from i2v.rules import COLOURS, Count, Rule, at_least, check, is_finite, more_than, one_of

POOLS = ("class", "mean", "normed_mean", "attention")
ROTARY = Rule(
    "a section with base, first, step, axes (yx or xy) and pairs (adjacent or halves)",
    lambda value: (
        set(value) == {"base", "first", "step", "axes", "pairs"}
        and all(is_finite(value[name]) for name in ("base", "first", "step"))
        and value["axes"] in ("yx", "xy")
        and value["pairs"] in ("adjacent", "halves")
    ),
    alone=True,
)


@dataclass(frozen=True)
class ViTSpec:
    """What a trunk is. The defaults are OpenAI's CLIP; `embed_dim` is the width of the joint image-text space.

    i2v.trunks.backbone_spec makes one of a name. OpenAI's weights need activation "quick_gelu"; most of open_clip's "gelu".
    """

    image_size: Count
    patch_size: Count
    width: Count
    layers: Count
    heads: Count
    embed_dim: Count
    activation: Annotated[str, one_of("quick_gelu", "gelu", "gelu_tanh", "swiglu")] = "quick_gelu"
    mlp_width: Count | None = None  # channels inside an MLP (with swiglu those of its product); None: 4 width
    norm_eps: Annotated[float, more_than(0)] = 1e-5
    class_token: bool = True
    registers: Annotated[int, at_least(0)] = 0  # learned tokens between the class token and the patches
    positions: bool = True  # learned ones, added to the tokens
    rotary: Annotated[dict, ROTARY] | None = None  # of queries and keys, see Rotary
    patch_bias: bool = False
    ln_pre: bool = True
    attn_norm: bool = False  # a LayerNorm between attention and output projection
    mlp_norm: bool = False  # and one before the MLP's second layer
    pool: Annotated[str, one_of(*POOLS)] = "class"  # what stands for a picture, see VisionTransformer.summary
    pool_heads: Count | None = None  # of attention pooling; None: heads
    pool_mlp_width: Count | None = None  # None: mlp_width
    projection: Annotated[str, one_of("none", "linear", "affine")] = "linear"  # from there into the joint space
    mean: Annotated[tuple, COLOURS] = CLIP_MEAN  # of red, green and blue from 0 to 1, as the trunk was trained
    std: Annotated[tuple, COLOURS] = CLIP_STD

    def __post_init__(self):
        check(ViTSpec, vars(self), "backbone {name} must be {rule}, got {value}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, in JSON and YAML
        if min(self.std) <= 0:
            raise ValueError(f"backbone std must be more than 0, got {self.std}")
        if self.pool == "class" and not self.class_token:
            raise ValueError("backbone pool is class, but class_token is false: use mean, normed_mean or attention")
        if self.projection == "none" and self.embed_dim != self.width:
            raise ValueError(f"backbone projection is none, so embed_dim is the width {self.width}, not {self.embed_dim}")
        if self.image_size % self.patch_size:
            raise ValueError(f"backbone image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.width % self.heads:
            raise ValueError(f"backbone width {self.width} is not a multiple of heads {self.heads}")
        if self.rotary and self.width // self.heads % 4:
            raise ValueError(f"backbone rotary needs heads of a multiple of 4 channels, not {self.width // self.heads}")

    @property
    def grid(self):
        """Patches along one side of a frame."""
        return self.image_size // self.patch_size

    @property
    def prefix(self):
        """Tokens before the patches."""
        return self.class_token + self.registers


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class SwiGLU(nn.Module):
    """(..., 2 C) -> (..., C): the second half, gated by the first (Shazeer 2020)."""

    def forward(self, x):
        gate, x = x.chunk(2, dim=-1)
        return F.silu(gate) * x


class LayerNorm(nn.LayerNorm):
    """In float32 inside, under autocast too, and in its input's dtype outside: what follows reads no more than it needs."""

    def forward(self, x):
        return super().forward(x).to(x.dtype)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021) of patches in a plane: (N, L, heads, d) -> the same, each pair of channels turned.

    Of a head's pairs the first half turns with one axis of the picture, the second with the other, by the angles
    (first + step i) base^(-4k / d) for patch i along that axis and pair k of the half. axes: "yx" or "xy", which comes
    first. pairs: "adjacent" channels, or those of the head's two "halves". The `prefix` tokens are left as they are.
    """

    def __init__(self, grid, prefix, dim, base, first, step, axes, pairs):
        super().__init__()
        self.pairs = pairs
        along = first + step * torch.arange(grid, dtype=torch.float64)[:, None]
        along = along * base ** (-4 / dim * torch.arange(dim // 4, dtype=torch.float64))  # (grid, d / 4)
        y, x = along[:, None].expand(-1, grid, -1), along[None].expand(grid, -1, -1)
        angles = torch.cat((y, x) if axes == "yx" else (x, y), dim=-1).flatten(0, 1)  # (grid^2, d / 2)
        angles = F.pad(angles, (0, 0, prefix, 0))  # (L, d / 2)
        angles = angles.repeat_interleave(2, dim=-1) if pairs == "adjacent" else angles.repeat(1, 2)
        for name, table in {"cos": angles.cos(), "sin": angles.sin()}.items():
            self.register_buffer(name, table.float()[:, None], persistent=False)  # (L, 1, d)

    def forward(self, x):
        if self.pairs == "adjacent":
            turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat((-second, first), dim=-1)
        length = x.shape[1]  # the first tokens, where a block needs no more queries
        return (x * self.cos[:length] + turned * self.sin[:length]).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over the middle axis of (N, L, C); qkv and attend are separate so that a method can
    change the keys and values between them. rotary, norm: modules of a trunk that has them."""

    def __init__(self, width, heads, rotary=None, norm=None):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.rotary, self.norm = rotary, norm
        self.out_proj = nn.Linear(width, width)

    def qkv(self, x, wanted=None):
        """(N, L, C) -> q (N, wanted, C) of the first tokens (None: all), k and v (N, L, C), the heads side by side in C."""
        # Three products: of one, the gradients of q, k and v would have to be copied together.
        read, weights, biases = (x[:, :wanted], x, x), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return [F.linear(*parts) for parts in zip(read, weights, biases)]

    def attend(self, q, k, v, mask=None, placed=True):
        """softmax(q k^T / sqrt(d)) v per head, then the output projection: q (N, Q, C), k, v (N, L, C) -> (N, Q, C).

        mask: (Q, L), true where a query may look. placed: whether tokens are those of a frame, in their order, so that
        rotary positions apply.
        """
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))  # (N, L, heads, d)
        if placed and self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        x = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), mask)
        x = x.transpose(1, 2).flatten(2)  # (N, Q, C)
        return self.out_proj(x if self.norm is None else self.norm(x))

    def forward(self, x, wanted=None):
        return self.attend(*self.qkv(x, wanted))


class Rows(nn.Sequential):
    """Layers that see single tokens: (..., C) -> (..., C'), as one list of rows. What stands between two products then has
    the shape of a product, without which older versions of torch take neither it nor its gradient into one."""

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def mlp(spec):
    """The two layers of a block's MLP, with what the trunk has between them."""
    activations = {"quick_gelu": QuickGELU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU("tanh"), "swiglu": SwiGLU}
    hidden = spec.mlp_width or 4 * spec.width
    c_fc = nn.Linear(spec.width, hidden * (2 if spec.activation == "swiglu" else 1))
    parts = OrderedDict(c_fc=c_fc, activation=activations[spec.activation]())
    if spec.mlp_norm:
        parts["norm"] = LayerNorm(hidden, spec.norm_eps)
    return Rows(OrderedDict(**parts, c_proj=nn.Linear(hidden, spec.width)))


class AttentionPool(nn.Module):
    """A learned query gathers the tokens of a picture, and an MLP follows: (N, L, C) -> (N, C)."""

    def __init__(self, spec):
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, spec.width))
        self.attn = Attention(spec.width, spec.pool_heads or spec.heads)
        self.ln = LayerNorm(spec.width, spec.norm_eps)
        self.mlp = mlp(replace(spec, mlp_width=spec.pool_mlp_width or spec.mlp_width, mlp_norm=False))

    def forward(self, x):
        width = x.shape[-1]
        (wq, wkv), (bq, bkv) = (p.split((width, 2 * width)) for p in (self.attn.in_proj_weight, self.attn.in_proj_bias))
        query = F.linear(self.query, wq, bq).expand(len(x), 1, -1)
        x = self.attn.attend(query, *F.linear(x, wkv, bkv).chunk(2, dim=-1))[:, 0]  # (N, C)
        return x + self.mlp(self.ln(x))


class Block(nn.Module):
    """One pre-norm transformer layer; methods subclass it, add their modules and override forward(x, num_frames, wanted).

    (N, L, C) -> the first `wanted` tokens (N, wanted, C), None being all. After the last layer only the class token is
    read, so there a forward computes what only the others would need neither for queries nor behind the attention.
    """

    def __init__(self, spec, layer=0):
        super().__init__()
        rotary = Rotary(spec.grid, spec.prefix, spec.width // spec.heads, **spec.rotary) if spec.rotary else None
        norm = LayerNorm(spec.width, spec.norm_eps) if spec.attn_norm else None
        self.ln_1 = LayerNorm(spec.width, spec.norm_eps)
        self.attn = Attention(spec.width, spec.heads, rotary, norm)
        self.ln_2 = LayerNorm(spec.width, spec.norm_eps)
        self.mlp = mlp(spec)

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
        return x * self.factor(x, num_frames) if self.training else x

    def factor(self, x, num_frames):
        """What training multiplies x (B*T, L, C) with: (B*T, 1, 1)."""
        kept = torch.rand(len(x) // num_frames, device=x.device) < self.keep  # (B,)
        return (kept / self.keep).to(x.dtype).repeat_interleave(num_frames)[:, None, None]


class VisionTransformer(nn.Module):
    """An image tower: (N, 3, H, W) -> (N, D), with D = embed_dim if `project` else width.

    `block(spec, layer_index)` makes each layer. Raises ValueError when the images are not image_size square.
    """

    def __init__(self, spec, block=Block, project=False):
        super().__init__()
        self.spec = spec
        project = project and spec.projection != "none"
        self.conv1 = nn.Conv2d(3, spec.width, spec.patch_size, stride=spec.patch_size, bias=spec.patch_bias)
        self.class_embedding = nn.Parameter(torch.empty(spec.width)) if spec.class_token else None
        self.register_embedding = nn.Parameter(torch.empty(spec.registers, spec.width)) if spec.registers else None
        self.positional_embedding = None
        if spec.positions:
            self.positional_embedding = nn.Parameter(torch.empty(spec.prefix + spec.grid**2, spec.width))
        self.ln_pre = nn.LayerNorm(spec.width, spec.norm_eps) if spec.ln_pre else nn.Identity()
        # A dict gives the parameters CLIP's names: transformer.resblocks.N...
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(block(spec, i) for i in range(spec.layers))})
        self.ln_post = nn.LayerNorm(spec.width, spec.norm_eps)
        self.attn_pool = AttentionPool(spec) if spec.pool == "attention" else None
        self.proj = nn.Parameter(torch.empty(spec.width, spec.embed_dim)) if project else None
        self.proj_bias = nn.Parameter(torch.zeros(spec.embed_dim)) if project and spec.projection == "affine" else None
        self.wanted = 1 if spec.pool == "class" else None  # tokens of the last layer that are read; None: all
        self._initialise()

    @property
    def feature_dim(self):
        """The width D of what forward returns."""
        return self.spec.width if self.proj is None else self.spec.embed_dim

    @torch.no_grad()
    def _initialise(self):
        """Only the trunk's own parameters; what a method adds is initialised where it is made.

        conv1: fan_in^-0.5 | embeddings, proj, query, in_proj: C^-0.5 | c_fc: (2C)^-0.5 | out_proj, c_proj, which write into
        the residual stream: (2 C layers)^-0.5 | biases: 0 | LayerNorms: 1 and 0
        """
        width, residual_std = self.spec.width, (2 * self.spec.width * self.spec.layers) ** -0.5
        nn.init.normal_(self.conv1.weight, std=(3 * self.spec.patch_size**2) ** -0.5)
        pool = [] if self.attn_pool is None else [self.attn_pool]
        embeddings = [self.class_embedding, self.register_embedding, self.positional_embedding, self.proj]
        for parameter in embeddings + [pool.query for pool in pool]:
            if parameter is not None:
                nn.init.normal_(parameter, std=width**-0.5)
        for block in [*self.transformer.resblocks, *pool]:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)
            for bias in (block.attn.in_proj_bias, block.attn.out_proj.bias, block.mlp.c_fc.bias, block.mlp.c_proj.bias):
                nn.init.zeros_(bias)
        if self.conv1.bias is not None:
            nn.init.zeros_(self.conv1.bias)

    def tokenize(self, images):
        """(N, 3, H, W) -> tokens (N, L, C), with their positions, not yet normalised."""
        size = self.spec.image_size
        if images.shape[1:] != (3, size, size):
            raise ValueError(
                f"frames are {tuple(images.shape[1:])} (C, H, W) but the backbone takes (3, {size}, "
                f"{size}): resize or crop the clips, or create the model with their image_size"
            )
        # conv1 is a product of whole patches: no library has a good convolution of 3 channels.
        p, weight = self.spec.patch_size, self.conv1.weight.permute(0, 2, 3, 1).flatten(1)  # (C, p*p*3)
        patches = images.unflatten(2, (-1, p)).unflatten(4, (-1, p))  # (N, 3, h, p, w, p)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (N, h*w, p*p*3)
        return self.with_prefix(F.linear(patches, weight, self.conv1.bias))

    def with_prefix(self, patches):
        """Patches (N, h*w, C) -> all tokens (N, L, C), with their positions."""
        prefix = [
            embedding.to(patches.dtype).view(-1, patches.shape[-1]).expand(len(patches), -1, -1)
            for embedding in (self.class_embedding, self.register_embedding)
            if embedding is not None
        ]
        tokens = torch.cat((*prefix, patches), dim=1) if prefix else patches
        return tokens if self.positional_embedding is None else tokens + self.positional_embedding

    def embed(self, images):
        """(N, 3, H, W) -> tokens (N, L, C): what enters the first layer; a method may add to tokenize before ln_pre."""
        return residual_stream(self.ln_pre(self.tokenize(images)))

    def encode(self, tokens, num_frames=1, wanted=None):
        """Tokens (N, L, C) through every layer -> the first `wanted` of them, (N, wanted, C); None: all."""
        *blocks, last = self.transformer.resblocks
        for block in blocks:
            tokens = block(tokens, num_frames)
        return last(tokens, num_frames, wanted)

    def summary(self, tokens, num_frames=1):
        """Tokens (N, L, C) through every layer -> (N, C): what stands for each picture, before ln_post if that comes last.

        By the spec's pool: the class token or the mean of the patches, then ln_post (`finish`); or ln_post, then the mean of
        the patches (normed_mean) or attention pooling over all tokens. In ln_post's dtype.
        """
        tokens, pool = self.encode(tokens, num_frames, self.wanted), self.spec.pool
        if pool == "class":
            return tokens[:, 0].to(self.ln_post.weight.dtype)
        if pool in ("normed_mean", "attention"):
            tokens = self.ln_post(tokens)
        x = self.attn_pool(tokens) if pool == "attention" else tokens[:, self.spec.prefix :].mean(dim=1)
        return x.to(self.ln_post.weight.dtype)

    def finish(self, x):
        """What `summary` gives, or a mean of such, (N, C) -> (N, D)."""
        x = self.ln_post(x) if self.spec.pool in ("class", "mean") else x
        return into_joint_space(x, self.proj, self.proj_bias)

    def features(self, images, num_frames=1):
        """(N, 3, H, W) -> the tokens (N, L, C) after each layer, as a list."""
        tokens, per_layer = self.embed(images), []
        for block in self.transformer.resblocks:
            tokens = block(tokens, num_frames)
            per_layer.append(tokens)
        return per_layer

    def forward(self, images):
        return self.finish(self.summary(self.embed(images)))


def into_joint_space(x, proj, bias=None):
    """(N, C) -> (N, embed_dim), where images and texts are compared; proj (C, embed_dim) or None, for x that lies there."""
    x = x if proj is None else x @ proj
    return x if bias is None else x + bias


def class_and_patches(tokens, spec):
    """Tokens (N, L, C) -> (N, 1 + h*w, C), without registers; where there is no class token, the patches' mean is one."""
    if spec.prefix == 1 and spec.class_token:
        return tokens
    patches = tokens[:, spec.prefix :]
    return torch.cat((tokens[:, :1] if spec.class_token else patches.mean(dim=1, keepdim=True), patches), dim=1)
