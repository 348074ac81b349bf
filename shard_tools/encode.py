"""One source video -> one validated, fragmented mp4.

Whatever comes in (any codec, size, rotation, pixel shape, colour tag, variable frame rate), the same comes out: short
side fixed, long side a multiple of 16, one fragment per frame, closed groups of exactly `gop` frames, no B-frames,
constant frame rate, 8-bit 4:2:0 BT.601. Every result is decoded once, end to end, before anyone sees it.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags, ThreadType
from av.filter import Graph
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace

from pipelines.shards import FRAGMENT, fragment_sizes

LIBRARY = {"vp9": "libvpx-vp9", "h264": "libx264", "hevc": "libx265", "mjpeg": "mjpeg"}
DEFAULT_CRF = {"vp9": 32, "h264": 21, "hevc": 23, "mjpeg": 5}  # of about the same PSNR: 40 to 44 dB at 256 pixels
LARGEST_CRF = {"vp9": 63, "h264": 51, "hevc": 51, "mjpeg": 31}
LARGEST_SIDE = 4096  # of a stored clip: what every hardware decoder takes in every codec
MOVFLAGS = "frag_every_frame+empty_moov+default_base_moof+skip_trailer"

MATRIX = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}  # AVColorSpace
QUARTER_TURNS = {  # counter-clockwise
    0: [],
    1: [("transpose", "cclock")],
    2: [("hflip", None), ("vflip", None)],
    3: [("transpose", "clock")],
}


class RejectedVideo(Exception):
    """A video that cannot become a clip. `reason` is one short human sentence without a full stop."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class EncodeSettings:
    """How clips are stored. Raises ValueError, one sentence, if that is impossible."""

    codec: str = "vp9"  # vp9 | h264 | hevc | mjpeg
    gop: int | None = None  # frames from keyframe to keyframe; None: 8, or 1 for mjpeg
    short_side: int = 256  # pixels, a multiple of 16
    crf: int | None = None  # quality, smaller is better; None: the codec's default. For mjpeg: the quantiser, 1 to 31

    def __post_init__(self):
        if self.codec not in LIBRARY:
            raise ValueError(f"codec {self.codec!r} is not one of {', '.join(LIBRARY)}.")
        if self.gop is None:
            object.__setattr__(self, "gop", 1 if self.codec == "mjpeg" else 8)
        if self.crf is None:
            object.__setattr__(self, "crf", DEFAULT_CRF[self.codec])
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
                "g": gop, "keyint_min": gop, "auto-alt-ref": "0", "lag-in-frames": "0", "deadline": "realtime",
                "cpu-used": "6", "row-mt": "0", "b": "0", "crf": crf,
            }  # fmt: skip
        if self.codec == "h264":
            # With its macroblock tree, x264 does not always give the same bytes for the same frames.
            return {"g": gop, "keyint_min": gop, "bf": "0", "sc_threshold": "0", "preset": "veryfast", "crf": crf,
                    "x264-params": "open-gop=0:mbtree=0:rc-lookahead=0:sync-lookahead=0"}  # fmt: skip
        if self.codec == "hevc":
            # x265 does not always give the same bytes either, and no option was found that makes it.
            params = f"keyint={gop}:min-keyint={gop}:bframes=0:scenecut=0:open-gop=0"
            return {"preset": "veryfast", "crf": crf,
                    "x265-params": params + ":pools=none:frame-threads=1:info=0:log-level=none"}  # fmt: skip
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
    source_bytes: int  # size of the source file

    @property
    def frames(self) -> int:
        return len(self.fragments)


