"""What is said before the first step: too few steps, clips that repeat frames; and a run's length in steps."""

import numpy as np
import pytest

from i2v.config import ConfigError, load_config
from i2v.optim import learning_rate
from i2v.outlook import FEW_STEPS, few_steps, one_class, short_videos, small_videos
from i2v.pipelines.options import ClipOptions
from i2v.pipelines.plan import Plan
from tests.test_train import assert_continues, assert_same, config, result, train  # noqa: F401  config is a fixture


def plan_of(lengths, **options):
    lengths = np.array(lengths)
    size = np.full(len(lengths), 64)
    return Plan(lengths, size, size, np.full(len(lengths), 30.0), ClipOptions(**options))


def test_a_run_of_few_steps_is_told_with_a_remedy(config, tmp_path, capsys):  # noqa: F811
    short, long = (load_config(config, [f"train.epochs={epochs}"]) for epochs in (2, FEW_STEPS / 2))
    line = few_steps(short, 19)
    assert "WARNING: this run is 5 optimiser steps in all (19 clips x 2 epochs, 8 a step)" in line and "train.steps=500" in line
    assert few_steps(long, 16) is None and few_steps(long, 15) is not None
    train(config, tmp_path, "train.max_steps=1", "data.val=null")
    assert "WARNING: this run is 12 optimiser steps in all (24 clips x 4 epochs" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["st_adapter", "aim", "zeroi2v", "tada"])
def test_clips_that_repeat_frames_are_told(variant):
    strided = {"sampling": "stride", "stride": 16, "num_frames": 8, "variant": variant}
    line = short_videos(plan_of([60] * 58 + [300] * 42, **strided))
    assert "WARNING: 58 % of clips repeat frames or begin again: a clip is 8 frames at stride 16" in line
    assert "half of the videos have at most 60: set clips.stride=8 or clips.sampling=segments" in line
    assert short_videos(plan_of([300] * 100, **strided)) is None
    assert short_videos(plan_of([60] * 5 + [300] * 95, **strided)) is None  # a few are no reason


def test_stills_are_told_and_a_stride_that_cannot_help_is_not_proposed():
    line = short_videos(plan_of([3, 4] * 5, sampling="stride", stride=16, num_frames=8))
    assert "100 % of clips repeat frames or begin again, 100 % are one frame" in line and "lower model.num_frames" in line
    assert "stride=" not in line


@pytest.mark.parametrize("sampling", ["segments", "uniform"])
def test_without_a_stride_only_videos_shorter_than_a_clip_are_told(sampling):
    assert short_videos(plan_of([8] * 10, sampling=sampling, num_frames=8)) is None
    line = short_videos(plan_of([4] * 3 + [30] * 7, sampling=sampling, num_frames=8))
    said = "30 % of clips repeat frames or begin again: a clip is 8 frames, half of the videos have at most 30: lower model."
    assert said in line


def test_one_class_is_told():
    line = one_class(["juggling"], False)
    assert "'juggling' is the only class, so that there is nothing to learn: make shards of the folder that holds" in line
    assert one_class(["a", "b"], False) is None and one_class(["juggling"], True) is None  # a video may be without it


def test_pictures_larger_than_the_videos_are_told():
    line = small_videos(plan_of([30] * 4, size=224))
    assert "pictures of 224 pixels, but most videos are stored with a short side of 64" in line and "--short-side 256" in line
    assert "--short-side 384" in small_videos(plan_of([30], size=336))
    assert small_videos(plan_of([30], size=64)) is None
    assert small_videos(plan_of([30], size=224, pretext="mosi")) is None  # crops move over the whole picture


def test_a_run_can_be_as_long_as_so_many_steps(config, tmp_path):  # noqa: F811
    """It is the run of as many epochs: the same schedule, the same steps; stopped and continued as well."""
    train(config, tmp_path / "epochs", "train.epochs=2.3333333333333335", "data.val=null")
    steps = ["train.epochs=1000", "train.steps=7", "data.val=null"]
    train(config, tmp_path / "steps", *steps)
    assert result(tmp_path / "steps")[1][-1]["step"] == 7
    assert_same(result(tmp_path / "steps"), result(tmp_path / "epochs"))
    train(config, tmp_path / "parts", *steps, "train.max_steps=4")
    assert_continues(config, tmp_path / "parts", result(tmp_path / "epochs"), *steps, saved=4)
    saved = load_config(tmp_path / "steps" / "config.yaml").train
    assert saved.steps == 7 and learning_rate(saved.epochs, saved) == pytest.approx(0, abs=1e-9)


def test_a_run_in_steps_is_continued_as_one(config, tmp_path):  # noqa: F811
    """What the user gave is named, not the epochs that followed from it; batches of another size keep the steps."""
    options = ["data.val=null", "train.warmup_epochs=0"]
    train(config, tmp_path, *options, "train.steps=4", "train.max_steps=2")
    with pytest.raises(
        ValueError, match="run with train.steps = 4, this one has 6: restore the value, or .* model.init=.*last"
    ):
        train(config, tmp_path, *options, "train.steps=6")
    with pytest.raises(ValueError, match="run with train.steps = 4, this one has None"):
        train(config, tmp_path, *options, "train.epochs=9")
    log = train(config, tmp_path, *options, "train.steps=4", "train.batch_size=4", "train.log_every=1")[1]
    assert [record["step"] for record in log] == [2, 3, 4] and log[-1]["samples"] == 8 + 8 + 4 + 4
    rates = [record["lr"] for record in log]
    assert rates == sorted(rates, reverse=True) and rates[-1] < rates[0] / 2  # the schedule ends with the steps


def test_steps_that_are_not_whole_epochs_are_counted_exactly(config, tmp_path):  # noqa: F811
    for steps in (1, 11):
        train(config, tmp_path / str(steps), f"train.steps={steps}", "train.warmup_epochs=0", "data.val=null")
        assert result(tmp_path / str(steps))[1][-1]["step"] == steps


def test_steps_that_end_before_the_warm_up_are_refused(config, tmp_path):  # noqa: F811
    said = r"train.steps=2, which are 0.6667 epochs: train.warmup_epochs is 1.0: it must be between 0 and train.epochs"
    with pytest.raises(ConfigError, match=said):
        train(config, tmp_path, "train.steps=2")
