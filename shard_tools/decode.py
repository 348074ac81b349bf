"""Which frames of a source video become the clip, and when each of them is shown.

Times are seconds of the source's clock as players and FFmpeg show it: it begins where the first of the source's streams
does, which may be its sound. They are what the source's own timestamps say (AVI has none: the order of its packets).
A frame without a timestamp, or with one that is not later than the frame's before it, or more than an hour later, is
taken to be shown 1/rate after that one; a first frame more than an hour from the clock's beginning, to be shown at 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import av
from av.codec.context import Flags, ThreadType
from av.stream import Discard, Disposition

from i2v.shard_tools.damage import Tally
from i2v.shard_tools.orientation import Orientation, orientation
from i2v.shard_tools.source_video import LARGEST_PICTURE, RejectedVideo, describe

LARGEST_SIDE = 16384  # pixels, of a source
MOST_FRAMES = 1 << 20  # of a clip; nearly ten hours at 30 frames per second
SLOWEST = 10  # frames per second: what is expected of a long video that does not say how many it has
LONGEST_PAUSE = 3600  # seconds from one frame to the next; more is a damaged timestamp
SAME_TIME = 1e-6  # seconds
SEEKABLE = {"mp4", "matroska"}  # formats that know when every keyframe is shown
SEEK_MARGIN = 1.0  # seconds
HONEST = {"mp4", "matroska", "avi", "flv", "asf", "mxf"}  # formats that declare their duration; of others FFmpeg guesses it
ENDS = {"matroska", "flv", "asf"}  # of these, formats that may mean the time at the end
MAY_LACK = (1.0, 0.05)  # seconds, or part of the declared duration, that may be missing at the end
CUT_IT = "cut it with a list of segments or --max-seconds"
BESIDE_THE_VIDEO = (  # covers and thumbnails, and what only adds to another stream
    Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails | Disposition.dependent
)


class Picture(NamedTuple):
    """A frame, and how it is to be shown."""

    frame: av.VideoFrame
    turns: Orientation


TimedPicture = tuple[float, Picture]


def best_stream(container):
    """The video stream that a person would call the video. Raises RejectedVideo if there is none that can be decoded.

    Moving pictures come before a still one (a cover, a thumbnail), whatever the file says is its default. Of several it
    is the one that FFmpeg would choose, or else the default, or the largest.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & BESIDE_THE_VIDEO]
    if not streams:
        raise RejectedVideo("it has no video stream")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise RejectedVideo("there is no decoder for its codec")
    if len(streams) > 1:
        streams = [stream for stream in streams if _moves(container, stream)] or streams
    stream = container.streams.best("video")
    if stream not in streams:
        stream = max(streams, key=lambda one: (one.disposition & Disposition.default, one.width * one.height))
    for other in container.streams:
        # Where the stream does not say how long it is, the others help to tell whether the file is complete.
        other.discard = Discard.none if other is stream or stream.duration is None else Discard.all
    stream.thread_type = ThreadType.NONE
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(LARGEST_PICTURE)}
    return stream


def _moves(container, stream) -> bool:
    """Whether a stream of an unread file holds more than one picture, as far as that can be told without decoding it."""
    if stream.frames:
        return stream.frames > 1
    if not SEEKABLE & _formats(container):
        return stream.average_rate is not None
    try:
        pictures = (packet for packet in container.demux(stream) if packet.size)
        moves = next(pictures, None) is not None and next(pictures, None) is not None
        container.seek(0)
    except av.FFmpegError as error:
        raise RejectedVideo(f"it cannot be searched ({describe(error)})") from error
    return moves


def frame_rate(stream) -> Fraction:
    """Frames per second, as the source declares them or FFmpeg estimates them."""
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return min(max(rate.limit_denominator(1001), Fraction(1, 100)), Fraction(1000))


def kept_rate(stream, fps: float | None) -> Fraction:
    """Of a source of which at most `fps` frames per second are kept; None: all."""
    rate = frame_rate(stream)
    return min(rate, Fraction(fps).limit_denominator(1001)) if fps else rate


