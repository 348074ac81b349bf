"""Folders of Hugging Face's transformers as a backbone: the same features, from the folder alone; what is none says so."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

import i2v
from i2v.archive import read_file
from i2v.config import ModelConfig
from i2v.huggingface import to_timm
from i2v.session import build_model
from i2v.trunks import backbone_spec, plain
from tests.references import tensors

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
TEXT |= {"max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1}
MODELS = {  # transformers' class, and its configuration
    "CLIP": ("CLIPModel", {"text_config": TEXT, "vision_config": SIZES | {"intermediate_size": 24}, "projection_dim": 4}),
    "DINOv2": ("Dinov2Model", SIZES | {"mlp_ratio": 2}),
    "DINOv2 giant": ("Dinov2Model", SIZES | {"mlp_ratio": 4, "use_swiglu_ffn": True}),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", SIZES | {"num_register_tokens": 3}),
    "DINOv3": ("DINOv3ViTModel", SIZES | {"intermediate_size": 32, "num_register_tokens": 2}),
    "DINOv3 plus": ("DINOv3ViTModel", SIZES | {"intermediate_size": 24, "use_gated_mlp": True, "hidden_act": "silu"}),
    "SigLIP": ("SiglipVisionModel", SIZES | {"intermediate_size": 24}),
    "SigLIP with text": ("SiglipModel", {"text_config": TEXT, "vision_config": SIZES | {"intermediate_size": 32}}),
}


def of_transformers(transformers, name, **other):
    """A model of MODELS with random values everywhere."""
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model = model(model.config_class(**{**config, **other})).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def features_of(theirs, images):
    return getattr(theirs, "vision_model", theirs)(images).pooler_output.contiguous()


@torch.no_grad()
def assert_same_features(backbone, weights, images, features):
    model = i2v.create_model("clip", backbone, 1, 5).eval()
    report = i2v.load_weights(model, weights, "clip")
    assert report.missing == ["head.fc.bias", "head.fc.weight"] and "its names are those of Hugging Face's " in report.notes[-1]
    torch.testing.assert_close(model.forward_features(images[:, :, None]), features, atol=1e-5, rtol=0)


# ---- with what transformers computed ---------------------------------------------------------------------------------


def golden(name):
    """(weights, images, features, config.json) of a model of MODELS."""
    found, configs = tensors("huggingface-1.safetensors")
    weights = {key.removeprefix(f"{name}/weight/"): value for key, value in found.items() if key.startswith(f"{name}/weight/")}
    return weights, found["images"], found[f"{name}/features"], configs[name]


@pytest.fixture
def folder(tmp_path):
    """Writes a model as save_pretrained does."""

    def write(name="DINOv2 with registers", **changes):
        weights, _, _, config = golden(name)
        save_file(weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_transformers(folder, name):
    _, images, features, _ = golden(name)
    assert_same_features(folder(name), folder(name), images, features)


def test_a_backbone_that_is_a_folder_needs_no_weights(folder):
    _, images, features, _ = golden("DINOv3")
    path = folder("DINOv3")
    model, source = build_model(ModelConfig("clip", path, num_frames=1), ["a", "b"])
    assert source == path
    with torch.no_grad():
        torch.testing.assert_close(model.eval().forward_features(images[:, :, None]), features, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="has no weights 'webli' but its own: leave weights out"):
        build_model(ModelConfig("clip", path, weights="webli"), ["a", "b"])


@pytest.mark.parametrize("name", ["DINOv2", "SigLIP with text"])
def test_several_files_with_an_index(folder, tmp_path, name):
    path = folder(name)
    state = read_file(path)
    (tmp_path / "model.safetensors").unlink()
    parts = {f"model-{i}-of-2.safetensors": dict(list(state.items())[i - 1 :: 2]) for i in (1, 2)}
    for part, values in parts.items():
        save_file(values, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {key: part for part, values in parts.items() for key in values}}))
    _, images, features, _ = golden(name)
    for weights in (path, index):
        assert_same_features(path, weights, images, features)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint file .*model-2-of-2"):
        read_file(path)
    for damage in ("{", "[]", '{"weight_map": {"a": 3}}'):
        index.write_text(damage)
        with pytest.raises(ValueError, match="is damaged or no index of checkpoint files"):
            read_file(path)


TIMMS = {"embed_dim": 8, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8, "reg_tokens": 3}


def test_at_another_size_it_is_what_timm_makes_of_the_same_weights(folder):
    path = folder()
    theirs = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0, **TIMMS).eval()
    state = to_timm(read_file(path))
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"blocks.{layer}.attn.{x}_proj.{kind}") for x in "qkv"]
            state[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    del state["mask_token"]
    of_class, state["pos_embed"] = state["pos_embed"].split((1, 16), dim=1)  # which timm adds once and for all
    state["cls_token"] = state["cls_token"] + of_class
    theirs.load_state_dict(state, strict=True)
    theirs.set_input_size((48, 48))
    model = i2v.create_model("clip", {"name": path, "image_size": 48}, 1, 5).eval()
    assert "positions were resampled from 4 x 4 to 6 x 6 patches" in i2v.load_weights(model, path).notes
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images[:, :, None]), theirs(images), atol=1e-5, rtol=0)


def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path):
    """The base models, beside timm's: what is published has little in its vision_config."""
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "siglip", "text_config": {}, "vision_config": {"model_type": "siglip_vision_model"}}')
    own = {"activation": "gelu_tanh"}
    assert plain(backbone_spec(str(tmp_path))) == plain(backbone_spec("timm/vit_base_patch16_siglip_224")) | own
    file.write_text('{"model_type": "clip", "vision_config": {"patch_size": 16}, "projection_dim": 512}')
    assert backbone_spec(str(tmp_path)) == backbone_spec("ViT-B-16")
    file.write_text('{"model_type": "dinov2", "image_size": [518, 518]}')
    assert backbone_spec(str(tmp_path)) == backbone_spec("timm/vit_base_patch14_dinov2")
    file.write_text('{"model_type": "dinov3_vit", "num_register_tokens": 4}')
    found, timms = (
        plain(backbone_spec({"name": name, "image_size": 224})) for name in (str(tmp_path), "timm/vit_small_patch16_dinov3")
    )
    assert (found.pop("pool"), timms.pop("pool")) == ("class", "normed_mean")  # what stands for a picture, there and there
    assert found.pop("rotary") == pytest.approx(timms.pop("rotary")) and found == timms


