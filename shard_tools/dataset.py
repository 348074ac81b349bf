"""Videos -> shards, index and manifest: what is made, by whom, and what is made already.

The unit of work is the shard: a fixed slice of the shuffled list, so that it does not matter who makes it. While a data
set is being made, the output holds `making.json`: what it is made with. A finished shard is a tar and a part of the index;
whoever finds all parts joins them. The manifest is written last: a data set with a manifest is complete.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np

from i2v.atomic import unique
from i2v.pipelines.index import Factors, index_names, is_intact, shard_number
from i2v.shard_tools.encode import EncodedClip, EncodeSettings
from i2v.shard_tools.join import ShardPlan, identity, join, known_videos
from i2v.shard_tools.output import MAKING, Output, OutputError
from i2v.shard_tools.pool import encode_videos
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import Video, source_hash
from i2v.shard_tools.writer import ShardWriter, part_name

LEFTOVER = re.compile(
    r"shard-.*\.(partial|part|journal\.jsonl|tmp|upload)|making.*\.npy|(clips|fragments)(-\d+)?\.npy"
    r"|(making|manifest|clips|fragments|rejected).*\.(tmp|copy|upload)"
)


def make_shards(
    videos: list[Video],
    classes: list[str] | Factors,
    out: str | os.PathLike,
    settings: EncodeSettings = EncodeSettings(),
    *,
    seed: int = 0,
    shard_clips: int = 1000,
    append: bool = False,
    retry: bool = False,
    task: tuple[int, int] = (0, 1),
    workers: int = 0,
    timeout: float = 600,
    staging: str | os.PathLike | None = None,
    encode: Callable[[Iterator[Video]], Iterator[EncodedClip | RejectedVideo]] | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> dict | None:
    """Encode `videos` into the folder or URL `out`, or go on where an interrupted call stopped. Returns the manifest.

    classes: names; or those of each factor, whose combinations the labels are the numbers of.

    shard_clips: videos of a shard; those that are rejected leave it smaller.
    append: add the videos that the finished data set in `out` does not know yet; retry: those that it rejected.
    task: (i, n) makes the shards i, i + n, ... of an array of n tasks; returns None while other tasks' shards are missing.
    workers, timeout (seconds): see encode_videos. staging: local folder for what is on its way to a URL.
    encode: what makes clips of videos, in order (default: encode_videos with these settings).
    on_progress: called with (videos done, videos in all, rejected by this call) at the start and as it goes on.
    The bytes depend on videos, classes, settings, seed and shard_clips only (hevc: nearly, x265 is not exact).
    Raises OutputError, StoreError, and OSError (disk full, no permission); after the last two the same call continues.
    """
    output = Output(out, staging)
    made_with = asdict(settings) | {
        "seed": seed,
        "shard_clips": shard_clips,
        "sources": source_hash(videos, classes),
        "av": av.__version__,
    }
    made_with = json.loads(json.dumps(made_with))  # as it is when it has been read back
    # In this order: what another task finishes meanwhile is then seen as unfinished or as finished, never as neither.
    names, making, manifest = output.sizes(), output.read_json(MAKING), _read_manifest(output)
    if making and manifest and _generation(making) <= _generation(manifest):
        output.create()
        with output.lock(MAKING) as there:
            if there and output.read_json(MAKING) == making:
                _clean_up(output, manifest)  # killed after the manifest was written
        if making == made_with | {"append": append, "retry": retry, "generation": _generation(manifest)}:
            return manifest
        names, making = output.sizes(), output.read_json(MAKING)
    if append or retry:
        classes = _require_appendable(output, manifest, settings, videos, classes)
        made_with |= {"append": append, "retry": retry, "generation": _generation(manifest) + 1}
        chosen = _begin_append(output, making, manifest, videos, made_with)
        first = 1 + max((shard_number(shard["name"]) for shard in manifest["shards"]), default=-1)
    elif manifest is not None:
        _require_same(manifest["made_with"], made_with, f"{out} was made", "choose a new folder, or delete that one")
        return manifest
    else:
        if making is None and any(name.startswith("shard-") for name in names):
            raise OutputError(f"{out} holds shards but no {MAKING} that says how they were made: choose a new folder.")
        _begin(output, making, made_with)
        chosen, first = np.arange(len(videos)), 0
    if len(chosen) == 0:
        return _read_manifest(output)
    shuffled = np.argsort(np.random.Philox(key=seed).random_raw(len(chosen)), kind="stable")
    plan = ShardPlan(videos, chosen[shuffled], shard_clips, first)

    numbers = [number for number in plan.numbers if number % task[1] == task[0]]
    missing = [number for number in numbers if part_name(number) not in names]
    total, left = (sum(len(plan.listed_at(number)) for number in some) for some in (numbers, missing))
    counts = _Counts(total - left, total, on_progress)
    if missing:
        shards = ((number, plan.shard(number)) for number in missing)
        encode = encode or functools.partial(encode_videos, settings=settings, workers=workers, timeout=timeout)
        encode_shards(output, shards, made_with, encode, counts.add)
    else:
        counts.add(0, 0)
    return _join_if_complete(output, plan, classes, settings, made_with, manifest)


class _Counts:
    """What on_progress is told."""

    def __init__(self, done: int, total: int, on_progress: Callable[[int, int, int], None] | None):
        self.done, self.total, self.rejected, self.on_progress = done, total, 0, on_progress

    def add(self, more: int, more_rejected: int) -> None:
        self.done, self.rejected = self.done + more, self.rejected + more_rejected
        if self.on_progress:
            self.on_progress(self.done, self.total, self.rejected)


def encode_shards(
    output: Output,
    shards: Iterable[tuple[int, list[Video]]],
    made_with: dict,
    encode: Callable[[Iterator[Video]], Iterator[EncodedClip | RejectedVideo]],
    report: Callable[[int, int], None],
) -> None:
    """Make shards (number, videos) one after the other; the processes never wait for a shard to end.

    report: called with how many more videos are done, and how many of those are rejected.
    """
    writers = deque()  # of the shards that have begun

    def videos() -> Iterator[Video]:
        for number, listed in shards:
            writer = ShardWriter(output, number, listed)
            writers.append(writer)
            if output.has(part_name(number)) or output.read_json(MAKING) != made_with:  # others were faster
                writers.pop().discard()
                report(len(listed), 0)
                continue
            writer.resume(made_with)
            report(writer.done, writer.rejected)
            yield from listed[writer.done :]

    def publish_complete() -> None:
        while writers and writers[0].complete:
            writers[0].publish()
            writers.popleft()

    try:
        with contextlib.closing(encode(videos())) as outcomes:
            for outcome in outcomes:
                publish_complete()
                writers[0].add(outcome)
                report(1, isinstance(outcome, RejectedVideo))
        publish_complete()
    finally:
        for writer in writers:
            writer.close()


def _read_manifest(output: Output) -> dict | None:
    manifest = output.read_json("manifest.json")
    if manifest is not None and "made_with" not in manifest:
        raise OutputError(f"{output.name} holds a manifest.json that is not ours: choose a new folder.")
    return manifest


def _generation(content: dict) -> int:
    """Of a manifest, or of what is being made: how many times something was appended before it."""
    return content.get("generation", 0)


def _begin(output: Output, making: dict | None, made_with: dict) -> None:
    """Say in the output what is being made there, or check that it is this."""
    if making is not None:
        _require_same(making, made_with, f"{output.name} was made", "choose a new folder, or delete that one")
    output.create()
    if making is None:
        output.write_json(MAKING, made_with)
        _require_ours(output, made_with)


def _require_appendable(
    output: Output, manifest: dict | None, settings: EncodeSettings, videos: list[Video], classes: list[str] | Factors
) -> list[str] | Factors:
    """The class names of the data set after an append. Raises OutputError if there cannot be one."""
    if manifest is None:
        raise OutputError(f"{output.name} holds no finished data set: make it first, without --append and --retry.")
    if not is_intact(manifest):
        raise OutputError(f"{output.name}/manifest.json is damaged (its checksum differs): restore it from a copy.")
    now = json.loads(json.dumps(asdict(settings)))
    before = {key: manifest["made_with"].get(key) for key in now}
    _require_same(before, now, f"{output.name} was made", "what is appended must be like what is there")
    old = manifest["classes"]
    if any((video.label != -1) != bool(old) for video in videos):
        there, here = ("labels", "no labels") if old else ("no labels", "labels")
        raise OutputError(f"the videos of {output.name} have {there} and those of this list {here}: choose a new folder.")
    if any(isinstance(video.label, tuple) != ("label_sets" in manifest) for video in videos):
        there, here = ("several", "one") if "label_sets" in manifest else ("one", "several")
        raise OutputError(f"videos of {output.name} have {there} classes each and those of this list {here}: make both alike.")
    if isinstance(classes, dict) or manifest.get("factors"):
        if classes and classes != manifest.get("factors"):
            raise OutputError(
                f"{output.name} does not have the factors of this list, or other names of them: choose a new folder."
            )
        return manifest["factors"]
    if classes and classes[: len(old)] != old:
        at = next((i for i, (one, other) in enumerate(zip(old, classes)) if one != other), len(classes))
        here = f"{classes[at]!r} here" if at < len(classes) else "missing here"
        raise OutputError(
            f"class {at} is {old[at]!r} in {output.name} and {here}: give the classes of {output.name}/manifest.json, "
            "with new ones after them if there are any."
        )
    return classes or old


def _begin_append(output: Output, making: dict | None, manifest: dict, videos: list[Video], made_with: dict) -> np.ndarray:
    """Indices of the videos that are to be appended, chosen once: later, some of them will be known."""
    if making is not None:
        _require_same(making, made_with, f"{output.name} holds an append that is not finished,", "give its command first")
        output.create()
        return np.load(io.BytesIO(output.read(_chosen_name(made_with))))
    unfinished = [name for name in output.sizes() if name.startswith("shard-") and not name.endswith(".tar")]
    if unfinished and not output.has(MAKING):
        raise OutputError(f"{output.name} holds parts of shards but no {MAKING} that says how they were made: delete them.")
    clips, rejected = known_videos(output, manifest)
    retry, append = made_with["retry"], made_with["append"]
    wanted = []
    for i, video in enumerate(videos):
        known = identity(video.source, video.start, video.end)
        if known not in clips and (retry if known in rejected else append):
            wanted.append(i)
    if not wanted or _read_manifest(output) != manifest:  # another task was faster
        return np.zeros(0, np.int64)
    output.create()
    chosen = np.array(wanted, np.int64)
    with open(output.folder / f"{_chosen_name(made_with)}.{unique()}.tmp", "wb") as file:
        np.save(file, chosen)
    output.publish(Path(file.name), _chosen_name(made_with))
    if not output.has(MAKING):
        output.write_json(MAKING, made_with)
    _require_ours(output, made_with)
    return chosen


def _chosen_name(made_with: dict) -> str:
    """Of an append, the file that says which of the listed videos are new: another append, that begins at the same time and
    will be refused, has another."""
    return f"making-{zlib.crc32(json.dumps(made_with, sort_keys=True).encode()):08x}.npy"


def _require_ours(output: Output, made_with: dict) -> None:
    """Another command may have begun at the same time. Nothing there: others have finished this one already."""
    making = output.read_json(MAKING) or made_with
    _require_same(making, made_with, f"another command makes something in {output.name},", "choose a new folder")


def _require_same(before: dict, now: dict, what: str, remedy: str) -> None:
    if before == now:
        return
    key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    how = f"with {key} {before.get(key)}, this command says {now.get(key)}"
    how = "from another source list or other class names" if key == "sources" else how
    raise OutputError(f"{what} {how}: {remedy}.")


def _join_if_complete(
    output: Output, plan: ShardPlan, classes: list[str] | Factors, settings: EncodeSettings, made_with: dict, old: dict | None
) -> dict | None:
    """The manifest, made by whoever comes first when all parts are there; None: some are missing."""
    with output.lock(MAKING) as there:
        if there and output.read_json(MAKING) == made_with:
            names = output.sizes()
            if not all(part_name(number) in names for number in plan.numbers):
                return None
            try:
                manifest = join(output, plan, classes, settings, made_with, old)
                _clean_up(output, manifest)
                return manifest
            except FileNotFoundError:  # in a store, where there is no lock, another task may have been faster
                if output.read_json(MAKING) == made_with:
                    raise
    manifest = _read_manifest(output)
    if manifest is None or _generation(manifest) < _generation(made_with):
        raise OutputError(f"another command took {output.name} while this one was making shards there: choose a new folder.")
    return manifest


def _clean_up(output: Output, manifest: dict) -> None:
    """Remove what only making takes, and the index that only readers of the data set before the last append had."""
    generation = _generation(manifest)
    kept = {name for g in (generation, generation - 1) for name in index_names(g).values()}
    names = {*output.sizes(), *os.listdir(output.folder)} - kept
    output.remove(sorted(name for name in names if LEFTOVER.fullmatch(name)))
    output.remove([MAKING])
