"""What an experiment of i2v.localise is told, checked where it is said."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from i2v.average_precision import THRESHOLDS
from i2v.bmn import BMNOptions
from i2v.config import NotNegative, Place, Positive
from i2v.optim import SCHEDULES
from i2v.rules import Count, at_least, between, is_finite, is_whole, more_than, one_of


@dataclass(frozen=True)
class FeatureData:
    features: str | list  # a folder that i2v.features wrote; several: their channels side by side
    train: str  # a list of segments (i2v/segments.py)
    val: str | None = None
    scores: str | None = None  # a folder with class scores; None: the first of `features`
    score_views: Count = 1  # whose class scores are side by side, where the folder does not say it
    row_seconds: Positive | None = None  # what a row of features stands for, where the folder has no times
    rows_per_step: Count = 2  # of features, for a time step of the network
    device: Place = "auto"


@dataclass(frozen=True)
class LocaliseTraining:
    epochs: Annotated[float, more_than(0), between(0, 1_000_000)]
    batch_size: Count  # windows per step
    lr: Positive
    init: str | None = None  # weights to start from: ours, or a checkpoint of TAdaConv's
    weight_decay: NotNegative = 0.0
    no_decay: list = field(default_factory=lambda: ["bias"])  # parts of names, or "1-d" (i2v/optim.py)
    betas: list = field(default_factory=lambda: [0.9, 0.999])
    schedule: Annotated[str, one_of(*SCHEDULES)] = "through_warmup"  # i2v/optim.py
    warmup_epochs: NotNegative = 0.0
    warmup_lr: NotNegative = 0.0  # where the warm-up begins
    min_lr: NotNegative = 0.0  # where the cosine ends
    loss_weights: list = field(default_factory=lambda: [1, 10, 1, 1])  # of boundaries, overlap, classification, class maps
    clip_grad: Positive | None = None  # the largest norm of all gradients together
    seed: Annotated[int, between(0, 2**63 - 1)] = 0
    max_steps: Count | None = None  # stop early, on the schedule of the full run
    eval_every: Annotated[float, at_least(1e-6)] = 1.0  # epochs
    save_every: Count = 500  # steps
    log_every: Count = 20  # steps

    def __post_init__(self):
        rules = {
            "betas": (are_numbers(self.betas, 2) and all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            "loss_weights": (are_numbers(self.loss_weights, 4) and min(self.loss_weights) >= 0, "four numbers, at least 0"),
            "no_decay": (all(isinstance(entry, str) for entry in self.no_decay), "parts of names"),
            "warmup_epochs": (self.warmup_epochs <= self.epochs, "between 0 and train.epochs"),
            "warmup_lr": (self.warmup_lr <= self.lr, "between 0 and train.lr"),
            "min_lr": (self.min_lr <= self.lr, "between 0 and train.lr"),
        }
        for name, (fine, rule) in rules.items():
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be {rule}.")

    lr_multipliers: ClassVar[dict] = {}  # parameter_groups asks for these two
    layer_decay: ClassVar[float] = 1.0


@dataclass(frozen=True)
class DetectOptions:
    """How maps become detections."""

    class_power: NotNegative = 1.2  # of the classified overlap in a segment's score
    overlap_power: NotNegative = 1.0  # of the regressed one
    nms_alpha: Positive = 0.4  # Soft-NMS: how little an overlap costs
    nms_low: Annotated[float, between(0, 1)] = 0.25  # the overlap from which on it costs, for a segment of length 0
    nms_high: Annotated[float, between(0, 1)] = 0.9  # and for one as long as the video
    seconds_per_proposal: Positive = 1.0  # of a video, for each proposal that is kept
    candidates: list = field(default_factory=lambda: [10, 30])  # of each kind of labels, how many are combined
    labels: Count = 5  # of a proposal, the likeliest
    thresholds: list = field(default_factory=lambda: list(THRESHOLDS))  # overlaps at which precision is measured

    def __post_init__(self):
        counts = self.candidates and all(is_whole(count) and count > 0 for count in self.candidates)
        if not counts:
            raise ValueError(f"candidates is {self.candidates!r}: it must be whole numbers, at least 1.")
        if not self.thresholds or not all(is_finite(level) and 0 < level <= 1 for level in self.thresholds):
            raise ValueError(f"thresholds is {self.thresholds!r}: it must be overlaps, more than 0 and up to 1.")


@dataclass(frozen=True)
class LocaliseConfig:
    data: FeatureData
    train: LocaliseTraining
    model: BMNOptions = BMNOptions()
    detect: DetectOptions = DetectOptions()
    out: str | None = None  # the run's folder; None: runs/<the config's place under configs/>


def are_numbers(values, count: int) -> bool:
    return len(values) == count and all(map(is_finite, values))


# What may differ between a run and its continuation
FREE_TO_CHANGE = {"out", "data.device", "data.features", "data.scores", "data.train", "data.val", "train.max_steps"}
FREE_TO_CHANGE |= {"train.eval_every", "train.save_every", "train.log_every", "train.init"}
