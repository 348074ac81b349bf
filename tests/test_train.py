"""Training: stopped and continued equals uninterrupted, any number of devices sees the same batches."""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from i2v.checkpoint import load_checkpoint, not_finite
from i2v.config import load_config
from i2v.curves import figure_of, read_log
from i2v.distributed import World
from i2v.feed import split_batch
from i2v.lock import only_writer
from i2v.metrics import Scores
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.reader import Reader
from i2v.pipelines.shards import ShardSet
from i2v.shard_tools.relabel import main as relabel
from i2v.train import run
from i2v.vit import VisionTransformer, ViTSpec
from tests.experiments import write_experiment
from tests.processes import forked
from tests.test_loader import damage

ROOT = Path(__file__).parent.parent
GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}
CPU = World(0, 1, torch.device("cpu"))
TIMINGS = ("clips_per_s", "data_wait")


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory):
    """4 epochs = 12 steps."""
    model = {"method": "st_adapter", "backbone": GEOMETRY, "num_frames": 4, "options": {"adapter_width": 16}}
    recipe = {"epochs": 4, "lr": 3e-3, "warmup_epochs": 1, "weight_decay": 0.01, "save_every": 3, "eval_every": 2}
    return write_experiment(tmp_path_factory.mktemp("train"), shapes, model, recipe, clips={"flip": 0})


def train(config, out, *overrides):
    run(load_config(config, [f"out={out}", *overrides]), CPU)
    return result(out)


def result(out):
    """(tensors of the last checkpoint, log without timings)"""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return load_checkpoint(out / "last.safetensors")[0], [{k: v for k, v in r.items() if k not in TIMINGS} for r in records]


def assert_same(one, other):
    assert one[0].keys() == other[0].keys() and one[1] == other[1]
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])


def saved_step(out):
    return load_checkpoint(out / "last.safetensors")[1].progress["step"]


def assert_continues(config, out, whole, *overrides, saved, ranks=None):
    """The run in `out`, whose state after step `saved` is there, goes on and comes to the same as `whole`, a result.

    ranks: of processes of their own; None: in this one.
    """
    assert saved_step(out) == saved
    if ranks is None:
        train(config, out, *overrides)
    else:
        assert spawn(config, out, *overrides, ranks=ranks) == 0
    assert_same(result(out), whole)


def spawn(config, out, *overrides, ranks=1, kill=None):
    """Train in processes of their own; kill: (signal name, step). Returns the exit code."""
    return spawn_process(config, out, *overrides, ranks=ranks, kill=kill).returncode


def spawn_process(config, out, *overrides, ranks=1, kill=None):
    program = [ROOT / "tests" / "killed_train.py", *kill] if kill else ["-m", "i2v.train"]
    return forked(ranks, *program, "--config", config, f"out={out}", *overrides)


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train(config, tmp_path_factory.mktemp("uninterrupted"))
    torch.set_num_threads(threads)


def test_a_run_leaves_what_a_user_needs(config, tmp_path):
    _tensors, log = train(config, tmp_path, "train.max_steps=3")
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "log.jsonl", "curves.png", "last.safetensors", "best.safetensors"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    weights, meta = load_checkpoint(tmp_path / "best.safetensors")
    assert all(name.startswith("head.") or "adapter" in name for name in weights)  # adapters only, no backbone
    assert meta.classes == sorted(meta.classes) and len(meta.classes) == 8
    assert [r["counted"] for r in log if "top1" in r] == [16]
    assert load_config(tmp_path / "config.yaml").train.max_steps == 3


@pytest.mark.parametrize("steps", [1, 3, 7, 11])
def test_stopped_after_any_step_and_continued_equals_uninterrupted(config, uninterrupted, tmp_path, steps):
    first, _ = train(config, tmp_path, f"train.max_steps={steps}", "train.eval_every=100")
    assert not all(torch.equal(first[name], uninterrupted[0][name]) for name in first)
    log = [r for r in train(config, tmp_path)[1] if "loss" in r]
    expected = [r for r in uninterrupted[1] if "loss" in r]
    assert [r for r in log if r["step"] % 2 == 0 and r["step"] > steps + 1] == [r for r in expected if r["step"] > steps + 1]
    weights = result(tmp_path)[0]
    assert all(torch.equal(weights[name], uninterrupted[0][name]) for name in weights)


