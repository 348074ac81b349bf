"""DiST equals the authors' code (golden vectors), reads their checkpoints, and trains exactly its side network."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

import i2v
from i2v.methods.dist import OLD_NAMES, conv_frames, from_authors
from i2v.text import encode, text_tower
from tests.references import assert_step, authors_weights, equal
from tests.references import tensors as golden

AUTHORS = "backbone.base_encoder."
TINY = dict(image_size=28, patch_size=14, width=32, layers=3, heads=2, embed_dim=24)
SMALL = dict(integration_dim=64, temporal_dim=8)


def golden_model(tensors, config, dtype=torch.float32):
    dist, backbone = config["DIST"], {k: config[k] for k in ("image_size", "embed_dim")}
    backbone |= {k: config[f"vision_{k}"] for k in ("patch_size", "width", "layers", "heads")}
    model = i2v.create_model(
        "dist",
        backbone,
        config["NUM_INPUT_FRAMES"],
        config["num_classes"],
        {"type": "text", "text_features": tensors["text_features"]},
        alpha=config["SPARSE_SAMPLE_ALPHA"],
        selected_layers=dist["SELECTED_LAYERS"],
        integration_dim=dist["INTEGRATION_DIM"],
        temporal_dim=dist["TEMPORAL_DIM"],
        temporal_patch_size=dist["T_PATCH_SIZE"],
        temporal_kernel_size=dist["TEMPORAL_KERNEL_SIZE"],
        temporal_mlp_ratio=dist["TEMPORAL_CONV_MLP_RATIO"],
        integration_mlp_ratio=dist["INTEGRATION_MLP_RATIO"],
        integration_temporal_mlp_ratio=dist["INTEGRATION_TEMPORAL_MLP_RATIO"],
        pooling_layers=dist["ADA_POOLING_LAYERS"],
    )
    report = i2v.load_weights(model, {"model_state": authors_weights(tensors)}, layout="authors")
    text_tower_names = [
        n
        for n in authors_weights(tensors)
        if not n.startswith((AUTHORS + "visual.", AUTHORS + "dist_net.", AUTHORS + "logit_scale"))
    ]
    assert not report.missing and report.ignored == sorted([*text_tower_names, AUTHORS + "visual.proj"])
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", ["dist-1.safetensors", "dist-2.safetensors"])
def test_golden(name, dtype, tolerance):
    tensors, config = golden(name)
    model, clips = golden_model(tensors, config, dtype), tensors["input"].to(dtype)
    normalised = {}
    model.backbone.dist_net.ln_post.register_forward_hook(lambda m, i, output: normalised.update(ln_post=output))

    assert_equal = equal(tensors, tolerance)
    assert_equal(model(clips).softmax(-1), "probs")
    assert_equal(F.normalize(model.forward_features(clips), dim=-1), "features_normalized")
    assert_equal(normalised["ln_post"], "features_ln_post")
    last = model.backbone.clip_features(clips)[-1]
    assert_equal(rearrange(last, "b t l c -> l (b t) c"), "mid_feat_last_selected")
    assert_step(model, clips, tensors, assert_equal, from_authors)


@pytest.mark.parametrize("name", ["dist-1.safetensors", "dist-2.safetensors"])
def test_golden_text_tower(name):
    tensors, _ = golden(name)
    tower = text_tower(authors_weights(tensors), "quick_gelu")
    encoded = encode(tower, tensors["text_tokens"])
    torch.testing.assert_close(encoded, tensors["text_encoded"], atol=1e-5, rtol=0)


def test_older_checkpoints():
    tensors, config = golden("dist-2.safetensors")
    to_old = {new: old for old, new in OLD_NAMES.items()} | {"dist_net": "ladder_net"}
    old = {
        ".".join(to_old.get(part, part) for part in name.split(".")): value for name, value in authors_weights(tensors).items()
    }
    assert AUTHORS + "ladder_net.s2t_fuse_nets.0.linear_fuse.weight" in old
    assert AUTHORS + "ladder_net.proj" in old and not any("dist_net" in name for name in old)
    model = golden_model(tensors, config)
    again = i2v.create_model(**model.config)
    i2v.load_weights(again, old, layout="authors")
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_authors_layout_is_strict():
    tensors, config = golden("dist-2.safetensors")
    model = golden_model(tensors, config)
    for change, message in [
        ({"backbone.base_encoder.dist_net.extra": torch.zeros(1)}, "1 unexpected .*dist_net.extra"),
        ({"backbone.something": torch.zeros(1)}, "1 unexpected .*backbone.something"),
        ({"backbone.base_encoder.dist_net.proj": torch.zeros(1)}, "of another shape .*dist_net.proj"),
    ]:
        with pytest.raises(ValueError, match=message):
            i2v.load_weights(model, authors_weights(tensors) | change, layout="authors")
    for name in ("dist_net.aggregated_cls_token", "visual.conv1.weight", "logit_scale"):
        with pytest.raises(ValueError, match="1 missing"):
            state = {k: v for k, v in authors_weights(tensors).items() if k != AUTHORS + name}
            i2v.load_weights(model, state, layout="authors")
    assert i2v.load_weights(model, authors_weights(tensors), layout="auto").loaded


def small(head=None, num_frames=6, **options):
    torch.manual_seed(0)
    return i2v.create_model("dist", TINY, num_frames, 5, head, **{**SMALL, **options})


@pytest.mark.parametrize(
    "options",
    [
        dict(alpha=1),
        dict(alpha=3),
        dict(alpha=6),
        dict(num_frames=9, alpha=3),
        dict(num_frames=1, alpha=1),
        dict(selected_layers=[1]),
        dict(selected_layers=[0, 1], pooling_layers=1),
        dict(temporal_patch_size=1),
        dict(temporal_kernel_size=5, temporal_mlp_ratio=0.5, integration_mlp_ratio=2, integration_temporal_mlp_ratio=1),
        dict(integration_dim=192, temporal_dim=3),
    ],
)
def test_options(options):
    model = small(**options)
    clips = torch.randn(2, model.num_frames, 28, 28, 3).permute(0, 4, 1, 2, 3)  # as the loader gives them
    model.eval()
    logits = model(clips)
    assert logits.shape == (2, 5) and model.forward_features(clips).shape == (2, 24)
    torch.testing.assert_close(logits, model(clips.contiguous()), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, torch.cat([model(clip[None]) for clip in clips]), atol=1e-5, rtol=0)
    model(clips).square().sum().backward()
    for name, parameter in model.trainable_parameters().items():
        dead = f"integration2temporal_nets.{len(model.backbone.selected_layers) - 1}." in name
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert not dead or not parameter.grad.any(), name
    assert set(model.trainable_parameters()) == {
        n for n, _ in model.named_parameters() if n.startswith(("backbone.dist_net.", "head.fc."))
    }
    assert all(p.grad is None for p in model.frozen_parameters().values())


def test_clip_sees_every_alphath_frame_and_the_side_network_all():
    model, clips = small(alpha=3).eval(), torch.randn(1, 3, 6, 28, 28)
    changed = clips.clone()
    changed[:, :, [1, 2, 4, 5]] += 1
    for before, after in zip(model.backbone.clip_features(clips), model.backbone.clip_features(changed)):
        assert before.shape == (1, 2, 5, 32) and torch.equal(before, after)
    difference = (model(clips) - model(changed)).abs().max()
    assert difference > 1e-4


@pytest.mark.parametrize("kernel, stride", [((1, 1, 1), 1), ((3, 1, 1), 1), ((5, 1, 1), 1), ((2, 1, 1), 2)])
def test_convolution_over_frames_equals_conv3d(kernel, stride):
    conv = nn.Conv3d(6, 4, kernel, (stride, 1, 1), (kernel[0] // 2 if stride == 1 else 0, 0, 0)).double()
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)  # (B, T, N, C)
    expected = conv(rearrange(x, "b t n c -> b c t n 1"))
    torch.testing.assert_close(conv_frames(x, conv), rearrange(expected, "b c t n 1 -> b t n c"))


def test_stem_equals_conv3d():
    net, clips = small(temporal_patch_size=3).double().backbone.dist_net, torch.randn(2, 3, 6, 28, 28).double()
    stem = net.temporal_stem
    expected = F.conv3d(clips, stem.weight, stem.bias, stride=(1, 14, 14), padding=(1, 0, 0))
    torch.testing.assert_close(net.stem(clips), rearrange(expected, "b c t h w -> b t (h w) c"))


def test_bfloat16_keeps_float32_gradients():
    model = small({"type": "text", "text_features": torch.randn(5, 24)})
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(2, 3, 6, 28, 28))
    logits.sum().backward()
    assert logits.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.trainable_parameters().values())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(alpha=4), "num_frames 6 is not a multiple of alpha 4"),
        (dict(alpha=0), "alpha must be a whole number, at least 1, got 0"),
        (dict(alpha=2.0), "alpha must be a whole number, at least 1, got 2.0"),
        (dict(selected_layers=[]), "selected_layers must be None .all. or ascending layer numbers from 0 to 2, got"),
        (dict(selected_layers=[0, 3]), "from 0 to 2, got .0, 3."),
        (dict(selected_layers=[-1]), "from 0 to 2"),
        (dict(selected_layers=[1, 0]), "ascending"),
        (dict(selected_layers=[0, 0]), "ascending"),
        (dict(selected_layers=["0"]), "ascending"),
        (dict(selected_layers=2), "ascending"),
        (dict(integration_dim=200), "use a multiple of 64"),
        (dict(integration_dim=32), "use a multiple of 64"),
        (dict(temporal_dim=-1), "temporal_dim must be a whole number, at least 1"),
        (dict(temporal_patch_size=4), "temporal_patch_size must be a whole number, at least 1, odd"),
        (dict(temporal_kernel_size=2), "temporal_kernel_size must be a whole number, at least 1, odd"),
        (dict(pooling_layers=0), "pooling_layers must be a whole number, at least 1"),
        (dict(temporal_mlp_ratio=0), "temporal_mlp_ratio must be a number that leaves at least one of 8 channels"),
        (dict(integration_mlp_ratio="1"), "integration_mlp_ratio must be a finite number"),
        (dict(integration_temporal_mlp_ratio=float("nan")), "integration_temporal_mlp_ratio must be a finite number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_another_number_of_frames():
    with pytest.raises(ValueError, match="the clips have 4 frames but this DiST model .* 6"):
        small()(torch.zeros(1, 3, 4, 28, 28))
