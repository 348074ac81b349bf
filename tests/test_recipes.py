"""What a recipe can ask for: each option does what it says, and all of them together are exact in a continuation."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.backends.debugging import aot_eager
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import i2v.train as program
import i2v.trainee as trainee
from i2v.checkpoint import EMA, load_checkpoint, weights_of
from i2v.config import ConfigError, TrainConfig, load_config
from i2v.ema import Average
from i2v.model import VideoClassifier, create_model
from i2v.optim import build_optimizer, finish_gradients
from i2v.placement import compile_blocks, recompute_blocks
from i2v.saving import kept_epochs
from i2v.session import restore_model
from tests.test_precision import METHODS, model_of
from tests.test_train import CPU, assert_continues, config, result, run, spawn, train  # noqa: F401  config is a fixture
from tests.trunks import TRUNKS

AIM = ["model.method=aim", "model.options={drop_path: 0.2}"]
TADA = ["model.method=tada", "model.options={route_head_dim: 16, tubelet_stride: 1, drop_path: 0.2}", "train.no_decay=[1-d]"]
EVERYTHING = [
    "train.ema=0.9",
    "train.clip_grad=0.5",
    "train.mixup=0.8",
    "train.cutmix=1.0",
    "train.mix_probability=0.7",
    "train.mix_switch=0.3",
    "train.class_weights=0.5",
    "train.head_epochs=1",
    "train.micro_batch=4",
    "train.recompute=half",
    "train.label_smoothing=0.1",
    "train.keep=2",
    "train.best=cross_entropy",
]
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize("method", [AIM, TADA], ids=["aim", "tada"])
def test_everything_at_once_stopped_and_continued_equals_uninterrupted(config, tmp_path, method):  # noqa: F811
    """Weights, optimizer, average, batch norms' statistics and the log, bit for bit; and the files of chosen epochs."""
    whole = train(config, tmp_path / "whole", *method, *EVERYTHING)
    for steps in (2, 7):  # while only the head trains, and in the middle of an interval of the log
        train(config, tmp_path / "parts", *method, *EVERYTHING, f"train.max_steps={steps}", "train.eval_every=100")
    parts = train(config, tmp_path / "parts", *method, *EVERYTHING)
    assert any(name.startswith(EMA) for name in whole[0])
    assert not torch.equal(whole[0]["head.fc.weight"], whole[0][EMA + "head.fc.weight"])
    assert whole[0].keys() == parts[0].keys()
    for name in whole[0]:
        assert torch.equal(whole[0][name], parts[0][name]), name
    same = [[r for r in log if "loss" in r and r["step"] > 8] for _, log in (whole, parts)]
    assert same[0] == same[1] and same[0]
    for name in ("epoch-4", "epoch-4-ema", "best"):
        one, other = (load_file(tmp_path / out / f"{name}.safetensors") for out in ("whole", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name


CONVOLUTIONAL = {
    "tada2d": ["train.optimizer=sgd", "train.lr=0.05", "clips.test_size=40"],
    "tadaconvnext": ["model.options={drop_path: 0.2}", "clips.test_size=64", "train.precision=bf16"],
}


@pytest.mark.parametrize("method", CONVOLUTIONAL)
def test_a_convolutional_trunk_trains_and_continues_on_pictures_of_two_sizes(config, tmp_path, method, monkeypatch):  # noqa: F811
    """Bit for bit; clips of training are 32 pixels wide and those of evaluation test_size."""
    sizes, forward = set(), VideoClassifier.forward
    monkeypatch.setattr(
        VideoClassifier, "forward", lambda self, clips: sizes.add((self.training, clips.shape[-1])) or forward(self, clips)
    )
    options = [f"model.method={method}", f"model.backbone={json.dumps(TRUNKS[method])}", "model.weights=random"]
    options += ["model.options={}", "train.no_decay=[1-d]", *CONVOLUTIONAL[method]]
    whole = train(config, tmp_path / "whole", *options)
    for steps in (1, 5):
        train(config, tmp_path / "parts", *options, f"train.max_steps={steps}", "train.eval_every=100")
    parts = train(config, tmp_path / "parts", *options)
    assert whole[0].keys() == parts[0].keys() and all(torch.equal(whole[0][name], parts[0][name]) for name in whole[0])
    assert sizes == {(True, 32), (False, int(CONVOLUTIONAL[method][-1 if method == "tada2d" else 1].split("=")[1]))}
    tensors, meta = load_checkpoint(tmp_path / "whole" / "last.safetensors")
    restored = restore_model(tensors, meta)  # complete: no other file is asked for
    assert all(torch.equal(tensor, whole[0][name]) for name, tensor in restored.state_dict().items())


@pytest.mark.parametrize(
    "method, options, text",
    [
        ("st_adapter", [], "clips.test_size is 64, but the backbone takes pictures of a size of 32 and no other"),
        ("tadaconvnext", ["clips.test_size=48"], "clips.test_size is 48, but .* a size of multiples of 32"),
        ("st_adapter", ["clips.test_size=large"], "test_size is 'large': it must be a whole number"),
    ],
)
def test_a_test_size_that_the_backbone_does_not_take_is_refused_at_once(config, tmp_path, method, options, text):  # noqa: F811
    if method in TRUNKS:
        options = [f"model.backbone={json.dumps(TRUNKS[method])}", "model.weights=random", "model.options={}", *options]
    with pytest.raises(ValueError, match=text):
        train(config, tmp_path, f"model.method={method}", "clips.test_size=64", *options)


def test_a_test_size_that_is_the_backbones_own_changes_nothing(config, tmp_path):  # noqa: F811
    options = ["train.max_steps=1", "train.eval_every=100"]
    given, plain = (train(config, tmp_path / str(len(more)), *options, *more)[1] for more in (["clips.test_size=32"], []))
    assert given == plain


def test_sgd_is_that_of_torch_also_after_a_first_step_that_is_left_out():
    """Nesterov's momentum; the fused optimizer's buffers must not be what the memory held."""
    start, grads = torch.randn(5, 7), [torch.randn(5, 7) for _ in range(4)]
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings = TrainConfig(epochs=1, batch_size=1, lr=0.1, optimizer="sgd", weight_decay=0.01, no_decay=[])
    ours = build_optimizer({"fc.weight": mine}, settings)
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step, grad in enumerate(grads):
        mine.grad, theirs.grad = grad.clone(), grad.clone()
        ours.found_inf = torch.tensor(float(step == 0))
        ours.step()
        if step:
            reference.step()
    torch.testing.assert_close(mine, theirs)


@pytest.mark.process
def test_a_continuation_on_two_ranks_follows_the_run_on_one(config, tmp_path):  # noqa: F811
    """Begun on one, continued on two: the same but for rounding, without what is drawn per rank."""
    options = [option for option in EVERYTHING if "recompute" not in option] + [
        "model.head={type: linear, dropout: 0}",
        "train.max_steps=8",
        "data.val=null",
        "train.lr=1e-3",
    ]
    whole = train(config, tmp_path / "whole", *options)[0]
    train(config, tmp_path / "parts", *options, "train.max_steps=4")
    assert spawn(config, tmp_path / "parts", *options, ranks=2) == 0
    parts = result(tmp_path / "parts")[0]
    assert whole.keys() == parts.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=3e-5, msg=lambda m: f"{name}: {m}")


def test_the_average_is_that_of_swa_utils():
    """Of parameters and batch norms' statistics; a step that is not taken moves nothing, and in_place puts back."""
    model = model_of("tada").train()
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    reference.n_averaged += 1  # ours begins with the weights as they are at the start
    average, optimizer = Average(model, 0.9), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        model(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()
        optimizer.step()
        taken = torch.tensor(step != 2)
        average.update(taken)
        if taken:
            reference.update_parameters(model)
    expected, raw = reference.module.state_dict(), copy.deepcopy(model.state_dict())
    found = {name.removeprefix(EMA): tensor for name, tensor in average.tensors().items()}
    assert any(name.endswith("running_var") for name in found)
    with average.in_place():
        inside = copy.deepcopy(model.state_dict())
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])
        assert torch.equal(inside[name], tensor)
    assert all(torch.equal(tensor, raw[name]) for name, tensor in model.state_dict().items())


