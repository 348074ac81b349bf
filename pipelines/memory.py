"""Encoded videos as a source of clips, without a file: what a program has just stored in memory it can look at."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from i2v.pipelines.index import CLIP, needed_slice


class ClipsInMemory:
    """encoded: what shard_tools.encode made of each video; names: what errors call them. None of them has a label."""

    root, remote = "these videos", False

    def __init__(self, encoded: Sequence, names: Sequence[str], codec: str, gop: int):
        self.encoded, self.names, self.gop = encoded, names, gop
        self.classes, self.factors, self.label_sets, self.codecs = [], {}, None, {codec}
        self.clips = np.zeros(len(encoded), CLIP)  # as an index has them, so that every number is rounded alike
        for name in ("header_size", "header_crc", "frames", "width", "height", "fps"):
            self.clips[name] = [getattr(clip, name) for clip in encoded]
        self.clips["label"] = -1

    def __len__(self) -> int:
        return len(self.encoded)

    def key(self, clip_id: int) -> str:
        return self.names[clip_id]

    def clip_crc(self, clip_id: int) -> int:
        return int(self.encoded[clip_id].fragments["crc"][0])

    def times(self, clip_id: int) -> np.ndarray:
        return self.encoded[clip_id].fragments["time"]

    def read(self, clip_id: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        clip = self.encoded[clip_id]
        data = np.frombuffer(clip.data, np.uint8)
        spans, _, positions = needed_slice(frames, clip.fragments["size"], clip.header_size, self.gop)
        return np.concatenate([data[start : start + length] for start, length in spans]), positions

    def expect(self, shards: Iterable[int]) -> None:
        pass

    def checksums(self) -> list[int]:
        return [zlib.crc32(b"".join(clip.fragments["crc"].tobytes() for clip in self.encoded))]
