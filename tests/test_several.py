"""Videos with several classes each: how lists say so, binary cross entropy, mean average precision, the whole way."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from i2v import evaluate
from i2v.checkpoint import load_checkpoint
from i2v.config import load_config
from i2v.losses import clip_losses
from i2v.mixing import Mix, mix
from i2v.pipelines import ShardError, build_loader
from i2v.pipelines.joined import JoinedShards
from i2v.pipelines.preview import read_rows
from i2v.pipelines.shards import ShardSet
from i2v.predictor import load
from i2v.report import make_report
from i2v.runs import read_run
from i2v.scores import ensemble, load_scores
from i2v.shard_tools.dataset import make_shards
from i2v.shard_tools.describe import measure
from i2v.shard_tools.encode import EncodeSettings
from i2v.shard_tools.output import OutputError
from i2v.shard_tools.relabel import main as relabel
from i2v.shard_tools.sources import read_sources
from i2v.shard_tools.verify import main as verify
from i2v.sweep import SHOWN, result
from i2v.tally import Labels, average_precision, tally_for
from i2v.train import run
from tests.experiments import write_experiment
from tests.lists import write
from tests.processes import call
from tests.test_evaluate import command
from tests.test_train import CPU, GEOMETRY, assert_continues, train
from tests.test_train import result as state
from tests.videos import moving, write_video

CLASSES = ["eat", "run", "sit", "talk"]
SETS = [(0,), (1, 3), (), (0, 2), (2,), (1, 3), (3,), (0, 1, 2, 3), (1,), (0, 2), (), (2, 3)]
SETTINGS = EncodeSettings(codec="mjpeg", gop=1, short_side=32)


# ---- lists


@pytest.mark.parametrize(
    "cells",
    [
        ["run|eat", "talk", ""],
        ["run;eat", "talk", ""],
        ["run, eat", "talk", ""],
        ["['run', 'eat']", "['talk']", "[]"],
        ['["run", "eat"]', '["talk"]', ""],
        ["1 0", "2", ""],
        ["1|0", "2", ""],
        ["[1, 0]", "[2]", "[]"],
    ],
)
def test_a_label_is_several_classes_however_they_are_separated(tmp_path, cells):
    rows = "".join('{}.mp4,"{}"\n'.format(i, cell.replace('"', '""')) for i, cell in enumerate(cells))
    videos, classes, notes = read_sources(write(tmp_path / "l.csv", "path,label\n" + rows), multi_label=True)
    assert [video.label for video in videos] == [(0, 1), (2,), ()]
    assert [video.class_name for video in videos] == ["|".join(classes[:2]), classes[2], ""]
    assert any("1.00 a video; 1 have none of them" in note for note in notes)


def test_names_that_hold_a_separator_are_whole_where_they_are_known(tmp_path):
    source = write(tmp_path / "l.csv", 'path,label\na.mp4,"sit, quiet|run"\nb.mp4,"sit, quiet"\n')
    classes = write(tmp_path / "c.json", ["run", "sit, quiet"])
    assert [video.label for video in read_sources(source, classes=classes, multi_label=True)[0]] == [(0, 1), (1,)]


@pytest.mark.parametrize(
    "text, options, message",
    [
        ("path\na.mp4\n", {}, "has no labels, so its videos cannot have several classes"),
        ("path,label\na.mp4,x|nan\n", {}, "'nan', which stands for none"),
        ("path,label\na.mp4,x|y\n", {"classes": ["x"]}, "'y' is not in the class list"),
        ("path,label\na.mp4,0;-1\n", {}, "label -1 is out of range"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(tmp_path, text, options, message):
    options = {name: write(tmp_path / "c.json", value) for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        read_sources(write(tmp_path / "l.csv", text), multi_label=True, **options)


def test_charades_own_list(tmp_path):
    write(
        tmp_path / "Charades_v1_classes.txt",
        "c000 Holding some clothes\nc001 Putting clothes, somewhere\nc002 Opening a door\n",
    )
    for name in ("AB1.mp4", "AB2.mp4", "AB3.mp4"):
        write(tmp_path / "v" / name, "x")
    text = (
        "id,scene,actions,length\nAB1,Hall,c002 0.5 9.1;c001 1.0 2.0;c002 11.0 12.0,30.1\nAB2,Hall,,12.0\nAB3,Hall,c000 0 1,9\n"
    )
    videos, classes, notes = read_sources(write(tmp_path / "Charades_v1_train.csv", text), tmp_path / "v")
    assert classes == ["Holding some clothes", "Putting clothes, somewhere", "Opening a door"]
    assert [(video.source, video.label) for video in videos] == [("AB1", (1, 2)), ("AB2", ()), ("AB3", (0,))]
    assert any("1 have none of them" in note for note in notes) and any("by their codes" in note for note in notes)
    with pytest.raises(ValueError, match="row 2 of .* has the action 'c009', which is no class"):
        read_sources(write(tmp_path / "Charades_v1_train.csv", text.replace("c002", "c009")), tmp_path / "v")
    (tmp_path / "Charades_v1_classes.txt").unlink()
    videos, classes, _ = read_sources(write(tmp_path / "Charades_v1_train.csv", text), tmp_path / "v")
    assert len(classes) == 157 and videos[0].class_name == "c001|c002"


def test_one_class_each_is_still_what_is_meant_without_saying_so(tmp_path):
    with pytest.raises(ValueError, match="looks like several, but a video has one: choose one, or give --multi-label"):
        read_sources(write(tmp_path / "l.csv", "path,label\na.mp4,x|y\n"))


def test_a_map_renames_merges_and_leaves_out_classes(tmp_path):
    source = write(tmp_path / "l.csv", "path,label\na.mp4,x|y\nb.mp4,z\nc.mp4,y|z\n")
    map = write(tmp_path / "m.csv", "y,x\nz,\n")
    videos, classes, notes = read_sources(source, map=map, multi_label=True)
    assert f"2 of 5 labels are left out, as the map {map} says." in notes
    assert classes == ["x"] and [video.label for video in videos] == [(0,), (), (0,)]


# ---- shards


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve videos with the classes SETS, and shards of them."""
    root, rows = tmp_path_factory.mktemp("several"), ["path,label"]
    for i, labels in enumerate(SETS):
        write_video(root / f"{i:02d}.mp4", moving(8, 32, 48, i), fps=8)
        rows.append(f"{i:02d}.mp4,{'|'.join(CLASSES[each] for each in labels)}")
    listing = read_sources(write(root / "l.csv", "\n".join(rows) + "\n"), multi_label=True)
    make_shards(listing.videos, listing.classes, root / "shards", SETTINGS, shard_clips=5)
    return root


