"""The data side of a run: a loader for this rank, and batches that all ranks get together or none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from i2v.config import Config
from i2v.distributed import World, any_of
from i2v.model import head_kind, pictures, spec_of
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.index import class_counts, sizes
from i2v.pipelines.options import OrderOptions
from i2v.rules import is_whole
from i2v.stall import Watch
from i2v.stop import Stopped, StopSignal
from i2v.tally import Labels


def open_loader(config: Config, world: World, split: str, manifest: str | list, batch_size: int, start: int = 0):
    """A loader of one split, for this rank."""
    data = config.data
    known = [field.name for field in fields(OrderOptions)]
    unknown = next((name for name in data.order if name not in known), None)
    if unknown is not None:
        raise ValueError(f"data.order.{unknown} is unknown: known are {', '.join(known)}.")
    misplaced = next((name for name in config.clips if name in known), None)
    if misplaced is not None:
        raise ValueError(
            f"clips.{misplaced} says in which order videos come, not how clips are cut: write data.order.{misplaced}."
        )
    spec, test_size = spec_of(config.model.method, config.model.backbone, config.model.weights), config.clips.get("test_size")
    # What is no whole number, ClipOptions refuses
    if is_whole(test_size) and test_size != spec.image_size and test_size % getattr(spec, "step", test_size + 1):
        takes = f"multiples of {spec.step}" if hasattr(spec, "step") else f"{spec.image_size} and no other"
        raise ValueError(f"clips.test_size is {test_size!r}, but the backbone takes pictures of a size of {takes}.")
    ordered = data.order | {"sample_weights": data.sample_weights} if split == "train" else {}
    return build_loader(
        manifest,
        split,
        config.clips,
        batch_size,
        "gpu" if world.device.type == "cuda" else "cpu",
        world.rank,
        world.size,
        start,
        decode=data.decode,
        seed=config.train.seed,
        threads=data.threads,
        cache=data.cache,
        cache_size=data.cache_size,
        prefetch_bytes=data.prefetch_bytes,
        quarantine=Path(config.out) / f"quarantine-{split}.csv",
        num_frames=config.model.num_frames,
        **pictures(spec),
        **ordered,
    )


def together(loader, stop: StopSignal, watch: Watch) -> Iterator:
    """This rank's batches, each once every rank has its own: none waits for another in vain.

    Raises on all ranks alike: ShardError if one of them cannot read its data, Stopped if one of them was told to stop.
    """
    batches = watch.reading(loader)
    while True:
        batch, problem = None, None
        try:
            batch = next(batches, None)
        except ShardError as error:
            problem = error
        failed, stopping = any_of(problem is not None, stop.wanted)
        if failed:
            raise problem or ShardError("Another process could not read its data.")
        if stopping:
            raise Stopped
        if batch is None:  # the end of a validation, which all ranks reach with the same batch
            return
        yield batch


def split_batch(batch_size: int, micro_batch: int | None, devices: int) -> tuple[int, int]:
    """(clips per device and forward pass, passes per step), so that a step is `batch_size` clips on any number of devices."""
    if batch_size % devices:
        raise ValueError(
            f"train.batch_size {batch_size} cannot be shared by {devices} devices: choose a multiple of {devices}."
        )
    per_device = batch_size // devices
    passes = math.ceil(per_device / (micro_batch or per_device))
    while per_device % passes:
        passes += 1
    return per_device // passes, passes


def check_labels(loader, val_loader) -> None:
    """Raises ValueError unless all videos are labelled, and validation has the same classes in the same order."""
    for each in (loader, val_loader):
        if each is not None and each.shards.clips["label"].min() < 0:
            raise ValueError(f"{each.shards.root} has videos without a label: it can be predicted, not trained or scored on.")
    if val_loader is None:
        return
    if (val_loader.shards.label_sets is None) != (loader.shards.label_sets is None):
        raise ValueError(
            f"Of {loader.shards.root} and {val_loader.shards.root} only one has several classes a video: make both alike."
        )
    if val_loader.shards.label_sets is not None and not any(val_loader.shards.label_sets):
        raise ValueError(
            f"No video of {val_loader.shards.root} has a class, so there is no mean average precision: give data.val videos "
            "that have some, or leave it out."
        )
    if val_loader.shards.classes != loader.shards.classes or val_loader.shards.factors != loader.shards.factors:
        raise ValueError(
            f"{loader.shards.root} and {val_loader.shards.root} do not have the same class names in the same order: "
            f"shard_tools/relabel.py {val_loader.shards.root} --out NEW --classes {loader.shards.root}/manifest.json copies "
            "the second with those of the first."
        )


def check_classes(shards, classes: list[str]) -> None:
    """Raises ValueError unless the class names of a data set are a checkpoint's, in its order."""
    if shards.classes != classes:
        raise ValueError(
            f"{shards.root} does not have the checkpoint's class names in the same order: "
            f"shard_tools/relabel.py {shards.root} --out NEW --classes TRAIN/manifest.json copies it with those of TRAIN."
        )


def head_for(head: dict, shards) -> dict:
    """A configured head for videos that are labelled so: factors in the order of the data's, which may be left out. Raises
    ValueError for a head that cannot say what these videos are labelled with."""
    kind, there = head_kind(head), sizes(shards.factors)
    if shards.label_sets is not None and kind != "linear":
        raise ValueError(
            f"Videos of {shards.root} have several classes, each for itself, which the logits of a {kind} head cannot say: "
            "use model.head {type: linear}."
        )
    if kind != "factors":
        return head
    given = head.get("factors", there)
    if not there or given != there:
        remedy = f"write {there}, or leave it out" if there else "make them with --factors, or use another head"
        raise ValueError(f"model.head.factors is {given}, but the factors of {shards.root} are {there or 'none'}: {remedy}.")
    return head | {"factors": there}


def labels_of(shards) -> Labels:
    """What the videos of a data set are labelled with."""
    return Labels(len(shards.classes), sizes(shards.factors), shards.label_sets is not None)


def class_weights(loader, power: float, device: torch.device) -> torch.Tensor | None:
    """(K,) weights of the classes in the loss, each class's number of videos to the power of minus `power`, on average 1
    over the videos; None if all are 1. A class without videos has no say."""
    if not power:
        return None
    shards = loader.shards
    sets = getattr(shards, "label_sets", None)
    counts = class_counts(shards.clips["label"], len(shards.classes), sets).astype(np.float64)
    weights = np.where(counts > 0, counts.clip(min=1) ** -power, 0)
    return torch.tensor(weights * counts.sum() / (weights * counts).sum(), dtype=torch.float32, device=device)


def how_stored(manifest: dict) -> dict:
    """How videos were stored, so that i2v.predict can store others alike."""
    return {key: manifest["made_with"][key] for key in ("codec", "gop", "short_side", "crf", "fps", "max_seconds")}
