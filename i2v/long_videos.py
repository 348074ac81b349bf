"""Long videos as rows of features, with what happens in them: what a boundary-matching network is trained and scored on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from i2v.average_precision import Truth
from i2v.bmn import ground_truth
from i2v.feature_folder import FeatureFolder
from i2v.segments import Annotated, SegmentList
from i2v.windows import Cut

ROUNDING = 1e-6  # of a row
SAME_DISTANCE = 0.01  # part by which the distances of rows may differ from video to video


@dataclass(frozen=True)
class LongVideo:
    """Rows of features at equal distances, row r for what is from r * row_seconds on; before the first row that was computed,
    and after the last, these two stand. Features are cut where they lie: no video is ever read as a whole."""

    name: str
    arrays: tuple[np.ndarray, ...]  # (rows, channels) each, side by side
    scores: dict[str, np.ndarray]  # kind -> (rows, views * classes)
    lead: int  # which row the first of the arrays is
    rows: int
    row_seconds: float
    seconds: float
    actions: Annotated

    @property
    def channels(self) -> int:
        return sum(array.shape[1] for array in self.arrays)

    def _cut(self, array: np.ndarray, first: int, count: int) -> np.ndarray:
        rows = np.arange(first, min(first + count, self.rows)) - self.lead
        found = np.asarray(array[rows.clip(0, len(array) - 1)], dtype=np.float32)
        if not np.isfinite(found).all():
            raise ValueError(f"{self.name}: its features have values that are not finite: make them again.")
        return found

    def window(self, cut: Cut, first: int) -> torch.Tensor:
        """(channels, T)"""
        return cut.window(np.concatenate([self._cut(array, first, cut.rows) for array in self.arrays], axis=1))

    def scores_in(self, cut: Cut, first: int, kind: str, classes: int) -> torch.Tensor:
        """(T, views, classes) logits."""
        window = cut.window(self._cut(self.scores[kind], first, cut.rows))
        return window.T.reshape(cut.steps, -1, classes)


def open_video(
    name: str, folders: Sequence[FeatureFolder], scores: FeatureFolder, actions: Annotated, row_seconds
) -> LongVideo:
    """row_seconds: of features without times; kinds of scores are those that the folder has. Raises ValueError."""
    arrays = tuple(folder.features(name) for folder in folders)
    if len({len(array) for array in arrays}) > 1:
        counts = ", ".join(f"{len(array)} in {folder.path}" for array, folder in zip(arrays, folders))
        raise ValueError(f"{name} has another number of rows in one folder than in another ({counts}): make them alike.")
    times = folders[0].times(name)
    if times is None and row_seconds is None:
        raise ValueError(f"{folders[0].path} has no {name}.times.npy: set data.row_seconds, which a row stands for.")
    return long_video(name, arrays, scores.kinds(name), times, actions, row_seconds)


def long_video(name: str, arrays: tuple, scores: dict, times, actions: Annotated, row_seconds) -> LongVideo:
    """times: (rows, 2) start and end of each row, row_seconds apart if there is but one; None: so from the beginning on."""
    count = len(arrays[0])
    apart, lead, end = (row_seconds, 0, count * row_seconds) if times is None else timing(name, times, count, row_seconds)
    seconds = actions.seconds or end
    rows = count if times is None else max(lead + count, int(seconds / apart + ROUNDING))
    return LongVideo(name, arrays, scores, lead, rows, apart, seconds, actions)


def timing(name: str, times: np.ndarray, count: int, row_seconds: float | None = None) -> tuple[float, int, float]:
    """(seconds from row to row, which row of the video the first one is, when the last one ends). row_seconds: between rows,
    which a row alone does not tell; None: what it lasts."""
    if times.shape != (count, 2) or not np.isfinite(times).all():
        raise ValueError(f"{name} has {count} rows of features, but times {times.shape}: make them again.")
    middle = times.mean(1)
    # by where rows begin: the end of the last one, and so its middle, is where the video ends
    alone = row_seconds or float(times[0, 1] - times[0, 0])
    apart = float(np.median(np.diff(times[:, 0]))) if count > 1 else alone
    expected = middle[0] + apart * np.arange(count)
    if apart <= 0 or (abs(middle - expected)[:-1] > 0.5 * apart).any():  # the last row may be cut short by the end
        raise ValueError(f"{name}: its rows are not at equal distances in time: make features with --window and --hop.")
    return apart, int(middle[0] / apart + ROUNDING), float(times[-1, 1])


class LongVideos:
    """The videos of a segment list, with their features.

    Raises ValueError, one sentence, for a video without features, with those of another one, or with features of another width
    or distance of rows than the first.
    """

    def __init__(self, segments: SegmentList, folders: Sequence[FeatureFolder], scores: FeatureFolder, row_seconds=None):
        opened = (open_video(name, folders, scores, its, row_seconds) for name, its in segments.videos.items())
        self.path, self.kinds, self.videos = segments.path, segments.kinds, list(opened)
        for folder in (*folders, scores):
            refuse_shared(self.path, segments.videos, folder)
        self.several = scores.several
        first = self.videos[0]
        self.channels, self.row_seconds = first.channels, first.row_seconds
        for video in self.videos:
            if video.channels != self.channels:
                raise ValueError(
                    f"Features of {video.name} have {video.channels} channels, those of {first.name} {self.channels}: all must "
                    "come from one model."
                )
            if abs(video.row_seconds / self.row_seconds - 1) > SAME_DISTANCE:
                raise ValueError(
                    f"Rows of {video.name} are {video.row_seconds:.4g} s apart, those of {first.name} "
                    f"{self.row_seconds:.4g} s: make features with --window and --hop in seconds, or with fps=..., so that "
                    "frames count alike."
                )
        self.videos = [replace(video, row_seconds=self.row_seconds) for video in self.videos]


def refuse_shared(path: str, videos: Iterable[str], folder: FeatureFolder) -> None:
    """A video is also found by its name without folders and ending, which two of a list may have in common."""
    seen: dict[str, str] = {}
    for video in videos:
        key = folder.key_of(video)
        if (other := seen.setdefault(key, video)) != video:
            raise ValueError(
                f"{path} has {other} and {video}, for both of which {folder.path} has only the features {key}: make those of "
                "each, or take one out of the list."
            )


class Labels:
    """classes: kind -> names, in the order of class scores."""

    def __init__(self, classes: dict[str, list[str]]):
        self.classes = classes
        self._numbers = {kind: {name: number for number, name in enumerate(names)} for kind, names in classes.items()}

    def numbers(self, video: LongVideo, path: str) -> np.ndarray:
        """(n, kinds) of the video's actions. Raises ValueError for a label that is no class."""
        found = [
            self._number(kind, label, video, path)
            for labels in video.actions.labels
            for kind, label in zip(self.classes, labels)
        ]
        return np.array(found, dtype=np.int64).reshape(-1, len(self.classes))

    def _number(self, kind: str, label: str, video: LongVideo, path: str) -> int:
        names = self._numbers[kind]
        if label in names:
            return names[label]
        if label.isdecimal() and int(label) < len(names):
            return int(label)
        raise ValueError(
            f"{path}: {video.name} has the {kind} {label!r}, which is none of the {len(names)} classes: correct the list."
        )

    def truth(self, videos: LongVideos) -> dict[str, Truth]:
        return {video.name: Truth(video.actions.segments, self.numbers(video, videos.path)) for video in videos.videos}