@pytest.mark.process
def test_killed_twice_and_continued_equals_uninterrupted(config, uninterrupted, tmp_path):
    assert spawn(config, tmp_path, kill=("SIGKILL", 5)) == -9
    assert spawn(config, tmp_path, kill=("SIGKILL", 6)) == -9  # counted from step 3, where the last checkpoint is
    assert_continues(config, tmp_path, uninterrupted, saved=9, ranks=1)


@pytest.mark.process
def test_sigterm_writes_a_checkpoint_and_exits_with_0(config, uninterrupted, tmp_path):
    assert spawn(config, tmp_path, kill=("SIGTERM", 4)) == 0
    assert_continues(config, tmp_path, uninterrupted, saved=4)  # the last step that was finished


@pytest.mark.process
def test_ctrl_c_is_acknowledged_saves_and_lets_no_other_command_follow(config, uninterrupted, tmp_path):
    done = spawn_process(config, tmp_path, kill=("SIGINT", 4))
    said = ["stopping after this step, with the state saved; Ctrl-C once more ends at once", "stopped after step 4: the same"]
    assert done.returncode == 130 and all(text in done.stderr for text in said), done.stderr
    assert_continues(config, tmp_path, uninterrupted, saved=4)


def test_the_best_checkpoint_is_that_of_the_best_evaluation(config, tmp_path, monkeypatch):
    """Also across a stop: after it, an evaluation that is better than the last one but not than the best is not kept."""
    import i2v.train as program

    top1 = iter([0.5, 0.25, 0.375, 0.5, 0.75, 0.5])
    monkeypatch.setattr(program, "evaluate", lambda *_: Scores(16, 16, next(top1), 1.0, torch.eye(8)))
    options = ["train.eval_every=1.0", "train.epochs=6"]
    for steps, best in ((6, 3), (12, 3), (18, 15)):
        train(config, tmp_path, *options, f"train.max_steps={steps}")
        meta = load_checkpoint(tmp_path / "best.safetensors")[1]
        assert meta.progress["step"] == best and meta.scores["top1"] == (0.75 if best == 15 else 0.5)


@pytest.mark.process
def test_two_ranks_killed_and_continued_equal_two_ranks_uninterrupted(config, tmp_path):
    assert spawn(config, tmp_path / "whole", ranks=2) == 0
    assert spawn(config, tmp_path / "killed", ranks=2, kill=("SIGKILL", 7)) != 0
    assert_continues(config, tmp_path / "killed", result(tmp_path / "whole"), saved=6, ranks=2)


@pytest.mark.process
def test_ranks_and_accumulation_do_not_change_the_batches(config, tmp_path):
    """Without dropout, one device, two devices and accumulation differ by rounding only."""
    plain = ["model.head={type: linear, dropout: 0}", "train.max_steps=4"]
    whole = train(config, tmp_path / "whole", *plain)[0]
    parts = train(config, tmp_path / "parts", *plain, "train.micro_batch=2")[0]
    assert spawn(config, tmp_path / "ranks", *plain, ranks=2) == 0
    ranks, log = result(tmp_path / "ranks")
    assert {(record["devices"], record["machine"].split(",")[0]) for record in log if "loss" in record} == {(2, "CPU")}
    for other in (parts, ranks):
        for name in whole:
            torch.testing.assert_close(other[name], whole[name], rtol=1e-3, atol=2e-5)


