"""The shard format: what is in a data set's folder, and what must be true of it. Writer, reader and verify go by this file.

    manifest.json      what is in it, how it was encoded, class names, the list of shards
    clips.npy          one CLIP record per video
    fragments.npy      one FRAGMENT record per stored frame
    shard-000000.tar   a plain WebDataset: 000000-000000.mp4, 000000-000000.json, 000000-000001.mp4, ...

Every mp4 is fragmented, one fragment (moof + mdat) per frame, with a keyframe every `gop` frames and no B-frames.
So the header plus the fragments keyframe..wanted is itself a video, and decodes to the same pixels as the whole.

A label is the number of a class. Of a factored data set (the manifest has `factors`) the classes are all combinations of one
class of each, the last factor fastest, called such as "wash / plate": verb v with noun n of 300 is class 300 v + n. Where
videos have several classes at once (the manifest has `label_sets`), a label is the number of one of these sets of classes.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import zlib
from collections.abc import Sequence

import numpy as np

from i2v.pipelines.store import ShardError

FORMAT = "i2v-shards"
VERSION = 2
BLOCK = 512  # bytes; members of a tar start on multiples of it, each after a header of one block
LARGEST_SIDE = 4096  # pixels, of a stored clip: what every hardware decoder takes in every codec

CLIP = np.dtype(
    [
        ("shard", "<u4"),  # index into manifest["shards"]
        ("offset", "<u8"),  # of the mp4's first byte in the tar
        ("header_size", "<u4"),  # bytes of ftyp + moov
        ("header_crc", "<u4"),
        ("first_fragment", "<u8"),  # index into fragments.npy
        ("frames", "<u4"),  # as counted by decoding the stored clip
        ("width", "<u2"),
        ("height", "<u2"),
        ("fps", "<f4"),
        ("label", "<i4"),  # index into manifest["classes"], or into its label_sets; -1: not labelled
    ]
)
FRAGMENT = np.dtype(
    [
        ("size", "<u4"),  # bytes
        ("crc", "<u4"),
        ("time", "<f4"),  # seconds from the clip's first frame, as the source's own timestamps say
    ]
)

BETWEEN = " / "  # factors, in the name of a combination
SEVERAL = "|"  # between the names of a video's classes, where they are written as one

Factors = dict[str, list[str]]  # factor -> names of its classes
LabelSets = list[list[int]]  # of each set, its classes in ascending order

# ---- names -----------------------------------------------------------------------------------------------------------


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def shard_number(name: str) -> int:
    """Of shard-000003.tar: 3. Numbers are not positions in the manifest: a shard without any clip is left out of it."""
    return int(name.removeprefix("shard-").removesuffix(".tar"))


def clip_key(shard: int, index: int) -> str:
    """WebDataset key of the index-th clip of a shard."""
    return f"{shard:06d}-{index:06d}"


def index_names(generation: int) -> dict[str, str]:
    """File names of the index; every append has names of its own, so that what reads the one before can go on."""
    suffix = f"-{generation}" if generation else ""
    return {"clips": f"clips{suffix}.npy", "fragments": f"fragments{suffix}.npy"}


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def padded(size: int) -> int:
    """Bytes that a member of `size` bytes takes in a tar, its header aside."""
    return size + -size % BLOCK


def clip_size(clip: np.void, fragments: np.ndarray) -> int:
    """Bytes of a clip's mp4; fragments: its own (frames,) FRAGMENT."""
    return int(clip["header_size"]) + int(fragments["size"].sum(dtype=np.int64))


