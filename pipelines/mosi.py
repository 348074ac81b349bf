"""MoSI: a still frame and a crop that moves over it make a clip whose label, the motion, needs nobody to tell it.

Huang et al. 2021, Self-supervised Motion Learning from Static Images (arXiv 2104.00240): their joint labels of one axis at a
time, with what their code draws, in its order. The pixels are in pipelines/moving.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from i2v.pipelines.augment import Augmentation, AugmentOptions, draw_color
from i2v.pipelines.frames import linspace
from i2v.pipelines.options import ClipOptions, OrderOptions
from i2v.pipelines.philox import COLOR, MOTION

# Where the crop goes: the number is the label; every frame makes a clip of each
SPEEDS = ((-2, 0), (-1, 0), (1, 0), (2, 0), (0, -2), (0, -1), (0, 1), (0, 2), (0, 0))  # to the right and down; 2: all the way
MOTIONS = ["fast left", "left", "right", "fast right", "fast up", "up", "down", "fast down", "still"]
FASTEST = 2
AUGMENTATIONS = ("color_jitter", "color_jitter_p", "grayscale")  # that there are for its crops
NUMBERS = 12  # at most so many are drawn for a clip


@dataclass(frozen=True)
class Motion:
    """How one clip is cut out of a still, in its pixels."""

    top: np.ndarray  # (T,) int64, of the crop in each frame
    left: np.ndarray
    flip: bool  # of every frame, after cutting
    kept: int  # the frame that is seen all the time outside of `moving`
    moving: np.ndarray  # (4,) int64: top, left, bottom, right in pixels of the crop


def check_pretext(split: str, order: OrderOptions, augment: AugmentOptions) -> None:
    """Raises ValueError for what cannot be done with moving crops of stills."""
    if split == "windows":
        raise ValueError("clips.pretext is mosi, whose clips are made of single frames: they have no windows.")
    if order.balance:
        raise ValueError("clips.pretext is mosi, which looks at no labels: leave out data.order.balance.")
    for field in fields(augment):
        if field.name not in AUGMENTATIONS and getattr(augment, field.name) != field.default:
            known = ", ".join(AUGMENTATIONS)
            raise ValueError(f"clips.pretext is mosi, and clips.{field.name} is not for its crops: leave it out; {known} are.")


class Draws:
    """The numbers of a clip one after the other, as Python's `random` would give them."""

    def __init__(self, numbers: np.ndarray):
        self._numbers: Iterator[float] = iter(numbers.tolist())

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._numbers)

    def randint(self, low: int, high: int) -> int:
        """Both ends included."""
        return low + math.floor(next(self._numbers) * (high - low + 1))


def draw_still(label: int, options: ClipOptions, training: bool, box: Callable, draw) -> tuple[np.ndarray, Motion]:
    """Box and motion of a clip. box(offset): the square of the picture that becomes the still, with offset(slack, axis) to say
    where it begins; draw(stream, numbers): as draw_augmentation has it."""
    draws = Draws(draw(MOTION, NUMBERS))
    return box(lambda slack, axis: draws.randint(0, slack)), draw_motion(label, options, training, draws)


def draw_colors(augment: AugmentOptions, frames: int, draw) -> Augmentation:
    """Of a clip of so many frames, with a `color` (T, 3, 4) for each of them; grey is the whole clip."""
    whether, grey, *each = draw(COLOR, 2 + 4 * frames)
    rows = np.reshape(each, (frames, 4))
    return Augmentation(color=np.stack([draw_color(augment, (whether, *row, grey)) for row in rows]))


def draw_motion(label: int, options: ClipOptions, training: bool, draws) -> Motion:
    """The motion of a label over a still of options.still_size. Not in training: from the middle, and nothing is mirrored."""
    left, top = (_path(speed / FASTEST, options, training, draws) for speed in SPEEDS[label])
    flip = training and draws.uniform(0, 1) < options.flip
    kept, moving = 0, np.array([0, 0, options.size, options.size])
    if options.mosi_mask is not None:
        kept = draws.randint(0, options.num_frames - 1)
        side = int(options.size * draws.uniform(*options.mosi_mask))
        x, y = (draws.randint(0, options.size - side) for _ in range(2))
        moving = np.array([y, x, y + side, x + side])
    return Motion(top, left, flip, kept, moving)


def _path(speed: float, options: ClipOptions, training: bool, draws) -> np.ndarray:
    """(T,) where the crop begins along one side; speed: which part of the way it goes, from -1 to 1."""
    way, (low, high) = options.still_size - options.size, options.mosi_distance
    distance = way * speed * (draws.uniform(low, 1 if abs(speed) == 1 else high) if training else 1)
    start = draws.randint(int(max(0, -distance)), int(min(way, way - distance))) if training else (way - distance) // 2
    return linspace(start, start + distance, options.num_frames).astype(np.int64).clip(0, way)
