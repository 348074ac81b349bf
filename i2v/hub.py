"""A model on the Hugging Face hub, and the folder that is its layout.

model.safetensors   what was trained (adapters and head), or with the backbone included all of it; a checkpoint of ours
config.json         what its header says: the model, the backbone it belongs to, class names, how clips are cut
README.md           the model card
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from i2v.atomic import write_whole
from i2v.checkpoint import MODEL, Meta, load_checkpoint, of_folder, save_checkpoint, weights_of
from i2v.model import method_module
from i2v.runs import Run
from i2v.session import INCLUDED, restore_model
from i2v.tally import in_words
from i2v.trunks import is_folder, shown

CONFIG, CARD = "config.json", "README.md"
PLACES = {"model": ("weights", "init"), "data": ("train", "val", "sample_weights", "cache")}  # of which names stay


def find_model(source: str | Path) -> Path:
    """The checkpoint that a file, a folder or "org/name" (downloaded) stands for. Raises ValueError, one sentence."""
    path = Path(source)
    if path.is_file() or path.is_dir():
        return of_folder(path)
    if len(path.parts) != 2 or path.is_absolute() or path.suffix == ".safetensors":
        raise ValueError(f"{source} does not exist: give a checkpoint, the folder of a run, or org/name on the hub.")
    return download(str(source))


def download(name: str) -> Path:
    """MODEL of a repository on the hub, or of its copy in the cache. Raises ValueError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, MODEL))
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{name} is no folder here, and the hub cannot be reached: give a path, or look to the network."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ValueError(
            f"{name} is no folder here, and {MODEL} of that name cannot be got from the hub ({reason:.200})."
        ) from error


def make_folder(checkpoint: Path, run: Run, out: Path, name: str, include_backbone: bool, weights: str | None) -> None:
    """Write the three files to a folder that exists. Raises ValueError or OSError, one sentence."""
    tensors, meta = load_checkpoint(checkpoint)
    tensors, backbone = weights_of(tensors), meta.backbone
    if include_backbone and backbone.weights != INCLUDED:
        tensors = dict(restore_model(tensors, meta, weights).state_dict())
        backbone = replace(backbone, weights=INCLUDED, fingerprint=None)
    config = without_places(meta.config)
    name_only = without_folder(backbone.name)
    if backbone.weights != INCLUDED:
        has_tag = config.get("model") and backbone.name == name_only
        backbone = replace(backbone, weights=config["model"]["weights"] if has_tag else Path(backbone.weights).name)
    backbone = replace(backbone, name=name_only)
    imported = meta.imported_from and Path(meta.imported_from).name
    meta = replace(meta, backbone=backbone, config=config, imported_from=imported)
    save_checkpoint(out / MODEL, tensors, meta)
    for file, content in ((CONFIG, json.dumps(asdict(meta), indent=1)), (CARD, card(name, run, meta))):
        write_whole(out / file, f"{content}\n".encode(errors="backslashreplace"))


def without_places(config: dict) -> dict:
    """A configuration in which paths are names: those of this machine are nobody's business, and say nothing elsewhere."""

    def named(value):
        if isinstance(value, list):
            return [named(each) for each in value]
        if isinstance(value, dict):
            return value | {"path": named(value.get("path"))}
        return Path(value).name if isinstance(value, str) else value

    config = dict(config) | ({"out": None} if "out" in config else {})
    for section, names in PLACES.items():
        if isinstance(config.get(section), dict):
            config[section] = config[section] | {key: named(config[section].get(key)) for key in names}
    if isinstance(config.get("train"), dict):
        config["train"] = config["train"] | {"mirror": None}
    if isinstance(config.get("model"), dict) and "backbone" in config["model"]:
        config["model"]["backbone"] = without_folder(config["model"]["backbone"])
    return config


def without_folder(backbone: str | dict) -> str | dict:
    """The name of a backbone, of a folder its last part."""
    if isinstance(backbone, dict):
        return backbone | {"name": without_folder(backbone["name"])} if "name" in backbone else backbone
    return Path(backbone).name if is_folder(backbone) else backbone


def card(name: str, run: Run, meta: Meta) -> str:
    """The model card: what it is, on which data, how good by which count, at what cost, and how to use it."""
    method, shape = meta.model["method"], shown(meta.backbone.name)
    paper = " ".join((method_module(method).__doc__ or "").split("\n\n")[0].split())
    needed = "It holds all weights, the backbone's included."
    if meta.backbone.weights != INCLUDED:
        needed = (
            f"It holds what was trained. The backbone is `{meta.backbone.weights}`, and no other is accepted: where it is not "
            "found by that name, give `i2v.load(..., weights=FILE)`."
        )
    return f"""\
---
library_name: i2v
pipeline_tag: video-classification
tags: [video-classification, i2v, {method}]
---

# {name.rpartition("/")[2]}

{method} on a frozen CLIP image transformer ({shape}): {meta.model["num_frames"]} frames, {len(meta.classes)} classes.

```python
import i2v

i2v.load("{name}").predict("video.mp4")
```

{needed}

## How good

{accuracy(run, meta)}

## How it was made

{recipe(run, meta)}

The whole configuration is in config.json, under `config`: as a YAML file, it is what `python -m i2v.train --config` takes.

## Method

{paper}"""


def recipe(run: Run, meta: Meta) -> str:
    """Data with counts, schedule and cost, as a list."""
    lines, train = [], meta.config.get("train") or {}
    for split, manifest in run.manifests.items():
        lines.append(
            f"{split}: {manifest['clips']:,} videos of {len(manifest['classes'])} classes, {manifest['rejected']:,} rejected"
        )
    if train:
        lines.append(
            f"{train['epochs']:g} epochs, {train['batch_size']} clips a step, learning rate {train['lr']:g}, "
            f"seed {train['seed']}"
        )
    if run.hours() is not None:
        lines.append(f"{run.log[-1]['step']:,} steps in {run.hours():.2f} hours on each device")
    if meta.imported_from:
        lines.append(f"imported from {meta.imported_from}")
    return "\n".join(f"- {line}" for line in lines) or "Not recorded."


def accuracy(run: Run, meta: Meta) -> str:
    """The scores that there are, with what they count."""
    if run.scores and run.scores.several:
        found = run.scores.scores()
        return f"{found.words()} on {found.counted} of {found.expected} videos, {run.scores.how.get('views')}."
    if run.scores:
        found = {name: value for name, value in run.scores.summary().items() if name != "top1_interval"}
        low, high = (100 * each for each in run.scores.summary()["top1_interval"])
        return "\n".join(
            [
                "| top-1 | 95 % interval | top-5 | mean class | calibration error | videos | views |",
                "| ---: | ---: | ---: | ---: | ---: | ---: | --- |",
                f"| {100 * found['top1']:.2f} % | {low:.2f} to {high:.2f} % | {100 * found['top5']:.2f} % "
                f"| {100 * found['class_mean']:.2f} % | {100 * found['ece']:.2f} % "
                f"| {found['counted']} of {found['expected']} | {run.scores.how.get('views')} |",
                *(["", in_words(found)] if run.scores.factors else []),
            ]
        )
    if meta.scores:
        views = meta.scores.get("views", "one view of each")
        counted = f"{meta.scores['counted']} of {meta.scores['expected']} validation videos, {views}"
        return f"{in_words(meta.scores)} on {counted}."
    return "Not evaluated."
