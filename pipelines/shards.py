"""Reading from a sharded data set (pipelines/index.py) only the bytes that a clip needs.

What is decoded is what was written, or the clip is reported as bad: every header and fragment has a checksum, looked at
when it is read. A label is the right one: the manifest has a checksum of clips.npy and one of itself, looked at when the
data set is opened. fragments.npy is too large for that: a wrong size or checksum in it shows when the clip is read; a
wrong time is noticed unless it still lies between its neighbours, when it moves a choice by one frame at most.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import tarfile
import zlib
from collections.abc import Iterable

import numpy as np

from i2v.pipelines.files import File, open_files
from i2v.pipelines.index import (
    BLOCK,
    CLIP,
    FRAGMENT,
    clip_key,
    clip_size,
    impossible_records,
    index_file,
    is_intact,
    needed_slice,
    padded,
    parse_manifest,
    parse_records,
    shard_number,
    times_are_possible,
)
from i2v.pipelines.store import ShardError


class ClipError(RuntimeError):
    """One clip cannot be used; the others can."""

    def __init__(self, clip_id: int, reason: str):
        super().__init__(f"clip {clip_id}: {reason}")
        self.clip_id, self.reason = clip_id, reason


class ShardSet:
    """A sharded data set, open for reading. Safe to use from several threads.

    manifest: the folder or its manifest.json, local or as a URL such as s3://bucket/k400 (pipelines/files.py).
    cache: a folder on a local disk, for URLs only: shards are copied there and may be shared by any number of processes.
    cache_size: how much the cache may fill, in bytes or as text such as "200GB"; None: most of what is free.
    Raises ShardError with one sentence if the data set cannot be trusted or reached.
    """

    def __init__(
        self, manifest: str | os.PathLike, cache: str | os.PathLike | None = None, cache_size: int | str | None = None
    ):
        self.files, name = open_files(manifest, cache, cache_size)
        self.root, self.remote = self.files.root, self.files.remote
        where = self.files.where(name)
        self.manifest = _usable(parse_manifest(self.files.fetch(name), where), where)
        self.classes, self.codecs = self.manifest["classes"], {self.manifest["codec"]}
        self.factors, self.label_sets = self.manifest.get("factors", {}), self.manifest.get("label_sets")
        self.clips = self._map_index("clips", CLIP, self.manifest["clips"])
        self.fragments = self._map_index("fragments", FRAGMENT, self.manifest["frames"])
        for clip, what in impossible_records(self.clips, self.manifest):
            raise ShardError(f"the index of {where} is damaged: the {what} of clip {clip} is impossible.")
        counts = [shard["clips"] for shard in self.manifest["shards"]]
        self.first_clips = np.cumsum([0, *counts[:-1]])  # of every shard
        self._shards = [File(shard["name"], shard["bytes"], shard.get("crc32")) for shard in self.manifest["shards"]]
        self.files.check(self._shards)
        if not self.remote:
            self._require_own_file(0)  # an error now, if any

    def __len__(self) -> int:
        return len(self.clips)

    def expect(self, shards: Iterable[int]) -> None:
        self.files.expect(self._shards[shard] for shard in shards)

    def key(self, clip_id: int) -> str:
        """The clip's WebDataset key."""
        shard = int(self.clips["shard"][clip_id])
        return clip_key(shard_number(self._shards[shard].name), clip_id - int(self.first_clips[shard]))

    def clip_crc(self, clip_id: int) -> int:
        return int(self.fragments["crc"][int(self.clips["first_fragment"][clip_id])])

    def times(self, clip_id: int) -> np.ndarray:
        """(frames,) float32: when each stored frame is shown, in seconds from the first.

        Raises ClipError if they are not 0 and then ever later.
        """
        first, count = self.clips[clip_id]["first_fragment"].item(), self.clips[clip_id]["frames"].item()
        times = self.fragments[first : first + count]["time"]
        if not times_are_possible(times):
            raise ClipError(clip_id, f"{self._where(clip_id)}: the times of its frames in the index are damaged")
        return times

    def read(self, clip_id: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest playable slice of a clip that holds `frames`.

        frames: (N,) indices in the stored clip, any order, repeats allowed.
        Returns the slice as (bytes,) uint8, and where in it the wanted frames are, (N,) int32.
        Raises ClipError if the stored bytes are not the ones that were written, ShardError if that is so for the shard.
        """
        try:
            return self._read(clip_id, frames)
        except ClipError:
            self._require_own_file(self.clips[clip_id]["shard"].item())
            raise

    def read_whole(self, clip_id: int) -> bytes:
        """The stored mp4 of a clip, all of it, checked."""
        data, _ = self.read(clip_id, np.arange(int(self.clips[clip_id]["frames"])))
        return data.tobytes()

    def metadata(self, clip_id: int) -> dict:
        """The clip's json member: label, class name, source path, frames, fps, width, height. Raises ClipError."""
        start, size = self._extent(clip_id)
        header_at = start + padded(size)
        with self.files.open(self._shards[self.clips["shard"][clip_id]]) as descriptor:
            try:
                size = int(os.pread(descriptor, BLOCK, header_at)[124:135], 8)
                return json.loads(os.pread(descriptor, size, header_at + BLOCK))
            except (ValueError, OSError, OverflowError) as error:
                raise ClipError(clip_id, f"{self._where(clip_id)}: its json is damaged ({error})") from error

    def begin(self, clip_id: int) -> float:
        """When the clip's first frame is shown, in seconds of its source as players count them. Raises ClipError."""
        facts = self.metadata(clip_id)
        return facts.get("begin", facts.get("start") or 0.0)

    def checksums(self) -> list[int]:
        pixels = repr([shard.get("crc32") for shard in self.manifest["shards"]]).encode()
        labels = zlib.crc32(np.ascontiguousarray(self.clips["label"]), zlib.crc32(pixels))
        return [labels if self.label_sets is None else zlib.crc32(repr(self.label_sets).encode(), labels)]

    def _read(self, clip_id: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shard, offset, header_size, header_crc, first, count, *_ = self.clips[clip_id].item()
        frames = np.asarray(frames, dtype=np.int64)
        if frames.size == 0 or frames.min() < 0 or frames.max() >= count:
            raise IndexError(f"clip {clip_id} has {count} frames, asked for {frames.tolist()}")
        stored = self.fragments[first : first + count]
        spans, chosen, positions = needed_slice(frames, stored["size"], header_size, self.manifest["gop"])
        spans = [(offset + start, length) for start, length in spans]
        # What is read, each part with its checksum: the header and the chosen fragments.
        sizes = [header_size, *stored["size"][chosen].tolist()]
        crcs = [header_crc, *stored["crc"][chosen].tolist()]

        file = self._shards[shard]
        while True:
            with self.files.open(file) as descriptor:
                try:
                    data = _gather(descriptor, spans, file.size)
                    bad = _first_difference(data, sizes, crcs)
                    if bad is None:
                        return data, positions
                    what = "the header" if bad == 0 else f"frame {chosen[bad - 1]}"
                    reason, cause = f": {what} is damaged (checksum differs)", None
                except OSError as error:
                    reason, cause = f" cannot be read: {error}", error
                if not self.files.discard(file, descriptor):
                    raise ClipError(clip_id, self._where(clip_id) + reason) from cause

    def _where(self, clip_id: int) -> str:
        return f"{self.key(clip_id)}.mp4 in {self.files.where(self._shards[self.clips['shard'][clip_id]].name)}"

    def _extent(self, clip_id: int) -> tuple[int, int]:
        """Offset and bytes of a clip's mp4 in its tar."""
        clip = self.clips[clip_id]
        first, count = int(clip["first_fragment"]), int(clip["frames"])
        return int(clip["offset"]), clip_size(clip, self.fragments[first : first + count])

    def _require_own_file(self, shard: int) -> None:
        """Raises ShardError unless a shard is the file that this index was made for.

        It is, if any of its clips stands in the tar under its name, where and as long as the index says, or if its checksum is
        the manifest's (then it is the index that is damaged). So damage to its clips is theirs alone, however few they are.
        """
        file, first = self._shards[shard], int(self.first_clips[shard])
        if not self.remote:
            self.files.check([file])
        with self.files.open(file) as descriptor:
            clips = range(first, first + self.manifest["shards"][shard]["clips"])
            if any(self._is_in_place(descriptor, clip_id) for clip_id in clips) or _has_crc32(descriptor, file.crc32):
                return
        remedy = "restore the file, or run make_shards again into a new folder"
        remedy = f"restore the file, and delete its copy in {self.files.cache.folder}" if self.remote else remedy
        where = self.files.where(file.name)
        raise ShardError(f"{where} is not the file this index was made for (no clip is where the index says): {remedy}.")

    def _is_in_place(self, descriptor: int, clip_id: int) -> bool:
        """Whether a tar has a clip where the index says, by the header of its mp4; if that is damaged, by that of its json."""
        start, size = self._extent(clip_id)
        mp4 = _member(descriptor, start - BLOCK)
        if mp4 is not None:
            return mp4 == (f"{self.key(clip_id)}.mp4", size)
        behind = _member(descriptor, start + padded(size))
        return behind is not None and behind[0] == f"{self.key(clip_id)}.json"

    def _map_index(self, kind: str, dtype: np.dtype, count: int) -> np.ndarray:
        """(count,) records of clips.npy or fragments.npy, mapped from the file."""
        name, crc32 = index_file(self.manifest, kind)
        file, where = File(name, None, crc32), self.files.where(name)
        while True:
            with self.files.open(file) as descriptor:
                try:
                    # The mapping keeps a duplicate of the descriptor, and so a staged file's lock.
                    data = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
                    records = parse_records(data, dtype, count, where)
                    if kind != "clips" or crc32 in (None, zlib.crc32(data)):
                        return records
                    problem = ShardError(f"{where} is damaged or of another data set (checksum differs): restore it.")
                except ShardError as error:
                    problem = error
                except (OSError, ValueError) as error:
                    problem = ShardError(f"{where} cannot be read as an index: {error}.")
                if not self.files.discard(file, descriptor):
                    raise problem


def _member(descriptor: int, at: int) -> tuple[str, int] | None:
    """Name and bytes of the member of a tar whose header is at `at`; None: there is no header that can be read."""
    try:
        info = tarfile.TarInfo.frombuf(os.pread(descriptor, BLOCK, at), "utf-8", "replace")
        return info.name, info.size
    except (tarfile.HeaderError, OSError, OverflowError):
        return None


def _has_crc32(descriptor: int, crc32: int | None) -> bool:
    """Whether a file can be read and this is its checksum; None: it is not known."""
    crc = at = 0
    with contextlib.suppress(OSError):
        while crc32 is not None and (data := os.pread(descriptor, 1 << 24, at)):
            crc, at = zlib.crc32(data, crc), at + len(data)
        return crc == crc32
    return False


def _gather(descriptor: int, spans: list[tuple[int, int]], size: int) -> np.ndarray:
    """(bytes,) uint8: the (offset, length) parts of a file of this size, one after the other."""
    if sum(spans[-1]) > size:
        raise OSError("the index says that it goes on after the end of the shard")
    data = np.empty(sum(length for _, length in spans), dtype=np.uint8)
    view, at = memoryview(data), 0
    for offset, length in spans:
        end = at + length
        while at < end:
            got = os.preadv(descriptor, [view[at:end]], offset)
            if got == 0:
                raise OSError(f"the file ends at byte {offset}")
            at, offset = at + got, offset + got
    return data


def _first_difference(data: np.ndarray, sizes: list[int], crcs: list[int]) -> int | None:
    """The first of the parts that `data` consists of whose checksum is another."""
    view, at = memoryview(data), 0
    for part, (size, crc) in enumerate(zip(sizes, crcs)):
        if zlib.crc32(view[at : at + size]) != crc:
            return part
        at += size
    return None


def _usable(manifest: dict, where: str) -> dict:
    """Raises ShardError if there is nothing to read, or if it is not the manifest that was written."""
    if not is_intact(manifest):
        raise ShardError(
            f"{where} is damaged or was edited (its checksum differs): restore it, or run make_shards again; "
            "an edit that is meant to be takes the key crc32 out."
        )
    if manifest["clips"] == 0:
        raise ShardError(f"{where} holds no clips: every source video was rejected, see rejected.csv beside it.")
    return manifest
