"""Windows that slide over a video as its frames come: the plan's windows, of videos that nobody has as a whole.

Of each window the same frames are taken that the plan takes of a stored video (frames.py), as soon as they are known, and
no others are kept: what is held is as much for a day as for a minute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from i2v.pipelines.frames import window_times
from i2v.pipelines.plan import windows_in


@dataclass
class Window:
    """start, end: seconds from the video's first frame. pictures: (T,) what `keep` made of its frames."""

    start: float
    end: float
    wanted: np.ndarray  # (T,) seconds
    pictures: list = field(default_factory=list)

    def take(self, shown, until: float = np.inf) -> None:
        """Take a frame for every time up to `until` that has none yet."""
        while len(self.pictures) < len(self.wanted) and self.wanted[len(self.pictures)] <= until:
            self.pictures.append(shown())


class Sliding:
    """Push frames with rising times, then finish; both give the windows that are complete.

    num_frames: of a window, at equal distances. window, hop: seconds. keep(frame) -> what is kept of a frame that a window
    wants: called once for each of these, and for no other.
    """

    def __init__(self, num_frames: int, window: float, hop: float, keep: Callable):
        self._count, self._window, self._hop, self._keep = num_frames, window, hop, keep
        self._open: deque[Window] = deque()
        self._next = 0  # number of the first window that is not open yet
        self._frames, self._first, self._before, self._last = 0, 0.0, None, 0.0

    @property
    def held(self) -> int:
        """Different pictures that are kept for windows that are not complete."""
        return len({id(picture) for window in self._open for picture in window.pictures})

    def push(self, time: float, frame) -> Iterator[Window]:
        """The windows that end at or before this frame, which is shown at `time`."""
        if self._before is None:
            self._first = time
        now, shown = float(np.float32(time - self._first)), _Once(self._keep, frame)  # rounded as an index has it
        if self._before is None:
            self._before = shown
        middle = (self._last + now) / 2  # up to here the frame before is the nearest
        for window in self._open:
            window.take(self._before, middle)
        while self._next * self._hop <= now:
            self._open.append(self._begin())
            self._open[-1].take(self._before, middle)
            yield from self._complete(now, shown)
        yield from self._complete(now, shown)
        self._frames, self._before, self._last = self._frames + 1, shown, now

    def finish(self, rate: Callable[[int, float], float]) -> Iterator[Window]:
        """The windows that are left at the end. rate(frames, seconds of the last one) -> frames per second."""
        if self._before is None:
            return
        seconds = self._frames / float(np.float32(rate(self._frames, self._last)))
        done = self._next - len(self._open)
        for _ in range(done, int(windows_in(np.float64(seconds), self._window, self._hop))):
            window = self._open.popleft() if self._open else self._begin()
            window.take(self._before)
            window.end = min(window.end, seconds)
            yield window

    def _begin(self) -> Window:
        start = self._next * self._hop
        self._next += 1
        return Window(start, start + self._window, window_times(start, self._window, self._count))

    def _complete(self, now: float, shown) -> Iterator[Window]:
        while self._open and self._open[0].end <= now:
            window = self._open.popleft()
            window.take(shown)
            yield window


class _Once:
    """What is kept of a frame, made when it is asked for the first time."""

    def __init__(self, keep: Callable, frame):
        self._keep, self._frame, self._kept = keep, frame, None

    def __call__(self):
        if self._kept is None:
            self._kept, self._frame = self._keep(self._frame), None
        return self._kept
