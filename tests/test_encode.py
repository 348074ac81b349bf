"""One video: whatever comes in, a clip of the stored kind comes out, or a reason."""

import contextlib
import errno
import io
import itertools
import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from i2v.pipelines import store
from i2v.pipelines.index import needed_fragments
from i2v.pipelines.store import Retry, StoreError
from i2v.shard_tools import decode as decoding
from i2v.shard_tools import encode as encoding
from i2v.shard_tools import pool, source_video
from i2v.shard_tools.encode import LIBRARY, EncodedClip, EncodeSettings, encode_video, stored_size
from i2v.shard_tools.pool import encode_videos
from i2v.shard_tools.source_video import RejectedVideo, open_video
from i2v.shard_tools.sources import Video
from tests.processes import LIMIT, gone, wait_for
from tests.stores import Store
from tests.videos import decode, moving, noise, solid, write_audio, write_video

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
    sizes = {(340, 256): (336, 256), (320, 240): (336, 256), (1920, 1080): (448, 256), (1080, 1920): (256, 448)}
    sizes |= {(500, 500): (256, 256), (176, 144): (304, 256)}
    sizes |= {(701, 512): (336, 256), (703, 512): (352, 256)}  # 350.5 and 351.5 columns: nearest are 350 and 352
    assert {(w, h): stored_size(Fraction(w), Fraction(h), 256) for w, h in sizes} == sizes


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


@pytest.mark.parametrize("space", range(11))
def test_every_colour_space_tag_is_understood(space, tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p" if space in (0, 8) else "yuv420p10le"
        stream.codec_context.colorspace = space
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(solid((90, 90, 90), 1)[0], "rgb24")))
        container.mux(stream.encode(None))
    clip = encode_video(tmp_path / "a.mkv", SMALL)
    if space not in (0, 8):  # RGB and YCgCo are other things than grey here
        assert np.abs(decode(io.BytesIO(clip.data)).astype(int) - 90).max() <= 3


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


@pytest.mark.parametrize("codec, name", [("gif", "a.gif"), ("mpeg4", "a.avi"), ("ffv1", "a.mkv"), ("libx265", "a.mp4")])
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


# ---- times and cuts --------------------------------------------------------------------------------------------------


def write_timed(path, times, codec="libx264", options=None, size=(48, 64)):
    """A video whose frames are shown at these times, in milliseconds; frame i is of one grey, `grey(i)`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000, options=options or {"preset": "ultrafast", "qp": "4"})
        (stream.height, stream.width), stream.pix_fmt = size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(solid((grey(i),) * 3, 1, *size)[0], "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grey(i):
    return 30 + 7 * i % 200


def which(clip, count):
    """Which of the source's `count` frames the clip holds, told by their greys."""
    seen = decode(io.BytesIO(clip.data))[:, 20, 20].mean(axis=-1)
    return np.abs(seen[:, None] - [grey(i) for i in range(count)]).argmin(axis=1).tolist()


UNEVEN = [0, 40, 80, 400, 440, 1000, 1033, 1066, 1900, 2000]  # milliseconds


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("delay", [0, 700])
def test_times_are_the_sources_own(name, delay, tmp_path):
    clip = encode_video(write_timed(tmp_path / name, [delay + t for t in UNEVEN]), SMALL)
    assert clip.fragments["time"] == pytest.approx(np.array(UNEVEN) / 1000, abs=1e-6)
    assert clip.fps == pytest.approx(9 / 2.0) and which(clip, 10) == list(range(10))


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(24), Fraction(10)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.h264"])
def test_times_of_a_constant_rate(name, fps, tmp_path):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    clip = encode_video(write_video(tmp_path / name, moving(12), codec, fps=fps, options={"bf": "2"}), SMALL)
    fps = 25 if name == "a.h264" and clip.fps == 25 else float(fps)  # a bare stream may not know its rate
    assert clip.fps == pytest.approx(fps)
    assert clip.fragments["time"] == pytest.approx(np.arange(12) / fps, abs=1e-3)


