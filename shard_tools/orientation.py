"""Which way up a frame is to be shown: the eight orientations, as its display matrix and FFmpeg's autorotation have them."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type


class Orientation(NamedTuple):
    """What is done to a frame, in this order."""

    transposed: bool = False  # rows become columns
    across: bool = False  # mirrored left to right
    down: bool = False  # mirrored top to bottom


TURNS = {  # FFmpeg's filters
    Orientation(False, False, False): [],
    Orientation(False, True, False): [("hflip", None)],
    Orientation(False, False, True): [("vflip", None)],
    Orientation(False, True, True): [("hflip", None), ("vflip", None)],
    Orientation(True, False, False): [("transpose", "cclock_flip")],
    Orientation(True, True, False): [("transpose", "clock")],
    Orientation(True, False, True): [("transpose", "cclock")],
    Orientation(True, True, True): [("transpose", "clock_flip")],
}


def orientation(frame: av.VideoFrame) -> Orientation | None:
    """The orientation that is nearest to the frame's display matrix; None: it has none, and is shown as the one before.

    By the matrix (a, b, u, c, d, v, ...) the point (x, y) is shown at (a x + c y, b x + d y). One without an inverse says
    that nothing is done.
    """
    matrix = _display_matrix(frame)
    if matrix is None:
        return None
    a, b, _, c, d = matrix[:5]
    if a * d == b * c:
        return Orientation()
    if abs(b * c) > abs(a * d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def _display_matrix(frame: av.VideoFrame) -> list[int] | None:
    """Its nine numbers. Of several matrices the first counts, as for FFmpeg."""
    found = SideDataContainer.__new__(SideDataContainer)
    with contextlib.suppress(ValueError):  # a kind that PyAV has no name for, such as a JPEG's EXIF, which comes last
        found.__init__(frame)
    with contextlib.suppress(ValueError):
        for data in found:
            if data.type == Type.DISPLAYMATRIX:
                return np.frombuffer(data, np.int32).tolist()
    return None