def test_colours_are_those_of_the_folder(folder, tmp_path):
    path = folder()
    assert backbone_spec(path).mean == (0.485, 0.456, 0.406)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    assert backbone_spec(path).pictures == {"size": 32, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.1]}')
    with pytest.raises(ValueError, match="mean must be"):
        backbone_spec(path)


# ---- what is none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "has no config.json, which says what it is: give a folder as Hugging Face's save_pretrained writes it"),
        ("{", "config.json cannot be read as JSON"),
        ("[]", "config.json holds no section"),
        ("{}", "a model of type None, which is no image model known here: known are clip, siglip, clip_vision_model"),
        ('{"model_type": "bert"}', "a model of type 'bert', which is no image model known here"),
        ('{"model_type": "siglip_text_model"}', "a model of type 'siglip_text_model'"),
        ('{"model_type": "siglip2_vision_model"}', "a model of type 'siglip2_vision_model'"),
        (
            '{"architecture": "vit_base_patch14_dinov2"}',
            "is timm's: give timm/vit_base_patch14_dinov2 and the folder as weights",
        ),
        ('{"model_type": "siglip_vision_model", "vision_use_head": false}', "no trunk .* .vision_use_head is False"),
        ('{"model_type": "dinov2", "num_channels": 4}', "num_channels is 4"),
        ('{"model_type": "dinov2", "hidden_act": "relu"}', "hidden_act is 'relu'"),
        ('{"model_type": "dinov3_vit", "use_gated_mlp": true}', "hidden_act is 'gelu'"),
        ('{"model_type": "dinov2", "image_size": [224, 336]}', "224, 336. is no square"),
        ('{"model_type": "dinov2", "hidden_size": "768"}', "describes no trunk"),
        ('{"model_type": "dinov2", "patch_size": 0}', "describes no trunk"),
        ('{"model_type": "dinov2", "patch_size": null}', "describes no trunk"),
        ('{"model_type": "dinov3_vit", "num_register_tokens": -1}', "registers must be"),
        ('{"model_type": "clip", "vision_config": 3}', "describes no trunk"),
    ],
)
def test_folders_that_are_no_backbone(tmp_path, config, message):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message) as raised:
        backbone_spec(str(tmp_path))
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_name_of_the_hub_is_no_folder():
    with pytest.raises(ValueError, match="facebook/dinov2-base is no open_clip name and no folder here: give a folder"):
        backbone_spec("facebook/dinov2-base")


def test_an_image_size_that_is_no_multiple(folder):
    with pytest.raises(ValueError, match="image_size 30 is not a multiple of patch_size 8"):
        backbone_spec({"name": folder(), "image_size": 30})


@pytest.mark.parametrize(
    "name, lost, message",
    [
        (
            "DINOv2",
            "encoder.layer.1.attention.attention.key.weight",
            "is damaged or no whole model of Hugging Face's DINOv2 .*: download it again",
        ),
        ("DINOv2", "encoder.layer.1.norm1.weight", "download it again|1 missing .*ln_1.weight"),
        ("DINOv3 plus", "layer.0.mlp.up_proj.weight", "is damaged or no whole model of Hugging Face's DINOv3"),
        ("SigLIP", "head.probe", "1 missing .*attn_pool.query"),
    ],
)
def test_a_file_that_lacks_a_tensor(folder, tmp_path, name, lost, message):
    path = folder(name)
    state = read_file(path)
    del state[lost]
    save_file(state, tmp_path / "model.safetensors")
    model = i2v.create_model("clip", path, 1, 5)
    with pytest.raises(ValueError, match=message):
        i2v.load_weights(model, path, "clip")


def test_the_weights_of_another_family(folder):
    state = golden("SigLIP")[0]
    with pytest.raises(ValueError, match="does not fit the model"):
        i2v.load_weights(i2v.create_model("clip", folder("DINOv2"), 1, 5), state, "clip")


# ---- with transformers -----------------------------------------------------------------------------------------------

OTHER = {  # sizes and switches that the golden models do not have
    "DINOv2": {"qkv_bias": False, "image_size": 40, "hidden_size": 12, "num_attention_heads": 3, "mlp_ratio": 4},
    "DINOv2 giant": {"mlp_ratio": 2, "patch_size": 16},
    "DINOv2 with registers": {"num_register_tokens": 1, "num_hidden_layers": 3},
    "DINOv3": {"query_bias": False, "value_bias": False, "rope_theta": 20.0, "num_register_tokens": 0, "image_size": 48},
    "DINOv3 plus": {"num_register_tokens": 3, "hidden_size": 16},
    "SigLIP": {"hidden_act": "gelu", "layer_norm_eps": 1e-3, "image_size": 24},
}


@pytest.mark.parametrize("name", OTHER)
def test_features_are_those_of_transformers_with_other_sizes(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = of_transformers(transformers, name, **OTHER[name])
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    size = theirs.config.image_size
    images = torch.randn(2, 3, size, size)
    for weights in (tmp_path, theirs.state_dict()):  # names in files, and in memory
        assert_same_features(str(tmp_path), weights, images, features_of(theirs, images))
