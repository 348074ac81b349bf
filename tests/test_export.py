"""What leaves is what was trained: every method, every format, any batch size, uint8 frames or clips."""

import importlib.util
import json

import pytest
import torch

from i2v import export
from i2v.checkpoint import Backbone, Meta, save_checkpoint
from i2v.model import create_model, merge_adapters
from i2v.pipelines import build_loader
from i2v.session import INCLUDED
from i2v.weights import fingerprint
from tests.processes import call
from tests.trunks import trunk_of

GEOMETRY = {"image_size": 16, "patch_size": 8, "width": 96, "layers": 1, "heads": 2, "embed_dim": 16}
METHODS = {
    "st_adapter": {"adapter_width": 8},
    "aim": {},
    "zeroi2v": {},
    "dist": {"integration_dim": 64, "temporal_dim": 8},
    "tada": {"route_head_dim": 8},
    "clip": {},
    "tada2d": {},
    "tadaconvnext": {},
    "lora": {"targets": ["q", "v", "out"]},
    "attentive": {"depth": 2, "heads": 4},
}
has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not has_onnx, reason="onnx, onnxscript and onnxruntime are not installed: the extra `export`")


def checkpoint(method, folder, val=None, head=None):
    """A checkpoint with random weights, adapters included, that needs no other file."""
    torch.manual_seed(0)
    geometry = trunk_of(method, GEOMETRY)
    model = create_model(method, geometry, 4, 8, head, **METHODS[method])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    backbone = Backbone(geometry, INCLUDED, fingerprint(model.frozen_parameters()))
    classes, config = [f"class {i}" for i in range(8)], {"data": {"val": val}}
    meta = Meta(model.config, backbone, classes, clips={"flip": 0, "sampling": "stride", "stride": 2}, config=config)
    save_checkpoint(folder / f"{method}.safetensors", model.state_dict(), meta)
    return folder / f"{method}.safetensors", model.eval().requires_grad_(False)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_through_torch_export(method, tmp_path, monkeypatch, capsys):
    path, model = checkpoint(method, tmp_path)
    call(monkeypatch, export, "--checkpoint", path, "--out", tmp_path / "model.pt2")
    assert "only random clips are compared" in (said := capsys.readouterr().out) and "6 random and 0 real clips" in said
    extra = {"i2v.json": ""}
    found = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    for batch in (1, 5):
        clips = torch.randn(batch, 3, 4, *[model.spec.image_size] * 2)
        assert (found(clips) - model(clips)).abs().max() < 1e-4
    about = json.loads(extra["i2v.json"])
    assert about["classes"][3] == "class 3" and about["stored"]["short_side"] == 256
    cutting = {"sampling": "stride", "stride": 2, "fps": None, "variant": "st_adapter", "clips": 1, "crops": 1}
    assert about["clips"] == cutting | {"test_short_side": None}  # of the run, and what it left to the defaults
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "model.pt2"}


def test_uint8_frames_go_in_and_real_clips_are_compared(shapes, tmp_path, monkeypatch, capsys):
    path, model = checkpoint(
        "st_adapter", tmp_path, val=str(shapes / "vp9-val"), head={"type": "text", "text_features": torch.randn(8, 16)}
    )
    call(monkeypatch, export, "--checkpoint", path, "--out", tmp_path / "model.pt2", "--preprocess")
    assert "(batch, 4, 16, 16, 3) -> logits; largest difference on 6 random and 4 real clips" in capsys.readouterr().out
    found = torch.export.load(tmp_path / "model.pt2").module()
    options = {"num_frames": 4, "size": 16}
    clips = next(iter(build_loader(shapes / "vp9-val", "val", options, 3))).clips
    pixels = next(iter(build_loader(shapes / "vp9-val", "val", options | {"dtype": "uint8"}, 3))).pixels
    assert (found(pixels.permute(0, 2, 3, 4, 1)) - model(clips)).abs().max() < 1e-3  # of logits up to 100


def test_zeroi2v_leaves_as_a_plain_transformer(tmp_path, monkeypatch):
    path, model = checkpoint("zeroi2v", tmp_path)
    call(monkeypatch, export, "--checkpoint", path, "--out", tmp_path / "model.pt2", "--merge")
    found = torch.export.load(tmp_path / "model.pt2")
    assert not [name for name in found.state_dict if "Adapter" in name]
    clips = torch.randn(2, 3, 4, 16, 16)
    expected = model(clips)
    assert (found.module()(clips) - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)
    assert sum(t.numel() for t in found.state_dict.values()) == sum(p.numel() for p in merge_adapters(model).parameters())


@needs_onnx
@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_through_onnx(method, tmp_path, monkeypatch):
    import onnxruntime

    path, model = checkpoint(method, tmp_path)
    call(monkeypatch, export, "--checkpoint", path, "--out", tmp_path / "model.onnx", "--preprocess")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    frames = torch.randint(0, 256, (5, 4, *[model.spec.image_size] * 2, 3), dtype=torch.uint8)
    found = torch.from_numpy(session.run(None, {"clips": frames.numpy()})[0])
    assert (found - export.Frames(model)(frames)).abs().max() < 1e-4
    assert len(json.loads(session.get_modelmeta().custom_metadata_map["i2v"])["classes"]) == 8


@pytest.mark.process
def test_a_compiled_package(tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.aot_inductor, "compile_wrapper_opt_level", "O0")  # half of the time is this compiler's
    path, model = checkpoint("clip", tmp_path)
    call(monkeypatch, export, "--checkpoint", path, "--out", tmp_path / "model.pt2", "--format", "aoti")
    found = torch._inductor.aoti_load_package(str(tmp_path / "model.pt2"))
    clips = torch.randn(5, 3, 4, 16, 16)
    assert (found(clips) - model(clips)).abs().max() < 1e-4
    assert json.loads(found.get_metadata()["i2v"])["classes"][0] == "class 0"


def test_what_differs_is_not_written(tmp_path, monkeypatch):
    path, model = checkpoint("clip", tmp_path)
    (tmp_path / "model.pt2").write_text("from before")
    monkeypatch.setattr(export, "make", lambda kind, *_: _[2].write_text("") or (lambda clips: model(clips) * 1.001 + 0.01))
    with pytest.raises(SystemExit, match="logits differ by .* more than 1e-04: nothing is written"):
        call(monkeypatch, export, "--checkpoint", path, "--out", tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "from before" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--out", "model.pth"], "ends in neither .pt2 nor .onnx"),
        (["--out", "model.pt2", "--format", "onnx"], "does not go with"),
        (["--out", "none/model.pt2"], "none does not exist"),
        (["--out", "model.pt2", "--merge"], "a 'clip' model cannot be merged"),
        (["--out", "model.pt2", "--data", "none"], "none does not exist"),
        (["--out", "model.pt2", "--checkpoint", "none.safetensors"], "none.safetensors does not exist"),
        (["--out", "model.pt2", "--checkpoint", "empty.safetensors"], "cannot be read as a checkpoint"),
        (["--out", "model.pt2", "--device", "gpu"], "no CUDA device"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "empty.safetensors").touch()
    path, _ = checkpoint("clip", tmp_path)
    with pytest.raises(SystemExit, match=said):
        call(monkeypatch, export, "--checkpoint", path, *arguments)


def test_onnx_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name.startswith("onnx") else find(name, *a))
    with pytest.raises(SystemExit, match=r"onnxruntime, not installed here: pip install 'i2v\[export\]'"):
        call(monkeypatch, export, "--checkpoint", "x", "--out", tmp_path / "model.onnx")
