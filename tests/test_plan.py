"""The plan: every sample once, the same stream for every world size, boxes and frames inside the video."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v.pipelines.boxes import random_resized_box, test_boxes
from i2v.pipelines.frames import test_frames, train_frames
from i2v.pipelines.options import VARIANTS, ClipOptions
from i2v.pipelines.philox import FRAMES, permutation, uniforms
from i2v.pipelines.plan import Plan
from tests.references import figures

test_boxes.__test__ = test_frames.__test__ = False  # pytest: these are not tests


def plan_of(n, split="train", seed=0, frames=40, width=340, height=256, fps=30.0, fps_of_clips=None, **options):
    facts = (np.full(n, value) for value in (frames, width, height, fps))
    return Plan(*facts, ClipOptions(**options, fps=fps_of_clips), split, seed)


@given(n=st.integers(1, 97), first=st.integers(0, 500), seed=st.integers(0, 2**63 - 1))
def test_any_n_consecutive_positions_from_an_epoch_border_hold_every_id_once(n, first, seed):
    plan = plan_of(n, seed=seed)
    begin = first // n * n
    assert sorted(plan.locate(p)[1] for p in range(begin, begin + n)) == list(range(n))


@given(
    n=st.integers(1, 60), sizes=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 7)), min_size=1, max_size=6)
)
@settings(deadline=None)
def test_the_stream_is_the_same_for_any_world_size_and_batch_size_changed_in_between(n, sizes):
    """What all ranks together take is the stream itself: nothing dropped, padded or repeated."""
    plan, position, taken = plan_of(n), 0, []
    for world, batch in sizes:
        for rank in range(world):
            taken += [plan.locate(position + rank * batch + i)[1] for i in range(batch)]
        position += world * batch
    assert taken == [plan.locate(p)[1] for p in range(position)]


def test_order_differs_between_epochs_and_seeds_and_is_repeatable():
    orders = [tuple(permutation(seed, epoch, 50)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(permutation(0, 0, 50))


def test_random_numbers_are_pinned():
    """A change here would silently change every run that is continued."""
    assert permutation(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    spec = plan_of(8, seed=7)[11]
    assert (spec.id, spec.frames.tolist(), spec.boxes.tolist(), spec.flip) == (
        3,
        [3, 6, 14, 18, 20, 27, 30, 35],
        [[41.0, 14.0, 238.0, 180.0]],
        False,
    )


@given(
    count=st.integers(1, 400),
    t=st.integers(1, 33),
    stride=st.integers(1, 20),
    position=st.integers(0, 1000),
    sampling=st.sampled_from(["segments", "stride"]),
    clips=st.integers(1, 10),
    split=st.sampled_from(["train", "test"]),
    variant=st.sampled_from(VARIANTS),
    fps=st.floats(1, 120),
)
@settings(deadline=None)
def test_frames_lie_in_the_video_in_order(count, t, stride, position, sampling, clips, split, variant, fps):
    options = {"num_frames": t, "stride": stride, "sampling": sampling, "clips": clips, "variant": variant}
    plan = plan_of(7, split, frames=count, fps=fps, **options)
    frames = plan[position].frames.reshape(-1, t)
    assert frames.shape[0] == (clips if split == "test" else 1)
    assert frames.min() >= 0 and frames.max() < count
    if sampling == "segments" or variant in ("st_adapter", "tada") or t * stride <= count:  # the others begin again
        assert (np.diff(frames, axis=1) >= 0).all()


@given(
    width=st.integers(16, 900),
    height=st.integers(16, 900),
    position=st.integers(0, 1000),
    crops=st.sampled_from([1, 3]),
    crop=st.sampled_from(["random_resized", "short_side"]),
    split=st.sampled_from(["train", "val", "test"]),
)
@settings(deadline=None)
def test_boxes_lie_in_the_picture(width, height, position, crops, crop, split):
    plan = plan_of(5, split, width=width, height=height, crop=crop, crops=crops, size=112)
    boxes = plan[position].boxes
    assert boxes.shape == (crops if split == "test" else 1, 4)
    top, left, bottom, right = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (bottom <= height + 1e-3).all() and (right <= width + 1e-3).all()
    assert (bottom > top).all() and (right > left).all()
    if crop == "short_side" or split != "train":  # no distortion beyond the rounding of the resized side to a pixel
        assert np.allclose((bottom - top) / (right - left), 1, atol=1 / 112)


def test_segments_are_the_st_adapter_authors_formula():
    options = ClipOptions(num_frames=8, sampling="segments")
    for count in (3, 8, 37, 300):
        bounds = [round((count - 1) / 8 * i) for i in range(9)]
        assert test_frames(count, 30, options, 1)[0].tolist() == [(a + b) // 2 for a, b in itertools.pairwise(bounds)]
        for u, ends in ((0.0, bounds[:-1]), (0.9999999, bounds[1:])):  # both ends of a segment can be drawn
            assert train_frames(count, 30, options, np.full(8, u))[0].tolist() == ends


def test_stride_is_the_st_adapter_authors_formula():
    options = ClipOptions(num_frames=8, sampling="stride", stride=16)
    slack = 300 - (7 * 16 + 1)
    expected = [[round(slack / 2 * i) + 16 * k for k in range(8)] for i in range(3)]
    assert test_frames(300, 30, options, 3).tolist() == expected
    assert test_frames(40, 30, options, 3).tolist() == [[0, 16, 32, 32, 32, 32, 32, 32]] * 3  # too short: the last reachable
    assert train_frames(300, 30, options, np.full(8, 0.9999999))[0, 0] == 300 - 16 * 7 - 1
    assert train_frames(40, 30, options, np.full(8, 0.5))[0].tolist() == [0, 16, 32, 32, 32, 32, 32, 32]


def test_aim_and_zeroi2v_are_their_authors_formulas():
    aim = ClipOptions(num_frames=8, sampling="stride", stride=16, variant="aim")
    starts = [int((i + 0.5) * (300 - 8 * 16 + 1) / 3) for i in range(3)]
    assert test_frames(300, 30, aim, 3).tolist() == [[start + 16 * k for k in range(8)] for start in starts]
    assert test_frames(50, 30, aim, 3).tolist() == [[16 * k % 50 for k in range(8)]] * 3
    assert train_frames(300, 30, aim, np.full(8, 0.9999999))[0, 0] == 300 - 8 * 16
    zero = ClipOptions(num_frames=16, sampling="stride", stride=8, variant="zeroi2v")
    starts = [round(i * (300 - (15 * 8 + 1)) / 2) for i in range(3)]
    assert test_frames(300, 30, zero, 3).tolist() == [[start + 8 * k for k in range(16)] for start in starts]
    zero = ClipOptions(num_frames=8, variant="zeroi2v")
    for count, clips in ((300, 1), (300, 2), (37, 1), (5, 2)):
        part = (count - 1) / 8
        expected = [[round(part * i) + int(part / (clips + 1) * (k + 1)) for i in range(8)] for k in range(clips)]
        assert test_frames(count, 30, zero, clips).tolist() == expected


def test_dist_and_tada_are_their_authors_indices():
    cases = figures("sampling")
    assert len(cases) == 618
    for case in cases:
        sampling = {"segment": "segments", "interval": "stride"}[case["mode"]]
        options = ClipOptions(num_frames=case["num_frames"], sampling=sampling, stride=case.get("interval", 1), variant="tada")
        count, fps = case["vid_length"], case.get("fps", 30)
        if case["split"] == "train":
            draw = random.Random(case["python_random_seed"])
            frames = train_frames(count, fps, options, np.array([draw.random() for _ in range(case["num_frames"])]))[0]
        else:
            frames = test_frames(count, fps, options, case["num_clips"])[max(case["clip_idx"], 0)]
        assert frames.tolist() == case["index"], case


def test_three_crops_are_both_ends_and_the_centre():
    options = ClipOptions(size=224)
    wide = test_boxes(340, 256, options, 3)
    assert np.allclose(wide[:, [0, 2]], [0, 256])
    assert wide[0, 1] == 0 and np.isclose(wide[2, 3], 340)
    tall = test_boxes(256, 340, options, 3)
    assert np.allclose(tall[:, [1, 3]], [0, 256])
    assert np.array_equal(test_boxes(340, 256, options, 1)[0], wide[1])


def test_test_short_side_takes_the_centre_of_a_larger_picture():
    box = test_boxes(256, 256, ClipOptions(size=224, test_short_side=256), 1)[0]
    assert box.tolist() == [16, 16, 240, 240]


def test_the_long_side_is_rounded_down_as_by_the_authors():
    """450 x 256 with a short side of 224 is 393.75 pixels wide: 393, and the centre begins at (393 - 224) // 2."""
    box = test_boxes(450, 256, ClipOptions(size=224), 1)[0]
    assert np.allclose(box, [0, 84 * 450 / 393, 256, (84 + 224) * 450 / 393])