SCORED_BUFFERS = """
import os, pathlib, sys
import i2v.train as program

evaluate = program.evaluate


def recorded(model, *rest):
    buffers = {name: buffer.tolist() for name, buffer in model.named_buffers()}
    pathlib.Path(sys.argv[0] + os.environ["RANK"]).write_text(repr(buffers))
    return evaluate(model, *rest)


program.evaluate = recorded
program.main()
"""


@pytest.mark.process
def test_every_rank_scores_with_the_same_batchnorm_statistics(config, tmp_path):
    """Each rank's batches differ, and so do the statistics it collects; what is scored and saved is rank 0's."""
    script = tmp_path / "scored.py"
    script.write_text(SCORED_BUFFERS)
    options = ["model.method=tada", "model.options={route_head_dim: 16, tubelet_stride: 1}", "train.no_decay=[1-d]"]
    assert forked(2, script, "--config", config, f"out={tmp_path}", "train.max_steps=2", *options).returncode == 0
    first, second = (Path(f"{script}{rank}").read_text() for rank in (0, 1))
    assert "running_mean" in first and first == second


def test_a_run_whose_checkpoint_holds_every_weight_continues_without_the_backbones_file(config, tmp_path):
    clip = tmp_path / "clip.safetensors"
    shutil.copy(load_config(config).model.weights, clip)
    whole = [
        "model.method=tada",
        "model.options={route_head_dim: 16, tubelet_stride: 1}",
        "train.no_decay=[1-d]",
        f"model.weights={clip}",
        "data.val=null",
    ]
    train(config, tmp_path / "run", *whole, "train.max_steps=1")
    clip.unlink()
    train(config, tmp_path / "run", *whole, "train.max_steps=2")
    assert saved_step(tmp_path / "run") == 2


def test_a_random_backbone_travels_with_the_checkpoint(config, tmp_path):
    from i2v.session import restore_model

    train(config, tmp_path, "model.weights=random", "train.max_steps=1", "data.val=null")
    first, second = (restore_model(*load_checkpoint(tmp_path / "last.safetensors")).eval() for _ in range(2))
    clips = torch.randn(1, 3, 4, 32, 32)
    assert torch.equal(first(clips), second(clips))
    train(config, tmp_path, "model.weights=random", "train.max_steps=2", "data.val=null")  # and is continued


@pytest.mark.parametrize("name", ["shuffle", "repeats", "balance", "epoch_clips", "window_shards"])
def test_options_of_the_order_are_not_options_of_clips(config, tmp_path, name):
    with pytest.raises(ValueError, match=f"clips.{name} says in which order videos come.*write data.order.{name}"):
        train(config, tmp_path, f"clips.{name}=2", "data.val=null")


def test_the_frozen_backbone_stays_as_it_was(config, tmp_path, monkeypatch):
    import i2v.trainee as program

    models = []
    build = program.build_model
    monkeypatch.setattr(program, "build_model", lambda *a: models.append(build(*a)[0]) or (models[0], "clip"))
    train(config, tmp_path, "train.max_steps=2")
    from i2v.weights import read_state_dict

    clip = read_state_dict(load_config(config).model.weights)
    for name, value in models[0].frozen_parameters().items():
        assert torch.equal(value, clip[name.removeprefix("backbone.")])


FAILING = """
import os, sys
import i2v.feed as feed
import i2v.train as program
from tests.test_train import failing_from
rank, position = sys.argv.pop(1), int(sys.argv.pop(1))
if os.environ["RANK"] == rank:
    feed.build_loader = failing_from(position)
program.main()
"""


def failing_from(position):
    """build_loader of a store that does not answer any more when the clip at this position of the stream is read."""

    class Failing(Reader):
        def read(self, at):
            if self.plan.split == "train" and at >= position:
                raise ShardError("the store does not answer.")
            return super().read(at)

    def build(*args, **kwargs):
        loader = build_loader(*args, **kwargs)
        loader._reader.__class__ = Failing
        return loader

    return build


