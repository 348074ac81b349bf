"""The pixels of MoSI's clips, on the device that trains: a crop that moves over a still (pipelines/mosi.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from i2v.pipelines.augment import LUMA
from i2v.pipelines.mosi import Motion


def moving_crops(
    stills: torch.Tensor, motions: list[Motion], size: int, mean, std, to_device: Callable = lambda tensor: tensor
) -> torch.Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, T, size, size) float32, normalised, channels-last in memory. mean, std: of colours in 0..1.

    As the authors: cut, divide by 255, change colours, normalise, mirror, and let one frame stand still outside of a box.
    """

    def stacked(name: str) -> torch.Tensor:
        return to_device(torch.from_numpy(np.stack([getattr(motion, name) for motion in motions])))

    span = torch.arange(size, device=stills.device)
    clip = torch.arange(len(motions), device=stills.device)
    columns = torch.where(stacked("flip")[:, None], span.flip(0), span)  # (B, size)
    columns = stacked("left")[:, :, None] + columns[:, None]  # (B, T, size)
    rows = stacked("top")[:, :, None] + span
    clips = stills[clip[:, None, None, None], rows[..., None], columns[:, :, None]].float() / 255  # (B, T, size, size, 3)
    if motions[0].colors is not None:
        clips = _recoloured(clips, stacked("colors"))
    clips = (clips - clips.new_tensor(mean)) / clips.new_tensor(std)
    top, left, bottom, right = stacked("moving")[:, :, None].unbind(1)  # (B, 1) each
    within = ((span >= top) & (span < bottom))[:, :, None] & ((span >= left) & (span < right))[:, None]  # (B, size, size)
    kept = clips[clip, stacked("kept")]  # (B, size, size, 3)
    return torch.where(within[:, None, ..., None], clips, kept[:, None]).movedim(-1, 1)


def _recoloured(clips: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, 3) from 0 to 1; colors: (B, T, 3, 4), see Augmentation."""
    grey = (clips @ clips.new_tensor(LUMA)).mean((2, 3))  # (B, T)
    mixed = torch.einsum("btij,bthwj->bthwi", colors[..., :3], clips)
    return (mixed + (colors[..., 3] * grey[..., None])[:, :, None, None]).clamp(0, 1)
