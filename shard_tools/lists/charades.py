"""Charades: Charades_v1_train.csv and _test.csv; a video's actions, c092 11.90 21.20;c147 0.00 12.60, are its classes.

Videos are {id}.mp4, and taken whole; the names of the 157 classes are in Charades_v1_classes.txt beside the list.
"""

from i2v.pipelines.index import SEVERAL
from i2v.shard_tools.lists.ids import locate
from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.lists.tables import named
from i2v.shard_tools.paths import SourceError, exists, join, parent, read_text

NAMES, CLASSES = "Charades_v1_classes.txt", 157
COLUMNS = ("id", "actions", "length")


def fits(source: Source) -> bool:
    return set(COLUMNS) <= set(source.first)


def read(source: Source) -> list[Row]:
    source.refuse_split()
    (_, header), *lines = source.lines
    missing = [name for name in COLUMNS if name not in header]
    if missing or not lines:
        raise SourceError(f"{source} has no {missing[0] if missing else 'rows'}, as lists of Charades have.")
    names, rows = _names(source), []
    for where, cells in named(lines, {name: header.index(name) for name in COLUMNS}):
        if not cells["id"]:
            raise SourceError(f"{where} of {source} has no id.")
        codes = [action.split()[0] for action in (cells["actions"] or "").split(";") if action.strip()]
        unknown = next((code for code in codes if code not in names), None)
        if unknown is not None:
            raise SourceError(
                f"{where} of {source} has the action {unknown!r}, which is no class: they are {min(names)} and on."
            )
        label = SEVERAL.join(dict.fromkeys(names[code] for code in codes))
        rows.append(Row(where, cells["id"], label or None))
    source.classes, source.several = list(names.values()), True
    return locate(source, rows)


def _names(source: Source) -> dict[str, str]:
    """Code -> name, in the order of the codes."""
    path = join(parent(source.place), NAMES)
    if not exists(path):
        source.about_classes = f"{NAMES} is not beside {source}: classes are called by their codes."
        return {code: code for code in (f"c{number:03d}" for number in range(CLASSES))}
    lines = [line.split(maxsplit=1) for line in read_text(path).splitlines() if line.strip()]
    if not all(len(line) == 2 for line in lines):
        raise SourceError(f"{path} has a line that is not a code and a name, as c000 Holding some clothes: copy it again.")
    source.about_classes = f"class names are those of {path}: {len(lines)}, by their codes."
    return dict(sorted((code, name.strip()) for code, name in lines))
