"""JSON lists: train.json of Something-Something V2, and Diving48_V2_train.json, whose videos are cut already."""

import json
import re

from i2v.shard_tools.lists import plain
from i2v.shard_tools.lists.ids import locate
from i2v.shard_tools.lists.source import Row, Source
from i2v.shard_tools.paths import SourceError

IDS = {"ssv2": "id", "diving48": "vid_name"}
CLASSES = {"ssv2": ("something-something-v2-labels.json", "labels.json"), "diving48": ("Diving48_vocab.json",)}


def fits(source: Source) -> bool:
    return source.is_json


def read(source: Source) -> list[Row]:
    if not source.is_json:  # Something-Something V1
        return plain.read(source)
    layout = source.layout
    if layout == "auto":
        layout = "diving48" if "vid_name" in source.records[0] else "ssv2"
    rows = [_row(source, number, video, layout) for number, video in enumerate(source.records, 1)]
    source.take_classes(*CLASSES[layout])
    later = sum(bool(video.get("start_frame")) for video in source.records)
    if layout == "diving48" and later:
        source.notes.append(f"{later:,} videos of {source} have a start_frame that is not 0: they are taken whole.")
    return locate(source, rows)


def _row(source: Source, number: int, video: dict, layout: str) -> Row:
    where, name = f"entry {number}", video.get(IDS[layout])
    if not isinstance(name, (str, int)):
        raise SourceError(f"{where} of {source} has no {IDS[layout]}, as videos of {layout} have: correct the list.")
    label = video.get("template", video.get("label"))  # a template is the class without its brackets
    if not isinstance(label, (str, int, float, type(None))) or isinstance(label, bool):
        told = json.dumps(label)[:60]
        raise SourceError(f"{where} of {source} has the label {told}: a video has one, a name or an integer.")
    return Row(where, str(name), re.sub(r"[\[\]]", "", "" if label is None else str(label)).strip() or None)
