"""Frames of a video as they come: of a file, or of a stream that nobody has as a whole.

A stream is encoded video on standard input (-), a camera (V4L2: /dev/video0), or an address such as rtsp://...; what
FFmpeg can open so depends on how PyAV was built. A damaged picture rejects a file; in a stream it is left out and counted.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import inf

import av

from i2v.shard_tools.decode import (
    TimedPicture,
    best_stream,
    check_picture,
    chosen_frames,
    kept_rate,
    thinned,
    timed,
    timestamp_of,
)
from i2v.shard_tools.encode import EncodeSettings, Upright, as_stored
from i2v.shard_tools.orientation import Orientation, orientation
from i2v.shard_tools.source_video import LARGEST_PICTURE, RejectedVideo, describe, open_video
from i2v.shard_tools.sources import Video

STANDARD_INPUT = "-"
ADDRESSES = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp")  # other URLs are files in a store
PROTOCOLS = "rtsp,rtp,udp,tcp,tls,rtmp,rtmps"  # that such a stream may use in turn; no files
SILENCE = 30.0  # seconds without a byte, after which an address is given up


@dataclass
class Frames:
    """pictures: with their times, in seconds as players count them; to be taken once. RejectedVideo at the end of a file
    that is damaged, and where a stream breaks off."""

    pictures: Iterator[TimedPicture]
    rate: float  # per second, as the source declares it
    as_stored: Upright  # makes of a picture what would be stored of it
    damaged: int = 0  # pictures of a stream so far that were left out


def is_stream(place: str) -> bool:
    return place == STANDARD_INPUT or is_live(place)


def is_live(place: str) -> bool:
    """Whether it goes on, whether it is read or not: a camera or an address."""
    return place.partition("://")[0] in ADDRESSES and "://" in place or _is_camera(place)


@contextmanager
def open_frames(place: str, settings: EncodeSettings) -> Iterator[Frames]:
    """All frames, or at most settings.fps of them per second. Raises RejectedVideo, or StoreError for a file in a store."""
    with _open_stream(place) if is_stream(place) else open_video(Video(place)) as (container, _):
        stream = best_stream(container) if not is_stream(place) else _video_of(container)
        pixel_shape, rate = stream.sample_aspect_ratio or Fraction(1), kept_rate(stream, settings.fps)
        frames = Frames(iter(()), float(rate), as_stored(pixel_shape, settings, decoded=True))
        if is_stream(place):
            coming = _timed_from_first(_sound(container, stream, frames), container, float(1 / kept_rate(stream, None)))
            frames.pictures = thinned(coming, settings.fps) if settings.fps else coming
        else:
            frames.pictures = chosen_frames(container, stream, 0.0, None, inf, settings.fps)
        with closing(frames.pictures):
            yield frames


def _is_camera(place: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(place).st_mode)
    except (OSError, ValueError):
        return False


@contextmanager
def _open_stream(place: str) -> Iterator[tuple[av.container.InputContainer, None]]:
    options = {"max_pixels": str(LARGEST_PICTURE), "protocol_whitelist": PROTOCOLS}
    try:
        if place == STANDARD_INPUT:
            # Unbuffered: a read gives what has come, and none that still waits stands in the way when the program ends.
            container = av.open(sys.stdin.buffer.raw, options=options, metadata_errors="replace")
        elif _is_camera(place):
            container = av.open(os.path.abspath(place), format="v4l2", metadata_errors="replace")
        else:
            container = av.open(place, options=options, metadata_errors="replace", timeout=SILENCE)
    except (av.FFmpegError, OSError, ValueError) as error:
        hint = "; an mp4 must be a fragmented one, or a file" if place == STANDARD_INPUT else ""
        raise RejectedVideo(f"it cannot be opened as a stream ({_why(error)}{hint})") from error
    with container:
        yield container, None


def _video_of(container):
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise RejectedVideo("there is no video in it, or no decoder for it")
    stream.codec_context.options = {"max_pixels": str(LARGEST_PICTURE)}
    return stream


def _sound(container, stream, tally: Frames) -> Iterator[av.VideoFrame]:
    """What can be shown of a stream."""
    shown = 0
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                tally.damaged += 1
                continue
            for frame in frames:
                check_picture(frame.width, frame.height)
                if frame.is_corrupt:
                    tally.damaged += 1
                else:
                    shown += 1
                    yield frame
    except av.FFmpegError as error:
        raise RejectedVideo(f"it broke off after {shown} frames ({_why(error)})") from error
    if not shown:
        raise RejectedVideo("it has no frames")


def _timed_from_first(frames: Iterator[av.VideoFrame], container, step: float) -> Iterator[TimedPicture]:
    """Seconds from the first frame: when a stream began before it was looked at means nothing."""
    first = next(frames)
    origin, turns = timestamp_of(first, container) or 0.0, orientation(first) or Orientation()
    yield from timed(chain([first], frames), container, origin, 0.0, step, turns)


def _why(error: Exception) -> str:
    return f"nothing came for {SILENCE:g} seconds" if isinstance(error, av.error.ExitError) else describe(error)
