"""One video: whatever comes in, a clip of the stored kind comes out, or a reason."""

import io
import multiprocessing
import os
import signal
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards import needed_fragments
from shard_tools.encode import (
    LIBRARY,
    EncodedClip,
    EncodeSettings,
    RejectedVideo,
    encode_video,
    stored_size,
)
from shard_tools.pool import encode_videos
from tests.videos import decode, moving, noise, solid, turn, write_audio, write_video

SMALL = EncodeSettings(short_side=48)


def reason(path, settings=SMALL) -> str:
    with pytest.raises(RejectedVideo) as rejected:
        encode_video(path, settings)
    assert "\n" not in rejected.value.reason
    return rejected.value.reason


@given(st.integers(2, 5000), st.integers(2, 5000), st.sampled_from([224, 256, 320]))
def test_geometry(width, height, short_side):
    long_side = Fraction(max(width, height) * short_side, min(width, height))
    if long_side > 4096 + 15:
        with pytest.raises(RejectedVideo, match="too narrow"):
            stored_size(Fraction(width), Fraction(height), short_side)
        return
    stored = stored_size(Fraction(width), Fraction(height), short_side)
    assert min(stored) == short_side and max(stored) % 16 == 0
    assert -1 <= long_side - max(stored) < 16
    assert (stored[0] - stored[1]) * (width - height) >= 0


def test_the_usual_sizes():
    sizes = [(340, 256), (320, 240), (1920, 1080), (1080, 1920), (500, 500), (176, 144)]
    stored = [stored_size(Fraction(w), Fraction(h), 256) for w, h in sizes]
    assert stored == [(336, 256), (336, 256), (448, 256), (256, 448), (256, 256), (304, 256)]


