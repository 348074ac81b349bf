"""Parameter groups, and the learning rate as a pure function of how far the run is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from i2v.model import method_module

SCHEDULES = ("after_warmup", "through_warmup", "per_epoch")


def learning_rate(epoch: float, config) -> float:
    """The learning rate at a fractional epoch; config: TrainConfig. All are half a cosine from lr down to min_lr.

    after_warmup    linear from warmup_lr to lr, then the cosine over the rest (ST-Adapter, TAdaFormer)
    through_warmup  the cosine spans all epochs; linear from warmup_lr to where it is at the end of the warm-up (DiST)
    per_epoch       the cosine spans all epochs and moves once an epoch; while warming up it is multiplied by a factor
                    that grows linearly from warmup_lr / lr to 1 (AIM and ZeroI2V, as mmcv and mmengine compute it)
    """
    warmup, warming = config.warmup_epochs, epoch < config.warmup_epochs
    if config.schedule == "per_epoch":
        first = config.warmup_lr / config.lr
        return _cosine(math.floor(epoch), 0, config) * (first + (1 - first) * epoch / warmup if warming else 1)
    begin = warmup if config.schedule == "after_warmup" else 0
    if warming:
        return config.warmup_lr + (_cosine(warmup, begin, config) - config.warmup_lr) * epoch / warmup
    return _cosine(epoch, begin, config)


def _cosine(epoch: float, begin: float, config) -> float:
    progress = min((epoch - begin) / (config.epochs - begin), 1.0) if config.epochs > begin else 0.0
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress))


def parameter_groups(
    parameters: dict[str, torch.nn.Parameter], config, layer_of: Callable[[str], int] | None = None
) -> list[dict]:
    """The optimizer's groups, each with weight_decay and lr_scale (of the schedule's learning rate); config: TrainConfig.

    Entries of no_decay and lr_multipliers are parts of names, between dots: "bias" means head.fc.bias, "ln_post" both
    backbone.ln_post.weight and backbone.ln_post.bias; "dwconv_rf.bias" what has both parts, in this order, whatever is
    between them; "1-d" every one-dimensional parameter. "-dwconv_rf.norm" takes what it means out of no_decay again. The
    factors of all entries of lr_multipliers that mean a parameter are multiplied.
    layer_of: the layer of a parameter's name, 0 for the stem to layers + 1 for the head; for layer_decay.
    Raises ValueError for an entry that fits nothing, and for layer_decay without layer_of.
    """
    for key, entries in (("no_decay", config.no_decay), ("lr_multipliers", config.lr_multipliers)):
        for entry in entries:
            if not any(means(entry.removeprefix("-"), name, p) for name, p in parameters.items()):
                raise ValueError(f"train.{key} has {entry!r}, which is part of no trained parameter's name.")
    without = [entry for entry in config.no_decay if not entry.startswith("-")]
    after_all = [entry[1:] for entry in config.no_decay if entry.startswith("-")]
    if config.layer_decay != 1 and layer_of is None:
        raise ValueError("train.layer_decay is set, but this method trains no layers of the backbone: remove it.")
    layers = {name: layer_of(name) for name in parameters} if config.layer_decay != 1 else {}
    top = max(layers.values(), default=0)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in parameters.items():
        exempt, taken_back = (any(means(entry, name, parameter) for entry in entries) for entries in (without, after_all))
        decay = 0.0 if exempt and not taken_back else config.weight_decay
        scale = math.prod(factor for entry, factor in config.lr_multipliers.items() if means(entry, name, parameter))
        scale *= config.layer_decay ** (top - layers.get(name, top))
        new = {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale}
        group = groups.setdefault((decay, scale), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def means(entry: str, name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether an entry of no_decay or lr_multipliers means this parameter; see parameter_groups."""
    if entry == "1-d":
        return parameter.ndim == 1
    parts = iter(name.split("."))
    return all(part in parts for part in entry.split("."))  # each is looked for behind the one before


def build_optimizer(parameters: dict[str, torch.nn.Parameter], config, layer_of=None) -> torch.optim.Optimizer:
    """The optimizer over exactly the given parameters, with the groups of the recipe; see parameter_groups."""
    groups = parameter_groups(parameters, config, layer_of)
    # Fused on the CPU as well: it is the one that leaves a step out on the device's word (found_inf).
    if config.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
        for parameter in parameters.values() if config.momentum else ():
            # As after a first step, whose buffer would be what the memory held if that step is left out.
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    return torch.optim.AdamW(groups, lr=config.lr, betas=tuple(config.betas), eps=1e-8, fused=True)


def layers_of(model) -> Callable[[str], int] | None:
    """The method's layer_of(name) for this model's depth, if it trains layers of the backbone."""
    layer_of = getattr(method_module(model.method), "layer_of", None)
    return layer_of and partial(layer_of, layers=model.spec.layers)


def finish_gradients(optimizer, scaler: torch.amp.GradScaler, factor: torch.Tensor, clip: float | None) -> torch.Tensor:
    """Make of the sums that backward left what the step takes: unscaled, times `factor`, and clipped to the norm `clip`.

    Returns the norm of all of them together before clipping, (), on the device.
    """
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    grads = [p.grad for p in parameters]
    torch._foreach_mul_(grads, factor)
    norm = torch.nn.utils.get_total_norm(grads)
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm
