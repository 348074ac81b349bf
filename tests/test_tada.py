"""TAdaFormer equals the authors' code (golden vectors), and a fresh one is CLIP on the tubelets' middle frames."""

import pytest
import torch

import i2v
from i2v.methods.tada import DropPath, from_authors, layer_of
from tests.references import assert_step, authors_weights, equal, filled
from tests.references import tensors as golden

TINY = dict(image_size=16, patch_size=8, width=32, layers=3, heads=2, embed_dim=24)
SMALL = dict(route_ratio=1, route_head_dim=4)  # a routing width of 16 in four heads
SSV2 = dict(temporal_enhance=True, double=True)


def golden_model(tensors, config, dtype):
    backbone = dict(
        image_size=config["INPUT_RES"],
        patch_size=config["PATCH_SIZE"],
        width=config["NUM_FEATURES"],
        layers=config["DEPTH"],
        heads=config["NUM_HEADS"],
        embed_dim=config["OUTPUT_DIM"] or 32,
    )
    model = i2v.create_model(
        "tada",
        backbone,
        config["NUM_INPUT_FRAMES"],
        config["num_classes"],
        reduction=config["REDUCTION"],
        route_ratio=config["ROUTE_FUNC_R"],
        route_kernels=config["ROUTE_FUNC_K"],
        route_head_dim=config["routing_head_dim"],
        temporal_enhance=config["TEMP_ENHANCE"],
        double=config["DOUBLE_TADA"],
        tubelet_size=config["TUBLET_SIZE"],
        tubelet_stride=config["TUBLET_STRIDE"],
        project=config["REQUIRE_PROJ"],
    )
    return filled(model, {"model_state": authors_weights(tensors)}, dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", ["tadaformer-1.safetensors", "tadaformer-2.safetensors"])
def test_golden(name, dtype, tolerance):
    tensors, config = golden(name)
    model, clips = golden_model(tensors, config, dtype), tensors["input"].to(dtype)

    assert_step(model, clips, tensors, equal(tensors, tolerance), from_authors)


def clip_and_tada(**options):
    """Pooled CLIP, and a fresh TAdaFormer that loaded it."""
    clip = i2v.create_model("clip", TINY, 4, 5).backbone
    model = i2v.create_model("tada", TINY, 4, 5, **{**SMALL, **options})
    report = i2v.load_weights(model, clip.state_dict(), layout="clip")
    assert set(report.loaded) == {f"backbone.{name}" for name in clip.state_dict()}
    assert "backbone.transformer.resblocks.0.tada.tadaconv.weight" in report.missing
    return clip, model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, SSV2, dict(tubelet_size=5), dict(tubelet_size=1, tubelet_stride=1)])
def test_a_fresh_model_is_clip_on_the_middle_frames(options, training):
    clip, model = clip_and_tada(**options)
    model.train(training)
    clips, stride = torch.randn(2, 3, 7, 16, 16), options.get("tubelet_stride", 2)
    tokens = torch.stack([clip.encode(clip.embed(clips[:, :, t]))[:, 0] for t in range(0, 7, stride)])
    torch.testing.assert_close(model.forward_features(clips), clip.ln_post(tokens.mean(0)), atol=1e-5, rtol=0)

    still = clips[:, :, :1].expand(-1, -1, 7, -1, -1)
    torch.testing.assert_close(model.forward_features(still), clip(still), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "form", [lambda state: {f"visual.{k}": v.half() for k, v in state.items()}, lambda state: {"state_dict": state}]
)
def test_the_stem_is_clips_in_the_middle_frame_whatever_the_file(form):
    clip, model = i2v.create_model("clip", TINY, 4, 5).backbone, i2v.create_model("tada", TINY, 4, 5, **SMALL)
    i2v.load_weights(model, form(clip.state_dict()))  # layout="auto"
    before, middle, after = model.backbone.conv1.weight.unbind(2)
    torch.testing.assert_close(middle, clip.conv1.weight, atol=1e-3, rtol=0)
    assert not before.any() and not after.any()


def test_a_wrong_stem_is_refused_with_the_shape_of_the_file():
    state = i2v.create_model("clip", TINY, 4, 5).backbone.state_dict() | {"conv1.weight": torch.zeros(32, 3, 4, 4)}
    with pytest.raises(ValueError, match=r"conv1.weight \(32, 3, 4, 4\) for the model's \(32, 3, 3, 8, 8\)"):
        i2v.load_weights(i2v.create_model("tada", TINY, 4, 5, **SMALL), state, layout="clip")