@pytest.mark.parametrize("codec", LIBRARY)
def test_every_codec_stores_what_the_reader_relies_on(codec, tmp_path):
    source = write_video(tmp_path / "a.mp4", noise(19, 48, 88), fps=Fraction(30000, 1001))
    settings = EncodeSettings(codec, gop=None if codec == "mjpeg" else 4, short_side=64)
    clip = encode_video(source, settings)
    assert (clip.frames, clip.width, clip.height) == (19, 112, 64)
    assert clip.fps == pytest.approx(29.97, abs=0.001)
    assert clip.header_size + int(clip.fragments["size"].sum()) == len(clip.data)
    if codec != "hevc":  # x265 does not repeat itself exactly
        assert encode_video(source, settings).data == clip.data
    with av.open(io.BytesIO(clip.data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [packet.is_keyframe for packet in packets] == [i % settings.gop == 0 for i in range(19)]
        seconds = [float(packet.pts * packet.time_base) for packet in packets]
        assert seconds == pytest.approx([i * 1.001 / 30 for i in range(19)], abs=1e-4)
        assert [packet.dts for packet in packets] == [packet.pts for packet in packets]
    whole = decode(io.BytesIO(clip.data))
    ends = clip.header_size + np.cumsum(clip.fragments["size"].astype(int))
    for frame in range(19):  # every fragment decodes, and the same, when only what it needs comes before it
        chosen = np.flatnonzero(needed_fragments(np.array([frame]), settings.gop, 19))
        pieces = [clip.data[ends[i] - clip.fragments["size"][i] : ends[i]] for i in chosen]
        assert np.array_equal(decode(io.BytesIO(clip.data[: clip.header_size] + b"".join(pieces)))[-1], whole[frame])


COLORS = [(0, 0, 0), (255, 255, 255), (200, 30, 40), (30, 180, 60), (40, 50, 210), (190, 180, 20), (128, 128, 128)]
TAGS = {
    "bt601": dict(matrix="bt601"),
    "bt709": dict(matrix="bt709"),
    "untagged, small: bt601": dict(matrix="bt601", tagged=False),
    "untagged, large: bt709": dict(matrix="bt709", tagged=False, large=True),
    "full range": dict(matrix="bt601", full_range=True, codec="mjpeg"),
    "full range, bt709": dict(matrix="bt709", full_range=True),
}


@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
@pytest.mark.parametrize("tags", TAGS)
def test_colours_survive_until_dali_has_decoded_them(tags, codec, tmp_path):
    arguments = dict(TAGS[tags])
    height, width = (720, 960) if arguments.pop("large", False) else (48, 64)
    options = {"qmin": "2", "qmax": "2"} if arguments.get("codec") else {"qp": "4", "preset": "ultrafast"}
    clips = []
    for color in COLORS:
        frames = solid(color, 2, height, width)
        source = write_video(tmp_path / "a.mkv", frames, options=options, **arguments)
        clips.append(encode_video(source, EncodeSettings(codec, crf=20 if codec == "vp9" else 2)))
    for color, seen in zip(COLORS, dali_decode([clip.data for clip in clips])):
        assert seen.shape == (2, 256, 336, 3)
        assert np.abs(seen.astype(int) - color).max() <= 6, (tags, color, seen[0, 0, 0])


def dali_decode(datas):
    fn, types = pytest.importorskip("nvidia.dali.fn"), pytest.importorskip("nvidia.dali.types")
    from nvidia.dali import pipeline_def

    @pipeline_def(batch_size=len(datas), num_threads=1, device_id=None)
    def graph():
        encoded = fn.external_source(lambda: [np.frombuffer(d, np.uint8) for d in datas], dtype=types.UINT8, ndim=1)
        return fn.decoders.video(encoded, device="cpu")

    pipeline = graph()
    pipeline.build()
    (videos,) = pipeline.run()
    return [np.array(videos[i]) for i in range(len(datas))]


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_rotated_videos_come_out_upright(quarters, tmp_path):
    frames = moving(4, 48, 96)
    source = write_video(tmp_path / "a.mp4", np.rot90(frames, quarters, axes=(1, 2)).copy(), options={"qp": "10"})
    turn(source, quarters)
    clip = encode_video(source, EncodeSettings(short_side=48, crf=10))
    assert (clip.width, clip.height) == (96, 48)
    assert np.abs(decode(io.BytesIO(clip.data)).astype(int) - frames).mean() < 4


def test_pixels_that_are_not_square(tmp_path):
    source = write_video(tmp_path / "a.mp4", moving(3, 48, 64), pixel_shape=Fraction(3, 2))
    clip = encode_video(source, SMALL)
    assert (clip.width, clip.height) == (96, 48)


@pytest.mark.parametrize("height, width", [(64, 96), (64, 48), (24, 128)])
def test_a_size_that_changes_on_the_way(height, width, tmp_path):
    first = write_video(tmp_path / "a.h264", moving(5, 48, 64)).read_bytes()
    second = write_video(tmp_path / "b.h264", solid((200, 30, 40), 4, height, width)).read_bytes()
    (tmp_path / "both.h264").write_bytes(first + second)
    clip = encode_video(tmp_path / "both.h264", SMALL)
    assert (clip.frames, clip.width, clip.height) == (9, 64, 48)
    assert np.abs(decode(io.BytesIO(clip.data))[-1].astype(int) - (200, 30, 40)).max() < 12  # covers, no border


@pytest.mark.parametrize(
    "codec, name", [("gif", "a.gif"), ("mpeg4", "a.avi"), ("ffv1", "a.mkv"), ("libx265", "a.mp4")]
)
def test_other_codecs_and_pixel_formats(codec, name, tmp_path):
    frames = solid((200, 30, 40), 5)
    if codec == "gif":
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("gif", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
            for index, rgb in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="rgb8")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    else:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        write_video(tmp_path / name, frames, codec, options=quiet)
    clip = encode_video(tmp_path / name, SMALL)
    assert clip.frames == 5
    assert np.abs(decode(io.BytesIO(clip.data)).astype(int) - (200, 30, 40)).mean() < 15


def test_faults_are_told(tmp_path):
    good = write_video(tmp_path / "good.mp4", noise(30)).read_bytes()
    webm = write_video(tmp_path / "good.mkv", noise(30), "libvpx-vp9", options={"deadline": "realtime"}).read_bytes()
    faults = {
        "text.mp4": (b"hello, this is not a video\n" * 50, "cannot be opened as a video"),
        "playlist.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x\n", "cannot be opened"),
        "empty.mp4": (b"", "the file is empty"),
        "truncated.mp4": (good[: len(good) // 2], "cannot be opened as a video"),
        "zeroed.mp4": (good[: len(good) // 3] + bytes(400) + good[len(good) // 3 + 400 :], "decoding stopped|damaged"),
        "headless.mkv": (webm[len(webm) // 2 :], "cannot be opened"),
    }
    for name, (data, expected) in faults.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RejectedVideo, match=expected):
            encode_video(tmp_path / name, SMALL)
    fast = write_video(tmp_path / "fast.mp4", noise(30), "libvpx-vp9", options={"deadline": "realtime"})
    with av.open(str(fast)) as source, av.open(str(tmp_path / "s.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / "s.mp4").read_bytes()
    (tmp_path / "s.mp4").write_bytes(data[: len(data) * 2 // 3])
    assert "cut short" in reason(tmp_path / "s.mp4")
    assert reason(write_audio(tmp_path / "audio.mp4")) == "it has no video stream"
    assert reason(tmp_path / "missing.mp4") == "the file does not exist"
    assert reason(tmp_path) == "it is a folder"
    assert "too narrow" in reason(write_video(tmp_path / "strip.mp4", solid((1, 2, 3), 2, 2, 400)))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(codec="av1"), "codec 'av1' is not one of"),
        (dict(gop=0), "gop 0"),
        (dict(codec="mjpeg", gop=8), "mjpeg has only keyframes"),
        (dict(short_side=250), "250 is not a multiple of 16 from 16 to 4096"),
        (dict(crf=64), "crf 64 is not between 0 and 63"),
        (dict(codec="mjpeg", crf=0), "crf 0 is not between 1 and 31"),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        EncodeSettings(**arguments)


def test_many_videos_in_processes_that_die_or_hang(tmp_path):
    good = str(write_video(tmp_path / "good.mp4", moving(4)))
    os.mkfifo(tmp_path / "hang.mp4")  # opening it blocks for ever
    hang, missing = str(tmp_path / "hang.mp4"), str(tmp_path / "missing.mp4")
    outcomes = encode_videos([good, hang, good, hang, missing, good], SMALL, workers=1, timeout=3)
    clip = next(outcomes)
    (child,) = multiprocessing.active_children()
    threading.Timer(0.5, os.kill, (child.pid, signal.SIGSEGV)).start()  # while it hangs in the second
    outcomes = [clip, *outcomes]
    assert [type(outcome) for outcome in outcomes[::2]] == [EncodedClip, EncodedClip, RejectedVideo]
    assert outcomes[1].reason == "the decoder crashed (signal 11)"
    assert outcomes[3].reason == "it took longer than 3 seconds"
    assert outcomes[4].reason == "the file does not exist"
    assert outcomes[0].data == outcomes[5].data == encode_video(good, SMALL).data
    assert not multiprocessing.active_children()
