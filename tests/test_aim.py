"""AIM equals the authors' code (golden vectors), and a fresh one is CLIP with pooled frames."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import i2v
from i2v.methods.aim import DropPath, attend_within, from_authors
from i2v.vit import Attention
from tests.references import assert_layers, assert_step, authors_weights, equal, filled, vit_of
from tests.references import tensors as golden
from tests.trunks import randomised

TINY = dict(image_size=16, patch_size=8, width=32, layers=3, heads=2, embed_dim=24)


def golden_model(tensors, config, dtype):
    model = i2v.create_model(
        "aim",
        vit_of(config),
        config["num_frames"],
        config["num_classes"],
        temporal_adapters=config["num_tadapter"],
        adapter_scale=config["adapter_scale"],
    )
    return filled(model, {"state_dict": authors_weights(tensors)}, dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", ["aim-1.safetensors", "aim-2.safetensors"])
def test_golden(name, dtype, tolerance):
    tensors, config = golden(name)
    model, clips = golden_model(tensors, config, dtype), tensors["input"].to(dtype)

    assert_equal = equal(tensors, tolerance)
    assert_layers(model, clips, config["num_frames"], assert_equal)
    assert_step(model, clips, tensors, assert_equal, from_authors)
    assert {from_authors(name) for name in config["trainable_params"]} == set(model.trainable_parameters())


def test_layouts_are_told_apart():
    tensors, config = golden("aim-1.safetensors")
    theirs = authors_weights(tensors)
    model = golden_model(tensors, config, torch.float32)
    ours = {k: v.clone() for k, v in model.state_dict().items()}
    clip = {k.removeprefix("backbone."): v for k, v in ours.items() if k in model.frozen_parameters() or "ln_post" in k}
    trained = {k: theirs[k] for k in config["trainable_params"]}  # a checkpoint without the frozen trunk
    for state, count in ((theirs, len(ours)), (trained, len(trained)), (ours, len(ours)), (clip, len(clip))):
        assert len(i2v.load_weights(model, state).loaded) == count
        assert all(torch.equal(v, ours[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("temporal_adapters", [1, 2])
def test_a_fresh_model_is_clip_with_pooled_frames(temporal_adapters):
    model = i2v.create_model("aim", TINY, 5, 7, temporal_adapters=temporal_adapters, drop_path=0.3)  # training mode
    clip = i2v.create_model("clip", TINY, 5, 7)
    state = model.backbone.state_dict()
    clip.backbone.load_state_dict({k: v for k, v in state.items() if "Adapter" not in k and k != "temporal_embedding"})
    clips = torch.randn(2, 3, 5, 16, 16)
    torch.testing.assert_close(model.forward_features(clips), clip.forward_features(clips), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_either_memory_layout_and_any_batch(num_frames):
    model = randomised(i2v.create_model("aim", TINY, num_frames, 5, bottleneck_ratio=0.5))
    clips = torch.randn(3, num_frames, 16, 16, 3).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(model(clips), torch.cat([model(c[None].contiguous()) for c in clips]))


def test_frames_are_attended_to_in_their_order_and_within_their_clip():
    model = randomised(i2v.create_model("aim", TINY, 4, 5))
    clips = torch.randn(2, 3, 4, 16, 16)
    logits = model(clips)
    assert not torch.allclose(model(clips.flip(2)), logits, atol=1e-3)
    clips[1] = 0
    torch.testing.assert_close(model(clips)[0], logits[0])


def test_another_number_of_frames_is_an_error():
    model = i2v.create_model("aim", TINY, 4, 5)
    with pytest.raises(ValueError, match="clips have 8 frames but the temporal embedding is for 4"):
        model(torch.zeros(1, 3, 8, 16, 16))


def test_drop_path_drops_whole_clips_and_keeps_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000 * 3, 2, 2)
    dropped = drop(x, 3).unflatten(0, (-1, 3))
    assert (dropped == dropped[:, :1, :1, :1]).all()  # one decision per clip
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(dropped.mean() - 1) < 0.05
    assert drop.eval()(x, 3) is x


def test_drop_path_rises_over_the_layers_and_acts_in_training_only():
    model = randomised(i2v.create_model("aim", TINY, 4, 5, head={"dropout": 0.0}, drop_path=0.4))
    keep = [block.drop_path.keep.item() for block in model.backbone.transformer.resblocks]
    assert keep == pytest.approx([1.0, 0.8, 0.6])
    assert not any("drop_path" in name for name in model.state_dict())
    clips = torch.randn(8, 3, 4, 16, 16)
    assert torch.equal(model(clips), model(clips))
    model.train()
    assert not torch.allclose(model(clips), model(clips))
    one_layer = i2v.create_model("aim", {**TINY, "layers": 1}, 4, 5, drop_path=0.4)
    assert one_layer.backbone.transformer.resblocks[0].drop_path.keep == 1


@pytest.mark.parametrize("temporal_adapters, drop_path", [(1, 0.0), (2, 0.2)])
def test_all_layers_compile_to_one_graph(temporal_adapters, drop_path):
    torch._dynamo.reset()
    options = dict(temporal_adapters=temporal_adapters, drop_path=drop_path)
    blocks = i2v.create_model("aim", TINY, 4, 5, **options).backbone.transformer.resblocks
    counter, tokens = CompileCounterWithBackend("aot_eager"), torch.randn(2 * 4, 5, 32)
    for block in blocks:
        block.compile(backend=counter, fullgraph=True, dynamic=False)
        block(tokens, 4)
    assert counter.frame_count == 1
    block.eval()
    torch.testing.assert_close(block(tokens, 4), block.forward(tokens, 4))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(temporal_adapters=3), "temporal_adapters must be 1 or 2, got 3"),
        (dict(temporal_adapters=True), "temporal_adapters must be 1 or 2"),
        (dict(adapter_scale="0.5"), "adapter_scale must be a finite number, got '0.5'"),
        (dict(adapter_scale=float("nan")), "adapter_scale must be a finite number"),
        (dict(bottleneck_ratio=-0.25), "bottleneck_ratio must leave at least one of the backbone's 32 channels, got -0.25"),
        (dict(bottleneck_ratio=0.01), "bottleneck_ratio must leave at least one"),
        (dict(drop_path=1.0), "drop_path must be a finite number, at least 0 and below 1"),
        (dict(drop_path=-0.1), "drop_path must be a finite number, at least 0 and below 1"),
        (dict(drop_path=None), "drop_path must be a finite number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        i2v.create_model("aim", TINY, 4, 5, **options)


@pytest.mark.parametrize(
    "count, length, tile, together", [(32, 8, 128, 128), (12, 8, 128, 32), (7, 8, 128, 8), (6, 40, 32, 40)]
)
def test_short_sequences_read_as_one_attend_as_alone(count, length, tile, together):
    torch.manual_seed(0)
    attention = Attention(TINY["width"], TINY["heads"]).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    seen, attend = [], attention.attend
    attention.attend = lambda q, *rest, **more: seen.append(q.shape[1]) or attend(q, *rest, **more)
    x = torch.randn(count, length, TINY["width"], dtype=torch.float64, requires_grad=True)
    packed, alone = attend_within(x, attention, tile), attend_within(x, attention, length)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), [x, *attention.parameters()]) for y in (packed, alone)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)
    assert seen == [together, length]
