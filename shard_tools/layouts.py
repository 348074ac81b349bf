"""How data sets list their videos: every layout becomes rows of path and label.

folder       videos/abseiling/x.mp4: every subfolder is a class, its video files (at any depth) are the videos
list         path,label: one row per video; commas, semicolons, tabs or spaces; labels are names or integers from 0;
             without labels the videos are unlabelled. A path without a suffix is an id: x is x.mp4, a/x.webm, ...
segments     path,start,end,label or start,duration: parts of long videos, in seconds or h:m:s
kinetics     label,youtube_id,time_start,time_end,split: the clips are {youtube_id}_{start:06d}_{end:06d}.mp4
ssv2         Something-Something: train.json of V2, id;label of V1; the class is the template without its brackets
ucf101       trainlist01.txt, testlist01.txt: the class is the folder
hmdb51       a folder of {class}_test_split1.txt
diving48     Diving48_V2_train.json
webdataset   tar files with video members, one of them, or videos-{000..010}.tar; labels in .cls, .label, .json or .txt
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections import Counter, defaultdict

from i2v.shard_tools.classes import read_class_list
from i2v.shard_tools.paths import (
    SourceError,
    by_suffix,
    entries,
    exists,
    files_below,
    is_folder,
    is_video,
    join,
    open_binary,
    parent,
    read_text,
    videos_below,
)
from i2v.shard_tools.rows import Row, Table
from i2v.shard_tools.tables import Columns, Line, about_unused, cell, is_integer, is_unicode, part, read_header, read_lines
from i2v.shard_tools.tars import expand, read_tars

FILE_LAYOUTS = ("list", "segments", "kinetics", "ssv2", "ucf101", "diving48", "webdataset")
FOLDER_LAYOUTS = ("folder", "ucf101", "hmdb51", "webdataset")
LAYOUTS = ("auto", *dict.fromkeys(FOLDER_LAYOUTS + FILE_LAYOUTS))

KINETICS_CLIP = re.compile(r"(.+)_(\d+)_(\d+)")  # id, start and end in whole seconds
SPLIT_FOLDER = re.compile(
    r"(videos?[_-]?)?(train|training|val|valid|validation|test|testing)([_-]?(set|data|videos?|\d+))?", re.IGNORECASE
)
UCF101_PATH = re.compile(r"[^/\s]+/v_[^/\s]+_g\d+_c\d+\.\w+")


def read_layout(source: str, root: str | None, layout: str, split: str | None) -> Table:
    """The rows of a source. Raises SourceError."""
    if layout not in LAYOUTS:
        raise SourceError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}.")
    folder = is_folder(source)
    fitting = FOLDER_LAYOUTS if folder else FILE_LAYOUTS
    if layout not in ("auto", *fitting):
        kind = "folder" if folder else "file"
        raise SourceError(f"{source} is a {kind}, but layout {layout} is not read from one: {', '.join(fitting)} are.")
    if folder:
        return _read_folder(source, root, layout, split)
    if layout == "webdataset" or source.endswith(".tar") or re.search(r"\.(tar\.\w+|tgz)$", source):
        return _read_webdataset(parent(source), expand(posixpath.basename(source)), root, split)
    if not exists(source):
        raise SourceError(f"{source} does not exist: give a folder of class folders, or a CSV file of path,label.")
    root = parent(source) if root is None else root
    if not is_folder(root or "."):
        raise SourceError(f"the root folder {root} does not exist.")
    if source.lower().endswith(".json"):
        _refuse_split(split, source)
        return _read_json(source, root, layout)
    return _read_text(source, root, layout, split)


# ---- folders


def _read_folder(source: str, root: str | None, layout: str, split: str | None) -> Table:
    files, folders = entries(source)
    if layout == "auto":
        if any(re.search(r"_test_split\d\.txt$", name) for name in files):
            layout = "hmdb51"
        elif "trainlist01.txt" in files:
            layout = "ucf101"
        elif any(name.endswith(".tar") for name in files) and not folders:
            layout = "webdataset"
    if layout == "hmdb51":
        return _read_hmdb51(source, files, source if root is None else root, split)
    if layout == "ucf101":
        kind, number = _split_parts(split, source)
        name = join(source, f"{kind}list{number:02d}.txt")
        root = source if root is None else root
        return _read_ucf101(name, _not_empty(name, read_lines(name, read_text(name), root, notes := [])), root, notes)
    if layout == "webdataset":
        return _read_webdataset(source, [name for name in files if name.endswith(".tar")], root, split)
    _refuse_split(split, source)
    if root is not None:
        raise SourceError(f"{source} is a folder of videos, so there is no other root: leave {root} out.")
    if any(is_video(name) for name in files):
        raise SourceError(
            f"{source} holds videos outside of class folders: give the folder whose subfolders are the classes, "
            "or a CSV file with only a path column if the videos have no labels."
        )
    below = {name: files_below(join(source, name)) for name in folders}
    _refuse_split_folders(source, {name: list(filter(is_video, below[name])) for name in folders})
    rows = [Row(f"folder {name}", f"{name}/{file}", name) for name in folders for file in below[name] if is_video(file)]
    others = [file for name in folders for file in below[name] if not is_video(file)] + files
    if not rows:
        held = f" but {by_suffix(others)}" if others else ""
        raise SourceError(f"{source} holds no class folders with videos (mp4, webm, avi, mkv, ...){held}.")
    notes = [f"{len(others):,} files in {source} are no videos by their names and are left out: {by_suffix(others)}."]
    return Table(rows, source, folders, notes=notes if others else ())


def _refuse_split_folders(source: str, videos: dict[str, list[str]]) -> None:
    """Folders that are called train and val, and no others, are parts of a data set rather than its classes."""
    names = [name for name in videos if videos[name]]
    if not names or not all(SPLIT_FOLDER.fullmatch(name) for name in names):
        return
    if len(names) > 1 or any("/" in video for video in videos[names[0]]):
        first, *others = sorted(names, key=lambda name: "train" not in name.lower())
        rest = "".join(f", and {join(source, name)} with --classes" for name in others)
        raise SourceError(
            f"the folders of {source} are splits, not classes ({', '.join(names)}): give {join(source, first)}{rest}."
        )


def _read_hmdb51(source: str, files: list[str], root: str, split: str | None) -> Table:
    kind, number = _split_parts(split, source)
    wanted = {"train": "1", "test": "2"}[kind]  # 0: not in this split
    suffix = f"_test_split{number}.txt"
    classes = [name.removesuffix(suffix) for name in files if name.endswith(suffix)]
    _require_class_folders(root, classes, source)
    rows = []
    for name in classes:
        for number, line in enumerate(read_text(join(source, name + suffix)).splitlines(), 1):
            cells = line.rsplit(maxsplit=1)
            if cells and (len(cells) != 2 or cells[1] not in ("0", "1", "2")):
                raise SourceError(f"row {number} of {join(source, name + suffix)} is not a file name and 0, 1 or 2.")
            if cells and cells[1] == wanted:
                rows.append(Row(f"row {number} of {name}{suffix}", f"{name}/{cells[0]}", name))
    if not rows:
        raise SourceError(f"{source} holds no *{suffix} with {kind} videos.")
    return Table(rows, root, classes)


def _split_parts(split: str | None, source: str) -> tuple[str, int]:
    match = re.fullmatch(r"(train|test)([123])", split or "")
    if match is None:
        given = f", not {split!r}" if split else ""
        raise SourceError(f"{source} has three splits: choose train1, test1, ... test3 as the split{given}.")
    return match[1], int(match[2])


def _refuse_split(split: str | None, source: str) -> None:
    if split is not None:
        raise SourceError(f"{source} has no splits to choose {split!r} from: leave the split out.")


def _require_class_folders(root: str, classes: list[str], source: str) -> None:
    if classes and not any(is_folder(join(root, name)) for name in classes):
        raise SourceError(f"{root or '.'} holds no folder {classes[0]}: give the folder of class folders as the root.")


# ---- text lists


def _read_text(source: str, root: str, layout: str, split: str | None) -> Table:
    notes: list[str] = []
    table = read_lines(source, read_text(source, "surrogateescape"), root, notes)
    _not_empty(source, table)
    first = table[0][1]
    columns = read_header(first)
    numbered = len(first) == 1 or len(first) == 2 and is_integer(first[1])
    if layout == "ucf101" or layout == "auto" and numbered and UCF101_PATH.fullmatch(first[0]):
        _refuse_split(split, source)
        return _read_ucf101(source, table, root, notes)
    if layout == "kinetics" or layout == "auto" and columns.path is None and columns.id is not None and columns.are_parts:
        if columns.id is None or not columns.are_parts:
            raise SourceError(f"{source} has no header with youtube_id, time_start and time_end: use another layout.")
        columns = columns._replace(path=None)
        notes += about_unused(source, first, columns)
        return _read_kinetics(source, table[1:], columns, root, split, notes)
    if columns.path is None:
        columns = columns._replace(path=columns.id, id=None)
    if layout == "segments" and (columns.path is None or not columns.are_parts):
        raise SourceError(f"{source} has no header with path, start and end: name the columns in a first row.")
    if columns.path is None and columns.label is not None:
        raise SourceError(f"the first row of {source} looks like a header without a path column: call that one path.")
    if columns.path is None and len(first) > 2:
        raise SourceError(f"{source} has {len(first)} columns and no header: name them in a first row: path,label.")
    if columns.path is None:
        _refuse_unknown_header(source, table, root)
        columns = Columns(path=0, label=1)
    else:
        columns = columns._replace(id=None)
        notes += about_unused(source, first, columns)
        table = table[1:]
    return _rows_of_list(source, root, layout, _of_split(source, table, columns.split, split, notes), columns, notes)


def _rows_of_list(source: str, root: str, layout: str, table: list[Line], columns: Columns, notes: list[str]) -> Table:
    rows = [
        Row(f"row {line}", cell(cells, columns.path) or "", cell(cells, columns.label), *part(source, line, cells, columns))
        for line, cells in table
    ]
    for row in rows:
        if not row.path:
            raise SourceError(f"{row.where} of {source} has no path.")
        if row.label is not None and not is_unicode(row.label):
            raise SourceError(f"{row.where} of {source} has a label that is not UTF-8: save the list as UTF-8.")
    if not all(is_unicode(row.path) for row in rows):
        notes.append(f"paths in {source} are not UTF-8: files are looked for by the same bytes.")
    if not is_video(rows[0].path) and not os.path.isfile(join(root, rows[0].path)):
        classes, about = None, ""
        if layout == "ssv2" or posixpath.basename(source).startswith("something-something-v1-"):
            classes, about = _classes_beside(source, "something-something-v1-labels.csv")
        return _locate(source, rows, root, classes, about, notes)
    return Table(rows, root, notes=notes)


def _refuse_unknown_header(source: str, table: list[Line], root: str) -> None:
    """A header without a known name would be taken for a video, and its label for a class."""
    (_, first), *others = table
    if not others or is_video(first[0]) or os.path.isfile(join(root, first[0])):
        return
    labels = [cell(cells, 1) or "" for _, cells in table]
    alone = labels[0] and not is_integer(labels[0]) and all(map(is_integer, labels[1:]))
    if alone or all(is_video(cells[0]) for _, cells in others):
        raise SourceError(f"the first row of {source} looks like a header: call its columns path and label.")


def _of_split(source: str, table: list[Line], column: int | None, split: str | None, notes: list[str]) -> list[Line]:
    """The rows of one split, where the list has such a column and one is asked for."""
    if column is None:
        _refuse_split(split, source)
        return _not_empty(source, table)
    counts = Counter(cell(cells, column) or "" for _, cells in _not_empty(source, table))
    told = ", ".join(f"{name or 'none'} {count:,}" for name, count in sorted(counts.items())[:10])
    if split is None:
        if len(counts) > 1:
            notes.append(f"all splits of {source} are taken ({told}): name one as the split to take only that.")
        return table
    if split not in counts:
        raise SourceError(f"{source} has no split {split!r}: it has {told}.")
    return [(line, cells) for line, cells in table if (cell(cells, column) or "") == split]


def _not_empty(source: str, table: list[Line]) -> list[Line]:
    if not table:
        raise SourceError(f"{source} has no rows: one video per row, path,label.")
    return table


def _read_ucf101(source: str, table: list[Line], root: str, notes: list[str]) -> Table:
    rows, folders = [], {}
    for line, cells in table:
        path, number = (*cells, None)[:2]
        name, separator, _ = path.partition("/")
        if not separator:
            raise SourceError(f"row {line} of {source} is not Class/video.avi, so it has no class: use another layout.")
        if number is not None and folders.setdefault(number, name) != name:
            raise SourceError(
                f"row {line} of {source} gives {name} the number of {folders[number]}, {number}: choose "
                "layout list if the numbers are classes of your own."
            )
        rows.append(Row(f"row {line}", path, name))
    _require_class_folders(root, sorted({row.label for row in rows}), source)
    return Table(rows, root, *_classes_beside(source, "classInd.txt"), notes)


def _classes_beside(source: str, *names: str) -> tuple[list[str] | None, str]:
    """The data set's own class names from a file beside the list, and a sentence that says so."""
    for name in names:
        path = join(parent(source), name)
        if exists(path):
            return read_class_list(path)
    return None, f"{names[0]} is not beside {source}: classes are the labels that occur in it, sorted."


