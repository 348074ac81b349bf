"""Other people's files: what wraps names is stripped and said, and no code in them is run."""

import io
import os
import pickle
import tarfile
import zipfile

import pytest
import torch

import i2v
from i2v.archive import read_file
from i2v.foreign import HF_BLOCK, HF_TEXT, HF_VISION
from i2v.weights import read_state_dict
from tests.test_weights import assert_trunk_is, full_clip, make, script_archive, visual

NAN, INF = float("nan"), float("inf")


# ---- names -----------------------------------------------------------------------------------------------------------


def averaged(state):
    return {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in state.items()}}


def every_other(state, prefix):
    return {(prefix if i % 2 else "") + k: v for i, (k, v) in enumerate(state.items())}


WRAPPED = {
    "torch.compile": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "blocks compiled": lambda s: {k.replace("resblocks.0.", "resblocks.0._orig_mod."): v for k, v in s.items()},
    "DDP twice": lambda s: {f"module.module.{k}": v for k, v in s.items()},
    "DDP on some": lambda s: every_other(s, "module."),
    "DDP and compile": lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()},
    "Lightning": lambda s: {"epoch": 1, "state_dict": {f"model.{k}": v for k, v in s.items()}},
    "a task's clip": lambda s: {f"clip.{k}": v for k, v in s.items()},
    "AveragedModel": averaged,
    "model_state_dict": lambda s: {"model_state_dict": {f"net.{k}": v for k, v in s.items()}},
    "DeepSpeed": lambda s: {"module": s},
    "any attribute": lambda s: {f"student.image_encoder.{k}": v for k, v in s.items()},
    "an average in a LightningModule": lambda s: {"state_dict": {f"ema.{k}": v for k, v in averaged(s).items()}},
    "FSDP, block by block": lambda s: {k.replace("resblocks.0.", "resblocks.0._fsdp_wrapped_module."): v for k, v in s.items()},
    "activation checkpoints": lambda s: {k.replace(".mlp.", ".mlp._checkpoint_wrapped_module."): v for k, v in s.items()},
    "DDP inside": lambda s: {k.replace("transformer.", "transformer.module."): v for k, v in s.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("full", [True, False])
def test_what_wraps_names_is_stripped_and_said(kind, full):
    state = {k: v for k, v in full_clip().items() if isinstance(v, torch.Tensor)}
    state = state if full else visual(state)
    model = make()
    report = i2v.load_weights(model, WRAPPED[kind](state))
    assert_trunk_is(model, state if full else {f"visual.{k}": v for k, v in state.items()})
    assert bool(report.notes) == (kind != "DeepSpeed")


@pytest.mark.parametrize("kind", ["torch.compile", "DDP on some", "AveragedModel", "Lightning", "any attribute", "DDP inside"])
def test_our_own_checkpoints_too(kind):
    source, model = make(1), make(2)
    i2v.load_weights(model, WRAPPED[kind](source.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.state_dict().values()))


def test_a_dict_within_itself_and_names_of_nothing_are_refused():
    endless = {"a": torch.zeros(2)}
    endless["model"] = endless
    with pytest.raises(ValueError, match="none of its 2 names .a, model. is known in clip, authors, i2v"):
        i2v.load_weights(make(), endless)


def test_a_weight_that_two_names_give_is_refused():
    state = {f"net.{k}": v for k, v in visual(full_clip()).items()}
    with pytest.raises(ValueError, match="1 there twice .net.ln_post.bias."):
        i2v.load_weights(make(), {**state, "ln_post.bias": torch.zeros(32)}, "clip")


def test_a_name_that_comes_twice_is_refused():
    state = visual(full_clip())
    with pytest.raises(ValueError, match="has conv1.weight twice, with and without"):
        i2v.load_weights(make(), {**state, "module.conv1.weight": torch.zeros(32, 3, 8, 8)})


def hugging_face(state, kind):
    """A CLIP state dict as transformers names it."""
    vision, text = ({v: k for k, v in names.items()} for names in (HF_VISION, HF_TEXT))
    blocks = {v: k for k, v in HF_BLOCK.items()}
    found = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    for name, value in state.items():
        tower, inner = ("vision_model", name.removeprefix("visual.")) if name.startswith("visual.") else ("text_model", name)
        known = vision if tower == "vision_model" else text
        if inner in ("proj", "text_projection"):
            found[f"{'visual' if inner == 'proj' else 'text'}_projection.weight"] = value.T.contiguous()
        elif inner == "logit_scale":
            found[inner] = value
        elif inner in known:
            found[f"{tower}.{known[inner]}"] = value
        elif ".attn.in_proj_" in inner:
            layer, kind_of = inner.split(".")[2], inner.rpartition("_")[2]
            for part, letter in zip(value.chunk(3), "qkv"):
                found[f"{tower}.encoder.layers.{layer}.self_attn.{letter}_proj.{kind_of}"] = part
        elif inner.startswith("transformer.resblocks."):
            _, _, layer, rest = inner.split(".", 3)
            part, _, kind_of = rest.rpartition(".")
            found[f"{tower}.encoder.layers.{layer}.{blocks[part]}.{kind_of}"] = value
    if kind != "CLIPModel":
        found = {
            k: v
            for k, v in found.items()
            if k.startswith(("visual_projection" if "Projection" in kind else "-", "vision_model."))
        }
    return {k.removeprefix("vision_model.") if kind == "CLIPVisionTransformer" else k: v for k, v in found.items()}


@pytest.mark.parametrize("before", ["", "model.vision_tower.", "module.clip."])
@pytest.mark.parametrize("kind", ["CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPVisionTransformer"])
def test_hugging_face(kind, before):
    state, model = {k: v for k, v in full_clip().items() if isinstance(v, torch.Tensor)}, make()
    report = i2v.load_weights(model, {before + k: v for k, v in hugging_face(state, kind).items()})
    assert_trunk_is(model, state)
    assert "its names are those of Hugging Face's CLIP" in report.notes


def test_hugging_face_has_the_same_towers_for_a_text_head(tmp_path):
    """i2v.text reads the text tower by CLIP's names; every tensor comes back."""
    state = {k: v for k, v in full_clip().items() if isinstance(v, torch.Tensor) and v.ndim or k == "logit_scale"}
    torch.save(hugging_face(state, "CLIPModel"), tmp_path / "hf.bin")
    found = read_state_dict(tmp_path / "hf.bin")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_hugging_face_without_a_part_is_refused():
    state = hugging_face(full_clip(), "CLIPVisionModel")
    del state["vision_model.encoder.layers.1.self_attn.v_proj.weight"]
    with pytest.raises(ValueError, match="lacks a part of transformer|lacks a part of encoder.layers.1.self_attn"):
        i2v.load_weights(make(), state)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make_bad, words",
    [
        (lambda t: t.to(torch.int32), "1 of another kind of number .visual.conv1.weight int32."),
        (lambda t: t.to(torch.complex64), "1 of another kind of number .visual.conv1.weight complex64."),
        (lambda t: t > 0, "1 of another kind of number .visual.conv1.weight bool."),
        (lambda t: t.index_fill(0, torch.tensor([0]), NAN), "1 not finite .visual.conv1.weight."),
        (lambda t: t.half().index_fill(0, torch.tensor([0]), INF), "1 not finite .visual.conv1.weight."),
        (lambda t: t.double().index_fill(0, torch.tensor([0]), 1e300), "1 not finite .visual.conv1.weight."),
        (lambda t: t.to_sparse(), "1 of another kind of number .visual.conv1.weight sparse_coo."),
        (lambda t: t.to("meta"), "1 of another kind of number .visual.conv1.weight meta."),
    ],
)
@pytest.mark.parametrize("layout", ["clip", "auto"])
def test_values_that_are_no_weights_are_refused(make_bad, words, layout):
    state, model = full_clip(), make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["visual.conv1.weight"] = make_bad(state["visual.conv1.weight"])
    with pytest.raises(ValueError, match=words):
        i2v.load_weights(model, state, layout)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_tada_checkpoint_without_counters_loads():
    geometry = dict(image_size=16, patch_size=8, width=32, layers=2, heads=2, embed_dim=24)
    model = i2v.create_model("tada", geometry, 4, 5, route_head_dim=8)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert len(state) < len(model.state_dict())
    report = i2v.load_weights(model, state, "i2v")
    assert set(report.missing) == set(model.state_dict()) - set(state)
    integers = {k: v.float() if k.endswith("num_batches_tracked") else v for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="of another kind of number"):
        i2v.load_weights(model, integers, "i2v")


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_archive_gives_what_torch_gives(tmp_path):
    """Strides, offsets, shared storages and dtypes included."""
    state = {k: torch.as_tensor(v) for k, v in full_clip().items()}
    base = torch.randn(6, 4)
    state |= {
        "a.transposed": base.T,
        "a.part": base[2:4],
        "a.fp16": base.half(),
        "a.scalar": torch.tensor(3.5),
        "a.empty": torch.zeros(0, 3),
        "a.flags": base > 0,
        "a.count": torch.tensor(7),
    }
    script_archive(state, tmp_path / "script.pt")
    expected, found = torch.jit.load(tmp_path / "script.pt").state_dict(), read_file(tmp_path / "script.pt")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype and torch.equal(tensor, found[name]), name


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def zipped(members):
    def write(path, bomb):
        with zipfile.ZipFile(path, "w") as archive:
            for name, make_data in members.items():
                archive.writestr(name, make_data(bomb))

    return write


