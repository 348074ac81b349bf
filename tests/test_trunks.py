"""A trunk of any family computes what its library computes, every method runs on it, and files fit or say why not."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import i2v
from benchmarks.trunks import FAMILIES, FRESH, METHODS, distance_when_fresh, losses, moving_clips, on_trunk, small_model
from i2v.model import can_merge
from i2v.text import named_tower
from i2v.timm_towers import UNUSED, from_timm, spec_of_timm
from i2v.trunks import backbone_file, backbone_spec, not_known, plain
from i2v.vit import VisionTransformer, ViTSpec, class_and_patches


def clip_model(theirs):
    return i2v.create_model("clip", plain(spec_of_timm(theirs)), 1, 5)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return small_model(request.param)


def test_features_are_timms(family):
    spec = spec_of_timm(family)
    assert ViTSpec(**json.loads(json.dumps(plain(spec)))) == spec
    ours = VisionTransformer(spec, project=True)
    ours.load_state_dict(from_timm(family.state_dict(), spec)[0], strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), family(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["SigLIP, SigLIP 2", "PE-Core", "EVA-02 CLIP"])
def test_a_head_of_timms_is_the_projection(name):
    theirs = small_model(name, num_classes=24)
    spec = spec_of_timm(theirs)
    assert (spec.embed_dim, spec.projection) == (24, "affine" if theirs.head.bias is not None else "linear")
    ours = VisionTransformer(spec, project=True)
    ours.load_state_dict(from_timm(theirs.state_dict(), spec)[0], strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_family(family, method):
    """Fresh, it is the image model with pooled frames; it trains; and what merges has the same logits."""
    model, (clips, labels) = on_trunk(method, family), moving_clips()
    if method in FRESH:
        assert distance_when_fresh(model, family, clips) < 1e-4
    first, *_, last = losses(model, clips, labels)
    assert last < first and all(p.grad is not None for p in model.trainable_parameters().values())
    if can_merge(method):
        with torch.no_grad():
            torch.testing.assert_close(i2v.merge_adapters(model.eval())(clips), model(clips), atol=1e-4, rtol=1e-4)


def test_a_fresh_model_averages_the_frames_of_a_moving_clip(family):
    """LoRA and frozen features finish each frame and average."""
    clips, _ = moving_clips()
    with torch.no_grad():
        frames = family(clips[0].transpose(0, 1)).mean(0, keepdim=True)
        for method in ("clip", "lora"):
            model = on_trunk(method, family).eval()
            torch.testing.assert_close(model.forward_features(clips[:1]), frames, atol=1e-4, rtol=1e-4)


def test_tokens_without_registers_and_with_a_class_token():
    tokens = torch.arange(2 * 9 * 3.0).view(2, 9, 3)
    small = dict(image_size=16, patch_size=8, width=4, layers=1, heads=1, embed_dim=4)
    spec = ViTSpec(**small, registers=4)
    assert torch.equal(class_and_patches(tokens, spec), tokens[:, [0, 5, 6, 7, 8]])
    spec = ViTSpec(**small, class_token=False, pool="mean")
    with_mean = class_and_patches(tokens[:, :4], spec)
    assert torch.equal(with_mean[:, 1:], tokens[:, :4]) and torch.equal(with_mean[:, 0], tokens[:, :4].mean(1))
    assert class_and_patches(tokens, ViTSpec(**small)) is tokens


# ---- names -----------------------------------------------------------------------------------------------------------


def test_the_tag_decides_the_activation_and_the_colours():
    plain_clip = ViTSpec(224, 16, 768, 12, 12, 512)
    assert (
        backbone_spec("ViT-B-16") == backbone_spec("ViT-B-16", "openai") == backbone_spec("ViT-B-16", "a/file.pt") == plain_clip
    )
    assert backbone_spec("ViT-B-16", "laion2b_s34b_b88k").activation == "gelu"
    assert backbone_spec({"name": "ViT-B-16", "activation": "gelu"}, "a/file.pt") == replace(plain_clip, activation="gelu")
    assert backbone_spec("ViT-B-16-quickgelu", "metaclip_400m").activation == "quick_gelu"
    assert backbone_spec("roberta-ViT-B-32", "laion2b_s12b_b32k").activation == "quick_gelu"  # as its model, not its tag, says
    siglip = backbone_spec("ViT-B-16-SigLIP2", "webli")
    assert (siglip.pool, siglip.projection, siglip.class_token, siglip.mean) == ("attention", "none", False, (0.5,) * 3)
    assert backbone_spec("ViT-L-14-CLIPA", "datacomp1b").pool == "mean"
    assert backbone_spec("ViT-bigG-14", "laion2b_s39b_b160k").mlp_width == 8192
    assert backbone_spec("EVA02-B-16", "merged2b_s8b_b131k").projection == "affine"


def test_of_a_file_it_is_what_all_weights_of_that_name_have_and_else_it_is_said():
    clipa = backbone_spec("ViT-H-14-CLIPA", "a/file.pt")
    assert clipa == backbone_spec("ViT-H-14-CLIPA", "datacomp1b") and (clipa.activation, clipa.mean[0]) == ("gelu", 0.485)
    for name in ("ViT-g-14", "ViT-S-16"):  # of the second nothing is published: as open_clip's model has it
        assert backbone_spec(name, "a/file.pt").activation == "gelu"
    said = not_known("ViT-B-16", "a/file.pt")
    assert said == not_known({"name": "ViT-B-16", "image_size": 64}, "a/file.pt")
    assert said.startswith("note: a/file.pt is taken to be trained with quick_gelu, as OpenAI's; if it was with gelu, as laion")
    said = not_known("timm/vit_base_patch16_224", "a/file.pt")
    assert "trained with colours whose mean is 0.5, as augreg" in said and "dino 0.485" in said and "224.TAG." in said
    assert backbone_spec("timm/vit_base_patch16_224.dino", "a/file.pt").mean[0] == 0.485
    for backbone, weights in {
        "timm/vit_base_patch16_224": "dino",
        "timm/vit_base_patch16_224.dino": "a/file.pt",
        "ViT-B-16": "openai",
        "ViT-L-14": "laion2b_s32b_b82k",
        "ViT-B-32": "random",
        "ViT-H-14": "openai",  # which it has not: as is said where it is looked for
        "ViT-H-14-CLIPA": "a/file.pt",
        "ViT-B-16-quickgelu": "a/file.pt",
        "timm/vit_base_patch14_dinov2": "a/file.pt",
        "/models/dinov2-base": "openai",
    }.items():
        assert not_known(backbone, weights) is None
    for backbone in ({"name": "ViT-B-16", "activation": "quick_gelu"}, {"image_size": 32, "width": 64}):
        assert not_known(backbone, "a/file.pt") is None


def test_timms_names_have_their_own_size_and_another_on_request():
    own = backbone_spec("timm/vit_base_patch14_dinov2")
    assert (own.image_size, own.patch_bias, own.projection) == (518, True, "none")
    assert backbone_spec("timm/vit_base_patch14_dinov2.lvd142m") == own
    smaller = backbone_spec({"name": "timm/vit_base_patch14_dinov2", "image_size": 224})
    assert plain(smaller) == plain(own) | {"image_size": 224}
    turned = backbone_spec({"name": "timm/vit_base_patch16_dinov3", "image_size": 224})
    assert turned.rotary != backbone_spec("timm/vit_base_patch16_dinov3").rotary  # its positions are relative to the picture


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(rotary={"base": 100}), "rotary must be a section with base, first, step"),
        (dict(class_token=False), "pool is class, but class_token is false"),
        (dict(projection="none", embed_dim=16), "embed_dim is the width 64, not 16"),
        (dict(mean=[0.5, 0.5]), "mean must be a list, three numbers"),
        (dict(std=[1, 1, 0]), "std must be more than 0"),
        (
            dict(heads=32, rotary={"base": 100, "first": 0, "step": 1, "axes": "yx", "pairs": "halves"}),
            "a multiple of 4 channels",
        ),
    ],
)
def test_bad_specs(change, message):
    with pytest.raises(ValueError, match=message):
        ViTSpec(**{**dict(image_size=32, patch_size=8, width=64, layers=2, heads=4, embed_dim=32), **change})


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_folder_as_the_hub_lays_it_out(tmp_path):
    theirs = small_model("DINOv2 with registers")
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = clip_model(theirs).eval()
    report = i2v.load_weights(model, tmp_path)
    assert "its names are those of timm" in report.notes
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images[:, :, None]), theirs(images), atol=1e-5, rtol=0)


def test_positions_of_another_size_are_resampled_as_timm_does_and_it_is_said(tmp_path):
    theirs = small_model("DINOv2")
    state = theirs.state_dict()
    theirs.set_input_size((48, 48))
    model = clip_model(theirs).eval()
    report = i2v.load_weights(model, state)
    assert "positions were resampled from 4 x 4 to 6 x 6 patches" in report.notes
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images[:, :, None]), theirs(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "of, into, message",
    [
        ("DINOv2 with registers", "DINOv2", "1 unexpected .*register_embedding"),
        ("DINOv2", "DINOv2 with registers", "1 missing .*register_embedding"),
        ("SigLIP, SigLIP 2", "DINOv2", "unexpected .*attn_pool"),
        ("EVA-02", "DINOv2", "ln|norm"),
        ("CLIP", "SigLIP, SigLIP 2", "missing"),
    ],
)
def test_a_checkpoint_of_another_family(of, into, message):
    model = clip_model(small_model(into))
    before = model.backbone.conv1.weight.clone()
    with pytest.raises(ValueError, match=message):
        i2v.load_weights(model, small_model(of).state_dict(), "clip")
    assert torch.equal(model.backbone.conv1.weight, before)


@given(data=st.data())
@settings(deadline=None, max_examples=12)
def test_a_tensor_that_is_gone_or_has_lost_something_is_refused(family, data):
    """Nothing is filled up, stretched or left out: the others of its kind show what it should have been."""
    state = family.state_dict()
    name = data.draw(st.sampled_from(sorted(set(state) - set(UNUSED))))
    how = data.draw(st.sampled_from(["gone", "shorter", "a scalar"]))
    damaged = {key: value for key, value in state.items() if key != name}
    if how != "gone":
        damaged[name] = state[name][..., :-1] if how == "shorter" else state[name].flatten()[0]
    with pytest.raises(ValueError, match="download it again|does not fit the model"):
        i2v.load_weights(clip_model(family), damaged, "clip")


def test_tags_of_timm(monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: f"/cache/{repo}/{name}")
    where = backbone_file("timm/vit_base_patch14_dinov2", "lvd142m", "gelu")
    assert str(where) == "/cache/timm/vit_base_patch14_dinov2.lvd142m/model.safetensors"
    with pytest.raises(ValueError, match="has no weights 'lvd142': use one of lvd142m"):
        backbone_file("timm/vit_base_patch14_dinov2", "lvd142", "gelu")


# ---- text ------------------------------------------------------------------------------------------------------------


def test_zero_shot_of_a_model_with_timms_tower_and_its_own_text_tower(monkeypatch):
    """As open_clip computes it, SigLIP's shape: no class token, no projection, a text tower under "text."."""
    torch.manual_seed(0)
    config = {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 32,
            "timm_model_name": "vit_base_patch16_siglip_224",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 4, "layers": 1, "no_causal_mask": True}
        | {"proj_bias": True, "pool_type": "last", "hf_tokenizer_name": "none"},
    }
    tower = small_model("SigLIP, SigLIP 2")
    text = open_clip.model._build_text_tower(64, config["text_cfg"]).eval()
    state = {f"visual.trunk.{name}": value for name, value in tower.state_dict().items()}
    state |= {f"text.{name}": value for name, value in text.state_dict().items()}
    state |= {"logit_scale": torch.tensor(4.0), "logit_bias": torch.tensor(-10.0)}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: lambda texts: torch.randint(1, 50, (len(texts), 8)))
    ours, _ = named_tower("small", "gelu", state, "the state dict")
    tokens = torch.randint(1, 50, (5, 8))
    with torch.no_grad():
        features = text(tokens)
        assert torch.equal(ours(tokens), features)
    model = i2v.create_model("clip", plain(spec_of_timm(tower)), 1, 5, {"text_features": features}).eval()
    report = i2v.load_weights(model, state, "clip")
    assert "logit_bias" in report.ignored and "text.positional_embedding" in report.ignored
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        cosine = torch.nn.functional.normalize(tower(images)) @ torch.nn.functional.normalize(features).T
        torch.testing.assert_close(model(images[:, :, None]), torch.tensor(4.0).exp() * cosine, atol=1e-3, rtol=1e-4)


