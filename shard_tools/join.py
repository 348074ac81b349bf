"""The parts of all shards -> the index, the tables for people, and last the manifest.

Done twice, or after being interrupted anywhere, it comes to the same bytes; the manifest of before holds until the last.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from i2v.pipelines.index import (
    CLIP,
    FORMAT,
    FRAGMENT,
    VERSION,
    Factors,
    class_counts,
    clip_key,
    combinations,
    index_file,
    index_names,
    manifest_crc32,
)
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.output import Output, OutputError
from i2v.shard_tools.sources import Video
from i2v.shard_tools.writer import Part, part_name, read_part

CLIP_COLUMNS = ["key", "path", "start", "end", "class", "frames", "seconds", "width", "height"]
REJECTED_COLUMNS = ["path", "start", "end", "label", "reason"]


@dataclass(frozen=True)
class ShardPlan:
    """Which video goes into which shard: a pure function of the listing and the seed, whoever makes the shards."""

    videos: list[Video]  # as listed
    order: np.ndarray  # indices into `videos`: what is to be made, in the order of the shards
    shard_clips: int  # videos of a shard
    first: int  # number of the first shard

    @property
    def numbers(self) -> range:
        return range(self.first, self.first - (-len(self.order) // self.shard_clips))

    def listed_at(self, number: int) -> np.ndarray:
        """Indices into `videos` of a shard's videos."""
        start = (number - self.first) * self.shard_clips
        return self.order[start : start + self.shard_clips]

    def shard(self, number: int) -> list[Video]:
        return [self.videos[i] for i in self.listed_at(number)]


def identity(path: str, start: float | str, end: float | str | None) -> tuple:
    """What tells one video, or one part of a video, from another, in a listing and in the tables."""
    return path, float(start or 0), None if end in (None, "") else float(end)


def join(
    output: Output, plan: ShardPlan, classes: list[str] | Factors, settings: EncodeSettings, made_with: dict, old: dict | None
) -> dict:
    """Write the index, clips.csv, rejected.csv and, last, the manifest, which is returned.

    old: the manifest of the data set to which the shards of `plan` are appended, as its generation made_with["generation"].
    """
    generation = made_with.get("generation", 0)
    index = index_names(generation)
    shards, clips = (list(old["shards"]), [_old_clips(output, old)]) if old else ([], [])
    several = any(isinstance(video.label, tuple) for video in plan.videos)
    label_sets = {tuple(each): i for i, each in enumerate((old or {}).get("label_sets", []))}  # set of classes -> its number
    rejected, source_bytes, frames = [], old["source_bytes"] if old else 0, old["frames"] if old else 0
    with (
        open(output.folder / f"{index['fragments']}.tmp", "wb") as file,
        _write_table(output, "clips.csv", CLIP_COLUMNS) as table,
    ):
        _npy_header(file, 0)  # again below, when the number of frames is known: it keeps its length
        if old:
            _copy_fragments(output, old, file)
            table.writerows(_old_rows(output, "clips.csv", old["clips"]))
        for number, part in _parts(output, plan, made_with):
            videos, listed_at = plan.shard(number), plan.listed_at(number)
            part.clips["shard"] = len(shards)
            if several and len(part.clips):
                part.clips["label"] = [label_sets.setdefault(videos[v].label, len(label_sets)) for v in part.videos]
            part.clips["first_fragment"] = frames + np.cumsum(part.clips["frames"]) - part.clips["frames"]
            file.write(part.fragments.tobytes())
            for i, (clip, video) in enumerate(zip(part.clips, (videos[v] for v in part.videos))):
                table.writerow(_clip_row(clip_key(number, i), video, clip))
            rejected += [(listed_at[v], videos[v], reason) for v, reason in part.rejected.items()]
            clips.append(part.clips)
            frames += len(part.fragments)
            source_bytes += part.source_bytes
            shards += [part.shard] if len(part.clips) else []  # without clips there is no tar
        file.seek(0)
        _npy_header(file, frames)
    clips = np.concatenate([np.zeros(0, CLIP), *clips])
    with open(output.folder / f"{index['clips']}.tmp", "wb") as file:
        np.save(file, clips)
    still = _still_rejected(output, plan) if old else []
    with _write_table(output, "rejected.csv", REJECTED_COLUMNS) as table:
        table.writerows(still)
        for _, video, reason in sorted(rejected, key=lambda row: row[0]):
            table.writerow([video.source, *_interval(video), video.class_name or "", reason])
    checksums = {kind: _crc32(output.folder / f"{name}.tmp") for kind, name in index.items()}
    for name in (*index.values(), "clips.csv", "rejected.csv"):
        output.publish(output.folder / f"{name}.tmp")
    described = {"classes": classes}
    if isinstance(classes, dict):
        described = {"classes": combinations(classes), "factors": classes}
    if several:
        described["label_sets"] = [list(each) for each in label_sets]
    counts = class_counts(clips["label"], len(described["classes"]), described.get("label_sets"))
    appended = made_with | {"clips": len(clips) - (old["clips"] if old else 0), "rejected": len(rejected)}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "generation": generation,
        "codec": settings.codec,
        "gop": settings.gop,
        "short_side": settings.short_side,
        "clips": len(clips),
        "frames": frames,
        "hours": _hours(clips),
        "rejected": len(rejected) + len(still),
        "source_bytes": source_bytes,
        "sizes": _count_sizes(clips),
        **described,
        "clips_per_class": counts.tolist(),
        "index": index,
        "index_crc32": checksums,
        "shards": shards,
        "encoder": settings.encoder_options(),
        "made_with": old["made_with"] if old else made_with,
        "appended": [*old.get("appended", []), appended] if old else [],
    }
    manifest["crc32"] = manifest_crc32(manifest)
    output.write_json("manifest.json", manifest)
    return manifest


