"""WebDataset tars of videos: which members are videos, and which hold their labels.

As WebDataset has it, members are one sample if their names agree up to the first dot of the base name, the key; folders
belong to the key. What follows is the extension: b.x.mp4 is x.mp4 of b, and may be labelled by b.x.cls, b.x.mp4.json,
b.cls or b.info.json.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections import defaultdict
from typing import NamedTuple

from i2v.shard_tools.paths import SourceError, by_suffix, is_hidden, is_video, join, open_binary, reading
from i2v.shard_tools.rows import Row

LABEL_FORMS = ("cls", "class", "label", "target", "json", "jsn", "txt", "text")  # of several, the first counts
LABEL_FIELDS = ("class", "class_name", "label", "cls")  # of JSON
SURELY_LABELS = {"cls", "class", "label", "target", "json", "jsn"}  # whatever form they are in: label.npy, json.gz
OF_ANY_VIDEO = {"info", "meta", "metadata", "annotation", "annotations", "label", "labels", "class", "cls", "target"}
LARGEST_LABEL, LARGEST_JSON = 2**16, 2**24  # bytes of a member


class Label(NamedTuple):
    """A member that may hold the label of a sample."""

    member: str
    parts: list[str]  # of its extension, in lower case: info.json -> info, json
    text: str | None = None  # None: it holds other things
    fault: str | None = None  # why it cannot be read


def expand(name: str) -> list[str]:
    """videos-{000..010}.tar -> its eleven names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if match is None:
        return [name]
    low, high, width = int(match[1]), int(match[2]), len(match[1])
    if high < low:
        raise SourceError(f"the range of {name} ends before it starts.")
    names = [f"{name[: match.start()]}{number:0{width}d}{name[match.end() :]}" for number in range(low, high + 1)]
    return [expanded for each in names for expanded in expand(each)]


def read_tars(folder: str, tars: list[str]) -> tuple[list[Row], list[str]]:
    """The videos of tars, and sentences on what is left out. Only headers and labels are read. Raises SourceError."""
    rows, links, others, notes = [], [], [], []
    for tar in tars:
        rows += _read_tar(folder, tar, links, others)
    if links:
        notes.append(
            f"{len(links):,} videos in tars of {folder or '.'} are links to other members and are left out; the "
            f"first is {links[0]}."
        )
    if rows and others and all(row.label is None for row in rows):
        notes.append(
            f"the tars of {folder or '.'} hold no labels (members .cls, .label or .txt, or .json with a field "
            f"{', '.join(LABEL_FIELDS)}), so their videos have none; not used are {by_suffix(others)}."
        )
    return rows, notes


def _read_tar(folder: str, tar: str, links: list[str], others: list[str]) -> list[Row]:
    """The videos of one tar. links, others: get the videos that are links, and the members that tell nothing."""
    place, rows, labels = join(folder, tar), [], defaultdict(list)
    try:
        with reading(place), open_binary(place) as file, tarfile.open(fileobj=file, mode="r:") as members:
            while (member := members.next()) is not None:
                name = member.name
                if is_hidden(name) or member.isdir():
                    pass
                elif is_video(name) and member.isfile():
                    rows.append(Row(f"{tar}/{name}", tar, None, 0.0, None, member.offset_data, member.size, name))
                elif is_video(name):
                    links.append(f"{tar}/{name}")
                elif member.isfile() and (label := _label(members, member)) is not None:
                    labels[_split(name)[0]].append(label)
                    others += [name] if label.text is None else []
                else:
                    others.append(name)
                members.members.clear()  # what tarfile would remember of every member
    except tarfile.TarError as error:
        raise SourceError(f"{place} is not a whole, uncompressed tar ({error}): unpack or copy it again.") from error
    return _labelled(place, rows, labels)


def _split(member: str) -> tuple[str, list[str]]:
    """Key and parts of the extension: d/b.x.mp4 -> d/b and x, mp4."""
    folder, base = posixpath.split(posixpath.normpath(member))
    stem, *parts = base.split(".")
    return posixpath.join(folder, stem), [part.lower() for part in parts]


