"""Every shipped YAML goes the whole way, with a small backbone: from the file to batches, a prediction, features and costs."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from benchmarks import throughput
from i2v import features
from i2v.checkpoint import Meta, save_checkpoint
from i2v.complexity import cost
from i2v.config import load_config, to_dict
from i2v.distributed import World
from i2v.predictor import predict
from i2v.session import describe_backbone, open_session, own_tensors
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.sources import Video
from i2v.train import open_loader
from tests.processes import call
from tests.trunks import trunk_of
from tests.videos import moving, write_video

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "bmn")  # i2v.localise has those
BACKBONE = {"image_size": 16, "patch_size": 8, "width": 96, "layers": 2, "heads": 3, "embed_dim": 32}
SMALL = {  # sizes of a method's own parts, and which layers they sit in
    "st_adapter": {"adapter_width": 8},
    "dist": {"integration_dim": 64, "temporal_dim": 8},
    "tada": {"route_head_dim": 8},
}
CLASSES = [f"class {i}" for i in range(700)]  # as many as any of the data sets has, so that every flip_labels fits
STORED = {"codec": "mjpeg", "gop": 1, "short_side": 32}
WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two videos, and shards of them: labelled/ with all the classes, unlabelled/ with none."""
    root = tmp_path_factory.mktemp("every")
    videos = [write_video(root / f"{i}.mp4", moving(8, 32, 48, i), fps=8) for i in range(2)]
    settings = EncodeSettings(**STORED)
    make_shards(
        [Video(str(v), label=690 + i, source=v.name) for i, v in enumerate(videos)], CLASSES, root / "labelled", settings
    )
    make_shards([Video(str(v), source=v.name) for v in videos], [], root / "unlabelled", settings)
    return root


def small(path, data):
    """The experiment on a small backbone, as a checked configuration: everything else is the file's."""
    values = yaml.safe_load(path.read_text())
    backbone = trunk_of(values["model"]["method"], BACKBONE)
    model = values["model"] | {"backbone": backbone, "weights": "random", "num_frames": 4}
    model.pop("init", None)
    if values["clips"].pop("test_size", None):
        values["clips"]["test_size"] = 64
    model["options"] = model.get("options", {}) | SMALL.get(model["method"], {})
    if "adapted_layers" in model["options"]:
        model["options"]["adapted_layers"] = 1
    values |= {"model": model, "data": values["data"] | {"train": str(data / "labelled"), "device": "cpu", "threads": 1}}
    values["train"] |= {"batch_size": 1, "micro_batch": None, "compile": False}
    out = data / f"{path.parent.name}-{path.name}"
    out.write_text(yaml.safe_dump(values))
    return load_config(out, [f"out={out.with_suffix('')}"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_config_goes_the_whole_way(path, data, monkeypatch):
    monkeypatch.setattr(throughput, "matrix_rate", lambda *_: 1.0)  # of the machine, a second long
    config = small(path, data)
    views = config.clips.get("clips", 1) * config.clips.get("crops", 1)
    assert cost("small", config, len(CLASSES))["views"] == views
    assert open_loader(config, WORLD, "train", config.data.train, 1).plan.split == "train"
    found = throughput.measure(config, config.data.train, WORLD, rounds=1, seconds=0)
    assert all(rate["median"] > 0 for rate in found["clips_per_s"].values()) and found["training_gflop_per_clip"] > 0

    # As a checkpoint, on videos without labels, although left and right may be told apart in training
    torch.manual_seed(0)
    model = throughput.fresh_model(config.model, len(CLASSES))
    backbone = describe_backbone(model, config.model, "random")
    meta = Meta(model.config, backbone, CLASSES, stored=STORED, clips=config.clips, config=to_dict(config))
    checkpoint = data / f"{path.parent.name}-{path.stem}.safetensors"
    save_checkpoint(checkpoint, own_tensors(model, backbone), meta)
    video, session = data / "0.mp4", open_session(SimpleNamespace(checkpoint=checkpoint, weights=None))
    ((_, answer),) = predict(session, [video])
    assert (answer.start, answer.end) == (0, 1) and answer.probabilities.shape == (len(CLASSES),)
    assert answer.probabilities.sum().item() == pytest.approx(1, abs=1e-4)
    out = checkpoint.with_suffix("")
    found = ("--data", data / "unlabelled", "--out", out, "--window", 0.5, "--scores", "--device", "cpu")
    call(monkeypatch, features, "--checkpoint", checkpoint, *found)
    with open(out / "features.csv", newline="") as file:
        assert [row["rows"] for row in csv.DictReader(file)] == ["2", "2"]
