"""EPIC-KITCHENS-100: EPIC_100_train.csv, _validation.csv and _test_timestamps.csv; clips are parts of long videos, by time.

A row's id is its narration_id, by which the challenge knows it. Where there are files of that name, cut before, they are taken
whole; else the part of {video_id}.MP4. Verbs and nouns are numbered; their names are in files beside the list. The test list
has neither.
"""

from i2v.shard_tools.lists.classes import read_class_list
from i2v.shard_tools.lists.ids import Videos, tell_missing
from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.lists.tables import named, part, read_header
from i2v.shard_tools.paths import SourceError, exists, join, parent

SIZES = {"verb": 97, "noun": 300}
NAMES = {"verb": ["EPIC_100_verb_classes.csv"], "noun": ["EPIC_100_noun_classes.csv", "EPIC_100_noun_classes_v2.csv"]}
COLUMNS = ("narration_id", "video_id", "start_timestamp", "stop_timestamp")


def fits(source: Source) -> bool:
    """With verbs and nouns, or with neither; some cut a list of their own out of it, with a label."""
    named = {f"{factor}_class" in source.first for factor in SIZES}
    return set(COLUMNS) <= set(source.first) and len(named) == 1 and "label" not in read_header(source.first)


def read(source: Source) -> list[Row]:
    source.refuse_split()
    (_, header), *lines = source.lines
    missing = [name for name in COLUMNS if name not in header]
    if missing or not lines:
        raise SourceError(f"{source} has no {missing[0] if missing else 'rows'}, as lists of EPIC-KITCHENS-100 have.")
    if source.factors:
        raise SourceError(f"{source} has the factors verb and noun by its layout: leave {', '.join(source.factors)} out.")
    columns = {name: header.index(name) for name in ("narration_id", "video_id")} | read_header(header)
    classes = {factor: f"{factor}_class" for factor in SIZES if f"{factor}_class" in header}
    columns |= {factor: header.index(name) for factor, name in classes.items()}
    if len(classes) == len(SIZES):
        source.factors = {factor: _names(source, factor) for factor in SIZES}
    source.parts_may_repeat = True  # two things are done at once, or narrated together
    return _rows(source, named(lines, columns))


def _rows(source: Source, table: list) -> list[Row]:
    videos, rows, missing = Videos(source.root), [], []
    for where, cells in table:
        narration, video = cells["narration_id"], cells["video_id"]
        if not narration or not video:
            raise SourceError(f"{where} of {source} has no narration_id or no video_id.")
        label = tuple(cells[factor] for factor in source.factors) or None
        row, (start, end) = Row(where, narration, label, listed=narration), part(f"{where} of {source}", cells)
        path = videos.one(videos.named[narration], row)
        if path is None:
            path, row = videos.one(videos.named[video], row._replace(path=video)), row._replace(start=start, end=end)
        if path is None:
            missing.append(video)
        rows.append(row._replace(path=path or f"{video}.MP4"))
    tell_missing(source, missing, len(rows))
    return rows


def _names(source: Source, factor: str) -> list[str]:
    """From the file beside the list; of the later one, which has more, those that clips are labelled with."""
    found = next((path for name in NAMES[factor] if exists(path := join(parent(source.place), name))), None)
    if found is None:
        source.notes.append(f"{NAMES[factor][0]} is not beside {source}: classes of {factor} are called by their numbers.")
        return [str(number) for number in range(SIZES[factor])]
    names, note = read_class_list(found)
    source.notes.append(f"of {factor}, {note}")
    return names[: SIZES[factor]]
