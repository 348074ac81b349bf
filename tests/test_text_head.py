"""The text head from command to command: zero-shot CLIP, and an adapter trained against class names."""

import json

import pytest
import torch
from safetensors.torch import save_file

from i2v.checkpoint import load_checkpoint
from i2v.config import load_config
from i2v.distributed import World
from i2v.session import restore_model
from i2v.train import run
from tests.experiments import write_experiment
from tests.test_evaluate import command
from tests.test_heads import clip  # noqa: F401

GEOMETRY = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "heads": 2, "embed_dim": 24}


@pytest.fixture
def write(shapes, tmp_path, clip):  # noqa: F811
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")

    def write(method, options):
        model = {"method": method, "backbone": GEOMETRY, "weights": str(tmp_path / "clip.safetensors"), "num_frames": 4}
        model |= {"head": {"type": "text"}, "options": options}
        return write_experiment(tmp_path, shapes, model, {"epochs": 1, "lr": 1e-3}, out=str(tmp_path / "run"))

    return write


def test_zero_shot_clip_is_scored_and_not_trained(write, tmp_path):
    config = write("clip", {})
    done = command("i2v.evaluate", "--config", config, "--json", tmp_path / "scores.json")
    assert done.returncode == 0 and "counted 16 of 16" in done.stdout, done.stderr
    assert json.loads((tmp_path / "scores.json").read_text())["counted"] == 16
    with pytest.raises(ValueError, match="clip with a text head trains nothing: use i2v.evaluate"):
        run(load_config(config), World(0, 1, torch.device("cpu")))


def test_an_adapter_with_a_text_head_needs_no_text_tower_afterwards(write, tmp_path, clip):  # noqa: F811
    config = write("st_adapter", {"adapter_width": 8})
    refused = command("i2v.evaluate", "--config", config)
    assert refused.returncode == 1 and "must be trained first" in refused.stderr
    run(load_config(config), World(0, 1, torch.device("cpu")))
    tensors, meta = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert tensors["head.text_features"].shape == (8, 24) and meta.model["head"]["class_names"] == meta.classes
    visual = {n: t for n, t in clip.state_dict().items() if n.startswith("visual.") or n == "logit_scale"}
    save_file(visual, tmp_path / "visual.safetensors")
    model = restore_model(tensors, meta, str(tmp_path / "visual.safetensors"))
    assert model(torch.randn(1, 3, 4, 16, 16)).shape == (1, 8)
