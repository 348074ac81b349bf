"""A checkpoint is loaded completely or refused in one sentence, whatever kind of file it is."""

import copy
import warnings
from argparse import Namespace

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import save_file

import i2v
from i2v.trunks import backbone_file, backbone_spec
from i2v.weights import fingerprint, read_state_dict

TINY = dict(image_size=16, patch_size=8, width=32, layers=2, heads=2, embed_dim=24)


def make(seed=0, method="st_adapter"):
    """A model with every parameter random."""
    torch.manual_seed(seed)
    options = {"adapter_width": 8} if method == "st_adapter" else {}
    model = i2v.create_model(method, TINY, num_frames=4, num_classes=5, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def full_clip():
    vision = open_clip.CLIPVisionCfg(image_size=16, patch_size=8, width=32, layers=2, head_width=16)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=64, width=32, heads=2, layers=1)
    state = open_clip.CLIP(24, vision, text, quick_gelu=True).state_dict()
    return {**state, "input_resolution": torch.tensor(16), "context_length": 8, "vocab_size": torch.tensor(64)}


def visual(state):
    return {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}


def authors(model):
    return {k.removeprefix("backbone.").removeprefix("head."): v for k, v in model.state_dict().items()}


def assert_trunk_is(model, state):
    names = [n for n in visual(state) if n != "proj"]
    assert len(names) == len([n for n in model.backbone.state_dict() if "adapter" not in n])
    for name in names:
        assert torch.equal(model.backbone.state_dict()[name], visual(state)[name].float()), name


@pytest.mark.parametrize("layout", ["clip", "auto"])
@pytest.mark.parametrize(
    "form",
    [
        lambda s: s,
        visual,
        lambda s: {k: v for k, v in s.items() if k.startswith("visual.")},
        lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {k: v.half() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in s.items()},
    ],
    ids=["full", "visual only", "visual prefix", "DDP", "fp16"],
)
def test_clip_layout(form, layout):
    state, model = form(full_clip()), make()
    before = copy.deepcopy(model.state_dict())
    report = i2v.load_weights(model, state, layout)
    flat = state.get("state_dict", state)
    flat = {k.removeprefix("module."): v for k, v in flat.items()}
    assert_trunk_is(model, flat if "visual.conv1.weight" in flat else {f"visual.{k}": v for k, v in flat.items()})
    assert set(report.loaded) == set(model.frozen_parameters())
    assert set(report.missing) == set(model.trainable_parameters())
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in report.missing)
    assert len(report.ignored) + len(report.loaded) == len(flat)


@pytest.mark.parametrize("layout", ["authors", "auto"])
@pytest.mark.parametrize("trunk", [True, False])
def test_authors_layout(layout, trunk):
    source, model = make(seed=1), make(seed=2)
    state = {k: v for k, v in authors(source).items() if trunk or "adapter" in k or k.startswith("fc.")}
    report = i2v.load_weights(model, {"model": state, "next_epoch": 1}, layout)
    assert set(report.loaded) == set(model.state_dict() if trunk else model.trainable_parameters())
    assert all(torch.equal(model.state_dict()[n], source.state_dict()[n]) for n in report.loaded)
    assert set(report.missing) == set(model.state_dict()) - set(report.loaded) and not report.ignored


@pytest.mark.parametrize("layout", ["i2v", "auto"])
@pytest.mark.parametrize("method", ["st_adapter", "clip"])
@pytest.mark.parametrize("part", ["state_dict", "trainable_parameters"])
def test_i2v_layout(method, part, layout):
    source, model = make(1, method), make(2, method)
    state = {k: v.detach() for k, v in getattr(source, part)().items()}
    report = i2v.load_weights(model, state, layout)
    assert set(report.loaded) == set(state)
    assert all(torch.equal(model.state_dict()[n], v) for n, v in state.items())


def test_loading_keeps_the_dtype_of_the_model():
    model = make().double()
    i2v.load_weights(model, {k: v.half() for k, v in visual(full_clip()).items()})
    assert all(p.dtype == torch.float64 for p in model.parameters())