# ---- lists of ids


class _Videos:
    """The videos below a folder by name: in whatever subfolders they are, whatever their suffix is."""

    def __init__(self, root: str):
        self.root = root
        self.named = defaultdict(list)  # stem -> paths
        self.timed = defaultdict(list)  # (id, start, end) -> paths
        for path in videos_below(root or "."):
            stem = posixpath.splitext(posixpath.basename(path))[0]
            self.named[stem].append(path)
            if "/" in path:
                self.named[posixpath.splitext(path)[0]].append(path)
            if match := KINETICS_CLIP.fullmatch(stem):
                self.timed[match[1], int(match[2]), int(match[3])].append(path)

    def find(self, row: Row) -> str | None:
        """The path of a row's id; of a Kinetics clip's, however its file is named."""
        path = self.one(self.named[row.path], row)
        if path is None and (match := KINETICS_CLIP.fullmatch(row.path)):
            path = self.one(self.timed[match[1], int(match[2]), int(match[3])], row)
            if path is None and row.path == _kinetics_clip(match[1], int(match[2]), int(match[3])):
                path = self.one(self.named[match[1]], row)
                whole = row.end is None and row._replace(path=path, start=float(match[2]), end=float(match[3]))
                if path and whole and not _are_trimmed([whole], self.root):
                    return None  # the row means a clip, not the whole video
        return path

    def one(self, paths: list[str], row: Row) -> str | None:
        """The only path; of several, the one in the folder of the row's class."""
        if len(paths) > 1:
            label = (row.label or "").replace("_", " ")
            folders = [posixpath.basename(posixpath.dirname(path)).replace("_", " ") for path in paths]
            of_class = [path for path, folder in zip(paths, folders) if folder == label]
            if len(of_class) != 1:
                raise SourceError(
                    f"{row.where}: {row.path} is both {paths[0]} and {paths[1]} in {self.root or '.'}: "
                    "give a folder that holds only one of them as the root."
                )
            paths = of_class
        return paths[0] if paths else None


