"""One shard: a fixed list of videos -> shard-000003.tar and its part of the index, whatever interrupts it.

While a shard is being written there are two files: `shard-000003.tar.partial`, and `shard-000003.journal.jsonl`, which
holds what is being made and then one line per video, written after the video's bytes. On restart the lines are checked
against the tar, both are cut after the last line that holds, and work goes on from there. The part of the index,
`shard-000003.part`, is published last: if it is there, the shard is made. Whoever writes holds a lock on the journal.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from i2v.pipelines.index import BLOCK, CLIP, FRAGMENT, clip_key, padded, shard_name
from i2v.shard_tools.encode import EncodedClip
from i2v.shard_tools.output import Output, OutputError
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import Video

END_OF_TAR = bytes(2 * BLOCK)


def part_name(number: int) -> str:
    return f"shard-{number:06d}.part"


class ShardWriter:
    """Writes the outcomes of `videos`, in order. Opening it takes the lock; `resume` goes on where a call before stopped.

    done: outcomes recorded so far; rejected: those of them that were rejections.
    """

    def __init__(self, output: Output, number: int, videos: list[Video]):
        self.output, self.number, self.videos = output, number, videos
        self.done = self.rejected = self.clips = 0
        self.size = self.crc = 0  # of the tar so far
        self._tar = self._made_with = None
        self._partial = output.folder / f"{shard_name(number)}.partial"
        self._journal_path = output.folder / f"shard-{number:06d}.journal.jsonl"
        self._journal = self._open_journal()

    @property
    def complete(self) -> bool:
        return self.done == len(self.videos)

    def resume(self, made_with: dict) -> None:
        """Read the journal as far as it and the tar agree, and cut both there.

        made_with: everything that decides what is written, as JSON. A journal of something else is begun again.
        """
        self._made_with = made_with
        lines = self._lines()
        if next(lines, None) == {"made_with": made_with}:
            good = self._line_end
            for line in lines:
                if not self._confirm(line):
                    break
                good = self._line_end
            os.ftruncate(self._journal, good)
        else:
            os.ftruncate(self._journal, 0)
            self._note({"made_with": made_with})
        if self._tar is not None:
            os.ftruncate(self._tar, self.size)
            os.lseek(self._tar, self.size, os.SEEK_SET)

    def add(self, outcome: EncodedClip | RejectedVideo) -> None:
        """Record the next video: its bytes into the tar, then its line into the journal."""
        video = self.videos[self.done]
        if isinstance(outcome, RejectedVideo):
            self._note({"video": self.done, "rejected": outcome.reason})
            self.rejected += 1
        else:
            if self._tar is None:
                self._tar = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            members = _members(clip_key(self.number, self.clips), video, outcome)
            _write(self._tar, members)
            clip = {
                "offset": self.size + BLOCK,
                "header_size": outcome.header_size,
                "header_crc": outcome.header_crc,
                "frames": outcome.frames,
                "width": outcome.width,
                "height": outcome.height,
                "fps": outcome.fps,
                "label": video.label if isinstance(video.label, int) else -1,  # of several: known when all sets are (join.py)
            }
            self.size, self.crc = self.size + len(members), zlib.crc32(members, self.crc)
            line = {"video": self.done, "end": self.size, "crc": zlib.crc32(members), "clip": clip}
            line["source_bytes"] = outcome.source_bytes
            line["fragments"] = base64.b64encode(outcome.fragments.tobytes()).decode()
            self._note(line)
            self.clips += 1
        self.done += 1

    def publish(self) -> None:
        """All videos are recorded: the tar and then the part of the index become what others see. A tar needs a clip."""
        os.fsync(self._journal)
        if self.clips:
            _write(self._tar, END_OF_TAR)
            self.output.publish(self._partial, keep=True)
        part = self.output.folder / f"{part_name(self.number)}.tmp"
        part.write_bytes(self._part().to_bytes())
        self.output.publish(part)
        self.discard()

    def discard(self) -> None:
        """Remove what only continuing needs, and let go of the lock."""
        self._partial.unlink(missing_ok=True)
        self._journal_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        for descriptor in (self._tar, self._journal):
            if descriptor is not None:
                os.close(descriptor)
        self._tar = self._journal = None

    def _open_journal(self) -> int:
        while True:
            journal = os.open(self._journal_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(journal).st_nlink:  # else whoever had the lock has just finished and removed it
                    return journal
            except BlockingIOError:
                os.close(journal)
                raise OutputError(
                    f"another make_shards is writing to {self.output.name}: wait for it, or choose a new folder."
                ) from None
            except BaseException:
                os.close(journal)
                raise
            os.close(journal)

    def _confirm(self, line: dict) -> bool:
        """Count the video of a journal's line as done, if the tar holds it."""
        if "clip" in line:
            if self._tar is None and not self._reopen():
                return False
            members = os.pread(self._tar, line["end"] - self.size, self.size)
            if len(members) != line["end"] - self.size or zlib.crc32(members) != line["crc"]:
                return False
            self.size, self.crc = line["end"], zlib.crc32(members, self.crc)
            self.clips += 1
        else:
            self.rejected += 1
        self.done += 1
        return True

    def _reopen(self) -> bool:
        # Killed after the tar was finished and before its part of the index was: it is an open one again.
        final = self._partial.with_suffix("")
        if not self._partial.exists() and final.exists():
            os.rename(final, self._partial)
        if self._partial.exists():
            self._tar = os.open(self._partial, os.O_RDWR)
        return self._tar is not None

    def _part(self) -> Part:
        clips, fragments, videos, rejected, source_bytes = [], [], [], {}, 0
        for line in self._lines():
            if "clip" in line:
                clips.append(line["clip"])
                fragments.append(np.frombuffer(base64.b64decode(line["fragments"]), FRAGMENT))
                videos.append(line["video"])
                source_bytes += line["source_bytes"]
            elif "rejected" in line:
                rejected[line["video"]] = line["rejected"]
        index = np.zeros(len(clips), CLIP)
        for name in clips[0] if clips else ():
            index[name] = [clip[name] for clip in clips]
        shard = {
            "name": shard_name(self.number),
            "bytes": self.size + len(END_OF_TAR),
            "clips": self.clips,
            "crc32": zlib.crc32(END_OF_TAR, self.crc),
        }
        fragments = np.concatenate([np.zeros(0, FRAGMENT), *fragments])
        return Part(shard, index, fragments, np.array(videos, np.int64), rejected, source_bytes, _crc32(self._made_with))

    def _note(self, line: dict) -> None:
        _write(self._journal, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _lines(self) -> Iterator[dict]:
        """The journal's lines, up to the first that is not whole. `_line_end` is where the last one ends, in bytes."""
        self._line_end = 0
        with open(self._journal_path, "rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    return
                if not text.endswith(b"\n"):
                    return
                self._line_end += len(text)
                yield line


@dataclass(frozen=True)
class Part:
    """A finished shard's part of the index. Videos are numbered within the shard."""

    shard: dict  # its entry in the manifest
    clips: np.ndarray  # (clips,) CLIP; shard and first_fragment are not known yet
    fragments: np.ndarray  # (frames,) FRAGMENT
    videos: np.ndarray  # (clips,) of which video each clip is
    rejected: dict[int, str]  # video -> reason
    source_bytes: int
    made_with: int  # checksum of what it was made with

    def to_bytes(self) -> bytes:
        facts = {"shard": self.shard, "rejected": self.rejected, "source_bytes": self.source_bytes}
        facts["made_with"] = self.made_with
        body = io.BytesIO()
        body.write(json.dumps(facts).encode() + b"\n")
        for array in (self.clips, self.fragments, self.videos):
            np.save(body, array)
        return b"%08x\n" % zlib.crc32(body.getbuffer()) + body.getvalue()


def read_part(output: Output, number: int, made_with: dict) -> Part:
    """The part of shard `number`. Raises FileNotFoundError, or OutputError if it is damaged or of something else."""
    crc, _, body = output.read(part_name(number)).partition(b"\n")
    if crc != b"%08x" % zlib.crc32(body):
        raise OutputError(
            f"{output.name}/{part_name(number)} is damaged: delete it, and the same command makes that shard again."
        )
    body = io.BytesIO(body)
    facts = json.loads(body.readline())
    if facts.get("made_with") != _crc32(made_with):
        raise OutputError(
            f"{output.name}/{part_name(number)} is of a shard made with other options or videos: delete it, and the same "
            "command makes that shard again."
        )
    rejected = {int(video): reason for video, reason in facts["rejected"].items()}
    return Part(facts["shard"], *(np.load(body) for _ in range(3)), rejected, facts["source_bytes"], facts["made_with"])


def _crc32(made_with: dict) -> int:
    return zlib.crc32(json.dumps(made_with, sort_keys=True).encode())


def _members(key: str, video: Video, clip: EncodedClip) -> bytes:
    """The clip as it stands in the tar: the mp4 and its json, each with a header and padding."""
    facts = {
        "label": video.label,
        "class": video.class_name,
        "source": video.source,
        "start": video.start,  # seconds of the source, on its players' clock: the part that the clip shows
        "end": video.end,  # null: to its end
        "frames": clip.frames,
        "fps": clip.fps,
        "width": clip.width,
        "height": clip.height,
    }
    if clip.begin != video.start:
        facts["begin"] = round(clip.begin, 6)  # when the first frame is shown
    parts = []
    for suffix, data in (("mp4", clip.data), ("json", json.dumps(facts).encode())):
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size = len(data)
        parts += [info.tobuf(tarfile.USTAR_FORMAT), data.ljust(padded(len(data)), b"\0")]
    return b"".join(parts)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