def script_archive(state, path):
    module = torch.nn.Module()
    for name, tensor in state.items():
        parts = name.split(".")
        owner = module
        for part in parts[:-1]:
            if not hasattr(owner, part):
                owner.add_module(part, torch.nn.Module())
            owner = getattr(owner, part)
        owner.register_buffer(parts[-1], torch.as_tensor(tensor))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(module), path)


WRITERS = {
    "a.safetensors": lambda s, p: save_file({k: torch.as_tensor(v).contiguous() for k, v in s.items()}, p),
    "a.pt": torch.save,
    "legacy.pyth": lambda s, p: torch.save({"model_state": s}, p, _use_new_zipfile_serialization=False),
    "script.pt": script_archive,
    "safetensors_by_content.bin": lambda s, p: save_file({k: torch.as_tensor(v).clone() for k, v in s.items()}, p),
}


@pytest.mark.parametrize("name", WRITERS)
def test_file_forms(name, tmp_path):
    state, model = full_clip(), make()
    WRITERS[name](state, tmp_path / name)
    report = i2v.load_weights(model, tmp_path / name)
    assert_trunk_is(model, state)
    assert {"visual.proj", "logit_scale", "input_resolution", "token_embedding.weight"} <= set(report.ignored)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kept", [0.001, 0.5, 0.9999])
def test_truncated_files(name, kept, tmp_path):
    path = tmp_path / name
    WRITERS[name](full_clip(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ValueError, match="is damaged or"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "damaged or not a checkpoint: .*download it again$"),
        (b"<html>404", "damaged or not a checkpoint"),
        (bytes(99), "damaged or not a checkpoint"),
        (b"PK\x03\x04 not really", "damaged or not a checkpoint"),
        ({"epoch": 3}, "holds no tensors by name"),
        ([torch.zeros(2)], "holds no tensors by name"),
        ({"a": torch.zeros(2), "args": Namespace(x=1)}, "Python objects besides tensors"),
    ],
)
def test_not_a_checkpoint(content, message, tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_state_dict(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        read_state_dict(tmp_path / "nothing.pt")


def without(state, *names):
    return {k: v for k, v in state.items() if k not in names}


@pytest.mark.parametrize(
    "layout, make_state, message",
    [
        ("clip", lambda m: without(full_clip(), "visual.ln_pre.bias"), r"1 missing \(backbone.ln_pre.bias\)"),
        ("clip", lambda m: {**full_clip(), "visual.extra": torch.zeros(1)}, r"1 unexpected \(visual.extra\)"),
        ("clip", lambda m: {**full_clip(), "extra": torch.zeros(1)}, r"1 unexpected \(extra\)"),
        (
            "clip",
            lambda m: {**full_clip(), "visual.conv1.weight": torch.zeros(32, 3, 4, 4)},
            r"of another shape \(visual.conv1.weight \(32, 3, 4, 4\) for the model's \(32, 3, 8, 8\)\)",
        ),
        ("clip", lambda m: {**full_clip(), "visual.conv1.weight": 3}, "visual.conv1.weight int for"),
        ("clip", lambda m: m.state_dict(), "missing .* unexpected"),
        ("authors", lambda m: without(authors(m), "conv1.weight"), r"1 missing \(backbone.conv1.weight\)"),
        ("authors", lambda m: without(authors(m), "fc.bias"), r"1 missing \(head.fc.bias\)"),
        ("authors", lambda m: {**authors(m), "fc.bias": torch.zeros(400)}, r"fc.bias \(400,\) for the model's \(5,\)"),
        ("authors", lambda m: m.trainable_parameters(), "as layout 'authors': .*; it fits as layout 'i2v'"),
        ("i2v", lambda m: without(m.trainable_parameters(), "head.fc.bias"), r"1 missing \(head.fc.bias\)"),
        ("i2v", lambda m: without(m.state_dict(), "backbone.conv1.weight"), r"1 missing \(backbone.conv1.weight\)"),
        ("auto", lambda m: without(full_clip(), "visual.ln_pre.bias"), "layout 'clip': 1 missing"),
        ("auto", lambda m: {"something": torch.zeros(2)}, "cannot tell which layout .*something.* clip, authors, i2v"),
        ("ours", lambda m: m.state_dict(), "layout 'ours' is unknown: use one of clip, authors, i2v, auto, image"),
    ],
)
def test_refused_states_change_nothing(layout, make_state, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        i2v.load_weights(model, make_state(make(seed=3)), layout)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_baseline_has_no_authors():
    with pytest.raises(ValueError, match="'clip' has no authors' checkpoints"):
        i2v.load_weights(make(method="clip"), full_clip(), "authors")


def test_fingerprint():
    state = {k: v.half() for k, v in make().frozen_parameters().items()}
    assert fingerprint(state) == fingerprint({k: state[k].float() for k in reversed(state)}) != fingerprint({})
    state["backbone.conv1.weight"].view(-1)[7] += 0.5
    assert fingerprint(state) != fingerprint(make().frozen_parameters())


def test_backbone_file(monkeypatch):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: "/cache/" + config["hf_hub"])
    assert "vit_base_patch16_clip_224.openai" in str(backbone_file("ViT-B-16", "openai"))
    assert backbone_file("ViT-B-16", "openai") == backbone_file("ViT-B-16-quickgelu", "openai")
    assert backbone_file("ViT-B-16", "laion2b_s34b_b88k", activation="gelu")


@pytest.mark.parametrize(
    "name, tag, error, message",
    [
        ("ViT-B-16", "opnai", ValueError, "'ViT-B-16' has no weights 'opnai': use one of openai, "),
        ("ViT-B-61", "openai", ValueError, "or give the path"),
        ("ViT-B-16", "laion2b_s34b_b88k", ValueError, "trained with gelu but the model uses quick_gelu"),
        ("ViT-B-16", "openai", OSError, "give the path of a checkpoint file instead"),
    ],
)
def test_backbone_file_errors(name, tag, error, message, monkeypatch):
    def offline(config):
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(error, match=message):
        backbone_file(name, tag)


@pytest.mark.parametrize(
    "name, tag",
    [("roberta-ViT-B-32", "laion2b_s12b_b32k"), ("timm/vit_base_patch16_clip_quickgelu_224", "openai"), ("ViT-B-16", "openai")],
)
def test_weights_of_a_tag_fit_the_spec_that_the_tag_makes(name, tag, monkeypatch):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda config: "/cache/file")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *which: "/cache/file")
    spec = backbone_spec(name, tag)
    assert spec.activation == "quick_gelu" and str(backbone_file(name, tag, spec.activation)) == "/cache/file"