def _locate(source: str, rows: list[Row], root: str, classes: list[str] | None, about: str, notes: list[str]) -> Table:
    """Rows whose paths are ids get the path of their video. What is not found keeps its id for a path."""
    first = join(root, rows[0].path)
    if is_folder(first):
        raise SourceError(f"{first} is a folder of frames, not a video: give the videos themselves, in any container.")
    videos = _Videos(root)
    paths = [row.path if is_video(row.path) else videos.find(row) for row in rows]
    found = [row._replace(path=path or row.path, listed=row.path) for row, path in zip(rows, paths)]
    _tell_missing(source, root, [row.path for row, path in zip(rows, paths) if path is None], len(rows), notes)
    return Table(found, root, classes, about, notes)


def _tell_missing(source: str, root: str, missing: list[str], count: int, notes: list[str]) -> None:
    if len(missing) == count:
        raise SourceError(
            f"none of the {count:,} videos of {source} is in {root or '.'} or below, the first is "
            f"{missing[0]!r}: give their folder as the root."
        )
    if missing:
        notes.append(
            f"{len(missing):,} of the {count:,} videos of {source} are not in {root or '.'}: they stay listed "
            f"and will be rejected as missing; the first is {missing[0]}."
        )


def _read_kinetics(source: str, table: list[Line], columns: Columns, root: str, split: str | None, notes: list[str]) -> Table:
    table = _of_split(source, table, columns.split, split, notes)
    videos, rows, missing, untimed = _Videos(root), [], {}, []  # missing: row -> its times
    for line, cells in table:
        name = cell(cells, columns.id)
        if name is None:
            raise SourceError(f"row {line} of {source} has no youtube_id.")
        start, end = part(source, line, cells, columns)
        if end is None:
            raise SourceError(f"row {line} of {source} has no time_end.")
        clip = _kinetics_clip(name, start, end)
        row = Row(f"row {line}", clip, cell(cells, columns.label), listed=clip)
        path = videos.one(videos.timed[name, int(start), int(end)], row)
        if path is None and (path := videos.one(videos.named[name], row)):
            untimed.append(len(rows))
            row = row._replace(start=start, end=end)
        if path is None:
            missing[len(rows)] = {"start": start, "end": end}
        rows.append(row._replace(path=path or f"{clip}.mp4"))
    _tell_missing(source, root, [rows[i].path for i in missing], len(rows), notes)
    if untimed:
        trimmed = _are_trimmed([rows[i] for i in untimed], root)
        notes.append(
            f"{len(untimed):,} videos of {source} are named without their times and last "
            + ("about as long as their part: they are taken whole." if trimmed else "longer: their part is cut out.")
        )
        for i in untimed if trimmed else []:
            rows[i] = rows[i]._replace(start=0.0, end=None)
        if not trimmed and len(untimed) + len(missing) == len(rows):  # so will be those that are fetched later
            for i, times in missing.items():
                rows[i] = rows[i]._replace(**times)
    return Table(rows, root, notes=notes)


