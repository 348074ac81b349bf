"""Evaluation: every video counted exactly once, on any number of ranks, all its views averaged."""

from __future__ import annotations

import math

import torch

from i2v.distributed import sum_over_ranks
from i2v.rules import is_whole
from i2v.tally import Labels, Scores, SeveralScores, tally_for

# By which the best of several models can be chosen, where videos have one class, or several; the first if nothing is said.
OF_ONE, OF_SEVERAL = ("top1", "top5", "class_mean", "cross_entropy"), ("map", "cross_entropy")
METRICS = tuple(dict.fromkeys(OF_ONE + OF_SEVERAL))
VIEWS_AT_ONCE = 64
MEMORY = 4.0  # GB for clips, where nobody says how much
BYTES_PER_PIXEL = 30  # of a frame of a view, while it is decoded, cut, queued and shown to the model (benchmarks/loader.py)


def probabilities_of(logits: torch.Tensor, several: bool = False) -> torch.Tensor:
    """(..., K) -> the same: the softmax; several: classes a video has, each for itself: the sigmoid instead."""
    return logits.sigmoid() if several else logits.softmax(-1)


def logits_of(probabilities: torch.Tensor, several: bool = False) -> torch.Tensor:
    """(..., K) -> the same: what probabilities_of makes them of; finite, also where a probability is zero in its dtype."""
    return probabilities.logit(eps=1e-7) if several else probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def view_probabilities(model, batch, at_once: int = VIEWS_AT_ONCE, several: bool = False) -> torch.Tensor:
    """Probabilities averaged over the views of a pipelines.Batch: (B, K) float32. at_once: clips in one forward pass."""
    parts = []
    for clips in batch.views(at_once):  # (B, v, 3, T, H, W)
        logits = model(clips.flatten(0, 1)).float()  # (B * v, K)
        parts.append(probabilities_of(logits, several).view(*clips.shape[:2], -1))
    return torch.cat(parts, dim=1).mean(1)


def videos_at_once(options: dict, memory: float = MEMORY) -> int:
    """How many videos fit into `memory` GB with all their views, at least 1 and at most 8; options: of the clips.

    1 for options that cannot be: what is wrong with them, the loader says.
    """
    size = options.get("test_size") or options["size"]
    counts = [options["num_frames"], options.get("clips", 1), options.get("crops", 1), size]
    if not all(is_whole(count) and count >= 1 for count in counts):
        return 1
    return int(max(1, min(8, memory * 1e9 / (math.prod(counts[:3]) * size**2 * BYTES_PER_PIXEL))))


@torch.no_grad()
def evaluate(
    model, batches, labels: Labels | int, expected: int, device: torch.device, autocast, at_once: int = VIEWS_AT_ONCE, keep=None
) -> Scores | SeveralScores | None:
    """Score `model` on labelled batches (pipelines.Batch); weight 0 counts for nothing.

    labels: what videos are labelled with, or how many classes. expected: videos that must be counted over all ranks.
    autocast: a context factory for the precision. at_once: clips in one forward pass; a video may have more views than that.
    keep: called with every batch and its (B, K) probabilities. None comes back where videos have no labels.
    The sums are integers, so the result does not depend on batch size or number of ranks.
    Raises ValueError for labels outside the model's classes, FloatingPointError for outputs that are not numbers.
    """
    labels = Labels(labels) if isinstance(labels, int) else labels
    was_training, tally = model.training, tally_for(labels, device)
    model.eval()
    broken = torch.zeros((), dtype=torch.int64, device=device)
    for batch in batches:
        with autocast():
            probabilities = view_probabilities(model, batch, at_once, labels.several)
        if keep is not None:
            keep(batch, probabilities)
        counts = batch.weights > 0
        broken += (~probabilities.isfinite().all(-1) & counts).sum()
        tally.add(probabilities, batch.labels, counts)
    model.train(was_training)
    for total in (broken, *tally.totals()):
        sum_over_ranks(total)
    tally.finish()
    if broken.item():
        raise FloatingPointError(f"The model's output is not a number for {broken.item()} of the {expected} videos evaluated")
    return tally.scores(expected)
