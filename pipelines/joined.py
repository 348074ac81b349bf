"""Several data sets as one, for training on a mixture."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from i2v.pipelines.shards import ShardError, ShardSet

FIELDS = ("shard", "frames", "width", "height", "fps", "label")


class JoinedShards:
    """Reads like a ShardSet whose videos are those of all `sets`, one set after the other.

    Raises ShardError if the sets do not have the same class names in the same order, and one class a video or several.
    """

    def __init__(self, sets: list[ShardSet]):
        self.sets = sets
        for other in sets[1:]:
            if other.classes != sets[0].classes or other.factors != sets[0].factors:
                raise ShardError(
                    f"{sets[0].root} and {other.root} do not have the same class names in the same order: "
                    f"shard_tools/relabel.py {other.root} --out NEW --classes {sets[0].root}/manifest.json copies the second "
                    "with those of the first."
                )
            if (other.label_sets is None) != (sets[0].label_sets is None):
                raise ShardError(f"Of {sets[0].root} and {other.root} only one has several classes a video: make both alike.")
        self.firsts = np.cumsum([0, *map(len, sets)]).tolist()
        self.first_shards = np.cumsum([0, *(len(each.manifest["shards"]) for each in sets)]).tolist()
        self.clips = {name: np.concatenate([each.clips[name] for each in sets]) for name in FIELDS}
        self.clips["shard"] += np.repeat(self.first_shards[:-1], list(map(len, sets))).astype(np.uint32)
        self.root = " + ".join(str(each.root) for each in sets)
        self.classes, self.factors, self.manifest = sets[0].classes, sets[0].factors, sets[0].manifest
        self.label_sets = None
        if sets[0].label_sets is not None:  # those of all, one after the other
            self.label_sets = [labels for each in sets for labels in each.label_sets]
            firsts = np.cumsum([0, *(len(each.label_sets) for each in sets[:-1])])
            shift = np.repeat(firsts, list(map(len, sets))).astype(np.int32)
            self.clips["label"] += np.where(self.clips["label"] < 0, 0, shift)
        self.codecs, self.remote = set.union(*(each.codecs for each in sets)), any(each.remote for each in sets)

    def __len__(self) -> int:
        return self.firsts[-1]

    def key(self, clip_id: int) -> str:
        """Which data set, and the clip's WebDataset key in it."""
        k, local = self._find(clip_id)
        return f"{k}/{self.sets[k].key(local)}"

    def clip_crc(self, clip_id: int) -> int:
        k, local = self._find(clip_id)
        return self.sets[k].clip_crc(local)

    def times(self, clip_id: int) -> np.ndarray:
        k, local = self._find(clip_id)
        return self.sets[k].times(local)

    def read(self, clip_id: int, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k, local = self._find(clip_id)
        return self.sets[k].read(local, frames)

    def metadata(self, clip_id: int) -> dict:
        k, local = self._find(clip_id)
        return self.sets[k].metadata(local)

    def expect(self, shards: Iterable[int]) -> None:
        shards = list(shards)
        for each, first, end in zip(self.sets, self.first_shards, self.first_shards[1:]):
            each.expect([shard - first for shard in shards if first <= shard < end])

    def checksums(self) -> list[int]:
        return [checksum for each in self.sets for checksum in each.checksums()]

    def _find(self, clip_id: int) -> tuple[int, int]:
        """(data set, clip in it)"""
        k = int(np.searchsorted(self.firsts, clip_id, side="right")) - 1
        return k, clip_id - self.firsts[k]
