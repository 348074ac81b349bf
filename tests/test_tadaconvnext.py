"""TAdaConvNeXtV2 equals the authors' code (golden vectors), and a fresh one is timm's ConvNeXt with its frames pooled."""

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt

import i2v
from i2v.methods.tadaconvnext import ADDED, CLIP_SIZES, SIZES, from_authors
from i2v.model import spec_of
from tests.references import assert_step, authors_weights, equal, filled
from tests.references import tensors as golden

TINY = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), image_size=32)


def golden_model(tensors, config, dtype):
    model = i2v.create_model(
        "tadaconvnext",
        dict(depths=config["DEPTH"], dims=config["NUM_FILTERS"]),
        config["NUM_INPUT_FRAMES"],
        config["num_classes"],
        {"type": "linear", "dropout": 0},
        route_ratio=config["ROUTE_FUNC_R"],
        route_kernels=config["ROUTE_FUNC_K"],
        route_head_dim=config["HEAD_DIM"],
        tubelet_size=config["T_KERNEL_SIZE"],
        tubelet_stride=config["T_STRIDE"],
    )
    weights = authors_weights(tensors)
    filled(model, weights, dtype, layout="auto")
    return filled(model, {"model_state": weights}, dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("case", [1, 2, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_golden(case, dtype, tolerance, layout):
    tensors, config = golden(f"tadaconvnextv2-{case}.safetensors")
    model, clips = golden_model(tensors, config, dtype), tensors["input"].to(dtype).contiguous(memory_format=layout)
    largest = max(value.abs().max().item() for key, value in tensors.items() if key.startswith("grad/"))
    of_gradients = equal(tensors, tolerance * max(1.0, largest))  # up to 8 large, where the authors' own are off by 1.4e-5
    assert_step(model, clips, tensors, equal(tensors, tolerance), from_authors, of_gradients)
    assert not model.frozen_parameters()


def convnext(**more):
    """timm's, small and random, with layer scales that let every block be seen."""
    torch.manual_seed(0)
    sizes = {name: list(TINY[name]) for name in ("depths", "dims")}
    net = ConvNeXt(num_classes=7, ls_init_value=0.5, **sizes | more)
    for module in net.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.bias, std=0.2)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return net.eval()


def fair(state):
    """timm's names -> those of FAIR's files."""
    back = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
    found = {}
    for name, value in state.items():
        name = name.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".").replace("head.norm.", "norm.")
        name = name.replace("head.fc.", "head.")
        if ".downsample." in name:
            _, i, _, rest = name.split(".", 3)
            name = f"downsample_layers.{i}.{rest}"
        for theirs, ours in back.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        found[name] = value
    return {"model": found}


def clip(state):
    """timm's names -> those of a CLIP of open_clip's around it."""
    trunk = {f"visual.trunk.{name}": value for name, value in state.items() if not name.startswith("head.fc.")}
    text = {"text_projection": torch.ones(4, 4), "transformer.resblocks.0.ln_1.weight": torch.ones(4)}
    return trunk | text | {"visual.head.proj.weight": torch.ones(4, 32), "logit_scale": torch.tensor(1.0)}


def pooled(net, clips, stride=2):
    """norm(mean over frames 0, s, 2s, ... of timm's pooled features)."""
    frames = clips[:, :, ::stride]
    features = net.forward_features(frames.transpose(1, 2).flatten(0, 1)).mean((2, 3)).unflatten(0, (len(clips), -1))
    return F.layer_norm(features.mean(1), features.shape[-1:], net.head.norm.weight, net.head.norm.bias, 1e-6)


@pytest.mark.parametrize("form", [dict, fair, clip])
@pytest.mark.parametrize("train", ["all", "adapters"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_fresh_model_is_timms_convnext_with_its_frames_pooled(form, train, activation):
    net = convnext(act_layer=activation)
    model = i2v.create_model("tadaconvnext", TINY | {"activation": activation}, 4, 5, train=train)
    report = i2v.load_weights(model, form(net.state_dict()), layout="image")
    assert all(set(name.split(".")) & {*ADDED, "head"} for name in report.missing)
    assert not any(name.startswith(("stem.", "stages.", "visual.trunk.")) for name in report.ignored) and report.ignored
    assert i2v.load_weights(model, form(net.state_dict())).loaded == report.loaded  # layout="auto"
    clips = torch.randn(2, 3, 7, 32, 64)
    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(model.forward_features(clips), pooled(net, clips), atol=1e-5, rtol=1e-5)


def test_adapters_train_alone():
    model = i2v.create_model("tadaconvnext", TINY, 4, 5, train="adapters")
    trained = set(model.trainable_parameters())
    added = {name for name, _ in model.named_parameters() if set(name.split(".")) & {*ADDED, "head"}}
    assert trained == added
    model(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == set(model.frozen_parameters())


def test_drop_path_drops_whole_clips_more_often_the_deeper():
    model = i2v.create_model("tadaconvnext", TINY, 4, 5, drop_path=0.8)
    assert [round(1 - b.drop_path.keep.item(), 6) for b in model.backbone.blocks] == [0, 0.2, 0.4, 0.6, 0.8]
    block, x = model.backbone.blocks[-1].train(), torch.randn(64, 2, 2, 2, 32)
    torch.nn.init.ones_(block.gamma)
    torch.manual_seed(0)
    with torch.no_grad():
        added = block(x) - x
        whole = block.eval()(x) - x
    kept = added.flatten(1).abs().amax(1) > 1e-6
    assert 0 < kept.sum() < 32
    torch.testing.assert_close(added[kept], whole[kept] / 0.2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_names_are_the_geometries_of_timm(size):
    with torch.device("meta"):
        model = i2v.create_model("tadaconvnext", size, 4, 5)
        net = timm.create_model(f"convnext_{size}", pretrained=False)
    ours = {n: p.numel() for n, p in model.backbone.named_parameters() if not set(n.split(".")) & set(ADDED)}
    theirs = {n: p.numel() for n, p in net.named_parameters() if not n.startswith("head.fc.")}
    stem = ours["downsample_layers.0.0.weight"]
    assert sum(ours.values()) - stem == sum(theirs.values()) - theirs["stem.0.weight"] and stem == 3 * theirs["stem.0.weight"]
    assert model.backbone.norm.eps == net.head.norm.eps
    assert model.spec.activation == "quick_gelu" and model.spec.mean == (0.45,) * 3 and model.spec.image_size == 224


def test_names_of_open_clip_are_its_convnexts():
    configs = {name: open_clip.get_model_config(name)["vision_cfg"] for name in open_clip.list_models()}
    convnexts = {name: config for name, config in configs.items() if "convnext" in config.get("timm_model_name", "")}
    assert set(convnexts) == set(CLIP_SIZES)
    for name, config in convnexts.items():
        spec = spec_of("tadaconvnext", name)
        assert (spec.image_size, spec.activation) == (config["image_size"], "gelu")
        assert spec.dims == spec_of("tadaconvnext", config["timm_model_name"].removeprefix("convnext_")).dims
        for tag in open_clip.list_pretrained_tags_by_model(name):
            trained = open_clip.get_pretrained_cfg(name, tag)
            assert not trained.get("quick_gelu") and (tuple(trained["mean"]), tuple(trained["std"])) == (spec.mean, spec.std)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 6])
def test_any_number_of_frames(num_frames):
    model = i2v.create_model("tadaconvnext", TINY, 8, 5).eval()
    assert model(torch.randn(1, 3, num_frames, 64, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    "backbone, options, message",
    [
        ("tinny", {}, "backbone 'tinny' is not a ConvNeXt: use one of tiny, small, base"),
        ("convnext_base_x", {}, "is not a ConvNeXt"),
        ("ViT-B-16", {}, "is not a ConvNeXt"),
        (TINY | {"image_size": 112}, {}, "image_size must be a whole number, a multiple of 32, got 112"),
        (TINY | {"dims": (8, 16, 24)}, {}, "dims must be a list, 4 whole numbers"),
        (TINY | {"mean": 0.5}, {}, "mean must be a list, three numbers"),
        ({"name": "tiny", "widths": 3}, {}, "has unknown widths"),
        (TINY, {"route_head_dim": 5}, "must be a multiple of the routing head_dim"),
        (TINY, {"tubelet_size": 2}, "tubelet_size must be a whole number, at least 1, odd"),
        (TINY, {"drop_path": 1.0}, "drop_path must be"),
    ],
)
def test_bad_input_is_refused(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        i2v.create_model("tadaconvnext", backbone, 4, 5, **options)


def test_a_name_can_have_another_size_of_pictures():
    with torch.device("meta"):
        model = i2v.create_model("tadaconvnext", {"name": "tiny", "image_size": 160}, 4, 5)
        again = i2v.create_model(**model.config)
    assert model.spec.image_size == 160 and again.spec == model.spec and model.spec.depths == (3, 3, 9, 3)


def test_clips_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"clips are \(3, 4, 48, 32\) .* multiples of 32"):
        i2v.create_model("tadaconvnext", TINY, 4, 5)(torch.randn(1, 3, 4, 48, 32))


def test_files_of_another_kind_are_refused():
    model = i2v.create_model("tadaconvnext", TINY, 4, 5)
    with pytest.raises(ValueError, match=r"of another shape .*dwconv.weight|of another shape"):
        i2v.load_weights(model, convnext(dims=[16, 16, 24, 32]).state_dict(), layout="image")
    with pytest.raises(ValueError, match="does not fit the model as layout 'image'"):
        i2v.load_weights(model, convnext(use_grn=True).state_dict(), layout="image")  # a ConvNeXt V2
    with pytest.raises(ValueError, match="has no trunk of CLIP's"):
        i2v.load_weights(model, convnext().state_dict(), layout="clip")
    vit = i2v.create_model("clip", dict(image_size=16, patch_size=8, width=32, layers=2, heads=2, embed_dim=24), 4, 5)
    with pytest.raises(ValueError, match="has CLIP's trunk: use layout 'clip'"):
        i2v.load_weights(vit, convnext().state_dict(), layout="image")
