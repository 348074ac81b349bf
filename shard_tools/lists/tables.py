"""A text list as a table: its cells, what its columns are called, the times in them."""

import csv
import io
import math
import os
import re
from collections.abc import Iterable

from i2v.shard_tools.paths import VIDEO_SUFFIXES, SourceError, is_video, join

COLUMNS = {  # what a column is -> how it may be called, the surest name first
    "path": "path video video_path filepath file_path filename file_name file".split(),
    "id": "id video_id youtube_id vid_name vid".split(),
    "label": (
        "label class class_name classname label_name target category label_id class_id label_idx class_idx label_index"
        " class_index category_id labels classes".split()
    ),
    "split": ["split", "subset"],
}
UNIT = r"(?:_?(?:time|timestamp|t|s|secs?|seconds?))*"
TIMES = {
    what: re.compile(rf"(?:(?:time|timestamp|t|secs?|seconds|segment|clip|video|action|event)_?)?(?:{names}){UNIT}")
    for what, names in {"start": "start|begin", "end": "end|stop|finish", "duration": "duration|dur|length"}.items()
}
OF_A_PART = re.compile(r"start|begin|end|stop|finish|until|onset|offset|duration|frame|time")  # in the name of a column
BEFORE_LABEL = re.compile(rf"(.+(?:{'|'.join(map(re.escape, sorted(VIDEO_SUFFIXES)))}))\s+(.+)", re.IGNORECASE)

FACTOR = "factor "  # before the name of a factor's column

Line = tuple[str, list[str]]  # "row 3", and its cells
Named = tuple[str, dict[str, str | None]]  # "row 3", and its cells by what they are; None: the cell is empty


def read_lines(source: str, text: str, root: str, notes: list[str]) -> list[Line]:
    """The rows of a list that are neither blank nor a comment. Raises SourceError where one has cells too few or too many.

    A line that begins with # is a comment, but for a path in `root` that does: HMDB51's files are named so.
    """
    lines, named = list(io.StringIO(text, newline="")), 0
    try:
        for i, line in enumerate(lines):
            if line.lstrip().startswith("#"):
                first = _cells([line])[0][1][0]
                if not os.path.isfile(join(root, first)):
                    lines[i] = "\n"
                    named += is_video(first)
        table = _cells(lines)
    except csv.Error as error:
        raise SourceError(f"{source} is not a text file of path,label rows: {error}.") from error
    if named:
        notes.append(
            f"lines of {source} that begin with # are skipped as comments, though {named:,} of them name a video: "
            "write ./# where a path begins so."
        )
    for where, cells in table:
        shorter, longer = sorted((cells, table[0][1]), key=len)
        if any(longer[len(shorter) :]):
            has, other = (f"{len(row)} cell{'s' if len(row) > 1 else ''}" for row in (cells, table[0][1]))
            raise SourceError(
                f"{where} of {source} has {has}, but the first row has {other}: correct the row, "
                "and put quotes around a cell that holds what separates cells."
            )
    return table


def _cells(lines: list[str]) -> list[Line]:
    delimiter = _delimiter(next((line for line in lines if line.strip()), "").strip())
    if delimiter == " ":
        return [(f"row {number}", _spaced(line.strip())) for number, line in enumerate(lines, 1) if line.strip()]
    reader = csv.reader(lines, delimiter=delimiter)
    rows = [(f"row {reader.line_num}", [cell.strip() for cell in cells]) for cells in reader]
    return [(where, cells) for where, cells in rows if any(cells)]


def _spaced(line: str) -> list[str]:
    """Paths and labels may hold spaces: a label follows a video's suffix, or is an integer (or the header's word)."""
    if line.startswith('"'):
        return next(csv.reader([line], delimiter=" ", skipinitialspace=True))
    cells, after_video = line.rsplit(maxsplit=1), BEFORE_LABEL.fullmatch(line)
    if len(cells) == 2 and cells[1].lower() in COLUMNS["label"]:
        return cells
    if len(cells) == 2 and is_integer(cells[1]) and (is_video(cells[0]) or not after_video):
        return cells
    return [line] if is_video(line) or not after_video else list(after_video.groups())


