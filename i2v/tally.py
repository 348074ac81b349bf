"""What an evaluation counts: right and wrong by class, also of every factor; of several classes a video, every probability."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

NATS = 1 << 20  # a cross entropy is counted in whole parts of so many, so that its sum is exact in any order


@dataclass(frozen=True)
class Labels:
    """What videos are labelled with: one class, one combination of a class of each factor, or several classes."""

    classes: int
    factors: dict[str, int] = field(default_factory=dict)  # how many classes each has
    several: bool = False
    known: bool = True  # whether the videos have labels at all


@dataclass
class Scores:
    """What an evaluation found. Rows of a confusion are labels, columns predictions."""

    counted: int
    expected: int
    top1: float  # of 1
    top5: float
    confusion: torch.Tensor | None  # (K, K) int64; None: of combinations, whose factors have theirs
    cross_entropy: float = float("nan")  # of the views' mean probability, in nats
    factors: dict[str, Scores] = field(default_factory=dict)
    by_class: torch.Tensor | None = (
        None  # (2, K) int64: videos of each class, and those that are right, if there is no confusion
    )

    def per_class(self) -> torch.Tensor:
        """(K,) accuracy of each class; nan where it has no video."""
        videos, right = self.by_class if self.confusion is None else (self.confusion.sum(1), self.confusion.diag())
        return right / videos

    def class_mean(self) -> float:
        """The mean accuracy of the classes that have videos."""
        return float(self.per_class().double().nanmean())

    def value(self, metric: str) -> float:
        """One of METRICS, the higher the better: the cross entropy with a minus."""
        return -self.cross_entropy if metric == "cross_entropy" else self.summary()[metric]

    def summary(self) -> dict:
        """Figures by name; those of a factor begin with its name, as verb_top1."""
        found = {"top1": self.top1, "top5": self.top5, "class_mean": self.class_mean(), "cross_entropy": self.cross_entropy}
        for name, scores in self.factors.items():
            found |= {f"{name}_top1": scores.top1, f"{name}_top5": scores.top5, f"{name}_class_mean": scores.class_mean()}
        return found | {"counted": self.counted, "expected": self.expected}

    def words(self) -> str:
        return in_words(self.summary())


@dataclass
class SeveralScores:
    """What an evaluation found where videos have several classes."""

    counted: int
    expected: int
    average_precision: torch.Tensor  # (K,) float64; nan where no video has the class
    videos: torch.Tensor  # (K,) int64: how many have each class
    cross_entropy: float  # binary, the mean over classes and videos
    confusion: None = None  # a video is not taken for another class

    def per_class(self) -> torch.Tensor:
        return self.average_precision

    def value(self, metric: str) -> float:
        return -self.cross_entropy if metric == "cross_entropy" else self.summary()[metric]

    def summary(self) -> dict:
        found = {"map": float(self.average_precision.nanmean()), "cross_entropy": self.cross_entropy}
        return found | {"counted": self.counted, "expected": self.expected}

    def words(self) -> str:
        return in_words(self.summary())


def in_words(summary: dict) -> str:
    """The totals of a summary for people: top-1 and top-5, also of every factor, or the mean average precision."""
    said = {"top1": "top-1", "top5": "top-5", "map": "mAP"}
    shown = []
    for name, value in summary.items():
        factor, _, figure = name.rpartition("_")
        if figure in said:
            shown.append(f"{factor} {said[figure]} {100 * value:.2f} %".strip())
    return "  ".join(shown)


def tally_for(labels: Labels, device: torch.device) -> Tally | SeveralTally | NoTally:
    if not labels.known:
        return NoTally()
    return SeveralTally(labels) if labels.several else Tally(labels, device)


class NoTally:
    """Counts nothing: the videos have no labels."""

    def add(self, probabilities: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> None:
        pass

    def totals(self) -> list[torch.Tensor]:
        return []

    def finish(self) -> None:
        pass

    def scores(self, expected: int) -> None:
        return None


class Tally:
    """Counts of videos with one class each. All sums are whole numbers, so no order and no number of ranks changes them."""

    def __init__(self, labels: Labels, device: torch.device):
        def zeros(*shape):
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        self.classes, self.sizes = labels.classes, tuple(labels.factors.values())
        self.factors = {name: Tally(Labels(size), device) for name, size in labels.factors.items()}
        # Of 29,100 combinations the confusions would be 850 million, nearly all of them 0.
        self.confusion = None if self.factors else zeros(self.classes**2)
        self.by_class = zeros(2, self.classes) if self.factors else None
        self.counted, self.hits1, self.hits5, self.nats, self.unknown = (zeros(()) for _ in range(5))

    def add(self, probabilities: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> None:
        """(B, K) probabilities, (B,) labels, and which of the videos count: (B,) bool."""
        self.unknown += (((labels < 0) | (labels >= self.classes)) & counts).sum()
        labels = labels.clamp(0, self.classes - 1)
        top = probabilities.topk(min(5, self.classes), dim=-1).indices  # (B, 5)
        right = (top[:, 0] == labels) & counts
        self.counted += counts.sum()
        self.hits1 += right.sum()
        self.hits5 += ((top == labels[:, None]).any(-1) & counts).sum()
        loss = -probabilities.gather(1, labels[:, None])[:, 0].double().clamp(min=1e-38).log()
        self.nats += (torch.where(counts & loss.isfinite(), loss, 0) * NATS).round().long().sum()
        if self.confusion is not None:
            self.confusion.scatter_add_(0, labels * self.classes + top[:, 0], counts.long())
            return
        self.by_class[0].scatter_add_(0, labels, counts.long())
        self.by_class[1].scatter_add_(0, labels, right.long())
        parts = zip(self.factors.values(), labels_of_factors(labels, self.sizes), marginals(probabilities, self.sizes))
        for tally, each, own in parts:
            tally.add(own, each, counts)

    def totals(self) -> list[torch.Tensor]:
        """What is to be summed over all ranks, in place."""
        mine = [self.counted, self.hits1, self.hits5, self.nats, self.unknown, self.confusion, self.by_class]
        of_factors = [total for tally in self.factors.values() for total in tally.totals()]
        return [total for total in mine if total is not None] + of_factors

    def finish(self) -> None:
        """Raises ValueError for labels outside the classes."""
        if unknown := self.unknown.item():
            raise ValueError(
                f"{unknown} videos have a label outside the model's {self.classes} classes: give shards of the same class list."
            )

    def scores(self, expected: int) -> Scores:
        counted = self.counted.item()
        return Scores(
            counted=counted,
            expected=expected,
            top1=self.hits1.item() / max(counted, 1),
            top5=self.hits5.item() / max(counted, 1),
            confusion=None if self.confusion is None else self.confusion.view(self.classes, self.classes).cpu(),
            cross_entropy=self.nats.item() / NATS / max(counted, 1),
            factors={name: tally.scores(expected) for name, tally in self.factors.items()},
            by_class=None if self.by_class is None else self.by_class.cpu(),
        )


class SeveralTally:
    """Keeps every probability, on the CPU: an average precision is one of all videos together."""

    def __init__(self, labels: Labels):
        self.labels = [torch.zeros(0, labels.classes, dtype=torch.bool)]
        self.probabilities = [torch.zeros(0, labels.classes)]

    def add(self, probabilities: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> None:
        """(B, K) probabilities, (B, K) labels of 0 and 1, and which of the videos count: (B,) bool."""
        self.labels.append(labels[counts].bool().cpu())
        self.probabilities.append(probabilities[counts].float().cpu())

    def totals(self) -> list[torch.Tensor]:
        return []

    def finish(self) -> None:
        """Everything to all ranks."""
        if dist.is_initialized():
            mine, everyone = (torch.cat(self.labels), torch.cat(self.probabilities)), [None] * dist.get_world_size()
            dist.all_gather_object(everyone, mine)
            self.labels, self.probabilities = (list(each) for each in zip(*everyone))

    def scores(self, expected: int) -> SeveralScores:
        labels, probabilities = torch.cat(self.labels), torch.cat(self.probabilities)
        chosen = torch.where(labels, probabilities, 1 - probabilities).double().clamp(min=1e-38)
        nats = int((-chosen.log() * NATS).round().long().sum()) / NATS / max(chosen.numel(), 1)
        return SeveralScores(len(labels), expected, average_precision(labels, probabilities), labels.sum(0), nats)


def labels_of_factors(labels: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """(B,) labels of combinations -> (B,) of each factor; -1 of all for -1."""
    known, parts = labels >= 0, []
    for size in reversed(sizes):
        parts.append(torch.where(known, labels % size, -1))
        labels = labels // size
    return parts[::-1]


def marginals(probabilities: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """(B, K) of combinations -> (B, size) of each factor."""
    joint = probabilities.unflatten(-1, sizes)  # (B, V, N)
    axes = range(1, joint.ndim)
    return [joint.sum([axis for axis in axes if axis != own]) for own in axes]


def average_precision(labels: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(K,) float64: of each class the precision at every video that has it, averaged over these; nan where none has.

    labels: (n, K) bool; scores: (n, K), the higher the surer. Videos with equal scores come together, in no order: each of them
    has the precision at the last (as in scikit-learn's average_precision_score, which Charades' figures are made with).
    """
    found = []
    for has, score in zip(labels.T, scores.T):
        score, order = score.sort(descending=True, stable=True)
        hits = has[order].double().cumsum(0)
        last = torch.cat([score[1:] != score[:-1], torch.ones(min(1, len(score)), dtype=torch.bool)]).nonzero()[:, 0]
        hits = hits[last]  # up to the last of every score
        new = hits.diff(prepend=hits.new_zeros(1))
        found.append((new * hits / (last + 1)).sum() / hits[-1] if len(hits) and hits[-1] else torch.tensor(math.nan))
    return torch.stack([each.double() for each in found])
