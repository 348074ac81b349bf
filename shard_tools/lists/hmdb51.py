"""HMDB51: a folder of {class}_test_split1.txt; in a line a video and 1 for training, 2 for testing, 0 for neither."""

import re

from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.paths import SourceError, join, read_text


def fits(source: Source) -> bool:
    return any(re.search(r"_test_split\d\.txt$", name) for name in source.files)


def read(source: Source) -> list[Row]:
    kind, number = source.one_of_three_splits()
    wanted, suffix = {"train": "1", "test": "2"}[kind], f"_test_split{number}.txt"
    source.classes = [name.removesuffix(suffix) for name in source.files if name.endswith(suffix)]
    source.require_class_folders(source.classes)
    rows = []
    for name in source.classes:
        place = join(source.place, name + suffix)
        for number, line in enumerate(read_text(place).splitlines(), 1):
            cells = line.rsplit(maxsplit=1)
            if cells and (len(cells) != 2 or cells[1] not in ("0", "1", "2")):
                raise SourceError(f"row {number} of {place} is not a file name and 0, 1 or 2.")
            if cells and cells[1] == wanted:
                rows.append(Row(f"row {number} of {name}{suffix}", f"{name}/{cells[0]}", name))
    if not rows:
        raise SourceError(f"{source} holds no *{suffix} with {kind} videos.")
    return rows