def test_times_go_on_where_timestamps_fall_back(tmp_path):
    """Two recordings in one stream: the clock begins again."""
    part = write_video(tmp_path / "a.mpg", moving(10), "mpeg2video").read_bytes()
    (tmp_path / "both.mpg").write_bytes(part + part)
    with av.open(str(tmp_path / "both.mpg")) as container:
        timestamps = [frame.time for frame in container.decode(video=0)]
    assert min(np.diff(timestamps)) < 0
    clip = encode_video(tmp_path / "both.mpg", SMALL)
    assert clip.frames == len(timestamps)
    assert clip.fragments["time"] == pytest.approx(np.arange(clip.frames) / 25, abs=1e-4)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """The same 250 frames, 10 seconds, in codecs and containers with different ideas of a keyframe."""
    folder = tmp_path_factory.mktemp("films")
    frames = moving(250)
    vp9 = {"g": "60", "lag-in-frames": "10", "cpu-used": "8"}
    hevc = {"x265-params": "keyint=40:open-gop=1:log-level=none"}
    h264 = {"preset": "veryfast", "bf": "3", "g": "40", "x264-params": "open-gop=1:b-pyramid=normal"}
    return [
        write_video(folder / "open.mp4", frames, options=h264),
        write_video(folder / "open.mkv", frames, options=h264),
        write_video(folder / "refresh.mp4", frames, options={"g": "50", "x264-params": "intra-refresh=1"}),
        write_video(folder / "a.webm", frames, "libvpx-vp9", options=vp9),
        write_video(folder / "hevc.mp4", frames, "libx265", options=hevc),
        write_video(folder / "a.avi", frames, "mpeg4", options={"bf": "2", "g": "30"}),
        write_video(folder / "a.ts", frames, options={"g": "30"}),
    ]


def test_a_cut_is_what_decoding_from_the_beginning_gives(films, monkeypatch):
    cuts = [(0.0, 0.5), (2.5, 2.9), (4.38, 4.81), (6.4, 6.44), (7.999, 8.3), (9.7, None), (9.96, 12)]
    for film in films:
        for start, end in cuts:
            video = Video(str(film), start=start, end=end)
            clip = encode_video(video, SMALL)
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "SEEKABLE", set())
                assert encode_video(video, SMALL).data == clip.data, (film.name, start)
            with monkeypatch.context() as patch:
                patch.setattr(decoding, "SEEK_MARGIN", -4.0)  # where seeking leads too far, decoding begins again
                assert encode_video(video, SMALL).data == clip.data, (film.name, start)
            expected = [i for i in range(250) if start - 1e-6 <= i / 25 < (end or 99) - 1e-6]
            assert clip.frames == len(expected), (film.name, start)
            assert clip.fragments["time"] == pytest.approx((np.array(expected) - expected[0]) / 25, abs=1e-3)


def test_a_cut_decodes_only_from_the_keyframe_before_it(films):
    for film, longest in zip(films, (40, 40, 250, 60, 40, 250, 250)):
        with open_video(Video(str(film))) as (container, _):
            stream = decoding.best_stream(container)
            before = [time for time, _ in decoding.frames_from(container, stream, 9.0) if time < 9]
        assert 0 < len(before) <= longest + 25 + 1, film.name


def test_segments_that_the_video_does_not_have(films):
    assert reason(Video(str(films[0]), start=10.0)) == ("the segment begins at second 10, but the video is 10.00 seconds long")
    assert "is 10.00 seconds long" in reason(Video(str(films[3]), start=3600, end=3700))
    assert reason(Video(str(films[0]), start=5, end=4)) == "it has no frame between seconds 5 and 4"


def test_at_most_so_many_seconds_and_frames_per_second(films, tmp_path):
    settings = EncodeSettings(short_side=48, fps=10, max_seconds=2)
    clip = encode_video(Video(str(films[0]), start=3, end=9), settings)
    expected = [second + tenth for second in (0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8) for tenth in (0, 0.08)]
    assert clip.fragments["time"] == pytest.approx(expected, abs=1e-6)
    assert clip.fps == pytest.approx(10, rel=0.02)
    source = write_timed(tmp_path / "a.mp4", UNEVEN)
    clip = encode_video(source, EncodeSettings(short_side=48, fps=5))
    kept = which(clip, 10)  # times wanted: 0 .2 .4 ... 2.0
    assert kept == [0, 2, 3, 4, 5, 7, 8, 9]
    assert clip.fragments["time"] == pytest.approx(np.array(UNEVEN)[kept] / 1000, abs=1e-6)
    assert encode_video(source, EncodeSettings(short_side=48, fps=120)).frames == 10


