"""Class names from lines: columns named by a header, lines that are numbered, or lines that are nothing but names."""

import csv
import re
from itertools import takewhile

from i2v.shard_tools.paths import is_video

ABOUT = ("", "class", "label", "category", "target", "action", "activity", "verb", "noun")
AMBIGUOUS = {"class", "label", "category", "target"}  # columns of this name hold names or indices
INDEX_WORDS = {about + word for about in ABOUT for word in ("id", "idx", "index", "number", "num", "no")} | AMBIGUOUS | {""}
NAME_WORDS = {about + word for about in ABOUT for word in ("name", "names", "key", "text")} | AMBIGUOUS
NAME_WORDS |= {"action", "activity", "verb", "noun", "template", "displayname"}
NUMBER = r'"?(?P<number>-?[0-9]{1,18})(?:\.0*)?"?'
ONE_COLUMN = {"name", "names", "class", "classes", "classname", "classnames", "label", "labels", "labelname", "labelnames"}
SEPARATOR = r"(?P<separator>\s*[,;:|=)]\s*|\s+-\s+|\s+)"
NUMBER_FIRST = re.compile(rf"{NUMBER}(?:{SEPARATOR}(?P<name>.*))?")
NAME_FIRST = re.compile(rf"(?P<name>.+?){SEPARATOR}{NUMBER}")
OR_NAMES = "if the numbers belong to the names, give the names as a JSON list"

Found = tuple[list[str], str]  # names in order, and how they were understood
Lines = list[tuple[str, str]]  # "line 3", and what it holds
Rows = list[tuple[str, list[str]]]  # "line 3" or "entry 3", and its cells


# ---- lines


def from_text(text: str) -> Found:
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
    places, readings = [where for where, _ in lines], []
    for pattern in (NUMBER_FIRST, NAME_FIRST):
        matches = [pattern.fullmatch(line) for _, line in lines]
        if not all(matches) or not any(match["name"] for match in matches):
            continue
        nameless = next((where for where, match in zip(places, matches) if not match["name"]), None)
        if nameless is not None:
            raise ValueError(f"{nameless} has a number and no name")
        numbers, names = [int(match["number"]) for match in matches], [unquoted(match["name"]) for match in matches]
        if not _only_spaces(matches):
            _refuse_more_columns(lines)
        elif len(lines) > 1 and (len(set(names)) == 1 or len(set(numbers)) < len(lines) and min(numbers) > 1):
            continue  # numbers belong to the names: class 1, class 2; 100 metres; a car's 2012
        readings.append((numbers, names))
    return either_in_order(places, readings) if readings else None


def _only_spaces(matches: list[re.Match]) -> bool:
    return all(match["separator"].isspace() and "\t" not in match["separator"] for match in matches)


def _refuse_more_columns(lines: Lines) -> None:
    for delimiter in ",;|":
        counts = {len(_split(line, delimiter)) for _, line in lines}
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
    if alone in ONE_COLUMN or alone in INDEX_WORDS and are_numbers([line for _, line in rest]):
        return [unquoted(line) for _, line in rest], "in the order of its lines" + about
    return None


def _from_names(lines: Lines) -> Found:
    """Names of lines that hold nothing else. Raises ValueError where they do: taken as names, they would be wrong ones."""
    for pattern in (NUMBER_FIRST, NAME_FIRST):
        matches = [match if (match := pattern.fullmatch(line)) and match["name"] else None for _, line in lines]
        found = [match for match in matches if match]
        numbers, columns = [int(match["number"]) for match in found], not _only_spaces(found)
        counting = len(set(numbers)) == len(numbers) and all(0 <= number <= len(lines) for number in numbers)
        many = len(numbers) > max(1 if columns else 2, len(lines) / 2)
        if None in matches and counting and many and (columns or pattern is NUMBER_FIRST):
            without = next(where for (where, _), match in zip(lines, matches) if match is None)
            raise ValueError(
                f"{without} has no number, but {len(numbers)} of {len(lines)} lines are numbered: number all "
                f"lines or none; {OR_NAMES}"
            )
    first = lines[0][1]
    if len(lines) == 1 and re.search("[,;]", first) and not first.startswith('"'):
        raise ValueError(f"its only line is {first!r:.80}: write one name per line, and below the header if that is one")
    return [unquoted(line) for _, line in lines], "in the order of its lines"


def unquoted(text: str) -> str:
    """A name without the quotes around it, as CSV files and Kinetics' names have some."""
    match = re.fullmatch(r'"((?:[^"]|"")*)"', text.strip())
    return (match[1].replace('""', '"') if match else text).strip()


# ---- columns