@pytest.mark.process
def test_a_store_that_fails_on_one_of_two_ranks_stops_both_with_the_state_saved(config, tmp_path):
    """And the run continues as if nothing had happened, BatchNorm's statistics included."""
    options = [
        "model.method=tada",
        "model.options={route_head_dim: 16, tubelet_stride: 1}",
        "train.no_decay=[1-d]",
        "train.micro_batch=2",
        "data.val=null",
        "train.max_steps=3",
    ]
    script = tmp_path / "failing.py"
    script.write_text(FAILING)

    def run_two(out, failing=0, position=10**6):
        return forked(2, script, failing, position, "--config", config, f"out={tmp_path / out}", *options)

    assert run_two("whole").returncode == 0
    for failing in (0, 1):
        out = f"failed{failing}"
        failed = run_two(out, failing, 16)  # in the second pass of the second step: the graph works one batch ahead
        assert failed.returncode != 0 and "the store does not answer." in failed.stderr
        assert saved_step(tmp_path / out) == 1
        assert run_two(out).returncode == 0
        assert_same(result(tmp_path / out), result(tmp_path / "whole"))


@pytest.mark.process
@pytest.mark.parametrize("step, saved", [(0, 0), (8, 7), (11, 10)])  # the graph works one batch ahead
def test_data_that_fails_stops_the_run_with_its_state_saved(config, tmp_path, monkeypatch, step, saved):
    """In the step whose clips cannot be read, however many were read ahead by then. The run continues as if nothing was."""
    import i2v.feed as feed

    whole = train(config, tmp_path / "whole", "data.val=null")
    with monkeypatch.context() as patched, pytest.raises(ShardError, match="does not answer. The state of the run is saved"):
        patched.setattr(feed, "build_loader", failing_from(8 * step + 7))
        train(config, tmp_path / "failed", "data.val=null")
    assert_continues(config, tmp_path / "failed", whole, "data.val=null", saved=saved)


@pytest.mark.process
def test_a_validation_that_fails_is_made_up_for(config, shapes, tmp_path, monkeypatch):
    """Also the last one, after which the run would be done."""
    whole = train(config, tmp_path / "whole", "train.max_steps=3")
    original = ShardSet.read

    def failing(self, clip_id, frames):
        if self.root.name == "vp9-val" and clip_id > 3:
            raise ShardError("the store does not answer.")
        return original(self, clip_id, frames)

    with monkeypatch.context() as patched, pytest.raises(ShardError, match="The state of the run is saved"):
        patched.setattr(ShardSet, "read", failing)
        train(config, tmp_path / "failed", "train.max_steps=3")
    assert_continues(config, tmp_path / "failed", whole, "train.max_steps=3", saved=3)
    assert (tmp_path / "failed" / "best.safetensors").exists()


def test_a_mixture_of_data_sets_trains_and_continues(config, shapes, tmp_path):
    mixed = f"data.train=[{{path: {shapes}/vp9, weight: 1}}, {{path: {shapes}/mjpeg, weight: 3}}]"
    order = "data.order={shuffle: window, window_shards: 2, balance: 1.0, repeats: 2, epoch_clips: 24}"
    whole = train(config, tmp_path / "whole", mixed, order, "data.val=null", "train.max_steps=4")
    train(config, tmp_path / "stopped", mixed, order, "data.val=null", "train.max_steps=2")
    assert_continues(config, tmp_path / "stopped", whole, mixed, order, "data.val=null", "train.max_steps=4", saved=2)
    with pytest.raises(ValueError, match="other videos, weights or shares"):
        train(config, tmp_path / "stopped", mixed.replace("weight: 3", "weight: 4"), order, "data.val=null")
    with pytest.raises(ValueError, match="data.order.seed is unknown"):
        train(config, tmp_path / "other", "data.order={seed: 3}", "data.val=null")
    with pytest.raises(ValueError, match="other videos, weights or shares in data.train"):
        train(config, tmp_path / "stopped", f"data.train={shapes}/vp9-val", order, "data.val=null")


