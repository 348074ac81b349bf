"""Features in a folder: which they are, a part of the videos at a time, and all of them again."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from i2v.atomic import replacing
from i2v.distributed import World, all_agree

PART = 16  # videos that are written together, and that an interruption costs at most
FILE_NAMES = ("utf-8", "surrogateescape")  # in tables, as in clips.csv: what is not UTF-8 in a name is kept, byte by byte
UNREADABLE = "unreadable"


def claim(out: Path, how: dict, world: World) -> None:
    """Raises ValueError, on all ranks, if the folder holds features that were made otherwise; "model" is only a name."""
    path, how, fine = out / "features.json", json.loads(json.dumps(how)), True
    if world.is_main:
        fine = not path.exists() or json.loads(path.read_text()) | {"model": how["model"]} == how
    if not all_agree(fine):
        raise ValueError(f"{out} holds features that were made otherwise (see {path}): choose a new folder.")
    if world.is_main:
        write_whole(path, (json.dumps(how, indent=1) + "\n").encode())


def format_of(out: Path) -> str:
    """In which of the two formats a folder's features are, or would be if there were any."""
    path = out / "features.json"
    return json.loads(path.read_text())["format"] if path.exists() else "npy"


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


def write_whole(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def join_parts(out: Path, parts: range) -> list[str]:
    """features.csv of all parts. Returns the keys of the videos that could not be read."""
    rows = [row for part in parts for row in read_table(out / part_name(part))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["key", "source", "class", "rows"], *rows])
    write_whole(out / "features.csv", text.getvalue().encode(*FILE_NAMES))
    return [row[0] for row in rows if row[3] == UNREADABLE]


def read_table(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding=FILE_NAMES[0], errors=FILE_NAMES[1]) as file:
        return list(csv.reader(file))


def read_features(out: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of a finished folder: (n,) the numbers of the videos that could be read, in the order of the data set, and
    (n, rows, D) float32 their features. All must have as many rows, as they have without windows."""
    table, parts = read_table(out / "features.csv")[1:], sorted(out.glob("features-*.tar"))
    ids = np.array([i for i, row in enumerate(table) if row[3] != UNREADABLE], dtype=np.int64)
    if not len(ids):
        raise ValueError(f"{out} has features of no video, as none could be read: see {out / 'features.csv'}.")
    arrays = arrays_of(parts) if parts else (np.load(out / f"{table[i][0]}.npy") for i in ids)
    return ids, np.stack(list(arrays))


def arrays_of(parts: list[Path]) -> Iterator[np.ndarray]:
    """Each video's features in tars, in order."""
    for part in parts:
        with tarfile.open(part) as archive:
            for member in archive:
                if member.name.endswith(".npy") and not re.search(r"\.(times|scores\.\w+)\.npy$", member.name):
                    yield np.load(io.BytesIO(archive.extractfile(member).read()))