def find_classes(videos: LongVideos, scores: FeatureFolder, views: int) -> dict[str, list[str]]:
    """The classes of each kind of a list's labels: as class scores have them, else those that occur."""
    classes = {}
    for place, kind in enumerate(videos.kinds):
        labels = {labels[place] for video in videos.videos for labels in video.actions.labels}
        said, first = scores.classes(kind), videos.videos[0].scores.get(kind)
        if said:
            classes[kind] = said
        elif first is not None:
            if first.shape[1] % views:
                raise ValueError(
                    f"{scores.path}: scores of {kind} have {first.shape[1]} columns, which {views} views do not divide: set "
                    "data.score_views."
                )
            classes[kind] = [str(number) for number in range(first.shape[1] // views)]
        else:
            classes[kind] = sorted(
                labels, key=lambda label: (not label.isdecimal(), int(label) if label.isdecimal() else 0, label)
            )
    return classes


class TrainingWindows:
    """Every window of some videos that has a whole action in it; only such actions count.

    Raises ValueError if there is none.
    """

    def __init__(self, videos: LongVideos, cut: Cut, labels: Labels):
        self.cut, self.windows = cut, []
        for video in videos.videos:
            numbers = labels.numbers(video, videos.path)
            for first in cut.firsts(video.seconds):
                segments, which = cut.inside(video.actions.segments, first)
                if len(which) and first < video.rows:
                    self.windows.append((video, first, segments, numbers[which]))
        if not self.windows:
            raise ValueError(
                f"{videos.path} has no segment that is wholly in a window of {cut.seconds:.4g} s: check its times, or set "
                "model.steps or data.rows_per_step higher."
            )

    def __len__(self) -> int:
        return len(self.windows)

    def fingerprint(self) -> str:
        """16 hex digits that identify the windows and what is in them."""
        said = [[video.name, first, segments.tolist(), numbers.tolist()] for video, first, segments, numbers in self.windows]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]

    def batch(self, places: Sequence[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(B, channels, T) and the maps of ground_truth, (B, ...) each."""
        cut, features, maps = self.cut, [], []
        for place in places:
            video, first, segments, numbers = self.windows[place]
            features.append(video.window(cut, first))
            maps.append(ground_truth(segments, cut.seconds, cut.steps, cut.durations, numbers))
        return torch.stack(features), {name: torch.stack([each[name] for each in maps]) for name in maps[0]}
