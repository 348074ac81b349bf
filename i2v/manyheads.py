"""Many heads on the same features at once: one batched product, and each comes to what it would come to alone.

As V-JEPA 2 trains its probes (Assran et al. 2025, arXiv 2506.09985): a head for every learning rate with every weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

ROWS = 1 << 16  # that are looked at together where all are


@dataclass(frozen=True)
class Recipe:
    """How one head is trained."""

    lr: float
    weight_decay: float  # not of biases


def train_heads(
    head: nn.Module,
    features: torch.Tensor,
    labels: torch.Tensor,
    recipes: list[Recipe],
    epochs: int,
    batch_size: int,
    seed: int,
    stepped: Callable[[], object] = lambda: None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A copy of `head` for every recipe, trained on (N, ...) features and (N,) labels, all of them on one device.

    Every epoch is all rows in a random order, the same for all heads, and cut into batches of equal size but for the last.
    AdamW; the learning rate is half a cosine from the recipe's down to 0. stepped: called after each step.
    Returns the head's parameters by name, (K, ...) of all heads, and (K,) their mean loss in the last epoch.
    """
    count, rows = len(recipes), len(features)
    stacked = {name: p.detach().expand(count, *p.shape).clone().requires_grad_() for name, p in head.named_parameters()}
    alone = {name: [nn.Parameter(each) for each in stack.detach()] for name, stack in stacked.items()}  # views of the same
    optimizer = torch.optim.AdamW(
        [
            {"params": [alone[name][k]], "peak": recipe.lr, "weight_decay": 0.0 if is_bias(name) else recipe.weight_decay}
            for k, recipe in enumerate(recipes)
            for name in stacked
        ],
        fused=True,
    )
    forward = vmap(partial(functional_call, head), in_dims=(0, None), randomness="same")  # (K, ...), (B, ...) -> (K, B, C)
    order, total = torch.Generator().manual_seed(seed), epochs * math.ceil(rows / batch_size)
    step, losses = 0, torch.zeros(count)
    for _ in range(epochs):
        sums = torch.zeros(count, dtype=torch.float64, device=features.device)
        for chosen in torch.randperm(rows, generator=order).to(features.device).split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * 0.5 * (1 + math.cos(math.pi * step / total))
            logits = forward(stacked, features[chosen])
            each = F.cross_entropy(logits.flatten(0, 1), labels[chosen].repeat(count), reduction="none").view(count, -1)
            for name, gradient in zip(stacked, torch.autograd.grad(each.mean(1).sum(), list(stacked.values()))):
                for parameter, its in zip(alone[name], gradient.contiguous()):  # fused, it goes by their place in memory
                    parameter.grad = its
            optimizer.step()
            sums += each.detach().sum(1)
            step += 1
            stepped()
        losses = sums / rows
    return {name: stack.detach() for name, stack in stacked.items()}, losses


def is_bias(name: str) -> bool:
    return name.split(".")[-1] == "bias"


def standardisation(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(D,) mean and (D,) standard deviation of (N, D) features, in float64; 1 for what does not vary."""
    parts = features.split(ROWS)
    mean = sum(part.double().sum(0) for part in parts) / len(features)
    std = (sum((part.double() - mean).square().sum(0) for part in parts) / len(features)).sqrt()
    return mean, torch.where(std > torch.finfo(features.dtype).eps * mean.abs(), std, 1.0)  # less is rounding


def standardise(features: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
    """(N, D) features, in place."""
    for part in features.split(ROWS):
        part.copy_((part.double() - mean) / std)


def fold(weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., C, D) and (..., C) of a linear layer on standardised features -> those of the same layer on the features."""
    raw = weight.double() / std
    return raw.to(weight.dtype), (bias.double() - raw @ mean).to(bias.dtype)
