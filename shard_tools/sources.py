"""Which videos, and what they show: a folder of class folders, or a list.

    videos/abseiling/x.mp4      a folder: every subfolder is a class, its video files (at any depth) are the videos
    path,label                  a list: one row per video, separated by commas, tabs or spaces, with or without a
                                header; labels are names or integers; without a label column there are none
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .divx .f4v .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogg .ogv .rm .rmvb .ts"
    " .vob .webm .wmv .y4m".split()
)
PATH_COLUMNS = {"path", "video", "video_path", "filepath", "file_path", "filename", "file"}
LABEL_COLUMNS = {"label", "class", "class_name", "classname", "target", "category"}
MOST_CLASSES = 1_000_000


class SourceError(ValueError):
    """The source list cannot be used; the message is one sentence that says what, where and what to do."""


class Video(NamedTuple):
    """One source video."""

    path: str  # the file, or its URL
    label: int = -1  # index into the class names; -1: not labelled
    class_name: str | None = None
    source: str = ""  # the path as it was listed
    start: float = 0.0  # seconds: the part of the video that is meant
    end: float | None = None  # None: to its end
    offset: int = 0  # bytes: the part of the file that is the video, where it is a member of a tar
    size: int | None = None  # None: to its end


def load_sources(
    source: str | os.PathLike, root: str | os.PathLike | None = None, classes: str | os.PathLike | None = None
) -> tuple[list[Video], list[str]]:
    """The videos of a source in listed order (folders: sorted), and the class names. Raises SourceError.

    root: what the paths of a list are relative to; None: the list's folder. Files are not opened here.
    classes: file with the class names in order; None: the sorted names that occur, or "0".."max" for integers.
    """
    source = Path(source)
    names = None if classes is None else read_classes(classes)
    try:
        if source.is_dir():
            rows, folders = _read_folder(source)
            root = source
            names = folders if names is None else names
        elif source.is_file():
            rows = _read_list(source)
            root = source.parent if root is None else Path(root)
        else:
            raise SourceError(f"{source} does not exist: give a folder of class folders, or a CSV file of path,label.")
    except OSError as error:
        raise SourceError(f"{source} cannot be read: {error.strerror}.") from error
    if not root.is_dir():
        raise SourceError(f"the root folder {root} does not exist.")
    labels, names = _resolve_labels(rows, names, source, classes)
    videos = [
        Video(os.path.join(root, path), label, names[label] if label >= 0 else None, path)
        for (_, path, _), label in zip(rows, labels)
    ]
    return videos, names


def source_hash(videos: list[Video], classes: list[str]) -> str:
    """sha256 of what is listed, in order: paths as listed, labels and class names; not where the files are."""
    listing = json.dumps([classes, [(video.source, video.label) for video in videos]])
    return hashlib.sha256(listing.encode()).hexdigest()


def read_classes(path: str | os.PathLike) -> list[str]:
    """Class names in order: one per line, or the classes of another data set's manifest.json. Raises SourceError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        is_manifest = Path(path).suffix == ".json"
        names = json.loads(text)["classes"] if is_manifest else [line.strip() for line in text.splitlines()]
    except OSError as error:
        raise SourceError(f"the class list {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"the class list {path} is neither one name per line nor a manifest.json.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SourceError(f"the class list {path} is neither one name per line nor a manifest.json.")
    names = [name for name in names if name]
    if not names:
        raise SourceError(f"the class list {path} is empty.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"the class list {path} names {twice!r} more than once.")
    return names


# Rows are (where, path, label): where in the source a reader would look, e.g. "row 3"; label is text, or None.


def _read_folder(folder: Path) -> tuple[list[tuple[str, str, str]], list[str]]:
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if any(_is_video(entry) for entry in folder.iterdir()):
        raise SourceError(
            f"{folder} holds videos outside of class folders: give the folder whose subfolders are the classes, "
            "or a CSV file with only a path column if the videos have no labels."
        )
    rows = []
    for name in classes:
        files = sorted(path.relative_to(folder).as_posix() for path in (folder / name).rglob("*") if _is_video(path))
        rows += [(f"folder {name}", file, name) for file in files]
    if not rows:
        raise SourceError(f"{folder} holds no class folders with videos ({', '.join(sorted(VIDEO_SUFFIXES))}).")
    return rows, classes


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read_list(path: Path) -> list[tuple[str, str, str | None]]:
    try:
        table = list(_cells(path))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} is not a text file of path,label rows: give a CSV file or a folder.") from error
    path_column, label_column = 0, 1
    if table and PATH_COLUMNS & {cell.lower() for cell in table[0][1]}:
        header = [cell.lower() for cell in table.pop(0)[1]]
        path_column = next(i for i, cell in enumerate(header) if cell in PATH_COLUMNS)
        label_column = next((i for i, cell in enumerate(header) if cell in LABEL_COLUMNS), None)
    elif table and LABEL_COLUMNS & {cell.lower() for cell in table[0][1]}:
        raise SourceError(f"the first row of {path} looks like a header without a path column: name that column path.")
    elif table and len(table[0][1]) > 2:
        count = len(table[0][1])
        raise SourceError(f"{path} has {count} columns and no header: name them in a first row, e.g. path,label.")
    if not table:
        raise SourceError(f"{path} has no rows: one video per row, path,label.")

    def cell(cells: list[str], column: int | None) -> str | None:
        return (cells[column] if column is not None and column < len(cells) else "") or None

    rows = [(f"row {line}", cell(cells, path_column), cell(cells, label_column)) for line, cells in table]
    for where, video, label in rows:
        if video is None:
            raise SourceError(f"{where} of {path} has no path.")
        if (label is None) != (rows[0][2] is None):
            lacking, other = (where, rows[0][0]) if label is None else (rows[0][0], where)
            raise SourceError(f"{lacking} of {path} has no label but {other} has: label all videos or none.")
    return rows


def _cells(path: Path):
    """Line number and cells of every row that is not blank."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if "\t" in first or "," in first:
            reader = csv.reader(file, delimiter="\t" if "\t" in first else ",")
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
        else:
            for number, line in enumerate(file, 1):
                # A path may hold spaces; in lists without commas a label is an integer (or the header's word).
                cells = line.strip().rsplit(maxsplit=1)
                labelled = len(cells) == 2 and (_is_integer(cells[1]) or cells[1].lower() in LABEL_COLUMNS)
                if cells:
                    yield number, cells if labelled else [line.strip()]


def _resolve_labels(rows, names: list[str] | None, source: Path, classes) -> tuple[list[int], list[str]]:
    """Label of every row as an index, and the class names."""
    if rows[0][2] is None:
        return [-1] * len(rows), names or []
    integers = all(_is_integer(label) for _, _, label in rows)
    if names is None and not integers:
        names = sorted({label for _, _, label in rows})
    if names is None:
        count = max(int(label) for _, _, label in rows) + 1
        if count > MOST_CLASSES:
            raise SourceError(f"{source} has label {count - 1}: labels are class indices from 0, not identifiers.")
        names = [str(index) for index in range(count)]
    index = {name: i for i, name in enumerate(names)}
    labels = []
    for where, _, label in rows:
        if label in index:
            labels.append(index[label])
        elif integers and 0 <= int(label) < len(names):
            labels.append(int(label))
        elif integers:
            raise SourceError(
                f"{where} of {source}: label {label} is out of range, there are {len(names)} classes"
                f"{f' in {classes}' if classes else ''} (0 to {len(names) - 1})."
            )
        else:
            (near,) = difflib.get_close_matches(label, names, 1, 0) or names[:1]
            raise SourceError(
                f"{where} of {source}: {label!r} is not in the class list {classes}; the nearest name is {near!r}."
            )
    return labels, names


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
