"""From folders of features and a list of segments to detections: it learns, it goes on exactly, it says what is wrong."""

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from i2v import features, localise
from i2v.bmn import BMN, MASK
from i2v.checkpoint import Backbone, Meta, read_tensors, save_checkpoint
from i2v.config import ConfigError, load_config, read_config
from i2v.distributed import World
from i2v.feature_folder import FeatureFolder
from i2v.finder import Finder
from i2v.localise import run, score_checkpoint
from i2v.localise_config import LocaliseConfig
from i2v.long_videos import long_video, open_video, timing
from i2v.model import create_model
from i2v.optim import learning_rate, parameter_groups
from i2v.predictor import predict
from i2v.segments import Annotated, read_segments
from i2v.session import open_session, own_tensors
from i2v.stop import StopSignal
from i2v.windows import Cut
from tests.processes import ENVIRONMENT, LIMIT, ROOT, call
from tests.references import figures

CHANNELS, CLASSES, HOP = 8, ("jump", "run", "sit"), 0.5
WORLD = World(0, 1, torch.device("cpu"))


def planted(folder, names, seed):
    """Features of made-up videos, in the form of i2v.features, and what happens in them: rows of an action have the pattern
    of its class, and another at its edges."""
    draw, rows = np.random.default_rng(seed), []
    folder.mkdir(exist_ok=True)
    patterns = np.random.default_rng(7).normal(size=(len(CLASSES) + 2, CHANNELS)) * 2
    for name in names:
        count = int(draw.integers(50, 70))
        features, scores = draw.normal(size=(count, CHANNELS)) * 0.3, np.zeros((count, len(CLASSES)))
        at = int(draw.integers(1, 4))
        while at + 8 < count:
            length, kind = int(draw.integers(4, 9)), int(draw.integers(len(CLASSES)))
            features[at : at + length] += patterns[kind]
            features[at] += patterns[-1]
            features[at + length - 1] += patterns[-2]
            scores[at : at + length, kind] = 2
            rows.append((name, at * HOP, (at + length) * HOP, CLASSES[kind]))
            at += length + int(draw.integers(2, 6))
        begin = HOP * np.arange(count)
        np.save(folder / f"{name}.npy", features.astype(np.float32))
        np.save(folder / f"{name}.times.npy", np.stack([begin, begin + HOP], 1))
        np.save(folder / f"{name}.scores.class.npy", scores.astype(np.float32))
    (folder / "features.json").write_text(json.dumps({"scores": {"classes": {"class": list(CLASSES)}, "views": 1}}))
    return rows


def write_list(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("video", "start", "end", "label"), *rows])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted")
    write_list(root / "train.csv", planted(root / "features", [f"train{i}" for i in range(12)], 1))
    write_list(root / "val.csv", planted(root / "features", [f"val{i}" for i in range(4)], 2))
    values = {
        "model": {"steps": 24, "durations": 10, "width_1d": 16, "width_2d": 16, "width_3d": 16, "samples": 6},
        "data": {"features": str(root / "features"), "train": str(root / "train.csv"), "val": str(root / "val.csv")},
        "train": {"epochs": 8, "batch_size": 6, "lr": 5e-3, "warmup_epochs": 0.5, "eval_every": 100, "log_every": 5},
    }
    values["detect"] = {"thresholds": [0.7, 0.9]}
    values["data"] |= {"rows_per_step": 1, "device": "cpu"}
    (root / "small.yaml").write_text(yaml.safe_dump(values))
    return root


def configured(data, *overrides, config="small.yaml"):
    return read_config(LocaliseConfig, data / config, list(overrides))


def trained(data, out, *overrides, **given):
    assert run(configured(data, f"out={out}", *overrides, **given), WORLD, StopSignal())
    return out


