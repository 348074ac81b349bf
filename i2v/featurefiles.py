"""Features are written into a folder: which they are, a part of the videos at a time. feature_folder.py reads them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np

from i2v.atomic import write_whole
from i2v.distributed import World, all_agree
from i2v.feature_folder import ABOUT, FILE_NAMES, TABLE, UNREADABLE, read_about, read_table

PART = 16  # videos that are written together, and that an interruption costs at most


def claim(out: Path, how: dict, world: World) -> None:
    """Raises ValueError, on all ranks, if the folder holds features that were made otherwise; "model" is only a name."""
    path, how, fine = out / ABOUT, json.loads(json.dumps(how)), True
    if world.is_main:
        found = read_about(path)
        fine = not found or found | {"model": how["model"]} == how
    if not all_agree(fine):
        raise ValueError(f"{out} holds features that were made otherwise (see {path}): choose a new folder.")
    if world.is_main:
        write_whole(path, (json.dumps(how, indent=1) + "\n").encode())


def part_name(part: int) -> str:
    return f"part-{part:06d}.csv"


def videos_of(part: int, shards) -> range:
    return range(part * PART, min((part + 1) * PART, len(shards)))


def write_part(out: Path, form: str, shards, part: int, found: dict) -> None:
    """The features of some videos, then the list of them, which says that they are complete."""
    lines, members = [], []
    for clip in videos_of(part, shards):
        key = shards.key(clip)
        if clip not in found:
            lines.append([key, "", "", UNREADABLE])
        else:
            facts = shards.metadata(clip)
            pieces = [{"": made[""], "times": times} | made for made, times in found[clip]]
            arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
            lines.append([key, facts["source"], facts["class"] or "", len(arrays[""])])
            members += [(".".join(filter(None, (key, name, "npy"))), npy(array)) for name, array in arrays.items()]
            if form == "shards":
                members.append((f"{key}.json", json.dumps(facts).encode()))
    if form == "shards":
        members = [(f"features-{part:06d}.tar", tar(members))]
    for name, data in members:
        write_whole(out / name, data)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_whole(out / part_name(part), text.getvalue().encode(*FILE_NAMES))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def join_parts(out: Path, parts: range) -> list[str]:
    """TABLE of all parts. Returns the keys of the videos that could not be read."""
    rows = [row for part in parts for row in read_table(out / part_name(part))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["key", "source", "class", "rows"], *rows])
    write_whole(out / TABLE, text.getvalue().encode(*FILE_NAMES))
    return [row[0] for row in rows if row[3] == UNREADABLE]
