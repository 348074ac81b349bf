"""A window that slides over films and live streams: the answers of the stored video, as they come, and nothing is held."""

import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import closing, contextmanager
from fractions import Fraction
from itertools import count

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import i2v
import i2v.predict as program
from i2v import annotate
from i2v.annotate import burn_in
from i2v.checkpoint import Backbone, Meta, save_checkpoint
from i2v.model import create_model
from i2v.pipelines import build_loader
from i2v.pipelines.memory import ClipsInMemory
from i2v.pipelines.options import ClipOptions
from i2v.pipelines.plan import Plan
from i2v.pipelines.sliding import Sliding
from i2v.predictor import watch
from i2v.session import INCLUDED, Session, own_tensors
from i2v.shard_tools import live
from i2v.shard_tools.encode import EncodeSettings, encode_video, true_rate
from i2v.shard_tools.source_video import RejectedVideo
from i2v.watch import Answer, Answers
from tests.processes import ENVIRONMENT, LIMIT, call
from tests.reference import ffmpeg
from tests.rtsp import served
from tests.videos import panned, write_video

GEOMETRY = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "heads": 2, "embed_dim": 16}
CLASSES = ["left", "right", "up"]
FRAMES, WINDOW, HOP = 120, 1.0, 0.5  # at 25 per second: windows begin at 0, 0.5, ... 4.0
STARTS = [0.5 * k for k in range(9)]


def a_session(codec="vp9", clips=None, method="clip", backbone=GEOMETRY):
    torch.manual_seed(0)
    model = create_model(method, backbone, 4, len(CLASSES)).eval()
    torch.nn.init.normal_(model.head.fc.weight)
    backbone = Backbone(backbone, INCLUDED, None)
    return Session(model, Meta(model.config, backbone, CLASSES, stored={"codec": codec, "short_side": 48}, clips=clips or {}))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", panned(FRAMES, 48, 64))


def rewritten(video, form, **options) -> bytes:
    """The same packets in another container."""
    out = io.BytesIO()
    with av.open(str(video)) as source, av.open(out, "w", format=form, options=options) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    return out.getvalue()


def in_fragments(video) -> bytes:
    """As an mp4 that can be looked at while it is written."""
    return rewritten(video, "mp4", movflags="frag_every_frame+empty_moov+default_base_moof")


@pytest.fixture(scope="module")
def transport(film):
    """The film as it comes out of a pipe or the network."""
    return rewritten(film, "mpegts")


def from_input(monkeypatch, data: bytes | io.RawIOBase):
    raw = io.BytesIO(data) if isinstance(data, bytes) else data
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(raw)))


def all_of(session, place, window=WINDOW, hop=HOP, **how):
    answers = Answers(session, str(place), window, hop, **how)
    with closing(answers):
        return list(answers)


@pytest.mark.parametrize("place", ["film", "-"])
def test_frames_are_seconds_of_the_video(film, transport, monkeypatch, place):
    """The film has 25 of them in a second."""
    answers = []
    for window, hop in ((1.0, 0.4), ("25f", "10f")):
        from_input(monkeypatch, transport)
        with closing(Answers(a_session(), place if place == "-" else str(film), window, hop)) as found:
            answers.append(list(found))
    same(*answers)
    assert len(answers[0]) == 11


def same(one, other):
    assert [a.start for a in one] == pytest.approx([a.start for a in other])
    assert [a.end for a in one] == pytest.approx([a.end for a in other], abs=1e-3)  # some clocks are coarse
    assert torch.allclose(*(torch.stack([a.probabilities for a in each]) for each in (one, other)), atol=1e-6)


# ---- which frames ------------------------------------------------------------------------------------------------------


