"""A data set as MoSI sees it: of every video nine clips, one of each motion, whatever it is labelled with."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from i2v.pipelines.mosi import MOTIONS
from i2v.pipelines.source import ClipSource

FIELDS = ("shard", "frames", "width", "height", "fps")


class Stills:
    """Reads like `videos`, each of them as often as there are motions, one after the other; the labels are the motions."""

    label_sets = None

    def __init__(self, videos: ClipSource):
        self.videos, self.root, self.codecs, self.remote = videos, videos.root, videos.codecs, videos.remote
        self.manifest = getattr(videos, "manifest", None)
        self.classes, self.factors = MOTIONS, {}
        self.clips = {name: np.repeat(videos.clips[name], len(MOTIONS)) for name in FIELDS}
        self.clips["label"] = np.tile(np.arange(len(MOTIONS)), len(videos))

    def __len__(self) -> int:
        return len(self.videos) * len(MOTIONS)

    def key(self, clip_id: int) -> str:
        video, motion = divmod(clip_id, len(MOTIONS))
        return f"{self.videos.key(video)}/{MOTIONS[motion]}"

    def clip_crc(self, clip_id: int) -> int:
        return self.videos.clip_crc(clip_id // len(MOTIONS))

    def times(self, clip_id: int) -> np.ndarray:
        return self.videos.times(clip_id // len(MOTIONS))

    def read(self, clip_id: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.videos.read(clip_id // len(MOTIONS), frames)

    def metadata(self, clip_id: int) -> dict:
        return self.videos.metadata(clip_id // len(MOTIONS))

    def expect(self, shards: Iterable[int]) -> None:
        self.videos.expect(shards)

    def checksums(self) -> list[int]:
        return self.videos.checksums()
