"""Which clip comes when, which of its frames, which part of the picture: every random number of the data side.

All of it is a pure function of (seed, position in the stream, sample id), drawn here from Philox, never on the device.
So resuming is evaluating the function further on, and any number of ranks sees the same global stream:
the sample at absolute position p is `permutation(seed, p // n)[p % n]`.
Nothing is dropped, padded or repeated at the end of an epoch, and the state of a run's data is one integer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Independent random streams: adding a draw to one does not change the others.
ORDER, FRAMES, CROP, FLIP, SHUFFLE = range(5)

RESIZED_CROP_TRIES = 10  # as torchvision


@dataclass(frozen=True)
class ClipOptions:
    """How clips are cut out of videos. Sizes are in pixels, strides in frames of the stored video.

    Training takes one random clip of a video; evaluation takes `clips` x `crops` views of it.
    """

    num_frames: int = 8
    sampling: str = "segments"  # segments (TSN): one frame of each of num_frames equal parts; stride: every n-th frame
    stride: int = 16  # for sampling: stride
    size: int = 224  # height and width of what the model sees
    # Training
    crop: str = "random_resized"  # random_resized: a box of random area and aspect; short_side: random scale, square box
    area: tuple[float, float] = (0.08, 1.0)  # random_resized: part of the picture
    aspect: tuple[float, float] = (3 / 4, 4 / 3)  # random_resized: width / height of the box
    scale: tuple[float, float] = (1.0, 1.15)  # short_side: the short side in units of `size`
    flip: float = 0.5  # probability of mirroring
    # Evaluation
    clips: int = 1  # temporal views
    crops: int = 1  # spatial views: 1 (centre) or 3 (along the long side)
    test_short_side: int | None = None  # the short side is resized to this before cropping; None: `size`
    shuffle_frames: bool = False  # a control: the frames of every clip in random order

    def __post_init__(self):
        for name in ("area", "aspect", "scale"):
            object.__setattr__(self, name, _interval(name, getattr(self, name)))
        for name in ("num_frames", "stride", "size", "clips"):
            _require(_is_int(getattr(self, name)) and getattr(self, name) >= 1, name, self, "a whole number, at least 1")
        _require(self.sampling in ("segments", "stride"), "sampling", self, "segments or stride")
        _require(self.crop in ("random_resized", "short_side"), "crop", self, "random_resized or short_side")
        _require(self.crops in (1, 3), "crops", self, "1 or 3")
        _require(self.area[1] <= 1, "area", self, "at most the whole picture, [low, 1]")
        _require(self.scale[0] >= 1, "scale", self, "at least 1: a smaller picture does not fill the crop")
        _require(_is_number(self.flip) and 0 <= self.flip <= 1, "flip", self, "a probability")
        short = self.test_short_side
        _require(
            short is None or (_is_int(short) and short >= self.size), "test_short_side", self, "at least as large as size"
        )


@dataclass(frozen=True)
class ClipSpec:
    """Everything there is to know to make one sample."""

    id: int
    frames: np.ndarray  # (clips * T,) int32, indices in the stored video
    boxes: np.ndarray  # (crops, 4) float32: top, left, bottom, right in pixels of the stored video
    flip: bool
    weight: float  # 0: fills up the batch, counts for nothing


class Plan:
    """The stream of samples of a data set.

    frames, widths, heights: (n,) what the videos are like. split: "train" (endless, random), "val" (in order, each
    once, one centre view) or "test" (in order, each once, clips x crops views).
    """

    def __init__(self, frames, widths, heights, options: ClipOptions, split: str = "train", seed: int = 0):
        if split not in ("train", "val", "test"):
            raise ValueError(f"split is {split!r}: it must be train, val or test.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}: it must be a whole number between 0 and 2**63 - 1.")
        self.frames, self.widths, self.heights = frames, widths, heights
        self.options, self.split, self.seed = options, split, seed
        self.clips, self.crops = (options.clips, options.crops) if split == "test" else (1, 1)
        # Two epochs: batches and ranks straddle the border.
        self._permutation = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(frames)))

    def __len__(self) -> int:
        return len(self.frames)

    def locate(self, position: int) -> tuple[int, int, float]:
        """(epoch, sample id, weight) at an absolute position of the stream."""
        epoch, index = divmod(position, len(self))
        if self.split == "train":
            return epoch, int(self._permutation(epoch)[index]), 1.0
        return 0, index, 1.0 if epoch == 0 else 0.0

    def __getitem__(self, position: int) -> ClipSpec:
        epoch, sample, weight = self.locate(position)
        count, width, height = int(self.frames[sample]), int(self.widths[sample]), int(self.heights[sample])
        options, flip = self.options, False

        def draw(stream: int, numbers: int) -> np.ndarray:
            return uniforms(self.seed, stream, epoch, sample, numbers)

        if self.split == "train":
            frames = train_frames(count, options, draw(FRAMES, options.num_frames))
            boxes = train_box(width, height, options, draw)[None]
            flip = bool(draw(FLIP, 1)[0] < options.flip)
        else:
            frames = test_frames(count, options, self.clips)
            boxes = test_boxes(width, height, options, self.crops)
        if options.shuffle_frames:
            order = np.argsort(draw(SHUFFLE, self.clips * options.num_frames).reshape(self.clips, -1), axis=1)
            frames = np.take_along_axis(frames, order, axis=1)
        return ClipSpec(sample, frames.reshape(-1).astype(np.int32), boxes.astype(np.float32), flip, weight)


def uniforms(seed: int, stream: int, epoch: int, sample: int, numbers: int) -> np.ndarray:
    """(numbers,) float64 in [0, 1), the same on every machine and with every version of numpy."""
    raw = _philox(seed, stream, epoch, sample).random_raw(numbers)
    return (raw >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """(n,) the order of the samples in one epoch."""
    # numpy may change what its shuffles do with their random numbers; the raw numbers are fixed.
    return np.argsort(_philox(seed, ORDER, epoch, 0).random_raw(n), kind="stable")


def _philox(seed: int, stream: int, epoch: int, sample: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, stream << 60 | epoch << 40 | sample], dtype=np.uint64))


# ---- frames ----------------------------------------------------------------------------------------------------------


def train_frames(count: int, options: ClipOptions, u: np.ndarray) -> np.ndarray:
    """(1, T) frame indices of a random clip of a video of `count` frames; u: (T,) uniform numbers.

    segments: one random frame of each of T equal parts, both ends included. stride: a random start; a video that is
    too short gives its last reachable frame again. Both as the ST-Adapter authors' code.
    """
    t = options.num_frames
    if options.sampling == "segments":
        first, last = _segments(count, t)
        return (first + np.floor(u * (last - first + 1)).astype(np.int64))[None]
    starts = count - options.stride * (t - 1)
    start = math.floor(u[0] * starts) if starts > 0 else 0
    return _strided(np.array([start]), count, options)


def test_frames(count: int, options: ClipOptions, clips: int) -> np.ndarray:
    """(clips, T) frame indices of the evaluation views.

    segments: the k-th of K views takes the frame (k + 1) / (K + 1) into each part, so one view takes the middle.
    stride: K starts spread evenly from the first possible one to the last, so one view takes the middle.
    With 1 view (segments) and 3 views (stride) these are the ST-Adapter authors' indices.
    """
    if options.sampling == "segments":
        first, last = _segments(count, options.num_frames)
        k = np.arange(1, clips + 1)[:, None]
        return first + (last - first) * k // (clips + 1)
    slack = max(count - ((options.num_frames - 1) * options.stride + 1), 0)
    starts = np.rint(slack / (clips - 1) * np.arange(clips)) if clips > 1 else np.rint([slack / 2])
    return _strided(starts.astype(np.int64), count, options)


def _segments(count: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last frame of each of t equal parts, (t,) each."""
    bounds = np.rint((count - 1) / t * np.arange(t + 1)).astype(np.int64)
    return bounds[:-1], bounds[1:]


