"""The shard format, and reading from it only the bytes that a clip needs.

A data set is a folder:

    manifest.json      what is in it, how it was encoded, class names, the list of shards
    clips.npy          one CLIP record per video, memory-mapped
    fragments.npy      one FRAGMENT record per stored frame, memory-mapped
    shard-000000.tar   a plain WebDataset: 000000-000000.mp4, 000000-000000.json, 000000-000001.mp4, ...

Every mp4 is fragmented, one fragment (moof + mdat) per frame, with a keyframe every `gop` frames and no B-frames.
So the header plus the fragments keyframe..wanted is itself a video, and decodes to the same pixels as the whole.
Every fragment has a checksum: what is decoded is what was written, or the clip is reported as bad.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np

FORMAT = "i2v-shards"
VERSION = 2

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
        ("label", "<i4"),  # index into manifest["classes"]; -1: not labelled
    ]
)
FRAGMENT = np.dtype(
    [
        ("size", "<u4"),  # bytes
        ("crc", "<u4"),
        ("time", "<f4"),  # seconds from the clip's first frame, as the source's own timestamps say
    ]
)

OPEN_FILES = 256  # shards kept open at once; below the usual limit of 1024 descriptors


class ShardError(RuntimeError):
    """The data set as a whole cannot be used: missing, truncated, swapped or of another version."""


class ClipError(RuntimeError):
    """One clip cannot be used; the others can."""

    def __init__(self, clip_id: int, reason: str):
        super().__init__(f"clip {clip_id}: {reason}")
        self.clip_id, self.reason = clip_id, reason


class ShardSet:
    """A sharded data set, open for reading. Safe to use from several threads.

    manifest: the folder, or its manifest.json. Raises ShardError with one sentence if it cannot be trusted.
    """

    def __init__(self, manifest: str | os.PathLike):
        path = Path(manifest)
        path = path / "manifest.json" if path.is_dir() else path
        self.root = path.parent
        self.manifest = _read_manifest(path)
        self.clips = _map_index(self.root / "clips.npy", CLIP, self.manifest["clips"])
        self.fragments = _map_index(self.root / "fragments.npy", FRAGMENT, self.manifest["frames"])
        _check_index(self.clips, self.manifest, path)
        self._files: OrderedDict[int, object] = OrderedDict()
        self._lock = threading.Lock()
        self.sound_clip = None  # a clip whose first frame is surely readable
        counts = [shard["clips"] for shard in self.manifest["shards"]]
        self.first_clips = np.cumsum([0, *counts[:-1]])  # of every shard
        for shard, first in zip(self.manifest["shards"], self.first_clips):
            self._check_shard(shard, int(first))

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def codec(self) -> str:
        return self.manifest["codec"]

    def key(self, clip_id: int) -> str:
        """The clip's WebDataset key."""
        shard = int(self.clips["shard"][clip_id])
        return clip_key(shard, clip_id - int(self.first_clips[shard]))

    def times(self, clip_id: int) -> np.ndarray:
        """(frames,) float32: when each stored frame is shown, in seconds from the first."""
        clip = self.clips[clip_id]
        first = int(clip["first_fragment"])
        return self.fragments["time"][first : first + int(clip["frames"])]

    def read(self, clip_id: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest playable slice of a clip that holds `frames`.

        frames: (N,) indices in the stored clip, any order, repeats allowed.
        Returns the slice as (bytes,) uint8, and where in it the wanted frames are, (N,) int32.
        Raises ClipError if the stored bytes are not the ones that were written.
        """
        clip = self.clips[clip_id]
        first, count = int(clip["first_fragment"]), int(clip["frames"])
        frames = np.asarray(frames, dtype=np.int64)
        if frames.size == 0 or frames.min() < 0 or frames.max() >= count:
            raise IndexError(f"clip {clip_id} has {count} frames, asked for {frames.tolist()}")
        needed = needed_fragments(frames, self.manifest["gop"], count)
        sizes = self.fragments["size"][first : first + count].astype(np.int64)
        starts = int(clip["offset"]) + int(clip["header_size"]) + np.concatenate([[0], np.cumsum(sizes)])

        chosen = np.flatnonzero(needed)
        header_size = int(clip["header_size"])
        data = np.empty(header_size + int(sizes[chosen].sum()), dtype=np.uint8)
        view = memoryview(data)
        try:
            file = self._open(int(clip["shard"]))
            _read_into(file, view[:header_size], int(clip["offset"]))
            end = header_size
            for begin, stop in _runs(chosen):
                length = int(starts[stop] - starts[begin])
                _read_into(file, view[end : end + length], int(starts[begin]))
                end += length
        except FileNotFoundError as error:
            raise ShardError(f"{error.filename} has disappeared: restore it; the same command continues.") from error
        except (OSError, OverflowError) as error:
            raise ClipError(clip_id, f"{self._where(clip_id)} cannot be read: {error}") from error

        if zlib.crc32(view[:header_size]) != clip["header_crc"]:
            raise ClipError(clip_id, f"{self._where(clip_id)}: the header is damaged (checksum differs)")
        end = header_size
        for fragment in chosen:
            size = int(sizes[fragment])
            if zlib.crc32(view[end : end + size]) != self.fragments["crc"][first + fragment]:
                raise ClipError(clip_id, f"{self._where(clip_id)}: frame {fragment} is damaged (checksum differs)")
            end += size
        position = np.cumsum(needed) - 1  # stored frame -> frame of the slice
        return data, position[frames].astype(np.int32)

    def read_whole(self, clip_id: int) -> bytes:
        """The stored mp4 of a clip, all of it, checked."""
        data, _ = self.read(clip_id, np.arange(int(self.clips[clip_id]["frames"])))
        return data.tobytes()

    def metadata(self, clip_id: int) -> dict:
        """The clip's json member: label, class name, source path, frames, fps, width, height."""
        clip = self.clips[clip_id]
        first, count = int(clip["first_fragment"]), int(clip["frames"])
        size = int(clip["header_size"]) + int(self.fragments["size"][first : first + count].sum(dtype=np.int64))
        header_at = int(clip["offset"]) + -(-size // 512) * 512  # tar members start on multiples of 512 bytes
        file = self._open(int(clip["shard"]))
        header = os.pread(file.fileno(), 512, header_at)
        return json.loads(os.pread(file.fileno(), int(header[124:135], 8), header_at + 512))

    def _where(self, clip_id: int) -> str:
        shard = self.manifest["shards"][int(self.clips[clip_id]["shard"])]["name"]
        return f"{self.key(clip_id)}.mp4 in {self.root / shard}"

    def _open(self, shard: int):
        # Evicted files are closed when the last thread that reads from them lets go of them.
        with self._lock:
            file = self._files.pop(shard, None)
            if file is None:
                file = open(self.root / self.manifest["shards"][shard]["name"], "rb", buffering=0)
            self._files[shard] = file
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
            return file

    def _check_shard(self, shard: dict, first: int) -> None:
        """Is this the file that the index was made for? A single damaged clip is no reason to refuse it."""
        path = self.root / shard["name"]
        remedy = "restore the file, or run make_shards again into a new folder"
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ShardError(f"{path} cannot be read ({error.strerror}): {remedy}.") from error
        if size != shard["bytes"]:
            raise ShardError(f"{path} has {size} bytes where the manifest says {shard['bytes']}: {remedy}.")
        problem = None
        for clip_id in (first, first + shard["clips"] // 2, first + shard["clips"] - 1):
            try:
                self.read(clip_id, np.array([0]))
            except ClipError as error:
                problem = error.reason
            else:
                self.sound_clip = clip_id
                return
        raise ShardError(f"{path} is not the file this index was made for ({problem}): {remedy}.")


def clip_key(shard: int, index: int) -> str:
    """WebDataset key of the index-th clip of a shard."""
    return f"{shard:06d}-{index:06d}"


def needed_fragments(frames: np.ndarray, gop: int, count: int) -> np.ndarray:
    """Which of a clip's `count` fragments decoding `frames` takes: (count,) bool.

    To decode a frame, a decoder needs everything from the keyframe at or before it, and keyframes are at multiples
    of `gop`; so in every group of pictures the fragments up to the last wanted frame.
    """
    last = np.full(-(-count // gop), -1, dtype=np.int64)
    np.maximum.at(last, frames // gop, frames % gop)
    return (np.arange(gop)[None, :] <= last[:, None]).reshape(-1)[:count]


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


def _runs(indices: np.ndarray) -> list[tuple[int, int]]:
    """Sorted indices as half-open runs: [0 1 2 8 9] -> [(0, 3), (8, 10)]."""
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(indices, breaks)]


def _read_into(file, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        got = os.preadv(file.fileno(), [view[done:]], offset + done)
        if got == 0:
            raise OSError(f"the file ends at byte {offset + done}")
        done += got


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise ShardError(f"{path} does not exist: make it with shard_tools/make_shards.py.") from None
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be read as a manifest: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ShardError(f"{path} is not a manifest that make_shards wrote.")
    if manifest.get("version") != VERSION:
        raise ShardError(
            f"{path} is of version {manifest.get('version')}, this program reads version {VERSION}: "
            "run make_shards again, or install the release that wrote it."
        )
    kinds = {"codec": str, "gop": int, "clips": int, "frames": int, "classes": list, "shards": list}
    wrong = [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]
    if wrong or manifest["gop"] < 1:
        raise ShardError(f"{path} is damaged ({', '.join(wrong) or 'gop'} is missing or wrong): run make_shards again.")
    if manifest["clips"] == 0:
        raise ShardError(f"{path} holds no clips: every source video was rejected, see rejected.csv beside it.")
    return manifest


def _check_index(clips: np.ndarray, manifest: dict, path: Path) -> None:
    """Raises ShardError if a record cannot be true: a wrong index would give wrong labels, or worse."""
    frames = clips["frames"].astype(np.int64)
    impossible = {
        "shard": clips["shard"] >= len(manifest["shards"]),
        "label": (clips["label"] < -1) | (clips["label"] >= len(manifest["classes"])),
        "size": (clips["width"] < 1) | (clips["height"] < 1) | (clips["width"] > 4096) | (clips["height"] > 4096),
        "frames": frames < 1,
        "fps": ~((clips["fps"] > 0) & np.isfinite(clips["fps"])),
        "first fragment": clips["first_fragment"] != np.cumsum(frames) - frames,
    }
    for what, bad in impossible.items():
        if bad.any():
            raise ShardError(f"{path.parent / 'clips.npy'} is damaged: the {what} of clip {int(bad.argmax())} is impossible.")
    if frames.sum() != manifest["frames"] or sum(shard["clips"] for shard in manifest["shards"]) != len(clips):
        raise ShardError(f"{path} does not belong to its index: the numbers of frames or clips differ.")


def _map_index(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    try:
        index = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ShardError(f"{path} cannot be read as an index: {error}.") from error
    if index.dtype != dtype or index.shape != (count,):
        raise ShardError(f"{path} does not belong to its manifest: it should hold {count} records of {dtype.itemsize} bytes.")
    return index