def test_random_resized_box_falls_back_to_the_largest_centred_one():
    options = ClipOptions(area=(0.9, 1.0), aspect=(1.0, 1.0))
    assert random_resized_box(1000, 100, options, np.random.default_rng(0).random((10, 4))).tolist() == [0, 450, 100, 550]


def test_evaluation_weights_only_the_first_pass():
    plan = plan_of(5, "val")
    assert [plan[p].weight for p in range(8)] == [1] * 5 + [0] * 3
    assert [plan[p].id for p in range(5)] == list(range(5))


def test_shuffled_frames_are_the_same_frames():
    plain, shuffled = plan_of(9, "test", clips=3), plan_of(9, "test", clips=3, shuffle_frames=True)
    rows = [(a.frames.reshape(3, -1), b.frames.reshape(3, -1)) for a, b in ((plain[p], shuffled[p]) for p in range(9))]
    assert all(np.array_equal(a, np.sort(b, axis=1)) for a, b in rows)
    assert sum(np.array_equal(a, b) for a, b in rows) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"num_frames": 0},
        {"num_frames": 2.5},
        {"num_frames": 100_000_000},
        {"stride": 10**18},
        {"clips": 1_000_000},
        {"size": 1_000_000},
        {"sampling": "dense"},
        {"crop": "none"},
        {"crops": 2},
        {"flip": 2},
        {"area": (0, 1)},
        {"area": (0.5, 2)},
        {"aspect": 1},
        {"scale": (0.5, 1)},
        {"test_short_side": 100},
        {"test_short_side": 1_000_000},
        {"flip_labels": [[1, 1]]},
        {"flip_labels": [1, 2]},
        {"flip_labels": [[1, 2], [2, 3]]},
        {"variant": "x"},
        {"fps": 0},
        {"fps": 0.001},
        {"fps": 1e12},
        {"fps": 10**400},
        {"window": None},
        {"window": 1e-9},
        {"hop": -1},
        {"hop": 1e-9},
        {"aspect": (1e-320, 1)},
        {"aspect": (1, 1e300)},
        {"scale": (1, 1e308)},
        {"area": (1e-320, 1)},
        {"area": (10**400, 1)},
    ],
)
def test_a_wrong_option_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ClipOptions(**options)