def needed_fragments(frames: np.ndarray, gop: int, count: int) -> np.ndarray:
    """Which of a clip's `count` fragments decoding `frames` takes: (count,) bool.

    To decode a frame, a decoder needs everything from the keyframe at or before it, and keyframes are at multiples
    of `gop`; so in every group of pictures the fragments up to the last wanted frame.
    """
    last = np.full(-(-count // gop), -1, dtype=np.int64)
    np.maximum.at(last, frames // gop, frames % gop)
    return (np.arange(gop)[None, :] <= last[:, None]).reshape(-1)[:count]


def needed_slice(
    frames: np.ndarray, sizes: np.ndarray, header_size: int, gop: int
) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
    """Of an mp4 with fragments of these sizes, the smallest playable slice that holds `frames`.

    Returns its parts, (offset, bytes) each; the fragments that are in it; and where in it each of the frames is, (N,) int32.
    """
    needed = needed_fragments(frames, gop, len(sizes))
    chosen = np.flatnonzero(needed)
    starts = np.zeros(len(sizes) + 1, dtype=np.int64)
    np.cumsum(sizes, out=starts[1:])
    starts += header_size
    breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
    runs = zip(starts[chosen[[0, *breaks]]].tolist(), starts[chosen[[*(breaks - 1), -1]] + 1].tolist())
    spans = [(0, header_size), *((start, end - start) for start, end in runs)]
    return spans, chosen, (np.cumsum(needed) - 1)[frames].astype(np.int32)


def fragment_sizes(data: bytes) -> tuple[int, list[int]]:
    """Header size, and size of every fragment, of a fragmented mp4 given as bytes. Raises ValueError if it is not one."""
    at, header, fragments, kinds = 0, 0, [], []
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if size < 8 or at + size > len(data):
            raise ValueError(f"box {kind!r} at byte {at} claims {size} bytes of {len(data)}")
        if kind in (b"ftyp", b"moov") and not fragments:
            header += size
        elif kind == b"moof":
            fragments.append(size)
        elif kind == b"mdat" and kinds and kinds[-1] == b"moof":
            fragments[-1] += size
        else:
            raise ValueError(f"unexpected box {kind!r} at byte {at}")
        kinds.append(kind)
        at += size
    return header, fragments


# ---- labels ----------------------------------------------------------------------------------------------------------


def combinations(factors: Factors) -> list[str]:
    """The names of all combinations, in the order of their labels."""
    return [BETWEEN.join(names) for names in itertools.product(*factors.values())]


def sizes(factors: Factors) -> dict[str, int]:
    """factor -> how many classes it has."""
    return {name: len(classes) for name, classes in factors.items()}


def combined(parts: Sequence[int], factors: Factors) -> int:
    """The label of a combination of one class of each factor."""
    return int(np.ravel_multi_index(tuple(parts), tuple(sizes(factors).values())))


def are_factors(factors, classes: list[str]) -> bool:
    """Whether a manifest's factors are possible and make up its classes; {}: there are none."""
    if not isinstance(factors, dict) or not all(isinstance(names, list) for names in factors.values()):
        return False
    count = math.prod(sizes(factors).values())
    return not factors or len(factors) > 1 and count == len(classes) and combinations(factors) == classes


def are_label_sets(label_sets, classes: list[str]) -> bool:
    """Whether a manifest's sets of classes are possible; None: videos have one class each."""
    if label_sets is None:
        return True
    known = range(len(classes))
    return isinstance(label_sets, list) and all(
        isinstance(each, list) and all(type(label) is int and label in known for label in each) for each in label_sets
    )


def class_counts(labels: np.ndarray, classes: int, label_sets: LabelSets | None = None) -> np.ndarray:
    """(K,) int64: how many videos have each class; labels: (n,), -1: none."""
    labels = np.asarray(labels, dtype=np.int64)
    if label_sets is None:
        return np.bincount(labels[labels >= 0], minlength=classes)
    of_sets, counts = np.bincount(labels[labels >= 0], minlength=len(label_sets)), np.zeros(classes, np.int64)
    for each, count in zip(label_sets, of_sets):
        counts[each] += count
    return counts


def several_hot(label_sets: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """(B, K) float32, 1 for the classes of each set and 0 for the others."""
    hot = np.zeros((len(label_sets), classes), np.float32)
    for row, each in zip(hot, label_sets):
        row[list(each)] = 1
    return hot


def name_of(label: int, classes: list[str], label_sets: LabelSets | None = None) -> str:
    """What a label is called; of several classes their names, with | between them; "" for none."""
    if label < 0:
        return ""
    return classes[label] if label_sets is None else SEVERAL.join(classes[each] for each in label_sets[label])


# ---- the manifest ----------------------------------------------------------------------------------------------------


def manifest_crc32(manifest: dict) -> int:
    """Checksum of all that a manifest says, its own checksum aside."""
    said = {key: value for key, value in manifest.items() if key != "crc32"}
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def is_intact(manifest: dict) -> bool:
    """Whether it is as it was written; one without its checksum was edited on purpose."""
    return manifest.get("crc32", manifest_crc32(manifest)) == manifest_crc32(manifest)


def parse_manifest(data: bytes, where: str) -> dict:
    """A manifest that can be worked with, intact or not. Raises ShardError."""
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} cannot be read as a manifest: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ShardError(f"{where} is not a manifest that make_shards wrote.")
    if manifest.get("version") != VERSION:
        raise ShardError(
            f"{where} is of version {manifest.get('version')}, this program reads version {VERSION}: "
            "run make_shards again, or install the release that wrote it."
        )
    kinds = {"codec": str, "gop": int, "clips": int, "frames": int, "classes": list, "shards": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]
    wrong += [key for key in ("index", "index_crc32") if not isinstance(manifest.get(key, {}), dict)]
    if not wrong:
        wrong = [key for key, fine in _facts(manifest).items() if not fine]
    if wrong:
        raise ShardError(f"{where} is damaged ({', '.join(wrong)} is missing or wrong): restore it, or run make_shards again.")
    return manifest


def index_file(manifest: dict, kind: str) -> tuple[str, int | None]:
    """Name and checksum of the index file of a kind: clips or fragments."""
    return manifest.get("index", {}).get(kind, f"{kind}.npy"), manifest.get("index_crc32", {}).get(kind)


def _facts(manifest: dict) -> dict[str, bool]:
    """Whether each of these is possible, if all have the right kind."""
    shards = all(map(_is_shard, manifest["shards"]))
    return {
        "gop": manifest["gop"] >= 1,
        "shards": shards,
        "clips": not shards or sum(shard["clips"] for shard in manifest["shards"]) == manifest["clips"],
        "index": all(map(_is_file_name, manifest.get("index", {}).values())),
        "factors": are_factors(manifest.get("factors", {}), manifest["classes"]),
        "label_sets": are_label_sets(manifest.get("label_sets"), manifest["classes"]),
    }


def _is_shard(shard) -> bool:
    return (
        isinstance(shard, dict)
        and _is_file_name(shard.get("name"))
        and re.fullmatch(r"shard-\d+\.tar", shard["name"]) is not None
        and all(isinstance(shard.get(key), int) and shard[key] > 0 for key in ("bytes", "clips"))
        and isinstance(shard.get("crc32", 0), int)
    )


def _is_file_name(name) -> bool:
    """Not a path: staged copies are written under it."""
    return isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) is not None


# ---- the index -------------------------------------------------------------------------------------------------------


def parse_records(data, dtype: np.dtype, count: int, where: str) -> np.ndarray:
    """(count,) records of a .npy file, given as a buffer, without a copy. Raises ShardError."""
    header = io.BytesIO(data[: 1 << 16])
    try:
        np.lib.format.read_magic(header)
        shape, _, found = np.lib.format.read_array_header_1_0(header)
    except Exception as error:  # numpy lets out nearly anything for a damaged header
        raise ShardError(f"{where} cannot be read as an index: {error}.") from error
    if found != dtype or shape != (count,) or len(data) != header.tell() + count * dtype.itemsize:
        raise ShardError(f"{where} does not belong to its manifest: it should hold {count} records of {dtype.itemsize} bytes.")
    return np.frombuffer(data, dtype, count, header.tell())


def impossible_records(clips: np.ndarray, manifest: dict) -> list[tuple[int, str]]:
    """(clip id, what its record says that cannot be true): a wrong index would give wrong labels, or worse."""
    counts = [shard["clips"] for shard in manifest["shards"]]
    bytes_in_shard = np.repeat([shard["bytes"] for shard in manifest["shards"]], counts).astype(np.uint64)
    first, end = clips["first_fragment"], clips["first_fragment"] + clips["frames"]
    next_first = np.append(first[1:], np.uint64(manifest["frames"]))
    wrong = {
        "shard": clips["shard"] != np.repeat(np.arange(len(counts)), counts),
        "offset": (clips["offset"] % BLOCK != 0) | (clips["offset"] < BLOCK) | (clips["offset"] >= bytes_in_shard),
        "header size": clips["header_size"] >= bytes_in_shard,
        "label": (clips["label"] < -1) | (clips["label"] >= len(manifest.get("label_sets", manifest["classes"]))),
        "size": (clips["width"] < 1) | (clips["height"] < 1) | (np.maximum(clips["width"], clips["height"]) > LARGEST_SIDE),
        "fps": ~((clips["fps"] > 0) & np.isfinite(clips["fps"])),
        "number of frames": (clips["frames"] < 1) | (end != next_first),
        "first fragment": (np.arange(len(clips)) == 0) & (first != 0),
    }
    return [(clip, what) for what, bad in wrong.items() for clip in bad.nonzero()[0].tolist()]


def times_are_possible(times: np.ndarray) -> bool:
    """Whether the times of a clip's frames are 0 and then ever later."""
    return times[0] == 0 and bool((times[1:] >= times[:-1]).all()) and bool(np.isfinite(times[-1]))
