"""Importing released weights and merging adapters, from file to file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import i2v.convert as program
from i2v.checkpoint import Backbone, Meta, load_checkpoint, save_checkpoint
from i2v.model import create_model, merge_adapters
from i2v.session import own_tensors, restore_model
from i2v.vit import VisionTransformer, ViTSpec
from i2v.weights import fingerprint, load_weights, read_state_dict
from tests.processes import call

ROOT = Path(__file__).parent.parent
GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}


def test_released_weights_become_a_checkpoint_with_the_same_logits(tmp_path, monkeypatch, capsys):
    """The golden file's weights, without its trunk: what the ST-Adapter authors released."""
    with safe_open(ROOT / "tests" / "golden" / "st_adapter-1.safetensors", "pt") as file:
        golden = {name: file.get_tensor(name) for name in file.keys()}
        facts = json.loads(file.metadata()["config"])
    weights = {name.removeprefix("weight/"): t for name, t in golden.items() if name.startswith("weight/")}
    released = {name: t for name, t in weights.items() if ".adapter_" in name or name.startswith("fc.")}
    torch.save({"model": released, "epoch": 3}, tmp_path / "released.pth")
    save_file({n: t for n, t in weights.items() if n not in released}, tmp_path / "clip.safetensors")
    classes = golden["logits"].shape[1]
    (tmp_path / "classes.txt").write_text("\n".join(f"{i},class {i}" for i in reversed(range(classes))), "utf-8-sig")
    width = released["transformer.resblocks.0.adapter_pre_mlp.fc1.weight"].shape[0]
    geometry = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 4, "embed_dim": 32}
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {
                    "method": "st_adapter",
                    "backbone": geometry,
                    "weights": str(tmp_path / "clip.safetensors"),
                    "options": {"adapter_width": width},
                },
                "data": {"train": "none"},
                "train": {"epochs": 1, "batch_size": 1, "lr": 1.0},
            }
        )
    )
    assert facts
    call(
        monkeypatch,
        program,
        "--config",
        tmp_path / "run.yaml",
        "--source",
        tmp_path / "released.pth",
        "--classes",
        tmp_path / "classes.txt",
        "--out",
        tmp_path / "out.safetensors",
    )
    assert f"{tmp_path}/classes.txt: {classes} names, numbered from 0.\n" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "out.safetensors")[1].classes == [f"class {i}" for i in range(classes)]
    model = restore_model(*load_checkpoint(tmp_path / "out.safetensors")).eval()
    assert torch.allclose(model(golden["input"]), golden["logits"], atol=1e-5)


@pytest.fixture
def zeroi2v(tmp_path, shapes):
    """A checkpoint of a ZeroI2V model with random adapters."""
    torch.manual_seed(0)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), tmp_path / "clip.safetensors")
    model = create_model("zeroi2v", GEOMETRY, 4, 8, shift_div=4)
    load_weights(model, tmp_path / "clip.safetensors", "clip")
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    manifest = json.loads((shapes / "vp9-val" / "manifest.json").read_text())
    backbone = Backbone(GEOMETRY, str(tmp_path / "clip.safetensors"), fingerprint(model.frozen_parameters()))
    meta = Meta(model.config, backbone, manifest["classes"])
    save_checkpoint(tmp_path / "best.safetensors", own_tensors(model, backbone), meta)
    return tmp_path / "best.safetensors"


def test_a_merged_checkpoint_needs_no_other_file(zeroi2v, shapes, monkeypatch, capsys):
    out = zeroi2v.with_name("merged.safetensors")
    call(monkeypatch, program, "--checkpoint", zeroi2v, "--merge", "--out", out, "--data", shapes / "vp9-val")
    assert "before" in capsys.readouterr().out
    before = restore_model(*load_checkpoint(zeroi2v)).eval()
    zeroi2v.with_name("clip.safetensors").unlink()
    tensors, meta = load_checkpoint(out)
    after = restore_model(tensors, meta).eval()
    clips = torch.randn(2, 3, 4, 32, 32)
    assert torch.allclose(before(clips), after(clips), atol=1e-4)
    plain = {f"backbone.{name}" for name in VisionTransformer(ViTSpec(**GEOMETRY)).state_dict()}
    assert tensors.keys() == plain | {"backbone.temporal_embedding", "head.fc.weight", "head.fc.bias"}


def test_accuracies_before_and_after_merging_are_of_the_same_classes(zeroi2v, shapes, tmp_path, monkeypatch):
    data = shutil.copytree(shapes / "vp9-val", tmp_path / "other")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["classes"].reverse()
    del manifest["crc32"]
    (data / "manifest.json").write_text(json.dumps(manifest))
    out = tmp_path / "merged.safetensors"
    with pytest.raises(SystemExit, match="does not have the checkpoint's class names in the same order"):
        call(monkeypatch, program, "--checkpoint", zeroi2v, "--merge", "--out", out, "--data", data)
    assert not out.exists()


def test_a_merged_model_goes_back_to_clip_names(zeroi2v, monkeypatch):
    out = zeroi2v.with_name("plain.safetensors")
    call(monkeypatch, program, "--checkpoint", zeroi2v, "--merge", "--plain", "--out", out)
    state = read_state_dict(out)
    merged = merge_adapters(restore_model(*load_checkpoint(zeroi2v)))
    clip = VisionTransformer(ViTSpec(**GEOMETRY))
    clip.load_state_dict({name: state[name] for name in clip.state_dict()})
    for name, tensor in clip.state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[f"backbone.{name}"])
    assert state.keys() - clip.state_dict().keys() == {"temporal_embedding", "head.fc.weight", "head.fc.bias"}
    other = out.with_name("other")
    other.touch()
    assert out.stat().st_mode == other.stat().st_mode, "others may read it as any new file"


def test_a_merge_that_changes_the_logits_is_refused_and_nothing_is_written(zeroi2v, monkeypatch):
    merge = program.merge_adapters

    def wrong(model):
        merged = merge(model)
        with torch.no_grad():
            merged.backbone.transformer.resblocks[0].attn.out_proj.weight *= 1.01
        return merged

    monkeypatch.setattr(program, "merge_adapters", wrong)
    with pytest.raises(SystemExit, match="merged model's logits differ .* nothing is written"):
        call(monkeypatch, program, "--checkpoint", zeroi2v, "--merge", "--out", zeroi2v.with_name("merged.safetensors"))
    assert not zeroi2v.with_name("merged.safetensors").exists()


def test_a_method_without_a_merge_says_so(tmp_path, monkeypatch):
    model = create_model("st_adapter", GEOMETRY, 4, 8, adapter_width=8)
    backbone = Backbone(GEOMETRY, "included", None)
    save_checkpoint(tmp_path / "a.safetensors", own_tensors(model, backbone), Meta(model.config, backbone, []))
    with pytest.raises(SystemExit, match="'st_adapter' model cannot be merged"):
        call(monkeypatch, program, "--checkpoint", tmp_path / "a.safetensors", "--merge", "--out", tmp_path / "b.safetensors")
