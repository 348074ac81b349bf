"""ZeroI2V equals the authors' code (golden vectors), and merging changes no logit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import i2v
from i2v.methods.zeroi2v import channel_shifts, from_authors, shift
from i2v.vit import VisionTransformer
from tests.references import assert_layers, assert_step, authors_weights, equal, filled, vit_of
from tests.references import tensors as golden
from tests.trunks import randomised

TINY = dict(image_size=16, patch_size=8, width=32, layers=3, heads=2, embed_dim=24)
CASES = ["zeroi2v-1.safetensors", "zeroi2v-2.safetensors", "zeroi2v-5.safetensors"]


def golden_model(tensors, config, dtype, prefix="weight/", **options):
    shifts = {k: v for k, v in config["stdha_cfg"].items() if k not in ("divide_head", "ops_type")}
    model = i2v.create_model(
        "zeroi2v",
        vit_of(config),
        config["num_frames"],
        config["num_classes"],
        mlp_adapters=config["num_tadapter"],
        adapter_scale=config["adapter_scale"],
        bottleneck_ratio=config["mlp_ratio"],
        **shifts,
        **options,
    )
    return filled(model, authors_weights(tensors, prefix), dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", CASES)
def test_golden(name, dtype, tolerance):
    tensors, config = golden(name)
    model, clips = golden_model(tensors, config, dtype), tensors["input"].to(dtype)

    assert_equal = equal(tensors, tolerance)
    assert_layers(model, clips, config["num_frames"], assert_equal)
    assert_step(model, clips, tensors, assert_equal, from_authors)
    assert {from_authors(name) for name in config["trainable_params"]} == set(model.trainable_parameters())

    merged = i2v.merge_adapters(model)
    assert_equal(merged(clips), "merged_logits")
    for key, parameter in merged.state_dict().items():
        assert_equal(parameter, f"merged/{key.replace('head.fc', 'cls_head.fc_cls')}")


@pytest.mark.parametrize("name", CASES)
def test_the_authors_merged_checkpoint(name):
    tensors, config = golden(name)
    model = golden_model(tensors, config, torch.float32, "merged/", merged=True)
    torch.testing.assert_close(model(tensors["input"]), tensors["merged_logits"], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="missing .*Adapter"):
        golden_model(tensors, config, torch.float32, "merged/")


def naive_shift(x, num_frames, div, stride, long_div, long_right):
    """The authors' rule, one clip, frame and group of channels at a time: (B*T, L, C) -> (B*T, L, C)."""
    near, far = x.shape[-1] // div, x.shape[-1] // long_div if long_div else 0
    groups = [(0, near, -stride), (near, 2 * near, stride), (2 * near, 2 * near + far, -2)]
    groups += [(2 * near + far, 2 * near + 2 * far, 2)] if long_right else []
    out = x.clone()
    for n in range(len(x)):
        for start, stop, frames in groups:
            if 0 <= n % num_frames + frames < num_frames:
                out[n, :, start:stop] = x[n + frames, :, start:stop]
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(4, 40), st.integers(1, 4), st.none() | st.integers(4, 40), st.booleans())
def test_shift_equals_the_rule(num_frames, div, stride, long_div, long_right):
    x = torch.randn(2 * num_frames, 3, 40)
    shifts = channel_shifts(40, div, stride, long_div, long_right)
    expected = naive_shift(x, num_frames, div, stride, long_div, long_right)
    assert torch.equal(shift(x, shifts, num_frames), expected)
    keys = torch.cat((x, x, x), dim=-1).chunk(3, dim=-1)[1]  # not contiguous, as they come from the in-projection
    assert torch.equal(shift(keys, shifts, num_frames), expected)


OPTIONS = st.fixed_dictionaries(
    dict(
        mlp_adapters=st.sampled_from([1, 2]),
        adapter_scale=st.sampled_from([0.0, 0.5, 1, 1.7]),
        bottleneck_ratio=st.sampled_from([0.05, 0.25, 1.5]),
        adapter_dropout=st.sampled_from([0, 0.5]),
        shift_div=st.integers(4, 24),
        shift_stride=st.integers(1, 4),
        long_shift_div=st.none() | st.integers(4, 24),
        long_shift_right=st.booleans(),
    )
)


