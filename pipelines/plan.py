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
VARIANTS = ("st_adapter", "aim", "zeroi2v", "tada")


@dataclass(frozen=True)
class ClipOptions:
    """How clips are cut out of videos. Sizes are in pixels, strides in frames of the stored video.

    Training takes one random clip of a video; evaluation takes `clips` x `crops` views of it.
    """

    num_frames: int = 8
    sampling: str = "segments"  # segments (TSN): one frame of each of num_frames equal parts; stride: every n-th frame
    stride: int = 16  # for sampling: stride
    variant: str = "st_adapter"  # whose formulas: st_adapter, aim, zeroi2v or tada (DiST's too); see the end of this file
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

    def __post_init__(self):
        for name in ("area", "aspect", "scale"):
            object.__setattr__(self, name, _interval(name, getattr(self, name)))
        for name in ("num_frames", "stride", "size", "clips"):
            _require(_is_int(getattr(self, name)) and getattr(self, name) >= 1, name, self, "a whole number, at least 1")
        _require(self.sampling in ("segments", "stride"), "sampling", self, "segments or stride")
        _require(self.variant in VARIANTS, "variant", self, f"one of {', '.join(VARIANTS)}")
        _require(self.crop in ("random_resized", "short_side"), "crop", self, "random_resized or short_side")
        _require(self.crops in (1, 3), "crops", self, "1 or 3")
        _require(self.area[1] <= 1, "area", self, "at most the whole picture, [low, 1]")
        _require(self.scale[0] >= 1, "scale", self, "at least 1: a smaller picture does not fill the crop")
        _require(_is_number(self.flip) and 0 <= self.flip <= 1, "flip", self, "a probability")
        _require(isinstance(self.shuffle_frames, bool), "shuffle_frames", self, "true or false")
        object.__setattr__(self, "flip_labels", _pairs(self.flip_labels))
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

    frames, widths, heights, fps: (n,) what the videos are like. split: "train" (endless, random), "val" (in order, each
    once, one centre view) or "test" (in order, each once, clips x crops views).
    """

    def __init__(self, frames, widths, heights, fps, options: ClipOptions, split: str = "train", seed: int = 0):
        if split not in ("train", "val", "test"):
            raise ValueError(f"split is {split!r}: it must be train, val or test.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}: it must be a whole number between 0 and 2**63 - 1.")
        self.frames, self.widths, self.heights, self.fps = frames, widths, heights, fps
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
        options, fps, flip = self.options, float(self.fps[sample]), False

        def draw(stream: int, numbers: int) -> np.ndarray:
            return uniforms(self.seed, stream, epoch, sample, numbers)

        if self.split == "train":
            frames = train_frames(count, fps, options, draw(FRAMES, options.num_frames))
            boxes = train_box(width, height, options, draw)[None]
            flip = bool(draw(FLIP, 1)[0] < options.flip)
        else:
            frames = test_frames(count, fps, options, self.clips)
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
#
# n frames in the video, T wanted, K views. The authors of the five methods compute the same two ideas differently:
#
#              segments                                         stride s
# st_adapter   parts round((n-1)/T i) .. round((n-1)/T (i+1)),  starts 0 .. n-s(T-1)-1; views from the first to the last
#              ends included; views at (k+1)/(K+1) of them      start; too short: the last reachable frame again
# aim          as st_adapter                                    starts 0 .. n-sT; view k at (k+1/2)/K of them;
#                                                               too short: begin again at frame 0
# zeroi2v      views at int((n-1)/T (k+1)/(K+1)) into them      training as aim; views as st_adapter; begin again
# tada (DiST)  parts n/T wide, in real numbers, then rounded;   s at 30 fps: T frames over T s fps/30 - 1; view k at
#              view k at (k+1)/K of them, one at 1/2            k/K of the starts, one at 1/2; too short: the last frame


def train_frames(count: int, fps: float, options: ClipOptions, u: np.ndarray) -> np.ndarray:
    """(1, T) frame indices of a random clip of a video of `count` frames; u: (T,) uniform numbers."""
    t, stride, variant = options.num_frames, options.stride, options.variant
    if options.sampling == "segments":
        if variant == "tada":
            bounds = _linspace(0, count, t + 1)
            return _rounded(bounds[:-1] + (bounds[1:] - bounds[:-1]) * u, count)[None]
        first, last = _parts(count, t)
        return (first + np.floor(u * (last - first + 1)).astype(np.int64))[None]
    if variant == "tada":
        return _at_30_fps(np.array([u[0]]), count, fps, options)
    starts = count - stride * (t - 1) if variant == "st_adapter" else count - stride * t + 1
    start = math.floor(u[0] * starts) if starts > 0 else 0
    return _strided(np.array([start]), count, options)


def test_frames(count: int, fps: float, options: ClipOptions, clips: int) -> np.ndarray:
    """(clips, T) frame indices of the evaluation views."""
    t, stride, variant = options.num_frames, options.stride, options.variant
    k = np.arange(clips)[:, None]
    if options.sampling == "segments":
        if variant == "tada":
            bounds, place = _linspace(0, count, t + 1), (k + 1) / clips if clips > 1 else np.array([[0.5]])
            return _rounded(bounds[:-1] + (bounds[1:] - bounds[:-1]) * place, count)
        first, last = _parts(count, t)
        if variant == "zeroi2v":
            return first + ((count - 1) / t / (clips + 1) * (k + 1)).astype(np.int64)
        return first + (last - first) * (k + 1) // (clips + 1)
    k = k[:, 0]
    if variant == "tada":
        return _at_30_fps(k / clips if clips > 1 else np.array([0.5]), count, fps, options)
    if variant == "aim":
        starts = np.floor((k + 0.5) * max(count - stride * t + 1, 0) / clips)
    else:
        slack = max(count - ((t - 1) * stride + 1), 0)
        starts = np.rint(slack / (clips - 1) * k) if clips > 1 else np.rint([slack / 2])
    return _strided(starts.astype(np.int64), count, options)


def _parts(count: int, t: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last frame of each of t equal parts, (t,) each."""
    bounds = np.rint((count - 1) / t * np.arange(t + 1)).astype(np.int64)
    return bounds[:-1], bounds[1:]