def sets_of(shards):
    """path -> classes, as the index says"""
    label = shards.clips["label"].tolist()
    return {shards.metadata(i)["source"]: tuple(shards.label_sets[label[i]]) for i in range(len(shards))}


EXPECTED = {f"{i:02d}.mp4": labels for i, labels in enumerate(SETS)}


def test_the_manifest_has_the_sets_and_everything_reads_them(data, tmp_path, capsys):
    shards = ShardSet(data / "shards")
    assert shards.classes == CLASSES and sets_of(shards) == EXPECTED and len(shards.label_sets) == len(set(SETS))
    assert shards.manifest["clips_per_class"] == [4, 4, 5, 5] == list(measure(shards, [])["clips_per_class"].values())
    assert verify([str(data / "shards")]) == 0
    facts = shards.metadata(next(i for i in range(12) if shards.metadata(i)["source"] == "01.mp4"))
    assert facts["label"] == [1, 3] and facts["class"] == "run|talk"
    listing = read_sources(data / "l.csv", multi_label=True)
    for videos, to in ((listing.videos[:7], "part"), (listing.videos, "part")):
        make_shards(videos, CLASSES, tmp_path / to, SETTINGS, append=videos is listing.videos)
    assert sets_of(ShardSet(tmp_path / "part")) == EXPECTED and verify([str(tmp_path / "part")]) == 0
    with pytest.raises(OutputError, match="have several classes each and those of this list one"):
        make_shards([replace_label(listing.videos[0])], CLASSES, tmp_path / "part", SETTINGS, append=True)
    assert (
        relabel([str(data / "shards"), "--out", str(tmp_path / "m"), "--map", str(write(tmp_path / "m.csv", "run,talk\n"))])
        == 0
    )
    merged = ShardSet(tmp_path / "m")
    assert (
        merged.classes == ["eat", "talk", "sit"] and sets_of(merged)["07.mp4"] == (0, 1, 2) and sets_of(merged)["02.mp4"] == ()
    )
    capsys.readouterr()