def _kinetics_clip(name: str, start: float, end: float) -> str:
    return f"{name}_{int(start):06d}_{int(end):06d}"


def _are_trimmed(rows: list[Row], root: str) -> bool:
    """Whether files named {youtube_id}.mp4 hold only the listed part: both kinds are in use. A few durations tell."""
    votes = set()
    for row in sorted(rows, key=lambda row: -row.start)[:5]:  # the later the part, the clearer the difference
        seconds = _duration(join(root, row.path))
        if seconds is not None and row.start >= 1:
            votes.add(seconds < (row.end + (row.end - row.start)) / 2)
    if len(votes) > 1:
        raise SourceError(
            f"{root or '.'} holds whole videos and cut ones under names without times: put the cut ones "
            "elsewhere, or name them {youtube_id}_{start:06d}_{end:06d}."
        )
    return votes == {True}


def _duration(place: str) -> float | None:
    """Seconds; None where the file does not say."""
    import av

    try:
        with open_binary(place) as file, av.open(file) as container:
            return container.duration / av.time_base if container.duration else None
    except (OSError, av.FFmpegError):
        return None


# ---- JSON


def _read_json(source: str, root: str, layout: str) -> Table:
    data = _parsed(source)
    if not isinstance(data, list) or not data or not all(isinstance(video, dict) for video in data):
        ours = isinstance(data, dict) and "shards" in data
        what = "a manifest, whose folder is what to give" if ours else "no list of videos"
        raise SourceError(f"{source} is {what}: JSON lists are those of Something-Something V2 and of Diving48.")
    if layout == "auto":
        layout = "diving48" if "vid_name" in data[0] else "ssv2"
    key = {"diving48": "vid_name", "ssv2": "id"}.get(layout)
    if key is None:
        raise SourceError(f"{source} is JSON, which layout {layout} is not: choose ssv2 or diving48.")
    rows = []
    for number, video in enumerate(data, 1):
        if not isinstance(video.get(key), (str, int)):
            raise SourceError(f"entry {number} of {source} has no {key}, as videos of {layout} have: mend the list.")
        label = video.get("template", video.get("label"))
        if not isinstance(label, (str, int, float, type(None))) or isinstance(label, bool):
            raise SourceError(
                f"entry {number} of {source} has the label {json.dumps(label)[:60]}: a video has one, a name or an integer."
            )
        label = re.sub(r"[\[\]]", "", "" if label is None else str(label)).strip() or None
        rows.append(Row(f"entry {number}", str(video[key]), label))
    notes = []
    if layout == "ssv2":
        classes, about = _classes_beside(source, "something-something-v2-labels.json", "labels.json")
    else:
        classes, about = _classes_beside(source, "Diving48_vocab.json")
        later = sum(bool(video.get("start_frame")) for video in data)
        if later:  # the videos of Diving48 are cut already: start_frame is 0
            notes.append(f"{later:,} videos of {source} have a start_frame that is not 0: they are taken whole.")
    return _locate(source, rows, root, classes, about, notes)


def _parsed(path: str):
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise SourceError(f"{path} is not JSON ({error}): copy it again.") from error


# ---- WebDataset


def _read_webdataset(folder: str, tars: list[str], root: str | None, split: str | None) -> Table:
    _refuse_split(split, join(folder, tars[0]) if tars else folder)
    if root is not None:
        raise SourceError(f"the videos are in the tar files of {folder or '.'}: leave the root {root} out.")
    rows, notes = read_tars(folder, tars)
    if not rows:
        raise SourceError(f"{folder or '.'} holds no tar file with video members (mp4, webm, avi, mkv, ...).")
    path = join(folder, "manifest.json")
    manifest = _parsed(path) if exists(path) else None
    if not isinstance(manifest, dict) or not {"classes", "shards"} <= manifest.keys():  # not one of ours
        return Table(rows, folder, notes=notes)
    classes, about = read_class_list(path) if manifest["classes"] else (None, "")
    notes += [f"{folder or '.'} holds shards made from videos before: encoding their clips again costs quality."]
    return Table(rows, folder, classes, about, notes)
