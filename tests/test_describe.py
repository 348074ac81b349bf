"""Inspect: its numbers are those that one gets by counting oneself, and it notices splits that do not fit together."""

import json
import shutil
import tarfile

import av
import matplotlib.image
import numpy as np
import pytest

from i2v.pipelines.shards import ShardSet
from i2v.shard_tools import describe as command
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.describe import bars, compare, length_edges, measure, shared_videos
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import Video
from tests.videos import moving, write_video

CLASSES = ["empty", "few", "many"]


def sharded(root, name, videos, classes=CLASSES, **settings):
    """videos: (path below root/name, class index, seed or file to copy or None, frames, fps, (height, width))"""
    listed = []
    (root / name).mkdir()
    for path, label, content, frames, fps, (height, width) in videos:
        if content is None:
            (root / name / path).write_bytes(b"not a video")
        elif isinstance(content, int):
            write_video(root / name / path, moving(frames, height, width, content), fps=fps)
        else:
            shutil.copy(root / name / content, root / name / path)
        listed.append(Video(str(root / name / path), label, classes[label] if label >= 0 else None, path))
    out = root / f"{name}-shards"
    make_shards(listed, classes, out, EncodeSettings(**{"short_side": 48} | settings), shard_clips=4)
    return out


LANDSCAPE, PORTRAIT = (48, 64), (80, 48)
TRAIN = [
    ("a.mp4", 1, 0, 5, 25, LANDSCAPE),
    ("b.mp4", 2, 1, 9, 25, LANDSCAPE),
    ("c.mp4", 2, 2, 30, 10, PORTRAIT),
    ("d.mp4", 2, 3, 31, 25, LANDSCAPE),
    ("e.mp4", -1, 4, 12, 25, LANDSCAPE),
    ("f.mp4", 2, "b.mp4", 9, 25, LANDSCAPE),
    ("broken.mp4", 2, None, 0, 0, LANDSCAPE),
]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Six clips, b and f the same, and a file that is none."""
    return sharded(tmp_path_factory.mktemp("inspect"), "train", TRAIN)


def test_numbers_equal_those_counted_in_the_tars(train):
    clips, seconds, sizes = [], [], []
    for path in sorted(train.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".mp4"):
                    with av.open(tar.extractfile(member)) as video:
                        rate = float(video.streams.video[0].average_rate)
                        count = sum(1 for _ in video.decode(video=0))
                        clips.append((count, rate, f"{video.streams.video[0].width}x{video.streams.video[0].height}"))
                    seconds.append(count / rate)
                    sizes.append(member.size)
    fact = measure(ShardSet(train), [(2, 8), (30, 1)])
    frames = [count for count, *_ in clips]
    assert (fact["clips"], fact["frames"], fact["shards"]) == (6, sum(frames), 2) == (6, 96, len(list(train.glob("*.tar"))))
    assert fact["bytes"] == sum(path.stat().st_size for path in train.glob("*.tar"))
    assert fact["hours"] == pytest.approx(sum(seconds) / 3600)
    for name, values in (("seconds", seconds), ("frames_per_clip", frames), ("bytes_per_clip", sizes)):
        spread = fact[name]
        numbers = [spread[key] for key in ("min", "median", "max", "mean")]
        assert numbers == pytest.approx([min(values), np.median(values), max(values), np.mean(values)])
    assert fact["bytes_per_second"] == pytest.approx(sum(sizes) / sum(seconds))
    assert fact["sizes"] == {"64x48": 5, "48x80": 1} and fact["fps"] == {"25": 5, "10": 1}
    assert sum(size == "48x80" for *_, size in clips) == 1 and sum(rate == 10 for _, rate, _ in clips) == 1
    assert fact["too_short"] == {"2x8": sum(n < 9 for n in frames), "30x1": sum(n < 30 for n in frames)}
    assert fact["too_short"] == {"2x8": 1, "30x1": 4}
    assert fact["clips_per_class"] == {"empty": 0, "few": 1, "many": 4} and fact["empty_classes"] == ["empty"]
    assert (fact["imbalance"], fact["unlabelled"], fact["duplicates"]) == (4, 1, 1)
    assert sum(fact["rejected"].values()) == 1


def test_the_command_shows_writes_and_draws(train, tmp_path, capsys):
    png, numbers = tmp_path / "x.png", tmp_path / "x.json"
    assert command.main([str(train), "--need", "2x8", "--png", str(png), "--json", str(numbers)]) == 0
    shown = capsys.readouterr().out
    assert "2x8: too short" in shown and "1 (16.7 %)" in shown and "64x48" in shown and "rejected, by reason" in shown
    report = json.loads(numbers.read_text())
    assert report["problems"] == [] and report["data"][0]["clips"] == 6
    picture = matplotlib.image.imread(png)
    assert picture.shape[0] > 500 and picture.shape[1] > 900 and picture[..., :3].std() > 0.05


def test_videos_in_both_splits_and_other_classes_are_reported(train, tmp_path, capsys):
    copied = train.parent / "train" / "b.mp4"
    other = [("new.mp4", 1, copied, 9, 25, LANDSCAPE), ("a.mp4", 1, 7, 9, 25, LANDSCAPE), ("g.mp4", 1, 8, 9, 25, LANDSCAPE)]
    val = sharded(tmp_path, "val", other)
    # new.mp4 is b.mp4 under another name; a.mp4 is another video of the same name, in another folder
    (problem,) = compare([ShardSet(train), ShardSet(val)])
    assert problem.startswith("1 videos") and "new.mp4" in problem
    fine = sharded(tmp_path, "fine", other[1:])
    assert compare([ShardSet(train), ShardSet(fine)]) == []
    renamed = sharded(tmp_path, "renamed", other[1:], ["empty", "few", "lots"])
    assert command.main([str(train), str(renamed)]) == 1
    assert "class 2 is 'many' and 'lots'" in capsys.readouterr().out
    # encoded otherwise: the pixels do not tell, so the path must
    (problem,) = compare([ShardSet(train), ShardSet(sharded(tmp_path, "coarse", other[1:], crf=50))])
    assert "a.mp4" in problem


def test_when_a_path_in_common_is_a_leak():
    whole, part = [("x.mp4", False)], [("x.mp4", True)]
    assert shared_videos([1], whole, [2], whole, alike=True) == []  # two videos of one name
    assert shared_videos([1], whole, [1], [("y.mp4", False)], alike=True) == ["y.mp4"]
    assert shared_videos([1], whole, [2], part, alike=True) == ["x.mp4"]
    assert shared_videos([1], whole, [2], whole, alike=False) == ["x.mp4"]
    assert shared_videos([1], [("/x.mp4", False)], [2], [("/x.mp4", False)], alike=True) == ["/x.mp4"]
    assert shared_videos([1], [("", False)], [2], [("", False)], alike=False) == []


def test_four_hundred_classes_stay_legible(train, tmp_path):
    shards = ShardSet(train)
    fact = measure(shards, [(8, 16)])
    fact["clips_per_class"] = {f"class number {i}": i for i in range(400)}
    lines = command.histograms(shards, fact).splitlines()
    assert any("class number 399" in line for line in lines) and any("class number 0 " in line for line in lines)
    assert len(lines) < 60 and max(map(len, lines)) < 120
    command.draw(tmp_path / "x.png", [shards], [fact])
    assert matplotlib.image.imread(tmp_path / "x.png").shape[1] > 900


def test_histograms_hold_every_clip():
    for seconds in (np.array([2.0]), np.array([1.0, 1.0]), np.random.default_rng(0).exponential(5, 1000)):
        assert np.histogram(seconds, length_edges(seconds))[0].sum() == len(seconds)
    assert bars("x", {}) == "" and bars("x", {"a": 0}).endswith(" 0")


def test_wrong_use_ends_with_2_and_damage_with_1(train, tmp_path, capsys):
    for arguments in ([str(tmp_path)], [str(train), "--need", "8"], [str(train), "--png", str(tmp_path)], []):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2
    assert command.main([str(train), "--png", str(tmp_path / "x.nothing")]) == 2
    (tmp_path / "manifest.json").write_text("{}")
    assert command.main([str(tmp_path)]) == 1
    assert "verify.py" in capsys.readouterr().err
