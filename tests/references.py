"""What the authors' code computed: tensors and figures, some here (tests/golden), the rest in ../shared/reference; and
whether a model of ours computes the same."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open

import i2v

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "reference"


def find(name: str) -> Path:
    """The file of this name; the test is skipped where it is not."""
    path = next((folder / name for folder in (HERE / "golden", SHARED / "golden", SHARED) if (folder / name).exists()), None)
    return path or pytest.skip(f"{name}, the authors' figures, is only in ../shared/reference")


def tensors(name: str) -> tuple[dict, dict]:
    """(tensors, config) of a golden vector."""
    with safe_open(find(name), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])


def figures(name: str):
    """What NAME.json.gz holds: sampling, learning rates, parameter groups."""
    return json.loads(gzip.decompress(find(f"{name}.json.gz").read_bytes()))


# ---- a method's golden vectors -----------------------------------------------------------------------------------------


def vit_of(config: dict) -> dict:
    """The trunk of a method on CLIP."""
    return {name: config[name] for name in ("image_size", "patch_size", "width", "layers", "heads")} | {"embed_dim": 32}


def authors_weights(tensors: dict, prefix: str = "weight/") -> dict:
    """Their model's parameters, under their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def filled(model, weights: dict, dtype: torch.dtype, layout: str = "authors"):
    """The model with their weights, all of them and nothing else, in evaluation."""
    report = i2v.load_weights(model, weights, layout=layout)
    assert not report.missing and not report.ignored
    return model.to(dtype).eval()


def equal(tensors: dict, tolerance: float):
    """assert_equal(actual, name of theirs)"""

    def assert_equal(actual, name):
        torch.testing.assert_close(actual.float(), tensors[name], atol=tolerance, rtol=0, msg=lambda m: f"{name}: {m}")

    return assert_equal


def assert_layers(model, clips, num_frames: int, assert_equal) -> None:
    """What enters the first layer, and what comes out of each."""
    frames = rearrange(clips, "b c t h w -> (b t) c h w")
    assert_equal(model.backbone.embed(frames), "inter/ln_pre")
    for i, tokens in enumerate(model.backbone.features(frames, num_frames)):
        assert_equal(tokens, f"inter/block{i}")


def assert_step(model, clips, tensors: dict, assert_equal, from_authors, equal_gradient=None) -> None:
    """Logits, features, loss, and the gradients of what trains, which is what has one in their code; the rest has none."""
    logits = model(clips)
    loss = F.cross_entropy(logits, tensors["labels"])
    assert_equal(logits, "logits")
    assert_equal(model.forward_features(clips), "features")
    assert_equal(loss, "loss")
    loss.backward()
    trained = model.trainable_parameters()
    gradients = {from_authors(name.removeprefix("grad/")): name for name in tensors if name.startswith("grad/")}
    assert set(gradients) == set(trained)
    for ours, theirs in gradients.items():
        (equal_gradient or assert_equal)(trained[ours].grad, theirs)
    assert all(parameter.grad is None for parameter in model.frozen_parameters().values())
