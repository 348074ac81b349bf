"""What the loader gives: clips with their labels, weights and places in the stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from i2v.pipelines.graph import MEAN, STD

FEW = 4  # frames at once


@dataclass
class Batch:
    """B samples. `clips` is float, normalised; its memory is channels-last."""

    pixels: torch.Tensor  # as `clips`, or uint8 and not normalised yet
    labels: torch.Tensor  # (B,) int64; -1: not labelled. Where videos have several classes: (B, K) float32, 0 or 1
    weights: torch.Tensor  # (B,) float32; 0: a bad clip, or filling after the last video
    ids: torch.Tensor  # (B,) int64, on the CPU: the number of the video in the data set
    samples_seen: int  # `start` for the loader that continues after this batch
    frames: torch.Tensor | None = None  # (B, clips * T) int64, on the CPU: which stored frames these are
    positions: torch.Tensor | None = None  # (B,) int64, on the CPU: places in the stream
    grey: tuple[list[float], list[float]] = (MEAN, STD)  # what uint8 is normalised with

    @property
    def clips(self) -> torch.Tensor:
        """(B, 3, T, H, W); with several views (B, V, 3, T, H, W)."""
        return normalised(self.pixels, *self.grey) if self.pixels.dtype == torch.uint8 else self.pixels

    def views(self, at_once: int) -> Iterator[torch.Tensor]:
        """All views, (B, v, 3, T, H, W) each, with B * v at most `at_once` (or v = 1): normalised as they come."""
        pixels = self.pixels if self.pixels.ndim == 6 else self.pixels.unsqueeze(1)
        for part in pixels.split(max(1, at_once // len(pixels)), dim=1):
            yield normalised(part, *self.grey) if part.dtype == torch.uint8 else part


def normalised(pixels: torch.Tensor, mean=MEAN, std=STD, new=torch.empty) -> torch.Tensor:
    """(..., 3, T, H, W) uint8 -> float32, as the graph does it; memory stays channels-last. mean, std: in grey levels. new:
    makes a tensor of a shape on the CPU."""
    rows = pixels.movedim(-4, -1).flatten(-2)  # (..., T, H, W * 3): long rows, for vector instructions
    mean, scale = (
        torch.tensor(values, device=pixels.device).repeat(pixels.shape[-1]) for values in (mean, [1 / s for s in std])
    )
    if pixels.device.type == "cuda":
        out = (rows.float() - mean) * scale
    else:
        out = new(rows.shape)
        few = zip(rows.flatten(0, -3).split(FEW), out.view(-1, *rows.shape[-2:]).split(FEW))
        for frames, into in few:  # they stay in the cache
            into.copy_(frames).sub_(mean).mul_(scale)
    return out.unflatten(-1, (-1, 3)).movedim(-1, -4)