def test_best_is_the_better_of_the_weights_and_their_average(config, tmp_path, monkeypatch):  # noqa: F811
    """By the figure that is asked for, over all validations; and every program reads the file as any other."""
    options = ["train.ema=0.5", "train.best=class_mean", "train.eval_every=1", "train.max_steps=6", "train.keep=[1]"]
    seen, evaluate = [], program.evaluate

    def recorded(model, *rest):
        scores = evaluate(model, *rest)
        weights = {name: tensor.clone() for name, tensor in model.trainable_parameters().items()}
        seen.append((scores.value("class_mean"), weights))
        return scores

    monkeypatch.setattr(program, "evaluate", recorded)
    _, log = train(config, tmp_path, *options)
    assert len(seen) == 4 and not torch.equal(seen[0][1]["head.fc.weight"], seen[1][1]["head.fc.weight"])
    validations = [record for record in log if "top1" in record]
    figures = [record[name] for record in validations for name in ("class_mean", "ema_class_mean")]
    assert figures == [value for value, _ in seen]
    best = max(range(4), key=lambda i: (seen[i][0], -i))
    tensors, meta = load_checkpoint(tmp_path / "best.safetensors")
    assert meta.scores["averaged"] == best % 2 and meta.scores["class_mean"] == seen[best][0]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in seen[best][1].items())
    assert not any(name.startswith(EMA) for name in tensors)
    last = load_checkpoint(tmp_path / "last.safetensors")
    for name, tensor in restore_model(*last).trainable_parameters().items():
        assert torch.equal(tensor, last[0][name])
    raw, averaged = (load_file(tmp_path / f"epoch-1{end}.safetensors") for end in ("", "-ema"))
    assert all(torch.equal(raw[name], tensor) for name, tensor in seen[0][1].items())
    assert all(torch.equal(averaged[name], tensor) for name, tensor in seen[1][1].items())