@settings(max_examples=20, deadline=None)
@given(OPTIONS, st.integers(1, 3), st.sampled_from([1, 2, 3]), st.integers(1, 7), st.sampled_from([8, 14]))
def test_merging_is_exact(options, layers, heads, num_frames, patch_size):
    backbone = dict(image_size=2 * patch_size, patch_size=patch_size, width=24, layers=layers, heads=heads, embed_dim=8)
    model = randomised(i2v.create_model("zeroi2v", backbone, num_frames, 5, **options))
    clips = torch.randn(2, 3, num_frames, 2 * patch_size, 2 * patch_size)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model, clips = model.to(dtype), clips.to(dtype)
        merged = i2v.merge_adapters(model)
        torch.testing.assert_close(merged(clips), model(clips), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_is_plain_clip_and_rebuilt_from_its_config(dtype):
    model = randomised(i2v.create_model("zeroi2v", TINY, 4, 5, adapter_scale=0.8)).to(dtype)
    before, merged = {k: v.clone() for k, v in model.state_dict().items()}, i2v.merge_adapters(model)
    assert set(model.state_dict()) == set(before)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.config["merged"] and "backbone.temporal_embedding" in model.trainable_parameters()

    clip = VisionTransformer(merged.spec)
    assert set(merged.backbone.state_dict()) == {*clip.state_dict(), "temporal_embedding"}
    assert {v.dtype for v in merged.state_dict().values()} == {dtype}
    assert set(merged.trainable_parameters()) == {"head.fc.weight", "head.fc.bias"} and not merged.training
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in merged.parameters()}
    assert not shared

    rebuilt = i2v.create_model(**merged.config).to(dtype).eval()
    assert {n: p.requires_grad for n, p in rebuilt.named_parameters()} == {
        n: p.requires_grad for n, p in merged.named_parameters()
    }
    report = i2v.load_weights(rebuilt, merged.state_dict())  # told apart from the authors' by itself
    assert not report.missing and not report.ignored
    clips = torch.randn(2, 3, 4, 16, 16, dtype=dtype)
    assert torch.equal(rebuilt(clips), merged(clips))
    with pytest.raises(ValueError, match="merged already"):
        i2v.merge_adapters(rebuilt)


def test_a_mixed_precision_model_keeps_each_dtype():
    model = randomised(i2v.create_model("zeroi2v", TINY, 4, 5))
    for parameter in model.frozen_parameters().values():
        parameter.data = parameter.data.bfloat16()
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert all(p.dtype == dtypes[name] for name, p in i2v.merge_adapters(model).named_parameters())


@pytest.mark.parametrize("mlp_adapters", [1, 2])
def test_a_fresh_model_on_a_still_clip_is_clip(mlp_adapters):
    options = dict(mlp_adapters=mlp_adapters, shift_div=5, long_shift_div=8, long_shift_right=True)
    model, clip = i2v.create_model("zeroi2v", TINY, 5, 7, **options), i2v.create_model("clip", TINY, 5, 7)  # training
    state = model.backbone.state_dict()
    clip.backbone.load_state_dict({k: v for k, v in state.items() if "Adapter" not in k and k != "temporal_embedding"})
    clips = torch.randn(2, 3, 1, 16, 16).expand(-1, -1, 5, -1, -1)
    torch.testing.assert_close(model.forward_features(clips), clip.forward_features(clips), atol=1e-6, rtol=0)


def test_adapter_dropout_acts_in_training_only():
    model = randomised(i2v.create_model("zeroi2v", TINY, 4, 5, head={"dropout": 0.0}, adapter_dropout=0.5))
    clips = torch.randn(2, 3, 4, 16, 16)
    assert torch.equal(model(clips), model(clips))
    model.train()
    assert not torch.allclose(model(clips), model(clips))


def test_another_number_of_frames_is_an_error():
    model = i2v.create_model("zeroi2v", TINY, 4, 5)
    with pytest.raises(ValueError, match="clips have 8 frames but the temporal embedding is for 4"):
        model(torch.zeros(1, 3, 8, 16, 16))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(mlp_adapters=0), "mlp_adapters must be 1 or 2, got 0"),
        (dict(adapter_scale=float("inf")), "adapter_scale must be a finite number, got inf"),
        (dict(bottleneck_ratio=-1), "bottleneck_ratio must leave at least one of the backbone's 32 channels, got -1"),
        (dict(adapter_dropout=1), "adapter_dropout must be a finite number, at least 0 and below 1"),
        (dict(adapter_dropout="0.1"), "adapter_dropout must be a finite number"),
        (dict(shift_div=0), "shift_div must be an integer from 1 to the backbone's width 32, got 0"),
        (dict(shift_div=33), "shift_div must be an integer from 1 to the backbone's width 32, got 33"),
        (dict(shift_div=1), "the shifts take 64 channels but the backbone has 32: raise shift_div"),
        (dict(shift_stride=0), "shift_stride must be a whole number, at least 1, got 0"),
        (dict(long_shift_div=-1), "long_shift_div .null: no long shift. must be an integer from 1"),
        (dict(shift_div=3, long_shift_div=3, long_shift_right=True), "the shifts take 40 channels"),
        (dict(long_shift_right=1), "long_shift_right must be true or false, got 1"),
        (dict(merged="yes"), "merged must be true or false"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        i2v.create_model("zeroi2v", TINY, 4, 5, **options)
