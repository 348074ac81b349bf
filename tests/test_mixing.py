"""Mixup and CutMix: targets are the exact shares of what is in the picture."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v.config import TrainConfig
from i2v.mixing import Mix, check_pass, cut_box, draw_mix, mix, mixed_together, partners
from tests.test_train import config, train  # noqa: F401


def recipe(**options):
    return TrainConfig(epochs=1, batch_size=8, lr=1.0, **options)


@given(seed=st.integers(0, 10**6), mixup=st.sampled_from([0.0, 0.8]), cutmix=st.sampled_from([0.0, 1.0]))
@settings(deadline=None, max_examples=60)
def test_targets_are_the_shares_in_the_clips(seed, mixup, cutmix):
    """Clips that are 1 or 0 everywhere: the mean of a mixed clip is the share of the first."""
    if not mixup and not cutmix:
        return
    clips = torch.stack([torch.ones(3, 2, 16, 16), torch.zeros(3, 2, 16, 16)])
    drawn = draw_mix(recipe(mixup=mixup, cutmix=cutmix), random.Random(seed))
    mixed, targets = mix(clips, torch.tensor([4, 1]), 5, drawn, partners(2))
    assert torch.allclose(targets.sum(1), torch.ones(2))
    assert targets[0, 4].item() == pytest.approx(mixed[0].mean().item(), abs=1e-5)
    assert targets[1, 4].item() == pytest.approx(mixed[1].mean().item(), abs=1e-5)
    assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])  # every frame the same


part = st.floats(0, 1, exclude_max=True)


@given(height=st.integers(1, 40), width=st.integers(1, 40), share=st.floats(0, 1), y=part, x=part)
def test_boxes_lie_in_the_picture(height, width, share, y, x):
    top, bottom, left, right = cut_box(height, width, share, y, x)
    assert 0 <= top <= bottom <= height and 0 <= left <= right <= width


def test_the_same_label_stays_what_it_is():
    clips = torch.randn(4, 3, 2, 8, 8)
    for drawn in (Mix(0.3), Mix(0.3, (0.5, 0.5))):
        _, targets = mix(clips, torch.tensor([2, 2, 2, 2]), 3, drawn, partners(4))
        assert torch.allclose(targets, torch.tensor([0.0, 0.0, 1.0]).expand(4, 3))


@given(groups=st.integers(1, 40), repeats=st.integers(1, 4), parts=st.integers(1, 5))
def test_partners_are_mutual_and_do_not_depend_on_how_a_batch_is_divided(groups, repeats, parts):
    """And no copy of a video is mixed with another."""
    clips = 2 * repeats * groups
    whole = partners(clips * parts, repeats)
    assert torch.equal(whole[whole], torch.arange(len(whole)))
    assert torch.equal(whole, torch.cat([partners(clips, repeats) + clips * part for part in range(parts)]))
    assert (whole // repeats != torch.arange(len(whole)) // repeats).all()


def test_how_often_a_batch_is_mixed_and_how():
    """mix_probability of mixing at all, mix_switch of CutMix then."""
    draws = [
        draw_mix(recipe(mixup=0.8, cutmix=1.0, mix_probability=0.6, mix_switch=0.25), random.Random(i)) for i in range(4000)
    ]
    mixed = [drawn for drawn in draws if drawn is not None]
    assert len(mixed) / len(draws) == pytest.approx(0.6, abs=0.03)
    assert sum(drawn.box is not None for drawn in mixed) / len(mixed) == pytest.approx(0.25, abs=0.03)
    assert draw_mix(recipe(mixup=0.8, mix_probability=0.0), random.Random(0)) is None
    assert draw_mix(recipe(), random.Random(0)) is None


def test_a_continued_run_mixes_as_the_uninterrupted_one(config, tmp_path):  # noqa: F811
    options = ["train.mixup=0.8", "train.cutmix=1.0", "data.val=null", "train.label_smoothing=0.1"]
    whole = train(config, tmp_path / "whole", *options)
    train(config, tmp_path / "parts", *options, "train.max_steps=5", "train.log_every=1")
    parts = train(config, tmp_path / "parts", *options)
    assert all(torch.equal(whole[0][name], parts[0][name]) for name in whole[0])
    plain = train(config, tmp_path / "plain", "data.val=null", "train.label_smoothing=0.1")
    assert not torch.equal(plain[0]["head.fc.weight"], whole[0]["head.fc.weight"])


@pytest.mark.parametrize("clips", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_pass_is_refused_unless_every_clip_of_it_is_mixed_with_another_video(clips, repeats):
    check_pass(clips, mixed_together(recipe(), repeats))
    if (partners(clips, repeats) < clips).all():
        check_pass(clips, mixed_together(recipe(cutmix=1.0), repeats))
        return
    with pytest.raises(ValueError, match=f"each pass has {clips} per device.*train.micro_batch={2 * repeats} or a multiple"):
        check_pass(clips, mixed_together(recipe(mixup=0.8), repeats))


def test_a_run_never_leaves_mixing_out_in_silence(config, tmp_path):  # noqa: F811
    """With one clip in a pass nothing would be mixed."""
    with pytest.raises(ValueError, match="each pass has 1 per device"):
        train(config, tmp_path / "run", "train.mixup=0.8", "train.micro_batch=1")
