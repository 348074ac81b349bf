"""From the maps of windows to detections: windows joined, proposals, their classes, Soft-NMS.

As TAdaConv's EPIC-KITCHENS localisation has it. A video is a grid of G time steps; a segment (d, s) begins at step s and is
d + 1 steps long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from i2v.bmn import overlap, sampling_matrix
from i2v.metrics import probabilities_of

SAMPLES, POINTS = 6, 3  # at which the class scores of a segment are looked at
AT_ONCE = 1000  # segments whose class scores are looked at together


def join_windows(outputs: Sequence[dict], places: Sequence[range], mask: np.ndarray, grid: int) -> dict[str, np.ndarray]:
    """Maps of a video, each cell the mean of the windows that have it: start, end (G,), confidence_map (2, D, G).

    outputs: of each window start, end (T,) and confidence_map (2, D, T), arrays. places: of each the steps of the video
    that its first steps are. mask: (D, T), which cells are inside a window; the others count for nothing.
    """
    counts = {"start": np.zeros(grid), "end": np.zeros(grid), "confidence_map": np.zeros((1, len(mask), grid))}
    sums = {"start": np.zeros(grid), "end": np.zeros(grid), "confidence_map": np.zeros((2, len(mask), grid))}
    for output, place in zip(outputs, places):
        here, first = (..., slice(place.start, place.stop)), (..., slice(len(place)))
        for name, total in sums.items():
            counted = mask.astype(np.float64) if total.ndim > 1 else np.ones(mask.shape[1])
            counts[name][here] += counted[first]
            total[here] += (output[name] * counted)[first]
    return {name: total / np.where(counts[name] == 0, 1, counts[name]) for name, total in sums.items()}


@dataclass(frozen=True)
class Proposals:
    """Segments of a video that may be actions. Every array has P rows."""

    cells: np.ndarray  # (P, 2): d and s
    segments: np.ndarray  # (P, 2): begin and end in parts of the video
    start: np.ndarray  # the scores of the step at which it begins, of the one at which it ends, and of the segment
    end: np.ndarray
    by_class: np.ndarray
    by_overlap: np.ndarray

    def __len__(self) -> int:
        return len(self.cells)

    def scores(self, class_power: float = 1.2, overlap_power: float = 1.0) -> np.ndarray:
        """(P,) by which proposals are ranked."""
        return self.by_class**class_power * self.by_overlap**overlap_power


def propose(maps: dict[str, np.ndarray]) -> Proposals:
    """Every segment from a step where something may begin to one where something may end, in the order of (d, s).

    maps: of join_windows.
    """
    start, end, confidence = maps["start"], maps["end"], maps["confidence_map"]
    durations, grid = confidence.shape[1:]
    begins, ends = likely(start), likely(end)
    begins[0], ends[-1] = True, True
    d, s = np.mgrid[:durations, :grid].reshape(2, -1)
    inside = s + d + 1 < grid
    d, s = d[inside], s[inside]
    chosen = begins[s] & ends[s + d + 1]
    d, s = d[chosen], s[chosen]
    e = s + d + 1
    return Proposals(
        np.stack([d, s], 1), np.stack([s, e], 1) / grid, start[s], end[e], confidence[1, d, s], confidence[0, d, s]
    )


def likely(scores: np.ndarray) -> np.ndarray:
    """(G,) bool: peaks, and whatever is more than half of the highest; the first and the last step never."""
    found = np.zeros(len(scores), dtype=bool)
    inner = scores[1:-1]
    found[1:-1] = ((inner > scores[:-2]) & (inner > scores[2:])) | (inner > 0.5 * scores.max())
    return found


class ClassScores:
    """Class probabilities of segments, from scores of time steps.

    steps, durations: T and D of a window. A segment's scores are looked at in 6 places between its ends; its probabilities
    are the mean of their softmax, over places and views; several: of their sigmoid, as they are of a model that was trained
    for several classes a video.
    """

    def __init__(self, steps: int, durations: int, several: bool = False):
        matrix = sampling_matrix(steps, durations, SAMPLES, POINTS, 0.0)
        cell, column = matrix.indices()
        index = torch.stack([cell * SAMPLES + column // steps, column % steps])
        size = (durations * steps * SAMPLES, steps)
        self.steps, self.several = steps, several
        self.matrix = torch.sparse_coo_tensor(index, matrix.values(), size, check_invariants=True).coalesce()

    def of(self, scores: torch.Tensor, cells: np.ndarray) -> np.ndarray:
        """(n, K) probabilities of cells (n, 2: duration, step) inside a window; scores: (T, views, K) logits."""
        rows = torch.from_numpy(cells[:, 0] * self.steps + cells[:, 1])
        rows = (rows[:, None] * SAMPLES + torch.arange(SAMPLES)).flatten()
        found, matrix = [], self.matrix.to(scores.dtype)
        for some in rows.split(AT_ONCE * SAMPLES):
            looked = torch.sparse.mm(matrix.index_select(0, some), scores.flatten(1))
            looked = looked.view(-1, SAMPLES, *scores.shape[1:])
            found.append(probabilities_of(looked, self.several).mean((1, 2)))
        return torch.cat(found).numpy() if found else np.zeros((0, scores.shape[-1]))


def join_classes(
    probabilities: Callable[[int, np.ndarray], Sequence[np.ndarray]],
    places: Sequence[range],
    cells: np.ndarray,
    mask: np.ndarray,
    classes: Sequence[int],
) -> list[np.ndarray]:
    """Class probabilities of segments of a video, (P, K) of each kind: means over the windows that have them.

    probabilities(window, cells): those of cells (n, 2) inside the window, (n, K) of each kind. places, mask: as for
    join_windows. cells: (P, 2) of the video. classes: K of each kind.
    """
    sums, counts = [np.zeros((len(cells), count)) for count in classes], np.zeros((len(cells), 1))
    for window, place in enumerate(places):
        d, step = cells[:, 0], cells[:, 1] - place.start
        here = np.flatnonzero((step >= 0) & (step < len(place)))
        here = here[mask[d[here], step[here]] > 0]
        counts[here] += 1
        for total, found in zip(sums, probabilities(window, np.stack([d[here], step[here]], 1))):
            total[here] += found
    return [total / np.maximum(counts, 1) for total in sums]


def best_labels(probabilities: Sequence[np.ndarray], candidates: Sequence[int], top: int) -> tuple[np.ndarray, np.ndarray]:
    """(P, n, kinds) the likeliest labels of each segment, and (P, n) their probability, the product over kinds; n <= top.

    probabilities: (P, K) of each kind. candidates: how many of each kind are combined.
    """
    count = len(probabilities[0])
    labels, product = np.zeros((count, 1, 0), dtype=np.int64), np.ones((count, 1))
    for each, most in zip(probabilities, candidates):
        likely = np.argsort(-each, axis=1, kind="stable")[:, :most]  # (P, c)
        n, c = labels.shape[1], likely.shape[1]
        product = (product[:, :, None] * np.take_along_axis(each, likely, 1)[:, None]).reshape(count, n * c)
        labels = np.concatenate([labels.repeat(c, 1), np.tile(likely, n)[..., None]], -1)  # (P, n * c, kinds so far)
    best = np.argsort(-product, axis=1, kind="stable")[:, :top]
    return np.take_along_axis(labels, best[..., None], 1), np.take_along_axis(product, best, 1)


def soft_nms(
    segments: np.ndarray, scores: np.ndarray, most: int, alpha: float = 0.4, low: float = 0.25, high: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Which segments are taken, at most `most` of them, the best first, and the scores at which they are.

    Segments are in parts of the video. Those that overlap a taken one by more than low + (high - low) * its length lose
    score, by exp(-IoU^2 / alpha). As with the authors the last one left is not taken, unless it is the only one.
    """
    order = np.argsort(segments[:, 0], kind="stable")
    begin, end, left = segments[order, 0], segments[order, 1], scores[order].astype(np.float64)
    longest, taken, values = (end - begin).max(initial=0), [], []
    while len(taken) < min(most, max(len(order) - 1, min(len(order), 1))):
        best = int(left.argmax())
        taken.append(best)
        values.append(left[best])
        left[best] = -np.inf
        # what may overlap it begins less than the longest segment before it, and before its end
        near = slice(*np.searchsorted(begin, (begin[best] - longest, end[best])))
        iou = overlap(begin[near], end[near], begin[best], end[best])
        costs = iou > low + (high - low) * (end[best] - begin[best])
        left[near] *= np.where(costs, np.exp(-(iou**2) / alpha), 1.0)
    return order[taken], np.array(values)


@dataclass(frozen=True)
class Detections:
    """Actions found in a video. Every array has N rows."""

    segments: np.ndarray  # (N, 2) seconds
    scores: np.ndarray  # (N,)
    labels: np.ndarray  # (N, kinds)


def detect(
    proposals: Proposals, taken: np.ndarray, scores: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, seconds: float
) -> Detections:
    """Every taken proposal with each of its likely labels: labels (taken, n, kinds), probabilities (taken, n)."""
    n = labels.shape[1]
    segments = proposals.segments[taken].clip(0, 1) * seconds
    return Detections(
        segments.repeat(n, 0), (scores[:, None] * probabilities).ravel(), labels.reshape(len(taken) * n, labels.shape[2])
    )
