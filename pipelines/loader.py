"""From a data set and options to a loader, everything checked: build_loader."""

from __future__ import annotations

import difflib
import importlib.util
import os
from dataclasses import fields, replace

import numpy as np
import torch

from i2v.pipelines.augment import AugmentOptions
from i2v.pipelines.batch import Batch
from i2v.pipelines.graph import GraphOptions, choose_decoder
from i2v.pipelines.joined import JoinedShards
from i2v.pipelines.mosi import MOTIONS, check_pretext
from i2v.pipelines.options import ClipOptions, OrderOptions
from i2v.pipelines.plan import Plan
from i2v.pipelines.quarantine import Quarantine
from i2v.pipelines.read_ahead import Loader
from i2v.pipelines.shards import ShardError
from i2v.pipelines.source import ClipSource
from i2v.pipelines.stills import Stills
from i2v.pipelines.stream import open_sources, training_order

__all__ = ["Batch", "Loader", "build_loader"]


def build_loader(
    manifest,
    split: str = "train",
    options: ClipOptions | dict | None = None,
    batch_size: int = 8,
    device: str = "auto",
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    *,
    decode: str = "auto",
    seed: int = 0,
    threads: int | None = None,
    quarantine: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    cache_size: int | str | None = None,
    sample_weights: str | os.PathLike | np.ndarray | None = None,
    prefetch_bytes: int = 1 << 30,
    **more_options,
) -> Loader:
    """Batches of clips from a sharded data set, or from another source of clips.

    manifest: the folder or URL that make_shards wrote to, or its manifest.json; for training also a list of them, or of
    {"path": ..., "weight": ...}, the weights being shares of the stream; or an open ClipSource.
    split: "train" (endless: a new order each epoch),
    "val" (each video once, in order, one centre view), "test" (each video once, clips x crops views) or "windows" (each
    video once, as many windows as it is long).
    options, more_options: fields of ClipOptions (frames, crops, views), AugmentOptions (RandAugment, colours, erasing),
    OrderOptions (shuffling, balance, repeats) and GraphOptions (interpolation, antialias, dtype).
    batch_size: samples per rank and batch. device: where clips are made: cpu, gpu or auto. decode: where videos are
    decoded: cpu, gpu or auto. start: samples that all ranks together have seen before. quarantine: a CSV in
    which bad clips are written down, and in which the ranks and continuations of a run count them together. cache,
    cache_size: where shards of a URL are staged, and how much of it they may fill (see ShardSet). sample_weights: how often
    each video is wanted, relatively: (n,), or a .npy of it, or a CSV of key,weight. prefetch_bytes: of clips that
    are read ahead, per process: compressed, or decoded where FFmpeg decodes.
    Raises TypeError for unknown options, ValueError for wrong values, ShardError for a data set that cannot be used.
    """
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise ShardError("NVIDIA DALI is not installed: pip install 'i2v[cuda13]', or [cuda12] (`i2v doctor` tells which).")
    given = _merged(options, more_options)
    kinds = (ClipOptions, OrderOptions, AugmentOptions)
    clip_options, order_options, augment = (kind(**_fields(kind, given)) for kind in kinds)
    if split != "train" and clip_options.test_size:
        clip_options = replace(clip_options, size=clip_options.test_size)
    _check_numbers(batch_size, rank, world_size, start, seed, threads, prefetch_bytes)
    sets, shares = open_sources(manifest, split, cache, cache_size)
    shards = sets[0] if len(sets) == 1 else JoinedShards(sets)
    order = None
    if split == "train":
        order = training_order(shards, sets, shares, order_options, seed, sample_weights)
    counted = Quarantine(quarantine, shards, len(MOTIONS) if clip_options.pretext else 1)
    if clip_options.pretext:
        check_pretext(split, order_options, augment)
        shards = Stills(shards)
    facts = (shards.clips[name] for name in ("frames", "width", "height", "fps"))
    epoch = order_options.epoch_clips or len(shards) * order_options.repeats
    plan = Plan(*facts, clip_options, split, seed, order=order, augment=augment, times=shards.times, epoch_clips=epoch)
    device = _choose_device(device)
    views = plan.clips * plan.crops
    graph = _fields(GraphOptions, given) | {"size": clip_options.size, "crops": plan.crops, "augment": plan.augment}
    if plan.stills:  # the rest is done to what is cut out of them (moving.py)
        graph |= {"size": clip_options.still_size, "interpolation": "floor", "dtype": "uint8", "augment": AugmentOptions()}
    # Many views take much memory as floats: they are normalised when they are looked at (Batch.views).
    graph = GraphOptions(**graph | ({"dtype": "uint8"} if views > 1 else {}))
    return Loader(
        shards=shards,
        plan=plan,
        graph=graph,
        batch_size=batch_size,
        device=device,
        decode=_choose_decoder(shards, device, decode),
        rank=rank,
        world_size=world_size,
        start=start,
        threads=threads or _cores(),
        quarantine=counted,
        prefetch_bytes=prefetch_bytes,
    )


def _merged(options, more_options: dict) -> dict:
    """All options by name. Raises TypeError for one that is given twice or that there is not."""
    given = {} if options is None else options
    given = dict(given) if isinstance(given, dict) else {f.name: getattr(given, f.name) for f in fields(given)}
    twice = given.keys() & more_options.keys()
    if twice:
        raise TypeError(f"Clip option {min(twice)!r} is given twice: in options and as a keyword.")
    _refuse_unknown(given | more_options)
    return given | more_options


def _fields(kind, given: dict) -> dict:
    return {f.name: given[f.name] for f in fields(kind) if f.name in given}


def _refuse_unknown(given: dict) -> None:
    known = {f.name for kind in (ClipOptions, OrderOptions, AugmentOptions, GraphOptions) for f in fields(kind)}
    known.discard("augment")  # of the graph: made of the others
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}."
            raise TypeError(f"Unknown clip option {name!r}: {hint}")


def _check_numbers(batch_size, rank, world_size, start, seed, threads, prefetch_bytes) -> None:
    numbers = {
        "batch_size": (batch_size, 1),
        "world_size": (world_size, 1),
        "rank": (rank, 0),
        "start": (start, 0),
        "seed": (seed, 0),
        "threads": (1 if threads is None else threads, 1),
        "prefetch_bytes": (prefetch_bytes, 1),
    }
    for name, (value, least) in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} is {value!r}: it must be a whole number, at least {least}.")
    if rank >= world_size:
        raise ValueError(f"rank is {rank}: it must be between 0 and {world_size - 1}.")


def _choose_device(device: str) -> str:
    if device not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device is {device!r}: it must be auto, cpu or gpu.")
    if device == "gpu" and not torch.cuda.is_available():
        raise ValueError("device is gpu, but torch finds no CUDA device: set device to cpu or auto.")
    return ("gpu" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _choose_decoder(shards: ClipSource, device: str, decode: str) -> str:
    """One place for all codecs of the clips."""
    least_side = int(min(shards.clips["width"].min(), shards.clips["height"].min()))
    decoders = {choose_decoder(codec, device, decode, least_side) for codec in shards.codecs}
    if len(decoders) > 1 and "gpu" not in decoders:
        return "reader"  # it takes every codec
    if len(decoders) > 1:
        raise ValueError(f"{shards.root} are of codecs that are decoded in different places: set decode to cpu.")
    return decoders.pop()


def _cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