def _parts(output: Output, plan: ShardPlan, made_with: dict) -> Iterator[tuple[int, Part]]:
    sizes = output.sizes()
    for number in plan.numbers:
        part = read_part(output, number, made_with)
        if len(part.clips) and sizes.get(part.shard["name"]) != part.shard["bytes"]:
            raise OutputError(
                f"{output.name}/{part.shard['name']} is missing or not as it was written: delete {part_name(number)} "
                "beside it, and the same command makes that shard again."
            )
        yield number, part


def _clip_row(key: str, video: Video, clip: np.void) -> list:
    seconds = f"{clip['frames'] / float(clip['fps']):.3f}"
    named = [key, video.source, *_interval(video), video.class_name or ""]
    return [*named, clip["frames"], seconds, clip["width"], clip["height"]]


def _interval(video: Video) -> tuple[str, str]:
    """Start and end as text; empty: of the file."""
    return str(video.start) if video.start else "", "" if video.end is None else str(video.end)


def _hours(clips: np.ndarray) -> float:
    return float((clips["frames"] / clips["fps"].astype(np.float64)).sum() / 3600)


def _count_sizes(clips: np.ndarray) -> dict[str, int]:
    """ "WxH" -> clips, the most frequent first."""
    sizes, counts = np.unique(np.stack([clips["width"], clips["height"]], 1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {f"{width}x{height}": int(count) for (width, height), count in zip(sizes[order], counts[order])}


# What was there before an append. clips.csv and rejected.csv may be those of an append that was interrupted in this very
# function: its rows come last in clips.csv, and are about the plan's own videos in rejected.csv.


def _old_clips(output: Output, old: dict) -> np.ndarray:
    with _old_index(output, old, "clips") as path:
        return np.load(path)


def _copy_fragments(output: Output, old: dict, to) -> None:
    with _old_index(output, old, "fragments") as path, open(path, "rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        shutil.copyfileobj(file, to, 1 << 24)


@contextlib.contextmanager
def _old_index(output: Output, old: dict, kind: str) -> Iterator[Path]:
    """An index file as it was written: what is made of another one would have checksums that are right."""
    name, crc32 = index_file(old, kind)
    with output.local_copy(name) as path:
        if crc32 not in (None, _crc32(path)):
            raise OutputError(
                f"{output.name}/{name} is damaged (its checksum differs): restore it from a copy, and the same command goes on."
            )
        yield path


def _old_rows(output: Output, name: str, count: int | None = None) -> list[list[str]]:
    """The rows of a table, or the first `count`."""
    try:
        with output.local_copy(name) as path, open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(itertools.islice(csv.reader(file), 1, None if count is None else count + 1))
    except (FileNotFoundError, csv.Error):
        rows = None
    columns = CLIP_COLUMNS if name == "clips.csv" else REJECTED_COLUMNS
    if rows is None or any(len(row) != len(columns) for row in rows) or count not in (None, len(rows)):
        raise OutputError(f"{output.name}/{name} is missing or not as it was written: restore it to append to the data set.")
    return rows


def known_videos(output: Output, manifest: dict) -> tuple[set, set]:
    """Identities of the videos that the data set has as clips, and of those that it rejected."""
    clips = {identity(*row[1:4]) for row in _old_rows(output, "clips.csv", manifest["clips"])}
    return clips, {identity(*row[:3]) for row in _old_rows(output, "rejected.csv", manifest["rejected"])}


def _still_rejected(output: Output, plan: ShardPlan) -> list[list[str]]:
    """The rows of rejected.csv that are not about the plan's videos."""
    rows = [(identity(*row[:3]), row) for row in _old_rows(output, "rejected.csv")]
    rejected = {video for video, _ in rows}
    tried = (identity(video.source, video.start, video.end) for video in map(plan.videos.__getitem__, plan.order))
    again = {video for video in tried if video in rejected}
    return [row for video, row in rows if video not in again]


@contextlib.contextmanager
def _write_table(output: Output, name: str, columns: list[str]):
    """A CSV writer into NAME.tmp."""
    path = output.folder / f"{name}.tmp"
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        yield table


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc


def _npy_header(file, count: int) -> None:
    facts = {"descr": np.lib.format.dtype_to_descr(FRAGMENT), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, facts)
