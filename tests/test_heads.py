"""The text head classifies as CLIP does with any method, and says what it lacks in one sentence."""

import copy
import json
import pkgutil

import open_clip
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file

import i2v
from i2v import methods
from i2v.config import ModelConfig
from i2v.heads import TEMPLATES
from i2v.model import method_module
from i2v.session import build_model
from i2v.text import text_features

TINY = dict(image_size=16, patch_size=8, width=32, layers=2, heads=2, embed_dim=24)
OPTIONS = {  # sizes that fit TINY
    "clip": {},
    "st_adapter": dict(adapter_width=8),
    "dist": dict(integration_dim=64, temporal_dim=8),
    "aim": {},
    "zeroi2v": {},
    "tada": dict(route_head_dim=8),
    "lora": {},
    "attentive": dict(heads=4),
}
NAMES_OF_METHODS = [module.name for module in pkgutil.iter_modules(methods.__path__)]
METHODS = [name for name in NAMES_OF_METHODS if not hasattr(method_module(name), "Spec")]  # others have no joint space
NAMES = ["bowling", "playing harp", "abseiling", "Pushing [something] off {a} table", "zumba"]


@pytest.fixture(scope="module")
def clip():
    """A small CLIP of open_clip's with random weights and CLIP's vocabulary."""
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=32, layers=2, head_width=16)
    text = open_clip.CLIPTextCfg(width=64, heads=1, layers=2)
    clip = open_clip.CLIP(24, vision, text, quick_gelu=True).eval()
    for name, parameter in clip.named_parameters():
        if parameter.ndim < 2 and name != "logit_scale":
            torch.nn.init.normal_(parameter, 1.0 * ("ln" in name and "weight" in name), std=0.2)
    return clip


def make(method="clip", head=None, num_classes=5):
    torch.manual_seed(1)
    head = {"class_names": NAMES} if head is None else head
    return i2v.create_model(method, TINY, 4, num_classes, {"type": "text", **head}, **OPTIONS[method]).eval()


def filled(method="clip"):
    return make(method, {"class_names": NAMES, "text_features": torch.randn(5, 24)})