def test_the_lowest_cross_entropy_is_the_best(config, tmp_path):  # noqa: F811
    _, log = train(config, tmp_path, "train.best=cross_entropy", "train.eval_every=1")
    found = {record["step"]: record["cross_entropy"] for record in log if "top1" in record}
    best = min(found, key=found.get)
    assert len(found) == 4 and load_checkpoint(tmp_path / "best.safetensors")[1].progress["step"] == best


@pytest.mark.parametrize("clip", [None, 1e9, 0.25])
def test_clipping_is_that_of_torch(clip):
    parameters = [torch.nn.Parameter(torch.randn(3, n)) for n in (1, 4, 5)]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    grads = [torch.randn_like(p) for p in parameters]
    for parameter, grad in zip(parameters, grads):
        parameter.grad = grad.clone()
    norm = finish_gradients(optimizer, NO_SCALER, torch.tensor(2.0), clip)
    found = [parameter.grad for parameter in parameters]
    for parameter, grad in zip(parameters, grads):
        parameter.grad = 2 * grad
    expected = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(found, [parameter.grad for parameter in parameters])


def test_the_log_has_the_norm_before_clipping(config, tmp_path):  # noqa: F811
    options = ["train.max_steps=2", "train.log_every=1", "data.val=null"]
    plain = train(config, tmp_path / "plain", *options)
    clipped = train(config, tmp_path / "clipped", *options, "train.clip_grad=1e-3")
    assert plain[1][0]["grad_norm"] == clipped[1][0]["grad_norm"] > 1e-3
    assert not torch.equal(plain[0]["head.fc.weight"], clipped[0]["head.fc.weight"])


def test_at_first_only_the_head_trains(config, tmp_path):  # noqa: F811
    """Then everything does, with an optimizer that begins there."""
    options = ["train.head_epochs=1", "data.val=null", "train.save_every=1"]
    start = train(config, tmp_path, *options, "train.max_steps=1")[0]
    head = train(config, tmp_path, *options, "train.max_steps=3")[0]
    after = train(config, tmp_path, *options, "train.max_steps=4")[0]
    others = [name for name in weights_of(start) if not name.startswith("head.")]
    assert all(torch.equal(start[name], head[name]) for name in others)
    assert not torch.equal(start["head.fc.weight"], head["head.fc.weight"])
    assert any(not torch.equal(head[name], after[name]) for name in others)
    assert {int(after[f"optimizer/{name}/step"]) for name in others} == {1}
    assert int(after["optimizer/head.fc.weight/step"]) == 4


