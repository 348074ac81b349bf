"""What makes a video unusable: a picture in its packets that does not come out of the decoder, or comes out damaged.

The same for every codec, from the first key frame on: pictures before it lack their references, and are left out without
being damage. What FFmpeg does not report, such as a lost packet that the decoder does not miss, is not seen here either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import av
from av.video.frame import PictureType

from i2v.shard_tools.source_video import RejectedVideo, describe

HOLD_BACK = {"h264", "hevc", "mpeg1video", "mpeg2video"}  # decoders that show no picture without its references
TINY = 20  # bytes: such a packet may hold no picture (MPEG-4's mark of a frame left out, parameters, delimiters)
OGG_HEADERS = (b"\x80theora", b"\x81theora", b"\x82theora", b"OVP80")  # come again where streams are joined
PLAIN = {"rawvideo", "r210", "r10k", "avrp"}  # codecs
MARKS_KEYS = {"mp4", "matroska", "avi", "flv", "asf", "mpegts", "mpeg"}  # formats that say which packets are key frames
TIMED = {"mp4", "matroska", "mpegts", "flv"}  # formats whose timestamps say in which order frames are shown
LONGEST_DELAY = 34  # packets that a decoder may take before it shows the frame of the first: 16 frames, 32 fields
NEW_CLOCK = 1.0  # seconds: where timestamps leap further, or back, another recording was joined


class Tally:
    """Decodes the packets of one stream in order, and counts the pictures that come out and those that do not."""

    def __init__(self, stream, formats: set[str]):
        self.frames = 0  # sound ones
        self._stream, self._formats = stream, formats
        self._timed = bool(TIMED & formats)
        self._reordered = False  # its timestamps do say so; some files have none but the packets' order
        self._holds_back = stream.codec_context.name in HOLD_BACK
        self._packets = 0  # numbered from 1
        self._begun = False  # frames have their references
        self._keyed = False  # there was a packet that is said to be a key frame
        self._awaited: dict[int, int | None] = {}  # number of a packet -> when its picture is to be shown
        self._interlaced: set[int] = set()  # packets; one beside it may be the other field of the same frame
        self._next: int | None = None  # where the next timestamp of an Ogg stream is, which numbers its frames
        self._previous: av.Packet | None = None
        self._break: int | None = None  # number of the packet before the one that a transport stream's counter broke in
        self._cut = False  # a packet ends before its end
        self._missing = 0
        self._damaged: set[int] = set()  # packets
        self._error: av.FFmpegError | None = None  # the first one

    def decoded(self, packet: av.Packet) -> Iterator[av.VideoFrame]:
        """The packet's frames, after the last packet the rest; none any more once one is missing or damaged."""
        if packet.size:
            self._register(packet)
        elif packet.dts is not None:  # a frame shown again; the decoder would take it for the end
            if "ogg" in self._formats:
                self._look_for_a_gap(packet)
            return
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if (self._keyed or self.frames or self._holds_back) and not _is_header(packet):
                self._error = self._error or error
                self._damaged.add(self._packets)
                self._awaited.pop(self._packets, None)
            return
        for frame in frames:
            if self._is_sound(frame, packet):
                self.frames += 1
                if not self._missing and not self._damaged:
                    yield frame

    def check(self, declared: int = 0) -> None:
        """Raises RejectedVideo if not all that was to come has come; `declared`: packets by the container's index."""
        self._missing += max(0, declared - self._packets)
        if self.frames or self._missing:
            self._give_up(list(self._awaited))
        if self._break:
            self._damage(self._packets)
        if self._cut and not declared:
            raise RejectedVideo(f"the file is cut short after {self.frames} frames")
        wrong = self._missing + len(self._damaged)
        if wrong:
            what = " or ".join(["missing"] * (self._missing > 0) + ["damaged"] * bool(self._damaged))
            why = f" ({describe(self._error)})" if self._error else ""
            verb = "is" if wrong == 1 else "are"
            total = max(self.frames + wrong, declared)
            raise RejectedVideo(f"{wrong} of {total} frames {verb} {what}{why}") from self._error
        if not self.frames:
            raise RejectedVideo("it has no key frame to begin with" if self._packets else "it has no frames")

    def _register(self, packet: av.Packet) -> None:
        self._packets += 1
        packet.opaque = (self._packets,)  # an object of its own: PyAV tells them apart by identity
        if self._packets == 1:
            self._begun = packet.is_keyframe or self._holds_back  # the first frame may say otherwise
        if not self._keyed and not packet.is_keyframe:
            return
        self._keyed = True
        if "mpegts" in self._formats:
            self._look_for_a_break(packet)
        else:
            self._cut |= packet.is_corrupt
        if "ogg" in self._formats:
            self._look_for_a_gap(packet)
        if packet.is_corrupt and self._cut or self._is_blank(packet):
            self._damaged.add(self._packets)
        elif self._holds_picture(packet):
            self._reordered |= self._timed and packet.pts != packet.dts
            self._awaited[self._packets] = packet.pts if self._timed else None

    def _is_blank(self, packet: av.Packet) -> bool:
        """Zeros where a picture was: no codec writes that, except those that store colours as they are."""
        data = memoryview(packet)
        return packet.size >= TINY and not data[0] and self._stream.codec_context.name not in PLAIN and not any(data)

    def _holds_picture(self, packet: av.Packet) -> bool:
        """Is a frame to be shown for this packet?"""
        if packet.size < TINY or packet.is_discard or _is_header(packet):
            return False
        only_reference = self._stream.codec_context.name == "vp8" and not memoryview(packet)[0] >> 4 & 1
        return not only_reference

    def _look_for_a_gap(self, packet: av.Packet) -> None:
        """An Ogg stream numbers its frames."""
        if packet.pts is not None and packet.duration and not _is_header(packet):
            if self._next is not None and packet.pts > self._next:
                self._missing += (packet.pts - self._next) // packet.duration
            self._next = packet.pts + packet.duration

    def _look_for_a_break(self, packet: av.Packet) -> None:
        """A transport stream's packets are numbered, and the numbers begin again where another recording was joined.

        There a key frame follows, and nothing is missing between the times, or they begin again as well.
        """
        if packet.is_corrupt or self._break == self._packets - 2:
            before, self._break = self._break, self._packets if packet.is_corrupt else None
            if before and (packet.is_corrupt or not packet.is_keyframe or self._is_gap(packet)):
                self._damage(self._packets - 1)
        self._previous = packet

    def _damage(self, number: int) -> None:
        """Its frame may have come already."""
        self.frames -= number not in self._awaited and number not in self._damaged
        self._damaged.add(number)

    def _is_gap(self, packet: av.Packet) -> bool:
        if packet.dts is None or self._previous.dts is None:
            return False
        step = packet.dts - self._previous.dts
        return 1.5 * (self._previous.duration or 0) < step <= NEW_CLOCK / packet.time_base

    def _is_sound(self, frame: av.VideoFrame, packet: av.Packet) -> bool:
        """Is it a frame to be shown? Counts it as damaged, or others as missing, if they are."""
        (number,) = frame.opaque or (self._packets,)
        is_key = frame.key_frame or frame.pict_type == PictureType.I
        if frame.pict_type == PictureType.NONE:  # the decoder does not say; it has no delay
            is_key = is_key or packet.is_keyframe or not MARKS_KEYS & self._formats
        self._begun = is_key or self._begun and (number != 1 or self._holds_back)
        self._awaited.pop(number, None)
        if not self._begun:
            return False
        if not self.frames:  # what was to come before it lacks its references
            begin = math.inf if frame.pts is None else frame.pts
            self._awaited = {n: pts for n, pts in self._awaited.items() if pts is not None and n > number and pts > begin}
        if frame.interlaced_frame:
            self._interlaced.add(number)
        self._give_up([n for n in self._awaited if n < number and self._is_overdue(n, number, frame.pts)])
        if frame.is_corrupt:
            self._damaged.add(number)
        return number not in self._damaged

    def _is_overdue(self, awaited: int, number: int, time: int | None) -> bool:
        """Should the frame of an earlier packet have come before that of packet `number`, shown at `time`?"""
        pts = self._awaited[awaited]
        return awaited < number - LONGEST_DELAY or self._reordered and None not in (pts, time) and pts < time

    def _give_up(self, numbers: list[int]) -> None:
        for number in numbers:
            del self._awaited[number]
            self._missing += not {number - 1, number + 1} & self._interlaced


def _is_header(packet: av.Packet) -> bool:
    return bytes(memoryview(packet)[:8]).startswith(OGG_HEADERS)
