"""Does a checkpoint belong to the run that is about to continue from it?"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, fields
from pathlib import Path

from i2v.checkpoint import Meta
from i2v.model import OWN, complete_config
from i2v.pipelines.augment import AugmentOptions
from i2v.pipelines.graph import GraphOptions
from i2v.pipelines.options import ClipOptions, OrderOptions

# What may differ between a run and its continuation; everything else decides what is computed. (The videos of data.train
# must be the same, and how often each is wanted; where they and data.sample_weights are may change.)
FREE_TO_CHANGE = {
    "out",
    "model.weights",
    "data.device",
    "data.decode",
    "data.threads",
    "data.val",
    "train.batch_size",
    "train.micro_batch",
    "train.compile",
    "train.max_steps",
    "train.eval_every",
    "train.eval_batch",
    "train.save_every",
    "train.mirror",
    "train.log_every",
    "train.keep",
    "train.recompute",
    "train.skip_nonfinite",
    "train.stall_after",
    "data.train",
    "data.sample_weights",
    "data.cache",
    "data.cache_size",
    "data.prefetch_bytes",
}

CLIP_OPTIONS = (ClipOptions, AugmentOptions, GraphOptions)  # what may stand under `clips`


def check_continuation(identity: Meta, meta: Meta, path: Path) -> None:
    """Raises ValueError if the checkpoint in the run's folder belongs to another experiment.

    Keys that a checkpoint lacks, because they came later, have their defaults: an older run can be continued.
    """
    new, old = (flatten(settings(each)) for each in (identity, meta))
    for key in sorted(new.keys() | old.keys(), key=lambda key: (key != "train.steps", key)):
        if key not in FREE_TO_CHANGE and new.get(key) != old.get(key):
            raise ValueError(
                f"{path} belongs to a run with {key} = {old.get(key)!r}, this one has {new.get(key)!r}: "
                f"restore the value, or choose another folder with out=..., in which model.init={path} begins with its weights."
            )
    same = {
        "other classes": (identity.classes, identity.factors) == (meta.classes, meta.factors),
        "another number of classes a video": identity.several == meta.several,
        "other backbone weights": identity.backbone.fingerprint == meta.backbone.fingerprint,
        "other videos, weights or shares in data.train": meta.stream in (identity.stream, None),
    }
    for what, equal in same.items():
        if not equal:
            raise ValueError(f"{path} belongs to a run with {what}: choose another folder with out=...")


def settings(meta: Meta) -> dict:
    """All that a run was told, and what it was not told at its default."""
    config = copy.deepcopy(meta.config)
    model = complete_config(**meta.model)
    config["model"] |= {key: model.pop(key) for key in OWN} | {"options": model}
    config["clips"] = {field.name: field.default for kind in CLIP_OPTIONS for field in fields(kind)} | config["clips"]
    if config["train"]["steps"]:
        config["train"]["epochs"] = None  # they follow from the steps
    config["data"]["order"] = asdict(OrderOptions()) | config["data"]["order"]
    del config["probe"]  # of i2v.probe, not of a run
    del config["clips"]["augment"]  # the graph's name for the fields of AugmentOptions
    return json.loads(json.dumps(config))  # tuples are lists in a file


def flatten(section: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in section.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
