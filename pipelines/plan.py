"""The plan: everything there is to know to make the sample at a position of the stream.

All of it is a pure function of (seed, position in the stream, sample id), drawn here from Philox, never on the device.
So resuming is evaluating the function further on, and any number of ranks sees the same global stream:
the sample at absolute position p is `permutation(seed, p // n)[p % n]`.
Nothing is dropped, padded or repeated at the end of an epoch, and the state of a run's data is one integer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from i2v.pipelines.augment import Augmentation, AugmentOptions, draw_augmentation, no_augmentation
from i2v.pipelines.boxes import square_box, test_boxes, train_box
from i2v.pipelines.frames import test_frames, timeline, train_frames, window_frames
from i2v.pipelines.mosi import MOTIONS, Motion, draw_colors, draw_still
from i2v.pipelines.options import ClipOptions, OrderOptions, in_seconds
from i2v.pipelines.order import Mixture, Order, Place
from i2v.pipelines.philox import FLIP, FRAMES, SHUFFLE, uniforms

SPLITS = ("train", "val", "test", "windows")


@dataclass(frozen=True)
class ClipSpec:
    """Everything there is to know to make one sample."""

    id: int
    frames: np.ndarray  # (clips * T,) int32, indices in the stored video
    boxes: np.ndarray  # (crops, 4) float32: top, left, bottom, right in pixels of the stored video
    flip: bool
    weight: float  # 0: fills up the batch, counts for nothing
    augmentation: Augmentation | None = None
    motion: Motion | None = None  # of a clip that is made of one frame

    @property
    def decoded(self) -> np.ndarray:
        """The indices of the frames that it is made of."""
        return self.frames if self.motion is None else self.frames[:1]


class Plan:
    """The stream of samples of a data set.

    frames, widths, heights, fps: (n,) what the videos are like. split: "train" (endless, random), "val" (in order, each
    once, one centre view), "test" (in order, each once, clips x crops views) or "windows" (in order, each as many windows
    as cover it, `crops` views each).
    order: of "train"; None: shuffled as a whole. augment: of "train". times(sample): (frames,) seconds, when each frame is
    shown; None: at a constant rate. epoch_clips: what counts as an epoch of "train"; None: every video once.
    """

    def __init__(
        self,
        frames,
        widths,
        heights,
        fps,
        options: ClipOptions,
        split: str = "train",
        seed: int = 0,
        *,
        order: Order | Mixture | None = None,
        augment: AugmentOptions = AugmentOptions(),
        times: Callable[[int], np.ndarray] | None = None,
        epoch_clips: int | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: it must be one of {', '.join(SPLITS)}.")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}: it must be a whole number between 0 and 2**63 - 1.")
        self.frames, self.widths, self.heights, self.fps = frames, widths, heights, fps
        self.options, self.split, self.seed = options, split, seed
        self.order = order or Order(np.zeros(len(frames), dtype=np.int64), OrderOptions(), seed)
        self.augment = augment if split == "train" else AugmentOptions()
        self.stills = options.pretext is not None
        self._augments = bool(self.augment.arrays)
        self.times = times or (lambda sample: np.arange(int(frames[sample])) / float(fps[sample]))
        self.clips = options.clips if split == "test" and not self.stills else 1
        self.crops = options.crops if split in ("test", "windows") and not self.stills else 1
        if split == "windows":
            self.first_windows = _first_windows(frames, fps, options)
            self._length = int(self.first_windows[-1])
        else:
            self._length = epoch_clips if split == "train" and epoch_clips else len(frames)

    def __len__(self) -> int:
        """Samples in an epoch of training, or in an evaluation."""
        return self._length

    def locate(self, position: int) -> tuple[int, int, float]:
        """(epoch, sample id, weight) at an absolute position of the stream."""
        if self.split == "train":
            place = self._place(position)
            return place.epoch, place.clip, 1.0
        index, weight = position % len(self), float(position < len(self))
        if self.split == "windows":
            index = int(np.searchsorted(self.first_windows, index, side="right")) - 1
        return 0, index, weight

    def __getitem__(self, position: int) -> ClipSpec:
        if self.stills:
            return self._still(position)
        return self._train(position) if self.split == "train" else self._evaluation(position)

    def shards_ahead(self, position: int, count: int) -> list[int]:
        """The shards that the next `count` positions of training need, in the order of need."""
        first, last = position // self._per_video, (position + count - 1) // self._per_video
        return self.order.shards_ahead(first, last - first + 1)

    @property
    def _per_video(self) -> int:
        return len(MOTIONS) if self.stills else 1

    def _place(self, position: int) -> Place:
        """What stands at a position of training: of a video, where there are several clips of it, one after the other."""
        position, nth = divmod(position, self._per_video)
        place, times = self.order[position], self._per_video
        return Place(place.clip * times + nth, place.epoch, place.draw * times + nth)

    def blank(self, position: int) -> ClipSpec:
        """What stands at a position, with weight 0 and nothing to read: for a clip whose times cannot be trusted."""
        frames = np.zeros(self.clips * self.options.num_frames, dtype=np.int32)
        boxes = np.zeros((self.crops, 4), dtype=np.float32)
        augmentation = no_augmentation(self.augment) if self._augments else None
        return ClipSpec(self.locate(position)[1], frames, boxes, False, 0.0, augmentation)

    def window(self, position: int) -> tuple[float, float]:
        """Start and end, in seconds from the beginning of the video, of the window at a position of "windows"."""
        _, sample, _ = self.locate(position)
        window, hop = window_and_hop(self.options, float(self.fps[sample]))
        start = (position % len(self) - int(self.first_windows[sample])) * hop
        return start, start + window

    def _still(self, position: int) -> ClipSpec:
        """A frame of a video, the same for all its motions, and one of them."""
        training = self.split == "train"
        _, clip, weight = self.locate(position)
        # An evaluation is the same whatever the seed of the run
        place, seed = (self._place(position), self.seed) if training else (Place(clip, 0, clip), 0)
        video, label = divmod(place.draw, self._per_video)
        frame = math.floor(_draw(seed, place.epoch, video, FRAMES, 1)[0] * int(self.frames[clip]))
        frames = np.full(self.options.num_frames, frame, dtype=np.int32)
        picture = int(self.widths[clip]), int(self.heights[clip]), *[self.options.still_size] * 2
        draw = partial(_draw, seed, place.epoch, place.draw)
        box, motion = draw_still(label, self.options, training, partial(square_box, *picture), draw)
        colors = draw_colors(self.augment, self.options.num_frames, draw) if self._augments else None
        return ClipSpec(clip, frames, box[None].astype(np.float32), motion.flip, weight, colors, motion)

    def _train(self, position: int) -> ClipSpec:
        place, options = self.order[position], self.options
        draw = partial(_draw, self.seed, place.epoch, place.draw)
        count, fps, stored = self._timeline(place.clip)
        frames = train_frames(count, fps, options, draw(FRAMES, options.num_frames))
        frames = self._finish(frames, stored, draw)
        width, height = int(self.widths[place.clip]), int(self.heights[place.clip])
        boxes = train_box(width, height, options, draw)[None].astype(np.float32)
        flip = bool(draw(FLIP, 1)[0] < options.flip)
        augmentation = draw_augmentation(self.augment, width, height, options.size, draw) if self._augments else None
        return ClipSpec(place.clip, frames, boxes, flip, 1.0, augmentation)

    def _evaluation(self, position: int) -> ClipSpec:
        _, sample, weight = self.locate(position)
        options = self.options
        if self.split == "windows":
            start, (window, _) = self.window(position)[0], window_and_hop(options, float(self.fps[sample]))
            frames, stored = window_frames(self.times(sample), start, window, options.num_frames), None
        else:
            count, fps, stored = self._timeline(sample)
            frames = test_frames(count, fps, options, self.clips)
        frames = self._finish(frames, stored, partial(_draw, self.seed, 0, sample))
        boxes = test_boxes(int(self.widths[sample]), int(self.heights[sample]), options, self.crops)
        return ClipSpec(sample, frames, boxes.astype(np.float32), False, weight)

    def _timeline(self, sample: int) -> tuple[int, float, np.ndarray | None]:
        """How many frames to choose from, at which rate, and which stored frame each is; None: itself."""
        count, fps = int(self.frames[sample]), float(self.fps[sample])
        if self.options.fps is None:
            return count, fps, None
        stored = timeline(self.times(sample), count / fps, self.options.fps)
        return len(stored), self.options.fps, stored

    def _finish(self, frames: np.ndarray, stored: np.ndarray | None, draw) -> np.ndarray:
        """(clips, T) chosen frames -> (clips * T,) int32 stored ones, shuffled if that is wanted."""
        if self.options.shuffle_frames:
            order = np.argsort(draw(SHUFFLE, frames.size).reshape(frames.shape), axis=1)
            frames = np.take_along_axis(frames, order, axis=1)
        frames = frames if stored is None else stored[frames]
        return frames.reshape(-1).astype(np.int32)


def _draw(seed: int, epoch: int, sample: int, stream: int, numbers: int) -> np.ndarray:
    return uniforms(seed, stream, epoch, sample, numbers)


def window_and_hop(options: ClipOptions, fps):
    """Both in seconds, of a video or of several, whose frames per second are `fps`; with options.fps frames count at that."""
    window, hop = (in_seconds(span, options.fps or fps) for span in (options.window, options.hop or options.window))
    return window, hop


def windows_in(seconds: np.ndarray, window: float, hop: float) -> np.ndarray:
    """How many windows slide over videos that are so long: as many as cover them, at least one."""
    # A thousandth of a window more than a whole number of them is rounding, not film.
    counts = np.ceil((seconds - window) / hop - 1e-3) + 1
    counts = np.minimum(counts, np.ceil(seconds / hop - 1e-3))  # with gaps between windows: none begins after the end
    return np.maximum(counts, 1).astype(np.int64)


def _first_windows(frames, fps, options: ClipOptions) -> np.ndarray:
    """(n + 1,) the position of each video's first window."""
    fps = np.asarray(fps, dtype=np.float64)
    counts = windows_in(np.asarray(frames, dtype=np.float64) / fps, *window_and_hop(options, fps))
    return np.concatenate([[0], np.cumsum(counts)])
