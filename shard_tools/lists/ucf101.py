"""UCF101: trainlist01.txt and testlist01.txt, one of them or their folder; a video's class is its folder."""

import re

from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.lists.tables import is_integer
from i2v.shard_tools.paths import SourceError, join

UCF101_PATH = re.compile(r"[^/\s]+/v_[^/\s]+_g\d+_c\d+\.\w+")


def fits(source: Source) -> bool:
    if source.is_folder:
        return "trainlist01.txt" in source.files
    path, *others = source.first or [""]
    return UCF101_PATH.fullmatch(path) is not None and (not others or len(others) == 1 and is_integer(others[0]))


def read(source: Source) -> list[Row]:
    if source.is_folder:
        kind, number = source.one_of_three_splits()
        source.place, source.split = join(source.place, f"{kind}list{number:02d}.txt"), None
    lines, rows, folders = source.lines, [], {}
    source.refuse_split()
    for where, cells in lines:
        path, number = (*cells, None)[:2]
        name, separator, _ = path.partition("/")
        if not separator:
            raise SourceError(f"{where} of {source} is not Class/video.avi, so it has no class: use another layout.")
        if number is not None and folders.setdefault(number, name) != name:
            raise SourceError(
                f"{where} of {source} gives {name} the number of {folders[number]}, {number}: choose "
                "layout list if the numbers are classes of your own."
            )
        rows.append(Row(where, path, name))
    source.require_class_folders(sorted({row.label for row in rows}))
    source.take_classes("classInd.txt")
    return rows
