"""One source video -> one validated, fragmented mp4.

Whatever comes in (any codec, size, rotation, pixel shape, colour tag, variable frame rate), the same comes out: short
side fixed, long side a multiple of 16, one fragment per frame, closed groups of exactly `gop` frames, no B-frames,
constant frame rate, 8-bit 4:2:0 BT.601. Every result is decoded once, end to end, before anyone sees it.
"""

from __future__ import annotations

import io
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import av
import numpy as np
from av.codec.context import Flags
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace

from i2v.pipelines.index import FRAGMENT, LARGEST_SIDE, fragment_sizes
from i2v.shard_tools.decode import CUT_IT, MOST_FRAMES, Picture, best_stream, chosen_frames, kept_rate
from i2v.shard_tools.orientation import TURNS, Orientation
from i2v.shard_tools.source_video import RejectedVideo, open_video
from i2v.shard_tools.sources import Video

LIBRARY = {"vp9": "libvpx-vp9", "h264": "libx264", "hevc": "libx265", "mjpeg": "mjpeg"}
CRF = {  # by quality; a row has about the same PSNR
    "small": {"vp9": 42, "h264": 27, "hevc": 29, "mjpeg": 8},
    "standard": {"vp9": 32, "h264": 21, "hevc": 23, "mjpeg": 5},  # 40 to 44 dB at 256 pixels
    "high": {"vp9": 22, "h264": 16, "hevc": 18, "mjpeg": 2},
}
LARGEST_CRF = {"vp9": 63, "h264": 51, "hevc": 51, "mjpeg": 31}
LARGEST_CLIP = 1 << 30  # bytes
ROUNDED_TIME = 0.002  # seconds; Matroska rounds times to milliseconds
MOVFLAGS = "frag_every_frame+empty_moov+default_base_moof+skip_trailer"

BT601 = "smpte170m"
MATRIX = {1: "bt709", 4: "fcc", 5: BT601, 6: BT601, 7: "smpte240m", 9: "bt2020nc", 10: "bt2020nc"}  # AVColorSpace


@dataclass(frozen=True)
class EncodeSettings:
    """How clips are stored. Raises ValueError, one sentence, if that is impossible.

    Once made, no field that decides bytes is None by default: `dataclasses.asdict` says how a clip was made.
    """

    codec: str = "vp9"  # vp9 | h264 | hevc | mjpeg
    gop: int | None = None  # frames from keyframe to keyframe; None: 8, or 1 for mjpeg
    short_side: int = 256  # pixels, a multiple of 16
    crf: int | None = None  # quality, smaller is better; None: what `quality` says. For mjpeg: the quantiser, 1 to 31
    quality: str = "standard"  # small | standard | high
    fps: float | None = None  # at most so many frames per second are kept; None: all
    max_seconds: float | None = None  # at most so much of a video, or of its segment, from its start; None: all

    def __post_init__(self):
        if self.codec not in LIBRARY:
            raise ValueError(f"codec {self.codec!r} is not one of {', '.join(LIBRARY)}.")
        if self.gop is None:
            object.__setattr__(self, "gop", 1 if self.codec == "mjpeg" else 8)
        if self.quality not in CRF:
            raise ValueError(f"quality {self.quality!r} is not one of {', '.join(CRF)}.")
        if self.crf is None:
            object.__setattr__(self, "crf", CRF[self.quality][self.codec])
        if self.fps is not None and not 0.01 <= self.fps <= 1000:
            raise ValueError(f"fps {self.fps} is not between 0.01 and 1000.")
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise ValueError(f"max_seconds {self.max_seconds} is not a positive number.")
        if not 1 <= self.gop <= 1000:
            raise ValueError(f"gop {self.gop} is not between 1 and 1000.")
        if self.codec == "mjpeg" and self.gop != 1:
            raise ValueError(f"mjpeg has only keyframes, so gop {self.gop} is impossible: leave it out.")
        if self.short_side % 16 or not 16 <= self.short_side <= LARGEST_SIDE:
            raise ValueError(f"short side {self.short_side} is not a multiple of 16 from 16 to {LARGEST_SIDE}.")
        lowest, highest = int(self.codec == "mjpeg"), LARGEST_CRF[self.codec]
        if not lowest <= self.crf <= highest:
            raise ValueError(f"crf {self.crf} is not between {lowest} and {highest}, as {self.codec} needs.")

    def encoder_options(self) -> dict[str, str]:
        """The encoder's options by FFmpeg's names: keyframes at exact multiples, no frame out of order, one thread."""
        gop, crf = str(self.gop), str(self.crf)
        if self.codec == "vp9":
            return {
                "g": gop,
                "keyint_min": gop,
                "auto-alt-ref": "0",
                "lag-in-frames": "0",
                "deadline": "realtime",
                "cpu-used": "6",
                "row-mt": "0",
                "b": "0",
                "crf": crf,
            }
        if self.codec == "h264":
            # Tuned so, a CPU decodes it in six tenths of the time, for a tenth more bytes and a quarter of a decibel. With its
            # macroblock tree, x264 does not always give the same bytes for the same frames.
            return {
                "g": gop,
                "keyint_min": gop,
                "bf": "0",
                "sc_threshold": "0",
                "preset": "veryfast",
                "tune": "fastdecode",
                "crf": crf,
                "x264-params": "open-gop=0:mbtree=0:rc-lookahead=0:sync-lookahead=0",
            }
        if self.codec == "hevc":
            # x265 does not always give the same bytes either, and no option was found that makes it.
            params = f"keyint={gop}:min-keyint={gop}:bframes=0:scenecut=0:open-gop=0"
            return {
                "preset": "veryfast",
                "crf": crf,
                "x265-params": params + ":pools=none:frame-threads=1:info=0:log-level=none",
            }
        return {"qmin": crf, "qmax": crf}


