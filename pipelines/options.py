"""What a user chooses about clips and their order, checked where it is said: one sentence names the wrong value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from i2v.rules import Count, Rule, between, check, is_finite, is_whole, one_of

VARIANTS = ("st_adapter", "aim", "zeroi2v", "tada")
SENTENCE = "{name} is {value}: it must be {rule}."
Share = Annotated[float, between(0, 1)]
Seconds = Annotated[float, between(0.01, 86_400)]
Frames = Annotated[str, Rule("a number of frames such as 64f", lambda text: re.fullmatch("[1-9][0-9]{0,6}f", text), alone=True)]


@dataclass(frozen=True)
class ClipOptions:
    """How clips are cut out of videos. Sizes are in pixels, strides in frames of the stored video.

    Training takes one random clip of a video; evaluation takes `clips` x `crops` views of it. With `fps`, frames are
    counted at that rate instead, by the time at which each is shown: then stride / fps is the distance in seconds, for
    videos of any rate and of a variable one.
    """

    num_frames: Annotated[int, between(1, 4096)] = 8
    # segments (TSN): one frame of each of num_frames equal parts; uniform: the same place in each part;
    # stride: every n-th frame, from anywhere
    sampling: Annotated[str, one_of("segments", "uniform", "stride")] = "segments"
    stride: Annotated[int, between(1, 1_000_000)] = 16  # for sampling: stride
    fps: Annotated[float, between(0.01, 1000)] | None = None  # count frames at this rate; None: as they are stored
    # whose formulas: st_adapter, aim, zeroi2v or tada (DiST's too); see pipelines/frames.py
    variant: Annotated[str, one_of(*VARIANTS)] = "st_adapter"
    size: Annotated[int, between(1, 4096)] = 224  # height and width of what the model sees
    test_size: Annotated[int, between(1, 4096)] | None = None  # in evaluation, if the backbone takes others; None: `size`
    # Training
    # random_resized: a box of random area and aspect; short_side: random scale, square box
    crop: Annotated[str, one_of("random_resized", "short_side")] = "random_resized"
    area: tuple[float, float] = (0.08, 1.0)  # random_resized: part of the picture
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # random_resized: width / height of the box
    scale: tuple[float, float] = (1.0, 1.15)  # short_side: the short side in units of `size`
    flip: Share = 0.5  # probability of mirroring
    flip_labels: tuple = ()  # pairs of labels that change places when mirrored, such as left and right
    # Evaluation
    clips: Annotated[int, between(1, 1000)] = 1  # temporal views
    crops: Annotated[int, one_of(1, 3)] = 1  # spatial views: 1 (centre) or 3 (along the long side)
    # the short side is resized to this before cropping; None: `test_size`
    test_short_side: Annotated[int, between(1, 4096)] | None = None
    shuffle_frames: bool = False  # a control: the frames of every clip in random order
    # Split "windows": all of a long video, piece by piece
    # seconds that a clip covers, its frames at equal distances; 64f: so many frames of the video, or at the rate `fps`
    window: Seconds | Frames = 2.0
    hop: Seconds | Frames | None = None  # seconds or frames from window to window; None: `window`
    # mosi: of every video nine crops that move over a still frame, labelled with their motion, in place of clips of it: what
    # is said above of frames and crops does not count, but for `size` and `flip` (docs/training.md)
    pretext: Annotated[str, one_of("mosi")] | None = None
    mosi_size: Annotated[int, between(2, 16_384)] | None = None  # height and width of the still; None: 20/7 of `size`
    mosi_distance: tuple[float, float] = (1.0, 1.0)  # random part of the distance that a motion goes: all, or half of the way
    # side of the box in which the picture moves, as part of the crop; outside of it one frame stands still. None: all moves
    mosi_mask: tuple[float, float] | None = (0.3, 0.5)

    def __post_init__(self):
        intervals = [("area", 1e-6, 1), ("aspect", 0.01, 100), ("scale", 1, 100), ("mosi_distance", 0.01, 1)]
        intervals += [("mosi_mask", 0.01, 1)] if self.mosi_mask is not None else []
        for name, least, most in intervals:
            object.__setattr__(self, name, interval(name, getattr(self, name), least, most))
        check(ClipOptions, vars(self), SENTENCE)
        object.__setattr__(self, "flip_labels", pairs(self.flip_labels))
        short, size = self.test_short_side, self.test_size or self.size
        require(short is None or short >= size, "test_short_side", self, "at least as large as size, or test_size")
        require(self.mosi_size is None or self.mosi_size > size, "mosi_size", self, "larger than size, or test_size")

    @property
    def still_size(self) -> int:
        """Height and width of the stills over which crops move."""
        return self.mosi_size or -(-20 * self.size // 7)


@dataclass(frozen=True)
class OrderOptions:
    """In which order a training run sees the videos, and how often. Evaluation sees each once, in the stored order."""

    # global: any video may come after any other; window: shard after shard in random order, shuffled within
    # `window_shards` of them at a time, for data that is far away or on slow disks
    shuffle: Annotated[str, one_of("global", "window")] = "global"
    window_shards: Count = 16
    balance: Share = 0.0  # 0: every video equally often; 1: every class; between: classes in proportion to size^(1 - balance)
    repeats: Annotated[int, between(1, 1000)] = 1  # repeated augmentation: so many differing clips of a video in a row
    epoch_clips: Count | None = None  # what counts as an epoch; None: all videos (times `repeats`)

    def __post_init__(self):
        check(OrderOptions, vars(self), SENTENCE)


def in_seconds(span: float | str, fps):
    """A number of seconds, or of frames, as seconds; fps: of a video, or of several."""
    return int(span[:-1]) / fps if isinstance(span, str) else span


def require(condition: bool, name: str, options, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {getattr(options, name)!r}: it must be {rule}.")


def interval(name: str, value, least: float, most: float) -> tuple[float, float]:
    pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_finite, value))
    if not pair or not least <= value[0] <= value[1] <= most:
        raise ValueError(f"{name} is {value!r}: it must be two numbers from {least:g} to {most:g}, [low, high].")
    return float(value[0]), float(value[1])


def pairs(value) -> tuple[tuple[int, int], ...]:
    """Pairs of labels, each label in one pair only."""
    fine = isinstance(value, (list, tuple)) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value)
    flat = [label for pair in value for label in pair] if fine else []
    if not fine or not all(is_whole(label) and label >= 0 for label in flat) or len(set(flat)) < len(flat):
        raise ValueError(f"flip_labels is {value!r}: it must be pairs of different labels, such as [[86, 87], [93, 94]].")
    return tuple((int(a), int(b)) for a, b in value)
