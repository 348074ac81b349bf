"""Labels that are several classes at once: `run|jump`, `3;17`, `[3, 17]`; an empty one is none of the classes."""

import re

from i2v.shard_tools.lists.source import Row
from i2v.shard_tools.paths import SourceError

SEPARATORS = "|;,"  # the surest first
ENCLOSED = re.compile(r"\[.*\]|\(.*\)|\{.*\}", re.DOTALL)


def one_class_each(rows: list[Row], known: set[str], source: str, notes: list[str]) -> list[Row]:
    """A row for every class of every row. known: names of classes; what stands in one of them separates nothing.

    Raises SourceError if no row has a class.
    """
    separator = _separator([row.label or "" for row in rows], known)
    told = {None: "one each", " ": "separated by spaces"}.get(separator, f"separated by {separator!r}")
    parts = [_split(row.label or "", separator, known) for row in rows]
    found = [row._replace(label=label) for row, labels in zip(rows, parts) for label in labels]
    if not found:
        raise SourceError(f"{source} has no labels, so its videos cannot have several classes: leave --multi-label out.")
    classes, without = len(found) / len(rows), sum(not labels for labels in parts)
    notes.append(
        f"labels of {source} are several classes, {told}: {classes:.2f} a video"
        + (f"; {without:,} have none of them." if without else ".")
    )
    return found


def together(rows: list[Row], found: list[Row], labels: list[int]) -> list[tuple[int, ...]]:
    """The classes of every row, ascending, given the labels of the rows that one_class_each found."""
    of_rows = {row.where: set() for row in rows}
    for row, label in zip(found, labels):
        of_rows[row.where].add(label)
    return [tuple(sorted(of_rows[row.where])) for row in rows]


def _separator(cells: list[str], known: set[str]) -> str | None:
    if all(re.fullmatch(r"[\d\s]*", cell) for cell in cells):
        return " "
    used = [each for each in SEPARATORS if any(each in cell for cell in cells) and not any(each in name for name in known)]
    return used[0] if used else None


def _split(cell: str, separator: str | None, known: set[str]) -> list[str]:
    if cell in known:
        return [cell]
    inner, by = (cell[1:-1], ",") if ENCLOSED.fullmatch(cell) else (cell, separator)
    parts = inner.split(None if by == " " else by) if by else [inner]
    return [name for part in parts if (name := part.strip().strip("'\"").strip())]
