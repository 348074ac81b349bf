"""Damage of every kind, before and after sharding: told or survived, never a crash, a hang or a wrong pixel."""

import csv
import io
import multiprocessing
import re
import shutil
from concurrent.futures import ProcessPoolExecutor

import av
import numpy as np
import pytest

from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.index import FRAGMENT
from i2v.pipelines.shards import ShardSet
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings, encode_video
from i2v.shard_tools.source_video import RejectedVideo
from i2v.shard_tools.sources import Video
from tests.fuzz import REAL, damaged_sets, damaged_streams, damaged_videos
from tests.processes import LIMIT
from tests.videos import decode, ffmpeg, moving, panned, write_video

SEED = 0


@pytest.mark.process
def test_damaged_sources_are_rejected_with_a_reason_or_stored_as_they_decode(tmp_path):
    paths = damaged_videos(tmp_path / "videos", 200, SEED)
    videos = [Video(str(path), source=path.name) for path in paths]
    manifest = make_shards(videos, [], tmp_path / "out", EncodeSettings(short_side=48), workers=1, timeout=LIMIT)
    assert len(videos) >= 200 and manifest["clips"] + manifest["rejected"] == len(videos)
    with open(tmp_path / "out" / "rejected.csv", newline="") as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert len(reasons) == manifest["rejected"] and 80 < len(reasons) < 150
    for name, reason in reasons.items():
        assert reason and len(reason) < 300 and reason.isprintable() and not reason.endswith("."), (name, reason)
        assert not reason.startswith(("it cannot be encoded", "it took longer", "the decoder ")), (name, reason)
    shards = ShardSet(tmp_path / "out")
    stored = {shards.metadata(i)["source"]: i for i in range(len(shards))}
    assert stored.keys() | reasons.keys() == {video.source for video in videos} and not stored.keys() & reasons.keys()
    for name, i in stored.items():
        clip, times = shards.clips[i], shards.times(i)
        with av.open(io.BytesIO(shards.read_whole(i))) as container:
            sizes = [(frame.width, frame.height) for frame in container.decode(video=0)]
        assert sizes == [(clip["width"], clip["height"])] * clip["frames"] and min(sizes[0]) == 48, name
        assert times[0] == 0 and np.isfinite(times).all() and (np.diff(times) >= 0).all(), name
        assert times[-1] <= 3600 * len(times) and 0.0001 <= clip["fps"] <= 1000, name


# ---- real codecs -----------------------------------------------------------------------------------------------------

# What FFmpeg cannot see, as docs/data.md says. Codecs whose pictures need the one before, and are not numbered:
PREDICTED = {"mpeg4", "msmpeg4", "wmv2", "flv1", "h263", "h261", "mpeg1", "h264", "vp8", "vp9", "ffv1", "gif"}
NOT_SEEN = {("lost", codec) for codec in PREDICTED}
NOT_SEEN |= {("zeroed", "mpeg4.ts")}  # in a transport stream zeros are padding: a lost packet
NOT_SEEN |= {("half_zeroed", codec) for codec in ("h261", "ffv1", "huffyuv")} | {("zeroed", "raw"), ("half_zeroed", "raw")}
KEY_FRAMES = {12: 18, 10: 20, 1: 25}  # distance of key frames -> frames of 30 that are left where the first 5 packets are gone
ALMOST_LOSSLESS = EncodeSettings("mjpeg", short_side=96, crf=2)


@pytest.mark.parametrize("name", REAL)
def test_no_frame_of_an_accepted_video_is_wrong(name, tmp_path):
    source = ffmpeg(*REAL[name].split(), tmp_path / name, frames=panned())
    right = stored_frames(source)
    assert len(right) == 30
    (tmp_path / "damaged").mkdir()
    for damaged in damaged_streams(source, tmp_path / "damaged"):
        try:
            frames = stored_frames(damaged)
        except RejectedVideo as rejected:
            assert damaged.stem != "begun" or source.stem == "gif", rejected.reason
            assert SENTENCE.match(rejected.reason), rejected.reason
            continue
        assert not damaged.stem.startswith("cut")
        if damaged.stem == "begun":
            distance = re.search("(?:-g|keyint=) ?([0-9]+)", REAL[name])
            assert len(frames) == KEY_FRAMES[int(distance[1]) if distance else 1]
        if not {(damaged.stem, source.stem), (damaged.stem, name)} & NOT_SEEN:
            assert min(max(psnr(frame, other) for other in right) for frame in frames) > 25, damaged.stem


