"""Learning rates and parameter groups do what a recipe asks for; that recipes are the authors' is seen in test_config.py."""

import math

import pytest
import torch

from i2v.checkpoint import optimizer_tensors, restore_optimizer
from i2v.config import TrainConfig
from i2v.model import create_model
from i2v.optim import build_optimizer, learning_rate, parameter_groups

TINY = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "heads": 2, "embed_dim": 16}


def schedule(**changes):
    return TrainConfig(**{"epochs": 12, "batch_size": 1, "lr": 1.0, "warmup_epochs": 2} | changes)


def test_st_adapter_starts_at_0_and_ends_at_0():
    config = schedule()
    assert [learning_rate(e, config) for e in (0, 1, 2, 7, 12)] == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_aim_moves_once_an_epoch_and_multiplies_while_warming_up():
    config = schedule(schedule="per_epoch", epochs=30, warmup_epochs=2.5, lr=3e-4, warmup_lr=3e-5)

    def authors(epoch):
        factor = 1 - (1 - epoch / 2.5) * 0.9 if epoch < 2.5 else 1
        return 3e-4 * 0.5 * (1 + math.cos(math.pi * math.floor(epoch) / 30)) * factor

    for epoch in (0, 0.3, 1, 1.99, 2, 2.49, 2.5, 2.9, 3, 15.5, 29.99):
        assert learning_rate(epoch, config) == pytest.approx(authors(epoch), rel=1e-12)


def test_st_adapter_decays_everything_but_biases():
    parameters = create_model("st_adapter", TINY, 4, 5, adapter_width=8).trainable_parameters()
    groups = parameter_groups(parameters, schedule(weight_decay=0.01))
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay == {name: 0.0 if name.endswith(".bias") else 0.01 for name in parameters}


def test_groups_hold_every_trained_parameter_once():
    parameters = create_model("aim", TINY, 4, 5).trainable_parameters()
    config = schedule(no_decay=["ln_post", "1-d"], lr_multipliers={"backbone": 0.1, "ln_post": 3}, weight_decay=0.05)
    groups = parameter_groups(parameters, config)
    assert sorted(name for group in groups for name in group["names"]) == sorted(parameters)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scale["head.fc.weight"] == 1 and scale["backbone.temporal_embedding"] == 0.1
    assert scale["backbone.ln_post.weight"] == pytest.approx(0.3)
    assert isinstance(build_optimizer(parameters, config), torch.optim.AdamW)


def test_entries_of_several_parts_mean_what_has_them_in_this_order():
    names = ["stem.bias", "rf.norm.weight", "rf.norm.bias", "rf.a.bias", "norm.weight", "bias.rf"]
    parameters = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in names}
    config = schedule(no_decay=["bias", "norm", "-rf.norm.weight"], lr_multipliers={"rf": 5, "rf.bias": 2}, weight_decay=1)
    groups = parameter_groups(parameters, config)
    found = {name: (group["weight_decay"], group["lr_scale"]) for group in groups for name in group["names"]}
    assert found == dict(zip(names, [(0, 1), (1, 5), (0, 10), (0, 10), (0, 1), (0, 5)]))


def test_layer_decay_counts_from_the_top():
    parameters = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in ("stem", "block.0", "block.1", "head")}
    layers = {"stem": 0, "block.0": 1, "block.1": 2, "head": 3}
    groups = parameter_groups(parameters, schedule(layer_decay=0.5, no_decay=[], lr_multipliers={"head": 10}), layers.get)
    assert {n: g["lr_scale"] for g in groups for n in g["names"]} == {
        "stem": 0.125,
        "block.0": 0.25,
        "block.1": 0.5,
        "head": 10,
    }


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"no_decay": ["biass"]}, "train.no_decay has 'biass'"),
        ({"no_decay": ["bias", "-bias.fc1"]}, "train.no_decay has '-bias.fc1'"),
        ({"lr_multipliers": {"tail": 2}}, "train.lr_multipliers has 'tail'"),
        ({"layer_decay": 0.7}, "train.layer_decay is set, but"),
    ],
)
def test_entries_that_fit_nothing_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        parameter_groups(create_model("st_adapter", TINY, 4, 5).trainable_parameters(), schedule(**changes))


def test_a_restored_optimizer_lies_in_memory_as_its_parameters_do():
    """The fused AdamW goes through parameter, gradient and state by their place in memory, whatever their strides say."""
    torch.manual_seed(0)
    start, grads = torch.randn(4, 3, 2, 5, 5), [torch.randn(4, 3, 2, 5, 5) for _ in range(3)]

    def steps(restored_after):
        parameter = torch.nn.Parameter(start.clone(memory_format=torch.channels_last_3d))
        optimizer = build_optimizer({"conv.weight": parameter}, schedule(no_decay=[]))
        for step, grad in enumerate(grads):
            if step == restored_after:
                saved = {
                    name: tensor.clone(memory_format=torch.contiguous_format)
                    for name, tensor in optimizer_tensors(optimizer).items()
                }
                optimizer = build_optimizer({"conv.weight": parameter}, schedule(no_decay=[]))
                restore_optimizer(optimizer, saved)
            parameter.grad = grad.clone(memory_format=torch.channels_last_3d)
            optimizer.step()
        return parameter

    assert torch.equal(steps(None), steps(2))
