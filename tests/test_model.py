"""The public API builds what it says, remembers it, and refuses the rest in one sentence."""

import json
import pkgutil
import subprocess
import sys

import pytest
import torch

import i2v
import i2v.methods
from benchmarks import trunks
from i2v.model import can_merge, method_module
from i2v.trunks import backbone_spec
from i2v.vit import ViTSpec
from tests import test_complexity, test_dead_work, test_export, test_heads, test_precision

TINY = dict(image_size=16, patch_size=8, width=32, layers=2, heads=2, embed_dim=24)
METHODS = {"clip": {}, "st_adapter": dict(adapter_width=8)}


@pytest.fixture(params=METHODS)
def model(request):
    torch.manual_seed(0)
    return i2v.create_model(request.param, TINY, num_frames=4, num_classes=5, **METHODS[request.param])


def test_shapes_and_features(model):
    clips = torch.randn(2, 3, 4, 16, 16)
    model.eval()
    features = model.forward_features(clips)
    assert features.shape == (2, model.backbone.feature_dim) and model(clips).shape == (2, 5)
    assert torch.equal(model(clips), model.head.fc(features))
    assert model.double()(clips.double()).dtype == torch.float64


@pytest.mark.parametrize("method, options", test_dead_work.METHODS, ids=str)
def test_no_clips_have_no_logits(method, options):
    model = test_dead_work.random_model(method, options)
    clips = torch.zeros(0, 3, 4, *[model.spec.image_size] * 2, dtype=torch.float64)
    assert model(clips).shape == model.eval()(clips).shape == (0, 5)


def test_only_trainable_parameters_get_gradients(model):
    model(torch.randn(2, 3, 4, 16, 16)).square().sum().backward()
    trained, frozen = model.trainable_parameters(), model.frozen_parameters()
    assert set(trained) | set(frozen) == set(dict(model.named_parameters())) and not set(trained) & set(frozen)
    assert {"head.fc.weight", "head.fc.bias"} <= set(trained) and "backbone.ln_post.weight" in frozen
    assert all(p.grad is not None for p in trained.values()) and all(p.grad is None for p in frozen.values())


def test_config_rebuilds_the_model(model):
    config = json.loads(json.dumps(model.config))
    assert config == model.config
    again = i2v.create_model(**config)
    assert again.config == model.config and (again.method, again.num_frames) == (model.method, 4)
    assert again.spec == model.spec == ViTSpec(**TINY)
    again.load_state_dict(model.state_dict(), strict=True)
    clips = torch.randn(2, 3, 4, 16, 16)
    assert torch.equal(again.eval()(clips), model.eval()(clips))


def test_config_holds_the_defaults():
    config = i2v.create_model("st_adapter", TINY, head={"dropout": 0.1}).config
    assert config["kernel_size"] == [3, 1, 1] and config["positions"] == ["pre_mlp"] and config["adapter_width"] == 384
    assert config["head"] == {"type": "linear", "dropout": 0.1, "init_std": 0.02}
    assert (config["num_frames"], config["num_classes"]) == (8, 400)


def test_head_initialisation_and_dropout():
    model = i2v.create_model("clip", {**TINY, "width": 512}, num_classes=400, head={"dropout": 0.9, "init_std": 0.5})
    assert abs(model.head.fc.weight.std().item() - 0.5) < 0.01 and not model.head.fc.bias.any()
    clips = torch.randn(1, 3, 2, 16, 16)
    assert not torch.equal(model(clips), model(clips)) and torch.equal(model.eval()(clips), model(clips))


def test_clip_baseline_averages_the_features_of_the_frames():
    model = i2v.create_model("clip", TINY, num_frames=3)
    clips = torch.randn(2, 3, 3, 16, 16)
    single = [model.forward_features(clips[:, :, t : t + 1]) for t in range(3)]
    torch.testing.assert_close(model.forward_features(clips), sum(single) / 3)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ViT-B-16", ViTSpec(224, 16, 768, 12, 12, 512)),
        ("ViT-B-32-quickgelu", ViTSpec(224, 32, 768, 12, 12, 512)),
        ("ViT-L-14-336", ViTSpec(336, 14, 1024, 24, 16, 768)),
        ("ViT-H-14", ViTSpec(224, 14, 1280, 32, 16, 1024)),
    ],
)
def test_open_clip_names(name, expected):
    assert backbone_spec(name) == expected