@given(
    steps=st.lists(st.sampled_from([0.01, 0.04, 0.1, 0.5, 3.0]), max_size=60),
    window=st.sampled_from([0.1, 0.4, 1.0, 7.0]),
    hop=st.sampled_from([0.05, 0.4, 1.0, 5.0]),
    t=st.integers(1, 8),
)
def test_the_frames_are_those_of_the_plan(steps, window, hop, t):
    times = np.float32(np.concatenate([[0], np.cumsum(steps)]))
    n, fps = len(times), np.float32(true_rate(len(times), float(times[-1]), 25.0))
    options = ClipOptions(num_frames=t, window=window, hop=hop)
    plan = Plan([n], [64], [48], [fps], options, "windows", times=lambda sample: times)
    sliding = Sliding(t, window, hop, lambda frame: frame)
    found = [made for frame, time in enumerate(times) for made in sliding.push(float(time) + 40.0, frame)]
    found += sliding.finish(lambda frames, last: true_rate(frames, last, 25.0))
    assert len(found) == len(plan)
    for position, made in enumerate(found):
        assert made.pictures == plan[position].frames.tolist()
        start, end = plan.window(position)
        assert (made.start, made.end) == (start, min(end, n / float(fps)))


def test_what_is_held_does_not_grow_and_only_what_is_wanted_is_made():
    most = {}
    for length in (200, 20_000):
        made = count()
        sliding = Sliding(4, 1.0, 0.5, lambda frame: (next(made), frame))
        held = windows = 0
        for frame in range(length):
            windows += len(list(sliding.push(frame / 25, frame)))
            held = max(held, sliding.held)
        most[length] = held
        assert next(made) <= 4 * (windows + 2) < length
    assert most[20_000] == most[200] <= 8  # of two windows that overlap


# ---- what the model sees -----------------------------------------------------------------------------------------------


def by_the_loader(session, video, stored, window, hop):
    """(starts, ends, probabilities) of the windows of a video that is stored, in the file `stored`, and loaded."""
    settings = EncodeSettings(codec=session.meta.stored["codec"], short_side=48)
    clip = encode_video(video, settings)
    stored.write_bytes(clip.data)
    clips = ClipsInMemory([clip], ["film"], settings.codec, settings.gop)
    loader = build_loader(clips, batch_size=3, **session.views((), window, hop))
    with torch.no_grad():
        found = torch.cat([session.model(batch.clips).softmax(-1) for batch in loader])[: len(loader.plan)]
    starts, ends = zip(*map(loader.plan.window, range(len(loader.plan))))
    return starts, np.minimum(ends, clips.clips["frames"][0] / clips.clips["fps"][0]), found


@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc", "mjpeg"])
def test_a_stored_video_is_answered_as_by_the_loader(film, tmp_path, codec):
    """The same pixels, whatever the codec, with a window's crop and resize as the run's evaluation has them."""
    session = a_session(codec, {"test_short_side": 40, "interpolation": "linear", "antialias": False})
    starts, _, expected = by_the_loader(session, film, tmp_path / "stored.mp4", WINDOW, HOP)
    found = all_of(session, tmp_path / "stored.mp4", at_once=3)
    assert [answer.start for answer in found] == pytest.approx(STARTS) == list(starts)
    assert torch.allclose(torch.stack([answer.probabilities for answer in found]), expected, atol=1e-6)


@pytest.mark.parametrize("short_side", [None, 80])
def test_windows_are_seen_at_the_size_of_the_runs_evaluation(film, tmp_path, short_side):
    """A convolutional trunk is tested on larger pictures than it was trained on: one that slides is no exception."""
    clips = {"test_size": 64, "test_short_side": short_side}
    session = a_session("mjpeg", clips, "tadaconvnext", {"image_size": 32, "depths": [1] * 4, "dims": [8, 16, 32, 64]})
    _, _, expected = by_the_loader(session, film, tmp_path / "stored.mp4", WINDOW, HOP)
    found = all_of(session, tmp_path / "stored.mp4")
    assert torch.allclose(torch.stack([answer.probabilities for answer in found]), expected, atol=1e-6)