@pytest.mark.parametrize(
    "keep, expected", [(None, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4]), ([1, 2.5, 5], [1, 2.5, 5]), ([0.1, 2.25], [0.1, 2.25])]
)
@pytest.mark.parametrize("step", [1, 3, 10, 8, 25])
def test_the_epochs_that_are_kept(keep, expected, step):
    """Each once, after the step in which it ended, which may end several."""
    ends = [(samples, min(samples + step, 50)) for samples in range(0, 50, step)]
    kept = [(epoch, end) for begin, end in ends for epoch in kept_epochs(keep, begin, end, 10)]
    assert [epoch for epoch, _ in kept] == expected and all(epoch * 10 <= end for epoch, end in kept)


# ---- memory and precision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", ["half", "all"])
def test_recomputed_blocks_have_the_same_gradients_and_statistics(method, which):
    """Dropout included, bit for bit, from fewer tensors that wait for the backward pass."""
    kept, found, clips = [], [], torch.randn(2, 3, 4, 32, 32)
    for each in ("none", which):
        model = model_of(method).train()
        recompute_blocks(model, each)
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            torch.manual_seed(3)
            logits = model(clips)
        logits.square().sum().backward()
        kept.append(sum(sizes.values()))
        statistics = {name: buffer for name, buffer in model.named_buffers() if "running" in name or "tracked" in name}
        found.append({name: p.grad for name, p in model.trainable_parameters().items()} | statistics)
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name
    assert kept[1] < kept[0] * (0.9 if which == "half" else 0.75)


@pytest.mark.parametrize("method", ["st_adapter", "tada"])
def test_recomputed_blocks_compile(method, monkeypatch):
    """Each run of a block is a compiled one; the gradients are those of blocks that are not recomputed."""
    found, compiled, compile_one = [], [], torch.compile

    def traced(graph, inputs):
        compiled.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", lambda forward, dynamic: compile_one(forward, dynamic=dynamic, backend=traced))
    for which in ("none", "all"):
        torch.manual_seed(1)
        model = model_of(method).train()
        compile_blocks(model)
        recompute_blocks(model, which)
        model(torch.linspace(-1, 1, 2 * 3 * 4 * 32 * 32).view(2, 3, 4, 32, 32)).square().sum().backward()
        found.append([p.grad for p in model.trainable_parameters().values()])
    torch.testing.assert_close(found[0], found[1])
    assert compiled


def test_fp16_follows_float32_and_its_scale_is_in_the_checkpoint(config, tmp_path):  # noqa: F811
    """Stopped and continued as well, bit for bit; steps whose gradient is too large for fp16 only lower the scale."""
    options = ["model.head={type: linear, dropout: 0}", "data.val=null", "train.log_every=1"]
    plain = train(config, tmp_path / "plain", *options)[1]
    half = train(config, tmp_path / "half", *options, "train.precision=fp16")
    assert [r["loss"] for r in half[1]] == pytest.approx([r["loss"] for r in plain], rel=0.03)
    train(config, tmp_path / "parts", *options, "train.precision=fp16", "train.max_steps=5")
    scaler = load_checkpoint(tmp_path / "parts" / "last.safetensors")[1].progress["scaler"]
    assert scaler["scale"] >= 1 and scaler["_growth_tracker"] == 5
    assert_continues(config, tmp_path / "parts", half, *options, "train.precision=fp16", saved=5)


# ---- other weights to start from -------------------------------------------------------------------------------------


