"""Class names from a file, in whatever form it has them, and what it was taken for."""

from __future__ import annotations

import csv
import json
import os
import re
from itertools import takewhile
from typing import NamedTuple

from i2v.shard_tools.paths import SourceError, exists, is_folder, is_video, join, read_text

FORMS = (
    "one name per line, numbered lines as classInd.txt has, a CSV file with a header as index,name, shards or their "
    "manifest.json, or JSON: a list of names, {name: index}, {index: name} or a list of {id, name}"
)
ABOUT = ("", "class", "label", "category", "target", "action", "activity", "verb", "noun")
AMBIGUOUS = {"class", "label", "category", "target"}  # columns of this name hold names or indices
INDEX_WORDS = {about + word for about in ABOUT for word in ("id", "idx", "index", "number", "num", "no")} | AMBIGUOUS | {""}
NAME_WORDS = {about + word for about in ABOUT for word in ("name", "names", "key", "text")} | AMBIGUOUS
NAME_WORDS |= {"action", "activity", "verb", "noun", "template", "displayname"}
ONE_COLUMN = {"name", "names", "class", "classes", "classname", "classnames", "label", "labels", "labelname", "labelnames"}
WRAPPERS = ("classes", "categories", "names", "labels", "class_names")  # keys of a JSON object that hold the list
NUMBER = r'"?(?P<number>-?[0-9]{1,18})(?:\.0*)?"?'
SEPARATOR = r"(?P<separator>\s*[,;:|=)]\s*|\s+-\s+|\s+)"
NUMBER_FIRST = re.compile(rf"{NUMBER}(?:{SEPARATOR}(?P<name>.*))?")
NAME_FIRST = re.compile(rf"(?P<name>.+?){SEPARATOR}{NUMBER}")
OR_NAMES = "if the numbers belong to the names, give the names as a JSON list"

Found = tuple[list[str], str]  # names in order, and how they were understood
Lines = list[tuple[str, str]]  # "line 3", and what it holds
Rows = list[tuple[str, list[str]]]  # "line 3" or "entry 3", and its cells


class ClassList(NamedTuple):
    """Class names, and how their file was understood."""

    names: list[str]  # in order: a class's label is its place
    note: str  # a sentence to print


class _Numbered(NamedTuple):
    where: str  # where in the file a reader would look: "line 3"
    number: int
    name: str


def read_class_list(path: str | os.PathLike) -> ClassList:
    """Class names in order, from a file in any of FORMS, in UTF-8 or UTF-16 with a mark, or from shards' folder.

    Numbers beside the names decide the order, not the file; they begin at 0 or 1 and none is left out. Names of a
    manifest.json are taken as they are; others lose the white space around them. Raises SourceError.
    """
    path = os.fspath(path)
    if is_folder(path):
        folder, path = path, join(path, "manifest.json")
        if not exists(path):
            raise SourceError(f"{folder} is a folder without a manifest.json: give shards, or a file of class names.")
    text = read_text(path, utf16=True).replace("\ufeff", "")  # files that were joined have a mark inside
    is_json = path.lower().endswith(".json") or re.match(r'\s*[\[{]\s*(["\'\[{]|[0-9]+\s*:)', text)
    try:
        names, how = _from_json(text) if is_json else _from_text(text)
        if not names:
            raise ValueError("it is empty, without any class name")
        if not all(names):
            raise ValueError(f"class {names.index('')} (from 0) has no name")
        _refuse_repeats(names)
    except (ValueError, csv.Error) as error:
        raise SourceError(f"the class list {path} cannot be used: {error}.") from error
    return ClassList(names, f"class names are those of {path}: {len(names):,} {'names' if len(names) > 1 else 'name'}, {how}.")


