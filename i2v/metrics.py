"""Evaluation: every video counted exactly once, on any number of ranks, all its views averaged."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from i2v.distributed import sum_over_ranks

METRICS = ("top1", "top5", "class_mean", "cross_entropy")  # by which the best of several models can be chosen
VIEWS_AT_ONCE = 64
NATS = 1 << 20  # a cross entropy is counted in whole parts of so many, so that its sum is exact in any order
BYTES_PER_PIXEL = 30  # of a frame of a view, while it is decoded, cut, queued and shown to the model (benchmarks/loader.py)


@dataclass
class Scores:
    """What an evaluation found. confusion: (K, K) int64, rows are labels, columns predictions."""

    counted: int
    expected: int
    top1: float  # of 1
    top5: float
    confusion: torch.Tensor
    cross_entropy: float = float("nan")  # of the views' mean probability, in nats

    def per_class(self) -> torch.Tensor:
        """(K,) accuracy of each class; nan where it has no video."""
        return self.confusion.diag() / self.confusion.sum(1)

    def class_mean(self) -> float:
        """The mean accuracy of the classes that have videos."""
        return float(self.per_class().double().nanmean())

    def value(self, metric: str) -> float:
        """One of METRICS, the higher the better: the cross entropy with a minus."""
        return -self.cross_entropy if metric == "cross_entropy" else self.summary()[metric]

    def summary(self) -> dict:
        found = {"top1": self.top1, "top5": self.top5, "class_mean": self.class_mean(), "cross_entropy": self.cross_entropy}
        return found | {"counted": self.counted, "expected": self.expected}


def view_probabilities(model, batch, at_once: int = VIEWS_AT_ONCE) -> torch.Tensor:
    """Softmax averaged over the views of a pipelines.Batch: (B, K) float32. at_once: clips in one forward pass."""
    parts = []
    for clips in batch.views(at_once):  # (B, v, 3, T, H, W)
        logits = model(clips.flatten(0, 1)).float()  # (B * v, K)
        parts.append(logits.softmax(-1).view(*clips.shape[:2], -1))
    return torch.cat(parts, dim=1).mean(1)


def videos_at_once(options: dict, memory: float) -> int:
    """How many videos fit into `memory` GB with all their views, at least 1 and at most 8; options: of the clips."""
    frames = options["num_frames"] * options.get("clips", 1) * options.get("crops", 1)
    return max(1, min(8, int(memory * 1e9 / (frames * options["size"] ** 2 * BYTES_PER_PIXEL))))


@torch.no_grad()
def evaluate(
    model, batches, classes: int, expected: int, device: torch.device, autocast, at_once: int = VIEWS_AT_ONCE, keep=None
) -> Scores:
    """Score `model` on labelled batches (pipelines.Batch); weight 0 counts for nothing.

    expected: videos that must be counted over all ranks. autocast: a context factory for the precision. at_once: clips in
    one forward pass; a video may have more views than that. keep: called with every batch and its (B, K) probabilities.
    The sums are integers, so the result does not depend on batch size or number of ranks.
    Raises ValueError for labels outside the model's classes, FloatingPointError for outputs that are not numbers.
    """
    was_training = model.training
    model.eval()
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    hits5 = torch.zeros((), dtype=torch.int64, device=device)
    broken, unknown, nats = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))
    for batch in batches:
        labels, counts = batch.labels, batch.weights > 0
        with autocast():
            probabilities = view_probabilities(model, batch, at_once)
        if keep is not None:
            keep(batch, probabilities)
        broken += (~probabilities.isfinite().all(-1) & counts).sum()
        unknown += (((labels < 0) | (labels >= classes)) & counts).sum()
        labels = labels.clamp(0, classes - 1)
        top = probabilities.topk(min(5, classes), dim=-1).indices  # (B, 5)
        confusion.scatter_add_(0, labels * classes + top[:, 0], counts.long())
        hits5 += ((top == labels[:, None]).any(-1) & counts).sum()
        loss = -probabilities.gather(1, labels[:, None])[:, 0].double().clamp(min=1e-38).log()
        nats += (torch.where(counts & loss.isfinite(), loss, 0) * NATS).round().long().sum()
    model.train(was_training)
    for total in (confusion, hits5, broken, unknown, nats):
        sum_over_ranks(total)
    if unknown.item():
        raise ValueError(
            f"{unknown.item()} videos have a label outside the model's {classes} classes: give shards of the same class list."
        )
    if broken.item():
        raise FloatingPointError(f"The model's output is not a number for {broken.item()} of the {expected} videos evaluated")
    confusion = confusion.view(classes, classes).cpu()
    counted = int(confusion.sum())
    return Scores(
        counted=counted,
        expected=expected,
        top1=int(confusion.diag().sum()) / max(counted, 1),
        top5=hits5.item() / max(counted, 1),
        confusion=confusion,
        cross_entropy=nats.item() / NATS / max(counted, 1),
    )
