"""What methods share that see a clip as frames of an image transformer."""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import nn

from i2v.vit import VisionTransformer, residual_stream


class FrameTransformer(VisionTransformer):
    """(B, 3, T, H, W) -> (B, width): every token gets its frame's temporal embedding before ln_pre, and each frame is
    finished by ln_post before the mean, as AIM's and ZeroI2V's authors do.

    ValueError unless T is num_frames.
    """

    def __init__(self, spec, block, num_frames):
        super().__init__(spec, block)
        self.num_frames = num_frames
        self.temporal_embedding = nn.Parameter(torch.zeros(1, num_frames, spec.width))

    def embed(self, frames):
        tokens = rearrange(self.tokenize(frames), "(b t) l c -> b t l c", t=self.num_frames)
        tokens = tokens + self.temporal_embedding[:, :, None]  # (1, T, 1, C): the same for every token of a frame
        return residual_stream(self.ln_pre(rearrange(tokens, "b t l c -> (b t) l c")))

    def forward(self, clips):
        if clips.shape[2] != self.num_frames:
            raise ValueError(
                f"clips have {clips.shape[2]} frames but the temporal embedding is for {self.num_frames}: "
                f"sample {self.num_frames} frames, or create the model with num_frames={clips.shape[2]}"
            )
        frames = rearrange(clips, "b c t h w -> (b t) c h w")  # a view when the clips are channels-last
        frames = self.finish(self.summary(self.embed(frames), self.num_frames))  # (B*T, C)
        return reduce(frames, "(b t) c -> b c", "mean", t=self.num_frames)

    def train_only(self, adapter):
        """The recipe of both: modules of the class `adapter`, the temporal embedding and ln_post train, the rest is frozen."""
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, adapter):
                module.requires_grad_(True)
        self.ln_post.requires_grad_(True)
        self.temporal_embedding.requires_grad_(True)
        return self


def onto_patches(layer, patches, prefix):
    """Patches (..., h*w, C) through a Linear or a convolution of one point -> tokens (..., prefix + h*w, C'), the first zeros.

    Those go through the product as well: `prefix` rows more cost less than copying all others, and their gradients, out of
    tensors that hold both. So the bias is added apart.
    """
    behind = (0, 0, prefix, 0)
    bias = F.pad(layer.bias.to(patches.dtype).expand(patches.shape[-2], -1), behind)  # (L, C')
    return F.linear(F.pad(patches, behind), layer.weight.flatten(1)) + bias


def frames_later(x, frames):
    """(B, T, ...) -> the same, frame t being frame t + frames of x, and zeros where the clip has none."""
    if abs(frames) >= x.shape[1]:
        return torch.zeros_like(x)
    return F.pad(x, (0, 0) * (x.ndim - 2) + (-frames, frames))  # a negative pad cuts off


def from_mmaction(name):
    """The name in our model of a parameter in the checkpoints of authors who use mmaction2 (AIM, ZeroI2V)."""
    if name.startswith("head."):  # ours: without this our own files would fit this layout as well as theirs
        return f"cls_{name}"
    return name.replace("cls_head.fc_cls.", "head.fc.")