@given(st.lists(st.integers(1, 400), min_size=0, max_size=40), st.integers(1, 60), st.integers(-5000, 5000))
def test_kept_frames_are_the_nearest_to_the_times_wanted(gaps, fps, first):
    times = (first + np.cumsum([0, *gaps])) / 1000
    kept = list(decoding.thinned(((time, i) for i, time in enumerate(times)), fps))
    indices = [i for _, i in kept]
    assert indices == sorted(set(indices)) and indices[0] == 0
    wanted = times[0] + np.arange(int((times[-1] - times[0]) * fps) + 1) / fps
    distance = np.abs(times[None] - wanted[:, None])
    assert np.abs(times[None, indices] - wanted[:, None]).min(axis=1) == pytest.approx(distance.min(axis=1), abs=1e-5)
    assert len(kept) <= len(wanted) + 1
    if gaps and max(gaps) < 1000 / fps:
        assert len(kept) >= len(wanted)


# ---- where videos are ------------------------------------------------------------------------------------------------


def test_a_video_is_the_same_wherever_it_lies(tmp_path):
    import fsspec

    for name in ("a.mp4", "a.mkv"):
        path = write_video(tmp_path / name, moving(20))
        expected, data = encode_video(path, SMALL), path.read_bytes()
        (tmp_path / "b.tar").write_bytes(b"x" * 700 + data + b"y" * 900)
        store = fsspec.filesystem("memory")
        store.pipe({f"/store/{name}": data, "/store/b.tar": b"x" * 700 + data + b"y" * 900})
        part = {"offset": 700, "size": len(data)}
        for video in (
            Video(str(tmp_path / "b.tar"), **part),
            Video(f"memory://store/{name}"),
            Video("memory://store/b.tar", **part),
            Video(path.as_uri()),
        ):
            clip = encode_video(video, SMALL)
            assert (clip.data, clip.source_bytes) == (expected.data, len(data))
    assert "before the video in it does" in reason(Video(str(tmp_path / "b.tar"), offset=1601, size=len(data)))
    assert "cannot be opened" in reason(Video(str(tmp_path / "b.tar"), offset=701, size=len(data)))
    assert reason(Video("memory://store/none.mp4")) == "the file does not exist"
    assert reason(Video(str(tmp_path / "none.tar"), offset=5, size=5)) == "the file does not exist"
    assert reason(Video(str(tmp_path / "b.tar"), offset=5, size=0)) == "the file is empty"


def test_a_playlist_in_a_store_opens_nothing_else(tmp_path):
    import fsspec

    segment = write_video(tmp_path / "a.ts", moving(5))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{segment}\n#EXT-X-ENDLIST\n"
    fsspec.filesystem("memory").pipe("/store/playlist.mp4", playlist.encode())
    assert reason(Video("memory://store/playlist.mp4"))
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{segment}'\n")
    fsspec.filesystem("memory").put(str(tmp_path / "list.ffconcat"), "/store/list.mp4")
    assert reason(Video("memory://store/list.mp4"))