def replace_label(video):
    return video._replace(label=1, source="other")


def test_batches_have_a_row_of_0_and_1_for_every_video(data):
    shards = ShardSet(data / "shards")
    names = {i: shards.metadata(i)["source"] for i in range(12)}
    for batch in build_loader(data / "shards", "val", batch_size=5, device="cpu", num_frames=2, size=16):
        assert batch.labels.shape == (5, 4) and batch.labels.dtype == torch.float32
        for i, labels, weight in zip(batch.ids.tolist(), batch.labels, batch.weights):
            assert not weight or tuple(labels.nonzero().flatten().tolist()) == EXPECTED[names[i]]


def test_mirrored_videos_change_their_classes(data):
    loader = build_loader(data / "shards", batch_size=4, device="cpu", num_frames=2, size=16, flip=1.0, flip_labels=[[0, 3]])
    shards = loader.shards
    for batch, _ in zip(loader, range(3)):
        for i, labels in zip(batch.ids.tolist(), batch.labels):
            was = EXPECTED[shards.metadata(i)["source"]]
            assert set(labels.nonzero().flatten().tolist()) == {{0: 3, 3: 0}.get(each, each) for each in was}


def test_a_mixture_of_data_sets_has_the_sets_of_both(data, tmp_path):
    other = read_sources(
        write(tmp_path / "l.csv", f"path,label\n{data / '00.mp4'},talk|sit\n{data / '01.mp4'},eat\n"), multi_label=True
    )
    labels = [(2, 3), (0,)]
    make_shards([v._replace(label=each) for v, each in zip(other.videos, labels)], CLASSES, tmp_path / "two", SETTINGS)
    one, two = ShardSet(data / "shards"), ShardSet(tmp_path / "two")
    joined = JoinedShards([one, two])
    found = [joined.label_sets[label] for label in joined.clips["label"]]
    assert found == [each.label_sets[label] for each in (one, two) for label in each.clips["label"]]
    make_shards([v._replace(label=0) for v in other.videos], CLASSES, tmp_path / "plain", SETTINGS)
    with pytest.raises(ShardError, match="only one has several classes a video"):
        JoinedShards([one, ShardSet(tmp_path / "plain")])
    assert one.checksums() != replace_sets(data, tmp_path).checksums()


def replace_sets(data, tmp_path):
    """The same videos, each with another set of classes, in the same order."""
    listing = read_sources(data / "l.csv", multi_label=True)
    videos = [video._replace(label=tuple(sorted(3 - each for each in video.label))) for video in listing.videos]
    make_shards(videos, CLASSES, tmp_path / "turned", SETTINGS, shard_clips=5)
    return ShardSet(tmp_path / "turned")


def test_the_preview_names_all_classes(data):
    loader = build_loader(data / "shards", "val", batch_size=1, device="cpu", num_frames=2, size=16)
    titles = [title for title, _ in read_rows(loader, 12, 2)]
    assert sorted(title.split("   ")[0] for title in titles) == sorted(
        "|".join(CLASSES[each] for each in labels) or "not labelled" for labels in SETS
    )


def test_no_order_balances_them(data):
    with pytest.raises(ValueError, match="have several classes, so no order can balance them"):
        build_loader(data / "shards", batch_size=4, device="cpu", num_frames=2, size=16, balance=0.5)