def test_a_run_starts_from_another_runs_adapters_with_a_fresh_head(config, shapes, tmp_path, capfd):  # noqa: F811
    """With other classes; with the same ones the head comes along. What is fresh is said. The file is not needed again."""
    first = train(config, tmp_path / "first", "train.max_steps=2", "data.val=null", "train.ema=0.9")[0]
    init = tmp_path / "k400.safetensors"
    load, meta = load_checkpoint(tmp_path / "first" / "last.safetensors")

    from i2v.checkpoint import save_checkpoint

    for classes, fresh in ((meta.classes, False), ([f"other {i}" for i in range(8)], True)):
        save_checkpoint(init, load, replace(meta, classes=classes))
        models, build = [], trainee.build_optimizer

        def recorded(parameters, *rest):
            models.append({name: p.detach().clone() for name, p in parameters.items()})
            return build(parameters, *rest)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(trainee, "build_optimizer", recorded)
            out = tmp_path / f"second-{fresh}"
            train(config, out, f"model.init={init}", "train.max_steps=1", "data.val=null")
        begun = models[0]
        assert all(torch.equal(begun[name], first[name]) for name in begun if not name.startswith("head."))
        assert torch.equal(begun["head.fc.weight"], first["head.fc.weight"]) is not fresh
        said = "fresh are head.fc.bias, head.fc.weight: its classes are others" if fresh else "none is fresh"
        assert said in capfd.readouterr().err
        init.unlink()
        train(config, out, f"model.init={init}", "train.max_steps=2", "data.val=null")


@pytest.mark.parametrize("classes", [5, 8])
def test_a_released_checkpoint_with_another_head_is_loaded_but_for_the_head(tmp_path, classes):
    from i2v.transfer import start_from

    torch.manual_seed(1)
    released = create_model("st_adapter", model_of("st_adapter").config["backbone"], 4, classes, adapter_width=16)
    path = tmp_path / "released.pt"
    torch.save({"model": {n.removeprefix("backbone."): t for n, t in released.state_dict().items()}}, path)
    model = model_of("st_adapter")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {n.removeprefix("backbone.").replace("head.fc", "fc"): t for n, t in released.state_dict().items()}
    torch.save({"model": state}, path)
    source, said = start_from(model, str(path), [str(i) for i in range(8)], "clip.pt")
    for name, tensor in model.state_dict().items():
        wanted = before if name.startswith("head.") and classes != 8 else released.state_dict()
        assert torch.equal(tensor, wanted[name]), name
    assert source == "included"  # its trunk is another one than the file of CLIP has, so it travels along
    assert ("fresh are head.fc.bias, head.fc.weight" in said) == (classes != 8)


def test_a_run_whose_trunk_came_along_with_what_it_starts_from_is_continued(config, tmp_path):  # noqa: F811
    """The same as uninterrupted, and without that file: the trunk, which no other has, is in the checkpoint."""
    torch.manual_seed(1)
    released = create_model("st_adapter", load_config(config).model.backbone, 4, 8, adapter_width=16)
    state = {n.removeprefix("backbone.").replace("head.fc", "fc"): t for n, t in released.state_dict().items()}
    torch.save({"model": state}, tmp_path / "released.pt")
    options = [f"model.init={tmp_path}/released.pt", "data.val=null", "train.log_every=1"]
    whole = train(config, tmp_path / "whole", *options, "train.max_steps=3")
    trunk = "backbone.transformer.resblocks.0.attn.in_proj_weight"
    assert torch.equal(whole[0][trunk], released.state_dict()[trunk])
    train(config, tmp_path / "parts", *options, "train.max_steps=1")
    (tmp_path / "released.pt").unlink()
    assert_continues(config, tmp_path / "parts", whole, *options, "train.max_steps=3", saved=1)


ROTARY = ["model.weights=random", "model.backbone.positions=false"]
ROTARY += ["model.backbone.rotary={base: 100, first: 0, step: 1, axes: yx, pairs: halves}"]


@pytest.mark.parametrize("small, large", [([], []), (ROTARY, [*ROTARY, "model.backbone.rotary.step=0.67"])])
def test_a_run_starts_from_one_on_pictures_of_another_size(config, tmp_path, small, large):  # noqa: F811
    """Adapters know no size, and the frozen trunk is that of the same file, its positions resampled, or of rotary ones what
    timm's names make of the size."""
    options = ["data.val=null", "train.max_steps=1", "train.lr=1e-30"]
    first = train(config, tmp_path / "first", *options, "train.seed=7", *small)[0]
    larger = [*options, f"model.init={tmp_path}/first", "model.backbone.image_size=48", *large]
    second = train(config, tmp_path / "second", *larger)[0]
    names = [name for name in first if "adapter" in name and not name.startswith("optimizer/")]
    assert names and all(torch.allclose(first[name], second[name], rtol=0, atol=1e-12) for name in names)


