"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) on the device, one draw for the whole batch.

Every clip is mixed with the one at the opposite place in the batch of its device, as the authors of the recipes do.
The draw is a function of where the run is, so that a continued run mixes as the uninterrupted one; with another number
of devices the partners are others.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F


def mix(clips: torch.Tensor, labels: torch.Tensor, classes: int, mixup: float, cutmix: float, draw: random.Random):
    """(B, 3, T, H, W) clips and (B,) labels -> mixed clips and (B, classes) targets that sum to 1.

    mixup, cutmix: parameters of the Beta distribution of the share that stays, 0 turns one off; if both are on, a coin
    decides for the batch. CutMix pastes the same box into every frame, and the target is exactly its share.
    """
    use_cutmix = cutmix > 0 and (mixup == 0 or draw.random() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    share = draw.betavariate(alpha, alpha)
    partners = clips.flip(0)
    if use_cutmix:
        height, width = clips.shape[-2:]
        top, bottom, left, right = cut_box(height, width, share, draw)
        clips = clips.clone()
        clips[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        clips = torch.lerp(partners, clips, share)
    targets = F.one_hot(labels, classes).float()
    return clips, torch.lerp(targets.flip(0), targets, share)


def cut_box(height: int, width: int, share: float, draw: random.Random) -> tuple[int, int, int, int]:
    """top, bottom, left, right of a box of about 1 - share of the picture, cut off where it leaves the picture."""
    side = math.sqrt(1 - share)
    h, w = int(height * side), int(width * side)
    y, x = draw.randrange(height), draw.randrange(width)
    return max(y - h // 2, 0), min(y + h // 2, height), max(x - w // 2, 0), min(x + w // 2, width)