@pytest.mark.parametrize(
    "backbone, message",
    [
        ("ViT-B-61", "nearest: 'ViT-B-16'"),
        ("RN50", "not a plain ViT .a ResNet"),
        ("coca_ViT-B-32", "not a plain ViT .attentional_pool"),
        ("MobileCLIP-B", "backbone 'MobileCLIP-B': .* not a plain ViT .norms that are not LayerNorms"),
        ("timm/convnext_base", "timm/convnext_base is not a plain ViT .a ConvNeXt"),
        ("timm/vit_base_patch14_dinov4", "nearest: 'vit_base_patch14_dinov2'"),
        ({"name": "timm/vit_base_patch14_dinov2", "image_size": 225}, "image_size 225 is not a multiple of patch_size 14"),
        ({"name": "ViT-B-16", "width": 3}, "image_size and activation and nothing else"),
        ({"name": "ViT-B-16", "activation": "relu"}, "activation must be quick_gelu, gelu"),
        ({"width": 32}, "lacks image_size"),
        ({**TINY, "depth": 3}, "has unknown depth"),
        (None, "open_clip or timm name or a dict, got NoneType"),
    ],
)
def test_bad_backbones(backbone, message):
    with pytest.raises(ValueError, match=message):
        i2v.create_model("clip", backbone)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(method="st_adaptor"), ValueError, "nearest: 'st_adapter'.*clip, .*st_adapter"),
        (dict(method="st_adapter", adapter_widht=8), TypeError, "'adapter_widht' .nearest: 'adapter_width'.*positions"),
        (dict(method="clip", adapter_width=8), TypeError, "accepted are none"),
        (dict(method="clip", num_classes=0), ValueError, "num_classes must be a whole number, at least 1"),
        (dict(method="clip", num_frames=2.5), ValueError, "num_frames must be a whole number, at least 1"),
        (dict(method="clip", head={"type": "mlp"}), ValueError, "'mlp'.* is unknown: use a dict such as"),
        (dict(method="clip", head="linear"), ValueError, "head 'linear' is unknown"),
        (dict(method="clip", head={"drop": 0.1}), TypeError, "accepted are dropout, init_std"),
        (dict(method="clip", head={"dropout": 1.5}), ValueError, "dropout must be a finite number, at least 0 and below 1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        i2v.create_model(**{"backbone": TINY, **arguments})


@pytest.mark.parametrize(
    "shape, message",
    [((2, 3, 3, 4, 16, 16), "5 dimensions"), ((3, 4, 16, 16), "5 dimensions"), ((1, 3, 4, 32, 32), r"takes \(3, 16, 16\)")],
)
def test_bad_clips(model, shape, message):
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))


def test_which_methods_merge():
    names = [module.name for module in pkgutil.iter_modules(i2v.methods.__path__)]
    assert [name for name in names if can_merge(name)] == ["lora", "zeroi2v"]


def test_methods_without_a_merge_say_so(model):
    with pytest.raises(ValueError, match=f"'{model.method}' model cannot be merged"):
        i2v.merge_adapters(model)


@pytest.mark.process
def test_import_is_light():
    code = "import i2v, sys; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_lists_of_tests_that_go_over_all_methods_have_all():
    """A file in i2v/methods is a row in each of them; precision and gradients are of what trains more than a head."""
    methods = {found.name for found in pkgutil.iter_modules(i2v.methods.__path__)}
    own = {method for method in methods if hasattr(method_module(method), "Spec")}  # trunks: without tokens, nothing frozen
    lists = {
        "complexity": {method for method, *_ in test_complexity.MODELS},
        "dead_work": {method for method, _ in test_dead_work.METHODS} | own,
        "export": set(test_export.METHODS),
        "heads": set(test_heads.OPTIONS) | own,
        "precision": {*test_precision.METHODS, "clip"} | own,
        "trunks": set(trunks.METHODS) | own,
    }
    assert lists == dict.fromkeys(lists, methods)