@pytest.mark.parametrize(
    "what, text",
    [
        ("another method", "was trained with st_adapter, this is aim"),
        ("another backbone", "was trained on another backbone"),
        ("another activation", "a backbone with activation 'quick_gelu', this one has 'gelu': set model.backbone as it was"),
        ("a trunk that trains, and other heads", "was trained on a backbone with heads 4, this one has 2"),
        ("another width", "of another shape .*adapter.* with the backbone, options"),
        ("clip", "has a backbone and nothing that st_adapter trains: give it as model.weights"),
        ("nothing", "does not exist: give a checkpoint of st_adapter"),
    ],
)
def test_what_cannot_be_started_from_is_one_sentence(config, tmp_path, what, text):  # noqa: F811
    options = ["train.max_steps=1", "data.val=null"]
    init = tmp_path / "first" / "last.safetensors"
    if what == "a trunk that trains, and other heads":
        options += ["model.method=tada", "model.options={route_head_dim: 16}", "train.no_decay=[]"]
    if what not in ("clip", "nothing"):
        train(config, tmp_path / "first", *options)
    if what == "clip":
        init = load_config(config).model.weights
    change = {
        "another method": "model.method=aim",
        "another width": "model.options={adapter_width: 8}",
        "another activation": "model.backbone.activation=gelu",
        "a trunk that trains, and other heads": "model.backbone.heads=2",
    }.get(what)
    if what == "another backbone":
        torch.manual_seed(7)
        clip = load_file(load_config(config).model.weights)
        save_file({name: torch.randn_like(t) for name, t in clip.items()}, tmp_path / "other.safetensors")
        change = f"model.weights={tmp_path}/other.safetensors"
    if what == "another method":
        options.append("model.options={}")
    with pytest.raises(ValueError, match=text):
        train(config, tmp_path / "second", *options, f"model.init={init}", *([change] if change else []))


# ---- the rules of the keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, text",
    [
        ("train.clip_grad=0", "train.clip_grad is 0: it must be a finite number, more than 0"),
        ("train.ema=1", "train.ema is 1: it must be a finite number, .*at least 0 and below 1"),
        ("train.recompute=most", "train.recompute is 'most': it must be none, half or all"),
        ("train.best=loss", "train.best is 'loss': it must be top1, top5, class_mean, cross_entropy or map or null"),
        ("train.keep=0", "train.keep is 0: it must be"),
        ("train.keep=[0]", "train.keep is .0.: it must be a number of epochs, or a list of epochs up to train.epochs"),
        ("train.keep=[9]", "train.keep is .9.: it must be a number of epochs, or a list of epochs up to train.epochs"),
        ("train.mix_probability=1.5", "train.mix_probability is 1.5: it must be a finite number, from 0 to 1"),
        ("train.mix_switch=-1", "train.mix_switch is -1: it must be a finite number, from 0 to 1"),
        ("train.class_weights=2", "train.class_weights is 2: it must be a finite number, from 0 to 1"),
        ("train.head_epochs=-1", "train.head_epochs is -1: it must be a finite number, at least 0"),
        ("train.skip_nonfinite=0", "train.skip_nonfinite is 0: it must be a whole number, at least 1"),
        ("train.stall_after=0", "train.stall_after is 0: it must be a finite number, more than 0"),
        ("train.precision=fp8", "train.precision is 'fp8': it must be auto, bf16, fp16 or float32"),
    ],
)
def test_each_mistake_has_its_sentence(config, override, text):  # noqa: F811
    with pytest.raises(ConfigError, match=text):
        load_config(config, [override])


def test_a_head_that_does_not_train_cannot_train_alone(config, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="train.head_epochs is 1, but nothing of a text head trains: remove it"):
        trainee.check_trained(load_config(config, ["train.head_epochs=1", "model.head={type: text}"]), {"backbone.x": 0})