CLIPS = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def test_zero_shot_clip_equals_open_clip(clip):
    model = make()
    report = i2v.load_weights(model, clip.state_dict(), layout="clip")
    assert {"head.proj", "head.logit_scale"} <= set(report.loaded) and report.missing == ["head.text_features"]
    model.head.set_text_features(text_features(NAMES, TINY, clip.state_dict(), TEMPLATES))
    assert not model.trainable_parameters()

    prompts = [lambda name, t=t: t.replace("{}", name) for t in TEMPLATES]
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    with torch.no_grad():
        classifier = open_clip.build_zero_shot_classifier(clip, tokenizer, NAMES, prompts)  # (E, K)
        images = clip.encode_image(rearrange(CLIPS, "b c t h w -> (b t) c h w"))
        images = rearrange(images, "(b t) e -> b t e", t=4)
        expected = clip.logit_scale.exp() * F.normalize(images.mean(dim=1), dim=-1) @ classifier
        torch.testing.assert_close(model(CLIPS), expected, atol=1e-5, rtol=0)
        one_frame = clip.logit_scale.exp() * F.normalize(images[:, 0], dim=-1) @ classifier
        torch.testing.assert_close(model(CLIPS[:, :, :1]), one_frame, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, clip):
    model = make(method)
    i2v.load_weights(model, clip.state_dict(), layout="clip")
    embeddings = text_features(NAMES, TINY, clip.state_dict(), ["{}"])
    model.head.set_text_features(3 * embeddings)  # their norm does not matter
    features = model.forward_features(CLIPS)
    if method != "dist":  # it ends in the joint space
        assert torch.equal(model.head.proj, clip.visual.proj) and features.shape == (2, 32)
        features = features @ clip.visual.proj
    expected = clip.logit_scale.exp() * F.cosine_similarity(features[:, None], embeddings[None], dim=-1)
    torch.testing.assert_close(model(CLIPS), expected, atol=1e-5, rtol=0)
    assert not any(name.startswith("head.") for name in model.trainable_parameters())
    assert (method == "clip") == (not model.trainable_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_config_and_state_dict_rebuild_the_model(method):
    model = filled(method)
    config = json.loads(json.dumps(model.config))
    assert config == model.config
    templates = ["{}"] if method == "dist" else list(TEMPLATES)
    assert config["head"] == {"type": "text", "class_names": NAMES, "templates": templates}
    again = i2v.create_model(**config).eval()
    assert not i2v.load_weights(again, model.state_dict(), layout="i2v").missing
    assert torch.equal(again(CLIPS), model(CLIPS)) and again.config == model.config


@pytest.mark.parametrize("method", [m for m in METHODS if m != "clip"])
def test_a_checkpoint_of_what_was_trained_needs_no_text_features(method):
    source, model = filled(method), filled(method)
    state = {k: v for k, v in source.state_dict().items() if k not in source.frozen_parameters()}
    for with_features in (True, False):
        if not with_features:
            state.pop("head.text_features")
        model.head.set_text_features(torch.ones(5, 24))
        report = i2v.load_weights(model, state, layout="i2v")
        assert set(report.loaded) == set(state) and "head.text_features" not in report.missing
        expected = source.head.text_features if with_features else torch.ones(5, 24)
        assert torch.equal(model.head.text_features, expected)


def test_forward_needs_text_features():
    model = make()
    for _ in range(2):
        with pytest.raises(ValueError, match="no text_features yet: .* model.head.set_text_features"):
            model(CLIPS)
    state = copy.deepcopy(filled().state_dict())
    i2v.load_weights(model, state, layout="i2v")
    assert model(CLIPS).isfinite().all()


def test_clip_layout_needs_the_projection(clip):
    state = {k: v for k, v in clip.state_dict().items() if k != "visual.proj"}
    with pytest.raises(ValueError, match="1 missing .head.proj"):
        i2v.load_weights(make(), state, layout="clip")
    tower = {k.removeprefix("visual."): v for k, v in clip.state_dict().items() if k.startswith("visual.")}
    report = i2v.load_weights(make(), tower, layout="clip")  # a bare image tower has no logit_scale: CLIP's 100 stays
    assert "head.proj" in report.loaded and report.missing == ["head.logit_scale", "head.text_features"]


def test_bfloat16_autocast_leaves_the_logits_in_float32():
    model = filled()
    features = model.forward_features(CLIPS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.head(features), model.head(features.detach()))
        logits = model.head(features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, model.head(features))
    assert model.double()(CLIPS.double()).dtype == torch.float64


def test_compiles_without_graph_breaks():
    head, features = filled().head, torch.randn(2, 32, requires_grad=True)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), head(features))


