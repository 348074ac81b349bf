"""A model that is ready to train, and what trains it: as it begins, or as a checkpoint has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from i2v.batchnorm import share_batchnorms
from i2v.checkpoint import Meta, restore_optimizer, weights_of
from i2v.config import Config, to_dict
from i2v.continuation import check_continuation
from i2v.distributed import World
from i2v.ema import Average
from i2v.feed import head_for, how_stored
from i2v.model import VideoClassifier, head_kind
from i2v.optim import build_optimizer, layers_of
from i2v.placement import choose_precision, compile_blocks, may_compile, place, recompute_blocks
from i2v.session import INCLUDED, build_model, describe_backbone
from i2v.transfer import HEAD, start_from
from i2v.weights import load_weights


@dataclass(frozen=True)
class Trainee:
    """A model that is ready to train, and what trains it."""

    model: VideoClassifier
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    dtype: torch.dtype
    identity: Meta  # what every checkpoint says about the run, but for how far it is
    source: str  # of the frozen weights
    begun: str  # how, in words
    note: str = ""  # what else to tell


def open_trainee(config: Config, world: World, loader, saved: dict, meta: Meta | None) -> Trainee:
    """The model as it begins, or as a checkpoint (saved, meta) has it, on its device.

    The order matters: load everything on the CPU in float32, compare with the checkpoint, then move and cast what is frozen,
    then make the optimizer (of the tensors that will be trained), then compile; DDP comes last, around it all.
    """
    train, classes = config.train, loader.shards.classes
    torch.manual_seed(train.seed)
    config = replace(config, model=replace(config.model, head=head_for(config.model.head, loader.shards)))
    model, source = build_model(config.model, classes, saved)
    check_trained(config, model.trainable_parameters())
    begun = f"continuing after step {meta.progress['step']}" if meta else "starting"
    if config.model.init and not meta:
        source, loaded = start_from(model, config.model.init, classes, source)
        begun = f"starting, {loaded}"
    backbone = describe_backbone(model, config.model, source)
    if meta and source == INCLUDED:  # the checkpoint holds the trunk, which the model does not have yet
        backbone = replace(backbone, fingerprint=meta.backbone.fingerprint)
    identity = Meta(
        model=model.config,
        backbone=backbone,
        classes=classes,
        stored=how_stored(loader.shards.manifest),
        stream=loader.fingerprint(),
        clips=config.clips,
        config=to_dict(config),
        factors=loader.shards.factors,
        several=loader.shards.label_sets is not None,
    )
    if meta:
        check_continuation(identity, meta, Path(config.out) / "last.safetensors")
        load_weights(model, weights_of(saved), "i2v")
    dtype = choose_precision(train.precision, world.device)
    place(model, world.device, dtype)
    if world.size > 1:
        share_batchnorms(model)
    optimizer = build_optimizer(model.trainable_parameters(), train, layers_of(model))
    scaler = torch.amp.GradScaler(world.device.type, enabled=dtype == torch.float16)
    average = Average(model, train.ema) if train.ema else None
    if meta:
        restore_optimizer(optimizer, saved)
        scaler.load_state_dict(meta.progress.get("scaler") or scaler.state_dict())
        if average is not None:
            average.restore(saved)
    compiles, note = may_compile(train.compile, world.device)
    if compiles:
        compile_blocks(model, train.compile)
    recompute_blocks(model, train.recompute)
    return Trainee(model, optimizer, scaler, average, dtype, identity, source, begun, note)


def check_trained(config: Config, parameters: dict) -> None:
    """Raises ValueError unless something trains, and so does the head if it is to train alone at first."""
    method, head, train = config.model.method, head_kind(config.model.head), config.train
    if not parameters:
        raise ValueError(f"{method} with a {head} head trains nothing: use i2v.evaluate.")
    if train.head_epochs and not any(name.startswith(HEAD) for name in parameters):
        raise ValueError(f"train.head_epochs is {train.head_epochs:g}, but nothing of a {head} head trains: remove it.")