def test_weights_of_videos_may_move_and_not_change(config, tmp_path):
    options = ["data.val=null", "train.log_every=1", "train.max_steps=2"]
    np.save(tmp_path / "here.npy", np.arange(1.0, 25.0))
    np.save(tmp_path / "other.npy", np.arange(2.0, 26.0))
    whole = train(config, tmp_path / "whole", f"data.sample_weights={tmp_path}/here.npy", *options)
    train(config, tmp_path / "run", f"data.sample_weights={tmp_path}/here.npy", *options, "train.max_steps=1")
    for changed in (f"data.sample_weights={tmp_path}/other.npy", "data.sample_weights=null"):
        with pytest.raises(ValueError, match="other videos, weights or shares"):
            train(config, tmp_path / "run", changed, *options)
    (tmp_path / "here.npy").rename(tmp_path / "there.npy")
    assert_continues(config, tmp_path / "run", whole, f"data.sample_weights={tmp_path}/there.npy", *options, saved=1)


@pytest.mark.parametrize(
    "change, text",
    [
        ("train.lr=1e-3", "belongs to a run with train.lr = 0.003"),
        ("model.options.adapter_width=8", "belongs to a run with model.options.adapter_width = 16"),
        ("clips.stride=3", "belongs to a run with clips.stride = 16"),
    ],
)
def test_a_run_is_not_continued_with_another_experiment(config, tmp_path, change, text):
    train(config, tmp_path, "train.max_steps=1", "data.val=null")
    with pytest.raises(ValueError, match=text):
        train(config, tmp_path, "data.val=null", change)


def edit_meta(path, change):
    """Change what a checkpoint says, as it stands in the file."""
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["i2v"])
    change(meta)
    save_file(load_file(path), path, {"i2v": json.dumps(meta)})


@pytest.mark.parametrize(
    "section, key, default, other",
    [
        ("train", "label_smoothing", 0.0, 0.1),
        ("train", "betas", [0.9, 0.999], [0.9, 0.99]),
        ("data", "order", {}, {"repeats": 2}),
        ("clips", "stride", 16, 8),
        ("clips", "area", [0.08, 1.0], [0.5, 1.0]),
        ("clips", "antialias", True, False),
        ("options", "kernel_size", [3, 1, 1], [1, 1, 1]),
        ("head", "init_std", 0.02, 0.1),
    ],
)
def test_a_run_from_before_a_key_existed_is_continued_at_its_default(config, tmp_path, section, key, default, other):
    """And refused at any other value, by name."""
    train(config, tmp_path, "train.max_steps=1", "data.val=null")

    def forget(meta):
        for part in (meta, meta["config"], meta["config"]["model"], meta["model"]):
            part.get(section, {}).pop(key, None)
        if section == "options":
            meta["model"].pop(key, None)

    edit_meta(tmp_path / "last.safetensors", forget)
    name = {"options": "model.options", "head": "model.head"}.get(section, section) + f".{key}"
    with pytest.raises(ValueError, match=f"belongs to a run with {name}.* = .*, this one has"):
        train(config, tmp_path, "train.max_steps=2", "data.val=null", f"{name}={other}")
    train(config, tmp_path, "train.max_steps=2", "data.val=null", f"{name}={default}")
    assert saved_step(tmp_path) == 2


def test_a_checkpoint_that_says_less_is_read_and_continued(config, uninterrupted, tmp_path):
    """No version, nothing about the stream of videos, sections of its configuration missing: it has their defaults."""
    train(config, tmp_path, "train.max_steps=3", "train.eval_every=100")

    def forget(meta):
        assert meta.pop("version") == 1 and meta.pop("stream") and meta.pop("clips") is not None and meta.pop("stored")
        del meta["config"]["data"]["cache"], meta["config"]["train"]["mixup"]

    edit_meta(tmp_path / "last.safetensors", forget)
    meta = load_checkpoint(tmp_path / "last.safetensors")[1]
    assert meta.stream is None and meta.clips == {} and meta.stored["codec"] == "vp9"
    assert meta.config["data"]["cache"] is None and meta.config["train"]["mixup"] == 0
    weights, _ = train(config, tmp_path)
    assert all(torch.equal(weights[name], uninterrupted[0][name]) for name in weights)