@dataclass(frozen=True)
class EncodedClip:
    """A clip as it is stored."""

    data: bytes  # the mp4
    header_size: int  # bytes of ftyp + moov
    header_crc: int
    fragments: np.ndarray  # (frames,) FRAGMENT
    width: int  # pixels
    height: int
    fps: float
    begin: float  # seconds of the source: when its first frame is shown
    source_bytes: int  # size of the source file

    @property
    def frames(self) -> int:
        return len(self.fragments)


def encode_video(
    video: Video | str | os.PathLike,
    settings: EncodeSettings = EncodeSettings(),
    on_frame: Callable[[float], None] | None = None,
) -> EncodedClip:
    """Read a video, or the part of it that is meant, and make the clip that is stored.

    on_frame: called with every frame's time, in seconds of the source: a film takes minutes.
    Raises RejectedVideo if it cannot be made, StoreError if the place where the video is cannot be read.
    """
    video = video if isinstance(video, Video) else Video(os.fspath(video))
    with open_video(video) as (container, source_bytes):
        stream = best_stream(container)
        rate = kept_rate(stream, settings.fps)
        frames = chosen_frames(container, stream, video.start, video.end, settings.max_seconds, settings.fps)
        stored = as_stored(stream.sample_aspect_ratio or Fraction(1), settings)
        upright = ((time, stored(picture)) for time, picture in frames)
        data, width, height, times = _encode(upright if on_frame is None else _told(upright, on_frame), rate, settings)
    return _validated(data, width, height, times, float(rate), settings.gop, source_bytes)


def _told(frames: Iterator[tuple[float, av.VideoFrame]], on_frame: Callable[[float], None]):
    for time, frame in frames:
        on_frame(time)
        yield time, frame


def stored_size(width: Fraction, height: Fraction, short_side: int) -> tuple[int, int]:
    """Size in pixels of the stored clip of an upright source with square pixels, `width` x `height`.

    The short side becomes `short_side`; of the long side, scaled by the same factor, less than 16 columns are cut.
    """
    long_side = _even(max(width, height) * short_side / min(width, height)) // 16 * 16
    if long_side > LARGEST_SIDE:
        raise RejectedVideo(f"it is {float(width):.0f}x{float(height):.0f}: too narrow to be stored")
    return (long_side, short_side) if width >= height else (short_side, long_side)


def true_rate(frames: int, last: float, declared: float) -> float:
    """Frames per second: frames over time, or what is declared where the two agree but for rounding.

    last: when the last of them is shown, in seconds from the first.
    """
    if frames == 1 or abs((frames - 1) / declared - last) < ROUNDED_TIME:
        return declared
    return float(np.clip((frames - 1) / last, 1e-4, 1e3))


class Upright:
    """Makes frames of a source what is stored of them: upright, with square pixels, scaled, cropped, converted.

    pixel_shape: width / height of the source's pixels. size_of: the size to be made, width and height, of an upright
    source's. full: whether levels are those of JPEG. final: filters that come last.
    """

    def __init__(self, pixel_shape: Fraction, size_of: Callable[[Fraction, Fraction], tuple[int, int]], full=False, final=()):
        self._pixel_shape, self._size_of, self._full, self._final = pixel_shape, size_of, full, final
        self._graph = self._size = self._made_for = None

    def __call__(self, picture: Picture) -> av.VideoFrame:
        frame, turns = picture
        # A stream may change its size or colours on the way: what is made keeps the first frame's size.
        looks = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, turns)
        if looks != self._made_for:
            width, height = frame.width * self._pixel_shape, Fraction(frame.height)
            width, height = (height, width) if turns.transposed else (width, height)
            self._size = self._size or self._size_of(width, height)
            self._graph = _conversion(frame, turns, (width, height), self._size, self._full, self._final)
            self._made_for = looks
        self._graph.push(frame)
        return self._graph.pull()


def as_stored(pixel_shape: Fraction, settings: EncodeSettings, decoded: bool = False) -> Upright:
    """What makes of a source's frames those that are encoded; decoded: those that would come out of a decoder again."""
    # These two decoders say where chroma lies, which decides how it is interpolated; filters and the other two say nothing.
    final = [("setparams", "chroma_location=left")] if decoded and settings.codec in ("h264", "hevc") else []
    return Upright(pixel_shape, partial(stored_size, short_side=settings.short_side), settings.codec == "mjpeg", final)