SENTENCE = re.compile(
    r"[0-9]+ of [0-9]+ frames (is|are) (missing|damaged|missing or damaged)( \([^()]+\))?$|"
    r"the file is (cut short|damaged)|it cannot be opened as a video|it has no key frame"
)


def stored_frames(path) -> np.ndarray:
    """(T, H, W, 3) float32"""
    return decode(io.BytesIO(encode_video(path, ALMOST_LOSSLESS).data)).astype(np.float32)


def psnr(one, other) -> float:
    return 10 * np.log10(255**2 / max(((one - other) ** 2).mean(), 1e-3))


# ---- sharded data sets -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Fifteen clips in four shards, and the pixels and labels of each, as the loader gives them."""
    folder = tmp_path_factory.mktemp("sound")
    paths = [write_video(folder / f"{i}.mp4", moving(20, seed=i)) for i in range(15)]
    videos = [Video(str(path), i % 3, "abc"[i % 3], path.name) for i, path in enumerate(paths)]
    make_shards(videos, list("abc"), folder / "set", EncodeSettings(short_side=48), shard_clips=4)
    assert len(list((folder / "set").glob("shard-*.tar"))) >= 3
    return folder / "set", load(folder / "set")


@pytest.mark.process
def test_damaged_sets_are_refused_or_their_damaged_clips_are_left_out(sound, tmp_path):
    folder, expected = sound
    assert isinstance(expected, list) and all(weight == 1 for *_, weight in expected)
    refused = quarantined = 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:  # a crash breaks it, a hang runs out of patience
        for name, damaged, damage in damaged_sets(folder, tmp_path / "damaged", 72, SEED):
            found = executor.submit(load, damaged).result(timeout=LIMIT)
            if isinstance(found, str):
                assert found.endswith(".") and "\n" not in found, (name, found)
                refused += 1
                continue
            assert len(found) == len(expected), name
            for i, (clip, right) in enumerate(zip(found, expected)):
                if clip[-1]:
                    assert clip == right, f"{name}: clip {i} has wrong pixels or a wrong label"
                else:
                    assert touches(folder, i, damage), f"{name}: clip {i} is not damaged"
                    quarantined += 1
            shutil.rmtree(damaged)
    assert refused >= 20 and quarantined >= 10


def load(folder):
    """For every clip of a set (checksum of its pixels, label, weight); or what a ShardError says."""
    try:
        loader = build_loader(folder, "val", batch_size=4, num_frames=4, size=32, device="cpu", threads=1)
        clips = {}
        for batch in loader:
            facts = zip(batch.labels.tolist(), batch.ids.tolist(), batch.weights.tolist())
            for pixels, (label, i, weight) in zip(batch.clips, facts):
                clips[i] = max(clips.get(i, (0,)), (weight, label, pixels.numpy().tobytes()))  # filling has weight 0
        return [(clips[i][2], clips[i][1], clips[i][0]) if clips[i][0] else (None, None, 0.0) for i in sorted(clips)]
    except ShardError as error:
        return str(error)


def touches(folder, i, damage) -> bool:
    """Is a damaged byte, (file name, first, end), in clip i or in what the index says of its frames?"""
    shards = ShardSet(folder)
    clip, (index,) = shards.clips[i], folder.glob("fragments*.npy")
    records = index.stat().st_size - len(shards.fragments) * FRAGMENT.itemsize  # where they begin in the file
    offset, record = int(clip["offset"]), records + int(clip["first_fragment"]) * FRAGMENT.itemsize
    places = {
        shards.manifest["shards"][int(clip["shard"])]["name"]: (offset, offset + len(shards.read_whole(i))),
        index.name: (record, record + int(clip["frames"]) * FRAGMENT.itemsize),
    }
    return any(file in places and start < places[file][1] and places[file][0] < end for file, start, end in damage)
