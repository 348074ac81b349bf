"""bf16 agrees with float32, and training moves what the recipe trains and nothing else: every method."""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from i2v.checkpoint import Meta
from i2v.config import ModelConfig, load_config
from i2v.distributed import World
from i2v.model import create_model
from i2v.placement import autocast_for, choose_precision, compile_blocks, may_compile, place
from i2v.session import describe_backbone, load_backbone, own_tensors, restore_model
from i2v.train import run
from i2v.vit import VisionTransformer, ViTSpec
from i2v.weights import read_state_dict
from tests.test_train import CPU, config, result  # noqa: F401

GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 3, "heads": 4, "embed_dim": 32}
METHODS = {
    "st_adapter": {"adapter_width": 16},
    "aim": {},
    "zeroi2v": {"shift_div": 4},
    "dist": {"integration_dim": 64, "temporal_dim": 32},
    "tada": {"route_head_dim": 16, "tubelet_stride": 1, "train": "adapters"},
    "lora": {"rank": 16, "alpha": 4.0, "targets": ["q", "k", "v", "out", "fc1", "fc2"]},
    "attentive": {"depth": 2, "heads": 4},
}


def model_of(method, **options):
    torch.manual_seed(0)
    model = create_model(method, GEOMETRY, 4, 8, {"type": "linear", "dropout": 0}, **METHODS[method] | options)
    for parameter in model.trainable_parameters().values():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


@pytest.mark.parametrize(
    "capability, expected",
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)  # V100, T4, A100, H100
def test_auto_takes_bf16_where_it_is_in_hardware_and_fp16_on_older_gpus(capability, expected, monkeypatch):
    facts = SimpleNamespace(major=capability[0], minor=capability[1])
    device = {"is_available": True, "current_device": 0, "get_device_properties": facts, "_check_bf16_tensor_supported": True}
    for name, value in device.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)  # a tensor of it can be made on all of them
    assert torch.cuda.is_bf16_supported()
    assert choose_precision("auto", torch.device("cuda")) == expected
    assert choose_precision("bf16", torch.device("cuda")) == torch.bfloat16
    assert choose_precision("auto", torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("head", ["linear", "text"])
@pytest.mark.parametrize("train", ["all", "adapters"])
def test_a_checkpoint_asks_for_clip_only_where_something_of_it_is_missing(train, head, tmp_path):
    torch.manual_seed(0)
    path, other = tmp_path / "clip.safetensors", tmp_path / "other.safetensors"
    for file in (path, other):
        trunk = VisionTransformer(ViTSpec(**GEOMETRY), project=True)
        save_file({f"visual.{k}": v for k, v in trunk.state_dict().items()} | {"logit_scale": torch.tensor(4.0)}, file)
    options = {"route_head_dim": 16, "train": train}
    described_model = ModelConfig("tada", GEOMETRY, str(path), num_frames=4, head={"type": head}, options=options)
    model = create_model("tada", GEOMETRY, 4, 8, {"type": head}, **options)
    if head == "text":
        model.head.set_text_features(torch.randn(8, 32))
    source = load_backbone(model, GEOMETRY, str(path))
    described = describe_backbone(model, described_model, source)
    tensors, meta = own_tensors(model, described), Meta(model.config, described, [])
    restored = restore_model(tensors, meta).state_dict()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in model.state_dict().items())
    if (train, head) == ("all", "linear"):
        path.unlink()
        older = replace(meta, backbone=replace(described, weights=str(path)))
        restored = restore_model(tensors, older).state_dict()
        assert all(torch.equal(tensor, restored[name]) for name, tensor in model.state_dict().items())
    else:
        with pytest.raises(ValueError, match="was trained on another backbone"):
            restore_model(tensors, meta, str(other))


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_bf16_moves_logits_by_less_than_what_tells_classes_apart(method):
    """How often two classes are closer than bf16 can tell is a matter of the clips and of the processor's rounding."""
    model = model_of(method).eval()
    half = copy.deepcopy(model)
    place(half, CPU.device, torch.bfloat16)
    assert half.trunk.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in half.trainable_parameters().values())
    clips = torch.randn(300, 3, 4, 32, 32)
    with autocast_for(CPU.device, torch.bfloat16)():
        logits = half(clips).float()
    exact = model(clips)
    spread, best = exact.std(1).mean(), exact.topk(2, dim=1)
    assert (logits - exact).square().mean().sqrt() < 0.015 * spread
    ahead = best.values[:, 0] - best.values[:, 1] > 0.1 * spread
    assert ahead.any() and torch.equal(logits[ahead].argmax(1), best.indices[ahead, 0])


