"""What the labels of a listing mean: which can be meant at all, how a map renames them, and which class each of them is."""

import csv
import difflib
import os
import re
import unicodedata
from collections import Counter

from i2v.shard_tools.lists.source import Row
from i2v.shard_tools.lists.tables import is_integer
from i2v.shard_tools.paths import SourceError, read_text

MOST_CLASSES = 1_000_000
NO_LABELS = {"nan", "none", "null", "n/a", "na", "<na>", "#n/a"}  # as programs write them, in lower case
SEVERAL_LABELS = re.compile(  # a list, a|b, a;b, numbers, lines
    r"^\[[^\[\]]*\]$|^\{.*\}$|^\(.*,.*\)$|\||[^;\s];[^;\s]|^\d+(\.0*)?([\s;,&+/]+\d+(\.0*)?)+$|\n"
)


def readable(rows: list[Row], names: set[str], source: str, notes: list[str]) -> list[Row]:
    """Rows with labels that can be meant, all or none of them: integers may be written as 0.0; what is not in `names` must look
    like one name."""
    told = {row.label for row in rows if row.label is not None} - names
    floats = [label for label in told if "." in label]
    if floats and all(re.fullmatch(r"-?\d+(\.0*)?", label) for label in told):
        notes.append(f"labels of {source} are written as {min(floats)}: they are read as integers.")
        rows, told = [row._replace(label=row.label.partition(".")[0]) if row.label in told else row for row in rows], set()
    for row in (row for row in rows if row.label in told):
        what = ""
        if SEVERAL_LABELS.search(row.label):
            what = "looks like several, but a video has one: choose one, or give --multi-label"
        if row.label.lower() in NO_LABELS:
            what = "stands for none: give it a label or leave the video out"
        if what:
            raise SourceError(
                f"{row.where} of {source} has the label {row.label!r}, which {what} (or name it in --classes if it is a class)."
            )
    for row in rows:
        if (row.label is None) != (rows[0].label is None):
            lacking, other = (row, rows[0]) if row.label is None else (rows[0], row)
            raise SourceError(f"{lacking.where} of {source} has no label but {other.where} has: label all videos or none.")
    return rows


def refuse_alike(names: list[str], source: str) -> None:
    """Two classes whose names look the same are one by mistake: `run` and `run `, 1 and 1.0, an accent written in two ways."""
    seen = {}
    for name in names:
        plain = " ".join(unicodedata.normalize("NFC", name).split())
        plain = re.sub(r"^(-?\d+)\.0*$", r"\1", plain)
        if seen.setdefault(plain, name) != name:
            raise SourceError(
                f"{seen[plain]!r} and {name!r} are two classes of {source} that look the same: write both alike, or, if they "
                "are two, name all classes with --classes."
            )


def read_map(path: str | os.PathLike) -> dict[str, str]:
    """Rows of from,to: the new name of every class that changes; "" leaves its videos out. Raises SourceError."""
    path, renamed = os.fspath(path), {}
    reader = csv.reader(read_text(path).splitlines())
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells) or reader.line_num == 1 and [cell.lower() for cell in cells] == ["from", "to"]:
                continue
            if len(cells) != 2 or not cells[0]:
                raise SourceError(f"row {reader.line_num} of {path} is not from,to: two columns, quoted if they need.")
            if cells[0] in renamed:
                raise SourceError(f"row {reader.line_num} of {path} renames {cells[0]!r} a second time: remove one.")
            renamed[cells[0]] = cells[1]
    except csv.Error as error:
        raise SourceError(f"{path} is not a CSV file of from,to rows: {error}.") from error
    if not renamed:
        raise SourceError(f"{path} has no rows: one class per row, from,to.")
    return renamed


def rename(rows: list[Row], own: list[str] | None, renamed: dict[str, str], source: str, map, notes: list[str], what: str):
    """Rows and names after the map; what: a row stands for, as people call several of it."""
    if rows[0].label is None:
        raise SourceError(f"the videos of {source} have no labels, so the map {map} cannot rename any: leave it out.")
    unknown = sorted(renamed.keys() - {row.label for row in rows} - set(own or ()))
    if unknown:
        near = difflib.get_close_matches(unknown[0], sorted({row.label for row in rows}), 1)
        notes.append(f"{some(unknown)} of {map} occur nowhere in {source}" + (f" (it has {near[0]!r})." if near else "."))
    kept = [row._replace(label=renamed.get(row.label, row.label)) for row in rows if renamed.get(row.label) != ""]
    if not kept:
        raise SourceError(f"the map {map} leaves out all {what} of {source}: give other classes a name.")
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept):,} of {len(rows):,} {what} are left out, as the map {map} says.")
    if own is not None:
        own = [name for name in dict.fromkeys(renamed.get(name, name) for name in own) if name]
    return kept, own


def names_that_occur(rows: list[Row], source: str) -> list[str]:
    """The labels, sorted; of integers "0" to the largest."""
    if rows[0].label is None:
        return []
    if not all(is_integer(row.label) for row in rows):
        return sorted({row.label for row in rows})
    negative = next((row for row in rows if int(row.label) < 0), None)
    if negative:
        raise SourceError(
            f"{negative.where} of {source}: label {negative.label} is out of range, they begin at 0: leave "
            "the video out if it has no label."
        )
    count = max(int(row.label) for row in rows) + 1
    if count > MOST_CLASSES:
        raise SourceError(f"{source} has label {count - 1}: labels are class indices from 0, not identifiers.")
    return [str(index) for index in range(count)]


def indices(rows: list[Row], names: list[str], source: str, where: object) -> list[int]:
    """Label of every row as an index into the names; -1: not labelled. All labels are names, or all are indices."""
    if rows[0].label is None:
        return [-1] * len(rows)
    index = {name: i for i, name in enumerate(names)}
    unknown = next((row for row in rows if row.label not in index), None)
    if unknown is None:
        return [index[row.label] for row in rows]
    if not all(is_integer(row.label) for row in rows):
        (near,) = difflib.get_close_matches(unknown.label, names, 1, 0) or names[:1]
        raise SourceError(
            f"{unknown.where} of {source}: {unknown.label!r} is not in the class list {where}; the nearest name is {near!r}."
        )
    beyond = [row for row in rows if not 0 <= int(row.label) < len(names)]
    if beyond:
        row = next((row for row in beyond if row.label not in index), beyond[0])
        raise SourceError(
            f"{row.where} of {source}: label {row.label} is out of range, there are {len(names)} classes"
            f" in {where} (0 to {len(names) - 1})."
        )
    return [int(row.label) for row in rows]


def remarks(labels: list[int], names: list[str], what: str = "classes") -> list[str]:
    """What is odd about the classes."""
    counts = Counter(labels)
    if -1 in counts:
        return []
    notes, absent = [], [name for i, name in enumerate(names) if not counts[i]]
    if absent:
        notes.append(f"{some(absent)} of {len(names):,} {what} occur in no video.")
    if len(labels) >= 20 and len(counts) > len(labels) / 2:
        notes.append(f"{len(counts):,} {what} for {len(labels):,} videos: are these labels, or captions?")
    return notes


def some(names: list[str]) -> str:
    """3 ('a', 'b', 'c')."""
    told = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names):,} ({told})"
