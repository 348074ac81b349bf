"""What every layout of a data set becomes: rows of path and label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One listed video."""

    where: str  # where in the source a reader would look: "row 3"
    path: str  # as seen from the table's root
    label: str | None = None  # a name, or an integer as text
    start: float = 0.0  # seconds
    end: float | None = None
    offset: int = 0  # bytes
    size: int | None = None
    member: str | None = None  # name in the tar
    listed: str | None = None  # the id, where the path is that of the video that it was found to be


class Table(NamedTuple):
    """What a source lists."""

    rows: list[Row]
    root: str
    classes: list[str] | None = None  # names and order as the data set itself gives them
    about_classes: str = ""  # where names and order come from, as a sentence; for who gives no class list
    notes: Sequence[str] = ()  # what else the user should know, as sentences