def randomised(layers=3, **options):
    model = i2v.create_model("tada", {**TINY, "layers": layers}, 4, 5, **{**SMALL, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("double", [False, True])
def test_adapters_train_alone(double):
    model = randomised(train="adapters", double=double)
    trained = set(model.trainable_parameters())
    assert trained == {name for name, _ in model.named_parameters() if ".tada" in name or name.startswith("head.")}
    model(torch.randn(2, 3, 4, 16, 16)).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == set(model.frozen_parameters())  # each trained one has a gradient, as DDP demands


def test_the_last_tada2_reaches_no_logit_and_has_zero_gradients():
    model = randomised(double=True)
    model(torch.randn(2, 3, 4, 16, 16)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == (".resblocks.2.tada2." not in name), name


@pytest.mark.parametrize("num_frames", [1, 2, 5, 9])
@pytest.mark.parametrize(
    "options",
    [
        {},
        SSV2,
        dict(reduction=1, route_ratio=2, route_head_dim=8, route_kernels=[5, 1]),
        dict(project=True),
        dict(tubelet_size=5, tubelet_stride=3),
    ],
)
def test_any_number_of_frames_and_either_memory_layout(options, num_frames):
    model = randomised(**options).eval()
    clips = torch.randn(2, num_frames, 16, 16, 3).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(model(clips), model(clips.contiguous()), atol=1e-5, rtol=0)
    assert model.forward_features(clips).shape == (2, 24 if options.get("project") else 32)
    alone = torch.cat([model(clips[:1]), model(clips[1:])])
    torch.testing.assert_close(model(clips), alone, atol=1e-5, rtol=0)


def test_training_moves_the_statistics_and_evaluation_uses_them():
    model = randomised(head={"dropout": 0.0})
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if ".tada" in name else 0.1)
    clips, before = torch.randn(2, 3, 4, 16, 16), {k: v.clone() for k, v in model.named_buffers()}
    trained = model(clips)
    assert all(not torch.equal(v, before[k]) for k, v in model.named_buffers())
    assert not torch.allclose(model.eval()(clips), trained, atol=1e-3)
    assert torch.equal(model(clips), model(clips))


def test_a_model_with_statistics_survives_its_own_layout():
    source, model = randomised(double=True), randomised(double=True)
    source(torch.randn(2, 3, 4, 16, 16))
    report = i2v.load_weights(model, source.state_dict())
    assert not report.missing
    clips = torch.randn(1, 3, 4, 16, 16)
    assert torch.equal(model.eval()(clips), source.eval()(clips))


def test_drop_path_drops_whole_clips():
    drop = DropPath(0.5)
    x = torch.ones(64 * 3, 5, 2)
    dropped = drop(x, 3).view(64, -1)
    assert set(dropped.unique().tolist()) == {0.0, 2.0} and (dropped == dropped[:, :1]).all()
    assert torch.equal(drop.eval()(x, 3), x)
    blocks = randomised(drop_path=0.4).backbone.transformer.resblocks
    torch.testing.assert_close(torch.stack([block.drop_path.keep for block in blocks]), torch.tensor([1.0, 0.8, 0.6]))
    assert randomised().backbone.transformer.resblocks[2].drop_path is None


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(reduction=0), "reduction must be a whole number, at least 1, got 0"),
        (dict(reduction=33), "at least one of the backbone's 32 channels, got 33"),
        (dict(route_ratio=17), "ratio must be from 1 to the number of channels, 16, got 17"),
        (dict(route_head_dim=64), r"routing width 16 \(16 channels, ratio 1\) must be a multiple .* got 64"),
        (dict(route_kernels=(3, 2)), "two odd positive integers"),
        (dict(route_kernels=3), "two odd positive integers"),
        (dict(tubelet_size=2), "tubelet_size must be a whole number, at least 1, odd"),
        (dict(tubelet_stride=0), "tubelet_stride must be a whole number, at least 1"),
        (dict(drop_path=1.0), "drop_path must be a finite number, at least 0 and below 1, got 1.0"),
        (dict(double="yes"), "double must be true or false, got 'yes'"),
        (dict(train="head"), "train must be all or adapters, got 'head'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        i2v.create_model("tada", TINY, 4, 5, **{**SMALL, **options})


def test_clips_of_another_size():
    with pytest.raises(ValueError, match=r"clips are \(3, 4, 24, 16\) .* takes \(3, T, 16, 16\)"):
        randomised()(torch.randn(1, 3, 4, 24, 16))


def test_what_is_before_the_first_layer_learns_slowest():
    """Layer-wise rates: the trunk's embeddings, registers too, are of the stem; ln_post and the head of the end."""
    model = i2v.create_model("tada", TINY | {"registers": 2}, 4, 5, **SMALL)
    layers = {name: layer_of(name, TINY["layers"]) for name in model.trainable_parameters()}
    outside = {name.removeprefix("backbone."): at for name, at in layers.items() if "resblocks" not in name}
    last = TINY["layers"] + 1
    assert {name for name, at in outside.items() if at == last} == {
        "ln_post.weight",
        "ln_post.bias",
        "head.fc.weight",
        "head.fc.bias",
    }
    assert {at for name, at in outside.items()} == {0, last}
