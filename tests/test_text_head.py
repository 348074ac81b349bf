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


def test_a_run_with_a_text_head_continues_without_the_text_tower(write, tmp_path, clip):  # noqa: F811
    """What the tower made of the class names is in the checkpoint: the same bits as uninterrupted."""
    config, states = write("st_adapter", {"adapter_width": 8}), []
    for out, parts in (("whole", (3,)), ("parts", (1, 3))):
        save_file(clip.state_dict(), tmp_path / "clip.safetensors")
        for steps in parts:
            options = [f"out={tmp_path / out}", "data.val=null", f"train.max_steps={steps}"]
            run(load_config(config, options), World(0, 1, torch.device("cpu")))
            visual = {n: t for n, t in clip.state_dict().items() if n.startswith("visual.") or n == "logit_scale"}
            save_file(visual, tmp_path / "clip.safetensors")
        states.append(load_checkpoint(tmp_path / out / "last.safetensors")[0])
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    "before, after, said",
    [
        ({"type": "linear"}, {"type": "text"}, "none is fresh, as nothing of a text head trains"),
        ({"type": "text"}, {"type": "linear"}, "fresh are head.fc.bias, head.fc.weight: it is another head"),
        ({"type": "text"}, {"type": "text", "templates": ["{}!"]}, "none is fresh, as nothing of a text head trains"),
        ({"type": "text"}, {"type": "text"}, "none is fresh: its head has the same classes"),
    ],
)
def test_a_run_starts_from_one_with_another_head_on_the_same_trunk(write, tmp_path, capfd, before, after, said):
    """What trains in the trunk is that of the other run; the head is what the run's own configuration makes."""
    config, states = write("st_adapter", {"adapter_width": 8}), {}
    runs = [("alone", after, []), ("first", before, ["train.seed=7"]), ("second", after, [f"model.init={tmp_path}/first"])]
    for name, head, more in runs:
        options = [f"out={tmp_path / name}", f"model.head={json.dumps(head)}", "data.val=null", "train.max_steps=1"]
        run(load_config(config, [*options, "train.lr=1e-30", *more]), World(0, 1, torch.device("cpu")))
        states[name] = load_checkpoint(tmp_path / name / "last.safetensors")[0]
    assert said in capfd.readouterr().err
    theirs = [name for name in states["first"] if "adapter" in name and not name.startswith("optimizer/")]
    for name in theirs:
        assert torch.allclose(states["second"][name], states["first"][name], rtol=0, atol=1e-12)
    assert not all(torch.allclose(states["second"][name], states["alone"][name], rtol=0, atol=1e-12) for name in theirs)
    if after["type"] == "text":
        assert torch.equal(states["second"]["head.text_features"], states["alone"]["head.text_features"])


def test_a_run_does_not_start_from_one_with_another_head_and_another_trunk(write, tmp_path, clip):  # noqa: F811
    config = write("st_adapter", {"adapter_width": 8})
    options = ["data.val=null", "train.max_steps=1"]
    run(load_config(config, [*options, f"out={tmp_path}/first"]), World(0, 1, torch.device("cpu")))
    save_file({name: 2 * t for name, t in clip.state_dict().items()}, tmp_path / "other.safetensors")
    options += [f"model.weights={tmp_path}/other.safetensors", f"model.init={tmp_path}/first", "model.head={type: linear}"]
    with pytest.raises(ValueError, match="was trained on another backbone"):
        run(load_config(config, [*options, f"out={tmp_path}/second"]), World(0, 1, torch.device("cpu")))