def records(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_training_raises_the_mean_average_precision(data, tmp_path):
    before = trained(data, tmp_path / "before", "train.max_steps=1")
    after = trained(data, tmp_path / "after")
    first, last = (records(out)[-1]["map"] for out in (before, after))
    assert first < 0.2 and last > 0.5
    losses = [record["loss"] for record in records(after) if "loss" in record]
    assert losses[-1] < 0.5 * losses[0]
    with open(after / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["labels"] == "class" and float(row["mean"]) == pytest.approx(100 * last, abs=1e-3)
    found = json.loads((after / "detections.json").read_text())
    assert found["challenge"] == "action_detection" and found["results"].keys() == {f"val{i}" for i in range(4)}
    best = max(found["results"]["val0"], key=lambda its: its["score"])
    assert best.keys() == {"score", "label", "segment"} and best["label"] in CLASSES
    assert {"best.safetensors", "last.safetensors", "config.yaml", "curves.png"} <= {path.name for path in after.iterdir()}
    assert MASK not in read_tensors(after / "best.safetensors")[0]

    # What was trained finds the same segments alone, and needs no list of times to do so
    precision = score_checkpoint(str(after / "best.safetensors"), [f"out={tmp_path / 'again'}"])
    assert precision["class"].mean.mean() == pytest.approx(last)
    (tmp_path / "videos.csv").write_text("video\nval0\n")
    overrides = [f"out={tmp_path / 'unlabelled'}", f"data.val={tmp_path / 'videos.csv'}"]
    assert score_checkpoint(str(after), overrides) is None
    with pytest.raises(ValueError, match="after has what the run found in .*val.csv: say with out=... where to write what is"):
        score_checkpoint(str(after), overrides[1:])
    assert json.loads((after / "detections.json").read_text()) == found
    alone = json.loads((tmp_path / "unlabelled" / "detections.json").read_text())["results"]
    assert [its["action"] for its in alone["val0"]] == [its["label"] for its in found["results"]["val0"]]


def test_the_table_and_the_detections_of_a_run_are_those_of_its_best_weights(data, tmp_path, monkeypatch):
    original, worse = localise.mean_average_precision, count(1)

    def falling(*args):
        shown = original(*args)
        share = 1 / next(worse)
        scaled = {kind: {name: share * ap for name, ap in its.classes.items()} for kind, its in shown.items()}
        return {kind: dataclasses.replace(its, classes=scaled[kind]) for kind, its in shown.items()}

    monkeypatch.setattr(localise, "mean_average_precision", falling)
    out = trained(data, tmp_path / "run", "train.epochs=4", "train.eval_every=1", "train.lr=1e-4")
    maps = [record["map"] for record in records(out) if "map" in record]
    assert len(maps) == 4 and maps[0] == max(maps) > 0
    monkeypatch.undo()
    score_checkpoint(str(out / "best.safetensors"), [f"out={tmp_path / 'again'}"])
    for name in ("results.csv", "detections.json"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_stopped_and_continued_is_as_uninterrupted(data, tmp_path, monkeypatch):
    options = ("train.max_steps=12", "train.eval_every=1", "train.log_every=1", "train.save_every=4")
    whole = trained(data, tmp_path / "whole", *options)
    config, steps, original = configured(data, f"out={tmp_path / 'parts'}", *options), count(1), localise.take_step
    finished = False
    while not finished:
        stop = StopSignal()

        def one_more(*args):
            stop.wanted = next(steps) % 5 == 0
            return original(*args)

        monkeypatch.setattr(localise, "take_step", one_more)
        finished = run(config, WORLD, stop)
    assert next(steps) == 13
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = (read_tensors(out / name)[0] for out in (whole, tmp_path / "parts"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (whole / "detections.json").read_bytes() == (tmp_path / "parts" / "detections.json").read_bytes()
    figures = [
        [{k: r[k] for k in r.keys() & {"step", "loss", "map"}} for r in records(out)] for out in (whole, tmp_path / "parts")
    ]
    assert figures[0] == figures[1]


KILLED = """
import itertools, os, signal, sys, torch
torch.set_num_threads(1)
import i2v.localise as program
original, steps = program.take_step, itertools.count()
def take_step(*args):
    if next(steps) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
program.take_step = take_step
program.main()
"""


@pytest.mark.process
def test_killed_and_started_again_comes_to_the_same_bits(data, tmp_path):
    options = ("train.max_steps=10", "train.save_every=3", "data.val=null")
    whole = trained(data, tmp_path / "whole", *options)
    given = ["--config", str(data / "small.yaml"), f"out={tmp_path / 'killed'}", *options]
    program = {"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": LIMIT}
    assert subprocess.run([sys.executable, "-c", KILLED, *given], **program).returncode == -signal.SIGKILL
    assert read_tensors(tmp_path / "killed" / "last.safetensors")[1]["progress"]["step"] == 6
    done = subprocess.run([sys.executable, "-m", "i2v", "localise", *given], **program)
    assert done.returncode == 0 and "continuing after step 6" in done.stderr, done.stderr
    ours, theirs = (read_tensors(out / "last.safetensors")[0] for out in (whole, tmp_path / "killed"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


class NobodyWaits(TorchDispatchMode):
    """Refuses what makes the host wait for a device: its numbers, and shapes that depend on them."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        chosen = args[1] if function.overloadpacket is torch.ops.aten.index else ()
        assert not any(where is not None and where.dtype == torch.bool for where in chosen), "a mask as an index"
        assert function.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero), function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("class_maps", ["false", "true"])
def test_no_step_waits_for_the_device(data, tmp_path, monkeypatch, class_maps):
    original = localise.take_step

    def watched(*args):
        with NobodyWaits():
            return original(*args)

    monkeypatch.setattr(localise, "take_step", watched)
    trained(data, tmp_path / "out", "train.max_steps=2", "data.val=null", f"model.class_maps={class_maps}")


@pytest.mark.parametrize("what, said", [("loss", "loss"), ("weight", "head.x_1d_p.0.bias"), ("state", "exp_avg_sq")])
@pytest.mark.parametrize("due", ["log_every", "save_every", "eval_every", "stop"])
def test_a_step_that_is_not_finite_ends_the_run_and_is_not_saved(data, tmp_path, monkeypatch, what, said, due):
    """Whatever comes first: the log, a save, a validation, a signal. And what the sentence says can be done, can be."""
    options = ["train.log_every=100", "train.save_every=100", "train.eval_every=100", f"out={tmp_path / 'out'}"]
    if due == "eval_every":
        options[2] = "train.eval_every=0.25"  # of 63 windows, in steps of 6: after the third
    elif due != "stop":
        options.append(f"train.{due}=3")
    trained(data, tmp_path / "out", *options, "train.max_steps=2")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in ("last.safetensors", "best.safetensors")}
    original, steps, stop = localise.take_step, count(3), StopSignal()

    def spoilt(localiser, optimizer, batch):
        loss, norm = original(localiser, optimizer, batch)
        if next(steps) == 3:
            parameter = localiser.model.head["x_1d_p"][0].bias
            place = {"loss": loss, "weight": parameter.data, "state": optimizer.state[parameter]["exp_avg_sq"]}[what]
            place.view(-1)[0] = float("inf")
            stop.wanted = due == "stop"
        return loss, norm

    with monkeypatch.context() as patched, pytest.raises(FloatingPointError) as raised:
        patched.setattr(localise, "take_step", spoilt)
        run(configured(data, *options, "train.max_steps=9"), WORLD, stop)
    sentence = str(raised.value)
    last = tmp_path / "out" / "last.safetensors"
    assert said in sentence or (what, due) == ("weight", "log_every")  # of which the next loss tells
    assert "\n" not in sentence and f"{last} is kept as it was after step 2, but continued it would" in sentence
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in before}
    assert all(np.isfinite(record.get("loss", 0)) for record in records(tmp_path / "out"))
    remedy = re.search(r"\((out=\S+) (train.lr=\S+)\)", sentence).groups()
    assert run(configured(data, *options, *remedy, "train.max_steps=1"), WORLD, StopSignal())


def test_a_finished_run_has_nothing_to_do_and_another_one_is_refused(data, tmp_path):
    options = ("train.max_steps=2", "data.val=null")
    out = trained(data, tmp_path / "out", *options)
    before = (out / "last.safetensors").read_bytes()
    trained(data, tmp_path / "out", *options)
    assert (out / "last.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="train.lr = 0.005, this one has 0.1"):
        trained(data, tmp_path / "out", *options, "train.lr=0.1")
    (tmp_path / "fewer.csv").write_text("".join((data / "train.csv").read_text().splitlines(keepends=True)[:-9]))
    with pytest.raises(ValueError, match="belongs to a run with other segments"):
        trained(data, tmp_path / "out", *options, f"data.train={tmp_path / 'fewer.csv'}")


def test_class_maps_of_the_network_stand_in_for_scores(data, tmp_path):
    for path in (data / "features").iterdir():
        if ".scores." not in path.name and path.name != "features.json":
            os.makedirs(tmp_path / "features", exist_ok=True)
            os.symlink(path, tmp_path / "features" / path.name)
    given = (f"data.features={tmp_path / 'features'}",)
    with pytest.raises(ValueError, match="no class scores of class for val0"):
        trained(data, tmp_path / "no", *given)
    out = trained(data, tmp_path / "maps", *given, "model.class_maps=true", "train.epochs=12")
    assert records(out)[-1]["map"] > 0.3


def test_weights_of_the_authors_start_a_run(data, tmp_path):
    out = trained(data, tmp_path / "first", "train.max_steps=2", "data.val=null")
    state = {
        name: value for name, value in read_tensors(out / "last.safetensors")[0].items() if not name.startswith("optimizer/")
    }
    torch.save({"model_state": state | {f"{MASK}": torch.zeros(3, 3)}}, tmp_path / "theirs.pyth")
    init = (f"train.init={tmp_path / 'theirs.pyth'}", "train.max_steps=1", "train.lr=1e-30", "data.val=null")
    made = read_tensors(trained(data, tmp_path / "second", *init) / "last.safetensors")[0]
    assert all(torch.allclose(made[name], value, atol=1e-6) for name, value in state.items())
    with pytest.raises(ValueError, match="does not fit this network"):
        trained(data, tmp_path / "third", *init, "model.width_3d=24")


CONFIGS = sorted((ROOT / "configs" / "bmn").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipe_is_the_authors(path):
    config, wanted = read_config(LocaliseConfig, path), figures("recipe_bmn")
    assert config.out == f"runs/bmn/{path.stem}" and config == read_config(LocaliseConfig, f"bmn/{path.stem}")
    for epoch, lr in wanted["lr"]["points"]:
        assert learning_rate(epoch, config.train) == pytest.approx(lr, rel=1e-9, abs=1e-12)
    assert (config.train.epochs, config.train.batch_size, config.train.betas) == (10, 16, [0.9, 0.999])
    model = BMN(16, **dataclasses.asdict(config.model))
    groups = parameter_groups(dict(model.named_parameters()), config.train)
    found = {name: [group["weight_decay"], group["lr_scale"]] for group in groups for name in group["names"]}
    assert found == wanted["groups"]


def test_a_recipe_of_another_program_is_refused():
    with pytest.raises(ConfigError, match="unknown key detect"):
        load_config(CONFIGS[0])


def test_several_kinds_of_labels_and_several_folders(data, tmp_path):
    """Verbs and nouns, as numbers; views side by side; features joined channel by channel; no features.json."""
    (tmp_path / "scores").mkdir()
    for name in [f"train{i}" for i in range(3)] + ["val0"]:
        one = np.load(data / "features" / f"{name}.scores.class.npy")
        np.save(tmp_path / "scores" / f"{name}.npy", np.ones((len(one), 4), np.float32))
        np.save(tmp_path / "scores" / f"{name}.scores.verb.npy", np.concatenate([one, one], 1))
        np.save(tmp_path / "scores" / f"{name}.scores.noun.npy", np.tile(np.array([0, 9, 0, 0], np.float32), (len(one), 2)))
    for split, names in (("train", ["train0", "train1", "train2"]), ("val", ["val0"])):
        with open(data / f"{split}.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["video"] in names]
        lines = [(row["video"], row["start"], row["end"], CLASSES.index(row["label"]), 1) for row in rows]
        with open(tmp_path / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class"), *lines])
    given = [f"data.features=[{data / 'features'}, {tmp_path / 'scores'}]", f"data.scores={tmp_path / 'scores'}"]
    given += [f"data.{split}={tmp_path / split}.csv" for split in ("train", "val")] + ["data.score_views=2"]
    out = trained(data, tmp_path / "out", *given, "train.max_steps=3", "detect.thresholds=[0.1]")
    header = read_tensors(out / "last.safetensors")[1]
    assert header["channels"] == CHANNELS + 4 and header["classes"] == {"verb": list("012"), "noun": list("0123")}
    with open(out / "results.csv", newline="") as file:
        rows = {row["labels"]: float(row["mean"]) for row in csv.DictReader(file)}
    assert rows.keys() == {"action", "verb", "noun"} and rows["noun"] > 0
    logged = {name: value for name, value in records(out)[-1].items() if name.startswith("map")}
    assert (
        logged.keys() == {"map", "map_verb", "map_noun", "map@0.1"}
        and logged == read_tensors(out / "best.safetensors")[1]["scores"]
    )
    assert [100 * logged[name] for name in ("map", "map_noun")] == pytest.approx([rows["action"], rows["noun"]], abs=1e-4)
    best = max(json.loads((out / "detections.json").read_text())["results"]["val0"], key=lambda its: its["score"])
    assert best["label"] == f"{best['verb']},{best['noun']}" and best["noun"] == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 25])
def test_videos_of_any_length(data, tmp_path, rows):
    (tmp_path / "features").mkdir()
    for name, array in (("short", np.ones((rows, CHANNELS))), ("short.scores.class", np.ones((rows, 3)))):
        np.save(tmp_path / "features" / f"{name}.npy", array.astype(np.float32))
    (tmp_path / "list.csv").write_text("video,start,end,label\nshort,0,0.5,run\n")
    out = trained(data, tmp_path / "out", "train.max_steps=1", "data.val=null")
    given = [f"data.features={tmp_path / 'features'}", f"data.val={tmp_path / 'list.csv'}", f"data.row_seconds={HOP}"]
    precision = score_checkpoint(str(out), [f"out={tmp_path / 'found'}", *given])
    assert 0 <= precision["class"].mean.mean() <= 1
    found = json.loads((tmp_path / "found" / "detections.json").read_text())["results"]["short"]
    assert all(0 <= its["segment"][0] < its["segment"][1] <= rows * HOP for its in found)
    assert bool(found) == (rows > 1)  # a row has no segment in it


@pytest.mark.parametrize("several", [False, True])
def test_from_our_own_features_to_a_table(shapes, tmp_path, monkeypatch, several):
    """A model's features and class scores, as members of tars; the list names videos by their files. several: classes a video:
    then each is as likely as the model says of it alone, which here is hardly."""
    geometry = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "heads": 2, "embed_dim": 16}
    model, classes = create_model("clip", geometry, 2, 2), ["left", "right"]
    backbone = Backbone(geometry, "included", None)
    stored = {"codec": "vp9", "gop": 8, "short_side": 48}  # as the shards are
    meta = Meta(model.config, backbone, classes, stored=stored, several=several)
    torch.nn.init.constant_(model.head.fc.bias, -7.0)
    save_checkpoint(tmp_path / "best.safetensors", own_tensors(model, backbone), meta)
    made_of = ("--checkpoint", tmp_path / "best.safetensors", "--data", shapes / "vp9-val", "--out", tmp_path / "features")
    call(monkeypatch, features, *made_of, "--window", "4f", "--hop", "1f", "--scores", "--format", "shards", "--device", "cpu")
    with open(tmp_path / "features" / "features.csv", newline="") as file:
        sources = [row["source"] for row in csv.DictReader(file)]
    seconds = 1 / FeatureFolder(tmp_path / "features").times(sources[0])[0, 1] * 4  # frames per second
    lines = [(source, 5 / seconds, 15 / seconds, classes[i % 2]) for i, source in enumerate(sources)]
    write_list(tmp_path / "list.csv", lines)
    values = {
        "model": {"steps": 12, "durations": 12, "width_1d": 8, "width_2d": 8, "width_3d": 8, "samples": 4},
        "data": {
            "features": str(tmp_path / "features"),
            "train": str(tmp_path / "list.csv"),
            "val": str(tmp_path / "list.csv"),
        },
        "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3},
        "detect": {"seconds_per_proposal": 0.01},
    }
    values["data"] |= {"device": "cpu"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    out = trained(tmp_path, tmp_path / "out", config="run.yaml")
    with open(out / "results.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["labels"] == "class" and float(row["map@0.1"]) > 0
    found = json.loads((out / "detections.json").read_text())["results"]
    assert found.keys() == set(sources) and {its["label"] for its in found[sources[0]]} == set(classes)

    assert (max(its["score"] for its in found[sources[0]]) < 2e-3) is several

    # The same segments without files between, from the video itself
    session = open_session(SimpleNamespace(checkpoint=tmp_path / "best.safetensors", weights=None))
    finder = Finder(out, session)
    finder.place(session.device)
    source = shapes / "val" / sources[0]
    ((_, named),) = predict(session, [source], finder=finder)
    ours = {(round(its["start"], 4), round(its["end"], 4), its["class"]): its["score"] for its in named}
    theirs = {(*(round(at, 4) for at in its["segment"]), its["label"]): its["score"] for its in found[sources[0]]}
    assert ours == pytest.approx(theirs, abs=1e-5) and len(ours) > 10
    assert named == sorted(named, key=lambda its: -its["score"])
    with torch.no_grad():
        session.model.trunk.conv1.weight.add_(1)
    with pytest.raises(ValueError, match="features of another model"):
        Finder(out, session)


# ---- what is wrong is one sentence -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("model.stepz=3", "unknown key model.stepz: did you mean steps"),
        ("train.lr=-1", "train.lr is -1: it must be"),
        ("model.durations=99", "model.durations is 99: it must be from 1 to steps"),
        ("train.betas=[1]", "train.betas is \\[1\\]: it must be two numbers"),
        ("train.loss_weights=[1,2]", "train.loss_weights is"),
        ("train.layer_decay=0.5", "unknown key train.layer_decay"),
        ("detect.candidates=[0]", "detect.candidates is"),
        ("detect.thresholds=[]", "detect.thresholds is"),
    ],
)
def test_a_configuration_is_read_strictly(data, override, sentence):
    with pytest.raises(ConfigError, match=sentence):
        configured(data, override)


def changed(data, folder, change):
    """The features, with something done to one video's files."""
    folder.mkdir()
    for path in (data / "features").iterdir():
        os.symlink(path, folder / path.name)
    change(folder)
    return f"data.features={folder}"


def replaced(name, array):
    def change(folder):
        (folder / name).unlink()
        np.save(folder / name, array)

    return change


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda folder: (folder / "val2.npy").unlink(), "has no features of val2"),
        (replaced("val1.npy", np.zeros((60, 5), np.float32)), "val1 has 60 rows of features, but times"),
        (replaced("train3.npy", np.zeros((60, CHANNELS), np.int64)), "expected numbers with a point"),
        (replaced("train3.npy", np.zeros((0, CHANNELS), np.float32)), "a row at least"),
        (
            lambda folder: ((folder / "train3.npy").unlink(), (folder / "train3.npy").write_text("x")),
            "cannot be read as an array",
        ),
        (lambda folder: (folder / "train0.times.npy").unlink(), "set data.row_seconds"),
    ],
)
def test_features_that_cannot_be_used(data, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        trained(data, tmp_path / "out", changed(data, tmp_path / "features", change), "train.max_steps=1")


def test_features_of_another_width(data, tmp_path):
    rows = len(np.load(data / "features" / "val1.npy"))
    wide = changed(data, tmp_path / "features", replaced("val1.npy", np.zeros((rows, 12), np.float32)))
    with pytest.raises(ValueError, match="Features of val1 have 12 channels, those of val0 8"):
        trained(data, tmp_path / "out", wide)
    with pytest.raises(ValueError, match="8 channels, which 3 groups do not divide|width_1d"):
        trained(data, tmp_path / "out", "model.groups=3", "model.width_1d=18")


def test_features_that_are_not_finite(data, tmp_path):
    rows = len(np.load(data / "features" / "train1.npy"))
    broken = changed(data, tmp_path / "features", replaced("train1.npy", np.full((rows, CHANNELS), np.nan, np.float32)))
    with pytest.raises(ValueError, match="train1: its features have values that are not finite"):
        trained(data, tmp_path / "out", broken)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "no header"),
        ("video,start,end,label\n", "names no video"),
        ("video,start,end,label\nval0,3,2,jump\n", "start '3' and end '2'"),
        ("video,start,end,label\nval0,3,,jump\n", "lacks its end"),
        ("video,start,end,label\nval0,3,4,\n", "lacks its label"),
        ("video,start,label\nval0,3,jump\n", "no columns start and end"),
        ("a,b\n1,2\n", "no header with a column called video"),
        ("video,start,end,label\nval0,3,4,fly\n", "the class 'fly', which is none of the 3 classes"),
        (
            '{"database": {"val0": {"annotations": [{"segment": [3, 2], "label": "jump"}]}}}',
            "has a segment that does not begin",
        ),
        ('{"database": {"val0": {"annotations": [{"segment": [3, 4]}]}}}', "is no segment list"),
        ("{", "is no segment list"),
        ("video,start,end,label\nval0,1000,1004,jump\n", "no segment that is wholly in a window"),
    ],
)
def test_lists_that_cannot_be_used(data, tmp_path, text, sentence):
    (tmp_path / "list").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        trained(data, tmp_path / "out", f"data.train={tmp_path / 'list'}", "train.max_steps=1")


def test_epics_own_list_and_activitynets_are_read(tmp_path):
    (tmp_path / "epic.csv").write_text(
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,"
        "verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
        "P01_01_0,P01,P01_01,00:00:01.089,00:01:00.14,00:01:03.37,8,202,open door,open,3,door,3,\"['door', 'x']\",\"[3, 5]\"\n"
    )
    made = read_segments(tmp_path / "epic.csv")
    assert made.kinds == ("verb", "noun") and made.videos["P01_01"].labels == [("3", "3")]
    assert made.videos["P01_01"].segments.tolist() == [[60.14, 63.37]]
    action = {"segment": [1.0, 2.5], "label": "Rope skipping"}
    database = {
        "a": {"subset": "training", "duration": 9.5, "annotations": [action]},
        "b": {"subset": "validation", "annotations": []},
    }
    (tmp_path / "net.json").write_text(json.dumps({"database": database}))
    made = read_segments(tmp_path / "net.json", "train")
    assert made.kinds == ("class",) and list(made.videos) == ["a"] and made.videos["a"].seconds == 9.5
    assert list(read_segments(tmp_path / "net.json", "val").videos) == ["b"]


def test_two_videos_have_no_features_in_common(data, tmp_path):
    write_list(tmp_path / "l.csv", [(f"{folder}/train0.mp4", 1, 2, CLASSES[0]) for folder in "ab"])
    with pytest.raises(ValueError, match="l.csv has a/train0.mp4 and b/train0.mp4, for both of which .* features train0: make"):
        trained(data, tmp_path / "out", f"data.train={tmp_path / 'l.csv'}")


def test_what_no_row_stands_for_is_as_the_nearest_one(tmp_path):
    """A window of three hops has its middle in the second: nothing stands for the first, and for the last two."""
    begin = np.arange(8.0)
    np.save(tmp_path / "v.npy", begin[:, None].astype(np.float32))
    np.save(tmp_path / "v.times.npy", np.stack([begin, begin + 3], 1))
    folder = FeatureFolder(tmp_path)
    video = open_video("v", [folder], folder, Annotated(np.zeros((0, 2)), []), None)
    assert (video.seconds, video.rows, video.lead) == (10.0, 10, 1)
    assert video.window(Cut(10, 5, 1, 1.0), 0).tolist() == [[0, 0, 1, 2, 3, 4, 5, 6, 7, 7]]
    assert video.window(Cut(6, 3, 1, 1.0), 6).tolist() == [[5, 6, 7, 7, 0, 0]]  # and after the video is nothing


def test_a_video_of_one_window_lasts_as_long_as_that(tmp_path):
    """How far apart rows are, a row alone does not tell: the network does, or its configuration."""
    video = long_video("v", (np.ones((1, 3)),), {}, np.array([[0.0, 2.0]]), Annotated(np.zeros((0, 2)), []), 0.5)
    assert (video.row_seconds, video.lead, video.rows, video.seconds) == (0.5, 2, 4, 2.0)
    assert video.window(Cut(6, 3, 1, 0.5), 0)[0].tolist() == [1, 1, 1, 1, 0, 0]


def test_rows_stand_where_their_middle_is():
    begin = 0.2 * np.arange(10)
    assert timing("v", np.stack([begin, begin + 0.2], 1), 10) == (pytest.approx(0.2), 0, pytest.approx(2.0))
    assert (
        timing("v", np.stack([begin, begin + 0.6], 1), 10)[1] == 1
    )  # a window of three hops covers the second with its middle
    last = np.stack([begin, np.minimum(begin + 0.6, 2.0)], 1)
    assert timing("v", last, 10) == (pytest.approx(0.2), 1, 2.0)
    assert timing("v", np.array([[0, 2], [2, 2.5]]), 2) == (2.0, 0, 2.5)  # of which the second is cut short
    with pytest.raises(ValueError, match="not at equal distances"):
        timing("v", np.array([[0, 1], [1, 2], [7, 8], [8, 9.0]]), 4)
