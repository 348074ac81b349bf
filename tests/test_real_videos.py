"""The whole path on 16 real files: shard, train a few steps, evaluate, predict."""

import csv
import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from i2v.config import load_config
from i2v.distributed import World
from i2v.pipelines import build_loader
from i2v.pipelines.shards import ShardSet
from i2v.shard_tools import decode
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings, encode_video
from i2v.shard_tools.sources import Video, load_sources
from i2v.train import run
from i2v.vit import VisionTransformer, ViTSpec
from tests.test_evaluate import command

VIDEOS = Path(__file__).parent.parent.parent / "shared" / "videos"
GEOMETRY = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}

pytestmark = pytest.mark.skipif(not VIDEOS.is_dir(), reason="the folder of real videos, ../shared/videos, is not here")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    files = sorted(path.name for path in VIDEOS.iterdir() if path.suffix != ".md")
    assert len(files) == 16
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{name},{name.split('_')[0]}\n" for name in files))
    videos, classes = load_sources(folder / "list.csv", VIDEOS)
    manifest = make_shards(videos, classes, folder / "shards", EncodeSettings(short_side=96), workers=0)
    assert manifest["clips"] == 15
    return folder


def test_the_corrupt_file_is_rejected_with_a_reason_and_no_other(data):
    with open(data / "shards" / "rejected.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == "corrupted.mp4" and row["reason"].startswith("2 of 50 frames are damaged")


FRAMES = {  # (number, per second)
    "arm_wrestling.mp4": (280, 28),
    "mma_test.mp4": (300, 30),
    "mma_test.avi": (164, 25),
    "part_0.mp4": (32, 29.06),
    "stdet.mp4": (57, 6),
    "bikes.mp4": (250, 25),
    "carphone_pristine.mp4": (120, 29.97),
    "flipping_a_pancake.mkv": (310, 30),
    "nasa_13013.mp4": (390, 29.97),
    "unordered.mov": (4, 32),
    "video_0.mov": (3, 30),
    "video_90.mov": (3, 30),
    "av1_video.mkv": (125, 25),
    "h265_video.mp4": (10, 10),
    "h264_10bits.mp4": (30, 30),
}


def test_no_frame_is_lost_and_every_frame_has_its_time(data):
    shards = ShardSet(data / "shards")
    for i in range(len(shards)):
        name, clip, times = shards.metadata(i)["source"], shards.clips[i], shards.times(i)
        assert clip["frames"] == FRAMES[name][0] and clip["fps"] == pytest.approx(FRAMES[name][1], abs=0.01), name
        even = np.arange(len(times)) / clip["fps"]
        if name == "part_0.mp4":  # one frame is missing in it
            assert sorted(set(np.diff(times).round(3))) == pytest.approx([0.033, 0.067])
        else:
            assert times == pytest.approx(even, abs=0.002), name


@pytest.mark.parametrize(
    "name", ["arm_wrestling.mp4", "flipping_a_pancake.mkv", "nasa_13013.mp4", "av1_video.mkv", "bikes.mp4"]
)
def test_a_cut_is_what_decoding_from_the_beginning_gives(name, monkeypatch):
    video, settings = Video(str(VIDEOS / name), start=3.7, end=4.1), EncodeSettings(short_side=96)
    clip = encode_video(video, settings)
    monkeypatch.setattr(decode, "SEEKABLE", set())
    assert encode_video(video, settings).data == clip.data and clip.frames in (10, 11, 12)


def test_the_rotated_video_comes_out_upright(data):
    """The file holds a lying picture and the note to turn it clockwise by 90 degrees."""
    options = {"num_frames": 1, "size": 96, "antialias": False, "interpolation": "linear"}
    loader = build_loader(data / "shards", "val", batch_size=15, device="cpu", threads=1, **options)
    (turned,) = (i for i in range(15) if loader.shards.metadata(i)["source"] == "video_90.mov")
    assert loader.shards.clips[["width", "height"]][turned].tolist() == (96, 160)
    (batch,) = loader
    stored = batch.clips[turned][:, 0]  # the centre square
    with av.open(str(VIDEOS / "video_90.mov")) as video:
        lying = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)][1].astype(np.float32) / 255
    lying = (lying - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    centre = torch.from_numpy(lying).float().permute(2, 0, 1)[:, :, 124:444]  # 320 x 320
    small = F.interpolate(centre[None], (96, 96), mode="area")[0]
    errors = [(torch.rot90(small, -k, (1, 2)) - stored).abs().mean().item() for k in range(4)]  # k quarter turns clockwise
    assert errors[1] < 0.5 * min(errors[0], errors[2], errors[3])


def test_train_a_few_steps_and_predict_one(data, tmp_path):
    torch.manual_seed(0)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), tmp_path / "clip.safetensors")
    (tmp_path / "run.yaml").write_text(
        json.dumps(
            {
                "model": {"method": "st_adapter", "backbone": GEOMETRY, "weights": str(tmp_path / "clip.safetensors")},
                "data": {"train": str(data / "shards"), "val": str(data / "shards"), "device": "cpu", "threads": 1},
                "train": {"epochs": 1, "batch_size": 5, "lr": 1e-3, "compile": False, "log_every": 1},
                "out": str(tmp_path / "run"),
            }
        )
    )
    run(load_config(tmp_path / "run.yaml"), World(0, 1, torch.device("cpu")))
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3]
    assert records[-1]["counted"] == records[-1]["expected"] == 15
    done = command("i2v.predict", "--checkpoint", tmp_path / "run" / "best.safetensors", VIDEOS / "av1_video.mkv", "--top", 3)
    assert done.returncode == 0 and done.stdout.count(" %  ") == 3
