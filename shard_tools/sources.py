"""Which videos, and what they show: any data set's own lists, straight to videos. lists/layouts.py says which are known."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from i2v.pipelines.index import SEVERAL, Factors, combinations
from i2v.shard_tools.lists import factors as of_factors
from i2v.shard_tools.lists import several
from i2v.shard_tools.lists.classes import read_class_list
from i2v.shard_tools.lists.labels import indices, names_that_occur, read_map, readable, refuse_alike, remarks, rename
from i2v.shard_tools.lists.layouts import read_layout
from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.paths import SourceError, is_url, join


class Video(NamedTuple):
    """One source video. No two of a listing have the same source, start and end."""

    path: str  # the file, or its URL
    label: int | tuple[int, ...] = -1  # index into the class names, or several of them, ascending; -1: not labelled
    class_name: str | None = None
    source: str = ""  # the path or id as it was listed, found or not; a member of a tar: tar/member
    start: float = 0.0  # seconds: the part of the video that is meant
    end: float | None = None  # None: to its end
    offset: int = 0  # bytes: the part of the file that is the video, where it is a member of a tar
    size: int | None = None  # None: to its end


class Listing(NamedTuple):
    """What a source lists."""

    videos: list[Video]  # in listed order; of folders: sorted
    classes: list[str] | Factors  # names; or those of each factor, whose combinations the classes are
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
    factors: Sequence[str] = (),
    multi_label: bool = False,
) -> Listing:
    """The videos of a source, their classes, and what is worth knowing of them. Raises SourceError.

    source: a folder or a list, on this machine or as an fsspec URL. The videos are not opened (but a few of Kinetics,
        named without their times, are asked for their length).
    root: where the videos of a list are; None: beside the list.
    classes: file of class names in order (classes.FORMS), or shards; None: those beside the list that the data set has itself
        (labels.json, classInd.txt, Diving48_vocab.json), else the sorted names that occur, or "0".."max" for integers.
    map: CSV file of from,to that renames classes, several to one if wanted; an empty `to` leaves the videos out,
        of videos with several classes only this one.
        `classes` are the names after renaming.
    layout: one of LAYOUTS; "auto" tells by the form of the source.
    split: "train1" or "test1" to "3" of HMDB51 (UCF101's folder); of other lists, a value of their split column.
    factors: columns of a list with a header that are labels together, such as verb and noun; EPIC-KITCHENS' own need no naming.
    multi_label: whether a label is several classes, or none (lists/several.py).
    """
    source, root = os.fspath(source), None if root is None else os.fspath(root)
    given, about_given = (None, "") if classes is None else read_class_list(classes)
    given_names = _names(given)
    renamed = None if map is None else read_map(map)
    rows, found = read_layout(source, root, layout, split, factors)
    multi_label = multi_label or found.several
    own, about = _names(found.classes), found.about_classes if given is None and rows[0].label is not None else about_given
    notes = [*found.notes, about] if about else found.notes
    if found.factors:
        _refuse_other_options(rows, found, given, multi_label, renamed, classes)
        labels, names = of_factors.resolve(rows, found.factors, given, source, classes or "its classes", notes)
    else:
        listed, known = rows, {*(given_names or ()), *(own or ()), *(renamed or ())}
        rows = several.one_class_each(rows, known, source, notes) if multi_label else rows
        rows = readable(rows, known, source, notes)
        if own is not None and rows[0].label is not None:
            rows = [row._replace(label=own[index]) for row, index in zip(rows, indices(rows, own, source, "its classes"))]
        if renamed is not None:
            what = "labels" if multi_label else "videos"
            rows, own = rename(rows, own, renamed, source, map, notes, what)
        names = given or (found.classes if renamed is None else own) or names_that_occur(rows, source)
        if given is None:
            refuse_alike(_names(names), source)
        labels = indices(rows, _names(names), source, classes or "its classes")
        notes = notes + remarks(labels, _names(names))
        rows, labels = (listed, several.together(listed, rows, labels)) if multi_label else (rows, labels)
    videos, flat = [], _names(names)
    for row, label in zip(rows, labels):
        path, each = join(found.root, row.path), label if multi_label else (label,)
        name = None if label == -1 else SEVERAL.join(flat[i] for i in each)
        videos.append(Video(path, label, name, row.listed or row.path, row.start, row.end, row.offset, row.size))
    _refuse_duplicates(videos, rows, source, found.parts_may_repeat)
    return Listing(videos, names, notes)


def _names(classes: list[str] | Factors | None) -> list[str] | None:
    """The names that labels count, of factors those of the combinations."""
    return combinations(classes) if isinstance(classes, dict) else classes


def _refuse_other_options(rows: list[Row], found: Source, given, multi_label: bool, renamed, classes) -> None:
    """Raises SourceError for what does not go with factors."""
    factors = " and ".join(found.factors)
    if not all(isinstance(row.label, tuple) for row in rows):
        raise SourceError(f"{found} has no columns {factors}: factors are columns of a list with a header.")
    if multi_label or renamed is not None:
        raise SourceError(f"{found} is labelled with {factors}, which neither --multi-label nor --map goes with: leave it out.")
    if isinstance(given, list):
        raise SourceError(f"{classes} names classes, but {found} is labelled with {factors}: give shards with these factors.")


def source_hash(videos: list[Video], classes: list[str] | Factors) -> str:
    """sha256 of what is listed, in order: paths as listed, parts, labels and class names; not where the files are."""
    listed = [(video.source, video.label, video.start, video.end, video.offset) for video in videos]
    return hashlib.sha256(json.dumps([classes, listed]).encode()).hexdigest()


def _refuse_duplicates(videos: list[Video], rows: list[Row], source: str, parts_may_repeat: bool) -> None:
    """A video listed twice would count twice, and one with two labels would teach both."""
    seen, twice = {}, []
    for i, video in enumerate(videos):
        path = video.path if is_url(video.path) else os.path.normpath(video.path)
        part = (video.start, video.end)
        keys = ((video.source, *part),) if parts_may_repeat else ((path, video.offset, *part), (video.source, *part))
        first = min(seen.setdefault(key, i) for key in keys)
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
