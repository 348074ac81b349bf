"""Only the class tokens are read after the last layer: computing them alone changes no number, and costs less."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import i2v
from i2v.complexity import every_token
from i2v.placement import compile_blocks
from tests.trunks import trunk_of

TINY = dict(image_size=16, patch_size=8, width=32, layers=3, heads=2, embed_dim=24)
METHODS = [
    ("clip", {}),
    ("st_adapter", {"adapter_width": 8}),
    ("st_adapter", {"adapter_width": 8, "positions": ["pre_attn", "pre_mlp"], "kernel_size": [3, 3, 3]}),
    ("st_adapter", {"adapter_width": 8, "positions": ["pre_attn"]}),
    ("aim", {"temporal_adapters": 2, "drop_path": 0.2}),
    ("zeroi2v", {"shift_div": 4, "adapter_dropout": 0.0}),
    ("zeroi2v", {"shift_div": 4, "merged": True}),
    ("lora", {"rank": 2, "targets": ["q", "k", "v", "out", "fc1", "fc2"]}),
    ("attentive", {"depth": 2, "heads": 4}),
    ("dist", {"integration_dim": 64, "temporal_dim": 16}),
    ("tada", {"route_ratio": 1, "route_head_dim": 4}),
    ("tada", {"route_ratio": 1, "route_head_dim": 4, "double": True, "temporal_enhance": True}),
    ("tada", {"route_ratio": 1, "route_head_dim": 4, "double": True, "train": "adapters"}),
    ("tada2d", {}),
    ("tadaconvnext", {"drop_path": 0.2}),
    ("tadaconvnext", {"train": "adapters"}),
]


def random_model(method, options):
    torch.manual_seed(0)
    model = i2v.create_model(method, trunk_of(method, TINY), 4, 5, {"type": "linear", "dropout": 0}, **options).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def logits_and_gradients(model):
    torch.manual_seed(1)
    logits = model(torch.randn(2, 3, 4, *[model.spec.image_size] * 2, dtype=torch.float64))
    F.cross_entropy(logits, torch.tensor([1, 3])).backward()
    return logits, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("method, options", METHODS, ids=str)
def test_class_tokens_alone_give_the_same_logits_and_gradients(method, options):
    logits, gradients = logits_and_gradients(random_model(method, options))
    with every_token():
        all_logits, all_gradients = logits_and_gradients(random_model(method, options))
    torch.testing.assert_close(logits, all_logits, rtol=1e-12, atol=1e-12)
    for name, gradient in all_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("method, options", METHODS, ids=str)
def test_every_trained_parameter_has_a_gradient(method, options):
    """DDP waits for each of them, and a checkpoint has the optimizer's state of each."""
    model = random_model(method, options)
    logits_and_gradients(model)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trainable_parameters().values())
    assert all(p.grad is None for p in model.frozen_parameters().values())


def test_what_is_not_read_may_be_anything():
    """The parameters of the last adapter of ST-Adapter are not even looked at."""
    model = random_model("st_adapter", {"adapter_width": 8})
    torch.nn.init.constant_(model.backbone.transformer.resblocks[-1].adapter_pre_mlp.fc1.weight, float("nan"))
    logits, gradients = logits_and_gradients(model)
    assert logits.isfinite().all() and all(g.isfinite().all() for g in gradients.values() if g is not None)


@pytest.mark.parametrize("method", ["st_adapter", "dist"])
def test_nothing_is_kept_for_the_backward_pass_before_the_first_trained_parameter(method):
    model = random_model(*next(row for row in METHODS if row[0] == method))
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor)
        return tensor

    trunk, images = model.trunk, torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if method == "dist":
            model.backbone.clip_features(torch.randn(1, 3, 4, 16, 16, dtype=torch.float64))
        else:
            block = trunk.transformer.resblocks[0]
            block.attn(block.ln_1(trunk.embed(images)))
    assert not kept


@pytest.mark.parametrize("method, options", METHODS, ids=str)
def test_compiled_in_the_first_step_without_graph_breaks_it_is_the_same(method, options):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    expected, model = logits_and_gradients(random_model(method, options)), random_model(method, options)
    compile_blocks(model, backend=counter, fullgraph=True)
    compiled = []
    for _ in range(3):
        torch.testing.assert_close(logits_and_gradients(model), expected)
        model.zero_grad()
        compiled.append(counter.frame_count)
    assert compiled[0] > 0 and compiled[0] == compiled[-1]
    torch._dynamo.reset()
