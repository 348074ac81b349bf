"""Lists of path,label with a header or without one; of parts of videos, if they have columns for start and end or duration.

Labels are names, or integers from 0; without labels the videos are unlabelled. A path without a suffix is an id: x is
x.mp4, a/x.webm, ... Something-Something V1 has id;label.
"""

import os
import posixpath

from i2v.shard_tools.lists.ids import locate
from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.lists.tables import Named, are_parts, is_integer, is_unicode, named, part, read_header
from i2v.shard_tools.paths import SourceError, is_video, join


def fits(source: Source) -> bool:
    return True


def read(source: Source) -> list[Row]:
    first, columns = source.lines[0][1], read_header(source.lines[0][1])
    videos = columns.pop("id", None)
    if videos is not None:
        columns.setdefault("path", videos)
    if source.layout == "segments" and not ("path" in columns and are_parts(columns)):
        raise SourceError(f"{source} has no header with path, start and end: name the columns in a first row.")
    if "path" in columns:
        return _table(source, source.below_header(columns))
    if "label" in columns:
        raise SourceError(f"the first row of {source} looks like a header without a path column: call that one path.")
    if len(first) > 2:
        raise SourceError(f"{source} has {len(first)} columns and no header: name them in a first row: path,label.")
    if source.factors:
        raise SourceError(f"{source} has no header: name its columns in a first row: path,{','.join(source.factors)}.")
    rows = named(source.lines, {"path": 0, "label": 1})
    _refuse_unknown_header(source, rows)
    source.refuse_split()
    return _table(source, rows)


def _refuse_unknown_header(source: Source, rows: list[Named]) -> None:
    """A header without a known name would be taken for a video, and its label for a class."""
    (first, label), *others = ((cells["path"] or "", cells["label"] or "") for _, cells in rows)
    if not others or is_video(first) or os.path.isfile(join(source.root, first)):
        return
    alone = label and not is_integer(label) and all(is_integer(other) for _, other in others)
    if alone or all(is_video(path) for path, _ in others):
        raise SourceError(f"the first row of {source} looks like a header: call its columns path and label.")


def _table(source: Source, named_rows: list[Named]) -> list[Row]:
    rows = []
    for where, cells in named_rows:
        rows.append(Row(where, cells["path"] or "", source.label_of(cells), *part(f"{where} of {source}", cells)))
    for row in rows:
        if not row.path:
            raise SourceError(f"{row.where} of {source} has no path.")
        if not is_unicode("".join(filter(None, row.label or ()))):
            raise SourceError(f"{row.where} of {source} has a label that is not UTF-8: save the list as UTF-8.")
    if not all(is_unicode(row.path) for row in rows):
        source.notes.append(f"paths in {source} are not UTF-8: files are looked for by the same bytes.")
    if is_video(rows[0].path) or os.path.isfile(join(source.root, rows[0].path)):
        return rows
    if source.layout == "ssv2" or posixpath.basename(source.place).startswith("something-something-v1-"):
        source.take_classes("something-something-v1-labels.csv")
    return locate(source, rows)