@pytest.mark.parametrize("image_size", [16, 48])
def test_positions_of_another_size_are_open_clips(image_size):
    """Of CLIP's own names as well, and the note says it; a table that is no square is refused."""
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1}
    state = open_clip.CLIP(24, vision, text).state_dict()
    theirs = dict(state)
    resize_pos_embed(theirs, open_clip.CLIP(24, vision | {"image_size": image_size}, text))
    spec = {"image_size": image_size, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "embed_dim": 24}
    for method, options in {"clip": {}, "tada": {"route_head_dim": 8}}.items():
        model = i2v.create_model(method, spec, 4, 5, **options)
        grid = image_size // 8
        assert f"positions were resampled from 4 x 4 to {grid} x {grid} patches" in i2v.load_weights(model, state, "clip").notes
        found = model.state_dict()[next(name for name in model.state_dict() if name.endswith("positional_embedding"))]
        torch.testing.assert_close(found.view_as(theirs["visual.positional_embedding"]), theirs["visual.positional_embedding"])
    sparse = torch.zeros(17, 32).to_sparse()
    for table, shown in (
        (torch.zeros(16, 32), r"\(16, 32\)"),
        (torch.tensor(1.0), r"\(\)"),
        (5, "int"),
        (sparse, r"\(17, 32\)"),
    ):
        with pytest.raises(ValueError, match=rf"positional_embedding {shown} for the model's"):
            i2v.load_weights(model, state | {"visual.positional_embedding": table}, "clip")
