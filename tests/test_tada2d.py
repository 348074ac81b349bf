"""TAda2D equals the authors' code (golden vectors), and a fresh one is torchvision's ResNet without its max pool."""

import pytest
import torch
import torchvision

import i2v
from i2v.methods.tada2d import from_authors
from tests.references import assert_step, authors_weights, equal, filled
from tests.references import tensors as golden

TINY = dict(depths=(1, 2, 1, 1), dims=(8, 16, 32, 32, 48), image_size=32)


def golden_model(tensors, config, dtype):
    backbone = dict(depths=config["blocks"], dims=config["NUM_FILTERS"])
    route = dict(route_ratio=config["ROUTE_FUNC_R"], route_kernels=config["ROUTE_FUNC_K"])
    head = {"type": "linear", "dropout": 0}
    model = i2v.create_model("tada2d", backbone, config["NUM_INPUT_FRAMES"], config["num_classes"], head, **route)
    weights = authors_weights(tensors)
    filled(model, weights, dtype, layout="auto")
    return filled(model, {"model_state": weights}, dtype)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("name", ["tada2d-1.safetensors", "tada2d-2.safetensors", "tada2d-4.safetensors"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_golden(name, dtype, tolerance, layout):
    tensors, config = golden(name)
    model, clips = golden_model(tensors, config, dtype), tensors["input"].to(dtype).contiguous(memory_format=layout)
    updated = {k.removeprefix("updated/"): v for k, v in tensors.items() if k.startswith("updated/")}
    model.train(bool(updated))  # tada2d-4 is one step of training

    model(clips)
    for name, buffer in updated.items():
        found = model.get_buffer(from_authors(name))
        torch.testing.assert_close(found.to(buffer.dtype), buffer, atol=tolerance, rtol=0)
    assert_step(model, clips, tensors, equal(tensors, tolerance), from_authors)
    assert not model.frozen_parameters()


def resnet(depths, width):
    """torchvision's, small, with running statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    net = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, depths, width_per_group=width)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval()


def plain_resnet50():
    return resnet((3, 4, 6, 3), 64)


@pytest.mark.parametrize("form", [dict, lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}])
def test_a_fresh_model_is_torchvisions_resnet_with_a_stride_for_its_max_pool(form):
    image, model = plain_resnet50(), i2v.create_model("tada2d", "resnet50", 4, 5).eval().double()
    report = i2v.load_weights(model, form(image.state_dict()), layout="image")
    assert len(report.loaded) == 318 and sorted(report.ignored)[-1].endswith("fc.weight") and len(report.ignored) == 2
    new = [name for name in report.missing if not name.startswith("head.")]
    assert len(new) == 240 and all(".b_rf." in name or ".b_avgpool_bn." in name for name in new)

    image.maxpool = torch.nn.Identity()
    image.layer1[0].conv2.stride = image.layer1[0].downsample[0].stride = (2, 2)
    image.fc = torch.nn.Identity()
    image.double()
    clips = torch.randn(2, 3, 4, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = image(clips.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4)).mean(1)
        torch.testing.assert_close(model.forward_features(clips), expected, atol=1e-5, rtol=1e-5)


def test_deeper_ones_are_larger():
    with torch.device("meta"):
        models = [i2v.create_model("tada2d", name, 8, 400) for name in ("resnet50", "resnet101", "resnet152")]
    sizes = [sum(p.numel() for p in model.parameters()) for model in models]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_any_number_of_frames_and_any_size(num_frames):
    model = i2v.create_model("tada2d", TINY, 8, 5).eval()
    assert model(torch.randn(1, 3, num_frames, 40, 56)).shape == (1, 5)


@pytest.mark.parametrize(
    "backbone, message",
    [
        ("resnet18", "backbone 'resnet18' is not a ResNet: use one of resnet50, resnet101, resnet152"),
        ({"depths": (1, 1, 1)}, "backbone depths must be a list, 4 whole numbers"),
        ({"dims": (8, 16, 32, 32, 48)}, "the backbone dict lacks depths"),
        ({"depths": (1, 1, 1, 1), "width": 3}, "has unknown width"),
        ({"depths": (1, 1, 1, 1), "dims": (8, 18, 32, 32, 48)}, "dims must be multiples of 4"),
        (50, "backbone must be a name or a dict"),
    ],
)
def test_a_backbone_that_is_none_is_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        i2v.create_model("tada2d", backbone, 4, 5)


def test_files_of_another_kind_are_refused():
    model = i2v.create_model("tada2d", TINY, 4, 5)
    with pytest.raises(ValueError, match="of another shape"):
        i2v.load_weights(model, resnet((1, 2, 1, 1), 64).state_dict(), layout="image")
    with pytest.raises(ValueError, match="has no trunk of CLIP's"):
        i2v.load_weights(model, resnet((1, 2, 1, 1), 64).state_dict(), layout="clip")
    state = plain_resnet50().state_dict()
    del state["layer3.0.bn2.weight"]
    with pytest.raises(ValueError, match=r"1 missing \(backbone.conv4.res_1.conv_branch.b_bn.weight\)"):
        i2v.load_weights(i2v.create_model("tada2d", "resnet50", 4, 5), state, layout="image")
    with pytest.raises(ValueError, match="a text head needs the features of a CLIP"):
        i2v.create_model("tada2d", TINY, 4, 2, {"type": "text", "class_names": ["a", "b"]})
