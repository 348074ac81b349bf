"""Clips -> shards, manifest and index, in a folder that can be continued after any interruption.

While it is being written the folder holds finished shards, one open shard (`shard-000003.tar.partial`) and
`journal.jsonl`: what is being made, then one line per video, written after the video's bytes. On restart the lines are
checked against the open shard, both are cut after the last line that holds, and work goes on from there. The manifest
is written last and replaces the journal: a folder with a manifest is complete.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import fcntl
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from pipelines.shards import CLIP, FORMAT, FRAGMENT, VERSION, clip_key
from shard_tools.encode import EncodedClip, EncodeSettings, RejectedVideo
from shard_tools.pool import encode_videos
from shard_tools.sources import Video, source_hash

BLOCK = 512  # bytes; members of a tar start on multiples of it
END_OF_TAR = bytes(2 * BLOCK)


class OutputError(RuntimeError):
    """The output folder cannot be used for this; the message is one sentence that says why and what to do."""


def make_shards(
    videos: list[Video],
    classes: list[str],
    out: str | os.PathLike,
    settings: EncodeSettings = EncodeSettings(),
    *,
    seed: int = 0,
    shard_size: float = 1e9,
    workers: int = 0,
    timeout: float = 600,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Encode `videos` into the folder `out`, or go on where an interrupted call stopped. Returns the manifest.

    shard_size: bytes at which a new shard is begun. workers, timeout (seconds): see encode_videos.
    on_progress: called with (videos done, videos rejected) at the start and after every video.
    The bytes depend on videos, classes, settings, seed and shard_size only (hevc: nearly, x265 is not exact).
    Raises OutputError, and OSError (disk full, no permission), after which the same call continues.
    """
    made_with = {
        "codec": settings.codec,
        "gop": settings.gop,
        "short_side": settings.short_side,
        "crf": settings.crf,
        "seed": seed,
        "shard_size": int(shard_size),
        "sources": source_hash(videos, classes),
        "av": av.__version__,
    }
    out = Path(out)
    finished = finished_manifest(out, made_with)
    if finished is not None:
        return finished
    order = np.argsort(np.random.Philox(key=seed).random_raw(len(videos)), kind="stable")
    with ShardWriter(out, made_with) as writer:
        report = on_progress or (lambda done, rejected: None)
        report(writer.done, writer.rejected)
        videos = [videos[i] for i in order]
        paths = (video.path for video in videos[writer.done :])
        with contextlib.closing(encode_videos(paths, settings, workers, timeout)) as outcomes:
            for outcome in outcomes:
                writer.add(videos[writer.done], outcome)
                report(writer.done, writer.rejected)
        return writer.finish(videos, order, classes, settings)


