"""WebDataset: tars with video members, in a folder, or one, or videos-{000..010}.tar; labels in .cls, .label, .json or .txt.

As WebDataset has it, members are one sample if their names agree up to the first dot of the base name, the key; folders
belong to the key. What follows is the extension: b.x.mp4 is x.mp4 of b, and may be labelled by b.x.cls, b.x.mp4.json,
b.cls or b.info.json.
"""

import json
import posixpath
import re
import tarfile
from collections import defaultdict
from typing import NamedTuple

from i2v.pipelines.index import SEVERAL
from i2v.shard_tools.lists.classes import read_class_list
from i2v.shard_tools.lists.source import Row, Source, read_json
from i2v.shard_tools.paths import SourceError, by_suffix, exists, is_hidden, is_video, join, open_binary, parent, reading

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

    @property
    def is_caption(self) -> bool:
        return self.parts[-1] in ("txt", "text")


def fits(source: Source) -> bool:
    if not source.is_folder:
        return re.search(r"\.(tar(\.\w+)?|tgz)$", source.place) is not None
    return any(name.endswith(".tar") for name in source.files) and not source.folders


def read(source: Source) -> list[Row]:
    if source.is_folder:
        folder, tars = source.place, [name for name in source.files if name.endswith(".tar")]
    else:
        folder, tars = parent(source.place), _expand(posixpath.basename(source.place))
    source.refuse_split(join(folder, tars[0]) if tars else folder)
    told = folder or "."
    if source.given_root is not None:
        raise SourceError(f"the videos are in the tar files of {told}: leave the root {source.given_root} out.")
    rows, links, others = [], [], []
    for tar in tars:
        rows += _read_tar(folder, tar, links, others)
    if not rows:
        raise SourceError(f"{told} holds no tar file with video members (mp4, webm, avi, mkv, ...).")
    if links:
        source.notes.append(
            f"{len(links):,} videos in tars of {told} are links to other members and are left out; the first is {links[0]}."
        )
    if others and all(row.label is None for row in rows):
        source.notes.append(
            f"the tars of {told} hold no labels (members .cls, .label or .txt, or .json with a field "
            f"{', '.join(LABEL_FIELDS)}), so their videos have none; not used are {by_suffix(others)}."
        )
    path = join(folder, "manifest.json")
    manifest = read_json(path) if exists(path) else None
    if isinstance(manifest, dict) and {"classes", "shards"} <= manifest.keys():  # one of ours
        source.several = "label_sets" in manifest
        rows = [row._replace(label=None) if row.label == "-1" else row for row in rows]  # so the format has "not labelled"
        if manifest["classes"]:
            source.classes, source.about_classes = read_class_list(path)
        source.notes.append(f"{told} holds shards made from videos before: encoding their clips again costs quality.")
    return rows