def test_the_best_is_chosen_among_figures_of_the_same_videos(config, shapes, tmp_path, capfd):
    """Whatever came out on others, with which data.val was continued, is no figure to compare with."""
    train(config, tmp_path, "train.max_steps=6")
    edit_meta(tmp_path / "last.safetensors", lambda meta: meta["progress"].update(best=2.0))
    begun = load_checkpoint(tmp_path / "best.safetensors")[1]
    moved = shutil.copytree(shapes / "vp9-val", tmp_path / "moved")
    train(config, tmp_path, "train.max_steps=9", f"data.val={moved}")
    assert load_checkpoint(tmp_path / "best.safetensors")[1].scores == begun.scores
    assert "chosen anew" not in capfd.readouterr().err
    train(config, tmp_path, f"data.val={shapes / 'vp9'}")
    assert load_checkpoint(tmp_path / "best.safetensors")[1].scores["expected"] == 24
    assert "best.safetensors is chosen anew" in capfd.readouterr().err


def test_a_checkpoint_of_a_newer_version_is_refused(config, tmp_path):
    train(config, tmp_path, "train.max_steps=1", "data.val=null")
    edit_meta(tmp_path / "last.safetensors", lambda meta: meta.update(version=99))
    with pytest.raises(ValueError, match="of version 99, this program reads up to 1: install a newer i2v"):
        load_checkpoint(tmp_path / "last.safetensors")


def test_another_batch_size_is_said(config, tmp_path, capfd):
    train(config, tmp_path, "train.max_steps=1", "data.val=null")
    assert "WARNING: the steps before" not in capfd.readouterr().err
    train(config, tmp_path, "train.max_steps=2", "data.val=null", "train.batch_size=4")
    assert "WARNING: the steps before were of 8 clips: with train.batch_size 4" in capfd.readouterr().err


def test_a_run_is_not_continued_on_other_backbone_weights(config, tmp_path):
    train(config, tmp_path, "train.max_steps=1", "data.val=null")
    torch.manual_seed(1)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other backbone weights"):
        train(config, tmp_path, "data.val=null", f"model.weights={tmp_path}/other.safetensors")


def test_other_class_names_in_validation_are_refused(config, shapes, tmp_path):
    manifest = json.loads((shapes / "vp9-val" / "manifest.json").read_text())
    for path in (shapes / "vp9-val").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "manifest.json").unlink()
    del manifest["crc32"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"classes": manifest["classes"][::-1]}))
    with pytest.raises(ValueError, match=r"same class names in the same order: shard_tools/relabel\.py") as refused:
        train(config, tmp_path / "out", f"data.val={tmp_path}")
    *_, command = re.search(r"relabel\.py (.*) copies", str(refused.value))[1].partition(" ")
    assert command == f"--out NEW --classes {shapes}/vp9/manifest.json"
    assert relabel([str(tmp_path), *command.replace("NEW", str(tmp_path / "new")).split()]) == 0  # nothing is encoded again
    train(config, tmp_path / "out", f"data.val={tmp_path / 'new'}", "train.max_steps=1")