def _strided(starts: np.ndarray, count: int, options: ClipOptions) -> np.ndarray:
    """(K,) starts -> (K, T) indices, inside the video by the variant's rule."""
    steps = np.arange(options.num_frames)[None, :]
    if options.variant != "st_adapter":
        return (starts[:, None] + steps * options.stride) % count
    reachable = (count - 1 - starts[:, None]) // options.stride
    return starts[:, None] + np.minimum(steps, reachable) * options.stride


def _at_30_fps(place: np.ndarray, count: int, fps: float, options: ClipOptions) -> np.ndarray:
    """(K,) places of the start, 0 to 1 -> (K, T) indices of a clip that is as long as T strides at 30 frames per second."""
    length = max(options.num_frames * options.stride * fps / 30, 1.0)
    starts = place * max(count - length, 0)
    rows = [_linspace(start, start + length - 1, options.num_frames) for start in starts]
    return np.clip(np.stack(rows), 0, count - 1).astype(np.int64)


def _rounded(positions: np.ndarray, count: int) -> np.ndarray:
    return np.rint(np.clip(positions, 0, count - 1)).astype(np.int64)


def _linspace(first: float, last: float, numbers: int) -> np.ndarray:
    """As torch.linspace in float32, to the bit: where the authors round, half a unit decides."""
    if numbers == 1:
        return np.array([first], dtype=np.float32)
    first, last = np.float32(first), np.float32(last)
    step, i = (last - first) / np.float32(numbers - 1), np.arange(numbers, dtype=np.float32)
    return np.where(i < numbers // 2, first + step * i, last - step * (np.float32(numbers - 1) - i))


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


def _pairs(value) -> tuple[tuple[int, int], ...]:
    """Pairs of labels, each label in one pair only."""
    fine = isinstance(value, (list, tuple)) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value)
    flat = [label for pair in value for label in pair] if fine else []
    if not fine or not all(_is_int(label) and label >= 0 for label in flat) or len(set(flat)) < len(flat):
        raise ValueError(f"flip_labels is {value!r}: it must be pairs of different labels, such as [[86, 87], [93, 94]].")
    return tuple((int(a), int(b)) for a, b in value)


def _is_int(value) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
