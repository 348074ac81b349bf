"""Sources that are damaged, cut or joined: what is missing is told, and what is sound is kept whole."""

import io
import re
import struct
from types import SimpleNamespace

import av
import numpy as np
import pytest

from i2v.shard_tools.completeness import what_is_missing
from i2v.shard_tools.damage import Tally
from i2v.shard_tools.encode import EncodeSettings, encode_video
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import Video
from tests.videos import decode, ffmpeg, noise, panned, solid, write_audio

SETTINGS = EncodeSettings("mjpeg", short_side=96, crf=2)
FRAMES = panned(30)


def made(path, how: str):
    """The FRAMES, as FFmpeg writes them with these options."""
    return ffmpeg(*how.split(), path, frames=FRAMES)


def copied(source, target, before: str = "", after: str = ""):
    return ffmpeg(*before.split(), "-i", source, "-c", "copy", *after.split(), target)


def frames_of(path) -> np.ndarray:
    return decode(io.BytesIO(encode_video(path, SETTINGS).data))


def reason(video) -> str:
    with pytest.raises(RejectedVideo) as rejected:
        encode_video(video, SETTINGS)
    return rejected.value.reason


# ---- missing and damaged frames --------------------------------------------------------------------------------------


def test_pictures_that_lost_their_references_are_counted(tmp_path):
    """Eight frames between key frames, each a reference of the next: with the third of a group the rest of it is lost."""
    params = "keyint=8:min-keyint=8:bframes=0:scenecut=0:open-gop=0:log-level=none"
    for name in ("a.mp4", "a.mkv", "a.ts", "a.flv"):
        source = made(tmp_path / name, f"-c:v libx265 -x265-params {params}")
        assert len(frames_of(source)) == 30
        lost = copied(source, tmp_path / f"lost-{name}", after="-bsf:v noise=drop=eq(n\\,10)")
        assert reason(lost) == "5 of 29 frames are missing", name


INTRA = [("a.avi", "-c:v mjpeg -q:v 3"), ("a.mov", "-c:v prores"), ("a.mkv", "-c:v huffyuv -pix_fmt yuv422p")]


class Field(bytes):
    """A packet of 100 bytes; no encoder here writes two for one frame. The frame comes with the second, and knows the first."""

    is_keyframe, is_corrupt, is_discard, dts, duration, time_base, frames = True, False, False, None, None, None, ()

    def __new__(cls, number: int):
        field = super().__new__(cls, bytes([1]) * 100)
        field.pts, field.size = number, 100
        return field

    def decode(self):
        return self.frames


@pytest.mark.parametrize("interlaced", [True, False])
def test_two_packets_may_be_the_fields_of_one_frame(interlaced):
    looks = dict(key_frame=True, is_corrupt=False, interlaced_frame=interlaced)
    packets = [Field(number) for number in range(8)]
    for number in range(0, 8, 2):
        frame = SimpleNamespace(pict_type=1, pts=number, opaque=(number + 1,), **looks)
        packets[number + 1].frames = (frame,)
    tally = Tally(SimpleNamespace(codec_context=SimpleNamespace(name="h264")), {"mpegts"})
    frames = [frame for packet in packets for frame in tally.decoded(packet)]
    if interlaced:
        tally.check()
        assert len(frames) == 4
    else:
        with pytest.raises(RejectedVideo, match="4 of 8 frames are missing"):
            tally.check()


