"""The loss of every clip: cross entropy for one class each, binary cross entropy for several."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def clip_losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    several: bool,
    class_weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """(B,) losses of (B, K) logits.

    targets: (B,) labels or (B, K) shares that sum to 1; several: (B, K) from 0 to 1, each class for itself, and the loss is the
    mean over the classes. class_weights: (K,) of each class's term. smoothing: shares go that far towards all classes alike;
    of several, each target towards a half.
    """
    if not several:
        return F.cross_entropy(logits, targets, class_weights, reduction="none", label_smoothing=smoothing)
    targets = targets * (1 - smoothing) + smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, targets, class_weights, reduction="none").mean(-1)