def _from_table(lines: Lines) -> Found | None:
    """Names of a table whose first line names its columns; None: there is no such line."""
    for delimiter in "\t,;|":
        (_, header), *rows = ((where, _split(line, delimiter)) for where, line in lines)
        words = [_word(cell) for cell in header]
        named = NAME_WORDS.intersection(words)
        regular = all(len(cells) == len(words) for _, cells in rows)
        indexed = any(word in INDEX_WORDS - named or word in AMBIGUOUS and len(named) > 1 for word in words)
        if len(words) > 1 and rows and (named and (indexed or regular) or indexed and regular and len(words) == 2):
            return from_columns(header, rows)
    return None


def from_columns(header: list[str], rows: Rows) -> Found:
    """Names of rows with named columns. Raises ValueError."""
    for where, cells in rows:
        if len(cells) != len(header):
            raise ValueError(
                f"{where} has {len(cells)} columns, but the header {len(header)}: put names with a comma in quotes"
            )
    places, columns = [where for where, _ in rows], list(zip(*(cells for _, cells in rows)))
    words = [_word(title) for title in header]
    index = _index(header, words, rows, columns)
    of_names = [i for i, each in enumerate(words) if each in NAME_WORDS and i != index]
    of_names.sort(key=lambda i: words[i] in AMBIGUOUS)
    if not of_names and len(words) == 2 and index is not None:
        of_names = [1 - index]
    if not of_names:
        raise ValueError("none of its columns is called name")
    title, names, how = header[of_names[0]], columns[of_names[0]], "in the order of its rows"
    ordered = list(names)
    if index is not None:
        ordered, how = _in_order(places, integers(columns[index]), names)
        how = f"in the order of column {header[index]!r}, {how}"
    for i, column in enumerate(columns):
        if i == of_names[0] or not are_numbers(column):
            continue
        try:
            others, _ = _in_order(places, integers(column), names)
        except ValueError:  # its numbers count something else
            continue
        if others != ordered:
            raise ValueError(f"column {header[i]!r} numbers the names in another order: keep only the columns index and name")
    return ordered, f"column {title!r} {how}"


def _index(header: list[str], words: list[str], rows: Rows, columns: list[tuple[str, ...]]) -> int | None:
    """The column of numbers that the names are ordered by."""
    sure = next((i for i, each in enumerate(words) if each in INDEX_WORDS - AMBIGUOUS), None)
    if sure is not None:
        for where, cells in rows:
            if not are_numbers([cells[sure]]):
                raise ValueError(f"{where} has {cells[sure]!r} in column {header[sure]!r}, which must hold integers")
        return sure
    perhaps = [i for i, each in enumerate(words) if each in AMBIGUOUS and are_numbers(columns[i])]
    if len(perhaps) > 1:
        raise ValueError("more than one of its columns may be the index: call the columns index and name")
    return perhaps[0] if perhaps and len(NAME_WORDS.intersection(words)) > 1 else None


# ---- numbers decide


def _in_order(places: list[str], numbers: list[int], names: list[str]) -> Found:
    """Names in the order of their numbers. Raises ValueError, which names the place of what is amiss."""
    seen = {}
    for place, number in zip(places, numbers):
        if number in seen:
            raise ValueError(f"{seen[number]} and {place} both have the number {number}; {OR_NAMES}")
        seen[number] = place
    first = 0 if 0 in seen else 1
    wanted = range(first, first + len(seen))
    beyond = next((number for number in numbers if number not in wanted), None)
    if beyond is not None:
        lacking = next(number for number in wanted if number not in seen)
        raise ValueError(
            f"{seen[beyond]} has the number {beyond}, but no name has {lacking}: numbers begin at 0 or 1 "
            f"and leave none out; {OR_NAMES}"
        )
    but = " (labels that are integers count from 0 all the same)" if first else ""
    return [name for _, name in sorted(zip(numbers, names))], f"numbered from {first}{but}"


def either_in_order(places: list[str], readings: list[tuple[list[int], list[str]]]) -> Found:
    """The names by whichever column holds the numbers, of one or two readings. Raises ValueError."""
    found, faults = [], []
    for numbers, names in readings:
        try:
            found.append(_in_order(places, numbers, names))
        except ValueError as error:
            faults.append(error)
    if not found:
        raise faults[0]
    if len(found) > 1 and found[0] != found[1] and are_numbers(readings[0][1]):
        raise ValueError("either of its two numbers may be the index: name the columns in a first line, as index,name")
    return found[0]


def are_numbers(cells: list[str]) -> bool:
    return all(re.fullmatch(NUMBER, cell) for cell in cells)


def integers(cells: list[str]) -> list[int]:
    return [int(str(cell).strip('"').partition(".")[0]) for cell in cells]


def _split(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _word(cell: str) -> str:
    """A header's word as INDEX_WORDS and NAME_WORDS have it: "Class ID" is classid."""
    return re.sub(r'[\s_"-]', "", cell).lower()