def legacy_tar(path, bomb):
    with tarfile.open(path, "w") as archive:
        for name in ("pickle", "storages", "tensors"):
            data = pickle.dumps(bomb)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def shut(data):
    return lambda bomb: data


def scripted(path, bomb):
    """A sound archive, of which one more pickle and the code are hostile."""
    script_archive({"a.weight": torch.zeros(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(members)).split("/")[0]
    members[f"{folder}/constants.pkl"] = pickle.dumps(bomb)
    for name in members:
        if "/code/" in name:
            members[name] = f"import os\nos.mkdir({str(bomb.path)!r})\n".encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


HOSTILE = {
    "pickle": lambda path, bomb: path.write_bytes(pickle.dumps({"a": torch.zeros(2), "b": bomb}, 2)),
    "torch.save": lambda path, bomb: torch.save({"a": torch.zeros(2), "b": bomb}, path),
    "torch.save of before": lambda path, bomb: torch.save({"b": bomb}, path, _use_new_zipfile_serialization=False),
    "tar": legacy_tar,
    "archive": zipped({"m/data.pkl": pickle.dumps, "m/constants.pkl": shut(b""), "m/version": shut(b"3")}),
    "archive that builds": zipped(
        {
            "m/data.pkl": lambda bomb: b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00acos\nmkdir\nX\x01\x00\x00\x00x\x85Rsb.",
            "m/constants.pkl": shut(b""),
        }
    ),
    "archive with a strange storage": zipped(
        {
            "m/data.pkl": lambda bomb: (
                b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ."
            ),
            "m/constants.pkl": shut(b""),
        }
    ),
    "code beside sound tensors": scripted,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_no_code_of_a_file_is_run(kind, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("it runs the file's code"))
    path, made = tmp_path / f"file{suffix}", tmp_path / "ran"
    HOSTILE[kind](path, Bomb(made))
    if kind == "code beside sound tensors":
        assert read_file(path).keys() == {"a.weight"}
    else:
        with pytest.raises(ValueError, match="damaged or"):
            i2v.load_weights(make(), path)
    assert not made.exists() and sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_an_archive_whose_tensors_reach_beyond_their_numbers_is_refused(tmp_path):
    path = tmp_path / "script.pt"
    script_archive({"a.weight": torch.arange(6.0)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("/data/0"))
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data[:8] if member == name else data)
    with pytest.raises(ValueError, match="is damaged or not a checkpoint"):
        read_file(path)
