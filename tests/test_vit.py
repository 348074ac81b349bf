"""The trunk is CLIP's image tower: same names, same numbers, and views where the data loader's layout allows it."""

import open_clip
import pytest
import torch
from einops import rearrange

from i2v.vit import Block, VisionTransformer, ViTSpec

GEOMETRY = dict(image_size=32, patch_size=8, width=64, layers=3, heads=4, embed_dim=48)


def small_open_clip(activation):
    vision = open_clip.CLIPVisionCfg(image_size=32, patch_size=8, width=64, layers=3, head_width=16)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=64, width=32, heads=2, layers=1)
    return open_clip.CLIP(48, vision, text, quick_gelu=activation == "quick_gelu").visual


@pytest.mark.parametrize("name", ["quick_gelu", "gelu", "ViT-B-32-quickgelu"])
def test_equals_open_clip(name):
    torch.manual_seed(0)
    if name.startswith("ViT"):
        theirs = open_clip.create_model(name).visual
        spec = ViTSpec(image_size=224, patch_size=32, width=768, layers=12, heads=12, embed_dim=512)
    else:
        theirs, spec = small_open_clip(name), ViTSpec(**GEOMETRY, activation=name)
    for parameter in theirs.parameters():  # biases and norms too, or their use would not be tested
        parameter.data += 0.02 * torch.randn_like(parameter)
    ours = VisionTransformer(spec, project=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, spec.image_size, spec.image_size)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-5, rtol=0)


def test_projection_is_optional():
    spec = ViTSpec(**GEOMETRY)
    plain, projected = VisionTransformer(spec), VisionTransformer(spec, project=True)
    assert set(projected.state_dict()) - set(plain.state_dict()) == {"proj"}
    assert (plain.feature_dim, projected.feature_dim) == (64, 48)
    assert plain(torch.zeros(1, 3, 32, 32)).shape == (1, 64)


def test_block_is_called_with_its_layer_index():
    layers = []
    VisionTransformer(ViTSpec(**GEOMETRY), block=lambda spec, layer: layers.append(layer) or Block(spec, layer))
    assert layers == [0, 1, 2]


def test_between_an_mlps_products_there_are_rows():
    """(N L, C), as the products have them: what the compiler takes into one, whatever the version of torch."""
    model, seen = VisionTransformer(ViTSpec(**GEOMETRY)), []
    for block in model.transformer.resblocks:
        block.mlp.activation.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].ndim, output.ndim)))
    model(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 2)] * len(model.transformer.resblocks)


def test_features_are_the_tokens_after_every_layer():
    model = VisionTransformer(ViTSpec(**GEOMETRY)).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features = model.features(images)
    assert [f.shape for f in features] == [(2, 17, 64)] * 3 and features[0].dtype == torch.float64
    assert torch.equal(features[-1], model.encode(model.embed(images)))


def test_a_fresh_tower_keeps_the_scale_of_its_tokens():
    torch.manual_seed(0)
    model = VisionTransformer(ViTSpec(image_size=32, patch_size=8, width=128, layers=12, heads=2, embed_dim=64))
    last = model.features(torch.randn(4, 3, 32, 32))[-1]
    assert 0.5 < last.std() < 3
    last.square().mean().backward()
    assert all(p.grad.isfinite().all() for n, p in model.named_parameters() if "ln_post" not in n)


def test_channels_last_clips_reach_conv1_as_a_view():
    memory = torch.randn(2, 4, 32, 32, 3)  # (B, T, H, W, C), as the data loader delivers it
    clips = memory.permute(0, 4, 1, 2, 3)
    frames = rearrange(clips, "b c t h w -> (b t) c h w")
    assert frames.data_ptr() == memory.data_ptr() and frames.is_contiguous(memory_format=torch.channels_last)
    model = VisionTransformer(ViTSpec(**GEOMETRY))
    torch.testing.assert_close(model(frames), model(frames.contiguous()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(width=0), "width must be a whole number, at least 1"),
        (dict(layers=2.0), "layers must be a whole number, at least 1"),
        (dict(patch_size=7), "not a multiple of patch_size 7"),
        (dict(heads=5), "not a multiple of heads 5"),
        (dict(activation="relu"), "must be quick_gelu, gelu, gelu_tanh or swiglu"),
    ],
)
def test_bad_geometry(change, message):
    with pytest.raises(ValueError, match=message):
        ViTSpec(**{**GEOMETRY, **change})


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 3, 32, 24), (1, 1, 32, 32)])
def test_wrong_image_size(shape):
    with pytest.raises(ValueError, match=r"the backbone takes \(3, 32, 32\)"):
        VisionTransformer(ViTSpec(**GEOMETRY))(torch.zeros(shape))
