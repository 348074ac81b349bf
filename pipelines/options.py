"""What a user chooses about clips and their order, checked where it is said: one sentence names the wrong value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

VARIANTS = ("st_adapter", "aim", "zeroi2v", "tada")


@dataclass(frozen=True)
class ClipOptions:
    """How clips are cut out of videos. Sizes are in pixels, strides in frames of the stored video.

    Training takes one random clip of a video; evaluation takes `clips` x `crops` views of it. With `fps`, frames are
    counted at that rate instead, by the time at which each is shown: then stride / fps is the distance in seconds, for
    videos of any rate and of a variable one.
    """

    num_frames: int = 8
    # segments (TSN): one frame of each of num_frames equal parts; uniform: the same place in each part;
    # stride: every n-th frame, from anywhere
    sampling: str = "segments"
    stride: int = 16  # for sampling: stride
    fps: float | None = None  # count frames at this rate; None: as they are stored
    variant: str = "st_adapter"  # whose formulas: st_adapter, aim, zeroi2v or tada (DiST's too); see pipelines/frames.py
    size: int = 224  # height and width of what the model sees
    # Training
    crop: str = "random_resized"  # random_resized: a box of random area and aspect; short_side: random scale, square box
    area: tuple[float, float] = (0.08, 1.0)  # random_resized: part of the picture
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # random_resized: width / height of the box
    scale: tuple[float, float] = (1.0, 1.15)  # short_side: the short side in units of `size`
    flip: float = 0.5  # probability of mirroring
    flip_labels: tuple = ()  # pairs of labels that change places when mirrored, such as left and right
    # Evaluation
    clips: int = 1  # temporal views
    crops: int = 1  # spatial views: 1 (centre) or 3 (along the long side)
    test_short_side: int | None = None  # the short side is resized to this before cropping; None: `size`
    shuffle_frames: bool = False  # a control: the frames of every clip in random order
    # Split "windows": all of a long video, piece by piece
    window: float = 2.0  # seconds that a clip covers, its frames at equal distances
    hop: float | None = None  # seconds from window to window; None: `window`

    def __post_init__(self):
        for name in ("area", "aspect", "scale"):
            object.__setattr__(self, name, interval(name, getattr(self, name)))
        for name in ("num_frames", "stride", "size", "clips"):
            require(is_int(getattr(self, name)) and getattr(self, name) >= 1, name, self, "a whole number, at least 1")
        require(self.sampling in ("segments", "uniform", "stride"), "sampling", self, "segments, uniform or stride")
        for name in ("fps", "window", "hop"):
            value = getattr(self, name)
            fine = (value is None and name != "window") or (is_number(value) and 0 < value < math.inf)
            require(fine, name, self, "a number, more than 0")
        require(self.variant in VARIANTS, "variant", self, f"one of {', '.join(VARIANTS)}")
        require(self.crop in ("random_resized", "short_side"), "crop", self, "random_resized or short_side")
        require(self.crops in (1, 3), "crops", self, "1 or 3")
        require(self.area[1] <= 1, "area", self, "at most the whole picture, [low, 1]")
        require(self.scale[0] >= 1, "scale", self, "at least 1: a smaller picture does not fill the crop")
        require(is_number(self.flip) and 0 <= self.flip <= 1, "flip", self, "a probability")
        require(isinstance(self.shuffle_frames, bool), "shuffle_frames", self, "true or false")
        object.__setattr__(self, "flip_labels", pairs(self.flip_labels))
        short = self.test_short_side
        require(
            short is None or (is_int(short) and short >= self.size), "test_short_side", self, "at least as large as size"
        )


@dataclass(frozen=True)
class OrderOptions:
    """In which order a training run sees the videos, and how often. Evaluation sees each once, in the stored order."""

    # global: any video may come after any other; window: shard after shard in random order, shuffled within
    # `window_shards` of them at a time, for data that is far away or on slow disks
    shuffle: str = "global"
    window_shards: int = 16
    balance: float = 0.0  # 0: every video equally often; 1: every class; between: classes in proportion to size^(1 - balance)
    repeats: int = 1  # repeated augmentation: so many differing clips of a video in a row
    epoch_clips: int | None = None  # what counts as an epoch; None: all videos (times `repeats`)

    def __post_init__(self):
        require(self.shuffle in ("global", "window"), "shuffle", self, "global or window")
        for name in ("window_shards", "repeats"):
            require(is_int(getattr(self, name)) and getattr(self, name) >= 1, name, self, "a whole number, at least 1")
        require(is_number(self.balance) and 0 <= self.balance <= 1, "balance", self, "a number from 0 to 1")
        clips = self.epoch_clips
        require(clips is None or (is_int(clips) and clips >= 1), "epoch_clips", self, "a whole number, at least 1")


def require(condition: bool, name: str, options, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {getattr(options, name)!r}: it must be {rule}.")


def interval(name: str, value) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(is_number, value)) or not 0 < value[0] <= value[1] < math.inf:
        raise ValueError(f"{name} is {value!r}: it must be two positive numbers, [low, high].")
    return float(value[0]), float(value[1])


def pairs(value) -> tuple[tuple[int, int], ...]:
    """Pairs of labels, each label in one pair only."""
    fine = isinstance(value, (list, tuple)) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value)
    flat = [label for pair in value for label in pair] if fine else []
    if not fine or not all(is_int(label) and label >= 0 for label in flat) or len(set(flat)) < len(flat):
        raise ValueError(f"flip_labels is {value!r}: it must be pairs of different labels, such as [[86, 87], [93, 94]].")
    return tuple((int(a), int(b)) for a, b in value)


def is_int(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
