"""What only a CUDA device can show. The graph is the same; these are its two forks and the trainer's precision."""

import itertools

import pytest
import torch
import yaml

from i2v.config import load_config
from i2v.distributed import World
from i2v.pipelines import build_loader
from i2v.pipelines.graph import _nvdec_is_here
from i2v.train import run
from tests.conftest import shard
from tests.test_train import config, result  # noqa: F401

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
nvdec = pytest.mark.skipif(not _nvdec_is_here(), reason="no NVDEC (libnvcuvid) here")
OPTIONS = {"num_frames": 4, "size": 32, "batch_size": 6}


def clips(manifest, device, decode, dtype="float32"):
    loader = build_loader(manifest, device=device, decode=decode, dtype=dtype, **OPTIONS)
    return [batch.clips.cpu() for batch in itertools.islice(loader, 4)]


@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
def test_augmenting_on_the_gpu_equals_the_cpu(shapes, codec):
    for cpu, gpu in zip(clips(shapes / codec, "cpu", "cpu"), clips(shapes / codec, "gpu", "cpu")):
        assert (cpu - gpu).abs().mean() < 1 / 255 / 0.27  # one grey level, in units of the normalised clip


@nvdec
@pytest.mark.parametrize("codec", ["vp9", "h264", "hevc"])
def test_nvdec_decodes_slices_like_the_whole_clip(shapes, tmp_path, codec):
    """Frame by frame (slices from the keyframe) and all frames at once (the whole clip) give the same pixels."""
    shard(shapes / "val", tmp_path / "data", codec=codec, short_side=144)
    options = {
        "sampling": "stride",
        "stride": 1,
        "size": 64,
        "device": "gpu",
        "decode": "gpu",
        "batch_size": 4,
        "dtype": "uint8",
    }
    (whole,) = itertools.islice(build_loader(tmp_path / "data", "val", num_frames=20, **options), 1)
    views = itertools.islice(build_loader(tmp_path / "data", "test", num_frames=1, clips=20, **options), 1)
    single = next(views).pixels[:, :, :, 0]  # (B, 20, 3, H, W)
    assert torch.equal(single.transpose(1, 2), whole.pixels)  # not normalised: DALI and torch round differently on a GPU


@nvdec
def test_nvdec_and_cpu_decoders_agree(shapes, tmp_path):
    shard(shapes / "train", tmp_path / "vp9", short_side=144)  # the others are too small for NVDEC
    for cpu, gpu in zip(clips(tmp_path / "vp9", "gpu", "cpu"), clips(tmp_path / "vp9", "gpu", "gpu")):
        assert (cpu - gpu).abs().mean() < 3 / 255 / 0.27


def test_half_precision_clips_are_the_same_clips(shapes):
    for full, half in zip(clips(shapes / "vp9", "gpu", "cpu"), clips(shapes / "vp9", "gpu", "cpu", "float16")):
        assert half.dtype == torch.float16 and torch.allclose(full, half.float(), atol=2e-3)


@pytest.mark.parametrize("compiled", [False, True])
def test_training_in_bf16_follows_the_cpu(config, tmp_path, compiled):  # noqa: F811
    plain = ["model.head={type: linear, dropout: 0}", "train.max_steps=6"]
    run(load_config(config, [f"out={tmp_path}/cpu", *plain]), World(0, 1, torch.device("cpu")))
    overrides = [f"out={tmp_path}/gpu", "data.device=gpu", f"train.compile={str(compiled).lower()}", *plain]
    run(load_config(config, overrides), World(0, 1, torch.device("cuda", 0)))
    losses = [[r["loss"] for r in result(tmp_path / name)[1] if "loss" in r] for name in ("cpu", "gpu")]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert yaml.safe_load((tmp_path / "gpu" / "config.yaml").read_text())["train"]["compile"] is compiled