def _conversion(
    frame, turns: Orientation, upright: tuple[Fraction, Fraction], size: tuple[int, int], full: bool, final: Sequence
) -> Graph:
    """The filters that turn, scale (bicubic), crop and recolour frames that look like this one.

    DALI 2.4 turns YUV into RGB with the BT.601 matrix whatever the tag says, so that is how clips are stored.
    It does respect the range: tv, except for mjpeg, where the JPEG standard knows only the full one.
    """
    factor = max(size[0] / upright[0], size[1] / upright[1])
    scaled = [max(_even(side * factor), least) for side, least in zip(upright, size)]
    scale = f"{scaled[0]}:{scaled[1]}:flags=bicubic+accurate_rnd+bitexact:in_color_matrix=bt601:out_color_matrix=bt601"
    if frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj"):
        scale += ":in_range=pc"
    elif frame.color_range == ColorRange.MPEG:
        scale += ":in_range=tv"
    levels = "pc" if full else "tv"
    scale += f":out_range={levels}"
    steps = [*TURNS[turns], ("scale", scale), ("format", "yuvj420p" if full else "yuv420p")]
    steps.append(("crop", f"{size[0]}:{size[1]}"))
    matrix = MATRIX.get(frame.colorspace) or (BT601 if min(frame.width, frame.height) < 720 else "bt709")
    if matrix != BT601 and not frame.format.is_rgb:
        # Four times as fast as the scaler's conversion, and nearer: that one darkens by one level.
        same = f"iprimaries=bt709:primaries=bt709:itrc=bt709:trc=bt709:irange={levels}:range={levels}"
        steps.append(("colorspace", f"ispace={matrix}:space={BT601}:{same}"))

    graph = Graph()
    graph.threads = 1
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    for name, arguments in [*steps, *final, ("buffersink", None)]:
        step = graph.add(name, arguments)
        last.link_to(step)
        last = step
    graph.configure()
    return graph


def _encode(
    frames: Iterator[tuple[float, av.VideoFrame]], rate: Fraction, settings: EncodeSettings
) -> tuple[bytes, int, int, np.ndarray]:
    """The mp4, its width and height, and when each frame is shown, in seconds of the source."""
    output, encoder, times = io.BytesIO(), None, []
    with av.open(output, "w", format="mp4", options={"movflags": MOVFLAGS, "fflags": "+bitexact"}) as container:
        for time, frame in frames:
            if len(times) >= MOST_FRAMES or output.tell() > LARGEST_CLIP:
                raise RejectedVideo(f"after {len(times)} frames it is too long for one clip: {CUT_IT}")
            encoder = encoder or _open_encoder(container, frame, rate, settings)
            frame.pts, frame.time_base, frame.pict_type = len(times), 1 / rate, 0
            container.mux(encoder.encode(frame))
            times.append(time)
        container.mux(encoder.encode(None))
        width, height = encoder.width, encoder.height
    return output.getvalue(), width, height, np.array(times)


def _open_encoder(container, frame: av.VideoFrame, fps: Fraction, settings: EncodeSettings):
    stream = container.add_stream(LIBRARY[settings.codec], rate=fps, options=settings.encoder_options())
    stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
    context = stream.codec_context
    context.time_base = 1 / fps
    context.thread_count = 1
    context.flags |= Flags.bitexact
    context.colorspace = Colorspace.ITU601
    context.color_range = ColorRange.JPEG if settings.codec == "mjpeg" else ColorRange.MPEG
    if settings.codec == "hevc":
        context.codec_tag = "hvc1"
    return stream


def _validated(data: bytes, width, height, times: np.ndarray, rate: float, gop: int, source_bytes: int) -> EncodedClip:
    """Decode the result once, end to end: what is stored is known to be playable, and how many frames it has.

    times: when each frame is shown, in seconds of the source; rate: frames per second, as declared.
    """
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        packets = decoded = 0
        for packet in container.demux(stream):
            if packet.size and packet.is_keyframe != (packets % gop == 0):
                raise RejectedVideo(f"the encoder misplaced a keyframe (frame {packets}, every {gop} expected)")
            packets += packet.size > 0
            for frame in packet.decode():
                if (frame.width, frame.height, frame.is_corrupt) != (width, height, False):
                    raise RejectedVideo(f"the encoder damaged frame {decoded}")
                decoded += 1
    header_size, sizes = fragment_sizes(data)
    if not decoded == packets == len(sizes) == len(times):
        raise RejectedVideo(f"the encoder made {decoded} frames out of {len(times)}")
    ends = header_size + np.cumsum(sizes)
    fragments = np.empty(len(times), FRAGMENT)
    fragments["size"] = sizes
    begin, times = times[0], times - times[0]
    fragments["time"] = times
    fragments["crc"] = [zlib.crc32(data[end - size : end]) for size, end in zip(sizes, ends)]
    return EncodedClip(
        data,
        header_size,
        zlib.crc32(data[:header_size]),
        fragments,
        width,
        height,
        true_rate(len(times), times[-1], rate),
        float(begin),
        source_bytes,
    )


def _even(side: Fraction) -> int:
    return round(side / 2) * 2
