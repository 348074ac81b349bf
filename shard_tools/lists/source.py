"""What every layout reads, a source, whose contents are read when they are asked for; and what it becomes, rows."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from i2v.pipelines.index import Factors
from i2v.shard_tools.lists.classes import read_class_list
from i2v.shard_tools.lists.tables import FACTOR, Line, Named, about_unused, factor_columns, named, read_lines
from i2v.shard_tools.paths import SourceError, entries, exists, is_folder, join, parent, read_text


class Row(NamedTuple):
    """One listed video."""

    where: str  # where in the source a reader would look: "row 3"
    path: str  # as seen from the table's root
    # a name, or an integer as text; of a list with factors one of each
    label: str | tuple[str | None, ...] | None = None
    start: float = 0.0  # seconds
    end: float | None = None
    offset: int = 0  # bytes
    size: int | None = None
    listed: str | None = None  # where the path is not what was listed: the id, or tar/member


class Source:
    """A folder or file that lists videos, and what is found out about it beside them."""

    def __init__(self, place: str, root: str | None, layout: str, split: str | None, factors: Sequence[str] = ()):
        self.place, self.given_root, self.layout, self.split = place, root, layout, split
        self.is_folder = is_folder(place)
        self.is_json = not self.is_folder and place.lower().endswith(".json")
        self.files, self.folders = entries(place) if self.is_folder else ([], [])  # their names, sorted
        beside = place if self.is_folder else parent(place)
        self.root = beside if root is None else root  # where the videos are
        self.classes: list[str] | Factors | None = None  # names and order as the data set itself gives them
        self.factors: dict[str, list[str] | None] = dict.fromkeys(factors)  # likewise, of each factor; {}: it has none
        self.several = False  # whether a video has several classes, as its layout has them
        self.parts_may_repeat = False  # whether the ids of two videos may stand for the same part of a file
        self.about_classes = ""  # where these come from, as a sentence; for who gives no class list
        self.notes: list[str] = []  # what else the user should know, as sentences

    def __str__(self) -> str:
        return self.place

    @cached_property
    def lines(self) -> list[Line]:
        """The rows of a text list, its header among them; at least one."""
        if self.is_json and self.records:
            raise SourceError(f"{self} is JSON, which layout {self.layout} is not: choose ssv2 or diving48.")
        return self._not_empty(read_lines(self.place, read_text(self.place, "surrogateescape"), self.root, self.notes))

    @property
    def first(self) -> list[str]:
        """The cells of a text list's first row, by which layouts are recognised; JSON has none."""
        return [] if self.is_json else self.lines[0][1]

    @cached_property
    def records(self) -> list[dict]:
        """The videos of a JSON list; at least one."""
        self.refuse_split()
        data = read_json(self.place)
        if isinstance(data, list) and data and all(isinstance(video, dict) for video in data):
            return data
        ours = isinstance(data, dict) and "shards" in data
        what = "a manifest, whose folder is what to give" if ours else "no list of videos"
        raise SourceError(f"{self} is {what}: JSON lists are those of Something-Something V2 and of Diving48.")

    def below_header(self, columns: dict[str, int]) -> list[Named]:
        """The rows of a text list with a header; of one split, where it has such a column and one is asked for."""
        (_, header), *lines = self.lines
        if self.factors:
            columns = columns | factor_columns(self.place, header, self.factors)
        self.notes += about_unused(self.place, header, columns)
        if "split" not in columns:
            self.refuse_split()
        rows = named(self._not_empty(lines), columns)
        counts = Counter(cells.get("split") or "" for _, cells in rows)
        told = ", ".join(f"{name or 'none'} {count:,}" for name, count in sorted(counts.items())[:10])
        if self.split is None:
            if len(counts) > 1:
                self.notes.append(f"all splits of {self} are taken ({told}): name one as the split to take only that.")
            return rows
        if self.split not in counts:
            raise SourceError(f"{self} has no split {self.split!r}: it has {told}.")
        return [(where, cells) for where, cells in rows if (cells["split"] or "") == self.split]

    def label_of(self, cells: dict[str, str | None]) -> str | tuple[str | None, ...] | None:
        """The label in a row of below_header: with factors one of each."""
        if not self.factors:
            return cells.get("label")
        return tuple(cells.get(FACTOR + name) for name in self.factors)

    def take_classes(self, *names: str) -> None:
        """The data set's own class names, from the first of these files that is beside the list."""
        found = next((path for name in names if exists(path := join(parent(self.place), name))), None)
        self.about_classes = f"{names[0]} is not beside {self}: classes are the labels that occur in it, sorted."
        if found is not None:
            self.classes, self.about_classes = read_class_list(found)

    def one_of_three_splits(self) -> tuple[str, int]:
        match = re.fullmatch(r"(train|test)([123])", self.split or "")
        if match is None:
            given = f", not {self.split!r}" if self.split else ""
            raise SourceError(f"{self} has three splits: choose train1, test1, ... test3 as the split{given}.")
        return match[1], int(match[2])

    def refuse_split(self, place: str | None = None) -> None:
        if self.split is not None:
            raise SourceError(f"{place or self.place} has no splits to choose {self.split!r} from: leave the split out.")

    def require_class_folders(self, classes: list[str]) -> None:
        if classes and not any(is_folder(join(self.root, name)) for name in classes):
            raise SourceError(f"{self.root or '.'} holds no folder {classes[0]}: give the folder of class folders as the root.")

    def _not_empty(self, lines: list[Line]) -> list[Line]:
        if not lines:
            raise SourceError(f"{self} has no rows: one video per row, path,label.")
        return lines


def read_json(place: str):
    text = read_text(place)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place} is not JSON ({error}): copy it again.") from error
