"""Mean average precision of detections in time, as ActivityNet's evaluation computes it (Caba Heilbron et al. 2015).

A detection is right if its segment overlaps one of its class that no better detection has, by at least the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from i2v.bmn import overlap
from i2v.proposals import Detections

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Truth:
    """The actions of a video."""

    segments: np.ndarray  # (N, 2) seconds
    labels: np.ndarray  # (N, kinds)


@dataclass(frozen=True)
class Precision:
    """classes: AP at each threshold. mean: over classes, at each threshold."""

    classes: dict[object, np.ndarray]
    thresholds: tuple[float, ...]

    @property
    def mean(self) -> np.ndarray:
        return np.mean(list(self.classes.values()), axis=0)


def mean_average_precision(
    truth: Mapping[str, Truth], found: Mapping[str, Detections], kinds: Sequence[str], thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, Precision]:
    """Of each kind, and if there are several, of what they make together, "action" (a class is then a tuple).

    truth, found: by video; a video of one may lack in the other. Classes are those of the truth. As in EPIC-KITCHENS'
    evaluation, detections whose labels do not occur together in the truth count for nothing, for a single kind as well.
    Raises ValueError if there is no truth.
    """
    occurring = {tuple(labels) for video in truth.values() for labels in video.labels.tolist()}
    if not occurring:
        raise ValueError("There are no segments to score against: give a list that has some.")
    found = {video: keep(its, [tuple(labels) in occurring for labels in its.labels.tolist()]) for video, its in found.items()}
    columns = {kind: [column] for column, kind in enumerate(kinds)}
    if len(kinds) > 1:
        columns = {"action": list(range(len(kinds)))} | columns
    return {kind: of_kind(truth, found, which, tuple(thresholds)) for kind, which in columns.items()}


def keep(its: Detections, which) -> Detections:
    which = np.array(which, dtype=bool)
    return Detections(its.segments[which], its.scores[which], its.labels[which])


def of_kind(truth, found, columns: list[int], thresholds: tuple[float, ...]) -> Precision:
    """The precision of classes that are told apart by some columns of the labels."""
    wanted, given = by_class(truth, columns), by_class(found, columns)
    nothing = (np.zeros((0, 2)), np.zeros(0, dtype=np.int64), np.zeros(0))
    places = {video: place for place, video in enumerate(dict.fromkeys([*truth, *found]))}
    classes = {}
    for label, actions in wanted.items():
        segments, videos, _ = joined(actions, places)
        guesses, theirs, scores = joined(given[label], places) if label in given else nothing
        name = label[0] if len(label) == 1 else label
        classes[name] = average_precision(segments, videos, guesses, theirs, scores, thresholds)
    return Precision(classes, thresholds)


def by_class(videos, columns: list[int]) -> dict[tuple, list]:
    """label -> [(video, segments, scores), ...], in order of appearance."""
    found: dict[tuple, list] = {}
    for video, its in videos.items():
        labels = its.labels[:, columns]
        scores = getattr(its, "scores", np.zeros(len(labels)))
        for label in dict.fromkeys(map(tuple, labels.tolist())):
            which = (labels == label).all(1)
            found.setdefault(label, []).append((video, its.segments[which], scores[which]))
    return found


def joined(parts: list, places: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """segments (N, 2), the number of each one's video, scores."""
    videos = np.concatenate([np.full(len(segments), places[video]) for video, segments, _ in parts])
    return np.concatenate([part[1] for part in parts]), videos, np.concatenate([part[2] for part in parts])


def average_precision(truth, videos, found, theirs, scores, thresholds) -> np.ndarray:
    """(thresholds,) of one class: truth (N, 2) in videos (N,), found (M, 2) with scores (M,) in theirs (M,)."""
    levels, places = np.array(thresholds), np.empty(len(scores), dtype=np.int64)
    places[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    near = {}  # place -> which actions of its video there are, and how much the detection overlaps each
    for video in np.unique(videos):
        here, guesses = np.flatnonzero(videos == video), np.flatnonzero(theirs == video)
        iou = overlap(*found[guesses].T[..., None], *truth[here].T)  # (detections, actions)
        near |= {int(places[guesses[row]]): (here, iou[row]) for row in np.flatnonzero((iou >= levels.min()).any(1))}
    free = np.ones((len(levels), len(truth)), dtype=bool)
    right = np.zeros((len(levels), len(scores)), dtype=bool)
    for place in sorted(near):
        here, iou = near[place]
        fits = np.where(free[:, here] & (iou >= levels[:, None]), iou, -1.0)  # (thresholds, actions)
        right[:, place] = fits.max(1) >= 0
        hits = np.flatnonzero(right[:, place])
        free[hits, here[fits.argmax(1)[hits]]] = False
    return np.array([interpolated(hits, len(truth)) for hits in right])


def interpolated(right: np.ndarray, wanted: int) -> float:
    """The area under the precision, made to fall only, over the recall. right: (M,) bool of detections, the best first."""
    hits = right.cumsum()
    precision = hits / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[right].sum() / wanted)