def chosen_frames(
    container, stream, start: float, end: float | None, max_seconds: float | None, fps: float | None
) -> Iterator[TimedPicture]:
    """The frames of the part of the video from `start` to `end`, at most `fps` per second of them, with their times.

    start, end: see Video. max_seconds: at most so much of the part, or of the video where that begins later.
    Decoding begins at a keyframe before `start` where that is exact, and ends at `end`.
    Raises RejectedVideo for damage, for a segment without frames, and for what cannot be meant to be one clip.
    """
    check_picture(stream.codec_context.width, stream.codec_context.height)
    duration = _declared_seconds(container, stream)
    expected = duration * fps if fps else max(stream.frames, duration * SLOWEST)
    if end is None and max_seconds is None and expected > MOST_FRAMES:
        raise RejectedVideo(f"it claims {duration:.0f} seconds and {stream.frames} frames: {CUT_IT}")
    end = math.inf if end is None else end
    if end <= start:
        raise RejectedVideo(f"it has no frame between seconds {start:g} and {end:g}")
    frames = _segment(container, stream, start, end, math.inf if max_seconds is None else max_seconds)
    return thinned(frames, fps) if fps else frames


def _segment(container, stream, start: float, end: float, max_seconds: float) -> Iterator[TimedPicture]:
    """The frames whose time is start <= time < end; if there are none, the one that is on the screen all that time."""
    found, shown, until = False, None, 0.0  # shown: the last frame before the segment; until: when the next one follows
    for time, picture in frames_from(container, stream, start):
        if not found and shown is None:
            end = min(end, max(start, time) + max_seconds)
        if time >= end - SAME_TIME:
            until = time
            break
        if time >= start - SAME_TIME:
            found = True
            yield time, picture
        else:
            shown, until = picture, time + _seconds_shown(picture.frame, stream)
    if found:
        return
    if shown is None:
        raise RejectedVideo(f"the segment ends at second {end:g}, but the first frame is shown at second {until:.2f}")
    if start >= until - SAME_TIME:
        # Both rounded alike, so that the sentence does not contradict itself.
        raise RejectedVideo(f"the segment begins at second {round(start, 2):.12g}, but the video is {until:.2f} seconds long")
    yield start, shown


def _seconds_shown(frame: av.VideoFrame, stream) -> float:
    """How long the frame is on the screen if none follows."""
    return float((frame.duration or 0) * (frame.time_base or 0)) or float(1 / frame_rate(stream))


def thinned(frames: Iterator[TimedPicture], fps: float) -> Iterator[TimedPicture]:
    """Of the frames those that are nearest to the times k / fps after the first, each once."""
    wanted, before = 0, None  # wanted: k of the next time that needs a frame
    for time, frame in frames:
        if before is None:
            first = time
        else:
            nearest = math.floor(((before[0] + time) / 2 - first) * fps + SAME_TIME)
            if nearest >= wanted:
                yield before
                wanted = nearest + 1
            half = (time - before[0]) / 2
        before = time, frame
    if wanted == 0 or math.floor((before[0] + half - first) * fps - SAME_TIME) >= wanted:
        yield before


def frames_from(container, stream, start: float) -> Iterator[TimedPicture]:
    """All frames from some time at or before `start` on, with their times. Raises RejectedVideo for a still picture."""
    frames = _decoded(container, stream)
    first, second = next(frames), next(frames, None)
    if second is None and container.streams.audio:
        raise RejectedVideo("it is sound with one picture, not a video")
    begin = _first_time(container, stream, first)
    origin, step = (timestamp_of(first, container) or 0.0) - begin, float(1 / frame_rate(stream))
    turns = orientation(first) or Orientation()
    pending = [first] if second is None else [first, second]
    if start - begin > 2 * SEEK_MARGIN and first.time is not None and SEEKABLE & _formats(container):
        first, frames = _seek(container, stream, origin + start - SEEK_MARGIN)
        if first is None or not first.key_frame or first.time is None or first.time > origin + start:
            first, frames = _seek(container, stream, origin + begin - LONGEST_PAUSE)
            if first is None:
                raise RejectedVideo(f"it cannot be searched for second {start:g}")
        pending = [first]
    yield from timed(chain(pending, frames), container, origin, begin, step, turns)


def timed(
    frames: Iterable[av.VideoFrame], container, origin: float, begin: float, step: float, turns: Orientation
) -> Iterator[TimedPicture]:
    """Frames with the times at which they are shown.

    origin: what the source's clock says at 0; begin: when a first frame without a timestamp is shown; step: seconds from a
    frame to the next where the timestamps say nothing; turns: of frames before the first that says it.
    """
    before = None
    for frame in frames:
        timestamp = timestamp_of(frame, container)
        time = before if timestamp is None else timestamp - origin
        if before is None:
            time = begin if time is None else time
        elif not before < time <= before + LONGEST_PAUSE:
            time = before + step
        turns = orientation(frame) or turns
        yield time, Picture(frame, turns)
        before = time


