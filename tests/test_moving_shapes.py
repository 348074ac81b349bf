"""The demo's videos: frames without their place in time must not tell a class from its pair."""

import av
import numpy as np
import pytest

from benchmarks.moving_shapes import (
    CLASSES,
    STILL_POSES,
    draw_poses,
    render_clip,
    render_stills,
    write_speeds,
    write_video,
    write_videos,
)

PAIRS = list(zip(CLASSES[::2], CLASSES[1::2], strict=True))
CLIPS, FRAMES = 400, 16


def poses_of(name, first_seed=0):
    """(CLIPS, FRAMES, 4), from other seeds than another class's when first_seed differs."""
    return np.stack([draw_poses(np.random.default_rng(first_seed + i), name, FRAMES) for i in range(CLIPS)])


@pytest.mark.parametrize("forth, back", PAIRS)
def test_a_pair_is_the_same_clip_backwards(forth, back):
    poses = draw_poses(np.random.default_rng(7), forth, FRAMES)
    np.testing.assert_array_equal(draw_poses(np.random.default_rng(7), back, FRAMES), poses[::-1])


@pytest.mark.parametrize("name", CLASSES)
def test_each_property_takes_the_same_values_in_every_class(name):
    expected = np.sort(draw_poses(np.random.default_rng(7), "right", FRAMES), axis=0)
    np.testing.assert_allclose(np.sort(draw_poses(np.random.default_rng(7), name, FRAMES), axis=0), expected)


def test_a_pose_at_random_has_the_same_distribution_in_every_class():
    """Each class has its own clips here. Not so for a frame of known index: what moves right starts on the left."""
    moment = np.random.default_rng(0).integers(FRAMES, size=(len(CLASSES), CLIPS))
    poses = np.stack([poses_of(n, 1000 * i)[np.arange(CLIPS), moment[i]] for i, n in enumerate(CLASSES)])
    for statistic in (poses, (poses - poses.mean((0, 1))) ** 2):  # means, then variances
        error = statistic.std((0, 1)) / CLIPS**0.5
        assert (np.abs(statistic.mean(1) - statistic.mean((0, 1))) < 4 * error).all()


def test_pictures_of_all_classes_look_the_same():
    """Statistics of a frame drawn at random: brightness, spread, and where the light is, do not tell the class."""
    features = []
    for label, name in enumerate(CLASSES):
        clips = [render_clip([label, i], name, FRAMES, (16, 16)) for i in range(100)]
        moments = np.random.default_rng(label).integers(FRAMES, size=len(clips))
        shown = np.stack([clip[moment] for clip, moment in zip(clips, moments, strict=True)]) / 255
        light = shown.mean(-1)
        x = (light * np.arange(16)).sum((1, 2)) / light.sum((1, 2))
        y = (light * np.arange(16)[:, None]).sum((1, 2)) / light.sum((1, 2))
        features.append(np.stack([light.mean((1, 2)), light.std((1, 2)), x, y], 1))
    features = np.stack(features)  # (classes, clips, statistics)
    error = features.std((0, 1)) / features.shape[1] ** 0.5
    assert (np.abs(features.mean(1) - features.mean((0, 1))) < 4 * error).all()


@pytest.mark.parametrize("label, name", list(enumerate(CLASSES)))
def test_only_the_class_goes_from_end_to_end(label, name):
    poses = poses_of(name)
    ends, span = poses[:, -1] - poses[:, 0], np.ptp(poses, axis=1)
    steady, sign = label // 2, 1 - 2 * (label % 2)
    np.testing.assert_allclose(ends[:, steady], sign * span[:, steady])
    others = np.delete(ends / span, steady, axis=1)
    assert np.abs(others).max() < 0.2 and np.abs(others.mean()) < 0.02


def test_the_same_seed_gives_the_same_pixels():
    first, again, other = (render_clip(seed, "left", 4, (16, 24)) for seed in (3, 3, 4))
    assert first.shape == (4, 16, 24, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_stills_cover_the_poses_of_the_videos():
    images, poses, kind = render_stills(np.random.default_rng(0), 8, (16, 16))
    assert images.shape == (8, 16, 16, 3) and poses.shape == (8, 4) and isinstance(kind, int)
    videos = np.concatenate([poses_of(name).reshape(-1, 4) for name in CLASSES])
    low, high = np.array(STILL_POSES)
    assert (videos.min(0) > low).all() and (videos.max(0) < high).all()


def test_written_videos_decode_to_what_was_drawn(tmp_path):
    paths = write_videos(tmp_path, 1, frames=6, size=(32, 48), seed=5, split="val")
    assert sorted(p.parent.name for p in paths) == sorted(CLASSES) and paths[0].parts[-3] == "val"
    with av.open(str(paths[1])) as file:
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    drawn = render_clip([5, 1, 1, 0], CLASSES[1], 6, (32, 48))
    assert decoded.shape == drawn.shape
    assert np.abs(decoded.astype(float) - drawn).mean() < 12


def test_videos_are_the_same_bytes_each_time(tmp_path):
    """So that what the demo comes to can be repeated: x264 made seven files of this clip until it was told otherwise."""
    clip, made = render_clip([0, 0, CLASSES.index("clockwise"), 0], "clockwise"), set()
    for _ in range(25):
        write_video(tmp_path / "a.mp4", clip)
        made.add((tmp_path / "a.mp4").read_bytes())
    assert len(made) == 1


def test_a_fast_motion_goes_through_the_same_values_twice_as_fast(tmp_path):
    """So that frames without their order tell neither the motion nor the speed."""
    for name in CLASSES:
        slow, fast = (draw_poses(np.random.default_rng(3), name, 32, speed) for speed in ("slow", "fast"))
        np.testing.assert_allclose(np.sort(slow, 0), np.sort(fast, 0))
        steady = CLASSES.index(name) // 2
        steps = [np.abs(np.diff(poses[:, steady])) for poses in (slow, fast)]
        assert np.isclose(np.median(steps[1]), 2 * np.median(steps[0])) and (np.delete(slow == fast, steady, 1)).all()
    rows = write_speeds(tmp_path, 2, frames=4, split="val")
    assert (tmp_path / "val.csv").read_text().splitlines()[:3] == [
        "path,motion,speed",
        "val/00000.mp4,right,slow",
        "val/00001.mp4,right,fast",
    ]
    assert len(rows) == 16 and all((tmp_path / path).exists() for path, *_ in rows)
