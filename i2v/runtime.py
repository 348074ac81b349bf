"""From a configuration or a checkpoint to a model that runs on a device in the right precision."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from einops import rearrange
from torch import nn

from i2v.checkpoint import OPTIMIZER
from i2v.config import ModelConfig
from i2v.model import VideoClassifier, create_model
from i2v.text import text_features
from i2v.vit import Attention
from i2v.weights import COUNTER, backbone_file, fingerprint, load_weights

INCLUDED = "included"  # where a backbone is that no other file holds: in the checkpoint


def build_model(config: ModelConfig, classes: list[str], saved: Mapping[str, torch.Tensor] = {}) -> tuple[VideoClassifier, str]:
    """The model of an experiment with CLIP's weights, adapters fresh, and where the weights came from.

    A text head gets its class names, and their embeddings from the text tower of the same CLIP, unless they are given.
    saved: tensors that will be loaded afterwards; where they leave nothing to CLIP, its file is not needed.
    """
    head = dict(config.head)
    is_text = head.get("type") == "text"
    if is_text:
        names = head.setdefault("class_names", classes)
        if names != classes and set(names) == set(classes):
            raise ValueError("model.head.class_names has the classes of the data in another order: leave it out.")
    model = create_model(config.method, config.backbone, config.num_frames, len(classes), head, **config.options)
    if is_complete(saved, model):
        return model, INCLUDED
    source = load_backbone(model, config.backbone, config.weights)
    if is_text:
        if source == "random":
            raise ValueError("model.weights is random, but a text head needs CLIP's text tower: give CLIP's weights.")
        names, templates = head["class_names"], model.config["head"]["templates"]
        model.head.set_text_features(text_features(names, config.backbone, source, templates))
    return model, source


def is_complete(tensors: Mapping[str, torch.Tensor], model: VideoClassifier) -> bool:
    """Whether a checkpoint's tensors fill the whole model: then no other file is asked for."""
    return all(name in tensors or name.endswith(COUNTER) for name in model.state_dict())


def load_backbone(model: VideoClassifier, name: str | dict, weights: str) -> str:
    """Fill the trunk with CLIP's weights; returns where they came from.

    name: the backbone as configured. weights: a file, an open_clip tag such as "openai", or "random".
    Raises ValueError or OSError with one sentence.
    """
    if weights == "random":
        return "random"
    if Path(weights).exists() or "/" in weights or Path(weights).suffix:
        path = weights
    elif isinstance(name, str):
        path = backbone_file(name, weights)
    else:
        raise ValueError(f"weights is {weights!r}, which is no file, and tags need the name of a backbone: give a file.")
    load_weights(model, path, layout="clip")
    return str(path)


def describe_backbone(model: VideoClassifier, config: ModelConfig, source: str) -> dict:
    """Which frozen weights a checkpoint belongs to. It includes a random trunk, which is in no file, and one that trains.

    Call it before the model is placed.
    """
    where = INCLUDED if source == "random" or not model.frozen_parameters() else source
    return {"name": config.backbone, "weights": where, "fingerprint": fingerprint(model.frozen_parameters())}


def restore_model(tensors: dict[str, torch.Tensor], meta: dict, weights: str | None = None) -> VideoClassifier:
    """The model of a checkpoint, complete: its own weights and those of its backbone.

    weights: where the backbone is, if not where the run had it. Raises ValueError if it is another backbone.
    """
    model = create_model(**meta["model"])
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(OPTIMIZER)}
    where = weights or meta["backbone"]["weights"]
    if where != INCLUDED and not is_complete(own, model):
        load_backbone(model, meta["backbone"]["name"], where)
        found = fingerprint(model.frozen_parameters())
        if found != meta["backbone"]["fingerprint"]:
            raise ValueError(
                f"This checkpoint was trained on another backbone than {where} "
                f"(fingerprint {meta['backbone']['fingerprint']}, found {found}): give the one it was trained on."
            )
    load_weights(model, own, layout="i2v")
    return model


def own_tensors(model: VideoClassifier, backbone: dict) -> dict[str, torch.Tensor]:
    """What a checkpoint holds: all that the backbone's file does not tell (backbone: see describe_backbone)."""
    frozen = {} if backbone["weights"] == INCLUDED else model.frozen_parameters()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: bf16 where the device has it in hardware, else float32."""
    if precision == "auto":
        in_hardware = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if in_hardware else torch.float32
    return {"bf16": torch.bfloat16, "float32": torch.float32}[precision]


def place(model: VideoClassifier, device: torch.device, dtype: torch.dtype) -> None:
    """Move the model to its device. Frozen matrices are stored in the dtype they are multiplied in; what is trained,
    and what normalises, stays float32."""
    model.to(device)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, Attention)):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(dtype)
    patches = model.trunk.conv1
    patches.to(memory_format=torch.channels_last if patches.weight.ndim == 4 else torch.channels_last_3d)


def autocast_for(device: torch.device, dtype: torch.dtype):
    """A function that gives the context in which the model runs."""
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype)


def compile_blocks(model: VideoClassifier, **options) -> None:
    """torch.compile, block by block: identical blocks are compiled once, and parameter names stay as they are.

    So is what makes tokens of pixels. A backbone that owns its trunk (DiST) has a side network as well, which is compiled
    as a whole. options: torch.compile's.
    """
    for seen in (torch.empty(1), nn.Parameter(torch.empty(1))):
        rearrange(seen, "n -> n")  # einops remembers types; one more, and what is compiled would be compiled again
    model.trunk.embed = torch.compile(model.trunk.embed, dynamic=False, **options)
    for block in model.trunk.transformer.resblocks:
        block.compile(dynamic=False, **options)
    if model.trunk is not model.backbone:
        for part in model.backbone.children():
            if part is not model.trunk:
                part.compile(dynamic=False, **options)