@pytest.mark.parametrize("name, how", INTRA)
@pytest.mark.parametrize("blank", [(14,), (3, 20, 21)])
def test_pictures_of_zeros_are_counted(name, how, blank, tmp_path):
    source = made(tmp_path / name, how)
    data = source.read_bytes()
    with av.open(str(source)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    for number in blank:
        assert data.count(packets[number]) == 1
        data = data.replace(packets[number], bytes(len(packets[number])))
    source.write_bytes(data)
    verb = "is" if len(blank) == 1 else "are"
    assert re.match(rf"{len(blank)} of 30 frames {verb} damaged( \(.*\))?$", reason(source))


def test_damage_before_or_after_a_segment_is_none_of_its_business(tmp_path):
    source = made(tmp_path / "a.mkv", "-c:v libx265 -x265-params keyint=10:min-keyint=10:bframes=2:log-level=none")
    lost = copied(source, tmp_path / "lost.mkv", after="-bsf:v noise=drop=eq(n\\,11)")
    assert encode_video(Video(str(lost), start=0, end=0.36), SETTINGS).frames == 9
    assert "missing" in reason(Video(str(lost), start=0, end=0.9))
    params = "keyint=50:min-keyint=50:bframes=0:scenecut=0:open-gop=0:log-level=none"  # in order: times tell nothing
    source = ffmpeg("-c:v", "libx265", "-x265-params", params, tmp_path / "b.mkv", frames=noise(100, 96, 128))
    lost = copied(source, tmp_path / "lost.mkv", after="-bsf:v noise=drop=eq(n\\,4)")
    assert encode_video(Video(str(lost), start=0, end=0.12), SETTINGS).frames == 3
    assert reason(Video(str(lost), start=0, end=3.0)) == "45 of 99 frames are missing"


@pytest.mark.parametrize("name", ["a.mp4", "a.flv"])
def test_a_cut_that_the_decoder_sees_says_how_much_there_is(name, tmp_path):
    source = made(tmp_path / name, "-c:v libx264 -bf 0 -g 8 -movflags +faststart")
    data = source.read_bytes()
    with av.open(str(source)) as file:
        whole = sum(packet.pos + packet.size <= len(data) * 2 // 3 for packet in file.demux(video=0) if packet.size)
    source.write_bytes(data[: len(data) * 2 // 3])
    assert 10 < whole < 29
    if name == "a.mp4":
        assert reason(source).startswith(f"{30 - whole} of 30 frames are missing or damaged")
    else:
        assert reason(source) == f"the file is cut short after {whole} frames"


def test_a_lost_page_of_ogg_and_a_lost_chunk_of_avi(tmp_path):
    ogg = made(tmp_path / "a.ogv", "-c:v libtheora -q:v 5 -page_duration 100000")
    data = bytearray(ogg.read_bytes())
    pages = [match.start() for match in re.finditer(b"OggS\0", bytes(data))]
    data[pages[5] + 60] ^= 1  # the page's checksum fails
    ogg.write_bytes(data)
    assert re.match(r"[1-9] of 30 frames (is|are) missing$", reason(ogg))
    avi = made(tmp_path / "a.avi", "-c:v mpeg4 -g 8")
    data = avi.read_bytes()
    at = [match.start() for match in re.finditer(b"00dc", data)][20]
    avi.write_bytes(data[:at] + b"JUNK" + data[at + 4 :])
    assert reason(avi) == "1 of 30 frames is missing"


# ---- transport streams -----------------------------------------------------------------------------------------------

JOINED = {  # how each part is encoded
    "h264": "-c:v libx264 -g 10 -bf 2",
    "hevc": "-c:v libx265 -x265-params keyint=10:log-level=none",
    "mpeg2": "-c:v mpeg2video -q:v 3 -g 12 -bf 2",
    "mpeg4": "-c:v mpeg4 -q:v 3",
}


@pytest.mark.parametrize("codec", JOINED)
@pytest.mark.parametrize("offset", [0.0, 1.2, 40.0])
def test_joined_transport_streams_are_whole(codec, offset, tmp_path):
    """The second part's clock begins again, goes on, or leaps; its packets are numbered anew."""
    first = made(tmp_path / "a.ts", JOINED[codec])
    second = made(tmp_path / "b.ts", f"{JOINED[codec]} -output_ts_offset {offset}")
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    clip = encode_video(tmp_path / "both.ts", SETTINGS)
    part = frames_of(first)
    assert clip.frames == 60 and (np.diff(clip.fragments["time"]) > 0).all()
    assert np.array_equal(decode(io.BytesIO(clip.data)), np.concatenate([part, part]))


@pytest.mark.parametrize("codec", JOINED)
def test_transport_packets_that_are_lost_are_damage(codec, tmp_path):
    data = ffmpeg(*JOINED[codec].split(), tmp_path / "a.ts", frames=noise(30, 96, 128)).read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    video = [n for n, packet in enumerate(packets) if packet[1] & 0x1F == 1 and packet[2] == 0]
    begins = [n for n in video if packets[n][1] & 0x40]  # of pictures
    with av.open(str(tmp_path / "a.ts")) as file:
        key = [n for n, packet in enumerate(file.demux(video=0)) if packet.size and packet.is_keyframe][1]
    two_pictures = {n for n in video if begins[key - 2] <= n < begins[key]}  # whole ones, and a key frame follows
    assert begins[-1] < video[-2]
    for lost in ({video[len(video) // 3]}, {video[len(video) // 2]}, two_pictures, {video[-2]}):
        (tmp_path / "lost.ts").write_bytes(b"".join(packet for n, packet in enumerate(packets) if n not in lost))
        assert re.match("[0-9]+ of [0-9]+ frames (is|are) (missing|damaged)", reason(tmp_path / "lost.ts"))


# ---- sound, though unusual -------------------------------------------------------------------------------------------


def test_an_edit_that_leaves_the_middle_out(tmp_path):
    """An mp4 may say that only some of its frames are shown; frames between them are there to be decoded only."""
    data = made(tmp_path / "a.mp4", "-c:v libx264 -bf 0 -g 30").read_bytes()
    begin = data.index(b"elst") + 8  # one entry of 12 bytes: milliseconds, first time in units of 1/12800 s, rate
    entries = b"".join(struct.pack(">IiI", 400, time * 512, 1 << 16) for time in (0, 20))  # ten frames from 0, ten from 20
    edited = bytearray(data[:begin] + struct.pack(">I", 2) + entries + data[begin + 16 :])
    for box in (b"moov", b"trak", b"edts", b"elst"):
        at = edited.index(box) - 4
        edited[at : at + 4] = struct.pack(">I", struct.unpack_from(">I", edited, at)[0] + 12)
    (tmp_path / "a.mp4").write_bytes(edited)
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert sum(packet.is_discard for packet in file.demux(video=0)) > 5
    assert encode_video(tmp_path / "a.mp4", SETTINGS).frames == 20


def mark_of_a_frame_left_out() -> bytes:
    """MPEG-4's picture that is not coded: type P, no time passed, at 25 frames per second."""
    return b"\0\0\1\xb6" + int("0101000001001111", 2).to_bytes(2, "big")


def test_an_ogg_stream_that_repeats_frames(tmp_path):
    """Theora's repeated frame is a packet of no bytes. Pages are small here: one packet each, and one more for a repetition."""
    pages = re.split(b"(?=OggS\0)", made(tmp_path / "a.ogv", "-c:v libtheora -q:v 2 -g 64 -page_duration 1").read_bytes())[1:]
    assert len(pages) > 30
    out, repeated = [], 0
    for number, page in enumerate(pages):
        granule = int.from_bytes(page[6:14], "little")
        out.append(ogg_page(page, granule + repeated * (granule > 0), page[5], len(out)))
        if number in (5, 6, 20):
            repeated += 1
            out.append(ogg_page(page[:26] + b"\1\0", granule + repeated, 0, len(out)))
    (tmp_path / "repeated.ogv").write_bytes(b"".join(out))
    clip = encode_video(tmp_path / "repeated.ogv", SETTINGS)
    assert clip.frames == 30 and clip.fragments["time"][-1] == pytest.approx(32 / 25, abs=1e-3)


def ogg_page(page: bytes, granule: int, flags: int, number: int) -> bytes:
    """The page with another position, flags and number, and the checksum that goes with them."""
    where = granule.to_bytes(8, "little") + page[14:18] + number.to_bytes(4, "little")
    page = page[:5] + bytes([flags]) + where + bytes(4) + page[26:]
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum >> 31 else 0)) & 0xFFFFFFFF
    return page[:22] + checksum.to_bytes(4, "little") + page[26:]


def test_sound_files_keep_every_frame(tmp_path):
    film = made(tmp_path / "mpeg4.avi", "-c:v mpeg4 -q:v 3 -g 10")
    with av.open(str(film)) as file, av.open(str(tmp_path / "marks.avi"), "w") as target:
        stream = target.add_stream_from_template(file.streams.video[0])
        packets = [(bytes(packet), packet.is_keyframe) for packet in file.demux(video=0) if packet.size]
        packets = [*packets[:7], (mark_of_a_frame_left_out(), False), *packets[7:]]
        for number, (data, is_key) in enumerate(packets):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = file.streams.video[0].time_base, stream, is_key
            target.mux(packet)
    h264 = made(tmp_path / "h264.mp4", "-c:v libx264 -g 10 -bf 2")
    twice = f"-c:v libvpx -b:v 300k -g 60 -auto-alt-ref 1 -lag-in-frames 16 -deadline good -passlogfile {tmp_path / 'log'}"
    made(tmp_path / "first.webm", twice + " -pass 1")
    hidden = made(tmp_path / "hidden.webm", twice + " -pass 2")
    with av.open(str(hidden)) as file:
        assert sum(packet.size > 0 for packet in file.demux(video=0)) > 30  # some are only references
    ogg = made(tmp_path / "theora.ogv", "-c:v libtheora -q:v 5").read_bytes()
    (tmp_path / "chain.ogv").write_bytes(ogg + ogg)
    refresh = ["-c:v", "libx264", "-g", "20", "-x264-params", "intra-refresh=1"]
    refresh = ffmpeg(*refresh, tmp_path / "refresh.mp4", frames=panned(60))
    begun = "noise=drop=lt(n\\,5)"
    refreshed = copied(refresh, tmp_path / "refreshed.mp4", after=f"-bsf:v {begun}")
    with av.open(str(refreshed)) as file:
        shown = list(file.decode(video=0))
    assert 10 < len(shown) < 50 and not any(frame.key_frame for frame in shown)
    still = ffmpeg("-c:v", "libvpx", tmp_path / "still.ogg", frames=solid(90, 30, 96, 128))
    with av.open(str(still)) as file:
        assert min(packet.size for packet in file.demux(video=0) if packet.size) < 20
    kept = {
        tmp_path / "marks.avi": 30,
        hidden: 30,
        tmp_path / "chain.ogv": 60,
        copied(h264, tmp_path / "edited.mp4", before="-ss 0.6"): 15,  # its key frame is for decoding only
        refreshed: len(shown),
        copied(film, tmp_path / "late.avi", after=f"-bsf:v {begun}"): 20,  # begins with chunks of no bytes
        made(tmp_path / "leading.mp4", "-c:v libvvenc -preset faster"): 30,  # the key frame is not shown first
        still: 30,
        made(tmp_path / "lossless.mkv", "-c:v ffv1 -g 10"): 30,
        made(tmp_path / "marked.mov", "-c:v qtrle -g 10 -pix_fmt rgb24"): 30,  # only the container says what is a key frame
    }
    for path, frames in kept.items():
        assert encode_video(path, SETTINGS).frames == frames, path.name


# ---- lengths ---------------------------------------------------------------------------------------------------------


LATE = [(name, seconds) for name in ("a.mkv", "a.webm", "a.flv", "a.asf", "a.mp4") for seconds in (0, 7, 3600, 108000)]


@pytest.mark.parametrize("name, seconds", [*LATE, ("a.mkv", 1700000000)])
def test_recordings_that_begin_late(name, seconds, tmp_path):
    codec = {"a.webm": "libvpx", "a.asf": "wmv2"}.get(name, "libx264")
    clip = encode_video(made(tmp_path / name, f"-c:v {codec} -output_ts_offset {seconds}"), SETTINGS)
    assert clip.frames == 30 and clip.fragments["time"][-1] == pytest.approx(29 / 25, abs=0.002)


@pytest.mark.parametrize("seconds", [0, 500])
def test_a_late_recording_with_its_end_gone_is_cut_short(seconds, tmp_path):
    """Live Matroska does not say how many bytes it has; here the second half of them is zero, as after a crash."""
    source = ffmpeg("-c:v", "libvpx", "-g", "10", "-output_ts_offset", seconds, tmp_path / "a.mkv", frames=panned(100))
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert re.match(r"the file is cut short: of 4.0 seconds it holds (1|2)\.[0-9]$", reason(source))


# ---- what containers say ---------------------------------------------------------------------------------------------

WHOLE = {
    "a.gif": "",
    "a.ogv": "-c:v libtheora",
    "vp8.ogg": "-c:v libvpx",
    "a.y4m": "-pix_fmt yuv420p",
    "a.ts": "-c:v mpeg2video",
    "a.m2ts": "-c:v libx264",
    "a.mkv": "-c:v libx264",
    "a.webm": "-c:v libvpx",
    "a.avi": "-c:v mpeg4",
    "a.asf": "-c:v wmv2",
    "a.flv": "-c:v flv",
    "a.mov": "-c:v mjpeg -movflags +faststart",
}


@pytest.mark.parametrize("name", WHOLE)
def test_cut_files_are_found_wherever_they_lie(name, tmp_path):
    import fsspec

    source = made(tmp_path / name, WHOLE[name])
    data = source.read_bytes()
    for end in (0.3, 0.55, 0.8, 0.97):
        cut = data[: int(len(data) * end) | 1]  # an odd number is no multiple of a transport packet's 188 bytes
        (tmp_path / "cut").write_bytes(cut)
        (tmp_path / "cut.tar").write_bytes(b"x" * 512 + cut + b"y" * 900)
        fsspec.filesystem("memory").pipe("/cut", cut)
        told = reason(tmp_path / "cut")
        assert re.match("the file is cut short|[0-9]+ of [0-9]+ frames (is|are)|it cannot be opened|it has no", told), told
        assert reason(Video(str(tmp_path / "cut.tar"), offset=512, size=len(cut))) == told
        assert reason(Video("memory://cut")) == told
    for video in (source, Video(source.as_uri())):
        assert encode_video(video, SETTINGS).frames == 30


@pytest.mark.parametrize("name", ["a.gif", "a.ogv", "a.ts", "a.m2ts", "a.mkv", "a.avi", "a.asf"])
def test_what_the_bytes_say(name, tmp_path):
    data = made(tmp_path / name, WHOLE[name]).read_bytes()

    def told(data: bytes):
        return what_is_missing(lambda first, count: data[first : first + count], len(data))

    assert told(data) is None and told(data + b"\n" if name.endswith("if") else data) is None
    for end in np.linspace(2000, len(data) - 9, 40).astype(int):
        if end % 188 and end % 192:
            assert told(data[:end]).startswith("the file is cut short"), end


def test_an_ogg_file_cut_between_two_pages(tmp_path):
    data = made(tmp_path / "a.ogv", "-c:v libtheora -q:v 5 -page_duration 100000").read_bytes()
    for page in [match.start() for match in re.finditer(b"OggS\0", data)][3:]:
        (tmp_path / "cut.ogv").write_bytes(data[:page])
        assert reason(tmp_path / "cut.ogv") == "the file is cut short: its last page is not marked as the last"


def test_a_picture_or_text_is_no_damaged_video(tmp_path):
    sound = write_audio(tmp_path / "a.mp4").read_bytes()
    for data in (sound, b"GGGG" * 50, b"hello\n" * 400, bytes(3000)):
        assert what_is_missing(lambda first, count, data=data: data[first : first + count], len(data)) is None


def test_a_gif_whose_blocks_do_not_follow_each_other(tmp_path):
    path = made(tmp_path / "a.gif", "")
    data = path.read_bytes()
    with av.open(str(path)) as file:
        packet = [packet for packet in file.demux() if packet.size][12]
        at, size = data.find(bytes(packet)), packet.size
    path.write_bytes(data[:at] + bytes(size) + data[at + size :])
    assert reason(path) == "the file is damaged after 12 frames"
