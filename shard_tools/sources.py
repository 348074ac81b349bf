"""Which videos, and what they show: any data set's own lists, straight to videos. layouts.py says which are known."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from typing import NamedTuple

from i2v.shard_tools.classes import read_class_list, read_classes, read_map
from i2v.shard_tools.layouts import LAYOUTS, read_layout
from i2v.shard_tools.paths import VIDEO_SUFFIXES, SourceError, is_url, join
from i2v.shard_tools.rows import Row
from i2v.shard_tools.tables import is_integer

__all__ = [
    "LAYOUTS",
    "VIDEO_SUFFIXES",
    "Listing",
    "SourceError",
    "Video",
    "load_sources",
    "read_classes",
    "read_sources",
    "source_hash",
]

MOST_CLASSES = 1_000_000
NO_LABELS = {"nan", "none", "null", "n/a", "na", "<na>", "#n/a"}  # as programs write them, in lower case
SEVERAL_LABELS = re.compile(  # a list, a|b, a;b, numbers, lines
    r"^\[[^\[\]]*\]$|^\{.*\}$|^\(.*,.*\)$|\||[^;\s];[^;\s]|^\d+(\.0*)?([\s;,&+/]+\d+(\.0*)?)+$|\n"
)


class Video(NamedTuple):
    """One source video. No two of a listing have the same source, start and end."""

    path: str  # the file, or its URL
    label: int = -1  # index into the class names; -1: not labelled
    class_name: str | None = None
    source: str = ""  # the path or id as it was listed, found or not; a member of a tar: tar/member
    start: float = 0.0  # seconds: the part of the video that is meant
    end: float | None = None  # None: to its end
    offset: int = 0  # bytes: the part of the file that is the video, where it is a member of a tar
    size: int | None = None  # None: to its end


class Listing(NamedTuple):
    """What a source lists."""

    videos: list[Video]  # in listed order; of folders: sorted
    classes: list[str]
    notes: list[str]  # what the user should know: sentences to print


def load_sources(
    source: str | os.PathLike, root: str | os.PathLike | None = None, classes: str | os.PathLike | None = None, **options
) -> tuple[list[Video], list[str]]:
    """`read_sources` without its notes: the videos and the class names."""
    videos, names, _ = read_sources(source, root, classes, **options)
    return videos, names


def read_sources(
    source: str | os.PathLike,
    root: str | os.PathLike | None = None,
    classes: str | os.PathLike | None = None,
    map: str | os.PathLike | None = None,
    layout: str = "auto",
    split: str | None = None,
) -> Listing:
    """The videos of a source, their classes, and what is worth knowing of them. Raises SourceError.

    source: a folder or a list, on this machine or as an fsspec URL. The videos are not opened (but a few of Kinetics,
        named without their times, are asked for their length).
    root: where the videos of a list are; None: beside the list.
    classes: file of class names in order (classes.FORMS), or shards; None: those beside the list that the data set has itself
        (labels.json, classInd.txt, Diving48_vocab.json), else the sorted names that occur, or "0".."max" for integers.
    map: CSV file of from,to that renames classes, several to one if wanted; an empty `to` leaves the videos out.
        `classes` are the names after renaming.
    layout: one of LAYOUTS; "auto" tells by the form of the source.
    split: "train1" or "test1" to "3" of HMDB51 (UCF101's folder); of other lists, a value of their split column.
    """
    source, root = os.fspath(source), None if root is None else os.fspath(root)
    given, about_given = (None, "") if classes is None else read_class_list(classes)
    renamed = None if map is None else read_map(map)
    rows, root, own, about_classes, notes = read_layout(source, root, layout, split)
    about = about_classes if given is None and rows[0].label is not None else about_given
    notes = [*notes, about] if about else list(notes)
    rows = _readable(rows, {*(given or ()), *(own or ()), *(renamed or ())}, source, notes)
    _require_all_or_no_labels(rows, source)
    if own is not None and rows[0].label is not None:
        rows = [row._replace(label=own[index]) for row, index in zip(rows, _indices(rows, own, source, "its classes"))]
    if renamed is not None:
        rows, own = _rename(rows, own, renamed, source, map, notes)
    names = given or own or _names_that_occur(rows, source)
    labels = _indices(rows, names, source, classes or "its classes")
    videos = [
        Video(
            join(root, row.path),
            label,
            names[label] if label >= 0 else None,
            row.listed or (row.path if row.member is None else f"{row.path}/{row.member}"),
            row.start,
            row.end,
            row.offset,
            row.size,
        )
        for row, label in zip(rows, labels)
    ]
    _refuse_duplicates(videos, rows, source)
    return Listing(videos, names, notes + _remarks(labels, names))


def source_hash(videos: list[Video], classes: list[str]) -> str:
    """sha256 of what is listed, in order: paths as listed, parts, labels and class names; not where the files are."""
    listed = [(video.source, video.label, video.start, video.end, video.offset) for video in videos]
    return hashlib.sha256(json.dumps([classes, listed]).encode()).hexdigest()


def _readable(rows: list[Row], names: set[str], source: str, notes: list[str]) -> list[Row]:
    """Rows with labels that can be meant: integers may be written as 0.0, 1.0; other names than `names` must look like one."""
    told = {row.label for row in rows if row.label is not None} - names
    if not told:
        return rows
    if all(re.fullmatch(r"-?\d+(\.0*)?", label) for label in told) and any("." in label for label in told):
        notes.append(
            f"labels of {source} are written as {min(label for label in told if '.' in label)}: they are read as integers."
        )
        return [row._replace(label=row.label.partition(".")[0]) if row.label in told else row for row in rows]
    for row in rows:
        if row.label not in told:
            continue
        if row.label.lower() in NO_LABELS:
            raise SourceError(
                f"{row.where} of {source} has the label {row.label!r}, which stands for none: give it a label "
                "or leave the video out (or name it in --classes if it is a class)."
            )
        if SEVERAL_LABELS.search(row.label):
            raise SourceError(
                f"{row.where} of {source} has the label {row.label!r}, which looks like several, but a video "
                "has one: choose one (or name it in --classes if it is a class)."
            )
    return rows


def _require_all_or_no_labels(rows: list[Row], source: str) -> None:
    for row in rows:
        if (row.label is None) != (rows[0].label is None):
            lacking, other = (row, rows[0]) if row.label is None else (rows[0], row)
            raise SourceError(f"{lacking.where} of {source} has no label but {other.where} has: label all videos or none.")


def _rename(rows: list[Row], own: list[str] | None, renamed: dict[str, str], source: str, map, notes: list[str]):
    """Rows and names after the map."""
    if rows[0].label is None:
        raise SourceError(f"the videos of {source} have no labels, so the map {map} cannot rename any: leave it out.")
    unknown = sorted(renamed.keys() - {row.label for row in rows} - set(own or ()))
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted({row.label for row in rows}), 1)
        notes.append(f"{_some(unknown)} of {map} occur nowhere in {source}" + (f" (it has {near[0]!r})." if near else "."))
    kept = [row._replace(label=renamed.get(row.label, row.label)) for row in rows if renamed.get(row.label) != ""]
    if not kept:
        raise SourceError(f"the map {map} leaves out every video of {source}: give other classes a name.")
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept):,} of {len(rows):,} videos are left out, as the map {map} says.")
    if own is not None:
        own = [name for name in dict.fromkeys(renamed.get(name, name) for name in own) if name]
    return kept, own


def _names_that_occur(rows: list[Row], source: str) -> list[str]:
    if rows[0].label is None:
        return []
    if not all(is_integer(row.label) for row in rows):
        return sorted({row.label for row in rows})
    negative = next((row for row in rows if int(row.label) < 0), None)
    if negative:
        raise SourceError(
            f"{negative.where} of {source}: label {negative.label} is out of range, they begin at 0: leave "
            "the video out if it has no label."
        )
    count = max(int(row.label) for row in rows) + 1
    if count > MOST_CLASSES:
        raise SourceError(f"{source} has label {count - 1}: labels are class indices from 0, not identifiers.")
    return [str(index) for index in range(count)]


def _indices(rows: list[Row], names: list[str], source: str, where: object) -> list[int]:
    """Label of every row as an index into the names; -1: not labelled. All labels are names, or all are indices."""
    if rows[0].label is None:
        return [-1] * len(rows)
    index = {name: i for i, name in enumerate(names)}
    unknown = [row for row in rows if row.label not in index]
    if not unknown:
        return [index[row.label] for row in rows]
    if not all(is_integer(row.label) for row in rows):
        row = unknown[0]
        (near,) = difflib.get_close_matches(row.label, names, 1, 0) or names[:1]
        raise SourceError(
            f"{row.where} of {source}: {row.label!r} is not in the class list {where}; the nearest name is {near!r}."
        )
    beyond = [row for row in rows if not 0 <= int(row.label) < len(names)]
    if not beyond:
        return [int(row.label) for row in rows]
    row = next((row for row in beyond if row.label not in index), beyond[0])
    raise SourceError(
        f"{row.where} of {source}: label {row.label} is out of range, there are {len(names)} classes"
        f" in {where} (0 to {len(names) - 1})."
    )


def _refuse_duplicates(videos: list[Video], rows: list[Row], source: str) -> None:
    """A video listed twice would count twice, and one with two labels would teach both."""
    seen, twice = {}, []
    for i, video in enumerate(videos):
        path = video.path if is_url(video.path) else os.path.normpath(video.path)
        part = (video.start, video.end)
        first = min(seen.setdefault(key, i) for key in ((path, rows[i].member, *part), (video.source, *part)))
        if first != i:
            twice.append((first, i))
    if twice:
        first, again = twice[0]
        one, other = videos[first].class_name, videos[again].class_name
        labels = "" if one == other else f", as {one!r} and as {other!r}, but a video has one label"
        raise SourceError(
            f"{rows[first].where} and {rows[again].where} of {source} list the same video, {videos[first].source}"
            f"{labels}: remove one ({len(twice):,} such rows in all)."
        )


def _remarks(labels: list[int], names: list[str]) -> list[str]:
    """What is odd about the classes."""
    counts = Counter(labels)
    if -1 in counts:
        return []
    notes, absent = [], [name for i, name in enumerate(names) if not counts[i]]
    if absent:
        notes.append(f"{_some(absent)} of {len(names):,} classes occur in no video.")
    if len(labels) >= 20 and len(counts) > len(labels) / 2:
        notes.append(f"{len(counts):,} classes for {len(labels):,} videos: are these labels, or captions?")
    return notes


def _some(names: list[str]) -> str:
    """3 ('a', 'b', 'c')."""
    told = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names):,} ({told})"
