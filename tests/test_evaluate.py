"""Evaluation and prediction: every video once, the same result on any number of ranks and for any batch size."""

import io
import json
import os
import shutil
import subprocess
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save_file

import i2v.predict as program
from i2v import evaluate as evaluation
from i2v import metrics
from i2v.checkpoint import Backbone, Meta, load_checkpoint, of_folder, save_checkpoint
from i2v.metrics import evaluate, videos_at_once
from i2v.model import create_model
from i2v.pipelines import Batch
from i2v.pipelines.shards import ShardSet
from i2v.predictor import Patience, find_videos, predict
from i2v.session import open_session, restore_model
from i2v.vit import VisionTransformer, ViTSpec
from i2v.weights import fingerprint, load_weights
from tests.processes import ENVIRONMENT, LIMIT, call, on_ranks

ROOT = Path(__file__).parent.parent
GEOMETRY = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "heads": 4, "embed_dim": 32}


@pytest.fixture(scope="module")
def checkpoint(shapes, tmp_path_factory):
    """What a run would have left: a checkpoint of a model with random adapters."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), folder / "clip.safetensors")
    classes = ShardSet(shapes / "vp9").classes
    model = create_model("st_adapter", GEOMETRY, 4, len(classes), adapter_width=16)
    load_weights(model, folder / "clip.safetensors", "clip")
    for parameter in model.trainable_parameters().values():
        torch.nn.init.normal_(parameter, std=0.3)
    meta = Meta(
        model.config,
        Backbone(GEOMETRY, str(folder / "clip.safetensors"), fingerprint(model.frozen_parameters())),
        classes,
        stored={"codec": "vp9", "gop": 8, "short_side": 48},
        clips={"flip": 0, "clips": 2, "crops": 3},
        config={"data": {"val": str(shapes / "vp9-val")}},
        progress={"step": 3},
    )
    save_checkpoint(folder / "best.safetensors", model.trainable_parameters(), meta)
    return folder / "best.safetensors"


def command(module, *arguments, ranks=1):
    full = on_ranks(ranks, "-m", module, *arguments)
    return subprocess.run(full, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.process
def test_two_ranks_and_another_batch_size_give_the_same_scores(checkpoint, tmp_path):
    one = command("i2v.evaluate", "--checkpoint", checkpoint, "--json", tmp_path / "1.json")
    assert one.returncode == 0 and "counted 16 of 16 videos" in one.stdout
    two = command("i2v.evaluate", "--checkpoint", checkpoint, "--json", tmp_path / "2.json", "--batch-size", 3, ranks=2)
    assert two.returncode == 0, two.stderr
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("1.json", "2.json"))
    assert one == two and one["views"] == "2 clips x 3 crops"
    assert sum(map(sum, one["confusion"])) == 16


@pytest.mark.process
def test_predictions_are_what_evaluation_counts(checkpoint, shapes, tmp_path):
    """Videos shard by shard or one by one: the same pixels, so the same confusion matrix."""
    out = tmp_path / "answers.json"
    done = command("i2v.predict", "--checkpoint", checkpoint, shapes / "val", "--top", 1, "--json", out)
    assert done.returncode == 0, done.stderr
    answers = json.loads(out.read_text())
    assert len(answers) == 16 and answers[0]["video"] in done.stdout
    command("i2v.evaluate", "--checkpoint", checkpoint, "--json", tmp_path / "scores.json")
    confusion = json.loads((tmp_path / "scores.json").read_text())["confusion"]
    classes = ShardSet(shapes / "vp9").classes
    predicted = [[0] * 8 for _ in range(8)]
    for answer in answers:
        label, guess = Path(answer["video"]).parent.name, answer["top"][0]["class"]
        predicted[classes.index(label)][classes.index(guess)] += 1
    assert predicted == confusion


@pytest.mark.process
def test_a_window_slides_over_a_video(checkpoint, shapes, tmp_path):
    video = next((shapes / "val").rglob("*.mp4"))
    done = command(
        "i2v.predict", "--checkpoint", checkpoint, video, "--window", 0.3, "--hop", 0.2, "--json", tmp_path / "w.json"
    )
    assert done.returncode == 0, done.stderr
    ((answer,), windows) = (found := json.loads((tmp_path / "w.json").read_text())), found[0]["windows"]
    assert answer["video"] == str(video) and len(windows) > 1
    assert [round(w["start"], 3) for w in windows] == [round(0.2 * i, 3) for i in range(len(windows))]
    assert all(len(w["top"]) == 5 and w["end"] - w["start"] <= 0.3 + 1e-6 for w in windows)


@pytest.mark.process
def test_a_broken_file_is_named_and_the_others_are_predicted(checkpoint, shapes, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    good = next((shapes / "val" / "left").iterdir())
    done = command("i2v.predict", "--checkpoint", checkpoint, tmp_path / "broken.mp4", good)
    assert done.returncode == 1 and "cannot be read: it cannot be opened as a video" in done.stdout
    assert done.stdout.count(" %  ") == 5 and "1 of 2 videos could not be read" in done.stderr


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.process)])
def test_a_film_that_takes_long_is_told_of(checkpoint, shapes, monkeypatch, capsys, workers):
    video, told = next((shapes / "val" / "left").iterdir()), []
    session = open_session(Namespace(checkpoint=checkpoint, weights=None))
    ((_, answer),) = predict(session, [str(video)], workers, tell=told.append)
    assert answer.start == 0 and answer.end == pytest.approx(20 / 12)
    times = [text.removeprefix(f"{video}: read up to ") for text in told if "read up to" in text]
    if workers:  # now and then, of another process
        assert times[0] == "0:00:00" and times == sorted(times)
    else:
        assert len(times) == 20 and times == sorted(times) and set(times) == {"0:00:00", "0:00:01"}  # of every frame
    assert told[-1] == "looking at 1 of 1 videos"

    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    patience = Patience()
    for clock[0] in (1, 9, 11, 12, 22):
        patience(f"at {clock[0]}")
    assert capsys.readouterr().err == "at 11\nat 22\n"


@pytest.mark.parametrize("list_ends", ["\n", "\r\n"])
def test_videos_come_from_a_list_and_from_stores_too(checkpoint, shapes, monkeypatch, capsys, tmp_path, list_ends):
    """An odd name, a folder of a store and one of its files, in the order given, each once; the same answer from everywhere."""
    videos, store = sorted((shapes / "val").rglob("*.mp4"))[:2], fsspec.filesystem("memory")
    odd = os.fsdecode(b"/caf\xe9 1.mp4")
    (shutil.copy(videos[0], str(tmp_path) + odd), shutil.copy(videos[1], tmp_path / "2.mp4"))
    store.pipe({f"/predicted/{name}.mp4": video.read_bytes() for name, video in zip("ab", videos)})
    names = [f"{tmp_path}{odd}", str(tmp_path / "2.mp4"), "", "memory://predicted", "memory://predicted/a.mp4"]
    given = io.TextIOWrapper(io.BytesIO(os.fsencode(list_ends.join(names) + list_ends)))
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.stdin", given)
    call(monkeypatch, program, "--checkpoint", checkpoint, "--list", "--json", out, "--device", "cpu")
    found = json.loads(out.read_text())
    assert [answer["video"] for answer in found] == [*names[:2], "memory://predicted/a.mp4", "memory://predicted/b.mp4"]
    for here, there in zip(found[:2], found[2:]):
        assert here["top"] == there["top"]


def test_an_empty_list_and_none_are_one_sentence(checkpoint, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    for given, told in ((["--list"], "standard input holds no video files"), ([], "there is nothing to look at")):
        with pytest.raises(SystemExit, match=told):
            call(monkeypatch, program, "--checkpoint", checkpoint, *given)


def test_wrong_paths_are_one_sentence(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        find_videos([tmp_path / "none.mp4"])
    with pytest.raises(ValueError, match="holds no video files"):
        find_videos([tmp_path])
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "text.safetensors")
    with pytest.raises(ValueError, match="does not exist: give a checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="pipe.safetensors cannot be read as a checkpoint .it is no file"):
        load_checkpoint(tmp_path / "pipe.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was not written by i2v.train"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_checkpoint_that_may_not_be_read_is_there(checkpoint, monkeypatch):
    def forbidden(path, *_):  # root, whom tests may run as, may read all
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(ValueError, match="best.safetensors cannot be read .Permission denied.: change its permissions"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "wrong, told",
    [
        ("clips=0", "clips is 0: it must be"),
        ("crops=0", "crops is 0: it must be 1 or 3"),
        ("clips=abc", "clips is 'abc': it must be"),
        ("size=0", "size is 0: it must be"),
        ("num_frames=1e99", "num_frames is 1e+99: it must be"),
        ("--batch-size=0", "'0' must be a whole number, at least 1"),
        ("--memory=0", "'0' must be a finite number, more than 0"),
        ("--memory=inf", "'inf' must be a finite number, more than 0"),
        ("--scores=.", "--scores is the folder .: give the name of a file"),
        ("--json=.", "--json is the folder .: give the name of a file"),
    ],
)
def test_values_that_cannot_be_are_one_sentence(checkpoint, monkeypatch, capsys, wrong, told):
    monkeypatch.setattr("sys.argv", ["evaluate", "--checkpoint", str(checkpoint), "--device", "cpu", wrong])
    with pytest.raises(SystemExit) as ended:
        evaluation.main()
    assert told in str(ended.value) + capsys.readouterr().err


def test_a_folder_stands_for_its_best_checkpoint(checkpoint, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ValueError, match="run has no model: there is none of best.safetensors, last.safetensors"):
        load_checkpoint(folder)
    for name in ("last.safetensors", "best.safetensors"):
        shutil.copy(checkpoint, folder / name)
        assert of_folder(folder) == folder / name
    assert load_checkpoint(folder)[1] == load_checkpoint(checkpoint)[1]


def test_a_backbone_that_is_not_there_is_asked_for(checkpoint, tmp_path, monkeypatch):
    """The run had it by a relative path, and this is another folder."""
    tensors, meta = load_checkpoint(checkpoint)
    file, moved = meta.backbone.weights, replace(meta, backbone=replace(meta.backbone, weights="weights/clip.pt"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="had its backbone's weights at weights/clip.pt, .*: say with --weights where it is"):
        restore_model(tensors, moved)
    restore_model(tensors, moved, file)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint file other.pt"):  # what the user typed
        restore_model(tensors, moved, "other.pt")


def test_a_checkpoint_refuses_another_backbone_and_another_method(checkpoint, tmp_path):
    tensors, meta = load_checkpoint(checkpoint)
    torch.manual_seed(5)
    save_file(VisionTransformer(ViTSpec(**GEOMETRY)).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="was trained on another backbone"):
        restore_model(tensors, meta, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match="does not fit the model as layout 'i2v'"):
        restore_model(tensors, replace(meta, model=meta.model | {"adapter_width": 8}))
    with pytest.raises(ValueError, match="unexpected"):
        load_weights(create_model("clip", GEOMETRY, 4, 8), tensors, "i2v")


def batch(logits, labels, weights):
    clips = torch.zeros(len(labels), 2, 3, 1, 1, 1)
    made = Batch(clips, torch.tensor(labels), torch.tensor(weights), torch.arange(len(labels)), len(labels))
    made.logits = logits
    return made


class Fixed(torch.nn.Module):
    """Gives the logits it was told to."""

    def __init__(self, batches):
        super().__init__()
        self.logits = iter([b.logits for b in batches])

    def forward(self, clips):
        return next(self.logits)


def scores_of(*batches):
    from contextlib import nullcontext

    return evaluate(Fixed(batches), batches, 3, 3, torch.device("cpu"), nullcontext)


def test_views_are_averaged_as_probabilities_and_weight_0_is_not_counted():
    # One video, two views: on average class 1, though one view is very sure of class 0.
    views = torch.tensor([[2.0, 0.0, 0.0], [-20.0, 0.0, -20.0], [0.0, 5.0, 0.0], [0.0, 5.0, 0.0]])
    scores = scores_of(batch(views, [1, 0], [1.0, 0.0]))
    assert (scores.counted, scores.expected, scores.top1, scores.top5) == (1, 3, 1.0, 1.0)
    assert scores.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert scores_of(batch(views, [1, -1], [1.0, 0.0])).counted == 1  # nobody asks what has no weight for its label


@pytest.mark.parametrize("label", [3, -1])
def test_labels_outside_the_classes_are_errors(label):
    with pytest.raises(ValueError, match="1 videos have a label outside the model's 3 classes"):
        scores_of(batch(torch.zeros(2, 3), [label], [1.0]))


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_no_numbers_are_errors(logit):
    with pytest.raises(FloatingPointError, match="not a number for 1 of the 3 videos"):
        scores_of(batch(torch.full((2, 3), logit), [0], [1.0]))


@pytest.mark.parametrize("logit, label, error", [(0.0, 3, ValueError), (float("nan"), 0, FloatingPointError)])
def test_what_is_wrong_on_one_rank_is_an_error_on_all(monkeypatch, logit, label, error):
    """Else the others would go on, and wait for the one that does not."""
    elsewhere = []
    monkeypatch.setattr(metrics, "sum_over_ranks", lambda total: elsewhere.append(total.clone()))
    with pytest.raises(error):
        scores_of(batch(torch.full((2, 3), logit), [label], [1.0]))
    sums = iter(elsewhere)
    monkeypatch.setattr(metrics, "sum_over_ranks", lambda total: total.add_(next(sums)))
    with pytest.raises(error, match="1 "):
        scores_of(batch(torch.zeros(2, 3), [0], [1.0]))


def test_as_many_videos_at_once_as_fit_at_the_size_of_their_evaluation():
    options = {"num_frames": 16, "clips": 10, "crops": 3, "size": 112}
    assert videos_at_once(options | {"test_size": 224}) == videos_at_once(options | {"size": 224}) < videos_at_once(options)
