"""Class names: read from a file, and renamed or merged by a map."""

from __future__ import annotations

import csv
import json
import os
import re

from shard_tools.paths import SourceError, read_text

FORMS = (
    "one name per line, numbered lines as classInd.txt has, a CSV file with the columns id,name, a manifest.json, or "
    "the JSON file of names of Something-Something or Diving48"
)


def read_classes(path: str | os.PathLike) -> list[str]:
    """Class names in order, from any of FORMS. Raises SourceError."""
    path = os.fspath(path)
    text = read_text(path)
    try:
        names = _from_json(json.loads(text)) if path.lower().endswith(".json") else _from_lines(text)
        names = [name for name in names if name]
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise SourceError(f"the class list {path} is none of these: {FORMS}.") from error
    if not names:
        raise SourceError(f"the class list {path} is empty.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"the class list {path} names {twice!r} more than once.")
    return names


def read_map(path: str | os.PathLike) -> dict[str, str]:
    """Rows of from,to: the new name of every class that changes; "" leaves its videos out. Raises SourceError."""
    path = os.fspath(path)
    renamed = {}
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


def _from_json(data) -> list[str]:
    if isinstance(data, dict) and "classes" in data:  # manifest.json
        data = data["classes"]
    elif isinstance(data, dict):  # Something-Something: {name: index}
        data = _in_order([(int(index), name) for name, index in data.items()])
    if not isinstance(data, list):
        raise TypeError("no list")
    return [" ".join(name) if isinstance(name, list) else name + "" for name in data]  # Diving48: lists of four words


def _from_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    header = [cell.strip().lower() for cell in next(csv.reader(lines[:1]), [])]
    if sorted(header) == ["id", "name"]:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines[1:])]
        return _in_order([(int(row[header.index("id")]), row[header.index("name")]) for row in rows])
    numbered = [re.fullmatch(r"(\d+)[\s,]+(.+)", line) for line in lines]
    if lines and all(numbered):  # classInd.txt counts from 1
        numbers = sorted(int(match[1]) for match in numbered)
        if numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] in (0, 1):
            return [match[2] for match in sorted(numbered, key=lambda match: int(match[1]))]
    return lines


def _in_order(numbered: list[tuple[int, str]]) -> list[str]:
    if sorted(index for index, _ in numbered) != list(range(len(numbered))):
        raise ValueError("indices are not 0, 1, 2, ...")
    return [name for _, name in sorted(numbered)]
