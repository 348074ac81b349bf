"""Clips that could not be used, and why: counted by all ranks together, and written down for people."""

from __future__ import annotations

import csv
import os
import threading
from pathlib import Path

from i2v.pipelines.shards import ShardError
from i2v.pipelines.source import ClipSource

BAD_FRACTION, BAD_CLIPS = 0.001, 5  # a run stops when more than the larger of the two are in quarantine


class Quarantine:
    """bad: clip id -> reason. What is in it gets no special treatment: whether a clip can be used is seen each time it is
    read, so that it does not depend on who found out and when. Safe to use from several threads.

    path: a CSV that the ranks of a run share and that outlives it; None: only this process counts. per_video: how many
    clips that are added one after the other are of the same stored one, which counts once.
    """

    def __init__(self, path: str | os.PathLike | None, shards: ClipSource, per_video: int = 1):
        self.path, self.shards, self.per_video = None if path is None else Path(path), shards, per_video
        self._lock = threading.Lock()
        self.bad: dict[int, str] = self._read()

    def reason(self, clip_id: int) -> str | None:
        """Why a clip cannot be used, if that is known."""
        return self.bad.get(clip_id // self.per_video)

    def refreshed(self) -> dict[int, str]:
        """`bad`, with what other ranks have written down by now."""
        with self._lock:
            self.bad |= self._read()
            return self.bad

    def add(self, clip_id: int, reason: str) -> None:
        """Raises ShardError if these are too many now, or if the file cannot be written."""
        clip_id //= self.per_video
        with self._lock:
            new = clip_id not in self.bad
            self.bad.setdefault(clip_id, reason)
            if new and self.path is not None:
                try:
                    self._append(clip_id, reason)
                    self.bad |= self._read()  # what other ranks found counts as well
                except OSError as error:
                    raise ShardError(f"{self.path} cannot be written ({error.strerror}): make it writable.") from error
            self._require_few()

    def _require_few(self) -> None:
        allowed = max(BAD_CLIPS, int(BAD_FRACTION * len(self.shards)))
        if len(self.bad) > allowed:
            names = "; ".join(f"{self.shards.key(i)}: {why}" for i, why in list(self.bad.items())[:10])
            where = f", and delete {self.path}" if self.path else ""
            raise ShardError(
                f"{len(self.bad)} of {len(self.shards)} clips in {self.shards.root} are bad, more than the {allowed} that are "
                f"tolerated: restore the shards or make them again{where} ({names})."
            )

    def _read(self) -> dict[int, str]:
        """Rows of another data set, told by a checksum of the clip, do not count."""
        if self.path is None or not self.path.exists():
            return {}
        with open(self.path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [row for row in csv.reader(file) if len(row) == 4 and row[0].isdigit() and int(row[0]) < len(self.shards)]
        return {int(row[0]): row[3] for row in rows if row[2] == str(self.shards.clip_crc(int(row[0])))}

    def _append(self, clip_id: int, reason: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        # One short append per clip: safe when several ranks share the file.
        with open(self.path, "a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["id", "key", "crc", "reason"])
            writer.writerow([clip_id, self.shards.key(clip_id), self.shards.clip_crc(clip_id), reason])