def _first_time(container, stream, first: av.VideoFrame) -> float:
    """When the first frame is shown, in seconds from the container's start."""
    shown = first.time
    if "avi" in _formats(container) and stream.start_time is not None:
        shown = float(stream.start_time * stream.time_base)  # frames there have the times of the packets they come after
    if shown is None or container.start_time is None:
        return 0.0
    begin = shown - container.start_time / av.time_base
    return begin if SAME_TIME < begin <= LONGEST_PAUSE else 0.0


def timestamp_of(frame: av.VideoFrame, container) -> float | None:
    """When the frame is shown, in seconds of the source's clock."""
    if "avi" in _formats(container):
        return None if frame.dts is None else float(frame.dts * frame.time_base)
    return frame.time


def _seek(container, stream, time: float) -> tuple[av.VideoFrame | None, Iterator[av.VideoFrame]]:
    """The frame that decoding begins with when it is to begin before `time`, None if that fails, and those after it."""
    try:
        container.seek(math.floor(time / stream.time_base), stream=stream)
        frames = _decoded(container, stream, seeked=True)
        return next(frames, None), frames
    except (av.FFmpegError, RejectedVideo):
        return None, iter(())


def _decoded(container, stream, seeked: bool = False) -> Iterator[av.VideoFrame]:
    """The frames from the first key frame on, as long as none is missing or damaged.

    If one is, the rest is only counted, and a RejectedVideo at the end says how many.
    """
    _prepare(stream.codec_context)
    tally, end, stop = Tally(stream, _formats(container)), -math.inf, 0
    clocks = {other.index: float(other.time_base or 0) for other in container.streams}
    try:
        for packet in container.demux():
            shown = packet.dts if packet.pts is None else packet.pts
            if packet.size and shown is not None:
                end = max(end, (shown + (packet.duration or 0)) * clocks[packet.stream_index])
            if packet.stream.index != stream.index:
                continue
            stop = packet.pos + packet.size if packet.size and packet.pos is not None else stop
            for frame in tally.decoded(packet):
                check_picture(frame.width, frame.height)
                yield frame
    except av.FFmpegError as error:
        raise RejectedVideo(f"decoding stopped after {tally.frames} frames ({describe(error)})") from error
    if "yuv4mpegpipe" in _formats(container) and stop < container.size:
        raise RejectedVideo(f"the file is cut short: frame {tally.frames} is not whole")
    tally.check(0 if seeked else _declared_packets(container, stream))
    length, start = _declared_seconds(container, stream), _declared_start(container, stream)
    if length and length - (end - start) > max(MAY_LACK[0], MAY_LACK[1] * length):
        raise RejectedVideo(f"the file is cut short: of {length:.1f} seconds it holds {end - start:.1f}")


def _prepare(decoder) -> None:
    if not decoder.is_open:
        decoder.flags |= Flags.copy_opaque  # a frame knows its packet
        if decoder.codec.intra_only:  # others also report what they rightly leave out
            decoder.options = {**decoder.options, "err_detect": "explode"}


def _declared_seconds(container, stream) -> float:
    """How long the source says it is, from its own beginning to its end; 0: it does not."""
    formats = _formats(container)
    if not HONEST & formats:
        return 0.0
    if stream.duration is not None:
        length = float(stream.duration * stream.time_base)
    else:
        length = (container.duration or 0) / av.time_base
    start = _declared_start(container, stream)
    return length - start if ENDS & formats and length > start > 0 else length


def _declared_start(container, stream) -> float:
    """When what `_declared_seconds` measures begins, in seconds of the source's clock."""
    if stream.duration is not None:
        return float((stream.start_time or 0) * stream.time_base)
    return (container.start_time or 0) / av.time_base


def _declared_packets(container, stream) -> int:
    """How many packets the stream has by the container's own index; 0: there is none that lists all."""
    formats = _formats(container)
    if {"avi", "mp4"} & formats:
        return sum(entry.size > 0 for entry in stream.index_entries)
    return stream.duration or 0 if "mxf" in formats and stream.time_base * frame_rate(stream) == 1 else 0


def _formats(container) -> set[str]:
    return set(container.format.name.split(","))


def check_picture(width: int, height: int) -> None:
    if max(width, height) > LARGEST_SIDE or width * height > LARGEST_PICTURE:
        raise RejectedVideo(f"its pictures of {width}x{height} pixels are too large")
