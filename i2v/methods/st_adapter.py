"""ST-Adapter (Pan et al. 2022, "ST-Adapter: Parameter-Efficient Image-to-Video Transfer Learning", section 3).

    Adapter(X) = X + fc2(dwconv3d(fc1(X)))      on patch tokens; those before them pass unchanged

placed before the attention and/or before the MLP of a frozen CLIP block. As in the authors' code the class token is
averaged over the frames and then normalised by the frozen ln_post, and the adapter before the last MLP reaches no
logit: it is kept, never run, with zero gradients, so that checkpoints and optimiser state match theirs.
"""

from einops import rearrange, reduce
from torch import nn

from i2v.rules import Count
from i2v.video import frames_later, onto_patches
from i2v.vit import Block, VisionTransformer, unused

POSITIONS = ("pre_attn", "pre_mlp")


class Adapter(nn.Module):
    """(B*T, L, C) -> (B*T, L, C): a bottleneck of `width` channels around a depthwise 3-D convolution.

    The convolution starts at zero, so a fresh adapter is the identity.
    """

    def __init__(self, spec, width, kernel_size):
        super().__init__()
        self.grid, self.prefix = spec.grid, spec.prefix
        self.fc1 = nn.Linear(spec.width, width)
        # Holds the parameters under the authors' names and shape (width, 1, kt, kh, kw).
        self.conv = nn.Conv3d(width, width, kernel_size, padding=[k // 2 for k in kernel_size], groups=width)
        self.fc2 = nn.Linear(width, spec.width)
        for parameter in (self.conv.weight, self.conv.bias, self.fc1.bias, self.fc2.bias):
            nn.init.zeros_(parameter)

    def forward(self, x, num_frames):
        # All tokens go through both products: see onto_patches.
        convolve = self.over_frames if self.conv.kernel_size[1:] == (1, 1) else self.over_space_time
        return x + onto_patches(self.fc2, convolve(self.fc1(x), num_frames), self.prefix)

    def over_frames(self, x, num_frames):
        """(B*T, L, C) -> patch tokens (B*T, h*w, C): a (k, 1, 1) convolution as k shifted multiply-adds over the frame
        axis; no permutation, no conv3d."""
        taps = self.conv.weight.flatten(1).t().to(x.dtype)  # (k, C)
        x = rearrange(x, "(b t) l c -> b t l c", t=num_frames)
        mixed = self.conv.bias.to(x.dtype)
        for i, tap in enumerate(taps):
            mixed = mixed + frames_later(tap * x, i - len(taps) // 2)
        return rearrange(mixed, "b t l c -> (b t) l c")[:, self.prefix :]

    def over_space_time(self, x, num_frames):
        """(B*T, L, C) -> patch tokens (B*T, h*w, C): any odd kernel, over (T, H, W)."""
        patches = rearrange(x[:, self.prefix :], "(b t) (h w) c -> b c t h w", t=num_frames, h=self.grid)
        return rearrange(self.conv(patches), "b c t h w -> (b t) (h w) c")


class AdaptedBlock(Block):
    """A CLIP block with an adapter at each of `positions`."""

    def __init__(self, spec, layer, adapter_width, kernel_size, positions):
        super().__init__(spec, layer)
        self.adapter_pre_attn = Adapter(spec, adapter_width, kernel_size) if "pre_attn" in positions else None
        self.adapter_pre_mlp = Adapter(spec, adapter_width, kernel_size) if "pre_mlp" in positions else None

    def forward(self, x, num_frames, wanted=None):
        if self.adapter_pre_attn is not None:
            x = self.adapter_pre_attn(x, num_frames)
        x = x[:, :wanted] + self.attn(self.ln_1(x), wanted)
        if self.adapter_pre_mlp is not None:
            # An adapter leaves the class token as it is.
            x = self.adapter_pre_mlp(x, num_frames) if wanted is None else x + unused(self.adapter_pre_mlp)
        return x + self.mlp(self.ln_2(x))


class STAdapterTransformer(VisionTransformer):
    """(B, 3, T, H, W) -> (B, width), for any T."""

    def forward(self, clips):
        num_frames = clips.shape[2]
        frames = rearrange(clips, "b c t h w -> (b t) c h w")  # a view when the clips are channels-last
        summary = self.summary(self.embed(frames), num_frames)  # (B*T, C)
        return self.finish(reduce(summary, "(b t) c -> b c", "mean", t=num_frames))


def build(spec, num_frames, *, adapter_width: Count = 384, kernel_size=(3, 1, 1), positions=("pre_mlp",), adapted_layers=None):
    """The backbone with adapters in the last `adapted_layers` blocks (None: all); only the adapters train.

    `kernel_size` is (frames, height, width), all odd; `positions` is any of "pre_attn" and "pre_mlp". The number of
    frames is taken from each clip, so `num_frames` is not used. Raises ValueError on a value outside these.
    """
    kernel = tuple(kernel_size) if isinstance(kernel_size, (list, tuple)) else ()
    if len(kernel) != 3 or any(type(k) is not int or k < 1 or k % 2 == 0 for k in kernel):
        raise ValueError(
            f"kernel_size must be three odd positive integers [frames, height, width] (an even kernel "
            f"would change the clip's shape), got {kernel_size!r}"
        )
    if isinstance(positions, str) or not positions or set(positions) - set(POSITIONS):
        raise ValueError(f"positions must be a list with one or both of {', '.join(POSITIONS)}, got {positions!r}")
    if adapted_layers is None:
        adapted_layers = spec.layers
    if type(adapted_layers) is not int or not 1 <= adapted_layers <= spec.layers:
        raise ValueError(
            f"adapted_layers must be None (all) or an integer from 1 to the backbone's {spec.layers} "
            f"layers, got {adapted_layers!r}"
        )

    def block(spec, layer):
        if layer < spec.layers - adapted_layers:
            return Block(spec, layer)
        return AdaptedBlock(spec, layer, adapter_width, kernel, positions)

    model = STAdapterTransformer(spec, block).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Adapter):
            module.requires_grad_(True)
    return model


def from_authors(name):
    """The name in our model of a parameter in the authors' checkpoints (their classifier `fc` sits in the backbone)."""
    return f"head.{name}" if name.startswith("fc.") else f"backbone.{name}"
