"""Times that we give are those that a player shows: of a video that begins later than its sound, too."""

from contextlib import closing

import pytest
import torch

from i2v import predictor
from i2v.checkpoint import Backbone, Meta
from i2v.extraction import spans
from i2v.model import create_model
from i2v.pipelines import build_loader
from i2v.pipelines.shards import ShardSet
from i2v.session import Session
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import Video
from tests.reference import ffmpeg
from tests.videos import moving, write_video

LATER = 0.68  # seconds
GEOMETRY = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "heads": 2, "embed_dim": 16}


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    write_video(folder / "video.mp4", moving(50))
    sound = ["-f", "lavfi", "-t", "2", "-i", "sine=440", "-map", "0", "-map", "1"]
    ffmpeg("-itsoffset", LATER, "-i", folder / "video.mp4", *sound, "-c:v", "copy", "-c:a", "flac", folder / "late.mkv")
    return folder


def test_what_is_stored_says_when_it_begins(late, tmp_path):
    parts = [(0.0, None), (0.5, 1.0), (1.0, 1.5), (1.6, 1.61)]
    videos = [Video(str(late / "late.mkv"), source="a", start=start, end=end) for start, end in parts]
    videos.append(Video(str(late / "video.mp4"), source="b"))
    make_shards(videos, [], tmp_path, EncodeSettings(short_side=48))
    shards, begins = ShardSet(tmp_path), {}
    for clip in range(5):
        facts = shards.metadata(clip)
        begins[facts["source"], facts["start"]] = shards.begin(clip)
        assert ("begin" in facts) == (shards.begin(clip) != facts["start"])
    expected = {("a", 0.0): LATER, ("a", 0.5): LATER, ("a", 1.0): 1.0, ("a", 1.6): 1.6, ("b", 0.0): 0.0}
    assert begins == pytest.approx(expected, abs=1e-6)
    common = {"num_frames": 2, "size": 32, "batch_size": 4, "device": "cpu"}
    windows = build_loader(tmp_path, "windows", window=0.3, hop=0.3, **common)
    for loader in (windows, build_loader(tmp_path, "test", clips=2, **common)):
        found = {clip: [] for clip in range(5)}
        for batch in loader:
            samples = zip(batch.positions.tolist(), batch.ids.tolist(), batch.weights.tolist(), batch.frames.numpy())
            for position, clip, weight, frames in samples:
                found[clip] += spans(loader.plan, shards, clip, position, frames).tolist() if weight else []
        for clip, rows in found.items():
            begin, length = shards.begin(clip), float(shards.clips["frames"][clip] / shards.clips["fps"][clip])
            assert rows and begin - 1e-6 <= min(rows)[0] and max(end for _, end in rows) <= begin + length + 1e-3
            if loader is windows:
                assert [start for start, _ in rows] == pytest.approx([begin + 0.3 * i for i in range(len(rows))], abs=1e-6)


@pytest.fixture(scope="module")
def session():
    torch.manual_seed(0)
    model = create_model("clip", GEOMETRY, 2, 3).eval()
    stored = {"codec": "h264", "gop": 8, "short_side": 48, "max_seconds": 0.5}  # of which VP9 is made
    return Session(model, Meta(model.config, Backbone("", "", None), [], stored=stored))


def test_predictions_say_what_happens_when_a_player_shows_it(late, session):
    """To the end of the video, although training saw less of it."""
    for video, begin in ((late / "late.mkv", LATER), (late / "video.mp4", 0.0)):
        ((_, whole),) = predictor.predict(session, [video])
        assert (whole.start, whole.end) == pytest.approx((begin, begin + 0.5), abs=0.05)  # as much as training saw
        with closing(predictor.watch(session, [str(video)], window=1.0)) as watched:
            times = [(answer.start, answer.end) for _, answers in watched for answer in answers]
        assert times == [pytest.approx((begin, begin + 1), abs=1e-6), pytest.approx((begin + 1, begin + 2), abs=1e-6)]


@pytest.mark.parametrize("limit, value, rounds", [("AT_ONCE", 2, [2, 1]), ("BYTES_AT_ONCE", 1, [1, 2])])
def test_rounds_are_of_a_few_videos_and_change_nothing(late, session, tmp_path, monkeypatch, limit, value, rounds):
    (tmp_path / "none.mp4").write_text("no video" * 9)
    videos, made, look_at = [late / "late.mkv", tmp_path / "none.mp4", late / "video.mp4"], [], predictor.look_at
    whole = list(predictor.predict(session, videos))
    monkeypatch.setattr(predictor, limit, value)
    monkeypatch.setattr(predictor, "look_at", lambda *given: made.append(len(given[1])) or look_at(*given))
    found = list(predictor.predict(session, videos))
    assert [name for name, _ in found] == [name for name, _ in whole] == list(map(str, videos))
    assert found[1][1] == whole[1][1] and "cannot be opened as a video" in found[1][1]
    for (_, one), (_, other) in zip(found[::2], whole[::2]):
        assert torch.allclose(one.probabilities, other.probabilities, atol=1e-6)
        assert one.end - one.start == other.end - other.start == pytest.approx(0.5, abs=0.05)
    assert [size for size in made if size] == rounds