@given(count=st.integers(1, 200), t=st.integers(1, 16), clips=st.integers(1, 4), u=st.floats(0, 0.999999))
@settings(deadline=None)
def test_uniform_takes_the_same_place_of_every_part(count, t, clips, u):
    options = ClipOptions(num_frames=t, sampling="uniform")
    drawn = train_frames(count, 30, options, np.full(t, u))[0]
    assert drawn.tolist() == [min(int((i + u) * count / t), count - 1) for i in range(t)]
    views = test_frames(count, 30, options, clips)
    assert views.shape == (clips, t) and (np.diff(views, axis=0) >= 0).all() and (np.diff(views, axis=1) >= 0).all()


@given(
    gaps=st.lists(st.floats(0.005, 0.3), min_size=1, max_size=80),
    fps=st.floats(2, 40),
    t=st.integers(1, 8),
    stride=st.integers(1, 5),
    position=st.integers(0, 50),
    split=st.sampled_from(["train", "val", "test"]),
)
@settings(deadline=None)
def test_frames_are_as_far_apart_in_time_as_was_said_however_the_rate_varies(gaps, fps, t, stride, position, split):
    times = np.concatenate([[0], np.cumsum(gaps)])
    count, length = len(times), times[-1] + np.mean(gaps)
    options = ClipOptions(num_frames=t, sampling="stride", stride=stride, fps=fps)
    plan = Plan(*(np.array([v]) for v in (count, 64, 48, count / length)), options, split, times=lambda sample: times)
    shown = [np.abs(times - at).argmin() for at in np.arange(max(1, round(length * fps))) / fps]  # at every 1/fps of a second
    if split == "train":
        chosen = train_frames(len(shown), fps, options, uniforms(0, FRAMES, position, 0, t))
    else:
        chosen = test_frames(len(shown), fps, options, 1)
    assert np.allclose(times[plan[position].frames], times[shown][chosen.ravel()])


