"""A source of clips: what the loader needs to know and read, wherever the videos are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np


class ClipSource(Protocol):
    """n stored clips, in a fixed order. A data set (shards.py), several as one (joined.py), encoded videos (memory.py)."""

    root: object  # what errors call it
    classes: list[str]
    factors: dict[str, list[str]]  # of what the classes are combinations; {}: of nothing (pipelines/index.py)
    label_sets: list[list[int]] | None  # what the labels are the numbers of; None: of classes
    clips: Mapping[str, np.ndarray]  # or a structured array; (n,) each: shard, frames, width, height, fps, label
    codecs: set[str]
    remote: bool  # whether shards that will be needed should be staged ahead (expect)

    def __len__(self) -> int: ...

    def key(self, clip_id: int) -> str:
        """The clip's name, which no other has."""

    def clip_crc(self, clip_id: int) -> int:
        """Checksum of the clip's first frame as it is stored: tells it from other clips."""

    def times(self, clip_id: int) -> np.ndarray:
        """(frames,) float32: when each stored frame is shown, in seconds from the first. May raise ClipError."""

    def read(self, clip_id: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest playable slice of a clip that holds `frames`: (N,) indices, any order, repeats allowed.

        Returns the slice as (bytes,) uint8, and where in it the wanted frames are, (N,) int32. May raise ClipError.
        """

    def expect(self, shards: Iterable[int]) -> None:
        """Hear which shards will be read next, in this order: remote ones are staged ahead, others need nothing."""

    def checksums(self) -> list[int]:
        """Of each data set: which videos these are, with which labels, wherever they lie."""
