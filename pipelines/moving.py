"""The pixels of MoSI's clips, on the device that trains: a crop that moves over a still (pipelines/mosi.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from i2v.pipelines.augment import LUMA
from i2v.pipelines.mosi import Motion


def moving_crops(
    stills: torch.Tensor,
    motions: Sequence[Motion],
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    to_device: Callable = lambda tensor: tensor,
    colors: Sequence[np.ndarray] = (),
) -> torch.Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, T, size, size) float32, normalised, channels-last in memory.

    As the authors: cut, divide by 255, change colours, normalise, mirror, and let one frame stand still outside of a box.
    mean, std: of colours from 0 to 1. colors: (T, 3, 4) of each clip, see Augmentation; none: as they are.
    """

    def stacked(arrays) -> torch.Tensor:
        return to_device(torch.from_numpy(np.stack(arrays)))

    span, clip = torch.arange(size, device=stills.device), torch.arange(len(motions), device=stills.device)
    left, top, flip, kept, box = (
        stacked([getattr(motion, name) for motion in motions]) for name in ("left", "top", "flip", "kept", "moving")
    )
    columns = left[:, :, None] + torch.where(flip[:, None], span.flip(0), span)[:, None]  # (B, T, size)
    rows = top[:, :, None] + span
    clips = stills[clip[:, None, None, None], rows[..., None], columns[:, :, None]].float() / 255  # (B, T, size, size, 3)
    if colors:
        clips = _recoloured(clips, stacked(colors))
    clips = (clips - clips.new_tensor(mean)) / clips.new_tensor(std)
    first_row, first_column, last_row, last_column = box[:, :, None].unbind(1)  # (B, 1) each, the last ones not included
    inside_rows, inside_columns = (span >= first_row) & (span < last_row), (span >= first_column) & (span < last_column)
    inside = (inside_rows[:, :, None] & inside_columns[:, None])[:, None, ..., None]  # (B, 1, size, size, 1)
    return torch.where(inside, clips, clips[clip, kept][:, None]).movedim(-1, 1)


def _recoloured(clips: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(B, T, H, W, 3) from 0 to 1; colors: (B, T, 3, 4), see Augmentation."""
    grey = (clips @ clips.new_tensor(LUMA)).mean((2, 3))  # (B, T)
    mixed = torch.einsum("btij,bthwj->bthwi", colors[..., :3], clips)
    return (mixed + (colors[..., 3] * grey[..., None])[:, :, None, None]).clamp(0, 1)