def _strided(starts: np.ndarray, count: int, options: ClipOptions) -> np.ndarray:
    """(K,) starts -> (K, T) indices; what lies beyond the video becomes the last frame of the grid inside it."""
    steps = np.arange(options.num_frames)[None, :]
    reachable = (count - 1 - starts[:, None]) // options.stride
    return starts[:, None] + np.minimum(steps, reachable) * options.stride


# ---- boxes -----------------------------------------------------------------------------------------------------------


def train_box(width: int, height: int, options: ClipOptions, draw) -> np.ndarray:
    """(4,) top, left, bottom, right of the part of the picture that becomes size x size pixels."""
    if options.crop == "random_resized":
        return random_resized_box(width, height, options, draw(CROP, 4 * RESIZED_CROP_TRIES).reshape(-1, 4))
    u = draw(CROP, 3)
    low, high = options.scale
    short = round(options.size * (low + (high - low) * u[0]))
    return _square_box(width, height, short, options.size, lambda slack, axis: math.floor(u[1 + axis] * (slack + 1)))


def random_resized_box(width: int, height: int, options: ClipOptions, u: np.ndarray) -> np.ndarray:
    """A box of random area and aspect that lies in the picture, or the largest centred one (torchvision's rule)."""
    low, high = np.log(options.aspect)
    for area_u, aspect_u, top_u, left_u in u:
        area = width * height * (options.area[0] + (options.area[1] - options.area[0]) * area_u)
        aspect = math.exp(low + (high - low) * aspect_u)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = math.floor(top_u * (height - h + 1)), math.floor(left_u * (width - w + 1))
            return np.array([top, left, top + h, left + w])
    w = min(width, round(height * options.aspect[1]))
    h = min(height, round(width / options.aspect[0]))
    top, left = (height - h) // 2, (width - w) // 2
    return np.array([top, left, top + h, left + w])


