"""What is wrong with a data set: its manifest and index, every byte of its shards, and its clips when they are played."""

from __future__ import annotations

import csv
import io
import json
import mmap
import os
import tarfile
import zlib
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from i2v.pipelines.index import (
    BLOCK,
    CLIP,
    FRAGMENT,
    LabelSets,
    clip_size,
    impossible_records,
    index_file,
    is_intact,
    name_of,
    padded,
    parse_manifest,
    parse_records,
    times_are_possible,
)
from i2v.pipelines.store import ShardError

CHUNK = 1 << 26  # bytes read at once where no clip is
JSON_ROOM = 1 << 16  # bytes, more than any clip's json takes
RESTORE_INDEX = "restore manifest.json and the .npy files from a copy, or run make_shards again"


@dataclass(frozen=True)
class Problem:
    """What is wrong with a clip (with a shard or an index file as a whole: clip is None), and what to do."""

    what: str
    remedy: str
    clip: int | None = None  # its number in the data set
    shard: str = ""
    key: str = ""
    source: dict = field(default_factory=dict)  # path, start, end, class of the source video, as clips.csv has them


@dataclass(frozen=True)
class Shard:
    """A tar file, and what the manifest and the index say of it."""

    path: str
    bytes: int
    crc32: int | None
    classes: list[str]
    label_sets: LabelSets | None
    ids: list[int]  # numbers of its clips, without those whose record is impossible
    keys: list[str]
    clips: np.ndarray  # (n,) CLIP
    fragments: np.ndarray  # (m,) FRAGMENT
    base: int  # where fragments[0] is in fragments.npy

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def fragments_of(self, i: int) -> np.ndarray:
        first = int(self.clips["first_fragment"][i]) - self.base
        return self.fragments[first : first + int(self.clips["frames"][i])]

    def size_of(self, i: int) -> int:
        """Bytes of the i-th mp4, as the index says."""
        return clip_size(self.clips[i], self.fragments_of(i))


# ---- the index -------------------------------------------------------------------------------------------------------


def read_manifest(path: Path) -> tuple[dict, list[Problem]]:
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({error.strerror}): restore it, or run make_shards again.") from error
    if is_intact(manifest):
        return manifest, []
    return manifest, [Problem("manifest.json is damaged or was edited (checksum differs)", RESTORE_INDEX)]