def _refuse_repeats(names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {twice!r} more than once")


# ---- numbers decide


def _in_order(rows: list[_Numbered]) -> Found:
    """Names in the order of their numbers. Raises ValueError, which names what is amiss."""
    seen = {}
    for row in rows:
        if row.number in seen:
            raise ValueError(f"{seen[row.number]} and {row.where} both have the number {row.number}; {OR_NAMES}")
        seen[row.number] = row.where
    first = 0 if 0 in seen else 1
    wanted = range(first, first + len(rows))
    beyond = next((row for row in rows if row.number not in wanted), None)
    if beyond is not None:
        lacking = next(number for number in wanted if number not in seen)
        raise ValueError(
            f"{beyond.where} has the number {beyond.number}, but no name has {lacking}: numbers begin at 0 or 1 "
            f"and leave none out; {OR_NAMES}"
        )
    but = " (labels that are integers count from 0 all the same)" if first else ""
    return [row.name for row in sorted(rows, key=lambda row: row.number)], f"numbered from {first}{but}"


def _choose(readings: list[list[_Numbered]]) -> Found:
    """The names by whichever column holds the numbers, of one or two readings. Raises ValueError."""
    found, faults = [], []
    for rows in readings:
        try:
            found.append(_in_order(rows))
        except ValueError as error:
            faults.append(error)
    if not found:
        raise faults[0]
    if len(found) > 1 and found[0] != found[1] and all(_is_number(row.name) for row in readings[0]):
        raise ValueError("either of its two numbers may be the index: name the columns in a first line, as index,name")
    return found[0]


def _is_number(text: str) -> bool:
    return re.fullmatch(NUMBER, text) is not None


# ---- lines


def _from_text(text: str) -> Found:
    lines = [(f"line {number}", line.strip()) for number, line in enumerate(re.split(r"\r\n?|\n", text), 1)]
    lines = [(where, line) for where, line in lines if line]
    comments = sum(1 for _ in takewhile(lambda line: line[1].startswith("#"), lines))
    lines = lines[comments:]
    if not lines:
        return [], ""
    names, how = _from_table(lines) or _from_numbered(lines) or _from_header(lines) or _from_names(lines)
    for name in names:
        if "\t" in name:
            raise ValueError(f"{name!r} has a tab: name the columns in a first line, as index,name")
        if is_video(name):
            raise ValueError(f"{name!r} is a video's name: give a list of classes, not of videos")
    return names, how + (f"; lines of comments at the top: {comments}" if comments else "")


def _from_numbered(lines: Lines) -> Found | None:
    """Names of numbered lines, number or name first; None: a line has no number, or the numbers belong to the names."""
    readings = []
    for pattern in (NUMBER_FIRST, NAME_FIRST):
        matches = [pattern.fullmatch(line) for _, line in lines]
        if not all(matches) or not any(match["name"] for match in matches):
            continue
        nameless = next((where for (where, _), match in zip(lines, matches) if not match["name"]), None)
        if nameless is not None:
            raise ValueError(f"{nameless} has a number and no name")
        pairs = zip(lines, matches)
        rows = [_Numbered(where, int(match["number"]), _unquoted(match["name"])) for (where, _), match in pairs]
        if not _only_spaces(matches):
            _refuse_more_columns(lines)
        elif _are_names(rows):
            continue
        readings.append(rows)
    return _choose(readings) if readings else None


def _are_names(rows: list[_Numbered]) -> bool:
    """Whether numbers that only a space sets apart are parts of names: class 1, class 2; 100 metres; a car's 2012."""
    numbers = {row.number for row in rows}
    return len(rows) > 1 and (len({row.name for row in rows}) == 1 or len(numbers) < len(rows) and min(numbers) > 1)


def _only_spaces(matches: list[re.Match]) -> bool:
    return all(match["separator"].isspace() and "\t" not in match["separator"] for match in matches)


def _refuse_more_columns(lines: Lines) -> None:
    for delimiter in ",;|":
        counts = {len(cells) for _, cells in _split(lines, delimiter)}
        if len(lines) > 1 and len(counts) == 1 and max(counts) > 2:
            raise ValueError(
                f"it has {max(counts)} columns and no header: name them in a first line, as index,name, or put "
                "names in quotes that hold what separates columns"
            )


def _from_header(lines: Lines) -> Found | None:
    """Names of lines below one that is a header: name, or id name."""
    (where, first), *rest = lines
    about = f"; {where}, {first!r}, is its header"
    words = [_word(cell) for cell in re.split(r"[\s,;:|=]+", first.rstrip(":"))]
    if set(words) <= INDEX_WORDS | NAME_WORDS | ONE_COLUMN and (numbered := _from_numbered(rest)):
        return numbered[0], numbered[1] + about
    alone = _word(first.rstrip(":"))
    if alone in ONE_COLUMN or alone in INDEX_WORDS and all(_is_number(line) for _, line in rest):
        return [_unquoted(line) for _, line in rest], "in the order of its lines" + about
    return None


def _from_names(lines: Lines) -> Found:
    """Names of lines that hold nothing else. Raises ValueError where they do: taken as names, they would be wrong ones."""
    for pattern in (NUMBER_FIRST, NAME_FIRST):
        matches = [match if (match := pattern.fullmatch(line)) and match["name"] else None for _, line in lines]
        found = [match for match in matches if match]
        numbers, columns = [int(match["number"]) for match in found], not _only_spaces(found)
        counting = len(set(numbers)) == len(numbers) and all(0 <= number <= len(lines) for number in numbers)
        many = len(numbers) > max(1 if columns else 2, len(lines) / 2)
        if counting and many and (columns or pattern is NUMBER_FIRST):
            without = next(where for (where, _), match in zip(lines, matches) if match is None)
            raise ValueError(
                f"{without} has no number, but {len(numbers)} of {len(lines)} lines are numbered: number all "
                f"lines or none; {OR_NAMES}"
            )
    first = lines[0][1]
    if len(lines) == 1 and re.search("[,;]", first) and not first.startswith('"'):
        raise ValueError(f"its only line is {first!r:.80}: write one name per line, and below the header if that is one")
    return [_unquoted(line) for _, line in lines], "in the order of its lines"


def _word(cell: str) -> str:
    """A header's word as INDEX_WORDS and NAME_WORDS have it: "Class ID" is classid."""
    return re.sub(r'[\s_"-]', "", cell).lower()


def _unquoted(text: str) -> str:
    """A name without the quotes around it, as CSV files and Kinetics' names have some."""
    match = re.fullmatch(r'"((?:[^"]|"")*)"', text.strip())
    return (match[1].replace('""', '"') if match else text).strip()


# ---- columns


def _split(lines: Lines, delimiter: str) -> Rows:
    reading = {"delimiter": delimiter, "skipinitialspace": True}
    return [(where, [cell.strip() for cell in next(csv.reader([line], **reading))]) for where, line in lines]


def _from_table(lines: Lines) -> Found | None:
    """Names of a table whose first line names its columns; None: there is no such line."""
    for delimiter in "\t,;|":
        header, *rows = _split(lines, delimiter)
        words = [_word(cell) for cell in header[1]]
        named = {word for word in words if word in NAME_WORDS}
        regular = all(len(cells) == len(words) for _, cells in rows)
        indexed = any(word in INDEX_WORDS - named or word in AMBIGUOUS and len(named) > 1 for word in words)
        if len(words) > 1 and rows and (named and (indexed or regular) or indexed and regular and len(words) == 2):
            return _of_columns(header[1], rows)
    return None


def _of_columns(header: list[str], rows: Rows) -> Found:
    """Names of rows with named columns. Raises ValueError."""
    words = [_word(cell) for cell in header]
    for where, cells in rows:
        if len(cells) != len(words):
            raise ValueError(f"{where} has {len(cells)} columns, but the header {len(words)}: put names with a comma in quotes")
    index = _index_column(header, words, rows)
    of_names = [i for i, word in enumerate(words) if word in NAME_WORDS and i != index]
    of_names.sort(key=lambda i: words[i] in AMBIGUOUS)
    if not of_names and len(words) == 2 and index is not None:
        of_names = [1 - index]
    if not of_names:
        raise ValueError("none of its columns is called name")
    column = of_names[0]

    def ordered_by(index: int) -> Found:
        return _in_order([_Numbered(where, int(float(cells[index])), cells[column]) for where, cells in rows])

    names, how = [cells[column] for _, cells in rows], "in the order of its rows"
    if index is not None:
        names, how = ordered_by(index)
        how = f"in the order of column {header[index]!r}, {how}"
    for other, title in enumerate(header):
        if other == column or not _has_numbers(rows, other):
            continue
        try:
            others, _ = ordered_by(other)
        except ValueError:  # its numbers count something else
            continue
        if others != names:
            raise ValueError(f"column {title!r} numbers the names in another order: keep only the columns index and name")
    return names, f"column {header[column]!r} {how}"


def _index_column(header: list[str], words: list[str], rows: Rows) -> int | None:
    sure = next((i for i, word in enumerate(words) if word in INDEX_WORDS - AMBIGUOUS), None)
    if sure is not None:
        for where, cells in rows:
            if not _is_number(cells[sure]):
                raise ValueError(f"{where} has {cells[sure]!r} in column {header[sure]!r}, which must hold integers")
        return sure
    perhaps = [i for i, word in enumerate(words) if word in AMBIGUOUS and _has_numbers(rows, i)]
    if len(perhaps) > 1:
        raise ValueError("more than one of its columns may be the index: call the columns index and name")
    return perhaps[0] if perhaps and len(NAME_WORDS.intersection(words)) > 1 else None


def _has_numbers(rows: Rows, column: int) -> bool:
    return all(_is_number(cells[column]) for _, cells in rows)


# ---- JSON


def _from_json(text: str) -> Found:
    try:
        data = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    ours = isinstance(data, dict) and {"classes", "shards"} <= data.keys()
    while isinstance(data, dict):
        inner = next((data[key] for key in WRAPPERS if isinstance(data.get(key), (list, dict))), None)
        if inner is None:
            return _from_object(data)
        data = inner
    if isinstance(data, list) and data and all(isinstance(each, dict) for each in data):
        header, rows = list(data[0]), []
        for number, each in enumerate(data, 1):
            rows.append((f"entry {number}", ["" if each.get(key) is None else str(each[key]).strip() for key in header]))
        return _of_columns(header, rows)
    names = [" ".join(each) if _is_words(each) else each for each in data] if isinstance(data, list) else [None]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"it is none of these: {FORMS}")
    return [name if ours else name.strip() for name in names], "in listed order"


def _is_words(data) -> bool:
    """Diving48's names are lists of four words."""
    return isinstance(data, list) and all(isinstance(word, str) for word in data)


def _from_object(data: dict) -> Found:
    """{name: index} or {index: name}."""
    readings = []
    if all(_is_index(value) for value in data.values()):
        readings.append([_Numbered(repr(name), int(float(value)), _unquoted(name)) for name, value in data.items()])
    if all(_is_number(key) and isinstance(value, str) for key, value in data.items()):
        readings.append([_Numbered(repr(key), int(float(key)), value.strip()) for key, value in data.items()])
    if not data or not readings:
        raise ValueError(f"it is none of these: {FORMS}")
    return _choose(readings)


def _is_index(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, str) and _is_number(value)


def _without_repeats(pairs: list[tuple]) -> dict:
    _refuse_repeats([key for key, _ in pairs])
    return dict(pairs)