def _labelled(place: str, rows: list[Row], labels: dict[str, list[Label]]) -> list[Row]:
    """Rows with their labels. Raises SourceError for a label that cannot be read, or be told whose it is."""
    videos, found = defaultdict(list), []  # videos: key -> extensions
    for row in rows:
        key, parts = _split(row.member)
        videos[key].append(parts)
    for row in rows:
        key, parts = _split(row.member)
        own = _own(labels.get(key, []), parts, len(videos[key]) == 1)
        chosen = next((label for label in own if label.text is not None or label.fault), None)
        if chosen and chosen.fault:
            raise SourceError(
                f"member {chosen.member} of {place}, the label of {row.member}, {chosen.fault}: write it as a "
                ".cls member that holds one name or integer."
            )
        if chosen is None:
            _refuse_strays(place, row.member, labels.get(key, []), videos[key])
        found.append(row if chosen is None else row._replace(label=chosen.text))
    return found


def _own(labels: list[Label], video: list[str], alone: bool) -> list[Label]:
    """Of a sample's labels those that are meant for a video of it (alone: its only one), the first of them first."""
    own = []
    for label in labels:
        shared = _shared(label.parts, video)
        specific = min(shared, len(video) - 1)
        any_word = alone and specific == len(video) - 1 and label.parts[-1] not in ("txt", "text")  # captions are text
        if any_word or OF_ANY_VIDEO.issuperset(label.parts[shared:-1]):
            form = LABEL_FORMS.index(label.parts[-1]) if label.parts[-1] in LABEL_FORMS else 0
            own.append(((-specific, form, -shared), label))
    return [label for _, label in sorted(own, key=lambda pair: pair[0])]


def _refuse_strays(place: str, video: str, labels: list[Label], videos: list[list[str]]) -> None:
    """Labels of the sample of a video without one, if they are no other video's either."""
    for label in labels:
        told = label.fault or label.text is not None and label.parts[-1] not in ("txt", "text")
        if told and not any(_own([label], each, len(videos) == 1) for each in videos):
            raise SourceError(
                f"member {label.member} of {place} agrees with {video} up to the first dot only, so it cannot "
                "be told whether it is its label: name them alike, as b.x.mp4 and b.x.cls."
            )


def _shared(label: list[str], video: list[str]) -> int:
    """How many parts of the extensions agree, from the left."""
    return next((i for i, (one, other) in enumerate(zip(label, video)) if one != other), min(len(label), len(video)))


def _label(members: tarfile.TarFile, member: tarfile.TarInfo) -> Label | None:
    """What a member says; None if it is no label by its name."""
    parts = _split(member.name)[1]
    if not parts or parts[-1] not in LABEL_FORMS:
        form = next((part for part in parts if part in SURELY_LABELS), None)
        return form and Label(member.name, parts, fault=f"is in a form that is not read ({parts[-1]})")
    json_form = parts[-1] in ("json", "jsn")
    if member.size > (LARGEST_JSON if json_form else LARGEST_LABEL):
        return Label(member.name, parts, fault=f"is too long for a label ({member.size:,} bytes)")
    try:
        text = members.extractfile(member).read().decode("utf-8-sig").strip()
        text = _of_json(json.loads(text)) if json_form else text
    except TypeError as error:
        return Label(member.name, parts, fault=f"has {error}")
    except (ValueError, RecursionError) as error:
        what = "JSON" if json_form else "text in UTF-8"
        return Label(member.name, parts, fault=f"is not {what} ({str(error) or type(error).__name__})")
    if text == "":
        return Label(member.name, parts, fault="is empty")
    return Label(member.name, parts, text)


def _of_json(record) -> str | None:
    """The label in a record: a name rather than an index. Raises TypeError if it is neither."""
    values = [record.get(field) for field in LABEL_FIELDS] if isinstance(record, dict) else [record]
    values = [value for value in values if value is not None and value != "" and not isinstance(value, bool)]
    names = [value for value in values if isinstance(value, str)]
    numbers = [str(value) for value in values if isinstance(value, (int, float))]
    if values and not names + numbers:
        raise TypeError(f"the label {json.dumps(values[0])[:60]}, which is neither a name nor an integer")
    return (names + numbers or [None])[0]
