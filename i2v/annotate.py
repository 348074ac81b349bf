"""A copy of a video with the answers in its pictures: class names, and bars as long as their probabilities.

Upright and with square pixels, H.264 in mp4, frames at the times at which the video has them, its sound untouched. Copying
goes as far as there are answers, so neither is held: what is in memory does not depend on the video's length.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from math import ceil, inf
from pathlib import Path

import av
import matplotlib
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont

from i2v.atomic import replacing
from i2v.shard_tools.decode import best_stream, chosen_frames, frame_rate
from i2v.shard_tools.encode import Upright
from i2v.shard_tools.source_video import open_video
from i2v.shard_tools.sources import Video
from i2v.watch import Answer

Lines = tuple[tuple[str, float], ...]  # class names and probabilities, the likeliest first
FONT = "fonts/ttf/DejaVuSans.ttf"  # among matplotlib's
LEAST_FONT, ROWS = 8, 24  # pixels; rows of text that a picture has room for
GROUND, BAR, TEXT = (16, 24, 40), (0, 110, 110), (255, 255, 255)
TICKS = 90_000  # per second, at least


def annotated(video: str, out: Path | None, answers: Iterable[Answer], lines: Callable[[Answer], Lines]) -> Iterator[Answer]:
    """The answers, in order, while the copy is written; with out None these alone.

    A picture has the answer whose middle is nearest. Raises RejectedVideo where the video is damaged: then there is no copy.
    """
    if out is None:
        yield from answers
        return
    coming = iter(answers)
    with replacing(out) as temporary, open_video(Video(video)) as (source, _), open_video(Video(video)) as (beside, _):
        stream = best_stream(source)
        upright = Upright(stream.sample_aspect_ratio or Fraction(1), even_size)
        with av.open(str(temporary), "w", format="mp4") as copy:
            encoder = shown = following = None
            for second, picture in chosen_frames(source, stream, 0.0, None, inf, None):
                while shown is None or following is not None and nearer(second, shown, following):
                    shown = following or next(coming)
                    following = next(coming, None)
                    yield shown
                frame = upright(picture)
                if encoder is None:
                    encoder, sound = h264(copy, frame, frame_rate(stream)), Sound(beside, copy)
                burn_in(frame, lines(shown))
                frame.time_base, frame.pict_type = encoder.codec_context.time_base, 0
                frame.pts = round(second / frame.time_base)
                sound.copy_up_to(second)
                copy.mux(encoder.encode(frame))
            copy.mux(encoder.encode(None))
            sound.copy_up_to(inf)
        yield from () if following is None else (following,)
        yield from coming


def nearer(second: float, shown: Answer, following: Answer) -> bool:
    return second >= (shown.start + shown.end + following.start + following.end) / 4


def even_size(width: Fraction, height: Fraction) -> tuple[int, int]:
    """As an encoder of 4:2:0 wants it, of an upright picture of these sides."""
    return max(2, round(width) // 2 * 2), max(2, round(height) // 2 * 2)


def h264(copy, frame: av.VideoFrame, rate: Fraction):
    stream = copy.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
    context = stream.codec_context
    context.time_base = Fraction(1, rate.numerator * ceil(TICKS / rate.numerator))
    context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
    return stream


class Sound:
    """Copies the sound of a source, packet by packet, beside its pictures."""

    def __init__(self, source, copy):
        self._copy, stream = copy, source.streams.best("audio")
        self._packets, self._packet = iter(()), None
        if stream is not None and stream.codec_context.name not in copy.supported_codecs:
            print(f"its sound is not copied: an mp4 does not hold {stream.codec_context.name}", file=sys.stderr)
        elif stream is not None:
            self._begin = (source.start_time or 0) / av.time_base
            self._stream = copy.add_stream_from_template(stream)
            self._packets = (packet for packet in source.demux(stream) if packet.size and packet.dts is not None)
            self._packet = next(self._packets, None)

    def copy_up_to(self, second: float) -> None:
        while self._packet is not None and float(self._packet.dts * self._packet.time_base) - self._begin <= second:
            packet = self._packet
            shift = round(self._begin / packet.time_base)
            packet.pts, packet.dts = (packet.dts if packet.pts is None else packet.pts) - shift, packet.dts - shift
            packet.stream = self._stream
            self._copy.mux(packet)
            self._packet = next(self._packets, None)


def burn_in(frame: av.VideoFrame, lines: Lines) -> None:
    """Draw on a picture, limited-range BT.601 4:2:0, in place."""
    frame.make_writable()
    panel, cover = drawn(tuple(lines), frame.width, frame.height)
    for number, plane in enumerate(frame.planes):
        step = 2 if number else 1
        pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        over, much = panel[::step, ::step, number], cover[::step, ::step]
        under = pixels[: over.shape[0], : over.shape[1]]
        under[:] = (under * (1 - much) + over * much + 0.5).astype(np.uint8)


@lru_cache(maxsize=1)
def drawn(lines: Lines, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """The panel in a picture's upper left corner, (h, w, 3) YUV, and how much of the picture it covers, (h, w) of 1."""
    size = max(LEAST_FONT, height // ROWS)
    row, wide = size + size // 2, min(width, 20 * size) // 2 * 2
    lines = lines[: max(1, height // 2 // row)]
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/{FONT}", size)
    sheet = Image.new("RGB", (wide, min(height, row * len(lines)) // 2 * 2), GROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (name, probability) in enumerate(lines):
        top = number * row
        sheet.paste(BAR, (0, top + 1, round(wide * probability), top + row - 1))
        draw.text((size // 3, top + size // 6), f"{100 * probability:3.0f} %  {name}", fill=TEXT, font=font)
    panel = np.asarray(sheet.convert("YCbCr"), np.float32) * np.float32([219, 224, 224]) / 255 + np.float32([16, 16, 16])
    cover = np.where((np.asarray(sheet) == GROUND).all(-1), 0.6, 0.9).astype(np.float32)
    return panel, cover