def finished_manifest(out: Path, made_with: dict) -> dict | None:
    """The manifest in `out`, None if there is none. Raises OutputError if it is of something else."""
    try:
        manifest = json.loads((out / "manifest.json").read_text())
        before = manifest["made_with"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{out} holds a manifest.json that is not ours: choose a new folder.") from None
    _require_same(before, made_with, out)
    (out / "journal.jsonl").unlink(missing_ok=True)  # killed between the two
    return manifest


class ShardWriter:
    """Writes outcomes in order. Opening a folder that was left unfinished continues it.

    made_with: everything that decides what is written, as JSON; must be the same when continuing.
    done: outcomes recorded so far; rejected: those of them that were rejections.
    """

    def __init__(self, out: str | os.PathLike, made_with: dict):
        self.out, self.made_with = Path(out), made_with
        self.shard_size = made_with["shard_size"]
        self.done = self.rejected = self.clips = 0  # clips: written, in all shards
        self.shards: list[dict] = []  # the finished ones
        self.size = self.crc = self.clips_in_shard = 0  # of the open one
        self._tar = None
        self.out.mkdir(parents=True, exist_ok=True)
        self._journal = os.open(self.out / "journal.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._resume()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_) -> None:
        for descriptor in (self._tar, self._journal):
            if descriptor is not None:
                os.close(descriptor)
        self._tar = self._journal = None

    def add(self, video: Video, outcome: EncodedClip | RejectedVideo) -> None:
        """Record the next video: its bytes into the open shard, then its line into the journal."""
        if isinstance(outcome, RejectedVideo):
            self._note({"video": self.done, "rejected": outcome.reason})
            self.rejected += 1
        else:
            members = _members(clip_key(len(self.shards), self.clips_in_shard), video, outcome)
            if self.size and self.size + len(members) + len(END_OF_TAR) > self.shard_size:
                self._close_shard()
                members = _members(clip_key(len(self.shards), 0), video, outcome)
            if self._tar is None:
                self._tar = os.open(self._partial(), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            _write(self._tar, members)
            clip = {
                "shard": len(self.shards),
                "offset": self.size + BLOCK,
                "header_size": outcome.header_size,
                "header_crc": outcome.header_crc,
                "frames": outcome.frames,
                "width": outcome.width,
                "height": outcome.height,
                "fps": outcome.fps,
                "label": video.label,
            }
            self.size += len(members)
            line = {"video": self.done, "end": self.size, "crc": zlib.crc32(members), "clip": clip}
            line["source_bytes"] = outcome.source_bytes
            line["fragments"] = base64.b64encode(outcome.fragments.tobytes()).decode()
            self._note(line)
            self.crc = zlib.crc32(members, self.crc)
            self.clips += 1
            self.clips_in_shard += 1
        self.done += 1

    def finish(self, videos: list[Video], listed_at: np.ndarray, classes: list[str], settings: EncodeSettings) -> dict:
        """Write the index, rejected.csv and, last, the manifest.

        videos: in the order of add(); listed_at: where in the source each of them was listed.
        """
        if self.size:
            self._close_shard()
        clips = np.zeros(self.clips, CLIP)
        written = iter(clips)
        rejected, source_bytes, frames = [], 0, 0
        with open(self.out / "fragments.npy.tmp", "wb") as file:
            _npy_header(file, FRAGMENT, 0)  # again below, when the number of frames is known: it keeps its length
            for line in self._lines():
                if "rejected" in line:
                    rejected.append((listed_at[line["video"]], videos[line["video"]], line["rejected"]))
                elif "clip" in line:
                    clip = next(written)
                    for name, value in line["clip"].items():
                        clip[name] = value
                    clip["first_fragment"] = frames
                    frames += int(clip["frames"])
                    source_bytes += line["source_bytes"]
                    file.write(base64.b64decode(line["fragments"]))
            file.seek(0)
            _npy_header(file, FRAGMENT, frames)
        _publish(self.out / "fragments.npy.tmp")
        with open(self.out / "clips.npy.tmp", "wb") as file:
            np.save(file, clips)
        _publish(self.out / "clips.npy.tmp")
        with open(self.out / "rejected.csv.tmp", "w", newline="", errors="surrogateescape") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "label", "reason"])
            for _, video, reason in sorted(rejected, key=lambda row: row[0]):
                table.writerow([video.source, video.class_name or "", reason])
        _publish(self.out / "rejected.csv.tmp")
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "codec": settings.codec,
            "gop": settings.gop,
            "short_side": settings.short_side,
            "clips": len(clips),
            "frames": frames,
            "hours": float((clips["frames"] / clips["fps"].astype(np.float64)).sum() / 3600),
            "rejected": len(rejected),
            "source_bytes": source_bytes,
            "sizes": dict(Counter(f"{clip['width']}x{clip['height']}" for clip in clips).most_common()),
            "classes": classes,
            "clips_per_class": np.bincount(clips["label"][clips["label"] >= 0], minlength=len(classes)).tolist(),
            "shards": self.shards,
            "encoder": settings.encoder_options(),
            "made_with": self.made_with,
        }
        (self.out / "manifest.json.tmp").write_text(json.dumps(manifest, indent=1) + "\n")
        _publish(self.out / "manifest.json.tmp")
        os.unlink(self.out / "journal.jsonl")
        return manifest

    def _lock(self) -> None:
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another make_shards is writing to {self.out}: wait for it, or choose a new folder."
            raise OutputError(message) from None

    def _resume(self) -> None:
        """Read the journal as far as it and the open shard agree, and cut both there."""
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            if any(self.out.glob("shard-*.tar*")):
                os.unlink(self.out / "journal.jsonl")
                raise OutputError(f"{self.out} holds shards but no journal of how they were made: choose a new folder.")
            os.ftruncate(self._journal, 0)
            self._note({"made_with": self.made_with})
            _sync_folder(self.out)
            return
        _require_same(first["made_with"], self.made_with, self.out)
        finished = sum("shard" in line for line in self._lines())
        lines, good = self._lines(), 0
        for line in lines:
            if "shard" in line:
                self._check_finished(line["shard"])
                self.shards.append(line["shard"])
                self._forget_open_shard()
            elif "video" in line and not self._confirm(line, is_open=len(self.shards) == finished):
                break
            good = self._line_end
        os.ftruncate(self._journal, good)
        if self.size:
            os.ftruncate(self._tar, self.size)
            os.lseek(self._tar, self.size, os.SEEK_SET)
        else:
            self._forget_open_shard()
        known = {shard["name"] for shard in self.shards} | ({self._partial().name} if self.size else set())
        for stray in self.out.glob("shard-*.tar*"):
            if stray.name not in known:
                stray.unlink()

    def _confirm(self, line: dict, is_open: bool) -> bool:
        """Count the video of a journal's line as done, unless it is in the open shard and that does not hold it."""
        if "clip" in line:
            if is_open:
                if self._tar is None and not self._reopen_shard():
                    return False
                members = os.pread(self._tar, line["end"] - self.size, self.size)
                if len(members) != line["end"] - self.size or zlib.crc32(members) != line["crc"]:
                    return False
                self.size, self.crc = line["end"], zlib.crc32(members, self.crc)
                self.clips_in_shard += 1
            self.clips += 1
        else:
            self.rejected += 1
        self.done += 1
        return True

    def _reopen_shard(self) -> bool:
        # Killed after the shard was finished and before the journal said so: it is the open one again.
        if not self._partial().exists() and self._partial().with_suffix("").exists():
            os.rename(self._partial().with_suffix(""), self._partial())
        if self._partial().exists():
            self._tar = os.open(self._partial(), os.O_RDWR)
        return self._tar is not None

    def _check_finished(self, shard: dict) -> None:
        path = self.out / shard["name"]
        if not path.exists() or path.stat().st_size != shard["bytes"]:
            raise OutputError(f"{path} is missing or not as it was written: delete {self.out} and start again.")

    def _close_shard(self) -> None:
        _write(self._tar, END_OF_TAR)
        os.fsync(self._tar)
        final = self._partial().with_suffix("")
        os.rename(self._partial(), final)
        _sync_folder(self.out)
        size, crc = self.size + len(END_OF_TAR), zlib.crc32(END_OF_TAR, self.crc)
        shard = {"name": final.name, "bytes": size, "clips": self.clips_in_shard, "crc32": crc}
        self._note({"shard": shard})
        os.fsync(self._journal)
        self.shards.append(shard)
        self._forget_open_shard()

    def _forget_open_shard(self) -> None:
        if self._tar is not None:
            os.close(self._tar)
        self._tar, self.size, self.crc, self.clips_in_shard = None, 0, 0, 0

    def _partial(self) -> Path:
        return self.out / f"shard-{len(self.shards):06d}.tar.partial"

    def _note(self, line: dict) -> None:
        _write(self._journal, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _lines(self):
        """The journal's lines, up to the first that is not whole. `_line_end` is where the last one ends, in bytes."""
        self._line_end = 0
        with open(self.out / "journal.jsonl", "rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    return
                if not text.endswith(b"\n"):
                    return
                self._line_end += len(text)
                yield line


def _members(key: str, video: Video, clip: EncodedClip) -> bytes:
    """The clip as it stands in the tar: the mp4 and its json, each with a header and padding."""
    facts = {
        "label": video.label,
        "class": video.class_name,
        "source": video.source,
        "frames": clip.frames,
        "fps": clip.fps,
        "width": clip.width,
        "height": clip.height,
    }
    parts = []
    for suffix, data in (("mp4", clip.data), ("json", json.dumps(facts).encode())):
        info = tarfile.TarInfo(f"{key}.{suffix}")
        info.size = len(data)
        parts += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % BLOCK)]
    return b"".join(parts)


def _require_same(before: dict, now: dict, out: Path) -> None:
    if before == now:
        return
    key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    how = f"with {key} {before.get(key)}, this command says {now.get(key)}"
    how = "from another source list or other class names" if key == "sources" else how
    raise OutputError(f"{out} was made {how}: choose a new folder, or delete that one.")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _npy_header(file, dtype: np.dtype, count: int) -> None:
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, facts)


def _publish(path: Path) -> None:
    """x.npy.tmp, written -> x.npy, on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(path, path.with_suffix(""))
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
