"""The baseline: frozen features of every frame, averaged; only the classifier on top is trained.

Each frame is treated as CLIP treats an image (ln_post per frame) and the mean is taken over the finished features, as
in CLIP's own zero-shot video evaluations; ST-Adapter averages the class tokens first and normalises their mean.
"""

from einops import rearrange, reduce

from i2v.vit import VisionTransformer


class PooledCLIP(VisionTransformer):
    """(B, 3, T, H, W) -> (B, width), for any T."""

    def forward(self, clips):
        features = super().forward(rearrange(clips, "b c t h w -> (b t) c h w"))
        return reduce(features, "(b t) c -> b c", "mean", t=clips.shape[2])


def build(spec, num_frames):
    """The backbone with every parameter frozen; any number of frames works."""
    return PooledCLIP(spec).requires_grad_(False)
