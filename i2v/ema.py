"""The exponential moving average of what trains, by torch.optim.swa_utils: evaluated and saved beside the weights."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from i2v.checkpoint import EMA


class Average:
    """Of the parameters that train and the statistics that batch norms collect; it begins with what they are now."""

    def __init__(self, model: nn.Module, decay: float):
        self._move = get_ema_multi_avg_fn(decay)
        self._now = dict(model.trainable_parameters()) | running_statistics(model)
        self._mean = {name: tensor.detach().clone() for name, tensor in self._now.items()}

    @torch.no_grad()
    def update(self, taken: torch.Tensor) -> None:
        """After a step; taken: () bool, on the device. A step that was not taken moves nothing."""
        mean = list(self._mean.values())
        towards = [torch.where(taken, now, old) for now, old in zip(self._now.values(), mean)]
        self._move(mean, towards, None)

    @contextmanager
    def in_place(self):
        """In here the model has the average."""
        with torch.no_grad():
            raw = {name: tensor.detach().clone() for name, tensor in self._now.items()}
            self._copy(self._mean)
        try:
            yield
        finally:
            with torch.no_grad():
                self._copy(raw)

    def tensors(self) -> dict[str, torch.Tensor]:
        """For a checkpoint."""
        return {EMA + name: tensor for name, tensor in self._mean.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `tensors` gave."""
        for name, mean in self._mean.items():
            mean.copy_(tensors[EMA + name])

    def _copy(self, values: dict[str, torch.Tensor]) -> None:
        for name, tensor in self._now.items():
            tensor.copy_(values[name])


def running_statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """name -> mean or variance that a batch norm collects."""
    return {
        f"{name}.{kind}": getattr(module, kind)
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
        for kind in ("running_mean", "running_var")
    }
