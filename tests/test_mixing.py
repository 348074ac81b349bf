"""Mixup and CutMix: targets are the exact shares of what is in the picture."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2v.mixing import cut_box, mix
from tests.test_train import config, train  # noqa: F401


@given(seed=st.integers(0, 10**6), mixup=st.sampled_from([0.0, 0.8]), cutmix=st.sampled_from([0.0, 1.0]))
@settings(deadline=None, max_examples=60)
def test_targets_are_the_shares_in_the_clips(seed, mixup, cutmix):
    """Clips that are 1 or 0 everywhere: the mean of a mixed clip is the share of the first."""
    if not mixup and not cutmix:
        return
    clips = torch.stack([torch.ones(3, 2, 16, 16), torch.zeros(3, 2, 16, 16)])
    mixed, targets = mix(clips, torch.tensor([4, 1]), 5, mixup, cutmix, random.Random(seed))
    assert torch.allclose(targets.sum(1), torch.ones(2))
    assert targets[0, 4].item() == pytest.approx(mixed[0].mean().item(), abs=1e-5)
    assert targets[1, 4].item() == pytest.approx(mixed[1].mean().item(), abs=1e-5)
    assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])  # every frame the same


@given(height=st.integers(1, 40), width=st.integers(1, 40), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_boxes_lie_in_the_picture(height, width, share, seed):
    top, bottom, left, right = cut_box(height, width, share, random.Random(seed))
    assert 0 <= top <= bottom <= height and 0 <= left <= right <= width


def test_the_same_label_stays_what_it_is():
    clips = torch.randn(4, 3, 2, 8, 8)
    _, targets = mix(clips, torch.tensor([2, 2, 2, 2]), 3, 0.8, 1.0, random.Random(1))
    assert torch.allclose(targets, torch.tensor([0.0, 0.0, 1.0]).expand(4, 3))


def test_a_continued_run_mixes_as_the_uninterrupted_one(config, tmp_path):  # noqa: F811
    options = ["train.mixup=0.8", "train.cutmix=1.0", "data.val=null", "train.label_smoothing=0.1"]
    whole = train(config, tmp_path / "whole", *options)
    train(config, tmp_path / "parts", *options, "train.max_steps=5", "train.log_every=1")
    parts = train(config, tmp_path / "parts", *options)
    assert all(torch.equal(whole[0][name], parts[0][name]) for name in whole[0])
    plain = train(config, tmp_path / "plain", "data.val=null", "train.label_smoothing=0.1")
    assert not torch.equal(plain[0]["head.fc.weight"], whole[0]["head.fc.weight"])
