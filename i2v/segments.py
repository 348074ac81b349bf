"""Segment lists: what happens when in long videos.

    CSV with a header   a row per action: video (or path, video_id), start, end (seconds or h:m:s), and label, or a column
                        KIND_class for each of several kinds of labels. EPIC-KITCHENS-100's own lists are of this form.
    JSON                ActivityNet's: {"database": {VIDEO: {"subset", "duration", "annotations": [{"segment", "label"}]}}}

A list without labels, as those of test sets are, names its videos.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from i2v.console import refuse_pipe
from i2v.shard_tools.lists.tables import named, part, read_header, read_lines
from i2v.shard_tools.paths import SourceError

CLASS = "_class"  # what a column of one of several kinds of labels ends with
SUBSETS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}  # as JSON lists call the two


@dataclass
class Annotated:
    """A video of a list: segments (n, 2) seconds, their labels (n, kinds) as text; seconds: its length, if the list says so."""

    segments: np.ndarray
    labels: list[tuple[str, ...]]
    seconds: float | None = None


@dataclass
class SegmentList:
    """videos: by name, in the order of the list. kinds: of labels."""

    path: str
    kinds: tuple[str, ...]
    videos: dict[str, Annotated] = field(default_factory=dict)

    def count(self) -> int:
        return sum(len(video.segments) for video in self.videos.values())


def read_segments(path: str | Path, subset: str = "train") -> SegmentList:
    """A list; subset: "train" or "val", where it has several. Raises ValueError, one sentence."""
    try:
        refuse_pipe(path)
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise ValueError(f"{path} cannot be read ({reason}): give a segment list, CSV or JSON.") from error
    found = of_json(str(path), text, subset) if text.lstrip().startswith("{") else of_table(str(path), text)
    if not found.videos:
        raise ValueError(f"{path} names no video: give a list that has some.")
    return found


def of_table(path: str, text: str) -> SegmentList:
    lines = read_lines(path, text, "", [])
    header = [cell.lower() for cell in lines[0][1]] if lines else []
    columns = read_header(header)
    video = "path" if "path" in columns else "id"
    if video not in columns:
        raise SourceError(f"{path} has no header with a column called video: its first row must name the columns.")
    kinds = {name.removesuffix(CLASS): place for place, name in enumerate(header) if name.endswith(CLASS)}
    kinds = kinds or ({"class": columns["label"]} if "label" in columns else {})
    columns = {what: columns[what] for what in (video, "start", "end", "duration") if what in columns}
    if kinds and not {"start"} < columns.keys() - {video}:
        raise SourceError(f"{path} has labels but no columns start and end: say when each begins and ends, in seconds.")
    found = SegmentList(path, tuple(kinds))
    for (where, cells), (_, fields) in zip(lines[1:], named(lines[1:], columns)):
        where = f"{where} of {path}"
        if fields[video] is None:
            raise SourceError(f"{where} names no video.")
        its = found.videos.setdefault(fields[video], Annotated(np.zeros((0, 2)), []))
        if kinds:
            start, end = part(where, fields)
            labels = tuple(cells[place] if place < len(cells) else "" for place in kinds.values())
            if end is None or not all(labels):
                raise SourceError(f"{where} lacks its {'end' if end is None else 'label'}: fill it in, or remove the row.")
            its.segments = np.concatenate([its.segments, [[start, end]]])
            its.labels.append(labels)
    return found


def of_json(path: str, text: str, subset: str) -> SegmentList:
    """A label "3,7" is one of each of two kinds, verb and noun, if all are such pairs of numbers, as EPIC-KITCHENS has it."""
    try:
        database = json.loads(text)["database"]
        subsets = {str(video.get("subset", "")).lower() for video in database.values()}
        chosen = SUBSETS[subset] if subsets & set(SUBSETS[subset]) else subsets
        videos = {name: video for name, video in database.items() if str(video.get("subset", "")).lower() in chosen}
        actions = [action for video in videos.values() for action in video.get("annotations", [])]
        pairs = bool(actions) and all(is_pair(str(action["label"])) for action in actions)
        found = SegmentList(path, ("verb", "noun") if pairs else ("class",) if actions else ())
        for name, video in videos.items():
            its = video.get("annotations", [])
            segments = np.array([action["segment"] for action in its], dtype=np.float64).reshape(-1, 2)
            labels = [tuple(str(action["label"]).split(",")) if pairs else (str(action["label"]),) for action in its]
            seconds = float(video["duration"]) if "duration" in video else None
            found.videos[name] = Annotated(segments, labels, seconds)
            if not (np.isfinite(segments).all() and (segments[:, 0] >= 0).all() and (segments[:, 0] < segments[:, 1]).all()):
                raise ValueError(
                    f"{path}: {name} has a segment that does not begin at 0 or later, and before it ends: correct it."
                )
        return found
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is no segment list ({type(error).__name__}: {error}): expected JSON with a database of videos, each with "
            "annotations of segment and label, or a CSV of video,start,end,label."
        ) from error


def is_pair(label: str) -> bool:
    parts = label.split(",")
    return len(parts) == 2 and all(part.isdecimal() for part in parts)