@pytest.mark.process
@pytest.mark.parametrize("what", ["weight", "optimizer", "buffer"])
@pytest.mark.parametrize("due", ["log_every", "save_every", "eval_every", "stop"])
def test_a_state_that_is_not_finite_is_never_saved(config, tmp_path, monkeypatch, what, due):
    """Whatever comes first: the log, a save, an evaluation, a signal. The checkpoints of step 2 stay as they were.

    (A loss or gradient that is not finite never comes as far: tests/test_finite.py.)
    """
    import i2v.trainee as program

    method = ["model.method=tada", "model.options={route_head_dim: 16, tubelet_stride: 1}", "train.no_decay=[1-d]"]
    options = [*method, "train.log_every=100", "train.save_every=100", "train.eval_every=100"]
    if due == "eval_every":  # an evaluation begins with a save, too
        options[-1] = "train.eval_every=1.0"
    elif due != "stop":
        options += [f"train.{due}=3"]
    train(config, tmp_path, *options, "train.max_steps=2")
    before = {name: (tmp_path / name).read_bytes() for name in ("last.safetensors", "best.safetensors")}
    models, build, make = [], program.build_model, program.build_optimizer
    monkeypatch.setattr(program, "build_model", lambda *a: models.append(build(*a)) or models[-1])
    steps = iter(range(3, 100))

    def spoil(optimizer, *_):
        if next(steps) == 3:
            (model, _), parameter = models[0], optimizer.param_groups[0]["params"][0]
            running_mean = next(b for name, b in model.named_buffers() if name.endswith("running_mean"))
            place = {"weight": parameter.data, "optimizer": optimizer.state[parameter]["exp_avg_sq"], "buffer": running_mean}
            place[what].view(-1)[0] = float("inf")
            if due == "stop":
                os.kill(os.getpid(), signal.SIGTERM)

    def spoilt_optimizer(*args):
        optimizer = make(*args)
        optimizer.register_step_post_hook(spoil)
        return optimizer

    monkeypatch.setattr(program, "build_optimizer", spoilt_optimizer)
    with pytest.raises(FloatingPointError, match="kept as it was after step 2, but continued .* start again in another folder"):
        train(config, tmp_path, *options)
    assert before == {name: (tmp_path / name).read_bytes() for name in before}
    assert all(math.isfinite(record.get("loss", 0)) for record in result(tmp_path)[1])


@pytest.mark.process
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_that_another_run_writes_to_is_refused(config, tmp_path, ranks):
    with only_writer(tmp_path):
        before = sorted(tmp_path.iterdir())
        done = spawn_process(config, tmp_path, ranks=ranks)
        assert done.returncode != 0 and f"{tmp_path} is in use by another run (process {os.getpid()} on" in done.stderr
        assert sorted(tmp_path.iterdir()) == before
        if ranks == 1:
            assert "Traceback" not in done.stderr


def test_what_a_killed_writer_left_is_removed(config, tmp_path):
    for name in (".last.safetensors.node7-12ab.tmp", ".tmpXyZ123"):
        (tmp_path / name).touch()
    train(config, tmp_path, "train.max_steps=1", "data.val=null")
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


@pytest.mark.process
@pytest.mark.parametrize("first", [True, False])
def test_a_disk_that_is_full_is_one_sentence_and_costs_nothing(config, tmp_path, monkeypatch, first):
    import i2v.checkpoint as checkpoint

    if not first:
        train(config, tmp_path, "train.max_steps=2", "data.val=null")
        before = (tmp_path / "last.safetensors").read_bytes()
    save = checkpoint.save_checkpoint

    def save_on_a_full_disk(*args):
        _, hard = limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            save(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(checkpoint, "save_checkpoint", save_on_a_full_disk)
    remedy = "there is none yet" if first else "last.safetensors is still the one from before"
    with pytest.raises(
        OSError, match=rf"last.safetensors cannot be written \(File too large.*\): free some space .*; {remedy}"
    ):
        train(config, tmp_path, "data.val=null")
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]
    assert first or (tmp_path / "last.safetensors").read_bytes() == before


def test_checkpoints_have_the_mode_of_other_files(config, tmp_path):
    before = os.umask(0o027)
    try:
        train(config, tmp_path, "train.max_steps=1", "data.val=null")
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("last.safetensors", "config.yaml", "log.jsonl")} == {0o640}