@pytest.mark.parametrize(
    "window, hop, clips",
    [
        ("25f", "10f", {}),
        ("25f", None, {}),
        (0.9, "7f", {}),
        ("12f", "5f", {"fps": 12.5}),
        ("8f", 0.5, {"window": "64f", "hop": "8f"}),
    ],
)
@pytest.mark.parametrize("fps", [25, Fraction(30000, 1001)])
def test_windows_in_frames_are_the_loaders(tmp_path, fps, window, hop, clips):
    """Frames of the video, or at the rate that the run's clips have."""
    video = write_video(tmp_path / "film.mp4", panned(70, 48, 64), fps=fps)
    session = a_session("mjpeg", clips)
    starts, ends, expected = by_the_loader(session, video, tmp_path / "stored.mp4", window, hop)
    found = all_of(session, tmp_path / "stored.mp4", window, hop)
    assert [answer.start for answer in found] == list(starts) and len(found) > 1
    assert [answer.end for answer in found] == pytest.approx(list(ends), abs=1e-9)
    assert torch.allclose(torch.stack([answer.probabilities for answer in found]), expected, atol=1e-6)


def test_a_turned_video_is_seen_upright(film, tmp_path):
    turned = write_video(tmp_path / "turned.mp4", np.rot90(panned(FRAMES, 48, 64), axes=(1, 2)))
    data = bytearray(turned.read_bytes())
    identity = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    quarter = b"".join((n % 2**32).to_bytes(4, "big") for n in (0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30))
    at = data.rfind(identity)
    data[at : at + 36] = quarter
    turned.write_bytes(data)
    upright, found = all_of(a_session(), film), all_of(a_session(), turned)
    difference = torch.stack([a.probabilities for a in upright]) - torch.stack([a.probabilities for a in found])
    assert difference.abs().max() < 0.02  # two encodings


# ---- streams -----------------------------------------------------------------------------------------------------------


def test_standard_input_has_the_answers_of_the_file(film, transport, monkeypatch):
    from_input(monkeypatch, transport)
    found = all_of(a_session(), "-")
    same(found, all_of(a_session(), film))
    assert all(answer.latency > 0 and answer.dropped == 0 for answer in found)


def test_an_address_has_the_answers_of_the_file(film, transport):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def send():
            connection, _ = server.accept()
            with connection:
                connection.sendall(transport)

        sender = threading.Thread(target=send)
        sender.start()
        found = all_of(a_session(), f"tcp://127.0.0.1:{server.getsockname()[1]}")
        sender.join()
    same(found, all_of(a_session(), film))


def test_rtsp_has_the_answers_of_the_file(film, transport):
    with served(transport) as address:
        found = all_of(a_session(), address)
    same(found, all_of(a_session(), film))