def read_index(root: Path, manifest: dict) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """The clips, the fragments and what is wrong with them; both are empty if either file cannot be used."""
    problems, tables = [], []
    for kind, dtype, count in (("clips", CLIP, manifest["clips"]), ("fragments", FRAGMENT, manifest["frames"])):
        name, crc32 = index_file(manifest, kind)
        try:
            with open(root / name, "rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if crc32 not in (None, zlib.crc32(data)):
                problems.append(Problem(f"{name} is damaged (checksum differs)", RESTORE_INDEX))
            tables.append(parse_records(data, dtype, count, name))
        except (OSError, ValueError, ShardError) as error:
            problems.append(Problem(f"{name} cannot be used: {error}", RESTORE_INDEX))
    if len(tables) < 2:
        return np.zeros(0, CLIP), np.zeros(0, FRAGMENT), problems
    impossible = [
        Problem(f"its {what} in the index is impossible", RESTORE_INDEX, clip)
        for clip, what in impossible_records(tables[0], manifest)
    ]
    return *tables, problems + impossible


def read_sources(root: Path, keys: list[str], clips: np.ndarray, manifest: dict) -> tuple[dict, list[Problem]]:
    """Key -> row of clips.csv, and whether they agree with the index."""
    remedy = "restore clips.csv from a copy; training does not read it"
    try:
        with open(root / "clips.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = {row["key"]: row for row in csv.DictReader(file) if row.get("key")}
    except OSError as error:
        return {}, [Problem(f"clips.csv cannot be read ({error.strerror})", remedy)]
    classes, label_sets = manifest["classes"], manifest.get("label_sets")
    known = classes if label_sets is None else label_sets
    names = {label: name_of(label, classes, label_sets) for label in range(-1, len(known))}
    labels = zip(keys, clips["label"].tolist())
    differ = [key for key, label in labels if key not in rows or rows[key]["class"] != names.get(label, rows[key]["class"])]
    if not differ:
        return rows, []
    what = f"clips.csv does not have the same classes as the index for {len(differ)} clips, such as {differ[0]}"
    return rows, [Problem(what, remedy)]


def list_shards(root: Path, manifest: dict, clips, fragments, keys: list[str], impossible: set) -> list[Shard]:
    shards, first = [], 0
    for shard in manifest["shards"]:
        ids = [clip for clip in range(first, min(first + shard["clips"], len(clips))) if clip not in impossible]
        mine = clips[ids]
        base = int(mine["first_fragment"].min()) if ids else 0
        stop = int((mine["first_fragment"] + mine["frames"]).max()) if ids else 0
        facts = (str(root / shard["name"]), shard["bytes"], shard.get("crc32"), manifest["classes"], manifest.get("label_sets"))
        shards.append(Shard(*facts, ids, [keys[clip] for clip in ids], mine, fragments[base:stop], base))
        first += shard["clips"]
    return shards


# ---- the bytes -------------------------------------------------------------------------------------------------------


def check_shard(shard: Shard) -> tuple[list[Problem], int]:
    """Read a shard once, from end to end. Returns what is wrong with it, and its bytes."""
    restore = f"restore {shard.name} from a copy, or make these clips again (--bad FILE lists them)"
    found, crc = [], 0

    def report(what: str, i: int | None) -> None:
        found.append(Problem(what, restore, None if i is None else shard.ids[i], shard.name))

    try:
        file = open(shard.path, "rb", buffering=0)
    except OSError as error:
        for i in range(len(shard.ids)) or [None]:
            report(f"the shard cannot be opened ({error.strerror})", i)
        return found, shard.bytes
    with file:
        size = os.fstat(file.fileno()).st_size
        if size != shard.bytes:
            report(f"the shard has {size} bytes, the manifest says {shard.bytes}", None)
        starts = {offset - BLOCK: i for i, offset in enumerate(shard.clips["offset"].tolist())}
        for begin, end in pairwise(sorted({0, size, *range(0, size, CHUNK), *(start for start in starts if start < size)})):
            i = starts.get(begin)
            room = 0 if i is None else BLOCK + shard.size_of(i) + JSON_ROOM
            try:
                data = _read(file, begin, max(end - begin, min(room, size - begin)))
            except OSError as error:
                report(f"bytes {begin} to {end} of the shard cannot be read ({error.strerror})", i)
                continue
            crc = zlib.crc32(data[: end - begin], crc)
            if i is not None and (wrong := check_clip(data, shard, i)):
                report("; ".join(wrong), i)
        for start, i in starts.items():
            if start >= size:
                report("the shard ends before it", i)
    if crc == shard.crc32:  # the shard is as it was written
        found = [replace(problem, remedy=RESTORE_INDEX) for problem in found]
    elif not found and shard.crc32 is not None:
        remedy = f"training can use it; restore {shard.name} from a copy for programs that read the whole tar"
        found = [Problem("its crc32 differs, but every clip in it is as it was written", remedy, None, shard.name)]
    return found, shard.bytes


def check_clip(data: memoryview, shard: Shard, i: int) -> list[str]:
    """What is wrong with the i-th clip of a shard; data: from the mp4's tar header on."""
    clip, fragments, size, key = shard.clips[i], shard.fragments_of(i), shard.size_of(i), shard.keys[i]
    wrong = _check_member(data[:BLOCK], f"{key}.mp4", size)
    mp4 = data[BLOCK : BLOCK + size]
    if len(mp4) < size:
        return [*wrong, "the shard ends in the middle of it"]
    ends = int(clip["header_size"]) + np.cumsum(fragments["size"], dtype=np.int64)
    bounds, crcs = [0, int(clip["header_size"]), *ends.tolist()], [int(clip["header_crc"]), *fragments["crc"].tolist()]
    damaged = [n for n, (begin, end) in enumerate(pairwise(bounds)) if zlib.crc32(mp4[begin:end]) != crcs[n]]
    if damaged:
        where = ", ".join(f"frame {n - 1}" if n else "the header" for n in damaged[:3])
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        wrong.append(f"damaged (checksum differs): {where}{more}")
    if not times_are_possible(fragments["time"]):
        wrong.append("the times of its frames in the index are not 0 and then ever later")
    label = int(clip["label"])
    said = shard.label_sets[label] if shard.label_sets is not None and label >= 0 else label
    expected = {name: clip[name] for name in ("frames", "width", "height")} | {"label": said}
    return wrong + _check_json(
        data[BLOCK + padded(size) :], key, expected, name_of(label, shard.classes, shard.label_sets) if label >= 0 else None
    )


def _check_json(data: memoryview, key: str, expected: dict, class_name: str | None) -> list[str]:
    """What is wrong with a clip's json; data: from its tar header on."""
    if wrong := _check_member(data[:BLOCK], f"{key}.json"):
        return wrong
    try:
        facts = json.loads(bytes(data[BLOCK : BLOCK + int(bytes(data[124:135]), 8)]))
        differ = [name for name in ("label", "frames", "width", "height") if facts[name] != expected[name]]
    except (ValueError, KeyError, TypeError):
        return ["its json is damaged"]
    if not differ and class_name is not None and facts.get("class") != class_name:
        return [f"its json says class {facts.get('class')!r}, the manifest {class_name!r}"]
    return [f"its json says {name} {facts[name]}, the index {expected[name]}" for name in differ]


def _check_member(header: memoryview, name: str, size: int | None = None) -> list[str]:
    try:
        info = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return [f"there is no tar header of {name} where it should be"]
    if info.name != name:
        return [f"the tar has {info.name} where {name} should be"]
    return [f"the tar says {info.size} bytes, the index {size}"] if size not in (None, info.size) else []


def _read(file, begin: int, length: int) -> memoryview:
    data, done = memoryview(np.empty(length, np.uint8)), 0
    while done < length:
        got = os.preadv(file.fileno(), [data[done:]], begin + done)
        if got == 0:
            raise OSError(0, f"it ends at byte {begin + done}")
        done += got
    return data


# ---- decoding --------------------------------------------------------------------------------------------------------


def draw_clips(shards: list[Shard], problems: list[Problem], count: int | None, manifest: dict) -> list[tuple]:
    """Tasks for decode_clip, one for each clip drawn; bad ones are left out. count: None for all."""
    bad = {problem.clip for problem in problems}
    sound = [(shard, i) for shard in shards for i, clip in enumerate(shard.ids) if clip not in bad]
    if count is not None and count < len(sound):
        sound = [sound[i] for i in sorted(np.random.default_rng(0).choice(len(sound), count, replace=False))]
    how = (manifest["codec"], manifest["gop"])
    return [(shard.path, shard.ids[i], shard.clips[i], shard.size_of(i), *how) for shard, i in sound]


def decode_clip(path: str, clip_id: int, clip: np.void, size: int, codec: str, gop: int) -> tuple[list[Problem], int]:
    """Decode a clip of `size` bytes from end to end. Returns problems, and 1 for one clip."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = _read(file, int(clip["offset"]), size)
        what = decode(data, clip, codec, gop)
    except OSError as error:  # it could be read a moment ago
        what = f"it cannot be read any more ({error.strerror})"
    remedy = "make these clips again (--bad FILE lists them): they are as they were written, but do not play"
    return [Problem(what, remedy, clip_id, os.path.basename(path))] if what else [], 1


def decode(data: bytes, clip, codec: str, gop: int) -> str | None:
    """What goes wrong when a clip is played from end to end; None: nothing."""
    packets = frames = 0
    try:
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            if stream.codec_context.codec.canonical_name != codec:
                return f"it is {stream.codec_context.codec.canonical_name}, the manifest says {codec}"
            for packet in container.demux(stream):
                if packet.size and packet.is_keyframe != (packets % gop == 0):
                    negation = "" if packet.is_keyframe else " not"
                    return f"frame {packets} is{negation} a keyframe, one every {gop} is expected"
                packets += packet.size > 0
                for frame in packet.decode():
                    if (frame.width, frame.height) != (clip["width"], clip["height"]):
                        said = f"the index says {clip['width']}x{clip['height']}"
                        return f"frame {frames} is {frame.width}x{frame.height}, {said}"
                    frames += 1
    except (av.FFmpegError, ValueError, IndexError) as error:
        return f"decoding stops after {frames} frames ({' '.join(str(error).split())})"
    return None if frames == clip["frames"] else f"it decodes to {frames} frames, the index says {clip['frames']}"