# ---- loss and precision


def test_the_loss_is_torchs_and_mixed_and_smoothed_targets_are_shares():
    logits, labels, weights = torch.randn(4, 3), torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]), torch.rand(3)
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    torch.testing.assert_close(clip_losses(logits, labels, True).mean(), expected)
    _, targets = mix(torch.randn(4, 3, 2, 4, 4), labels, 3, Mix(0.25), torch.tensor([1, 0, 3, 2]))
    torch.testing.assert_close(targets, 0.25 * labels + 0.75 * labels[[1, 0, 3, 2]])
    smooth = F.binary_cross_entropy_with_logits(logits, 0.9 * targets + 0.05, weights)
    torch.testing.assert_close(clip_losses(logits, targets, True, weights, 0.1).mean(), smooth)


def by_definition(has, score):
    """The precision at every video that has the class, those with its score counted with it."""
    return np.mean([has[score >= score[i]].mean() for i in np.flatnonzero(has)]) if has.any() else np.nan


@pytest.mark.parametrize("values", [5, 1000])  # many ties, none
def test_average_precision_is_its_definition(values):
    random = np.random.default_rng(0)
    has, score = random.random((50, 6)) < 0.3, random.integers(values, size=(50, 6)) / values
    has[:, 2] = False
    found = average_precision(torch.from_numpy(has), torch.from_numpy(score)).numpy()
    np.testing.assert_allclose(found, [by_definition(has[:, k], score[:, k]) for k in range(6)], rtol=1e-12)
    order = random.permutation(50)
    assert np.array_equal(
        found, average_precision(torch.from_numpy(has[order]), torch.from_numpy(score[order])).numpy(), equal_nan=True
    )


def test_a_class_that_no_video_has_does_not_count_and_bad_clips_neither():
    tally = tally_for(Labels(3, several=True), torch.device("cpu"))
    probabilities = torch.tensor([[0.9, 0.2, 0.5], [0.1, 0.8, 0.5], [0.99, 0.99, 0.99]])
    tally.add(probabilities, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), torch.tensor([True, True, False]))
    found = tally.scores(3)
    assert (found.counted, found.summary()["map"], found.per_class()[2].isnan()) == (2, 1.0, True)
    assert found.value("cross_entropy") == pytest.approx(
        -F.binary_cross_entropy(probabilities[:2], torch.eye(3)[:2]).item(), abs=1e-5
    )


# ---- the whole way


