"""Windows of long videos, cut out of rows of features: what a boundary-matching network sees of a video.

A row of features stands for `row_seconds` of its video: row r for what is from r * row_seconds to (r + 1) * row_seconds.
A time step is `rows_per_step` rows, a window T steps, and from window to window it is D steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

SHORTEST = 1.5  # rows that a window must have before the video ends


@dataclass(frozen=True)
class Cut:
    """How videos are cut into windows."""

    steps: int  # T
    durations: int  # D
    rows_per_step: int
    row_seconds: float

    @property
    def rows(self) -> int:
        """Of a window."""
        return self.steps * self.rows_per_step

    @property
    def seconds(self) -> float:
        """Of a window."""
        return self.rows * self.row_seconds

    def firsts(self, seconds: float) -> list[int]:
        """The first row of every window of a video."""
        rows, apart = seconds / self.row_seconds, self.durations * self.rows_per_step
        return [0, *(first for first in range(apart, int(np.ceil(rows)), apart) if rows - first >= SHORTEST)]

    def place(self, first: int, rows: int) -> range:
        """Which steps of a video with so many rows the first steps of a window are."""
        begin = first // self.rows_per_step
        return range(begin, max(begin, min(begin + self.steps, self.grid(rows))))

    def grid(self, rows: int) -> int:
        """The steps of a video."""
        return -(-rows // self.rows_per_step)

    def window(self, rows: np.ndarray) -> torch.Tensor:
        """(C, T) of the window's rows (n, C): filled up with zeros at the end, and interpolated from rows to steps."""
        part = torch.from_numpy(np.ascontiguousarray(rows))
        part = F.pad(part.T, (0, self.rows - len(part)))
        return F.interpolate(part[None], self.steps, mode="linear", align_corners=True)[0]

    def inside(self, segments: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, 2) seconds from the window's begin of the segments that are wholly in it, and which of them these are."""
        begin = first * self.row_seconds
        segments = np.asarray(segments, dtype=np.float64).reshape(-1, 2) - begin
        shared = np.minimum(segments[:, 1], self.seconds) - np.maximum(segments[:, 0], 0)
        which = np.flatnonzero(shared > 0.999 * (segments[:, 1] - segments[:, 0]))
        return segments[which], which