def test_the_remedy_for_divergence_works(config, tmp_path):
    """What is written down after a divergence is finite, from before the bad steps, and what the sentence says can be done."""
    options = ["train.warmup_epochs=0", "train.log_every=20", "data.val=null", "train.max_steps=4"]
    with pytest.raises(FloatingPointError, match="up to step 4 had .* not finite.* kept as it was after step 1, but") as raised:
        train(config, tmp_path / "a", "train.lr=1e30", "train.save_every=2", *options)
    assert not not_finite(result(tmp_path / "a")[0])
    remedy = re.search(r"\((out=\S+) (train.lr=\S+)\)", str(raised.value)).groups()
    assert load_config(config, ["train.lr=3e-3", *remedy]).train.lr == pytest.approx(1e30 / 3, rel=0.2)
    run(load_config(config, [*options, remedy[0], "train.lr=1e-3"]), CPU)
    assert saved_step(tmp_path / "a-2") == 4


@pytest.mark.parametrize(
    "batch, micro, devices, expected",
    [(256, None, 8, (32, 1)), (256, 64, 1, (64, 4)), (192, 50, 1, (48, 4)), (6, 4, 1, (3, 2)), (7, 2, 1, (1, 7))],
)
def test_the_batch_is_shared_exactly(batch, micro, devices, expected):
    assert split_batch(batch, micro, devices) == expected


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="cannot be shared by 3 devices: choose a multiple of 3"):
        split_batch(256, None, 3)


@pytest.mark.process
def test_errors_of_the_command_are_one_sentence(config):
    command = [sys.executable, "-m", "i2v.train", "--config", str(config), "train.learning_rate=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "unknown key train.learning_rate" in done.stderr and "Traceback" not in done.stderr


def test_a_run_without_a_compiler_says_so_and_goes_on(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "none-here")
    train(config, tmp_path, "train.max_steps=1", "data.val=null", "train.compile=true")
    assert "note: there is no none-here here, so blocks are not compiled" in capsys.readouterr().err


def test_clips_in_quarantine_are_told_at_the_end(config, shapes, tmp_path, capsys):
    """Of a continuation that meets none of them, too."""
    shutil.copytree(shapes / "vp9", tmp_path / "shards")
    for clip in (0, 5):
        damage(tmp_path / "shards", clip)
    options = ["data.val=null", f"data.train={tmp_path}/shards"]
    train(config, tmp_path / "run", *options, "train.max_steps=3")
    said = f"WARNING: 2 of 24 clips of {tmp_path}/shards could not be used and counted for nothing: they are listed"
    assert f"{said} with reasons in {tmp_path}/run/quarantine-train.csv\ndone: " in capsys.readouterr().err
    train(config, tmp_path / "run", *options, "train.max_steps=4")
    assert said in capsys.readouterr().err
    train(config, tmp_path / "fine", "data.val=null", "train.max_steps=1")
    assert "could not be used" not in capsys.readouterr().err


def test_plain_lines_have_the_total_and_the_time_that_is_left(config, tmp_path, capsys):
    train(config, tmp_path, "train.max_steps=4", "data.val=null")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [re.match(r"step (\d)/4, (\d+:\d\d:\d\d) left  epoch", line)[1] for line in lines] == ["2", "4"]
    assert lines[-1].startswith("step 4/4, 0:00:00 left")


def test_the_picture_of_a_log_has_the_validations_loss_and_all_of_its_accuracies(config, tmp_path):
    train(config, tmp_path, "train.eval_every=1", "train.max_steps=6")
    records = read_log(tmp_path / "log.jsonl")
    loss, _, accuracy, _ = figure_of(records, "").axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in loss.lines}
    assert drawn["validation"] == [r["cross_entropy"] for r in records if "top1" in r] and len(drawn["validation"]) == 2
    assert drawn["training"] == [r["loss"] for r in records if "loss" in r]
    assert accuracy.get_ylim()[1] > 100  # a curve at 100 % is not the frame
    older = [{name: value for name, value in r.items() if name != "cross_entropy"} for r in records]
    assert [line.get_label() for line in figure_of(older, "").axes[0].lines] == ["training"]
