"""Features of all videos of a data set: what enters the classifier, in one pass of the loader that goes on if interrupted."""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from i2v import featurefiles as files
from i2v.distributed import World, sum_over_ranks, wait_for_all
from i2v.lock import held
from i2v.pipelines.shards import ClipError
from i2v.rows import Rows
from i2v.session import Session


def extract(session: Session, rows: Rows, loader, how: dict, out: Path, world: World) -> list[str]:
    """Write what is missing of the features of all of the loader's videos, by all ranks. Returns the keys of those that could
    not be read, on rank 0.

    how: what the features depend on, beside what session and loader tell, and their format. Raises ValueError if the folder
    holds features that were made otherwise.
    """
    model = {name: value for name, value in session.meta.model.items() if name not in ("num_classes", "head")}
    facts = {"method": model, "data": loader.fingerprint(), "videos": len(loader.shards), "split": loader.plan.split}
    with held(out, world):
        files.claim(out, how | facts | {"part": files.PART, "precision": session.precision}, world)
        parts = range(-(-len(loader.shards) // files.PART))
        mine = own_parts(out, parts, world)
        done = features_of_parts(rows, loader, mine, session.autocast)
        silent = not (world.is_main and sys.stderr.isatty())
        for part, found in tqdm(done, out.name, len(mine), unit=f"{files.PART} videos", disable=silent):
            files.write_part(out, how["format"], loader.shards, part, found)
        wait_for_all()
        return files.join_parts(out, parts) if world.is_main else []


def own_parts(out: Path, parts: range, world: World) -> list[int]:
    """This rank's share of the parts that are not there yet, as rank 0 sees it: neighbours, as far as they can be."""
    missing = torch.tensor([world.is_main and not (out / files.part_name(part)).exists() for part in parts], dtype=torch.int32)
    return np.array_split(sum_over_ranks(missing).nonzero().flatten().numpy(), world.size)[world.rank].tolist()


def features_of_parts(rows: Rows, loader, parts: list[int], autocast) -> Iterator[tuple[int, dict[int, list]]]:
    """Each part, as soon as it is complete, with [(rows, spans), ...] of each of its videos that could be read.

    All parts are one pass of the loader: to begin one costs a pipeline, and what that reads and decodes ahead.
    """
    if not parts:
        return
    first, shards, found = first_rows(loader.plan), loader.shards, defaultdict(list)
    positions = [
        np.arange(first[videos.start], first[videos.stop]) for videos in (files.videos_of(part, shards) for part in parts)
    ]
    loader.only = np.concatenate(positions)
    waiting = deque(zip(parts, np.cumsum(list(map(len, positions)))))
    with closing(iter(loader)) as batches:
        for batch in batches:
            add_features(found, rows, batch, loader, autocast)
            while waiting and waiting[0][1] <= batch.samples_seen:
                part, _ = waiting.popleft()
                pieces = {video: found.pop(video, []) for video in files.videos_of(part, shards)}
                yield part, {video: its for video, its in pieces.items() if len(its) == first[video + 1] - first[video]}


def add_features(found: dict[int, list], rows: Rows, batch, loader, autocast) -> None:
    """Of each sample of a batch that could be read: (rows, spans), to those of its video."""
    with torch.no_grad(), autocast():
        made = rows.of(batch)
    for i, (position, clip, weight) in enumerate(zip(batch.positions.tolist(), batch.ids.tolist(), batch.weights.tolist())):
        if weight:
            try:
                times = spans(loader.plan, loader.shards, clip, position, batch.frames[i].numpy())
                found[clip].append(({name: values[i] for name, values in made.items()}, times))
            except ClipError:
                pass  # without its times it is not complete


def first_rows(plan) -> np.ndarray:
    """(n + 1,) position of each video's first sample."""
    return plan.first_windows if plan.split == "windows" else np.arange(len(plan) + 1)


def spans(plan, shards, clip: int, position: int, frames: np.ndarray) -> np.ndarray:
    """(clips, 2) start and end of each clip of a sample, in seconds of the source as players count them."""
    begin, fps = shards.begin(clip), float(shards.clips["fps"][clip])
    if plan.split == "windows":
        return np.array([plan.window(position)]).clip(max=int(shards.clips["frames"][clip]) / fps) + begin
    times = shards.times(clip)[frames.reshape(plan.clips, -1)]
    return np.stack([times.min(1), times.max(1) + 1 / fps], axis=1).astype(np.float64) + begin
