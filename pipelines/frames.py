"""Which frames of a video: as indices of the stored frames.

n frames in the video, T wanted, K views. The authors of the five methods compute the same two ideas differently:

             segments                                         stride s
st_adapter   parts round((n-1)/T i) .. round((n-1)/T (i+1)),  starts 0 .. n-s(T-1)-1; views from the first to the last
             ends included; views at (k+1)/(K+1) of them      start; too short: the last reachable frame again
aim          as st_adapter                                    starts 0 .. n-sT; view k at (k+1/2)/K of them;
                                                              too short: begin again at frame 0
zeroi2v      views at int((n-1)/T (k+1)/(K+1)) into them      training as aim; views as st_adapter; begin again
tada (DiST)  parts n/T wide, in real numbers, then rounded;   s at 30 fps: T frames over T s fps/30 - 1; view k at
             view k at (k+1)/K of them, one at 1/2            k/K of the starts, one at 1/2; too short: the last frame

uniform, for all variants: frame floor((i + u) n / T) of part i, the same u in all parts; view k at (k+1/2)/K.
"""

from __future__ import annotations

import math

import numpy as np

from i2v.pipelines.options import ClipOptions


def train_frames(count: int, fps: float, options: ClipOptions, u: np.ndarray) -> np.ndarray:
    """(1, T) frame indices of a random clip of a video of `count` frames; u: (T,) uniform numbers."""
    t, stride, variant = options.num_frames, options.stride, options.variant
    if options.sampling == "uniform":
        return _uniform(count, t, u[:1])
    if options.sampling == "segments":
        if variant == "tada":
            bounds = linspace(0, count, t + 1)
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
    if options.sampling == "uniform":
        return _uniform(count, t, (k[:, 0] + 0.5) / clips)
    if options.sampling == "segments":
        if variant == "tada":
            bounds, place = linspace(0, count, t + 1), (k + 1) / clips if clips > 1 else np.array([[0.5]])
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


def window_frames(times: np.ndarray, start: float, window: float, t: int) -> np.ndarray:
    """(1, T) frames at equal distances in the `window` seconds from `start` on; times: (n,) seconds, when each is shown."""
    return nearest(times, window_times(start, window, t))[None]


def window_times(start: float, window: float, t: int) -> np.ndarray:
    """(T,) seconds at equal distances in the `window` seconds from `start` on."""
    return start + (np.arange(t) + 0.5) * window / t


def timeline(times: np.ndarray, duration: float, fps: float) -> np.ndarray:
    """(N,) the frame that is shown at each 1/fps of a second of a video; times: (n,) seconds, when each is shown."""
    return nearest(times, np.arange(max(1, round(duration * fps))) / fps)


def nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The frames whose times are nearest to the wanted ones."""
    times = times.astype(np.float64)
    return np.searchsorted((times[1:] + times[:-1]) / 2, wanted)


def _uniform(count: int, t: int, places: np.ndarray) -> np.ndarray:
    """(K,) places, 0 to 1 -> (K, T) the frame at this place of each of t equal parts."""
    return np.floor((np.arange(t) + places[:, None]) * count / t).astype(np.int64).clip(0, count - 1)


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
    rows = [linspace(start, start + length - 1, options.num_frames) for start in starts]
    return np.clip(np.stack(rows), 0, count - 1).astype(np.int64)


def _rounded(positions: np.ndarray, count: int) -> np.ndarray:
    return np.rint(np.clip(positions, 0, count - 1)).astype(np.int64)


def linspace(first: float, last: float, numbers: int) -> np.ndarray:
    """As torch.linspace in float32, to the bit: where the authors round, half a unit decides."""
    if numbers == 1:
        return np.array([first], dtype=np.float32)
    first, last = np.float32(first), np.float32(last)
    step, i = (last - first) / np.float32(numbers - 1), np.arange(numbers, dtype=np.float32)
    return np.where(i < numbers // 2, first + step * i, last - step * (np.float32(numbers - 1) - i))