@pytest.mark.parametrize("method", METHODS)
def test_training_in_bf16_follows_float32_and_leaves_the_trunk_alone(config, tmp_path, monkeypatch, method):  # noqa: F811
    import i2v.trainee as program

    models, build = [], program.build_model
    monkeypatch.setattr(program, "build_model", lambda *a: models.append(build(*a)) or models[-1])
    losses = []
    for precision in ("float32", "bf16"):
        overrides = [
            f"model.method={method}",
            f"model.options={METHODS[method]}",
            "model.head={type: linear, dropout: 0}",
            f"train.precision={precision}",
            "data.val=null",
            "train.log_every=1",
            f"out={tmp_path}/{precision}",
        ]
        if method == "zeroi2v":
            overrides[1] = "model.options={shift_div: 4, adapter_dropout: 0}"
        run(load_config(config, overrides), World(0, 1, torch.device("cpu")))
        losses.append([r["loss"] for r in result(tmp_path / precision)[1]])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    clip = read_state_dict(load_config(config).model.weights)
    model = models[0][0]
    trunk = next(name for name, module in model.named_modules() if module is model.trunk)
    frozen = {name.removeprefix(f"{trunk}."): p for name, p in model.frozen_parameters().items()}
    assert len(frozen) > 20
    for name, parameter in frozen.items():
        if name != "conv1.weight" or parameter.ndim == 4:  # TAda's stem is CLIP's, with a time axis
            assert torch.equal(parameter, clip[name]), name


@pytest.mark.parametrize("method, wanted", [("st_adapter", True), ("dist", True), ("st_adapter", "autotune")])
def test_compiled_blocks_keep_their_names_and_outputs(method, wanted):
    model = model_of(method).eval()
    clips = torch.randn(2, 3, 4, 32, 32)
    expected, names = model(clips), list(model.state_dict())
    compile_blocks(model, wanted)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(clips), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted, mode", [("true", None), ("autotune", "max-autotune-no-cudagraphs")])
def test_a_run_is_compiled_as_it_asks(wanted, mode, config, tmp_path, monkeypatch):  # noqa: F811
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options.get("mode")) or model)
    monkeypatch.setenv("CXX", sys.executable)  # a program that is there
    run(load_config(config, [f"train.compile={wanted}", "train.max_steps=1", f"out={tmp_path}/run"]), CPU)
    assert asked and set(asked) == {mode}


@pytest.mark.parametrize(
    "wanted, device, variable, programs",
    [("auto", "cuda", "CC", ("gcc", "clang")), (True, "cuda", "CC", ("gcc", "clang")), (True, "cpu", "CXX", ("g++",))],
)
def test_blocks_are_compiled_where_there_is_a_compiler(wanted, device, variable, programs, tmp_path, monkeypatch):
    """On an empty PATH there is none; the variable names another."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    compiles, note = may_compile(wanted, torch.device(device))
    assert not compiles and all(name in note for name in programs)
    for name in (programs[0], "mine"):
        (tmp_path / name).touch(mode=0o755)
    assert may_compile(wanted, torch.device(device)) == (True, "")
    (tmp_path / programs[0]).unlink()
    monkeypatch.setenv(variable, "mine")
    assert may_compile(wanted, torch.device(device)) == (True, "")


@pytest.mark.parametrize("wanted, device", [("auto", "cpu"), (False, "cpu"), (False, "cuda")])
def test_nothing_is_compiled_unasked(wanted, device):
    assert may_compile(wanted, torch.device(device)) == (False, "")
