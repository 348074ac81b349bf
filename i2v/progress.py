"""Where a run is: what, besides weights and optimizer, it needs to go on, and so is in every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Progress:
    """Sums are over the steps that are not in the log yet, and were taken; on the device, so that none waits for it."""

    step: int = 0
    samples: int = 0  # seen by all devices together: the state of the data
    best: float | None = None  # the highest value of train.best on data.val; what should be low counts negatively
    best_of: dict = field(default_factory=dict)  # the videos on which it was reached (Loader.fingerprint); {}: not known
    loss: float | torch.Tensor = 0.0
    grad_norm: float | torch.Tensor = 0.0  # before clipping
    loss_steps: int | torch.Tensor = 0  # how many steps the sums are over
    validation_due: bool = False  # after this step; true in a checkpoint if it was not finished
    finished: bool = False  # this was the last step of all
    bad_in_a_row: int = 0  # steps up to this one that were not taken, because of numbers that are not finite
    good: list[int] = field(default_factory=list)  # step and samples after the last step before those
    scaler: dict = field(default_factory=dict)  # of the loss, in fp16

    def __post_init__(self):
        if not self.bad_in_a_row:
            self.good = [self.step, self.samples]

    def compare_on(self, videos: dict) -> bool:
        """From now on validations are of these videos; whether the best so far was reached on others, and so counts no more."""
        others = self.best is not None and self.best_of not in ({}, videos)
        self.best, self.best_of = None if others else self.best, videos
        return others

    def advance(self, clips: int, loss: torch.Tensor, norm: torch.Tensor, taken: torch.Tensor) -> None:
        """A step of so many clips is over; loss: their mean. taken: () bool."""
        self.step, self.samples = self.step + 1, self.samples + clips
        self.loss = self.loss + torch.where(taken, loss, 0).double()
        self.grad_norm = self.grad_norm + torch.where(taken, norm, 0).double()
        self.loss_steps = self.loss_steps + taken.long()

    def take_means(self) -> dict[str, float] | None:
        """Mean loss and norm of the steps since they were taken last; None if none of them was taken."""
        steps = int(self.loss_steps)
        means = {"loss": float(self.loss) / steps, "grad_norm": float(self.grad_norm) / steps} if steps else None
        self.loss, self.grad_norm, self.loss_steps = 0.0, 0.0, 0
        return means

    def go_back(self) -> None:
        """To the last step that was taken: nothing but these two numbers has changed since."""
        (self.step, self.samples), self.bad_in_a_row = self.good, 0
        self.validation_due = self.finished = False

    def as_dict(self) -> dict:
        sums = {"loss": float(self.loss), "grad_norm": float(self.grad_norm), "loss_steps": int(self.loss_steps)}
        return vars(self) | sums
