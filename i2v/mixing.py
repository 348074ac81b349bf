"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) on the device, one draw for the whole batch.

Neighbours in the stream are mixed with each other: clip 2i with clip 2i + 1, where copies of a video that follow each other
(data.order.repeats) count as one. So who is mixed with whom does not depend on the number of devices, nor on the
accumulation, as each forward pass has whole pairs. The draw is a function of where the run is.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Mix:
    """What is drawn for a batch: the share of a clip that stays, and for CutMix the box that is pasted, in fractions."""

    share: float
    box: tuple[float, float] | None = None  # the middle, from the top and from the left


def draw_mix(train, draw: random.Random) -> Mix | None:
    """The draw of a batch; None: nothing is mixed. train: TrainConfig.

    mix_probability: of mixing at all. mixup, cutmix: parameters of the Beta distribution of the share, 0 turns one off. If
    both are on, mix_switch is the probability of CutMix.
    """
    if not (train.mixup or train.cutmix) or draw.random() >= train.mix_probability:
        return None
    use_cutmix = train.cutmix > 0 and (train.mixup == 0 or draw.random() < train.mix_switch)
    alpha = train.cutmix if use_cutmix else train.mixup
    return Mix(draw.betavariate(alpha, alpha), (draw.random(), draw.random()) if use_cutmix else None)


def mixed_together(train, repeats: int = 1) -> int:
    """Of how many clips a forward pass must be a multiple, for each to find another video to be mixed with. train:
    TrainConfig; repeats: how often a video follows itself in the stream."""
    return 2 * repeats if train.mixup or train.cutmix else 1


def check_pass(clips: int, group: int) -> None:
    """Raises ValueError unless a forward pass of so many clips is a multiple of those that are mixed_together."""
    if clips % group:
        raise ValueError(
            f"train.mixup and train.cutmix mix clips of one forward pass, {group} with each other, but each pass has {clips} "
            f"per device: make train.batch_size a multiple of {group} on each device and set train.micro_batch={group} or a "
            "multiple of it, or set both to 0."
        )


def partners(clips: int, repeats: int = 1) -> torch.Tensor:
    """(B,) int64: with which clip each is mixed; B is a multiple of 2 * repeats."""
    index, group = torch.arange(clips), 2 * repeats
    return 2 * (index // group * group) + group - 1 - index


def mix(clips: torch.Tensor, labels: torch.Tensor, classes: int, drawn: Mix, with_whom: torch.Tensor):
    """(B, 3, T, H, W) clips and (B,) labels -> mixed clips and (B, classes) targets that sum to 1.

    labels of several classes, (B, classes) of 0 and 1, are mixed as they are. CutMix pastes the same box into every frame, and
    the target is exactly its share. with_whom: (B,), see partners.
    """
    others, share = clips[with_whom], drawn.share
    if drawn.box is not None:
        height, width = clips.shape[-2:]
        top, bottom, left, right = cut_box(height, width, share, *drawn.box)
        clips = clips.clone()
        clips[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        clips = torch.lerp(others, clips, share)
    targets = F.one_hot(labels, classes).float() if labels.ndim == 1 else labels
    return clips, torch.lerp(targets[with_whom], targets, share)


def cut_box(height: int, width: int, share: float, y: float, x: float) -> tuple[int, int, int, int]:
    """top, bottom, left, right of a box of about 1 - share of the picture around (y, x), both in [0, 1), cut off where it
    leaves the picture."""
    side = math.sqrt(1 - share)
    h, w = int(height * side), int(width * side)
    y, x = int(y * height), int(x * width)
    return max(y - h // 2, 0), min(y + h // 2, height), max(x - w // 2, 0), min(x + w // 2, width)