def encode_video(path: str | os.PathLike, settings: EncodeSettings = EncodeSettings()) -> EncodedClip:
    """Read a video file and make the clip that is stored. Raises RejectedVideo if it cannot be."""
    path = os.path.abspath(path)  # never taken for a URL by FFmpeg
    source_bytes = _check_file(path)
    try:
        # Only local files: a playlist cannot make the decoder fetch anything from elsewhere.
        container = av.open(path, options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise RejectedVideo(f"it cannot be opened as a video ({describe(error)})") from error
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise RejectedVideo("it has no video stream")
        fps = _frame_rate(stream)
        data, width, height, frames = _encode(_upright_frames(container, stream, settings), fps, settings)
    return _validated(data, width, height, frames, float(fps), settings.gop, source_bytes)


def stored_size(width: Fraction, height: Fraction, short_side: int) -> tuple[int, int]:
    """Size in pixels of the stored clip of an upright source with square pixels, `width` x `height`.

    The short side becomes `short_side`; of the long side, scaled by the same factor, less than 16 columns are cut.
    """
    long_side = _even(max(width, height) * short_side / min(width, height)) // 16 * 16
    if long_side > LARGEST_SIDE:
        raise RejectedVideo(f"it is {float(width):.0f}x{float(height):.0f}: too narrow to be stored")
    return (long_side, short_side) if width >= height else (short_side, long_side)


def _check_file(path: str) -> int:
    if os.path.isdir(path):
        raise RejectedVideo("it is a folder")
    try:
        with open(path, "rb"):
            size = os.path.getsize(path)
    except FileNotFoundError:
        raise RejectedVideo("the file does not exist") from None
    except OSError as error:
        raise RejectedVideo(f"the file cannot be read ({error.strerror})") from error
    if size == 0:
        raise RejectedVideo("the file is empty")
    return size


def _frame_rate(stream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return min(max(rate.limit_denominator(1001), Fraction(1, 100)), Fraction(1000))


def _upright_frames(container, stream, settings: EncodeSettings) -> Iterator[av.VideoFrame]:
    """Every frame of the stream, as it will be stored: upright, scaled, cropped, converted."""
    stream.thread_type = ThreadType.NONE
    stream.codec_context.thread_count = 1
    pixel_shape = stream.sample_aspect_ratio or Fraction(1)
    graph = size = made_for = None
    for frame in _decoded(container, stream):
        # A stream may change its size or colours on the way: the stored clip keeps the first frame's size.
        looks = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, frame.rotation)
        if looks != made_for:
            turns = round(frame.rotation / 90) % 4
            width, height = frame.width * pixel_shape, Fraction(frame.height)
            width, height = (height, width) if turns % 2 else (width, height)
            size = size or stored_size(width, height, settings.short_side)
            graph, made_for = _conversion(frame, turns, (width, height), size, settings.codec == "mjpeg"), looks
        graph.push(frame)
        yield graph.pull()


def _decoded(container, stream) -> Iterator[av.VideoFrame]:
    count = 0
    try:
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise RejectedVideo(f"the file is cut short or damaged after {count} frames")
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise RejectedVideo(f"frame {count} is damaged")
                yield frame
                count += 1
    except av.FFmpegError as error:
        raise RejectedVideo(f"decoding stopped after {count} frames ({describe(error)})") from error
    if count == 0:
        raise RejectedVideo("it has no frames")


def _conversion(frame, turns: int, upright: tuple[Fraction, Fraction], size: tuple[int, int], full: bool) -> Graph:
    """The filters that turn, scale (bicubic), crop and recolour frames that look like this one.

    DALI 2.4 turns YUV into RGB with the BT.601 matrix whatever the tag says, so that is how clips are stored.
    It does respect the range: tv, except for mjpeg, where the JPEG standard knows only the full one.
    """
    factor = max(size[0] / upright[0], size[1] / upright[1])
    scaled = [max(_even(side * factor), least) for side, least in zip(upright, size)]
    matrix = MATRIX.get(frame.colorspace) or ("bt601" if min(frame.width, frame.height) < 720 else "bt709")
    scale = f"{scaled[0]}:{scaled[1]}:flags=bicubic+accurate_rnd+bitexact:in_color_matrix={matrix}"
    if frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj"):
        scale += ":in_range=pc"
    elif frame.color_range == ColorRange.MPEG:
        scale += ":in_range=tv"
    scale += f":out_color_matrix=bt601:out_range={'pc' if full else 'tv'}"

    graph = Graph()
    graph.threads = 1
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    steps = [*QUARTER_TURNS[turns], ("scale", scale), ("format", "yuvj420p" if full else "yuv420p")]
    for name, arguments in [*steps, ("crop", f"{size[0]}:{size[1]}"), ("buffersink", None)]:
        step = graph.add(name, arguments)
        last.link_to(step)
        last = step
    graph.configure()
    return graph


def _encode(frames: Iterator[av.VideoFrame], fps: Fraction, settings: EncodeSettings) -> tuple[bytes, int, int, int]:
    output, encoder, count = io.BytesIO(), None, 0
    with av.open(output, "w", format="mp4", options={"movflags": MOVFLAGS, "fflags": "+bitexact"}) as container:
        for frame in frames:
            encoder = encoder or _open_encoder(container, frame, fps, settings)
            frame.pts, frame.time_base, frame.pict_type = count, 1 / fps, 0
            container.mux(encoder.encode(frame))
            count += 1
        container.mux(encoder.encode(None))
        width, height = encoder.width, encoder.height
    return output.getvalue(), width, height, count


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


def _validated(data: bytes, width, height, frames: int, fps: float, gop: int, source_bytes: int) -> EncodedClip:
    """Decode the result once, end to end: what is stored is known to be playable, and how many frames it has."""
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
    if not decoded == packets == len(sizes) == frames:
        raise RejectedVideo(f"the encoder made {decoded} frames out of {frames}")
    ends = header_size + np.cumsum(sizes)
    fragments = np.empty(frames, FRAGMENT)
    fragments["size"] = sizes
    fragments["time"] = np.arange(frames) / fps
    fragments["crc"] = [zlib.crc32(data[end - size : end]) for size, end in zip(sizes, ends)]
    return EncodedClip(
        data, header_size, zlib.crc32(data[:header_size]), fragments, width, height, fps, source_bytes
    )


def _even(side: Fraction) -> int:
    return round(side / 2) * 2


def describe(error: Exception) -> str:
    """What a library's error says, without its type."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