def test_at_a_constant_rate_frames_by_time_are_frames_by_number():
    """fps equal to the stored rate changes nothing; half of it takes every second frame."""
    for options in (
        {"sampling": "segments"},
        {"sampling": "stride", "stride": 3},
        {"sampling": "stride", "stride": 3, "variant": "tada"},
    ):
        plain, same = (plan_of(5, frames=91, **options, fps_of_clips=fps) for fps in (None, 30.0))
        assert all(np.array_equal(plain[p].frames, same[p].frames) for p in range(5))
    half = plan_of(5, "test", frames=90, clips=2, sampling="stride", stride=3, fps_of_clips=15)
    assert np.array_equal(half[0].frames, 2 * test_frames(45, 15, half.options, 2).ravel())


def test_windows_slide_to_the_end():
    plan = plan_of(3, "windows", frames=95, fps=30.0, window=1.0, hop=0.5, num_frames=4)
    assert len(plan) == 18 and [plan.locate(p)[1] for p in (0, 5, 6, 17)] == [0, 0, 1, 2]  # 3.17 s: six windows
    assert [plan.window(p)[0] for p in range(6)] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert plan[0].frames.tolist() == [4, 11, 19, 26] and plan[5].frames.tolist() == [79, 86, 94, 94]
    gaps = plan_of(2, "windows", frames=96, fps=30.0, window=1.0, hop=2.0)  # 3.2 s: none begins after the end
    assert [gaps.window(p)[0] for p in range(len(gaps))] == [0, 2, 0, 2]
    assert plan[18].weight == 0 and plan[17].weight == 1
    assert (
        len(plan_of(3, "windows", frames=90, fps=30.0, window=1.0)) == 9
        and len(plan_of(1, "windows", frames=3, window=9.0)) == 1
    )


def test_windows_of_frames_are_each_videos_own_or_at_a_rate_of_their_own():
    """And each is seen from as many places as `crops` says."""
    given = dict(window="30f", hop="15f", num_frames=4)
    slow, fast = plan_of(1, "windows", frames=90, fps=30.0, **given), plan_of(1, "windows", frames=90, fps=60.0, **given)
    assert [slow.window(p) for p in (0, 1)] == [(0.0, 1.0), (0.5, 1.5)] and fast.window(1) == (0.25, 0.75)
    assert len(slow) == len(fast) == 5 and slow[1].frames.tolist() == fast[1].frames.tolist()
    same = plan_of(1, "windows", frames=90, fps=60.0, fps_of_clips=30.0, **given)
    assert same.window(1) == (0.5, 1.5) and len(same) == 2
    assert plan_of(1, "windows", frames=90, fps=30.0, crops=3)[0].boxes.shape == (3, 4)
    for wrong in ("30", "0f", "f", "-3f", "3.5f"):
        with pytest.raises(ValueError, match="a number of frames such as 64f"):
            plan_of(1, "windows", window=wrong)


@pytest.mark.parametrize(
    "frames, fps, window, hop, count", [(48, 30.0, 0.4, 0.2, 7), (40, 25.0, 0.4, 0.2, 7), (49, 30.0, 0.4, 0.2, 8)]
)
def test_a_window_begins_only_where_there_is_film_for_more_than_rounding(frames, fps, window, hop, count):
    assert len(plan_of(1, "windows", frames=frames, fps=fps, window=window, hop=hop)) == count
