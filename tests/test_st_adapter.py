"""ST-Adapter equals the authors' code (golden vectors), and a fresh one is CLIP with pooled frames."""

import pytest
import torch
from einops import rearrange

import i2v
from i2v.methods.st_adapter import Adapter, from_authors
from i2v.vit import ViTSpec
from tests.references import assert_layers, assert_step, authors_weights, equal, filled, vit_of
from tests.references import tensors as golden

TINY = dict(image_size=16, patch_size=8, width=32, layers=3, heads=2, embed_dim=24)


def golden_model(tensors, config, dtype):
    model = i2v.create_model(
        "st_adapter",
        vit_of(config),
        config["num_frames"],
        config["num_classes"],
        adapter_width=config["adapter_width"],
        kernel_size=config["adapter_kernel_size"],
        positions=[p for p in ("pre_attn", "pre_mlp") if config[f"adapter_{p}"]],
        adapted_layers=config["adapter_layers"],
    )
    return filled(model, authors_weights(tensors), dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", ["st_adapter-1.safetensors", "st_adapter-2.safetensors"])
def test_golden(name, dtype, tolerance):
    tensors, config = golden(name)
    model, clips = golden_model(tensors, config, dtype), tensors["input"].to(dtype)

    assert_equal = equal(tensors, tolerance)
    assert_layers(model, clips, config["num_frames"], assert_equal)
    assert_step(model, clips, tensors, assert_equal, from_authors)
    assert {from_authors(name) for name in config["trainable_params"]} == set(model.trainable_parameters())


@pytest.mark.parametrize("positions", [["pre_mlp"], ["pre_attn", "pre_mlp"]])
@pytest.mark.parametrize("kernel_size", [(3, 1, 1), (3, 3, 3)])
def test_a_fresh_model_is_clip_with_pooled_frames(positions, kernel_size):
    model = i2v.create_model("st_adapter", TINY, 4, 5, adapter_width=8, positions=positions, kernel_size=kernel_size)
    clip = i2v.create_model("clip", TINY, 4, 5).backbone
    clip.load_state_dict({k: v for k, v in model.backbone.state_dict().items() if "adapter" not in k})
    clips = torch.randn(2, 3, 4, 16, 16)
    tokens = clip.encode(clip.embed(rearrange(clips, "b c t h w -> (b t) c h w")))
    pooled = clip.ln_post(rearrange(tokens[:, 0], "(b t) c -> b t c", t=4).mean(dim=1))
    torch.testing.assert_close(model.forward_features(clips), pooled, atol=1e-6, rtol=0)


def random_adapter(kernel_size):
    adapter = Adapter(ViTSpec(**TINY), 8, kernel_size).double()
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    return adapter


@pytest.mark.parametrize("num_frames", [1, 2, 7])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_shifted_multiply_adds_equal_conv3d(k, num_frames):
    adapter, x = random_adapter((k, 1, 1)), torch.randn(2 * num_frames, 5, 8, dtype=torch.float64)
    fast, general = adapter.over_frames(x, num_frames), adapter.over_space_time(x, num_frames)
    torch.testing.assert_close(fast, general)
    gradients = [torch.autograd.grad(y.square().sum(), adapter.conv.parameters()) for y in (fast, general)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kernel_size", [(3, 1, 1), (3, 3, 3), (1, 3, 5)])
def test_adapter_equals_the_equation(kernel_size):
    adapter, x = random_adapter(kernel_size), torch.randn(2 * 4, 5, 32, dtype=torch.float64)
    hidden = rearrange(adapter.fc1(x[:, 1:]), "(b t) (h w) c -> b c t h w", t=4, h=2)
    hidden = rearrange(adapter.conv(hidden), "b c t h w -> (b t) (h w) c")
    expected = x.clone()
    expected[:, 1:] += adapter.fc2(hidden)
    torch.testing.assert_close(adapter(x, 4), expected)
    assert torch.equal(adapter(x, 4)[:, 0], x[:, 0])


def test_only_the_last_layers_are_adapted():
    model = i2v.create_model("st_adapter", TINY, 4, 5, adapter_width=8, adapted_layers=2)
    adapted = {name.split(".")[3] for name in model.trainable_parameters() if "adapter" in name}
    assert adapted == {"1", "2"}


@pytest.mark.parametrize("num_frames", [1, 4, 9])
def test_any_number_of_frames_and_either_memory_layout(num_frames):
    model = i2v.create_model("st_adapter", TINY, 4, 5, adapter_width=8).eval()
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.1)
    clips = torch.randn(2, num_frames, 16, 16, 3).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(model(clips), model(clips.contiguous()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kernel_size=(2, 1, 1)), "three odd positive integers"),
        (dict(kernel_size=3), "three odd positive integers"),
        (dict(positions=["post_mlp"]), "one or both of pre_attn, pre_mlp, got"),
        (dict(positions=[]), "one or both of"),
        (dict(adapted_layers=4), "from 1 to the backbone's 3 layers, got 4"),
        (dict(adapted_layers=0), "from 1 to the backbone's 3 layers, got 0"),
        (dict(adapter_width=0), "adapter_width must be a whole number, at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        i2v.create_model("st_adapter", TINY, 4, 5, **options)