def test_a_trunk_without_a_text_tower_says_so():
    from i2v.text import text_features

    with pytest.raises(ValueError, match="timm/vit_base_patch14_dinov2 has no text tower"):
        text_features(["a"], "timm/vit_base_patch14_dinov2", {"x": torch.zeros(1)})


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def test_lora_is_pefts_on_the_same_layers():
    """The same numbers, loss and gradients as PEFT's, which wraps our model as it is."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    geometry = dict(image_size=32, patch_size=8, width=64, layers=2, heads=4, embed_dim=32)
    torch.manual_seed(0)
    head = {"type": "linear", "dropout": 0}
    ours = i2v.create_model("lora", geometry, 2, 5, head, rank=4, alpha=8, targets=["out", "fc1", "fc2"])
    theirs = i2v.create_model("clip", geometry, 2, 5, head)
    theirs.load_state_dict({name: value for name, value in ours.state_dict().items() if "low_rank" not in name})
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["out_proj", "c_fc", "c_proj"], lora_dropout=0.0)
    theirs = peft.get_peft_model(theirs, config)
    updates = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if "low_rank" in name:
            torch.nn.init.normal_(parameter, std=0.1)
            updates["base_model.model." + name.replace("low_rank.", "") + ".default.weight"].data.copy_(parameter)
    clips = torch.randn(2, 3, 2, 32, 32)
    for model in (ours, theirs):
        torch.nn.functional.cross_entropy(model(clips), torch.tensor([1, 3])).backward()
    torch.testing.assert_close(theirs(clips), ours(clips), atol=1e-5, rtol=0)
    for name, parameter in ours.named_parameters():
        if "low_rank" in name:
            gradient = updates["base_model.model." + name.replace("low_rank.", "") + ".default.weight"].grad
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "method, options, message",
    [
        ("lora", dict(targets=["qkv"]), "targets must be a list of some of q, k, v, out, fc1, fc2"),
        ("lora", dict(targets="q"), "targets must be a list"),
        ("lora", dict(rank=65), "rank must be at most the backbone's width 64"),
        ("lora", dict(rank=0), "rank must be a whole number, at least 1"),
        ("attentive", dict(heads=5), "heads must divide the backbone's width 64"),
        ("attentive", dict(depth=0), "depth must be a whole number, at least 1"),
    ],
)
def test_bad_options(method, options, message):
    geometry = dict(image_size=32, patch_size=8, width=64, layers=2, heads=4, embed_dim=32)
    with pytest.raises(ValueError, match=message):
        i2v.create_model(method, geometry, 2, 5, **options)


def test_merging_twice():
    geometry = dict(image_size=32, patch_size=8, width=64, layers=2, heads=4, embed_dim=32)
    merged = i2v.merge_adapters(i2v.create_model("lora", geometry, 2, 5))
    again = i2v.create_model(**merged.config)
    again.load_state_dict(merged.state_dict(), strict=True)
    assert not any("lora" in name for name in again.state_dict())
    with pytest.raises(ValueError, match="merged already"):
        i2v.merge_adapters(merged)
