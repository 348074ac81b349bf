"""Parameter groups, and the learning rate as a pure function of how far the run is."""

from __future__ import annotations

import math

import torch


def learning_rate(epoch: float, *, lr: float, epochs: float, warmup_epochs: float, warmup_start: float = 0.0) -> float:
    """The learning rate at a fractional epoch: linear from warmup_start * lr to lr, then half a cosine to 0."""
    if epoch < warmup_epochs:
        return lr * (warmup_start + (1 - warmup_start) * epoch / warmup_epochs)
    if epochs <= warmup_epochs:
        return lr
    progress = min((epoch - warmup_epochs) / (epochs - warmup_epochs), 1.0)
    return lr * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(parameters: dict[str, torch.nn.Parameter], weight_decay: float, no_decay: list[str]) -> list[dict]:
    """Two groups: with weight decay, and without.

    no_decay: parts of names, between dots. A parameter one of whose parts is listed is not decayed:
    ["bias"] spares head.fc.bias, ["ln_post"] both backbone.ln_post.weight and backbone.ln_post.bias.
    Raises ValueError for an entry that spares nothing.
    """
    parts = {name: set(name.split(".")) for name in parameters}
    for entry in no_decay:
        if not any(entry in names for names in parts.values()):
            raise ValueError(f"train.no_decay has {entry!r}, which is part of no trained parameter's name.")
    spared = [name for name in parameters if parts[name] & set(no_decay)]
    decayed = [name for name in parameters if name not in set(spared)]
    return [
        {"params": [parameters[name] for name in names], "names": names, "weight_decay": decay}
        for names, decay in ((decayed, weight_decay), (spared, 0.0))
        if names
    ]


def build_optimizer(parameters: dict[str, torch.nn.Parameter], config) -> torch.optim.AdamW:
    """AdamW over exactly the given parameters, with the groups of the recipe (config: TrainConfig)."""
    groups = parameter_groups(parameters, config.weight_decay, config.no_decay)
    fused = next(iter(parameters.values())).is_cuda
    return torch.optim.AdamW(groups, lr=config.lr, betas=tuple(config.betas), eps=1e-8, fused=fused)