def test_boxes(width: int, height: int, options: ClipOptions, crops: int) -> np.ndarray:
    """(crops, 4) squares along the long side: the centre, or both ends and the centre."""
    short = options.test_short_side or options.size
    if crops == 1:
        return _square_box(width, height, short, options.size, lambda slack, axis: slack // 2)[None]
    along = 1 if width >= height else 0
    places = (lambda slack: 0, lambda slack: slack // 2, lambda slack: slack)
    return np.stack(
        [
            _square_box(width, height, short, options.size, lambda slack, axis: (place if axis == along else places[1])(slack))
            for place in places
        ]
    )


def _square_box(width: int, height: int, short: int, size: int, offset) -> np.ndarray:
    """A size x size crop of the picture resized to short side `short`, in pixels of the picture as it is.

    offset(slack, axis) -> where the crop begins, 0..slack in resized pixels; axis 0 is vertical.
    """
    scale = short / min(width, height)
    resized = (max(short, int(height * scale)), max(short, int(width * scale)))
    top, left = (offset(resized[axis] - size, axis) for axis in (0, 1))
    y, x = height / resized[0], width / resized[1]
    return np.array([top * y, left * x, (top + size) * y, (left + size) * x])


# ---- checks ----------------------------------------------------------------------------------------------------------


def _require(condition: bool, name: str, options: ClipOptions, rule: str) -> None:
    if not condition:
        raise ValueError(f"{name} is {getattr(options, name)!r}: it must be {rule}.")


def _interval(name: str, value) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(_is_number, value)) or not 0 < value[0] <= value[1]:
        raise ValueError(f"{name} is {value!r}: it must be two positive numbers, [low, high].")
    return float(value[0]), float(value[1])


def _is_int(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
