"""Which part of the picture: boxes in pixels of the stored video, (top, left, bottom, right)."""

from __future__ import annotations

import math

import numpy as np

from i2v.pipelines.options import ClipOptions
from i2v.pipelines.philox import CROP

RESIZED_CROP_TRIES = 10  # as torchvision


def train_box(width: int, height: int, options: ClipOptions, draw) -> np.ndarray:
    """(4,) top, left, bottom, right of the part of the picture that becomes size x size pixels."""
    if options.crop == "random_resized":
        return random_resized_box(width, height, options, draw(CROP, 4 * RESIZED_CROP_TRIES).reshape(-1, 4))
    u = draw(CROP, 3)
    low, high = options.scale
    short = round(options.size * (low + (high - low) * u[0]))
    return square_box(width, height, short, options.size, lambda slack, axis: math.floor(u[1 + axis] * (slack + 1)))


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
        return square_box(width, height, short, options.size, lambda slack, axis: slack // 2)[None]
    along = 1 if width >= height else 0
    places = (lambda slack: 0, lambda slack: slack // 2, lambda slack: slack)
    return np.stack(
        [
            square_box(width, height, short, options.size, lambda slack, axis: (place if axis == along else places[1])(slack))
            for place in places
        ]
    )


def square_box(width: int, height: int, short: int, size: int, offset) -> np.ndarray:
    """(4,) a size x size crop of the picture resized to short side `short`, in pixels of the picture as it is.

    offset(slack, axis) -> where the crop begins, 0..slack in resized pixels; axis 0 is vertical.
    """
    scale = short / min(width, height)
    resized = (max(short, int(height * scale)), max(short, int(width * scale)))
    top, left = (offset(resized[axis] - size, axis) for axis in (0, 1))
    y, x = height / resized[0], width / resized[1]
    return np.array([top * y, left * x, (top + size) * y, (left + size) * x])