@pytest.mark.parametrize("form", ["openai", "open_clip file", "text. prefix", "tag"])
def test_text_features_from_every_kind_of_file(form, clip, tmp_path, monkeypatch):
    state, path = clip.state_dict(), tmp_path / "clip.safetensors"
    expected = text_features(NAMES[:2], TINY, state)
    assert expected.shape == (2, 24) and not expected.requires_grad
    torch.testing.assert_close(expected.norm(dim=-1), torch.ones(2))
    backbone, weights = TINY, path
    if form == "openai":
        save_file({**{k: v.half() for k, v in state.items()}, "context_length": torch.tensor(77)}, path)
    elif form == "text. prefix":
        text = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
        save_file({f"text.{k}" if k.startswith(text) else k: v.clone() for k, v in state.items()}, path)
    else:
        save_file({k: v.clone() for k, v in state.items()}, path)
    if form == "tag":
        known = {("ViT-B-32", "openai", "quick_gelu"): path}
        monkeypatch.setattr("i2v.text.backbone_file", lambda *arguments: known[arguments])
        monkeypatch.setattr("i2v.text.backbone_spec", lambda name, tag: make().spec)
        backbone, weights = "ViT-B-32", "openai"
    tolerance = 2e-3 if form == "openai" else 1e-6
    torch.testing.assert_close(text_features(NAMES[:2], backbone, weights), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("sized", [False, True])
def test_the_tag_decides_the_activation_of_the_text_tower_too(quick_gelu, sized, tmp_path, monkeypatch):
    """A text head's embeddings are open_clip's own of the same name and tag, as a run makes them and as a program does."""
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setattr(open_clip, "list_models", lambda: ["ViT-tiny"])
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: copy.deepcopy(config))
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["another", "a-tag"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"quick_gelu": quick_gelu == (tag == "a-tag")})
    theirs, path = open_clip.CLIP(**config, quick_gelu=quick_gelu).eval(), tmp_path / "clip.safetensors"
    with torch.no_grad():
        for parameter in theirs.transformer.parameters():
            parameter.mul_(4)  # so that the activations differ
    save_file({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, path)
    for user in ("session", "text"):
        monkeypatch.setattr(f"i2v.{user}.backbone_file", lambda name, tag, activation: path)
    with torch.no_grad():
        expected = F.normalize(theirs.encode_text(open_clip.tokenize(NAMES)), dim=-1)
    backbone = {"name": "ViT-tiny", "image_size": 32} if sized else "ViT-tiny"
    for told in ({"type": "text"}, {"class_names": NAMES}):
        head = told | {"templates": ["{}"]}
        model, _ = build_model(ModelConfig("clip", backbone, "a-tag", num_frames=2, head=head), NAMES)
        torch.testing.assert_close(model.head.text_features, expected)
    torch.testing.assert_close(text_features(NAMES, backbone, "a-tag", ["{}"]), expected)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(remove="token_embedding.weight"), "no text tower .token_embedding.weight is missing"),
        (dict(remove="ln_final.bias"), "no text tower of CLIP's kind .*ln_final.bias"),
        (dict(remove="text_projection"), "no text tower of CLIP's kind .*text_projection"),
        (dict(vocabulary=1000), "has 1000 tokens, CLIP's tokeniser 49408"),
        (dict(embed_dim=32), "embeds texts in 24 dimensions but the backbone's embed_dim is 32"),
        (dict(templates=["a video"]), "one {} each"),
        (dict(templates="{}"), "one {} each"),
    ],
)
def test_text_features_errors(change, message, clip):
    state = {k: v for k, v in clip.state_dict().items() if k != change.get("remove")}
    if "vocabulary" in change:
        state["token_embedding.weight"] = state["token_embedding.weight"][: change["vocabulary"]]
    backbone = {**TINY, "embed_dim": change.get("embed_dim", 24)}
    with pytest.raises(ValueError, match=message):
        text_features(NAMES, backbone, state, change.get("templates", TEMPLATES))


@pytest.mark.parametrize(
    "head, error, message",
    [
        (dict(class_names=NAMES[:4]), ValueError, "class_names has 4 names but num_classes is 5"),
        (dict(class_names="bowling"), ValueError, "class_names must be a list of texts"),
        (dict(class_names=[*NAMES[:4], " "]), ValueError, "class_names must be a list of texts"),
        (dict(text_features=torch.zeros(4, 24)), ValueError, r"text_features is \(4, 24\) but .* tensor \(5, 24\)"),
        (dict(text_features=torch.zeros(5, 32)), ValueError, r"text_features is \(5, 32\) but .* tensor \(5, 24\)"),
        (dict(text_features=[[0.0] * 24] * 5), ValueError, "text_features is list but"),
        (dict(text_features=torch.full((5, 24), float("nan"))), ValueError, "not finite"),
        (dict(templates=[]), ValueError, "templates must be a list of texts with one {} each"),
        (dict(templates=["a video of {} and {}"]), ValueError, "templates must be a list of texts with one {} each"),
        (dict(names=NAMES), TypeError, "'names' .*accepted are class_names, text_features, templates"),
        (dict(dropout=0.5), TypeError, "head 'text' has no option 'dropout'"),
    ],
)
def test_bad_heads(head, error, message):
    with pytest.raises(error, match=message):
        make(head=head)
