"""What a model makes of a batch of clips for what comes after it: features, and what its classifier says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from i2v.metrics import VIEWS_AT_ONCE, logits_of, probabilities_of


def class_kinds(session) -> dict[str, list[str]]:
    """The kinds of labels that a head tells apart, in order, with their classes; those of factors are called by their
    numbers, as in EPIC-KITCHENS' lists and its challenge."""
    factors = session.meta.factors
    if factors:
        return {kind: [str(number) for number in range(len(names))] for kind, names in factors.items()}
    return {"class": session.meta.classes}


@dataclass(frozen=True)
class Rows:
    """What is written of a sample. beside: crops side by side, not their mean. kinds: of class scores, with their classes."""

    model: torch.nn.Module
    plan: Any  # of the loader: its views
    beside: bool = False
    kinds: dict[str, list[str]] | None = None
    several: bool = False  # classes a video has, each for itself

    def of(self, batch) -> dict[str, np.ndarray]:
        """ "" -> features (B, clips, D) float32; "scores.KIND" -> logits (B, clips, K)."""
        crops = {"": [], **{f"scores.{kind}": [] for kind in self.kinds or {}}}
        for clips in batch.views(VIEWS_AT_ONCE):  # (B, v, 3, T, H, W)
            features = self.model.forward_features(clips.flatten(0, 1))
            crops[""].append(features.float().view(*clips.shape[:2], -1))
            if self.kinds:
                for kind, logits in by_kind(self.model.head(features).float(), self.kinds).items():
                    crops[f"scores.{kind}"].append(logits.view(*clips.shape[:2], -1))
        return {name: self._joined(torch.cat(parts, dim=1), bool(name)) for name, parts in crops.items()}

    def _joined(self, found: torch.Tensor, scores: bool) -> np.ndarray:
        """(B, crops * clips, D) -> (B, clips, D), or side by side (B, clips, crops * D)."""
        found = found.view(len(found), self.plan.crops, self.plan.clips, -1)
        if self.beside:
            found = found.transpose(1, 2).flatten(2)
        elif scores and self.plan.crops > 1:
            # their probabilities are averaged, as in an evaluation
            found = logits_of(probabilities_of(found, self.several).mean(1), self.several)
        else:
            found = found.mean(1)
        return found.cpu().numpy()


def by_kind(logits: torch.Tensor, kinds: dict[str, list[str]]) -> dict[str, torch.Tensor]:
    """(N, all combinations) -> (N, K) of each kind: the logarithm of what its classes have together."""
    if len(kinds) == 1:
        return {next(iter(kinds)): logits}
    together = logits.view(len(logits), *map(len, kinds.values()))
    axes = range(1, together.ndim)
    return {kind: together.logsumexp([axis for axis in axes if axis != mine]) for mine, kind in enumerate(kinds, 1)}
