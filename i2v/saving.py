"""The checkpoints of a run: last.safetensors to go on from, best.safetensors and those of chosen epochs to use."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from i2v.checkpoint import optimizer_tensors, save_state
from i2v.distributed import World
from i2v.finite import Guard
from i2v.metrics import Scores
from i2v.mirror import Mirror
from i2v.progress import Progress
from i2v.session import own_tensors
from i2v.trainee import Trainee

AVERAGED = "ema_"  # what the figures of the averaged weights begin with


@dataclass(frozen=True)
class Saver:
    """What there is to save, and where."""

    out: Path
    trainee: Trainee
    guard: Guard
    progress: Progress
    clips: int  # in a step
    world: World
    mirror: Mirror | None

    def last(self) -> None:
        """All that the run needs to go on. Raises TooManyBadSteps after it if that is what the last steps were."""
        try:
            self.guard.look(self.clips, everything=True)
        finally:
            self._save_last()

    def _save_last(self) -> None:
        self.progress.scaler = self.trainee.scaler.state_dict()
        tensors = self._weights() | optimizer_tensors(self.trainee.optimizer)
        self._save("last.safetensors", tensors | (self.trainee.average.tensors() if self.trainee.average else {}))

    def epoch(self, epoch: float) -> None:
        """The weights as they are, and their average in a file of its own."""
        name = f"epoch-{epoch:g}"
        self._save(f"{name}.safetensors", self._weights())
        if self.trainee.average is not None:
            with self.trainee.average.in_place():
                self._save(f"{name}-ema.safetensors", self._weights())

    def best(self, found: dict[str, Scores], metric: str) -> None:
        """Those of the weights that scored highest, if nothing has scored as high; found: by what their figures begin with."""
        which = max(found, key=lambda name: found[name].value(metric))
        value = found[which].value(metric)
        if self.progress.best is None or value > self.progress.best:
            self.progress.best = value
            with self.trainee.average.in_place() if which == AVERAGED else nullcontext():
                self._save("best.safetensors", self._weights(), scores=found[which].summary() | {"averaged": which == AVERAGED})

    def _weights(self) -> dict[str, torch.Tensor]:
        return own_tensors(self.trainee.model, self.trainee.identity.backbone)

    def _save(self, name: str, tensors: dict, **more) -> None:
        save_state(
            self.out / name, tensors, replace(self.trainee.identity, progress=self.progress.as_dict(), **more), self.world
        )
        if self.mirror is not None:
            self.mirror.copy()


def kept_epochs(keep: int | list | None, before: int, after: int, clips: int) -> list[float]:
    """The epochs of those to be kept that end in (before, after] samples; clips: in an epoch."""
    if isinstance(keep, list):
        return [epoch for epoch in keep if before < math.ceil(epoch * clips) <= after]
    return [keep * i for i in range(before // (keep * clips) + 1, after // (keep * clips) + 1)] if keep else []


def crosses(before: int, after: int, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return math.floor(after / every) > math.floor(before / every)