def _delimiter(first: str) -> str:
    """What separates the cells of a first row: what leaves a video's path or the header's word for one."""
    head, _, tail = first.rpartition(" ")
    if is_video(head) and is_integer(tail):
        return " "
    for character in "\t,;":
        cells = [cell.strip() for cell in next(csv.reader([first], delimiter=character), [])]
        if len(cells) > 1 and (is_video(cells[0]) or {_name(cell) for cell in cells} & {*COLUMNS["path"], *COLUMNS["id"]}):
            return character
    if is_video(first) or BEFORE_LABEL.fullmatch(first):
        return " "
    return next((character for character in "\t;," if character in first), " ")  # ids; V1's labels hold commas


def read_header(first: list[str]) -> dict[str, int]:
    """What is in which column, if the first row says so: path, id, label, split, start, and end or duration."""
    if any(map(is_video, first)):
        return {}
    header = [_name(cell) for cell in first]
    columns = {what: header.index(name) for what, names in COLUMNS.items() for name in reversed(names) if name in header}
    for what, pattern in TIMES.items():
        found = [i for i, name in enumerate(header) if pattern.fullmatch(name)]
        columns |= {what: found[0]} if found else {}
    if "end" in columns or "start" not in columns:
        columns.pop("duration", None)  # the video's own
    return columns


def factor_columns(source: str, header: list[str], factors: Iterable[str]) -> dict[str, int]:
    """The columns of the factors, by FACTOR and their names; the first is the label's, too. Raises SourceError."""
    named, found = [_name(cell) for cell in header], {}
    for factor in factors:
        if _name(factor) not in named:
            raise SourceError(f"{source} has no column {factor}, which is to be a factor: its columns are {', '.join(header)}.")
        found[FACTOR + factor] = named.index(_name(factor))
    return found | {"label": min(found.values())}


def are_parts(columns: dict[str, int]) -> bool:
    return "start" in columns and ("end" in columns or "duration" in columns)


def about_unused(source: str, header: list[str], columns: dict[str, int]) -> list[str]:
    """Sentences on the columns of a list that are not read."""
    unused = {cell or f"no. {i + 1}": _name(cell) for i, cell in enumerate(header) if i not in columns.values()}
    notes = []
    if unused:
        parts = not are_parts(columns) and any(map(OF_A_PART.search, unused.values()))
        notes.append(
            f"{source} has the columns {', '.join(unused)}, which are not used"
            + (": parts are start,end or start,duration in seconds." if parts else ".")
        )
        if "label" not in columns:
            notes.append(f"{source} has no column of labels, so its videos have none: call it label if one of these is it.")
    return notes


def _name(cell: str) -> str:
    """startTime, Start time, start-time [s] -> start_time, start_time, start_time_s."""
    return re.sub(r"[\W_]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cell)).strip("_").lower()


def named(lines: list[Line], columns: dict[str, int]) -> list[Named]:
    """Rows whose cells have the names of their columns."""
    return [
        (where, {what: (cells[i] if i < len(cells) else "") or None for what, i in columns.items()}) for where, cells in lines
    ]


def part(where: str, fields: dict[str, str | None]) -> tuple[float, float | None]:
    """Start and end of a row in seconds; empty cells mean the video's own. Raises SourceError."""
    name = "end" if "end" in fields else "duration"
    first, last = fields.get("start"), fields.get(name)
    start, end = _seconds(first or "0"), _seconds(last or "inf")
    if None not in (start, end) and name == "duration":
        end += start
    if None in (start, end) or not 0 <= start < end or last and math.isinf(end):
        wanted = "the start at least 0 and before the end" if name == "end" else "the duration more than 0"
        raise SourceError(f"{where}: start {first!r} and {name} {last!r} are not two times in seconds or h:m:s, {wanted}.")
    return start, end if last else None


def _seconds(text: str) -> float | None:
    try:
        *larger, seconds = text.split(":")
        return sum(int(part) * 60**power for power, part in enumerate(reversed(larger), 1)) + float(seconds)
    except (ValueError, OverflowError):
        return None


def is_unicode(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