def _expand(name: str) -> list[str]:
    """videos-{000..010}.tar -> its eleven names."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if match is None:
        return [name]
    low, high, width = int(match[1]), int(match[2]), len(match[1])
    if high < low:
        raise SourceError(f"the range of {name} ends before it starts.")
    names = [f"{name[: match.start()]}{number:0{width}d}{name[match.end() :]}" for number in range(low, high + 1)]
    return [expanded for each in names for expanded in _expand(each)]


def _read_tar(folder: str, tar: str, links: list[str], others: list[str]) -> list[Row]:
    """The videos of one tar, of which only headers and labels are read.

    links, others: get the names of videos that are links, and of members that tell nothing.
    """
    place, found, labels, videos = join(folder, tar), [], defaultdict(list), defaultdict(list)  # of keys: labels, extensions
    try:
        with reading(place), open_binary(place) as file, tarfile.open(fileobj=file, mode="r:") as members:
            while (member := members.next()) is not None:
                where, label, (key, parts) = f"{tar}/{member.name}", None, _split(member.name)
                if is_hidden(member.name) or member.isdir():
                    pass
                elif is_video(member.name) and member.isfile():
                    found.append((member.name, Row(where, tar, None, 0.0, None, member.offset_data, member.size, where)))
                    videos[key].append(parts)
                elif is_video(member.name):
                    links.append(where)
                else:
                    if member.isfile() and (label := _label(members, member, parts)):
                        labels[key].append(label)
                    others += [] if label and label.text is not None else [member.name]
                members.members.clear()  # what tarfile would remember of every member
    except tarfile.TarError as error:
        raise SourceError(f"{place} is not a whole, uncompressed tar ({error}): unpack or copy it again.") from error
    return [row._replace(label=_label_of(place, name, labels, videos)) for name, row in found]


def _split(member: str) -> tuple[str, list[str]]:
    """Key and parts of the extension: d/b.x.mp4 -> d/b and x, mp4."""
    folder, base = posixpath.split(posixpath.normpath(member))
    stem, *parts = base.split(".")
    return posixpath.join(folder, stem), [part.lower() for part in parts]


def _label_of(place: str, video: str, labels: dict[str, list[Label]], videos: dict[str, list[list[str]]]) -> str | None:
    """The label of a video. Raises SourceError for one that cannot be read, or be told whose it is."""
    key, parts = _split(video)
    labels, videos = labels[key], videos[key]
    for label in _own(labels, parts, len(videos) == 1):
        if label.fault:
            raise SourceError(
                f"member {label.member} of {place}, the label of {video}, {label.fault}: write it as a "
                ".cls member that holds one name or integer."
            )
        if label.text is not None:
            return label.text
    for label in labels:
        told = label.fault or label.text is not None and not label.is_caption
        if told and not any(_own([label], each, len(videos) == 1) for each in videos):
            raise SourceError(
                f"member {label.member} of {place} agrees with {video} up to the first dot only, so it cannot "
                "be told whether it is its label: name them alike, as b.x.mp4 and b.x.cls."
            )
    return None


def _own(labels: list[Label], video: list[str], alone: bool) -> list[Label]:
    """Of a sample's labels those that are meant for a video of it (alone: its only one), the first of them first."""
    own = []
    for label in labels:
        shared = len(posixpath.commonprefix([label.parts, video]))  # parts that agree, from the left
        specific = min(shared, len(video) - 1)
        any_word = alone and specific == len(video) - 1 and not label.is_caption
        if any_word or OF_ANY_VIDEO.issuperset(label.parts[shared:-1]):
            form = LABEL_FORMS.index(label.parts[-1]) if label.parts[-1] in LABEL_FORMS else 0
            own.append(((-specific, form, -shared), label))
    return [label for _, label in sorted(own, key=lambda pair: pair[0])]


def _label(members: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str]) -> Label | None:
    """What a member says; None if it is no label by its name."""
    if not parts or parts[-1] not in LABEL_FORMS and not SURELY_LABELS.intersection(parts):
        return None
    try:
        return Label(member.name, parts, _text(members, member, parts[-1]))
    except ValueError as error:
        return Label(member.name, parts, fault=str(error))


def _text(members: tarfile.TarFile, member: tarfile.TarInfo, form: str) -> str | None:
    """The label in a member. Raises ValueError, which says why it cannot be read."""
    is_json = form in ("json", "jsn")
    if form not in LABEL_FORMS:
        raise ValueError(f"is in a form that is not read ({form})")
    if member.size > (LARGEST_JSON if is_json else LARGEST_LABEL):
        raise ValueError(f"is too long for a label ({member.size:,} bytes)")
    data = members.extractfile(member).read()
    try:
        text = data.decode("utf-8-sig").strip()
        record = json.loads(text) if is_json else None
    except (ValueError, RecursionError) as error:
        what = "JSON" if is_json else "text in UTF-8"
        raise ValueError(f"is not {what} ({str(error) or type(error).__name__})") from error
    if not is_json and not text:
        raise ValueError("is empty")
    return _of_json(record) if is_json else text


def _of_json(record) -> str | None:
    """The label in a record: a name rather than an index, or a list of either. Raises ValueError if it is none of them."""
    values = [record.get(field) for field in LABEL_FIELDS] if isinstance(record, dict) else [record]
    values = [value for value in values if value is not None and value != "" and not isinstance(value, bool)]
    names = [value for value in values if isinstance(value, str)]
    numbers = [str(value) for value in values if isinstance(value, (int, float))]
    several = [SEVERAL.join(map(str, value)) or "[]" for value in values if _is_labels(value)]
    if values and not names + numbers + several:
        raise ValueError(f"has the label {json.dumps(values[0])[:60]}, which is neither a name nor an integer")
    return (names + numbers + several or [None])[0]


def _is_labels(value) -> bool:
    return isinstance(value, list) and all(isinstance(each, (str, int)) and not isinstance(each, bool) for each in value)