class Halves(io.RawIOBase):
    """One half of the data at once, the other as soon as it may come."""

    def __init__(self, data: bytes, may_come: threading.Event):
        self.parts, self.may_come = [io.BytesIO(data[: len(data) // 2]), io.BytesIO(data[len(data) // 2 :])], may_come

    def readable(self):
        return True

    def readinto(self, buffer):
        first, second = self.parts
        return first.readinto(buffer) or (self.may_come.wait(LIMIT) and second.readinto(buffer))


class Held(torch.nn.Module):
    """A model that waits, on the first clip, until it is let go."""

    def __init__(self, model):
        super().__init__()
        self.model, self.num_frames, self.spec = model, model.num_frames, model.spec
        self.asked, self.free = threading.Event(), threading.Event()

    def forward(self, clips):
        self.asked.set()
        assert self.free.wait(LIMIT)
        return self.model(clips)


@pytest.mark.process
def test_a_slow_model_drops_what_is_live_and_says_how_much(film, monkeypatch):
    """The rest of the stream comes while the model looks at a window: the newest is next, those between are dropped."""
    session = a_session()
    session.model = held = Held(session.model)
    from_input(monkeypatch, Halves(in_fragments(film), held.asked))
    with closing(Answers(session, "-", WINDOW, HOP, drops=True)) as answers:
        found = []
        looking = threading.Thread(target=lambda: found.extend(answers))
        looking.start()
        assert held.asked.wait(LIMIT)
        answers._thread.join(LIMIT)
        held.free.set()
        looking.join(LIMIT)
    _, last = found
    assert last.start == STARTS[-1] and last.dropped > 0
    assert sum(answer.dropped for answer in found) + len(found) == len(STARTS)


@pytest.mark.process
def test_a_slow_model_makes_a_film_wait(film, monkeypatch):
    most = []  # that waited at a time

    class Waiting(deque):
        def append(self, window):
            super().append(window)
            most.append(len(self))

    monkeypatch.setattr("i2v.watch.deque", Waiting)
    session = a_session()
    session.model = held = Held(session.model)
    with closing(Answers(session, str(film), WINDOW, HOP, at_once=2)) as answers:
        found = []
        looking = threading.Thread(target=lambda: found.extend(answers))
        looking.start()
        assert held.asked.wait(LIMIT)
        with answers._changed:
            assert answers._changed.wait_for(lambda: len(answers._waiting) >= 2, LIMIT)
        held.free.set()
        looking.join(LIMIT)
    assert [answer.start for answer in found] == pytest.approx(STARTS) and not any(answer.dropped for answer in found)
    assert max(most) == 2


def test_a_film_that_nobody_wants_any_more_is_left(film):
    with closing(watch(a_session(), [str(film), str(film)], WINDOW, HOP, ahead=1)) as watched:
        _, answers = next(watched)
        next(iter(answers))
    assert not any(thread.name == "windows" for thread in threading.enumerate())


@pytest.mark.parametrize("ahead", [0, 2])
def test_videos_come_in_order_however_many_are_read_ahead(film, tmp_path, ahead):
    short = write_video(tmp_path / "short.mp4", panned(10, 48, 64))
    (tmp_path / "none.mp4").write_text("no video" * 9)
    places, found = [str(film), str(tmp_path / "none.mp4"), str(short)], {}
    for place, answers in watch(a_session(), places, WINDOW, HOP, ahead):
        try:
            found[place] = [answer.start for answer in answers]
        except RejectedVideo as rejected:
            found[place] = rejected.reason
    assert list(found) == places and found[places[0]] == pytest.approx(STARTS) and found[places[2]] == [0.0]
    assert "cannot be opened as a video" in found[places[1]]


def test_damage_ends_a_file_and_not_a_stream(film, monkeypatch, tmp_path):
    broken = bytearray(in_fragments(film))
    at = broken.find(b"mdat", len(broken) // 2) - 4
    end = at + int.from_bytes(broken[at : at + 4], "big")
    broken[at + 8 : end] = b"\xff" * (end - at - 8)
    (tmp_path / "broken.mp4").write_bytes(broken)
    found = []
    with closing(Answers(a_session(), str(tmp_path / "broken.mp4"), WINDOW, HOP)) as answers:
        with pytest.raises(RejectedVideo, match="of 120 frames .* damaged"):
            found.extend(answers)
    assert 0 < len(found) < len(STARTS)
    from_input(monkeypatch, bytes(broken))
    with closing(Answers(a_session(), "-", WINDOW, HOP)) as answers:
        assert [answer.start for answer in answers] == pytest.approx(STARTS)
        assert answers.damaged > 0


@pytest.mark.parametrize(
    "data, told",
    [
        (b"", "cannot be opened as a stream"),
        (b"no video" * 99, "cannot be opened as a stream .*an mp4 must be a fragmented one, or a file"),
    ],
)
def test_what_is_no_stream_is_one_sentence(monkeypatch, data, told):
    from_input(monkeypatch, data)
    with pytest.raises(RejectedVideo, match=told):
        all_of(a_session(), "-")


def test_a_device_that_is_no_camera_and_an_address_where_nobody_is(tmp_path):
    with pytest.raises(RejectedVideo, match="cannot be opened as a stream .Inappropriate ioctl"):
        all_of(a_session(), "/dev/null")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(RejectedVideo, match="cannot be opened as a stream .Connection refused"):
        all_of(a_session(), f"rtsp://127.0.0.1:{port}/1")


def test_a_playlist_from_a_stream_opens_no_file(film, monkeypatch):
    from_input(monkeypatch, f"#EXTM3U\n#EXTINF:4,\nfile://{film}\n#EXT-X-ENDLIST\n".encode())
    with pytest.raises(RejectedVideo):
        all_of(a_session(), "-")


def test_an_address_that_falls_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(live, "SILENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(RejectedVideo, match="nothing came for 0.1 seconds"):
            all_of(a_session(), f"tcp://127.0.0.1:{server.getsockname()[1]}")


# ---- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    session, path = a_session(), tmp_path_factory.mktemp("run") / "best.safetensors"
    save_checkpoint(path, own_tensors(session.model, session.meta.backbone), session.meta)
    return path


def predicted(monkeypatch, checkpoint, *arguments):
    call(monkeypatch, program, "--checkpoint", checkpoint, "--device", "cpu", *arguments)


def test_json_lines_of_a_stream(checkpoint, film, transport, monkeypatch, capsys, tmp_path):
    from_input(monkeypatch, transport)
    slid = ("--window", WINDOW, "--hop", HOP, "--top", 2)
    predicted(monkeypatch, checkpoint, "-", *slid, "--jsonl", "-", "--json", tmp_path / "all.json")
    said, about = capsys.readouterr()
    found = [json.loads(line) for line in said.splitlines()]
    assert [one["start"] for one in found] == pytest.approx(STARTS) and {one["video"] for one in found} == {"-"}
    assert all(one["latency"] > 0 and one["dropped"] == 0 and len(one["top"]) == 2 for one in found)
    assert about.startswith("-: 9 answers, ") and "dropped" not in about
    (whole,) = json.loads((tmp_path / "all.json").read_text())
    assert whole == {"video": "-", "windows": [{k: v for k, v in one.items() if k != "video"} for one in found]}

    predicted(monkeypatch, checkpoint, film, *slid, "--jsonl", tmp_path / "film.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "film.jsonl").read_text().splitlines()]
    assert [one["top"][0]["class"] for one in lines] == [one["top"][0]["class"] for one in found]
    assert all(one.keys() == {"video", "start", "end", "top"} for one in lines)
    assert capsys.readouterr().out.count(" to ") == len(STARTS)


def test_a_broken_film_has_its_answers_and_then_why(checkpoint, film, monkeypatch, capsys, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(rewritten(film, "mpegts")[: 188 * 60])
    (tmp_path / "none.mp4").write_text("no video" * 9)
    with pytest.raises(SystemExit, match="1 of 2 videos could not be read"):
        predicted(monkeypatch, checkpoint, tmp_path / "none.mp4", film, "--window", 2, "--jsonl", "-")
    first, *windows = map(json.loads, capsys.readouterr().out.splitlines())
    assert first.keys() == {"video", "error"} and [one["start"] for one in windows] == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["-"], "- is a stream: say with --window how many seconds an answer is about"),
        (["-", "rtsp://here/1", "--window", 1], "- is a stream and may have no end: give it alone"),
        (["-", "--list", "--window", 1], "standard input cannot be both a video .-. and a list of them"),
        (["FILM", "--live", "--window", 1], "--live is for standard input"),
        (["-", "--window", 1, "--annotate", "x.mp4"], "--annotate copies one video file: there is a stream"),
        (["FILM", "FOLDER", "--annotate", "x.mp4"], "--annotate copies one video file: there are 2"),
        (["FILM", "--annotate", "x.avi"], "--annotate x.avi: give a name that ends in .mp4"),
        (["FILM", "--window", 0], "window is 0.0: it must be"),
        (["FILM", "--jsonl", "none/x.jsonl"], "none does not exist: --jsonl needs a folder that does"),
        (["FILM", "--jsonl", "."], "--jsonl is the folder .: give the name of a file"),
        (["COPY", "--window", 1, "--annotate", "copy.mp4"], "--annotate copy.mp4 is the video itself, which would be lost"),
        (["COPY", "--window", 1, "--annotate", "link.mp4"], "--annotate link.mp4 is the video itself"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(checkpoint, film, monkeypatch, tmp_path, arguments, told):
    write_video(tmp_path / "other.mp4", panned(4, 48, 64))
    monkeypatch.chdir(tmp_path)
    from_input(monkeypatch, b"")
    copy, places = tmp_path / "copy.mp4", {"FILM": film, "FOLDER": tmp_path}
    if "COPY" in arguments:
        shutil.copy(film, copy), (tmp_path / "link.mp4").symlink_to(copy)
        places["COPY"] = copy
    with pytest.raises(SystemExit, match=told):
        predicted(monkeypatch, checkpoint, *(places.get(one, one) for one in arguments))
    assert not copy.exists() or copy.read_bytes() == film.read_bytes()


def test_a_program_of_ones_own(checkpoint, film, transport, monkeypatch):
    predictor = i2v.load(checkpoint, device="cpu")
    from_input(monkeypatch, transport)
    live = predictor.watch("-", WINDOW, HOP, top=1)
    assert next(live).keys() == {"start", "end", "top", "latency", "dropped"} and len(list(live)) == len(STARTS) - 1
    assert [one["start"] for one in predictor.predict(film, window=WINDOW, hop=HOP)] == pytest.approx(STARTS)


@contextmanager
def half_of_it_sent(checkpoint, film):
    """(i2v.predict, to which half of a film was sent and that has given an answer; that answer; the other half)"""
    data = in_fragments(film)
    command = [sys.executable, "-m", "i2v.predict", "--checkpoint", checkpoint, "-", "--window", "1", "--jsonl", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # unbuffered: what readline had read ahead of its line, communicate would not see
    with subprocess.Popen(command, env=ENVIRONMENT, bufsize=0, **pipes) as running:
        running.stdin.write(data[: len(data) // 2])
        yield running, json.loads(running.stdout.readline()), data[len(data) // 2 :]


@pytest.mark.process
def test_an_answer_comes_before_the_stream_ends(checkpoint, film):
    with half_of_it_sent(checkpoint, film) as (running, first, others):
        rest, about = running.communicate(others, LIMIT)
    assert running.returncode == 0, about
    assert [first["start"], *(json.loads(line)["start"] for line in rest.splitlines())] == [0.0, 1.0, 2.0, 3.0, 4.0]


@pytest.mark.process
def test_a_stream_without_an_end_is_interrupted(checkpoint, film):
    with half_of_it_sent(checkpoint, film) as (running, _, _):
        running.send_signal(signal.SIGINT)
        code, about = running.wait(LIMIT), running.stderr.read().decode()
    assert code == 130, about
    assert "-: " in about and " answers, " in about and "interrupted" in about and "Traceback" not in about


# ---- a copy with the answers in it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_sound(film, tmp_path_factory):
    """The film with a tone, and with frames that come at no constant rate."""
    path = tmp_path_factory.mktemp("sound") / "film.mkv"
    tone = ["-f", "lavfi", "-t", "4.8", "-i", "sine=440"]
    ffmpeg("-i", film, *tone, "-map", "0", "-map", "1", "-c:v", "libx264", "-r", "30000/1001", "-c:a", "aac", path)
    return path


def decoded(path):
    with av.open(str(path)) as container:
        begin = container.start_time / av.time_base
        return [(frame.time - begin, frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]


def packets_of_sound(path):
    with av.open(str(path)) as container:
        begin = container.start_time / av.time_base
        found = [packet for packet in container.demux(audio=0) if packet.size]
        return [bytes(packet) for packet in found], [float(packet.pts * packet.time_base) - begin for packet in found]


def test_the_copy_has_the_frames_at_their_times_and_the_sound(checkpoint, with_sound, monkeypatch, tmp_path, capsys):
    out = tmp_path / "named.mp4"
    predicted(monkeypatch, checkpoint, with_sound, "--window", WINDOW, "--hop", HOP, "--annotate", out)
    answers = capsys.readouterr().out.count(" to ")
    (there, copied), (sound, when) = (decoded(path) for path in (with_sound, out)), packets_of_sound(with_sound)
    assert answers == len(STARTS) and len(copied) == len(there)
    assert [time for time, _ in copied] == pytest.approx([time for time, _ in there], abs=2e-3)  # Matroska's clock
    again, at = packets_of_sound(out)
    assert again == sound and at == pytest.approx(when, abs=2e-3)
    with av.open(str(out)) as one, av.open(str(with_sound)) as other:
        assert one.streams.video[0].average_rate == pytest.approx(other.streams.video[0].average_rate, rel=1e-3)
    assert list(tmp_path.iterdir()) == [out]


def test_only_the_panel_is_drawn_and_bars_are_as_long_as_probabilities():
    plain = av.VideoFrame(640, 480, "yuv420p")
    for plane, value in zip(plain.planes, (120, 60, 200)):
        plane.update(bytes([value]) * plane.buffer_size)
    drawn = av.VideoFrame.from_ndarray(plain.to_ndarray(), "yuv420p")
    burn_in(drawn, (("left", 0.75), ("right", 0.25), ("up", 0.0)))
    changed = (drawn.to_ndarray() != plain.to_ndarray())[:480]
    rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
    assert rows.max() < 480 // 2 and columns.max() + 1 == 400 and not changed[rows.max() + 1 :].any()
    chroma = drawn.to_ndarray()[480 : 480 + 120].reshape(240, 320)  # of the bars it is another one than of the ground
    lengths = []
    for row in range(3):
        line = chroma[30 * row // 2 + 1]
        lengths.append(int((line[:200] != line[199]).sum()))
    assert lengths == pytest.approx([150, 50, 0], abs=1)


def test_the_copy_waits_for_answers_and_answers_for_the_copy(film, monkeypatch, tmp_path):
    """Neither is held: when a picture is drawn, no more answers were taken than it and the next one need."""
    taken, drawings = [], []

    def answers():
        for start in STARTS:
            taken.append(start)
            yield Answer(start, start + WINDOW, torch.tensor([1.0, 0.0, 0.0]))

    def lines(answer):
        drawings.append((answer.start, len(taken)))
        return (("left", 1.0),)

    passed = list(annotate.annotated(str(film), tmp_path / "copy.mp4", answers(), lines))
    assert [answer.start for answer in passed] == STARTS and len(drawings) == FRAMES
    for frame, (start, known) in enumerate(drawings):
        assert abs(start + WINDOW / 2 - frame / 25) <= HOP / 2 or start in (STARTS[0], STARTS[-1])
        assert known <= STARTS.index(start) + 2


def test_a_damaged_video_has_no_copy(checkpoint, film, monkeypatch, tmp_path):
    broken = tmp_path / "broken.mp4"
    data = bytearray(film.read_bytes())
    broken.write_bytes(data[: len(data) // 2])
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="1 of 1 videos could not be read"):
        predicted(monkeypatch, checkpoint, broken, "--window", 1, "--annotate", tmp_path / "out" / "copy.mp4")
    assert not list((tmp_path / "out").iterdir())


def test_a_whole_video_has_one_answer_in_its_copy(checkpoint, film, monkeypatch, tmp_path):
    predicted(monkeypatch, checkpoint, film, "--annotate", tmp_path / "copy.mp4")
    assert len(decoded(tmp_path / "copy.mp4")) == FRAMES


def test_sound_that_an_mp4_does_not_hold_is_left_out(checkpoint, film, monkeypatch, tmp_path, capsys):
    tone = ["-f", "lavfi", "-t", "1", "-i", "sine=440", "-c:v", "copy", "-c:a", "wmav2"]
    ffmpeg("-i", film, *tone, tmp_path / "odd.mkv")
    predicted(monkeypatch, checkpoint, tmp_path / "odd.mkv", "--annotate", tmp_path / "copy.mp4")
    assert "its sound is not copied: an mp4 does not hold wmav2" in capsys.readouterr().err
    with av.open(str(tmp_path / "copy.mp4")) as copy:
        assert not copy.streams.audio and copy.streams.video