def test_a_store_that_fails_is_asked_again_and_then_ends_the_run(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", noise(60, 96, 128))
    monkeypatch.setattr(source_video, "BUFFER", 4096)
    monkeypatch.setattr(store, "BLOCK", 4096)
    monkeypatch.setattr(store, "RETRY", Retry(tries=4, wait=0.0, timeout=LIMIT))
    Store.reset()
    url = Store.put(tmp_path, "data") + "/a.mp4"

    def fail(error, fails):
        count = itertools.count()

        def answer(name, data):
            if fails(next(count)):
                raise error
            return data

        Store.answer, Store.requests = staticmethod(answer), []

    fail(ConnectionResetError(104, "Connection reset by peer"), lambda request: request % 4)
    assert encode_video(Video(url), SMALL).data == encode_video(path, SMALL).data
    half = len(Store.requests) // 8  # of those that were answered: FFmpeg is at work
    for error, tries in ((RuntimeError("no\nconnection"), 4), (TimeoutError(), 4), (PermissionError(13, "Forbidden"), 1)):
        fail(error, lambda request: request >= half)
        with pytest.raises(StoreError, match=r"^store://data/a.mp4 cannot be read(, tried 4 times)? \(.*\)\.$"):
            encode_video(Video(url), SMALL)
        assert len(Store.requests) == half + tries
    with pytest.raises(StoreError):
        list(encode_videos([Video(url)], SMALL))


def test_a_mount_that_is_gone_ends_the_run_and_a_file_that_cannot_be_read_does_not(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", moving(4))

    def gone(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(source_video.os.path, "getsize", gone)
    code = errno.ESTALE
    with pytest.raises(StoreError, match=r"a.mp4 cannot be read \(Stale file handle\)\.$"):
        encode_video(path, SMALL)
    code = errno.EACCES
    assert reason(path) == "the file cannot be read (Permission denied)"


@pytest.mark.process
def test_a_store_that_cannot_be_asked_ends_the_run_of_a_pool():
    with pytest.raises(StoreError, match="nosuch://x/a.mp4 cannot be opened: Protocol not known: nosuch.$"):
        list(encode_videos([Video("nosuch://x/a.mp4")], SMALL, workers=1, timeout=LIMIT))


def test_a_video_in_a_store_has_the_time_in_which_a_store_is_given_up(monkeypatch):
    """Else a store that stalls would cost videos, if the limit of a video is short."""
    monkeypatch.setattr(pool.time, "monotonic", lambda: 1000.0)
    worker = pool._Worker.__new__(pool._Worker)
    worker.ready, worker.connection = True, SimpleNamespace(send=lambda video: None)
    for video, seconds in ((Video("s3://x/a.mp4"), 5 + Retry().patience), (Video("a.mp4"), 5), ("a.mp4", 5)):
        worker.start(0, video, 5)
        assert worker.deadline == 1000 + seconds


BLOCKED = """
import os, sys
from i2v.shard_tools import pool
from i2v.shard_tools.encode import EncodeSettings

def encode_video(video, settings, on_frame):
    print(os.getpid(), flush=True)
    open(video)  # a FIFO that nobody writes to

pool.encode_video = encode_video
if __name__ == "__main__":
    list(pool.encode_videos(sys.argv[1:], EncodeSettings(), workers=1))
"""


@pytest.mark.process
def test_a_worker_that_waits_for_a_file_ends_with_its_parent(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "blocked.py").write_text(BLOCKED)
    line, ours = [sys.executable, tmp_path / "blocked.py", tmp_path / "a.mp4"], {"PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen(line, env=os.environ | ours, stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        wait_for(lambda: gone(worker))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        parent.stdout.close()


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_faults_are_told(tmp_path):
    good = write_video(tmp_path / "good.mp4", noise(30)).read_bytes()
    webm = write_video(tmp_path / "good.mkv", noise(30), "libvpx-vp9", options={"deadline": "realtime"}).read_bytes()
    faults = {
        "text.mp4": (b"hello, this is not a video\n" * 50, "cannot be opened as a video"),
        "playlist.mp4": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x\n", "cannot be opened"),
        "empty.mp4": (b"", "the file is empty"),
        "truncated.mp4": (good[: len(good) // 2], "cannot be opened as a video"),
        "zeroed.mp4": (good[: len(good) // 3] + bytes(400) + good[len(good) // 3 + 400 :], "^3 of 30 frames are damaged"),
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
    assert re.match("1[0-9] of 30 frames are missing or damaged", reason(tmp_path / "s.mp4"))
    for name in ("b.mkv", "b.webm", "b.avi"):
        codec = {"b.mkv": "libx264", "b.webm": "libvpx-vp9", "b.avi": "mjpeg"}[name]
        data = write_video(tmp_path / name, noise(100), codec, options={"g": "10"}).read_bytes()
        for part in (0.3, 0.6, 0.9):
            end = int(len(data) * part)
            (tmp_path / name).write_bytes(data[:end])
            assert f"it has {end} of" in reason(tmp_path / name), (name, part)
        (tmp_path / name).write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))  # space was reserved
        told = reason(tmp_path / name)
        assert name != "b.webm" or told == "the file is cut short: of 4.0 seconds it holds 2.0"
    assert reason(write_audio(tmp_path / "audio.mp4")) == "it has no video stream"
    assert reason(tmp_path / "missing.mp4") == "the file does not exist"
    assert reason(tmp_path) == "it is a folder"
    os.mkfifo(tmp_path / "pipe.mp4")  # nobody writes to it: who opened it would wait for ever
    assert reason(tmp_path / "pipe.mp4") == "it is a pipe or a device, not a file"
    (tmp_path / "link.mp4").symlink_to("pipe.mp4")
    assert reason(tmp_path / "link.mp4") == "it is a pipe or a device, not a file"
    assert "too narrow" in reason(write_video(tmp_path / "strip.mp4", solid((1, 2, 3), 2, 2, 400)))


def test_more_than_can_be_meant_is_rejected_early(tmp_path, monkeypatch):
    source = write_video(tmp_path / "a.mp4", noise(40))
    monkeypatch.setattr(encoding, "LARGEST_CLIP", 5_000)
    assert "it is too long for one clip: cut it with a list of segments or --max-seconds" in reason(source)
    assert encode_video(source, EncodeSettings(short_side=48, max_seconds=0.2)).frames == 5
    monkeypatch.setattr(encoding, "LARGEST_CLIP", 1 << 30)
    monkeypatch.setattr(encoding, "MOST_FRAMES", 30)
    assert reason(source).startswith("after 30 frames it is too long")
    assert encode_video(source, EncodeSettings(short_side=48, fps=10)).frames == 16
    monkeypatch.setattr(decoding, "MOST_FRAMES", 30)
    assert reason(source).startswith("it claims 2 seconds and 40 frames: cut it")
    monkeypatch.setattr(decoding, "LARGEST_PICTURE", 48 * 64 - 1)
    assert reason(source) == "its pictures of 64x48 pixels are too large"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(codec="av1"), "codec 'av1' is not one of"),
        (dict(gop=0), "gop 0"),
        (dict(codec="mjpeg", gop=8), "mjpeg has only keyframes"),
        (dict(short_side=250), "250 is not a multiple of 16 from 16 to 4096"),
        (dict(crf=64), "crf 64 is not between 0 and 63"),
        (dict(codec="mjpeg", crf=0), "crf 0 is not between 1 and 31"),
        (dict(quality="best"), "quality 'best' is not one of small, standard, high"),
        (dict(fps=0), "fps 0 is not between 0.01 and 1000"),
        (dict(max_seconds=float("nan")), "max_seconds nan is not a positive number"),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        EncodeSettings(**arguments)


def work_or_crash(connection, settings, tells):
    """A worker whose decoder crashes in a video of this name, or hangs."""
    encode = pool.encode_video

    def encode_or_crash(video, settings, on_frame):
        while video.endswith("hang.mp4"):
            signal.pause()
        if video.endswith("crash.mp4"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return encode(video, settings, on_frame)

    pool.encode_video = encode_or_crash
    pool._work(connection, settings, tells)


@pytest.mark.process
def test_many_videos_in_processes_that_die_or_hang(tmp_path, monkeypatch):
    good, hang, crash, missing = (str(tmp_path / f"{name}.mp4") for name in ("good", "hang", "crash", "missing"))
    write_video(good, moving(4))
    start, workers = pool._Worker.start, {}

    def start_and_note(self, task, video, timeout):
        workers[video] = self.process.pid
        start(self, task, video, 0.2 if video == hang else timeout)  # seconds; what is good may take its time

    monkeypatch.setattr(pool._Worker, "start", start_and_note)
    monkeypatch.setattr(pool, "_work", work_or_crash)
    outcomes = list(encode_videos([good, crash, good, hang, missing, good], SMALL, workers=1, timeout=LIMIT))
    assert [type(outcome) for outcome in outcomes[::2]] == [EncodedClip, EncodedClip, RejectedVideo]
    assert outcomes[1].reason == "the decoder crashed (signal 11)"
    assert outcomes[3].reason.startswith(f"it took longer than {LIMIT} seconds: give it more with --timeout, or cut it")
    assert outcomes[4].reason == "the file does not exist"
    assert outcomes[0].data == outcomes[5].data == encode_video(good, SMALL).data
    assert len(set(workers.values())) == 3 and all(map(gone, workers.values()))


def test_pictures_one_after_the_other_are_a_video(tmp_path):
    """FFmpeg takes a .mjpg for a picture unless it is told."""
    from tests.videos import ffmpeg

    write_video(tmp_path / "a.mp4", moving(12, 48, 64))
    ffmpeg("-i", tmp_path / "a.mp4", "-c:v", "mjpeg", "-q:v", "2", "-f", "mjpeg", tmp_path / "a.mjpg")
    clip = encode_video(tmp_path / "a.mjpg", SMALL)
    assert (clip.frames, clip.width, clip.height) == (12, 64, 48)