@pytest.fixture(scope="module")
def config(data):
    model = {"method": "st_adapter", "backbone": GEOMETRY, "weights": "random", "options": {"adapter_width": 8}}
    recipe = {"epochs": 2, "batch_size": 6, "lr": 1e-3, "mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1}
    recipe |= {"class_weights": 0.5, "ema": 0.9, "save_every": 2, "eval_every": 1}
    both = {"train": str(data / "shards"), "val": str(data / "shards"), "device": "cpu", "threads": 1}
    return write_experiment(data, data, model | {"head": {"type": "linear", "dropout": 0.1}}, recipe, data=both)


@pytest.fixture(scope="module")
def trained(config, data):
    torch.set_num_threads(1)
    run(load_config(config, [f"out={data / 'run'}"]), CPU)
    return data / "run"


def test_a_run_continues_exactly_and_its_best_is_by_map(config, trained, tmp_path):
    train(config, tmp_path, "train.max_steps=2")
    assert_continues(config, tmp_path, state(trained), saved=2)
    meta = load_checkpoint(trained / "best.safetensors")[1]
    assert meta.several and meta.config["train"]["best"] == "map" and "top1" not in state(trained)[1][-1]
    tests = [record for record in state(trained)[1] if "map" in record]
    assert meta.scores["map"] == max(max(record["map"], record["ema_map"]) for record in tests)
    assert (trained / "curves.png").exists()
    row = result(
        type("Member", (), {"values": {}, "folder": trained, "name": "run", "is_finished": lambda self: True})(), tests, "map"
    )
    assert SHOWN["map"] == "mAP" and row["best mAP"] == meta.scores["map"]


def test_evaluation_prediction_and_report_of_average_precision(trained, data, tmp_path, monkeypatch, capsys):
    call(monkeypatch, evaluate, "--checkpoint", trained, "--scores", tmp_path / "a.npz", "--json", tmp_path / "a.json")
    out = capsys.readouterr().out
    found, videos = json.loads((tmp_path / "a.json").read_text()), load_scores(tmp_path / "a.npz")
    assert videos.how["several"]  # which scores without labels would not tell
    assert "mAP" in out and "counted 12 of 12 videos" in out and "top-1" not in out and found["counted"] == 12
    labels = {path: tuple(row.nonzero().flatten().tolist()) for path, row in zip(videos.paths, videos.labels)}
    assert labels == EXPECTED
    has, score = videos.labels.bool().numpy(), videos.probabilities.numpy()
    wanted = [by_definition(has[:, k], score[:, k]) for k in range(4)]
    assert list(found["per_class"].values()) == pytest.approx(wanted) and found["map"] == pytest.approx(np.mean(wanted))
    call(monkeypatch, evaluate, "--from-scores", tmp_path / "a.npz")
    assert capsys.readouterr().out == out
    assert torch.allclose(ensemble([videos, videos], "logits").probabilities, videos.probabilities, atol=1e-6)
    page = make_report([read_run(tmp_path / "a.npz"), read_run(trained)])
    assert "mean average precision" in page and "Confused most often" not in page and "best mAP while training" in page
    named = load(trained, device="cpu").predict(data / "03.mp4", top=4)
    row = videos.paths.index("03.mp4")
    assert {each["class"]: each["probability"] for each in named} == pytest.approx(
        dict(zip(CLASSES, videos.probabilities[row].tolist())), abs=1e-5
    )


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.best=top1", "train.best is 'top1', but the videos have several classes each: it must be map or cross_entropy"),
        ("model.head={type: text}", "have several classes, each for itself, which the logits of a text head cannot say"),
        ("model.head={type: factors, factors: {a: 2, b: 2}}", "which the logits of a factors head cannot say"),
    ],
)
def test_what_makes_no_sense_for_several_classes_is_refused(config, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        run(load_config(config, [f"out={tmp_path}", override]), CPU)


def test_data_of_the_other_kind_is_refused(trained, config, data, tmp_path, monkeypatch, capsys):
    listing = read_sources(data / "l.csv", multi_label=True)
    make_shards([video._replace(label=0) for video in listing.videos], CLASSES, tmp_path / "plain", SETTINGS)
    with pytest.raises(ValueError, match="only one has several classes a video: make both alike"):
        run(load_config(config, [f"out={tmp_path / 'out'}", f"data.val={tmp_path / 'plain'}"]), CPU)
    make_shards([video._replace(label=()) for video in listing.videos], CLASSES, tmp_path / "none", SETTINGS)
    with pytest.raises(ValueError, match="No video of .*none has a class, so there is no mean average precision: give"):
        run(load_config(config, [f"out={tmp_path / 'out'}", f"data.val={tmp_path / 'none'}"]), CPU)
    with pytest.raises(SystemExit, match="The model was trained for several class"):
        call(monkeypatch, evaluate, "--checkpoint", trained, "--data", tmp_path / "plain")


@pytest.mark.process
def test_two_ranks_come_to_the_same_average_precision(trained, tmp_path):
    found = []
    for ranks in (1, 2):
        out = ("--json", tmp_path / f"{ranks}.json", "--scores", tmp_path / f"{ranks}.npz", "--batch-size", 5)
        done = command("i2v.evaluate", "--checkpoint", trained, *out, ranks=ranks)
        assert done.returncode == 0, done.stderr
        found.append(
            (json.loads((tmp_path / f"{ranks}.json").read_text()), load_scores(tmp_path / f"{ranks}.npz").labels.tolist())
        )
    assert found[0] == found[1] and found[0][0]["counted"] == 12
